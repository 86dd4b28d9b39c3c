"""Every way a prompt reaches the sampler: each chunk is judged by itself, and its tokens alone get its delta."""

import logging
from dataclasses import replace
from typing import NamedTuple

import comfy.model_management
import comfy.samplers
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import CONTEXT, POOLED, TOKENS, noted_calls, overridden, replay, sample, seeded, tiny_eraser, tiny_model
from torch.nn.functional import linear

import nodes
from unhype.evaluation.bars import bar_picture
from unhype.evaluation.detection import detect
from unhype.hypernet.deltas import PromptDeltas
from unhype.hypernet.embedding import Chunk, chunks_of_prompt
from unhype.hypernet.factors import Factors, delta_norm
from unhype.hypernet.files import load, save
from unhype.hypernet.patch import apply_erasure
from unhype.hypernet.record import HypernetFileError
from unhype.hypernet.regressor import PooledRegressor, chunk_features
from unhype.hypernet.rows import SpanMasks, patched_layers
from unhype.hypernet.targets import TargetLayer
from unhype.nodes.inspect import InspectPrompt
from unhype.training.regressor_fit import full_rank_maps

pytestmark = pytest.mark.usefixtures("as_a_node_runs")


def reader(widths=(CONTEXT,), seed=11):
    """A reader that tells any c from tokens: the tokens of `said` decide what they mean."""
    generator = seeded(seed)
    features = 2 * sum(widths)
    # As a file holds them.
    weight = (torch.randn(1, POOLED, features, generator=generator) / CONTEXT**0.5).half().float()
    bias = (torch.randn(1, len(widths), POOLED, generator=generator) * 0.1).half().float()
    return PooledRegressor(tuple(widths), *full_rank_maps(weight, len(widths)), bias, torch.zeros(1, features + 1))


READER = reader()


def said(seed, tokens=TOKENS, pooled=True):
    """The CONDITIONING of a prompt whose pooled vector is what the reader reads."""
    cross = torch.randn(1, tokens, CONTEXT, generator=seeded(seed))
    return [[cross, {"pooled_output": READER.views(cross[0])[0].unsqueeze(0)} if pooled else {}]]


def meaning(tokens):
    """What the reader tells from tokens (n, in), (POOLED,)."""
    return READER.views(tokens)[0]


def size(eraser, c):
    return delta_norm(eraser.hypernet(c.unsqueeze(0), 300)).item()


def factors(eraser, c):
    return eraser.hypernet(c.unsqueeze(0), 300)


@pytest.fixture(scope="module")
def tiny():
    return tiny_model()


@pytest.fixture
def model(tiny):
    comfy.model_management.unload_all_models()
    yield tiny
    assert overridden(tiny) == []


class Cast(NamedTuple):
    """An eraser and prompts that it answers, LOUD, or that lie in its dead zone, QUIET."""

    eraser: object
    loud: list
    louder: list
    quiet: list
    quieter: list


def cast_for(model):
    base = tiny_eraser(model)
    with torch.inference_mode():
        ranked = sorted(range(20, 40), key=lambda seed: size(base, meaning(said(seed)[0][0][0])))
        sizes = [size(base, meaning(said(seed)[0][0][0])) for seed in ranked]
        concept_embeddings = (
            torch.stack([meaning(said(seed)[0][0][0]) for seed in (ranked[-2], ranked[-1])]).half().float()
        )
    # A wide gap between what is quiet and what is loud is not needed: nothing here is learnt.
    dead_zone = (sizes[9] + sizes[10]) / 2
    record = replace(
        base.record,
        dead_zone=dead_zone,
        concepts=(("cat", "tree"), ("dog", "car")),
        reading={"tokens": TOKENS, "widths": [CONTEXT], "layers": 1, "rank": POOLED},
    )
    eraser = replace(base, record=record, reader=READER, concept_embeddings=concept_embeddings)
    return Cast(eraser, said(ranked[-2]), said(ranked[-1]), said(ranked[1]), said(ranked[0]))


@pytest.fixture(scope="module")
def cast(tiny):
    return cast_for(tiny)


