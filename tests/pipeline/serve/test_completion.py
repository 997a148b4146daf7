"""One continuation: the text of `llm.generate`, never half a character, cut where a stop string stands."""

import random

import pytest
import torch

from llm.compute import Compute
from llm.generate import Sampling, generate
from llm.model.transformer import Transformer
from llm.tokenizer.byte_bpe import ByteBPE
from pipeline.serve.completion import Wanted, write

from .conftest import CONFIG

PROMPT = [256, *b"Once"]


@pytest.fixture(scope="module")
def model() -> Transformer:
    made = Transformer(CONFIG, 257)
    made.initialise(0)
    return made.eval()


def test_greedy_text_is_that_of_generate(model: Transformer, tokenizer: ByteBPE, compute: Compute) -> None:
    ids = generate(model, [PROMPT], 60, Sampling(temperature=0), 1, 256, compute)[0]
    pieces = list(write(model, tokenizer, Wanted(PROMPT, 60, Sampling(temperature=0), 1), compute))
    assert "".join(piece.text for piece in pieces) == tokenizer.decode(ids)
    assert sum(piece.count for piece in pieces) == len(ids) + (pieces[-1].finish == "stop")


def test_pieces_are_whole_characters_and_stops_are_never_sent(
    model: Transformer, tokenizer: ByteBPE, compute: Compute
) -> None:
    draws = random.Random(1)
    cut = 0
    for seed in range(25):
        plain = list(write(model, tokenizer, Wanted(PROMPT, 40, Sampling(), seed), compute))
        text = "".join(piece.text for piece in plain)
        ids = drawn(model, tokenizer, seed, compute)
        assert text == tokenizer.decode(ids)  # as decoded all at once, replacement characters included
        assert {piece.finish for piece in plain[:-1]} <= {None}
        assert plain[-1].finish == ("length" if len(ids) == 40 else "stop")
        places = [draws.randrange(len(text) - 3) for _ in range(2)]
        stops = [text[at : at + draws.randint(1, 3)] for at in places]
        stopped = list(write(model, tokenizer, Wanted(PROMPT, 40, Sampling(), seed, stops), compute))
        first = min(text.find(stop) for stop in stops)
        assert "".join(piece.text for piece in stopped) == text[:first]
        assert stopped[-1].finish == "stop"
        cut += len(stopped) < len(plain)
    assert cut > 15  # it stopped working there


def drawn(model: Transformer, tokenizer: ByteBPE, seed: int, compute: Compute) -> list[int]:
    """The tokens, told apart by their log-probabilities: text alone hides bytes behind replacement characters."""
    ids: list[int] = []
    for piece in write(model, tokenizer, Wanted(PROMPT, 40, Sampling(), seed, top_logprobs=0), compute):
        for token in piece.tokens:
            with torch.no_grad():
                logprobs = model(torch.tensor([PROMPT + ids]))[0, -1].log_softmax(-1)
            nearest = int((logprobs - token.logprob).abs().argmin())
            assert float(logprobs[nearest]) == pytest.approx(token.logprob, abs=1e-4)
            ids.append(nearest)
    return ids


def test_top_logprobs_are_the_likeliest(model: Transformer, tokenizer: ByteBPE, compute: Compute) -> None:
    wanted = Wanted([256, *b"plain"], 1, Sampling(temperature=0), 1, top_logprobs=3)
    (piece,) = write(model, tokenizer, wanted, compute)
    with torch.no_grad():
        best = model(torch.tensor([wanted.prompt]))[0, -1].log_softmax(-1).topk(3)
    assert list(piece.tokens[0].top) == [tokenizer.decode([i]) for i in best.indices.tolist()]
    assert list(piece.tokens[0].top.values()) == pytest.approx(best.values.tolist(), abs=1e-5)
    assert piece.tokens[0].logprob == pytest.approx(float(best.values[0]), abs=1e-5)
