"""Compiled decoding against the model itself, and against itself in other batches."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from llm.compiled_decoder import CompiledDecoder, fastest
from llm.compute import Compute, ComputeConfig
from llm.decoder import TorchDecoder
from llm.errors import WordmillError
from llm.generate import Writing, generate
from llm.model.config import ModelConfig
from llm.model.transformer import Transformer
from llm.sampling import Sampling, Uniforms

PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10, 11], [12, 13]]
CHANGES: list[dict[str, Any]] = [
    {},
    {"position": "learned", "norm": "layernorm", "feed_forward": "gelu", "bias": True, "tie_head": False},
    {"position": "sinusoidal", "feed_forward": "relu", "n_kv_head": 4},
    {"position": "none", "feed_forward": "relu2", "qk_norm": True, "n_kv_head": 1},
    {"norm": "layernorm", "qk_norm": True},
    {"head_dim": 16, "qk_norm": True},
    {"head_dim": 4, "n_head": 6, "position": "learned", "bias": True},
]


@pytest.fixture
def bf16() -> Compute:
    return Compute(ComputeConfig(device="cpu", precision="bf16", tf32=False, compile=False, threads=2))


def started(config: ModelConfig) -> Transformer:
    """A model none of whose gains and biases is one or zero."""
    model = Transformer(config, 64)
    model.initialise(3)
    with torch.no_grad():
        for weight in model.parameters():
            weight *= 2
            weight += torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)) * 0.1
    return model.eval()


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_logits_are_the_models(tiny_config: ModelConfig, compute: Compute, change: dict[str, Any]) -> None:
    model = started(replace(tiny_config, **change))
    reading = CompiledDecoder(model, compute).read(PROMPTS, 32)
    texts = [list(prompt) for prompt in PROMPTS]
    going = list(range(4))
    for number in range(12):
        for place, row in enumerate(going):
            exact = model(torch.tensor([texts[row]]))[0, -1]
            torch.testing.assert_close(reading.logits[place], exact, atol=1e-4, rtol=1e-4)
        if number == 5:  # two rows end
            going = [0, 3]
            reading.keep(torch.tensor(going))
        if number == 8:  # one is read anew
            texts[3] = [9, 9, 1]
            reading.again(1, texts[3])
        tokens = [(7 * number + row) % 64 for row in going]
        for row, token in zip(going, tokens, strict=True):
            texts[row].append(token)
        reading.step(torch.tensor(tokens))


def test_a_row_is_the_same_to_the_bit_in_any_batch(tiny_config: ModelConfig, bf16: Compute) -> None:
    model = started(replace(tiny_config, d_model=64, n_head=4))
    decoder = fastest(model, bf16)
    assert isinstance(decoder, CompiledDecoder)
    sampling = Sampling(0.9, min_p=0.02, repetition_penalty=1.1)

    def logits(rows: list[int]) -> dict[int, list[torch.Tensor]]:
        seeds = [Uniforms(row) for row in rows]
        writing = Writing(decoder, [PROMPTS[row % 4] for row in rows], seeds, 40, sampling, 0, "slide")
        found: dict[int, list[torch.Tensor]] = {row: [] for row in rows}
        while writing.going:
            for place, _, own in writing.step():
                found[rows[place]].append(own)
        return found

    together = logits(list(range(11)))  # eight of which share what is read
    for row in (0, 3, 7, 10):
        alone = logits([row])[row]
        assert len(alone) == len(together[row])
        assert all(torch.equal(a, b) for a, b in zip(alone, together[row], strict=True))


def test_greedy_text_is_that_of_generate(tiny_model: Transformer, compute: Compute) -> None:
    written = []
    for kind in (CompiledDecoder, TorchDecoder):
        decoder = kind(tiny_model, compute)
        writing = Writing(decoder, PROMPTS, [Uniforms(1)] * 4, 60, Sampling(0.0), -1, "slide")
        while writing.going:
            writing.step()
        written.append(writing.written)
    expected = generate(tiny_model, PROMPTS, 60, Sampling(0.0), 1, -1, compute, past_context="slide")
    assert written == [expected, expected]


def test_other_formats_are_refused(tiny_model: Transformer) -> None:
    half = Compute(ComputeConfig(device="cpu", precision="fp16", tf32=False, compile=False, threads=1))
    with pytest.raises(WordmillError, match="fp32 or bf16"):
        CompiledDecoder(tiny_model, half)
    assert isinstance(fastest(tiny_model, half), TorchDecoder)