NEGATIVE = said(3)


def concat(*conditionings):
    together, *others = conditionings
    for other in others:
        (together,) = nodes.ConditioningConcat().concat(together, other)
    return together


def tokens_of(conditioning):
    return conditioning[0][0][0]


def on_tokens(model, eraser, call, deltas):
    """What the base model gives if, in the rows of each prompt, given tokens get the delta of given c.

    deltas: (conditioning, [(start, stop, c)]) pairs. The deltas are added by hooks, one token at a time.
    """
    base = model.model.diffusion_model
    handles = []
    for number, layer in enumerate(eraser.hypernet.config.layers):

        def add(_, inputs, y, number=number):
            (x,) = inputs
            y = y.clone()
            for conditioning, spans in deltas:
                length = tokens_of(conditioning).shape[0]
                for start, stop, c in spans:
                    own = factors(eraser, c)[number]
                    delta = linear(linear(x, own.A[0]), own.B[0])
                    for token in range(x.shape[1]):
                        if start <= token % length < stop:
                            rows = call.reads(conditioning)
                            y[rows, token] = y[rows, token] + delta[rows, token]
            return y

        handles.append(base.get_submodule(layer.name).register_forward_hook(add))
    try:
        return replay(model, call)
    finally:
        for handle in handles:
            handle.remove()


def check(model, eraser, calls, *deltas):
    """Every call gives each prompt the deltas of its chunks, and everybody else the base model, bit for bit."""
    assert calls
    effect = 0.0
    for call in calls:
        base, expected = replay(model, call), on_tokens(model, eraser, call, deltas)
        steered = torch.zeros(len(base), dtype=torch.bool)
        for conditioning, _ in deltas:
            steered |= call.reads(conditioning)
        change = (expected - base).abs().max().item()
        effect = max(effect, change)
        assert torch.allclose(call.output[steered], expected[steered], rtol=0, atol=1e-4 * change + 1e-5)
        assert torch.equal(call.output[~steered], base[~steered])
    assert effect > 1e-3 or not deltas


def run(model, eraser, positive, negative=NEGATIVE, unknown="base", **options):
    with noted_calls(apply_erasure(model, eraser, unknown=unknown)) as (clone, calls):
        sample(clone, positive, negative, steps=2, **options)
    return calls


def whole(conditioning):
    """The delta of a one-chunk prompt on all of its tokens."""
    return conditioning, [(0, tokens_of(conditioning).shape[0], meaning(tokens_of(conditioning)))]


def is_base(model, eraser, positive, **options):
    found = sample(apply_erasure(model, eraser, **options), positive, NEGATIVE)
    return torch.equal(found, sample(model, positive, NEGATIVE))


# Plain prompts


def test_a_plain_prompt_gets_what_it_got_from_its_pooled_vector_alone(model, cast):
    published = replace(cast.eraser, reader=None, record=replace(cast.eraser.record, reading={}))
    for prompt in (cast.loud, cast.quiet):
        ours, theirs = run(model, cast.eraser, prompt), run(model, published, prompt)
        assert all(torch.equal(a.output, b.output) for a, b in zip(ours, theirs, strict=True))
    check(model, cast.eraser, run(model, cast.eraser, cast.loud), whole(cast.loud))


def test_a_plain_prompt_needs_no_mask(model, cast, monkeypatch):
    def refuse(*_):
        raise AssertionError("no tokens have to be told apart")

    monkeypatch.setattr(SpanMasks, "__init__", refuse)
    run(model, cast.eraser, cast.loud)
    with pytest.raises(AssertionError):
        run(model, cast.eraser, concat(cast.quiet, cast.loud))


def test_a_plain_prompt_in_the_dead_zone_is_the_base(model, cast):
    assert is_base(model, cast.eraser, cast.quiet)


# Chunks


@pytest.mark.parametrize("order", ["quiet loud", "loud quiet", "quiet quieter loud", "quiet loud quieter"])
def test_one_firing_chunk_is_enough_and_gets_the_delta_alone(model, cast, order):
    chunks = [getattr(cast, name) for name in order.split()]
    positive = concat(*chunks)
    start = order.split().index("loud") * TOKENS
    spans = [(start, start + TOKENS, meaning(tokens_of(cast.loud)))]
    check(model, cast.eraser, run(model, cast.eraser, positive), (positive, spans))


