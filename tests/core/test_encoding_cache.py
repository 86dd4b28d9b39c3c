"""Encoded prompts on disk: what is kept comes back, damaged files don't, and the oldest make room."""

import os
from types import SimpleNamespace

import pytest
import torch
from core_parts import CONTEXT, POOLED, TinyClip, normal, prompt, same_tensors
from torch.nn import Linear, Sequential

from unhype.training import encoding_cache
from unhype.training.encoder_fingerprint import fingerprint, prompt_key
from unhype.training.encoding_cache import EncodingCache, packed, unpacked

C, FEATURES = normal(POOLED), normal(2, 2 * CONTEXT)
BRIEF, WHOLE = ("c", "features"), ("c", "features", "states")


def whole(seed=0):
    """A prompt's tensors with its conditioning, as they are kept."""
    return packed(C, FEATURES, [[prompt(seed)[0][0], {"pooled_output": normal(1, POOLED), "none": None}]])


def files(folder):
    return sorted(folder.glob("*"))


def test_a_prompt_comes_back_as_it_was(tmp_path):
    conditioning = [[normal(1, 3, 4).bfloat16(), {"pooled_output": None, "attention_mask": torch.ones(1, 3).long()}]]
    cache = EncodingCache(tmp_path, "ab")
    cache.add("12", packed(C, FEATURES, conditioning))
    cache.add("13", packed(C + 1, FEATURES, None))
    cache.flush()
    found = EncodingCache(tmp_path, "ab").read({"12": WHOLE, "13": BRIEF, "14": BRIEF})
    assert set(found) == {"12", "13"}
    c, features, ((states, entry),) = unpacked(found["12"])
    assert torch.equal(c, C) and torch.equal(features, FEATURES)
    assert states.dtype == torch.bfloat16 and torch.equal(states, conditioning[0][0])
    assert entry.keys() == {"pooled_output", "attention_mask"}
    assert entry["pooled_output"] is None
    assert torch.equal(entry["attention_mask"], torch.ones(1, 3).long())
    c, _, nothing = unpacked(found["13"])
    assert torch.equal(c, C + 1)
    assert nothing == []


def test_token_states_are_read_for_those_that_need_them_and_known_only_with_them(tmp_path):
    cache = EncodingCache(tmp_path, "ab")
    cache.add("12", whole())
    cache.add("13", packed(C, FEATURES, None))
    cache.flush()
    assert set(cache.read({"12": BRIEF})["12"]) == {"c", "features"}
    assert cache.read({"13": WHOLE}) == {}
    cache.add("13", whole())
    cache.flush()
    assert same_tensors(dict(sorted(cache.read({"13": WHOLE})["13"].items())), dict(sorted(whole().items())))


def test_a_conditioning_that_holds_something_else_is_not_kept():
    assert packed(C, FEATURES, [[normal(1, 3, 4), {"hooks": object()}]]) is None


def test_every_encoder_has_its_own_prompts(tmp_path):
    cache = EncodingCache(tmp_path, "ab")
    cache.add("12", whole())
    cache.flush()
    assert EncodingCache(tmp_path, "cd").read({"12": BRIEF}) == {}


def test_an_interrupted_run_loses_little(tmp_path, monkeypatch):
    monkeypatch.setattr(encoding_cache, "_FILE_PROMPTS", 4)
    cache = EncodingCache(tmp_path, "ab")
    for n in range(10):
        cache.add(f"{n}", packed(C, FEATURES, None))
    assert len(EncodingCache(tmp_path, "ab").read({f"{n}": BRIEF for n in range(10)})) == 8


def test_large_prompts_are_not_collected_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(encoding_cache, "_FILE_BYTES", 1)
    cache = EncodingCache(tmp_path, "ab")
    cache.add("12", whole())
    assert len(files(tmp_path)) == 1


@pytest.mark.parametrize("damage", ["cut", "noise", "empty", "not numbers", "names"])
def test_a_damaged_file_is_removed(tmp_path, damage):
    cache = EncodingCache(tmp_path, "ab")
    cache.add("12", {**whole(), **({"c": C / 0} if damage == "not numbers" else {})})
    if damage == "names":
        cache.add("../12", whole())
    cache.flush()
    (path,) = files(tmp_path)
    content = path.read_bytes()
    path.write_bytes({"cut": content[:-9], "noise": bytes(range(256)) * 9, "empty": b""}.get(damage, content))
    assert cache.read({"12": WHOLE}) == {}
    assert files(tmp_path) == []
    cache.add("12", whole())
    cache.flush()
    assert set(cache.read({"12": WHOLE})) == {"12"}


