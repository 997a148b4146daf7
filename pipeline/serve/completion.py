"""One continuation, token by token: the narrow place between the server and `llm.generate`.

`write` yields what a client is sent: pieces of text that never end in half a character or in what may become a stop
string, each with its tokens and their log-probabilities. Nothing else of the server knows how text is generated.
"""

import codecs
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch

from llm.compute import Compute
from llm.model.transformer import Cache, Transformer
from llm.sampling import Sampling, draw
from llm.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True)
class Wanted:
    """One continuation. `prompt` are token ids, the one that begins a text included; with `max_tokens` they fit."""

    prompt: Sequence[int]
    max_tokens: int
    sampling: Sampling
    seed: int
    stops: Sequence[str] = ()
    top_logprobs: int | None = None  # alternatives to report with each token; None: no log-probabilities


@dataclass(frozen=True)
class Token:
    text: str  # bytes that are no whole character are shown as U+FFFD
    logprob: float  # of the model's own distribution, before temperature and filters
    top: dict[str, float]  # the likeliest by text


@dataclass
class Piece:
    text: str = ""
    tokens: list[Token] = field(default_factory=list)  # only if log-probabilities are wanted
    count: int = 0  # tokens that it took, the one that ended the text included
    finish: str | None = None  # of the last piece: "stop" or "length"


@torch.no_grad()
def write(model: Transformer, tokenizer: Tokenizer, wanted: Wanted, compute: Compute) -> Iterator[Piece]:
    """Continue the prompt, a piece for each token; closing the iterator stops the work."""
    generator = torch.Generator().manual_seed(wanted.seed)
    empty = torch.empty(0, dtype=compute.dtype, device=compute.device)
    cache = Cache(model.config, 1, len(wanted.prompt) + wanted.max_tokens, empty)
    ids = torch.tensor([wanted.prompt], device=compute.device)
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    held = ""  # text that may yet be the beginning of a stop string
    for number in range(wanted.max_tokens):
        with compute.autocast():
            logits = model.head(model.hidden(ids, cache)[:, -1]).float()  # (1, V)
        uniform = torch.rand(1, generator=generator, dtype=torch.float64).to(compute.device)
        token = int(draw(logits, uniform, wanted.sampling))
        if token == tokenizer.end_of_text:
            yield Piece(held + decoder.decode(b"", final=True), count=1, finish="stop")
            return
        piece = Piece(count=1)
        if wanted.top_logprobs is not None:
            piece.tokens.append(_token(tokenizer, logits, token, wanted.top_logprobs))
        last = number + 1 == wanted.max_tokens
        held += decoder.decode(tokenizer.decode_bytes([token]), final=last)
        found = [at for stop in wanted.stops if (at := held.find(stop)) >= 0]
        if found:
            piece.text, piece.finish = held[: min(found)], "stop"
            yield piece
            return
        safe = len(held) if last else len(held) - _overlap(held, wanted.stops)
        piece.text, held = held[:safe], held[safe:]
        piece.finish = "length" if last else None
        yield piece
        ids = torch.tensor([[token]], device=compute.device)


def _overlap(text: str, stops: Sequence[str]) -> int:
    """The length of the longest end of `text` that a stop string begins with."""
    longest = max(map(len, stops), default=1) - 1
    lengths = range(min(longest, len(text)), 0, -1)
    return next((n for n in lengths if any(stop.startswith(text[-n:]) for stop in stops)), 0)


def _token(tokenizer: Tokenizer, logits: torch.Tensor, token: int, top: int) -> Token:
    logprobs = logits[0].log_softmax(dim=-1)
    best = logprobs.topk(min(top, len(logprobs)))
    likeliest = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return Token(
        tokenizer.decode([token]), float(logprobs[token]), {tokenizer.decode([i]): value for i, value in likeliest}
    )
