"""Fitting the token detector on made-up token states."""

import pytest
import torch
from core_parts import seeded

from unhype.hypernet.token_detector import together, unit_states
from unhype.training import token_fit
from unhype.training.token_fit import fit_token_detector, hinge_fit, whitening

WIDTH, CONCEPTS = 24, 3


def world(widths=(WIDTH,), seed=0):
    """Names' tokens near a direction each, benign tokens of a few large directions, prompts of ten tokens."""
    width, generator = sum(widths), seeded(seed)
    directions = torch.linalg.qr(torch.randn(width, width, generator=generator))[0]
    spread = torch.cat([torch.full((4,), 5.0), torch.ones(width - 4 - CONCEPTS), torch.full((CONCEPTS,), 0.3)])

    def benign(n):
        return torch.randn(n, width, generator=generator) * spread @ directions

    names = [4 * directions[width - 1 - k] + benign(40) for k in range(CONCEPTS)]
    return names, [benign(10) for _ in range(400)], [benign(10) for _ in range(300)], benign


def test_names_are_detected_and_benign_prompts_are_not():
    names, benign, held_out, draw = world()
    detector = fit_token_detector(names, benign, held_out, [], (WIDTH,))
    for k, tokens in enumerate(names):
        scores = detector.token_scores(tokens)
        assert (scores[:, k] >= 1).float().mean() >= 0.95
        assert scores.argmax(1).eq(k).float().mean() >= 0.95
    unseen = torch.stack([detector(draw(10)) for _ in range(300)])
    assert (unseen.amax(1) >= 1).float().mean() <= 0.03


def test_a_name_among_other_tokens_is_found():
    names, benign, held_out, draw = world()
    detector = fit_token_detector(names, benign, held_out, [], (WIDTH,))
    found = [detector(torch.cat([draw(30), names[1][n : n + 1], draw(30)])).argmax().item() for n in range(40)]
    assert found.count(1) >= 38


def test_what_is_preserved_stays_below_the_threshold():
    names, benign, held_out, _ = world()
    near = [0.004 * n * names[0][:1] + benign[0][:1] for n in range(150)]
    without = fit_token_detector(names, benign, held_out, [], (WIDTH,))
    found = [without(states)[0].item() for states in near]
    preserved = [states for states, score in zip(near, found, strict=True) if 1 <= score < 1.05][:1]
    assert preserved, found
    detector = fit_token_detector(names, benign, held_out, preserved, (WIDTH,))
    assert detector(preserved[0])[0] < 1
    assert (detector.token_scores(names[0])[:, 0] >= 1).float().mean() >= 0.5


def test_encoders_side_by_side_have_rows_of_their_own():
    names, benign, held_out, _ = world((WIDTH, WIDTH))
    detector = fit_token_detector(names, benign, held_out, [], (WIDTH, WIDTH))
    assert detector.weight.shape == (CONCEPTS, 2 * WIDTH)
    assert detector.bias.shape == (2, CONCEPTS)
    assert torch.stack([detector(prompt) for prompt in held_out]).ge(1).float().mean() <= 0.02


def test_whitening_by_hand():
    states = torch.tensor([[2.0, 0.0], [-2.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    variance = torch.tensor([8 / 3, 2 / 3])
    root = whitening(states)
    torch.testing.assert_close(root @ root.T, torch.diag(1 / (variance + 0.1 * variance.mean())))


def test_no_other_score_has_a_smaller_loss():
    names, benign, *_ = world()
    benign = torch.cat(benign)
    near = benign[500:520] + 0.5 * names[0][:20]
    own, near, benign = (unit_states(states) for states in (names[0], near, benign[:500]))
    center = benign.mean(0)
    w, b = hinge_fit(own, benign, near, center)
    scale = (benign - center).square().sum(1).mean().sqrt()

    def loss(w, b):
        missed, *alarms = torch.relu(1 - own @ w - b), torch.relu(benign @ w + b), torch.relu(near @ w + b)
        alarms = sum(part.square().mean() for part in alarms)
        return missed.square().mean() + alarms + 0.001 * (w * scale).square().sum()

    least = loss(w, b)
    for seed in range(8):
        step = 0.02 * torch.randn(WIDTH, generator=seeded(seed)) * w.norm()
        assert loss(w + step, b - step @ center) > least


def test_a_report_may_interrupt():
    names, benign, held_out, _ = world()
    calls = []

    def report(done, total):
        calls.append((done, total))
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_token_detector(names, benign, held_out, [], (WIDTH,), report)
    assert calls == [(done, 2 * CONCEPTS) for done in (0, 0, 1, 2, 3, 4)]


def test_a_name_without_tokens_is_never_detected():
    names, benign, held_out, draw = world()
    detector = fit_token_detector([names[0], names[1][:0], names[2]], benign, held_out, [], (WIDTH,))
    assert detector(torch.cat([names[1], draw(100)]))[1] < 0
    assert (detector.token_scores(names[2])[:, 2] >= 1).float().mean() >= 0.95


def test_very_wide_states_are_whitened_by_their_variances(monkeypatch):
    names, benign, held_out, _ = world()
    monkeypatch.setattr(token_fit, "_WIDEST", WIDTH - 1)
    assert whitening(torch.cat(benign)).shape == (WIDTH,)
    detector = fit_token_detector(names, benign, held_out, [], (WIDTH,))
    for k, tokens in enumerate(names):
        assert (detector.token_scores(tokens)[:, k] >= 1).float().mean() >= 0.9


def test_things_near_a_name_stay_below_the_threshold():
    """Without them among the nouns some are detected."""
    names, benign, held_out, draw = world()
    step = 6 * torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=seeded(5)))[0][0]
    near = 0.7 * names[0].mean(0) + step + 0.05 * draw(40)
    without = fit_token_detector(names, benign, held_out, [], (WIDTH,))
    detector = fit_token_detector(names, benign, held_out, [], (WIDTH,), nouns=[near[:20]])
    before, after = ((fit.token_scores(near[20:])[:, 0] >= 1).float().mean() for fit in (without, detector))
    assert before >= 0.5 and after <= 0.1
    assert (detector.token_scores(names[0])[:, 0] >= 1).float().mean() >= 0.9


def test_of_a_name_of_two_tokens_one_alone_is_not_detected():
    """The last token of the name is that of many other words as well."""
    names, benign, held_out, draw = world()
    first, last = 4 * torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=seeded(7)))[0][:2]

    def prompts(count, *ends):
        return [torch.cat([draw(5), *(end + 0.1 * draw(1) for end in ends), draw(4)]) for _ in range(count)]

    own = [together(unit_states(prompt), 2)[6:7] for prompt in prompts(40, first, last)]
    others = [*benign, *prompts(40, last)]
    names = [torch.cat(own), names[1], names[2]]
    detector = fit_token_detector(names, others, [*held_out, *prompts(10, last)], [], (WIDTH,), spans=(2, 1, 1))
    assert detector.spans == (2, 1, 1)
    whole, half = (
        torch.stack([detector(prompt)[0] for prompt in prompts(40, *ends)]) for ends in ((first, last), (last,))
    )
    assert (whole >= 1).float().mean() >= 0.95
    assert (half >= 1).float().mean() <= 0.05
