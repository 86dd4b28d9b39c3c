"""What users do to a running ComfyUI: stop it, give it wrong or damaged things, and take a LoRA elsewhere."""

import re
import time

import comfy.sd
import pytest
from graphs import SIDE, training_prompt
from safetensors.torch import load_file
from tiny import tiny_eraser, tiny_model

from benchmarks.server import PromptError
from unhype.hypernet.files import load, save


@pytest.fixture(scope="module")
def hypernets(server, checkpoint):
    """models/unhype with hypernets for the checkpoint, for another family and for a model of another size."""
    folder = server.base / "models" / "unhype"
    folder.mkdir(exist_ok=True)
    others = set(folder.iterdir())
    model = comfy.sd.load_checkpoint_guess_config(str(checkpoint), output_vae=False, output_clip=False)[0]
    # Without a detector, so that any prompt is erased.
    save(tiny_eraser(model, width=768), folder / "fits.safetensors")
    save(tiny_eraser(tiny_model("sdxl")), folder / "other_family.safetensors")
    save(tiny_eraser(tiny_model("sd15")), folder / "other_size.safetensors")
    yield folder
    for path in set(folder.glob("*.safetensors")) - others:
        path.unlink()


def drawing(checkpoint, hypernet=None, lora=None, steps=3):
    """A prompt that draws one latent, with the model itself, an erasure, or a LoRA."""
    prompt = {
        "model": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": checkpoint.name}},
        "clip": {"class_type": "UnHypeTestCLIP", "inputs": {}},
        "text": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["clip", 0], "text": "a photo of a cat"}},
        "size": {"class_type": "EmptyLatentImage", "inputs": {"width": SIDE, "height": SIDE, "batch_size": 1}},
        "draw": {
            "class_type": "KSampler",
            "inputs": {
                "model": ["model", 0],
                "positive": ["text", 0],
                "negative": ["text", 0],
                "latent_image": ["size", 0],
                "seed": 7,
                "steps": steps,
                # Leaves the negative prompt out, on which a LoRA would act and an erasure never does.
                "cfg": 1.0,
                "sampler_name": "euler",
                "scheduler": "normal",
                "denoise": 1.0,
            },
        },
        "save": {"class_type": "SaveLatent", "inputs": {"samples": ["draw", 0], "filename_prefix": "live/latent"}},
    }
    if hypernet:
        prompt["hypernet"] = {"class_type": "UnHypeLoadHypernet", "inputs": {"hypernet": hypernet}}
        options = {"strength": 1.0, "keep_others_exact": False}
        inputs = {"model": ["model", 0], "unhype": ["hypernet", 0], **options}
        prompt["changed"] = {"class_type": "UnHypeApplyErasure", "inputs": inputs}
    if lora:
        inputs = {"model": ["model", 0], "lora_name": lora, "strength_model": 1.0}
        prompt["changed"] = {"class_type": "LoraLoaderModelOnly", "inputs": inputs}
    if hypernet or lora:
        prompt["draw"]["inputs"]["model"] = ["changed", 0]
    return prompt


def latent(server, entry):
    """The latent that a drawing saved."""
    (saved,) = entry["outputs"]["save"]["latents"]
    return load_file(server.base / "output" / saved["subfolder"] / saved["filename"])["latent_tensor"]


def loading(name):
    """A prompt that shows what a hypernet file erases."""
    return {
        "hypernet": {"class_type": "UnHypeLoadHypernet", "inputs": {"hypernet": name}},
        "show": {"class_type": "PreviewAny", "inputs": {"source": ["hypernet", 1]}},
    }


def log(server):
    return server.log.read_text("utf-8", errors="replace")


def interrupt_once(server, prompt, happened, timeout=600):
    """Queue a prompt and interrupt it in the middle, as soon as `happened()`."""
    prompt_id, end = server.queue(prompt), time.monotonic() + timeout
    try:
        while not happened():
            if server.get(f"/history/{prompt_id}"):
                server.wait(prompt_id)  # says why, if it failed
                pytest.fail("the prompt came to its end")
            assert time.monotonic() < end, server.log_tail()
            time.sleep(0.05)
    finally:
        server.interrupt()
    with pytest.raises(PromptError, match="interrupted"):
        server.wait(prompt_id)


# Training


def checkpoints(server):
    return list((server.base / "output" / "unhype" / "checkpoints").glob("*"))


@pytest.fixture
def training(server, checkpoint):
    """The training prompt in small and the inputs of Train Erasure, which are this file's own run."""
    prompt, inputs = training_prompt(server)
    inputs |= {"name": "live", "seed": 1, "preview_every": 0, "guidance": 1.0}
    return prompt, inputs


def test_an_interrupted_training_goes_on_from_its_checkpoint(server, hypernets, training):
    prompt, inputs = training
    inputs["steps"] = 100_000
    interrupt_once(server, prompt, lambda: checkpoints(server))
    (kept,) = checkpoints(server)
    assert not (hypernets / "live.safetensors").exists()
    step = int(re.findall(r"stopped at step (\d+); queue the same settings again", log(server))[-1])

    inputs["steps"] = step + 3
    entry = server.run(prompt)
    assert f"going on from the checkpoint at step {step}." in log(server)
    assert not kept.exists()
    record = load(hypernets / "live.safetensors").record.training
    assert len(record.losses) == record.steps == step + 3
    (words,) = (output["text"][0] for output in entry["outputs"].values() if "text" in output)
    assert re.match(rf"Finished after {step + 3} steps\. It took \d+ s\.\nErases:\ncat -> ", words)
    assert str(hypernets / "live.safetensors") in words