def test_two_firing_chunks_each_get_their_own(model, cast):
    positive = concat(cast.loud, cast.quiet, cast.louder)
    spans = [
        (0, TOKENS, meaning(tokens_of(cast.loud))),
        (2 * TOKENS, 3 * TOKENS, meaning(tokens_of(cast.louder))),
    ]
    check(model, cast.eraser, run(model, cast.eraser, positive), (positive, spans))


def test_chunks_in_the_dead_zone_are_the_base(model, cast):
    assert is_base(model, cast.eraser, concat(cast.quiet, cast.quieter, cast.quiet))


def test_prompts_of_several_lengths_in_one_batch_keep_their_chunks(model, cast):
    """The host repeats tokens until all prompts of a batch are of one length: here 16, 8 and 24 make 48."""
    two, three = concat(cast.quiet, cast.loud), concat(cast.louder, cast.quiet, cast.quieter)
    calls = run(model, cast.eraser, two + cast.loud + three)
    assert {call.context.shape[1] for call in calls} == {6 * TOKENS}
    check(
        model,
        cast.eraser,
        calls,
        (two, [(TOKENS, 2 * TOKENS, meaning(tokens_of(cast.loud)))]),
        whole(cast.loud),
        (three, [(0, TOKENS, meaning(tokens_of(cast.louder)))]),
    )


def test_tokens_appended_by_other_models_are_judged_as_a_short_chunk(model, cast):
    for seed in range(60, 90):
        extra = torch.randn(1, 3, CONTEXT, generator=seeded(seed))
        positive = [[torch.cat([part, extra], 1), values] for part, values in cast.quiet]
        fires = size(cast.eraser, meaning(extra[0])) >= cast.eraser.record.dead_zone
        if fires:
            check(
                model,
                cast.eraser,
                run(model, cast.eraser, positive),
                (positive, [(TOKENS, TOKENS + 3, meaning(extra[0]))]),
            )
            break
        assert is_base(model, cast.eraser, positive)
    else:
        pytest.fail("none of the token sets fires")


def test_chunks_survive_tiling_and_batches(model, cast):
    positive = concat(cast.quiet, cast.loud)

    def in_two_tiles(apply, arguments):
        x, t, c = arguments["input"], arguments["timestep"], dict(arguments["c"])
        repeated = {name: torch.cat([value, value]) if torch.is_tensor(value) else value for name, value in c.items()}
        top, bottom = x.chunk(2, dim=2)
        return torch.cat(apply(torch.cat([top, bottom]), torch.cat([t, t]), **repeated).chunk(2), dim=2)

    with noted_calls(apply_erasure(model, cast.eraser)) as (clone, calls):
        clone.set_model_unet_function_wrapper(in_two_tiles)
        sample(clone, positive, NEGATIVE, pictures=3)
    check(model, cast.eraser, calls, (positive, [(TOKENS, 2 * TOKENS, meaning(tokens_of(cast.loud)))]))


def test_rows_that_a_layer_sees_repeated_keep_their_tokens():
    network = torch.nn.Module()
    network.layer = torch.nn.Identity()
    delta = [Factors(torch.ones(1, 1, 2), torch.ones(1, 2, 1))]
    spans = SpanMasks([(2, 4, 4)], torch.device("cpu"))
    read = torch.stack([torch.ones(8, 2), torch.full((8, 2), 2.0)])
    with patched_layers(network, [TargetLayer("layer", 2, 2)], torch.tensor([1]), delta, 2, spans, read):
        y = network.layer(read.repeat_interleave(2, 0))
    assert y[..., 0].tolist() == [[1.0] * 8] * 2 + [[2.0, 2.0, 6.0, 6.0] * 2] * 2


# What nodes do to conditionings


