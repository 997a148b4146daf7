"""Text a piece at a time: that of `llm.generate`, never half a character, cut where a stop string stands."""

import codecs
import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.compute import Compute
from llm.decoder import TorchDecoder
from llm.generate import generate
from llm.model.config import ModelConfig
from llm.model.transformer import Transformer
from llm.sampling import Sampling
from llm.streaming import Piece, Token, TokenText, Wanted, write
from llm.tokenizer.byte_bpe import ByteBPE
from llm.tokenizer.patterns import GPT2

PROMPT = [256, *b"Once"]


@pytest.fixture(scope="module")
def tokenizer() -> ByteBPE:
    """Single bytes: text of a model that has learned nothing is full of half characters."""
    return ByteBPE.from_merges([], GPT2, ["<|endoftext|>"])


@pytest.fixture
def model(tiny_config: ModelConfig) -> Transformer:
    made = Transformer(replace(tiny_config, block_size=128, tie_head=False), 257)
    made.initialise(0)
    return made.eval()


def pieces(
    model: Transformer, tokenizer: ByteBPE, compute: Compute, seed: int, limit: int, **wanted: Any
) -> list[Piece]:
    how = Wanted(limit, **({"sampling": Sampling()} | wanted))
    return [piece for _, piece in write(TorchDecoder(model, compute), tokenizer, [PROMPT], [seed], how)]


def test_greedy_text_is_that_of_generate(model: Transformer, tokenizer: ByteBPE, compute: Compute) -> None:
    ids = generate(model, [PROMPT], 60, Sampling(temperature=0), 1, 256, compute)[0]
    written = pieces(model, tokenizer, compute, 1, 60, sampling=Sampling(temperature=0))
    assert "".join(piece.text for piece in written) == tokenizer.decode(ids)
    assert sum(piece.count for piece in written) == len(ids) + (written[-1].finish == "stop")


def test_pieces_are_whole_characters_and_stops_are_never_sent(
    model: Transformer, tokenizer: ByteBPE, compute: Compute
) -> None:
    draws = random.Random(1)
    cut = 0
    for seed in range(25):
        plain = pieces(model, tokenizer, compute, seed, 40)
        text = "".join(piece.text for piece in plain)
        ids = drawn(model, tokenizer, seed, compute)
        assert text == tokenizer.decode(ids)  # as decoded all at once, replacement characters included
        assert {piece.finish for piece in plain[:-1]} <= {None}
        assert plain[-1].finish == ("length" if len(ids) == 40 else "stop")
        if len(text) < 8:  # the model ended it at once
            continue
        places = [draws.randrange(len(text) - 3) for _ in range(2)]
        stops = [text[at : at + draws.randint(1, 3)] for at in places]
        stopped = pieces(model, tokenizer, compute, seed, 40, stops=stops)
        first = min((text.find(stop) + len(stop), text.find(stop)) for stop in stops)[1]
        assert "".join(piece.text for piece in stopped) == text[:first]
        assert stopped[-1].finish == "stop"
        cut += len(stopped) < len(plain)
    assert cut > 15  # it stopped working there


def drawn(model: Transformer, tokenizer: ByteBPE, seed: int, compute: Compute) -> list[int]:
    """The tokens, told apart by their log-probabilities: text alone hides bytes behind replacement characters."""
    ids: list[int] = []
    for piece in pieces(model, tokenizer, compute, seed, 40, top_logprobs=0):
        for token in piece.tokens:
            with torch.no_grad():
                logprobs = model(torch.tensor([PROMPT + ids]))[0, -1].log_softmax(-1)
            nearest = int((logprobs - token.logprob).abs().argmin())
            assert float(logprobs[nearest]) == pytest.approx(token.logprob, abs=1e-4)
            ids.append(nearest)
    return ids


def test_top_logprobs_are_the_likeliest(model: Transformer, tokenizer: ByteBPE, compute: Compute) -> None:
    (piece,) = pieces(model, tokenizer, compute, 1, 1, sampling=Sampling(temperature=0), top_logprobs=3)
    with torch.no_grad():
        best = model(torch.tensor([PROMPT]))[0, -1].log_softmax(-1).topk(3)
    found = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    by_text = {tokenizer.decode([i]): logprob for i, logprob in reversed(list(found))}
    assert piece.tokens[0].top == pytest.approx(by_text, abs=1e-5)
    assert piece.tokens[0].logprob == pytest.approx(float(best.values[0]), abs=1e-5)


def test_texts_of_a_batch_are_those_written_alone(model: Transformer, tokenizer: ByteBPE, compute: Compute) -> None:
    """Uneven prompts, and stop strings that end one row and not the others."""
    prompts, seeds = [[256, *text] for text in (b"A", b"Once there was", b"So")], [5, 6, 7]
    free = ["", "", ""]
    for row, piece in write(TorchDecoder(model, compute), tokenizer, prompts, seeds, Wanted(40, Sampling())):
        free[row] += piece.text
    wanted = Wanted(40, Sampling(), stops=[free[0][9:11]])
    together = ["", "", ""]
    for row, piece in write(TorchDecoder(model, compute), tokenizer, prompts, seeds, wanted):
        together[row] += piece.text
    for row, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
        alone = write(TorchDecoder(model, compute), tokenizer, [prompt], [seed], wanted)
        assert together[row] == "".join(piece.text for _, piece in alone)
    assert together[0] == free[0][: free[0].find(free[0][9:11])]
    assert together[1] or together[2]


BYTES = st.lists(
    st.sampled_from([*"abé€😀".encode(), 0xC3, 0xE2, 0x82, 0xF0, 0x9F, 0xFF, 0x80, *b"ab"]), min_size=1, max_size=12
)


@settings(max_examples=300, deadline=None)
@given(BYTES, st.lists(st.sampled_from(["ab", "aé", "bab", "é€", "€", "aaa"]), max_size=2))
def test_offsets_are_where_tokens_begin_in_the_whole_text(tokenizer: ByteBPE, ids: list[int], stops: list[str]) -> None:
    """Also of text that is held back for a stop string or for the rest of a character."""
    text = TokenText(tokenizer, Wanted(len(ids), Sampling(), stops, top_logprobs=0))
    found: list[Token] = []
    for number, token in enumerate(ids):
        piece = text.add(token, torch.zeros(257), last=number == len(ids) - 1)
        found += piece.tokens
        if piece.finish:
            break
    for number, token_ in enumerate(found):
        # The characters that are complete before it, and no more: what is after it may not be known yet.
        before = codecs.getincrementaldecoder("utf-8")(errors="replace")
        complete = before.decode(bytes(ids[:number]))
        open_bytes = before.getstate()[0]
        goes_on = open_bytes and (open_bytes + bytes(ids[number : number + 1])).decode(errors="replace")[0] != "\ufffd"
        together = (open_bytes + bytes(ids[number : number + 1])).decode(errors="replace")
        broken = bool(open_bytes) and not goes_on and len(together) > 1
        assert token_.offset == len(complete) + broken


def test_offsets_of_text_that_is_held_back(tokenizer: ByteBPE) -> None:
    text = TokenText(tokenizer, Wanted(9, Sampling(), ["abc"], top_logprobs=0))
    pieces = [text.add(token, torch.zeros(257), last=False) for token in b"xabababd"]
    assert "".join(piece.text for piece in pieces) == "xabababd"
    assert [token.offset for piece in pieces for token in piece.tokens] == list(range(8))
