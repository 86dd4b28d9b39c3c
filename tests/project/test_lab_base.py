"""The lab's base for CLIP: its pictures, its captions, where it begins and how a training goes on."""

import inspect
from pathlib import Path

import pytest
import torch
from comfy.ldm.modules.attention import CrossAttention
from tiny import seeded

from benchmarks.lab import (
    bank,
    clip,
    data,
    epsilon,
    families,
    flux,
    flux_text,
    model,
    painter,
    storage,
    text,
    train_base,
    train_clip,
    warm_start,
)
from benchmarks.lab.batches import CaptionBatches, FluxBatches
from benchmarks.lab.caption_measure import Drawn, groups, regions, seen
from benchmarks.lab.captions import Caption, Captions, fill, is_for_scoring
from benchmarks.lab.judge import LABELS
from benchmarks.lab.vocabulary import CLASSES, NAMES

ATTENTION_OF_ITS_OWN = pytest.mark.skipif(
    "transformer_options" not in inspect.signature(CrossAttention.forward).parameters,
    reason="this ComfyUI takes no other attention, which training needs for its gradients",
)
PLACES = [("left", "right"), ("front", "back"), ("left", "middle", "right")]


@pytest.fixture(scope="module")
def encoder():
    """The lab's CLIP with random weights."""
    made = clip.build()
    torch.manual_seed(0)
    rows = torch.randn(clip.VOCABULARY, clip.RANK, generator=seeded(0))
    train_clip.initialise(made.cond_stage_model.clip_l.transformer, rows)
    return made


def states_of(encoder):
    """What the lab's SD model takes of its text encoder."""
    return lambda texts: [(states,) for states in clip.encode_all(encoder, texts)]


@pytest.fixture
def pictures(monkeypatch):
    """Instead of emoji: full squares, of which each concept has its own grey, darker the later it comes."""
    grey = torch.linspace(0.8, 0.2, len(NAMES)).view(-1, 1, 1, 1)
    rgba = torch.cat([grey.expand(-1, 3, 64, 64), torch.ones(len(NAMES), 1, 64, 64)], 1)
    vendors = torch.full((len(NAMES),), list(data.SETS).index("noto"))
    monkeypatch.setattr(data, "load", lambda _folder: (rgba, torch.arange(len(NAMES)), vendors))
    return {name: value.item() for name, value in zip(NAMES, grey.flatten(), strict=True)}


@pytest.fixture
def painted(pictures):
    return painter.Painter(Path(), seeded(0))


@pytest.mark.parametrize("places", PLACES)
def test_each_object_is_at_its_place(painted, pictures, places):
    names = NAMES[50 : 50 + len(places)]
    picture = painted.paint([list(zip(names, places, strict=True))] * 20).movedim(1, -1)
    for place, part in regions(picture, len(places)).items():
        middle = part[:, 14:18, 14:18].mean((1, 2, 3))
        if place in places:
            expected = pictures[names[places.index(place)]]
            torch.testing.assert_close(middle, torch.full_like(middle, expected), rtol=0, atol=2e-3)


def test_an_object_alone_is_whole_and_fills_most_of_the_picture(painted):
    ink = (painted.paint([[("cat", "middle")]] * 50) < 0.99).any(1)
    assert ink.float().mean((1, 2)).min() > 0.65
    columns = ink.any(1).sum(1)
    assert columns.min() >= 26 and columns.max() <= 32


def test_what_is_in_front_covers_what_is_behind(painted, pictures):
    for objects in ([("cat", "front"), ("wrench", "back")], [("wrench", "back"), ("cat", "front")]):
        picture = painted.paint([objects] * 30)[:, 0]
        top = (picture[:, :, 12:20] - pictures["cat"]).abs().amax(2) < 2e-3
        assert top.any(1).all()
        # Of its own height at least, nothing is lost to the other.
        assert top.sum(1).min() >= 15


def test_a_bank_encodes_as_the_host_does(encoder):
    captions = Captions("training", seeded(0))
    made = bank.Bank(states_of(encoder), captions, {"weighted": 0.5, "scene": 0.5}, size=12)
    for caption, states, _ in made.draw(12):
        ((expected, _),) = encoder.encode_from_tokens_scheduled(encoder.tokenize(caption.text))
        assert states.shape == expected[0].shape
        assert torch.nn.functional.cosine_similarity(states.float(), expected[0], dim=1).min() > 0.99


def test_a_bank_replaces_its_oldest_captions(encoder):
    made = bank.Bank(states_of(encoder), Captions("training", seeded(0)), {"plain": 1.0}, size=16)
    before = [one.caption for one in made.kept]
    made.draw(8)
    assert [one.caption for one in made.kept][:14] == before[2:]