def test_combined_regional_and_timed_prompts_keep_their_chunks(model, cast):
    long = concat(cast.quiet, cast.loud)
    spans = [(TOKENS, 2 * TOKENS, meaning(tokens_of(cast.loud)))]
    (area,) = nodes.ConditioningSetArea().append(long, 32, 64, 0, 0, 1.0)
    (masked,) = nodes.ConditioningSetMask().append(long, torch.ones(1, 64, 64), "default", 1.0)
    (late,) = nodes.ConditioningSetTimestepRange().set_range(long, 0.4, 1.0)
    for positive in (nodes.ConditioningCombine().combine(cast.quiet, long)[0], cast.quiet + area, masked):
        check(model, cast.eraser, run(model, cast.eraser, positive), (long, spans))
    check(model, cast.eraser, run(model, cast.eraser, cast.quiet + late), (long, spans))


def test_an_average_is_read_as_what_it_became(model, cast):
    (mixed,) = nodes.ConditioningAverage().addWeighted(cast.louder, cast.quiet, 0.9)
    views = mixed[0][1]["pooled_output"][0], meaning(tokens_of(mixed))
    sizes = [size(cast.eraser, c) for c in views]
    assert sizes[0] >= cast.eraser.record.dead_zone
    heard = views[sizes[1] > 1.5 * sizes[0]]
    check(model, cast.eraser, run(model, cast.eraser, mixed), (mixed, [(0, TOKENS, heard)]))


def test_of_two_views_a_much_louder_one_is_heard(model, cast):
    """As for an average whose pooled vector became weak though its tokens still name what is erased."""
    weak = min(torch.randn(200, POOLED, generator=seeded(6)) * 0.3, key=lambda c: size(cast.eraser, c))
    quiet_enough = replace(cast.eraser, record=replace(cast.eraser.record, dead_zone=size(cast.eraser, weak) * 0.5))
    positive = [[cast.louder[0][0], {"pooled_output": weak.unsqueeze(0)}]]
    loud, soft = (size(cast.eraser, c) for c in (meaning(tokens_of(positive)), weak))
    assert loud > 1.5 * soft
    check(model, quiet_enough, run(model, quiet_enough, positive), whole(positive))


@pytest.mark.parametrize("pooled", ["another's", "zeroed", "none", "missing", "another width", "scaled down"])
def test_tokens_are_read_whatever_the_pooled_vector_says(model, cast, pooled):
    tokens, values = cast.loud[0]
    changed = {
        "another's": cast.quiet[0][1],
        "zeroed": {"pooled_output": torch.zeros(1, POOLED)},
        "none": {"pooled_output": None},
        "missing": {},
        "another width": {"pooled_output": torch.ones(1, POOLED + 8)},
        "scaled down": {"pooled_output": values["pooled_output"] * 0.01},
    }[pooled]
    if "pooled_output" in changed and changed["pooled_output"] is not None and pooled == "scaled down":
        assert size(cast.eraser, changed["pooled_output"][0]) < cast.eraser.record.dead_zone
    positive = [[tokens, changed]]
    check(model, cast.eraser, run(model, cast.eraser, positive), whole(positive))


def test_tokens_are_read_by_the_map_of_their_layer():
    one, other = reader(seed=1), reader(seed=2)
    both = PooledRegressor(
        (CONTEXT,),
        torch.cat([one.up, other.up]),
        torch.cat([one.down, other.down]),
        torch.cat([one.bias, other.bias]),
        torch.stack([torch.ones(2 * CONTEXT + 1), -torch.ones(2 * CONTEXT + 1)]),
    )
    tokens = torch.rand(TOKENS, CONTEXT, generator=seeded(1)) + 0.5
    for own, states in ((one, tokens), (other, -tokens)):
        torch.testing.assert_close(both.views(states), own.views(states))


def test_scaling_tokens_does_not_hide_them(cast):
    tokens = tokens_of(cast.loud)
    torch.testing.assert_close(chunk_features(tokens * 0.3, (CONTEXT,)), chunk_features(tokens, (CONTEXT,)))


