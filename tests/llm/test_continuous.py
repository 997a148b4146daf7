"""Texts of continuous batches against the same texts written alone."""

import random
from dataclasses import replace
from typing import Any

import pytest
import torch

from llm.compiled_decoder import CompiledDecoder
from llm.compute import Compute, ComputeConfig
from llm.continuous import Batch, Continuation
from llm.decoder import Decoder, TorchDecoder
from llm.model.config import ModelConfig
from llm.model.transformer import Transformer
from llm.sampling import Sampling
from llm.streaming import Piece, Wanted, write
from llm.tokenizer.byte_bpe import ByteBPE
from llm.tokenizer.patterns import GPT2

TOKENIZER = ByteBPE.from_merges([], GPT2, ["<|endoftext|>"])
BLOCK_SIZE = 64
SETTINGS = [
    Sampling(),
    Sampling(0.0),
    Sampling(0.8, top_k=20, top_p=0.9),
    Sampling(repetition_penalty=1.3, presence_penalty=0.5, frequency_penalty=0.2),
]


@pytest.fixture
def model(tiny_config: ModelConfig) -> Transformer:
    made = Transformer(replace(tiny_config, block_size=BLOCK_SIZE, d_model=64, tie_head=False), 257)
    made.initialise(0)
    return made.eval()


def decoder_of(model: Transformer, kind: Any, precision: Any) -> Decoder:
    return kind(model, Compute(ComputeConfig("cpu", precision, False, False, 1)))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("kind", "precision"), [(CompiledDecoder, "bf16"), (CompiledDecoder, "fp32"), (TorchDecoder, "bf16")]
)
def test_a_text_does_not_depend_on_its_company(model: Transformer, kind: Any, precision: Any) -> None:
    """30 texts of several settings join and leave a batch of 11 at random moments. Log-probabilities are equal too."""
    draws = random.Random(3)
    decoder = decoder_of(model, kind, precision)
    asked = []
    for number in range(30):
        prompt = [256, *draws.randbytes(draws.randrange(30))]
        limit = draws.choice([1, 5, 30, BLOCK_SIZE - len(prompt)])
        wanted = Wanted(limit, SETTINGS[number % 4], draws.choice([[], ["e"]]), draws.choice([None, 2]))
        asked.append((prompt, number, wanted))
    waiting = [(number, Continuation(TOKENIZER, *one, BLOCK_SIZE)) for number, one in enumerate(asked)]
    numbers = {id(text): number for number, text in waiting}
    texts = [text for _, text in waiting]
    found = [Piece() for _ in asked]
    batch = Batch(decoder, 11)
    while waiting or len(batch):
        while waiting and len(batch) < 11 and draws.random() < 0.5:
            batch.join(waiting.pop(0)[1])
        if len(batch):
            for text, piece in batch.draw():
                found[numbers[id(text)]] += piece
            batch.advance()
    for number, (prompt, seed, wanted) in enumerate(asked):
        alone = Piece()
        for _, piece in write(decoder, TOKENIZER, [prompt], [seed], wanted):
            alone += piece
        assert found[number] == alone, number
    assert all(text.left >= 0 for text in texts)


def test_texts_that_are_given_up_leave_the_others_as_they_are(model: Transformer) -> None:
    decoder = decoder_of(model, CompiledDecoder, "fp32")
    wanted = Wanted(20, Sampling(0.0))
    kept, dropped = (Continuation(TOKENIZER, [256, 65 + n], 1, wanted, BLOCK_SIZE) for n in range(2))
    batch = Batch(decoder, 2)
    batch.join(dropped)
    batch.join(kept)
    text = "".join(piece.text for one, piece in batch.draw() if one is kept)
    batch.leave([dropped])  # its token is drawn and not read
    assert len(batch) == 1
    while len(batch):
        batch.advance()
        text += "".join(piece.text for _, piece in batch.draw())
    assert text == "".join(piece.text for _, piece in write(decoder, TOKENIZER, [[256, 65]], [1], wanted))


def test_a_slot_is_used_again(model: Transformer) -> None:
    """The second text has the slot of a longer one."""
    decoder = decoder_of(model, CompiledDecoder, "fp32")
    batch = Batch(decoder, 1)
    texts = []
    for prompt in ([256, *b"a long prompt, to begin with"], [256]):
        batch.join(Continuation(TOKENIZER, prompt, 1, Wanted(9, Sampling(0.0)), BLOCK_SIZE))
        text = ""
        while len(batch):
            text += "".join(piece.text for _, piece in batch.draw())
            batch.advance()
        texts.append(text)
    alone = write(decoder, TOKENIZER, [[256]], [1], Wanted(9, Sampling(0.0)))
    assert texts[1] == "".join(piece.text for _, piece in alone)
    with torch.no_grad():
        first = int(model(torch.tensor([[256]]))[0, -1].argmax())
    assert texts[1].encode()[:1] == TOKENIZER.decode([first]).encode()[:1]