def test_a_deleted_file_is_trained_again_and_nothing_runs_twice_for_one_that_is_there(server, hypernets, training):
    prompt, inputs = training
    inputs |= {"name": "deleted", "steps": 2}
    trainer = next(name for name, node in prompt.items() if node["inputs"] is inputs)

    def ran():
        messages = server.run(prompt)["status"]["messages"]
        return trainer not in next(message["nodes"] for kind, message in messages if kind == "execution_cached")

    path = hypernets / "deleted.safetensors"
    assert [ran(), path.is_file()] == [True, True]
    assert not ran()
    path.unlink()
    assert [ran(), path.is_file()] == [True, True]
    assert not ran()


def test_a_concept_list_without_concepts_is_refused_before_anything_runs(server, training):
    prompt, inputs = training
    inputs["concepts"] = "# cat -> tree\n"
    before = server.get("/history")
    with pytest.raises(PromptError, match=r"\(UnHypeTrainErasure\): .*'concepts': There is no concept to erase"):
        server.queue(prompt)
    assert server.get("/history") == before
    assert server.get("/prompt")["exec_info"]["queue_remaining"] == 0


def test_a_concept_list_from_another_node_is_read_when_that_node_has_run(server, training):
    prompt, inputs = training
    prompt["list"] = {"class_type": "PrimitiveStringMultiline", "inputs": {"value": "cat -> tree\ncat -> house"}}
    inputs["concepts"] = ["list", 0]
    with pytest.raises(PromptError, match=r"unhype\.PromptError: Train Erasure: The concept 'cat' is listed twice"):
        server.run(prompt)


def test_training_without_a_clip_says_which_to_connect(server, training):
    prompt, inputs = training
    del inputs["clip"]
    with pytest.raises(PromptError, match="Connect the CLIP output of the loader that gives the MODEL"):
        server.run(prompt)


# Files that do not fit


@pytest.mark.parametrize("length", [0, 1000, -4])
def test_a_damaged_hypernet_is_named_until_it_is_replaced(server, hypernets, length):
    whole, damaged = (hypernets / "fits.safetensors").read_bytes(), hypernets / "damaged.safetensors"
    damaged.write_bytes(whole[:length])
    with pytest.raises(PromptError, match=r"\(UnHypeLoadHypernet\): .*'damaged\.safetensors' is damaged"):
        server.run(loading(damaged.name))
    damaged.write_bytes(whole)
    entry = server.run(loading(damaged.name))
    assert entry["outputs"]["hypernet"]["text"] == ["Erases:\ncat -> tree"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("other_family", "was trained for Stable Diffusion XL, but the model is Stable Diffusion 1.x"),
        ("other_size", "It was trained on a model of another size"),
    ],
)
def test_a_hypernet_for_another_model_is_refused_in_words(server, hypernets, checkpoint, name, words):
    with pytest.raises(PromptError, match=r"\(UnHypeApplyErasure\)") as refusal:
        server.run(drawing(checkpoint, f"{name}.safetensors"))
    assert words in str(refusal.value)


# Drawing


def test_an_interrupted_erasure_leaves_nothing_on_the_model(server, hypernets, checkpoint):
    before = latent(server, server.run(drawing(checkpoint)))
    erasing = drawing(checkpoint, "fits.safetensors", steps=10_000)
    interrupt_once(server, erasing, lambda: re.search(r" [1-9]\d*/10000 \[", log(server)))
    again = drawing(checkpoint)
    # The same latent from another node, else ComfyUI would show the first picture and draw none.
    again["same"] = {"class_type": "RepeatLatentBatch", "inputs": {"samples": ["size", 0], "amount": 1}}
    again["draw"]["inputs"]["latent_image"] = ["same", 0]
    entry = server.run(again)
    (cached,) = (message["nodes"] for kind, message in entry["status"]["messages"] if kind == "execution_cached")
    assert "draw" not in cached
    assert latent(server, entry).equal(before)


def test_a_lora_made_of_a_hypernet_draws_what_the_hypernet_draws(server, hypernets, checkpoint):
    if "SaveLoRA" not in server.object_info():
        pytest.skip("this ComfyUI has no Save LoRA Weights")
    server.run(
        {
            "clip": {"class_type": "UnHypeTestCLIP", "inputs": {}},
            "hypernet": {"class_type": "UnHypeLoadHypernet", "inputs": {"hypernet": "fits.safetensors"}},
            "lora": {
                "class_type": "UnHypeHypernetToLora",
                "inputs": {
                    "unhype": ["hypernet", 0],
                    "clip": ["clip", 0],
                    "text": "a photo of a cat",
                    "strength": 1.0,
                },
            },
            "save": {"class_type": "SaveLoRA", "inputs": {"lora": ["lora", 0], "prefix": "loras/live"}},
        }
    )
    (saved,) = (server.base / "output" / "loras").glob("live*.safetensors")
    folder = server.base / "models" / "loras"
    folder.mkdir(exist_ok=True)
    saved.replace(folder / "live.safetensors")
    base = latent(server, server.run(drawing(checkpoint)))
    erased = latent(server, server.run(drawing(checkpoint, "fits.safetensors")))
    by_lora = latent(server, server.run(drawing(checkpoint, lora="live.safetensors")))
    assert (erased - base).norm() > 0.05 * base.norm()
    assert (by_lora - erased).norm() < 0.01 * (erased - base).norm()