def test_a_conditioning_kept_in_a_file_is_read(model, cast, tmp_path):
    save_file({"tokens": cast.loud[0][0].half().contiguous()}, str(tmp_path / "kept.safetensors"))
    positive = [[load_file(str(tmp_path / "kept.safetensors"))["tokens"].float(), {}]]
    check(model, cast.eraser, run(model, cast.eraser, positive), whole(positive))


def test_a_batch_of_prompts_is_judged_row_by_row(model, cast):
    """Schedules for animation give each frame its own row."""
    rows = cast.quiet, cast.loud, cast.louder
    positive = [
        [
            torch.cat([row[0][0] for row in rows]),
            {"pooled_output": torch.cat([row[0][1]["pooled_output"] for row in rows])},
        ]
    ]
    calls = run(model, cast.eraser, positive, pictures=3)
    check(model, cast.eraser, calls, whole(cast.loud), whole(cast.louder))
    assert all(call.reads(row).sum() == 1 for call in calls for row in rows)


def test_either_of_two_encoders_side_by_side_is_enough():
    """SDXL's tokens hold CLIP-L's states beside CLIP-G's, and the pooled vector is G's."""
    model, widths = tiny_model("sdxl"), (12, CONTEXT - 12)
    both = reader(widths)
    base = tiny_eraser(model)
    texts = [torch.randn(TOKENS, CONTEXT, generator=seeded(seed)) for seed in range(100, 130)]
    sizes = {n: [size(base, view) for view in both.views(tokens)] for n, tokens in enumerate(texts)}
    loud = max(sizes, key=lambda n: sizes[n][0])
    quiet = min((n for n in sizes if n != loud), key=lambda n: max(sizes[n]))
    edge = (sizes[loud][0] + max(sizes[quiet])) / 2
    record = replace(
        base.record, dead_zone=edge, reading={"tokens": TOKENS, "widths": list(widths), "layers": 1, "rank": POOLED}
    )
    eraser = replace(base, record=record, reader=both)
    mixed = torch.cat([texts[loud][:, :12], texts[quiet][:, 12:]], 1)
    pooled = {"pooled_output": both.views(texts[quiet])[1].unsqueeze(0)}
    assert is_base(model, eraser, [[texts[quiet].unsqueeze(0), pooled]])
    assert not is_base(model, eraser, [[mixed.unsqueeze(0), pooled]])


def test_nothing_is_said_by_a_conditioning_that_was_zeroed(model, cast, caplog):
    (nothing,) = nodes.ConditioningZeroOut().zero_out(cast.loud)
    with caplog.at_level(logging.INFO):
        assert is_base(model, cast.eraser, nothing, unknown="strict")
    assert "carries no embedding" not in caplog.text


def test_a_chunk_added_to_a_prompt_that_a_node_encodes_while_sampling_is_seen(model, cast):
    long = concat(cast.quiet, cast.loud)

    def more_guidance(args):
        entry = {"cross_attn": long[0][0], "model_conds": {}, "uuid": 0, **long[0][1]}
        x = args["input"]
        hand = comfy.samplers.encode_model_conds(args["model"].extra_conds, [entry], x, x.device, "positive")
        (other,) = comfy.samplers.calc_cond_batch(args["model"], [hand], x, args["timestep"], args["model_options"])
        return args["cond"] + other

    with noted_calls(apply_erasure(model, cast.eraser)) as (clone, calls):
        clone.set_model_sampler_cfg_function(more_guidance)
        sample(clone, cast.quiet, NEGATIVE)
    assert sum(int(call.reads(long).sum()) for call in calls) == 6
    check(model, cast.eraser, calls, (long, [(TOKENS, 2 * TOKENS, meaning(tokens_of(cast.loud)))]))


def test_where_layers_see_prompt_and_picture_together_the_loudest_chunk_is_for_all(cast):
    def parts(conditioning):
        entry = {"cross_attn": conditioning[0][0], **conditioning[0][1]}
        ((written,),), _ = PromptDeltas(cast.eraser, joint=True).parts([entry])
        return [(part.start, part.stop, part.length, part.key) for part in written]

    key = meaning(tokens_of(cast.louder)).numpy().tobytes()
    assert parts(concat(cast.quiet, cast.louder, cast.quieter)) == [(0, 3 * TOKENS, 3 * TOKENS, key)]
    assert parts(concat(cast.quiet, cast.quieter)) == []
    # As from two texts of which one gives the pooled vector: the tokens name what is erased.
    assert parts([[cast.louder[0][0], cast.quiet[0][1]]]) == [(0, TOKENS, TOKENS, key)]


