"""Rows of tokens for a text encoder: how many run at once, and that each comes back as it was made."""

import pytest
import torch
from core_parts import normal

from unhype.training.token_rows import UnknownRowError, joined, most_tokens, row_key, rows_at_once, separated

CPU = torch.device("cpu")


def whole(*lengths):
    """Rows of these lengths, of which every token counts."""
    return [(length, length) for length in lengths]


@pytest.mark.parametrize(
    ("lengths", "tokens", "rows", "expected"),
    [
        (whole(77, 77, 77), 4096, 64, 3),
        (whole(77, 77, 77), 4096, 2, 2),
        (whole(77, 77, 77), 160, 64, 2),
        (whole(5, 6, 7), 4096, 64, 1),  # a row isn't made longer
        (whole(512), 10, 64, 1),
        ([(5, 64), (6, 64), (7, 64)], 4096, 64, 3),  # and padding is left out
        ([(5, 64), (6, 64), (7, 64)], 13, 64, 2),
        ([(5, 64), (6, 64), (60, 64)], 4096, 64, 2),  # but not kept for a single long one
        ([(5, 10), (6, 10), (11, 20)], 4096, 64, 2),
    ],
)
def test_rows_of_like_length_run_at_once(lengths, tokens, rows, expected):
    assert rows_at_once(lengths, tokens, rows) == expected


def test_a_batch_fits_into_the_memory():
    assert most_tokens(1e12, 768) == 4096
    assert most_tokens(1e9, 4096) < 1000
    assert most_tokens(0, 4096) == 1


@pytest.mark.parametrize("layers", [(), (3,)])
@pytest.mark.parametrize("pooled", [True, False])
@pytest.mark.parametrize("extra", [True, False])
def test_rows_come_back_as_a_batch(layers, pooled, extra):
    output = normal(2, *layers, 4, 5), normal(2, 6) if pooled else None
    output = (*output, {"attention_mask": torch.ones(2, 4)}) if extra else output
    rows = separated(output, [4, 7], CPU)
    for n, row in enumerate(rows):
        again = joined([row], CPU)
        assert torch.equal(again[0][0, ..., :4, :], output[0][n])
        assert again[0].shape[-2] == (4, 7)[n]
        assert not again[0][..., 4:, :].any()
        assert again[1] is None if not pooled else torch.equal(again[1][0], output[1][n])
        assert len(again) == len(output)
        if extra:
            assert again[2]["attention_mask"].tolist() == [[1] * 4, [1] * 4 + [0] * 3][n : n + 1]
    first = joined(rows[:1], CPU)[0]
    first += 1
    assert torch.equal(rows[0].states, output[0][0]), "what the host writes into stays its own"


def test_further_outputs_that_are_no_row_each_are_refused():
    with pytest.raises(UnknownRowError):
        separated((normal(2, 4, 5), None, {"count": 3}), [4, 4], CPU)
    with pytest.raises(UnknownRowError):
        separated((normal(2, 4, 5), None, {"mask": torch.ones(3)}), [4, 4], CPU)


@pytest.mark.parametrize("token", [{"type": "image"}, torch.ones(2, 3), None])
def test_what_is_no_text_is_refused(token):
    with pytest.raises(UnknownRowError):
        row_key([1, token])