def test_repeated_states_leave_attention_as_it_is():
    short, long = torch.randn(77, 256, generator=seeded(0)), torch.randn(154, 256, generator=seeded(1))
    context = bank.same_length([short, long])
    assert context.shape == (2, 154, 256)
    query = torch.randn(1, 4, 256, generator=seeded(2))
    attend = torch.nn.functional.scaled_dot_product_attention
    torch.testing.assert_close(attend(query, short[None], short[None]), attend(query, context[:1], context[:1]))


def test_the_name_is_found_among_the_tokens(encoder):
    text_, names = "a photo, very long, of a desert island beside a cat", ("desert island", "cat")
    found = warm_start.name_ends(encoder, Caption(text_, names, ("left", "right"), "two"))
    words = encoder.tokenizer.clip_l.tokenizer
    tokens = [token for token, _ in encoder.tokenize(text_)["l"][0]]
    decoded = {name: words.decode([tokens[place]]).strip() for name, place in found.items()}
    assert decoded == {"desert island": "island", "cat": "cat"}


def test_a_regression_finds_the_map():
    states, truth = torch.randn(500, 8, generator=seeded(0)), torch.randn(3, 8, generator=seeded(1))
    found = warm_start.regress(states, states @ truth.T, torch.ones(500))
    torch.testing.assert_close(found, truth, rtol=0, atol=0.02)


def test_a_base_for_clip_begins_with_all_that_the_other_has():
    old = storage.load(model.BASE)
    made = warm_start.carried_over(old, torch.randn(text.WIDTH, clip.WIDTH, generator=seeded(0)))
    network = model.build(context_width=clip.WIDTH).diffusion_model
    network.load_state_dict(made)
    same = [name for name in old if made[name] is old[name]]
    assert len(old) - len(same) == 14


@pytest.fixture
def pair(tmp_path, encoder):
    """The lab Flux's two text encoders, CLIP's with random weights."""
    path = tmp_path / "clip.safetensors"
    storage.save(encoder.cond_stage_model.clip_l.transformer.state_dict(), path, {})
    return flux_text.load_clip(path)


def test_many_prompts_in_a_pass_are_those_of_flux(pair):
    texts = ["a cat", "a (cat:1.3), film grain", "a long street with trees, " * 20, "dog BREAK cat", ""]
    for text_, (states, pooled) in zip(texts, flux_text.encode_all(pair, texts), strict=True):
        ((expected, values),) = pair.encode_from_tokens_scheduled(pair.tokenize(text_))
        tokens = expected.shape[1]
        torch.testing.assert_close(states[:tokens], expected[0], rtol=0, atol=2e-5)
        assert not states[tokens:].any()
        torch.testing.assert_close(pooled, values["pooled_output"][0], rtol=0, atol=2e-5)


def test_captions_of_a_flux_batch_are_of_like_length(monkeypatch, pictures, pair):
    monkeypatch.setattr(bank.Bank.__init__, "__defaults__", (96,))
    batches = FluxBatches(Path(), pair, seeded(0))
    lengths = set()
    for _ in range(4):
        z, context, pooled = batches.draw(8)
        assert z.shape == (8, 12, 16, 16) and context.shape[::2] == (8, text.WIDTH) and pooled.shape == (8, clip.WIDTH)
        lengths.add(context.shape[1])
    assert min(lengths) < 64 < max(lengths) <= flux_text.SEQUENCE


def test_a_flux_for_both_encoders_begins_with_what_the_other_knows(monkeypatch, pictures, pair):
    monkeypatch.setattr(bank.Bank.__init__, "__defaults__", (96,))
    family = families.FAMILIES["flux_pair"]
    base = family.build()
    batches = FluxBatches(Path(), pair, seeded(0))
    family.first(base, pair, batches)
    old = flux.load_model().model.diffusion_model.state_dict()
    changed = [name for name, value in base.diffusion_model.state_dict().items() if not value.equal(old[name])]
    assert changed == ["vector_in.in_layer.weight"]
    with family.trainable():
        loss = family.loss(base, batches.draw(4), seeded(0))
    assert 0 < loss.item() < 0.5


@ATTENTION_OF_ITS_OWN
def test_keys_and_values_learn_from_the_old_base(monkeypatch, pictures, encoder):
    monkeypatch.setattr(bank.Bank.__init__, "__defaults__", (48,))
    batches = CaptionBatches(Path(), encoder, seeded(0))
    old = model.load_model(model.BASE).model.diffusion_model
    base = model.build(context_width=clip.WIDTH)
    start = warm_start.carried_over(old.state_dict(), torch.zeros(text.WIDTH, clip.WIDTH))
    base.diffusion_model.load_state_dict(start)
    base.diffusion_model.requires_grad_(True)
    first, second = (
        warm_start.distil(base.diffusion_model, old, base.model_sampling.sigmas, batches, steps) for steps in (1, 12)
    )
    assert second < 0.95 * first
    changed = [name for name, value in base.diffusion_model.state_dict().items() if not value.equal(start[name])]
    assert len(changed) == 14 and all(name.endswith(("attn2.to_k.weight", "attn2.to_v.weight")) for name in changed)