# What can't be judged


@pytest.fixture
def deaf(cast):
    """The eraser without a reader, as where tokens don't tell what is said."""
    reading = {"tokens": TOKENS, "widths": [], "layers": 0, "rank": 0}
    return replace(cast.eraser, reader=None, record=replace(cast.eraser.record, reading=reading))


FOREIGN = [[said(50)[0][0], {"pooled_output": torch.ones(1, POOLED + 8)}]]


@pytest.mark.parametrize("positive", [FOREIGN, [[FOREIGN[0][0], {}]]], ids=["another encoder's", "without"])
def test_base_leaves_alone_what_cannot_be_judged_and_says_so_once(model, deaf, caplog, positive):
    with caplog.at_level(logging.INFO):
        assert is_base(model, deaf, positive + positive)
    assert caplog.text.count("carries no embedding that hypernet 'tiny' can read; it runs the model unchanged") == 1


def test_strict_erases_what_cannot_be_judged_as_the_strongest_concept(model, cast, deaf, caplog):
    with caplog.at_level(logging.INFO):
        calls = run(model, deaf, FOREIGN, unknown="strict")
    strongest = max(cast.eraser.concept_embeddings, key=lambda c: size(cast.eraser, c))
    check(model, deaf, calls, (FOREIGN, [(0, TOKENS, strongest)]))
    assert caplog.text.count("it is treated as erased (unknown_prompts: strict)") == 1


def test_strict_changes_nothing_for_what_can_be_judged(model, cast):
    assert is_base(model, cast.eraser, cast.quiet, unknown="strict")
    assert is_base(model, cast.eraser, concat(cast.quiet, cast.quieter), unknown="strict")


def test_without_a_reader_later_chunks_follow_the_first_or_are_erased(model, cast, deaf):
    positive = concat(cast.louder, cast.quiet)
    own, strongest = (
        meaning(tokens_of(cast.louder)),
        max(cast.eraser.concept_embeddings, key=lambda c: size(cast.eraser, c)),
    )
    check(model, deaf, run(model, deaf, positive), (positive, [(0, 2 * TOKENS, own)]))
    positive = concat(cast.quiet, cast.loud)
    assert is_base(model, deaf, positive)
    check(model, deaf, run(model, deaf, positive, unknown="strict"), (positive, [(TOKENS, 2 * TOKENS, strongest)]))


def test_strict_needs_a_file_that_knows_its_concepts(model, cast):
    old = replace(cast.eraser, reader=None, concept_embeddings=None)
    with pytest.raises(HypernetFileError, match=r"was imported.*Choose 'base', or train one"):
        apply_erasure(model, old, unknown="strict")


def test_an_older_file_judges_the_whole_prompt_by_its_pooled_vector(model, cast):
    old = replace(cast.eraser, reader=None, concept_embeddings=None, record=replace(cast.eraser.record, reading={}))
    positive = concat(cast.loud, cast.quiet)
    check(model, old, run(model, old, positive), (positive, [(0, 2 * TOKENS, meaning(tokens_of(cast.loud)))]))
    assert is_base(model, old, concat(cast.quiet, cast.loud))


def test_a_model_that_reads_no_tokens_is_judged_by_its_pooled_vector():
    c = torch.ones(POOLED)
    assert chunks_of_prompt(None, c, POOLED) == [Chunk(0, 1, (c,), False)]
    assert chunks_of_prompt(None, None, POOLED) == [Chunk(0, 1, (), True)]


# The file


