"""Which tokens of a row are those of known texts, and which belong to text that isn't known."""

import pytest
import torch
from core_parts import normal

from unhype.hypernet.text_rows import TextIndex, token_keys

A, B, NEW, OTHER = (normal(4, 3, seed=seed) for seed in range(4))
PADDED = torch.cat([A[:2], torch.zeros(2, 3)])


def index(*texts, chunk=0, preferred=()):
    made = TextIndex(chunk)
    for number, text in enumerate(texts):
        made.add(text, number in preferred)
    return made


def found(texts, *pieces, own=None, **options):
    """The runs of a row as (start, stop, text)."""
    return [run[:3] for run in index(*texts, **options).runs(torch.cat(pieces), own)]


CASES = {
    "itself": ([A], [(0, 4, 0)]),
    "repeated": ([A, A], [(0, 4, 0), (4, 8, 0)]),
    "two texts": ([B, A], [(0, 4, 1), (4, 8, 0)]),
    "cut at the end": ([A[:3]], [(0, 3, 0)]),
    "cut at the beginning": ([A[1:]], [(0, 3, 0)]),
    "unknown": ([NEW], [(0, 4, None)]),
    "lengthened": ([A, NEW], [(0, 4, 0), (4, 8, None)]),
    "lengthened in front": ([NEW, A], [(0, 4, None), (4, 8, 0)]),
    "lengthened in its middle": ([A[:2], NEW, A[2:]], [(0, 2, 0), (2, 6, None), (6, 8, 0)]),
    "a beginning shared with an unknown text": ([A[:2], NEW[2:]], [(0, 4, None)]),
    "behind it a text that begins alike": ([A, A[:1], NEW[1:]], [(0, 4, 0), (4, 8, None)]),
    "in its middle a text that begins alike": ([A[:2], A[:1], NEW[1:], A[2:]], [(0, 2, 0), (2, 6, None), (6, 8, 0)]),
    "in its middle, alike as far as there": (
        [A[:2], A[:2], NEW[2:], A[2:]],
        [(0, 2, 0), (2, 6, None), (6, 8, 0)],
    ),
    "two unknown texts that begin alike": ([A[:1], NEW[1:], A[:1], OTHER[1:]], [(0, 4, None), (4, 8, None)]),
    "reversed": ([A.flip(0)], [(0, 1, 0), (1, 2, 0), (2, 3, 0), (3, 4, 0)]),
    "padded": ([torch.zeros(2, 3), A, torch.zeros(3, 3)], [(2, 6, 0)]),
    "nothing but zeros": ([torch.zeros(5, 3)], []),
}


@pytest.mark.parametrize("name", CASES)
def test_a_row_is_taken_apart(name):
    pieces, expected = CASES[name]
    assert found([A, B], *pieces) == expected


def test_every_token_of_a_known_run_has_its_place_in_the_text():
    (first, _, last) = index(A).runs(torch.cat([A[:2], NEW, A[2:]]))
    assert first.tokens == ((0, 0), (1, 1))
    assert last.tokens == ((6, 2), (7, 3))


def test_zeros_inside_a_text_have_no_place_but_count_in_the_row():
    text = torch.cat([A[:1], torch.zeros(2, 3), A[1:]])
    (run,) = index(text).runs(torch.cat([torch.zeros(1, 3), text]))
    assert run == (1, 7, 0, ((1, 0), (4, 3), (5, 4), (6, 5)))


@pytest.mark.parametrize(("chunk", "stop"), [(0, 2), (2, 2), (3, 3), (4, 4)])
def test_an_unknown_text_keeps_the_padding_of_its_chunk(chunk, stop):
    assert found([A], NEW[:2], torch.zeros(2, 3), chunk=chunk) == [(0, stop, None)]
    assert found([PADDED], PADDED, chunk=chunk) == [(0, 2, 0)]


def test_a_longer_run_ends_with_its_chunk():
    """B begins as the second chunk of the known text does, but the tokens are its own."""
    text, alike = torch.cat([A, B]), torch.cat([B[:1], OTHER[1:]])
    assert found([text, alike], A, alike) == [(0, 5, 0), (5, 8, 1)]
    assert found([text, alike], A, alike, chunk=4) == [(0, 4, 0), (4, 8, 1)]


def test_padding_ends_where_the_next_text_begins():
    assert found([A], NEW[:2], torch.zeros(1, 3), A, chunk=4) == [(0, 3, None), (3, 7, 0)]


@pytest.mark.parametrize(
    ("own", "preferred", "text"), [(None, (), 0), (None, (1,), 1), (1, (), 1), (0, (1,), 0), (2, (1,), 1)]
)
def test_of_equal_texts_the_rows_own_wins_and_then_a_preferred_one(own, preferred, text):
    assert found([A, A, B], A, own=own, preferred=preferred) == [(0, 4, text)]


def test_a_longer_match_wins():
    assert found([A[:2], A], A, own=0) == [(0, 4, 1)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_keys_are_equal_for_equal_states_alone(dtype):
    first, zero, second, again = token_keys(torch.stack([A[0], torch.zeros(3), A[1], A[0]]).to(dtype))
    assert zero is None
    assert first == again
    assert first != second