@ATTENTION_OF_ITS_OWN
def test_a_training_goes_on_where_it_ended(monkeypatch, tmp_path, pictures, encoder):
    family = families.FAMILIES["clip"]._replace(weights=tmp_path / "base.safetensors", load_clip=lambda: encoder)
    monkeypatch.setitem(families.FAMILIES, "clip", family)
    monkeypatch.setattr(bank.Bank.__init__, "__defaults__", (8,))
    monkeypatch.setattr(warm_start, "STEPS", 1)
    train_base.train("clip", tmp_path, minutes=1e-5, batch=4, seed=0)
    first = train_base.Run("clip", tmp_path, seed=0)
    train_base.train("clip", tmp_path, minutes=1e-5, batch=4, seed=0)
    second = train_base.Run("clip", tmp_path, seed=0)
    assert (first.steps, second.steps) == (1, 2)
    assert first.generator.initial_seed() != second.generator.initial_seed()
    assert storage.steps(family.weights) == 2
    # On another machine the weights are all there is.
    second.path.unlink()
    third = train_base.Run("clip", tmp_path, seed=0)
    assert third.steps == 2
    for name, tensor in third.network.state_dict().items():
        torch.testing.assert_close(tensor, second.mean.state_dict()[name], rtol=0.01, atol=0.01)


@ATTENTION_OF_ITS_OWN
def test_an_sd_model_without_weights_begins_by_predicting_nothing():
    base = families.FAMILIES["sd15"].build()
    families.FAMILIES["sd15"].first(base, None, None)
    generator = seeded(0)
    latents, context = torch.randn(16, 12, 16, 16, generator=generator), torch.randn(16, 8, 384, generator=generator)
    # The last layer is zero, so the error is the noise itself, weighted by about one.
    assert 0.5 < epsilon.loss_of(base, (latents, context), generator).item() < 2


def test_articles_before_names():
    assert fill("a {} and a {}", "grapes", "unicorn") == "grapes and a unicorn"
    assert fill("a photo of a {}", "umbrella") == "a photo of an umbrella"
    assert fill("one {} on a white background", "cat") == "one cat on a white background"


def test_what_is_measured_is_apart_from_training():
    found = groups(4)
    assert {name: len(captions) for name, captions in found.items()} == {
        **dict.fromkeys(("ten classes", "classes among tags and styles"), 40),
        **dict.fromkeys(("scenes of 20 to 50 words", "scenes of 51 to 150 words"), 40),
        "all other concepts": len(NAMES) - len(CLASSES),
        **dict.fromkeys(("two objects", "three objects"), 40),
    }
    for group, captions in found.items():
        for caption in captions:
            if len(caption.names) > 1:
                assert is_for_scoring(" + ".join(sorted(caption.names[:2])))
                assert not CLASSES.keys().isdisjoint(caption.names)
            if group.startswith("scenes"):
                least, most = (int(word) for word in group.split() if word.isdigit())
                assert least <= len(caption.text.split()) <= most


class Grey:
    """Stands for a judge: the nearest grey in the middle of a picture is the concept."""

    def __init__(self, greys):
        self.greys = torch.tensor(list(greys.values()))

    def probabilities(self, images):
        near = -(images[:, 14:18, 14:18].mean((1, 2, 3))[:, None] - self.greys).abs()
        return torch.nn.functional.pad(near * 1e4, (0, 1), value=-1e9).softmax(1)


def test_objects_are_looked_for_at_their_places(painted, pictures):
    judge = Grey(pictures)
    assert LABELS[:-1] == NAMES
    caption = Caption("", ("cat", "wrench"), ("left", "right"), "two")
    right = painted.paint([caption.objects]).movedim(1, -1)
    swapped = painted.paint([[("wrench", "left"), ("cat", "right")]]).movedim(1, -1)
    other = painted.paint([[("cat", "left"), ("tree", "right")]]).movedim(1, -1)
    found = seen(judge, Drawn([caption] * 3, torch.cat([right, swapped, other])))
    assert found == {"both": pytest.approx(2 / 3), "both at their places": pytest.approx(1 / 3)}


def test_without_weights_it_says_how_to_get_them(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"isn't trained yet, .*: python3 dev\.py lab base"):
        model.load_model(tmp_path / "base.safetensors")


def test_the_stored_base_takes_clips_states_of_several_chunks():
    if not model.BASE_CLIP.exists():
        pytest.skip("the lab's base for CLIP is not in this checkout")
    assert model.BASE_CLIP.stat().st_size <= 18e6
    network = model.load_model(model.BASE_CLIP).model.diffusion_model
    assert all(weight.isfinite().all() for weight in network.parameters())
    noise, context = torch.randn(1, 12, 16, 16, generator=seeded(0)), torch.randn(1, 154, 256, generator=seeded(1))
    out = network(noise, torch.tensor([500.0]), context=context, transformer_options={})
    assert out.shape == noise.shape
