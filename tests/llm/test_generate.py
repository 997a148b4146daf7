"""Sampling against `transformers`' filters, against frequencies, and against itself in other batches."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import TopKLogitsWarper, TopPLogitsWarper

from llm.compute import Compute
from llm.errors import ConfigError, WordmillError
from llm.generate import Sampling, draw, filtered, generate
from llm.model.transformer import Transformer


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 10**6), top_k=st.integers(1, 40), top_p=st.floats(0.05, 0.99))
def test_filters_are_those_of_transformers(seed: int, top_k: int, top_p: float) -> None:
    logits = torch.randn(3, 40, generator=torch.Generator().manual_seed(seed)) * 3
    theirs = TopPLogitsWarper(top_p)(None, TopKLogitsWarper(top_k)(None, logits))
    ours = filtered(logits, Sampling(1.0, top_k, top_p))
    assert torch.equal(ours.isinf(), theirs.isinf())
    assert torch.equal(ours[~ours.isinf()], logits[~ours.isinf()])


def test_draws_follow_the_distribution() -> None:
    """Chi-squared over 8 tokens: 7 degrees of freedom, 24.3 is the 0.1 % point."""
    logits = torch.linspace(-1, 1, 8)
    n = 20_000
    uniforms = torch.rand(n, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    tokens = draw(logits.expand(n, 8), uniforms, Sampling(temperature=0.7))
    expected = (logits / 0.7).softmax(0) * n
    statistic = ((tokens.bincount(minlength=8) - expected) ** 2 / expected).sum()
    assert statistic < 24.3


def test_a_token_of_no_probability_is_never_drawn() -> None:
    logits = torch.tensor([[float("-inf"), 0.0, float("-inf")]])
    for uniform in (0.0, 0.5, 1 - 1e-12):
        assert draw(logits, torch.tensor([uniform], dtype=torch.float64), Sampling()).item() == 1


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_prompt_gives_the_same_text_in_any_batch(
    tiny_model: Transformer, compute: Compute, temperature: float
) -> None:
    prompts = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10, 11], [12, 13]]
    together = generate(tiny_model, prompts, 12, Sampling(temperature), 3, stop=0, compute=compute)
    split = generate(tiny_model, prompts, 12, Sampling(temperature), 3, stop=0, compute=compute, rows_at_once=1)
    assert together == split
    assert all(0 not in row for row in together)


def test_greedy_equals_recomputing_everything(tiny_model: Transformer, compute: Compute) -> None:
    (written,) = generate(tiny_model, [[7, 8]], 10, Sampling(0.0), 0, stop=-1, compute=compute)
    ids = [7, 8]
    for _ in range(10):
        ids.append(int(tiny_model(torch.tensor([ids]))[0, -1].argmax()))
    assert written == ids[2:]


def test_stops_at_the_stop_token_and_at_the_context(tiny_model: Transformer, compute: Compute) -> None:
    (free,) = generate(tiny_model, [[7, 8]], 1000, Sampling(0.0), 0, stop=-1, compute=compute)
    assert len(free) == tiny_model.config.block_size - 2
    stop = free[4]
    (stopped,) = generate(tiny_model, [[7, 8]], 1000, Sampling(0.0), 0, stop=stop, compute=compute)
    assert stopped == free[: free.index(stop)]


def test_prompts_that_do_not_fit_are_refused(tiny_model: Transformer, compute: Compute) -> None:
    with pytest.raises(WordmillError, match="prompt 2 has 32 tokens; the context holds 1 to 31"):
        generate(tiny_model, [[1], [1] * 32], 5, Sampling(), 0, 0, compute)
    with pytest.raises(WordmillError, match="prompt 1 has 0 tokens"):
        generate(tiny_model, [[]], 5, Sampling(), 0, 0, compute)


@pytest.mark.parametrize("wrong", [{"temperature": -1.0}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.5}])
def test_settings_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Sampling(**wrong)
