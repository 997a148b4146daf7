"""Penalties and filters against `transformers`' processors, draws against their frequencies."""

from dataclasses import fields

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from llm.errors import ConfigError
from llm.sampling import History, Sampling, Uniforms, draw, filtered


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    temperature=st.floats(0.2, 2),
    top_k=st.integers(1, 40),
    top_p=st.floats(0.05, 0.99),
    min_p=st.floats(0.001, 1),
    penalty=st.floats(0.5, 2),
)
def test_the_whole_chain_is_that_of_transformers(
    seed: int, temperature: float, top_k: int, top_p: float, min_p: float, penalty: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, 40, generator=generator) * 3
    read = torch.randint(40, (3, 12), generator=generator)
    chain = LogitsProcessorList(  # in the order of GenerationMixin._get_logits_processor
        [
            RepetitionPenaltyLogitsProcessor(penalty),
            TemperatureLogitsWarper(temperature),
            TopKLogitsWarper(top_k),
            TopPLogitsWarper(top_p),
            MinPLogitsWarper(min_p),
        ]
    )
    theirs = chain(read, logits.clone())
    sampling = Sampling(temperature, top_k, top_p, min_p, penalty)
    history = History(read[:, :5].tolist(), 40, torch.device("cpu"))  # some of it prompt, the rest written
    for token in read[:, 5:].T:
        history.add(token)
    ours = filtered(history.penalised(logits, sampling) / temperature, sampling)
    assert torch.equal(ours.isinf(), theirs.isinf())
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)


def test_frequency_and_presence_are_openais() -> None:
    """mu[j] - c[j] * frequency - float(c[j] > 0) * presence, with c of what was written and not of the prompt."""
    history = History([[0, 1]], 4, torch.device("cpu"))
    for token in (1, 2, 2):
        history.add(torch.tensor([token]))
    found = history.penalised(torch.ones(1, 4), Sampling(presence_penalty=0.5, frequency_penalty=0.25))
    assert found.tolist() == [[1.0, 0.25, 0.0, 1.0]]


def test_a_token_of_no_probability_is_never_drawn() -> None:
    logits = torch.tensor([[float("-inf"), 0.0, float("-inf")]])
    for uniform in (0.0, 0.5, 1 - 1e-12):
        for temperature in (1.0, 1e-40):
            drawn = draw(logits + 9, torch.tensor([uniform], dtype=torch.float64), Sampling(temperature))
            assert drawn.item() == 1


@pytest.mark.parametrize("sampling", [Sampling(0.7), Sampling(0.7, top_k=6), Sampling(1.0, min_p=0.3)], ids=str)
def test_frequencies_after_filters(sampling: Sampling) -> None:
    """Chi-squared over the tokens left of 8, with a prompt's own stream; 24.3 is the 0.1 % point at 7 degrees."""
    logits = torch.linspace(-1, 1, 8)
    n = 20_000
    stream = Uniforms(seed=3, number=1)
    uniforms = torch.tensor([stream.next() for _ in range(n)], dtype=torch.float64)
    tokens = draw(logits.expand(n, 8), uniforms, sampling)
    shares = (logits / sampling.temperature).softmax(0)
    kept = torch.ones(8, dtype=torch.bool)
    if sampling.top_k:
        kept[: 8 - sampling.top_k] = False
    kept &= shares >= sampling.min_p * shares.max()
    expected = n * shares[kept] / shares[kept].sum()
    counts = tokens.bincount(minlength=8)
    assert counts[~kept].sum() == 0
    assert ((counts[kept] - expected) ** 2 / expected).sum() < 24.3


NAN, INFINITE = float("nan"), float("inf")
FLOATS = [field.name for field in fields(Sampling) if field.type == "float" or field.type is float]


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1.0},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"min_p": -0.1},
        {"min_p": 1.1},
        {"repetition_penalty": 0.0},
        {"repetition_penalty": 1e-300},
        {"repetition_penalty": 1e300},
        {"presence_penalty": 2.1},
        {"frequency_penalty": -2.1},
        *({name: number} for name in FLOATS for number in (NAN, INFINITE, -INFINITE)),
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Sampling(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("number", [1e-300, 5e-324, 1e-38, 1e-7, 0.01, 1, 2, 100, 1e38, 1.7e308, -2, -1e-300, -0.0])
def test_settings_in_range_draw_a_token_that_may_be_drawn(name: str, number: float) -> None:
    """Whatever is taken gives a likely token, and not the last id or one that the model excludes."""
    try:
        sampling = Sampling(**{name: number})
    except ConfigError:
        return
    logits = torch.tensor([[-50.0, 60.0, float("-inf"), 59.0, float("-inf")]])
    history = History([[1, 3]], 5, torch.device("cpu"))
    history.add(torch.tensor([1]))
    penalised = history.penalised(logits, sampling)
    assert not penalised.isnan().any()
    for uniform in (0.0, 0.4, 1 - 1e-12):
        drawn = draw(penalised, torch.tensor([uniform], dtype=torch.float64), sampling).item()
        assert drawn in (0, 1, 3)
