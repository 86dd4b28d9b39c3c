"""From conditionings to embeddings and chunks: the mean of tokens, and text without any embedding."""

import torch

from unhype.hypernet.embedding import Chunk, chunks_of, chunks_of_prompt, driving_embeddings, mean_of_tokens
from unhype.hypernet.families import POOLED, TOKENS

WIDTH = 32


def random_states(seed, tokens=6):
    return torch.randn(1, tokens, WIDTH, generator=torch.Generator().manual_seed(seed))


def test_the_mean_is_over_valid_tokens():
    states = random_states(1)
    mask = torch.tensor([[1, 1, 1, 1, 0, 0]])
    torch.testing.assert_close(mean_of_tokens(states, mask), mean_of_tokens(states[:, :4]))
    padded = torch.cat([states, torch.zeros(1, 500, WIDTH)], dim=1)
    torch.testing.assert_close(mean_of_tokens(padded), mean_of_tokens(states))
    assert not torch.equal(mean_of_tokens(states), mean_of_tokens(states[:, :4]))


def test_a_token_a_thousand_times_as_large_does_not_hide_the_others():
    states = random_states(1)
    large = states.clone()
    large[0, 0] *= 1000
    torch.testing.assert_close(mean_of_tokens(large), mean_of_tokens(states))
    torch.testing.assert_close(mean_of_tokens(states * 0.01), mean_of_tokens(states))


def test_concatenated_prompts_count_with_all_their_tokens():
    """Conditioning (Concat) keeps the mask of its first prompt."""
    both = torch.cat([random_states(1), random_states(2)], dim=1)
    torch.testing.assert_close(mean_of_tokens(both, torch.ones(1, 6)), mean_of_tokens(both))


def test_a_prompt_of_zeros_has_no_embedding():
    assert driving_embeddings({"cross_attn": torch.zeros(1, 6, WIDTH)}, TOKENS) == [None]
    assert driving_embeddings({"cross_attn": random_states(1), "pooled_output": torch.zeros(1, 4)}) == [None]


def test_each_row_of_a_batch_has_its_own_embedding():
    pooled = torch.tensor([[1.0, 2.0], [0.0, 0.0], [3.0, 4.0]])
    first, second, third = driving_embeddings({"pooled_output": pooled})
    assert (first.tolist(), second, third.tolist()) == ([1.0, 2.0], None, [3.0, 4.0])


def test_a_pooled_embedding_is_taken_as_it_is():
    pooled, states = torch.ones(1, 4), random_states(1)
    (c,) = driving_embeddings({"cross_attn": states, "pooled_output": pooled}, POOLED)
    assert torch.equal(c, pooled[0])
    (c,) = driving_embeddings({"cross_attn": states, "pooled_output": pooled}, TOKENS)
    assert torch.equal(c, mean_of_tokens(states)[0])


def test_rows_of_tokens_and_of_embeddings_repeat_independently():
    """As the host repeats them: two prompts in three poolings make six."""
    entry = {"cross_attn": torch.ones(2, 4, WIDTH), "pooled_output": torch.arange(1.0, 4.0).view(3, 1)}
    prompts = chunks_of(entry, POOLED, 1)
    assert [chunk.candidates[0].item() for (chunk,) in prompts] == [1.0, 2.0, 3.0] * 2


def test_a_model_without_tokens_has_one_chunk_of_its_pooled_embedding():
    c = torch.ones(4)
    assert chunks_of_prompt(None, c, 4) == [Chunk(0, 1, (c,), False)]
    assert chunks_of_prompt(None, None, 4) == [Chunk(0, 1, (), True)]
