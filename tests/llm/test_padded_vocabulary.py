"""Models with more ids than their tokenizer has tokens, as Qwen's and Pythia's: the ids without a token are not drawn.

The rows of the padding are made the largest, so that each draw would take one of them.
"""

import asyncio
from dataclasses import replace
from typing import Any

import pytest
import torch

from llm.compiled_decoder import CompiledDecoder
from llm.compute import Compute
from llm.decoder import Decoder, TorchDecoder, WholeTextDecoder
from llm.generate import generate
from llm.model.config import ModelConfig
from llm.model.transformer import Transformer
from llm.sampling import Sampling
from llm.streaming import Piece, Wanted, write
from llm.tokenizer.byte_bpe import ByteBPE
from llm.tokenizer.patterns import GPT2
from pipeline.serve.app import encoded
from pipeline.serve.engine import Choice, Engine, Served
from pipeline.serve.request import APIError
from tests.conftest import TINY

TOKENIZER = ByteBPE.from_merges([], GPT2, ["<|endoftext|>"])
PADDED = 320
PROMPTS = [[256, *b"Once"], [256, 65]]
SETTINGS = [
    Sampling(0.0),
    Sampling(1.0),
    Sampling(0.9, top_k=5, top_p=0.9),
    Sampling(0.8, min_p=0.05, repetition_penalty=1.3, presence_penalty=0.5, frequency_penalty=0.2),
]


@pytest.fixture(scope="module")
def models() -> tuple[Transformer, Transformer]:
    """A model with padding, and the same model without."""
    config: ModelConfig = replace(TINY, block_size=64, tie_head=False)
    padded, cut = Transformer(config, PADDED), Transformer(config, TOKENIZER.vocab_size)
    padded.initialise(3)
    with torch.no_grad():
        direction = padded.head.weight[TOKENIZER.vocab_size :]
        direction[::2], direction[1::2] = 50, -50  # whatever the state, half of them are far above all others
        cut.load_state_dict(
            {
                name: weight[: TOKENIZER.vocab_size] if len(weight) == PADDED else weight
                for name, weight in padded.state_dict().items()
            }
        )
        assert int(padded(torch.tensor([PROMPTS[0]]))[0, -1].argmax()) >= TOKENIZER.vocab_size
    return padded.eval(), cut.eval()


def written(decoder: Decoder, sampling: Sampling, top_logprobs: int | None = None) -> list[Piece]:
    texts = [Piece() for _ in PROMPTS]
    for row, piece in write(decoder, TOKENIZER, PROMPTS, [1, 2], Wanted(20, sampling, [], top_logprobs)):
        texts[row] += piece
    return texts


@pytest.mark.parametrize("sampling", SETTINGS, ids=str)
@pytest.mark.parametrize("kind", [TorchDecoder, CompiledDecoder, WholeTextDecoder])
def test_text_and_log_probabilities_are_those_of_the_model_without_padding(
    models: tuple[Transformer, Transformer], compute: Compute, kind: Any, sampling: Sampling
) -> None:
    padded, cut = (kind(model, compute) for model in models)
    assert written(padded, sampling) == written(cut, sampling)
    one, other = (written(decoder, sampling, 3) for decoder in (padded, cut))
    for text, expected in zip(one, other, strict=True):
        assert [token.text for token in text.tokens] == [token.text for token in expected.tokens]
        for token, same in zip(text.tokens, expected.tokens, strict=True):
            assert token.top == pytest.approx(same.top, abs=1e-4)


@pytest.mark.parametrize("sampling", SETTINGS, ids=str)
def test_generate_draws_tokens_only(
    models: tuple[Transformer, Transformer], compute: Compute, sampling: Sampling
) -> None:
    size = TOKENIZER.vocab_size
    found = generate(models[0], PROMPTS, 20, sampling, 1, 256, compute, vocab_size=size)
    assert found == generate(models[1], PROMPTS, 20, sampling, 1, 256, compute)
    assert all(map(TOKENIZER.decode, found))


@pytest.mark.parametrize("kind", [TorchDecoder, CompiledDecoder])
def test_the_server_writes_the_same_in_one_batch_of_several_settings(
    models: tuple[Transformer, Transformer], compute: Compute, kind: Any
) -> None:
    choices = [Choice(PROMPTS[n % 2], n, Wanted(20, sampling)) for n, sampling in enumerate(SETTINGS)]

    async def texts(served: Served) -> list[str]:
        engine = Engine(4, 8, 1)
        try:
            whole = [Piece() for _ in choices]
            async for pieces in engine.submit(served, choices).pieces():
                for number, piece in pieces.items():
                    whole[number] += piece
            return [piece.text for piece in whole]
        finally:
            engine.stop()

    padded, cut = (asyncio.run(texts(Served(kind(model, compute), TOKENIZER, 0))) for model in models)
    assert padded == cut


def test_a_prompt_of_the_api_has_no_id_without_a_token(
    models: tuple[Transformer, Transformer], compute: Compute
) -> None:
    served = Served(TorchDecoder(models[0], compute), TOKENIZER, 0)
    assert encoded([0, 256], served) == [0, 256]
    with pytest.raises(APIError, match="below 257"):
        encoded([257], served)