def test_what_was_used_longest_ago_makes_room(tmp_path, monkeypatch):
    caches = [EncodingCache(tmp_path, name) for name in ("aa", "bb", "cc")]
    for number, cache in enumerate(caches):
        cache.add("12", whole())
        cache.flush()
        for path in tmp_path.glob(f"{cache.encoder}*"):
            os.utime(path, (1000 + number, 1000 + number))
    size = files(tmp_path)[0].stat().st_size
    assert set(caches[0].read({"12": BRIEF})) == {"12"}, "used now"
    monkeypatch.setattr(encoding_cache, "_LIMIT", 3 * size)
    caches[2].add("13", whole())
    caches[2].flush()
    assert [len(cache.read({"12": BRIEF})) for cache in caches] == [1, 0, 1]


def test_a_folder_that_can_not_be_written_costs_the_prompts_only(tmp_path, caplog):
    (tmp_path / "file").touch()
    cache = EncodingCache(tmp_path / "file" / "folder", "ab")
    cache.add("12", whole())
    cache.flush()
    assert "encoded prompts aren't kept" in caplog.text
    assert cache.read({"12": BRIEF}) == {}


# Fingerprints


def clip_of(model, **patcher):
    patcher = SimpleNamespace(forced_hooks=None, patches={}, injections={}, **patcher)
    return SimpleNamespace(cond_stage_model=model, patcher=patcher, use_clip_schedule=False, layer_idx=None)


def network():
    torch.manual_seed(0)
    return Sequential(Linear(3, 5), Linear(1, 1)).half()


def test_the_fingerprint_changes_with_every_number_and_its_place():
    before = fingerprint(clip_of(network()), [1])
    assert before == fingerprint(clip_of(network()), [1])
    found = {before}
    for name, weight in network().named_parameters():
        for place in range(weight.numel()):
            changed = network()
            changed.get_parameter(name).data.view(-1)[place] += 1
            found.add(fingerprint(clip_of(changed), [1]))
    assert len(found) == 1 + sum(weight.numel() for weight in network().parameters())


def test_weights_that_are_parts_of_a_tensor_have_a_fingerprint():
    whole = torch.arange(40).half()
    one, other = network(), network()
    one[0].bias.data = whole[3:8]
    other[0].bias.data = whole[3:8].clone()
    assert fingerprint(clip_of(one), []) == fingerprint(clip_of(other), [])


def test_layer_probes_and_loras_are_part_of_it():
    clip = clip_of(network())
    found = [fingerprint(clip, [1]), fingerprint(clip, [2]), fingerprint(clip, [C]), fingerprint(clip, [C + 1e-7])]
    clip.layer_idx = -2
    found.append(fingerprint(clip, [1]))
    clip.patcher.patches = {"0.weight": [(1.0, torch.ones(2), 1.0)]}
    found.append(fingerprint(clip, [1]))
    assert len(set(found)) == len(found)


def test_what_is_encoded_otherwise_than_by_weights_has_none():
    clip = clip_of(network())
    clip.use_clip_schedule = True
    assert fingerprint(clip, []) is None
    clip.use_clip_schedule, clip.patcher.forced_hooks = False, object()
    assert fingerprint(clip, []) is None
    assert fingerprint(TinyClip(), []) is None


def test_prompts_are_told_apart_by_tokens_weights_and_vectors():
    one, other = torch.ones(4), torch.full((4,), 2.0)
    tokens = [
        {"l": [[(1, 1.0), (2, 1.0)]]},
        {"l": [[(1, 1.0), (2, 1.1)]]},
        {"l": [[(1, 1.0)], [(2, 1.0)]]},
        {"g": [[(1, 1.0), (2, 1.0)]]},
        {"l": [[(one, 1.0), (2, 1.0)]]},
        {"l": [[(other, 1.0), (2, 1.0)]]},
    ]
    assert len({prompt_key(value) for value in tokens}) == len(tokens)
    assert prompt_key(tokens[4]) == prompt_key({"l": [[(one.clone(), 1.0), (2, 1.0)]]})
    assert prompt_key({"l": [[(object(), 1.0)]]}) is None