def test_reader_and_concepts_survive_the_file(cast, tmp_path):
    save(cast.eraser, tmp_path / "mine.safetensors")
    loaded = load(tmp_path / "mine.safetensors")
    assert loaded.record == cast.eraser.record
    assert loaded.reader.widths == READER.widths
    for part in ("up", "down", "bias", "key"):
        assert torch.equal(getattr(loaded.reader, part), getattr(READER, part))
    assert torch.equal(loaded.concept_embeddings, cast.eraser.concept_embeddings)


@pytest.mark.parametrize(
    "reading",
    [
        {"tokens": 8},
        {"tokens": 0, "widths": [], "layers": 0, "rank": 1},
        {"tokens": 8, "widths": [-1], "layers": 1, "rank": 1},
        {"tokens": 8, "widths": "32", "layers": 1, "rank": 1},
        {"tokens": 8, "widths": [32], "layers": 0, "rank": 1},
        {"tokens": 8, "widths": [32], "layers": 1e9, "rank": 1},
        {"tokens": 8, "widths": [32], "layers": 1, "rank": 0},
        [1],
    ],
    ids=str,
)
def test_a_reading_that_makes_no_sense_is_refused(cast, tmp_path, reading):
    eraser = replace(cast.eraser, record=replace(cast.eraser.record, reading=reading))
    save(eraser, tmp_path / "odd.safetensors")
    with pytest.raises(HypernetFileError, match=r"The description inside 'odd\.safetensors' is damaged"):
        load(tmp_path / "odd.safetensors")


# Inspect Prompt


def test_the_verdict_names_the_chunk_that_fires_and_its_concept(cast):
    found = detect(cast.eraser, concat(cast.quiet, cast.louder))
    assert [verdict.erased for verdict in found] == [False, True]
    assert found[0].size < 1 <= found[1].size
    assert (found[1].concept, round(found[1].resemblance, 4)) == ("dog", 1.0)
    words = in_words(cast.eraser, found).splitlines()
    assert words[0] == "Erased: 1 of 2 parts."
    assert words[1].startswith("Part 1: nearest to ")
    assert words[1].endswith("times the dead zone: stays as it is.")
    assert words[2].startswith("Part 2: nearest to 'dog' (1.00), ")
    assert words[2].endswith("times the dead zone: erased.")


def test_the_verdict_is_what_apply_does(model, cast):
    for positive in (cast.loud, cast.quiet, concat(cast.quiet, cast.louder), concat(cast.quiet, cast.quieter)):
        fires = any(verdict.erased for verdict in detect(cast.eraser, positive))
        assert is_base(model, cast.eraser, positive) == (not fires)


def test_words_for_text_that_says_nothing_or_cannot_be_judged(cast, deaf):
    (nothing,) = nodes.ConditioningZeroOut().zero_out(cast.loud)
    assert "The prompt: says nothing." in in_words(cast.eraser, detect(cast.eraser, nothing))
    assert "The prompt: can't be judged" in in_words(deaf, detect(deaf, FOREIGN))
    assert "Prompt 2: " in in_words(deaf, detect(deaf, cast.loud + cast.quiet))


def test_the_bars_pass_the_edge_where_something_is_erased(cast):
    found = detect(cast.eraser, concat(cast.quiet, cast.louder))
    picture = bar_picture(found)
    pixels = list(zip(*[iter(picture.tobytes())] * 3, strict=True))
    red = [n % picture.width for n, pixel in enumerate(pixels) if pixel == (200, 60, 50)]
    grey = [n % picture.width for n, pixel in enumerate(pixels[picture.width * 50 :]) if pixel == (120, 140, 160)]
    assert grey
    assert max(red) > max(grey)


def test_the_node_gives_text_and_picture_and_shows_both(cast):
    node = InspectPrompt.PREPARE_CLASS_CLONE({"hidden_inputs": {}})
    output = node.execute(unhype=cast.eraser, conditioning=concat(cast.quiet, cast.louder))
    text, picture = output.args
    assert text.startswith("Erased: 1 of 2 parts.")
    assert picture.shape[0] == 1
    assert picture.shape[3] == 3
    assert 0 <= picture.min() < picture.max() <= 1
    assert output.ui["text"] == (text,)
    assert len(output.ui["images"]) == 1
