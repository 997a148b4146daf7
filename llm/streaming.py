"""Continuations as text, a piece a token: what is printed or sent while it is being written.

A piece never ends in half a character, nor in what may become a stop string; what is held back comes with a later one.
Stop strings are found wherever the borders of tokens lie, and are left out.
"""

import codecs
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch

from llm.decoder import Decoder
from llm.generate import PastContext, Writing, stop_place
from llm.sampling import Sampling, Uniforms
from llm.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True)
class Wanted:
    """How prompts are to be continued."""

    max_tokens: int
    sampling: Sampling
    stops: Sequence[str] = ()
    top_logprobs: int | None = None  # alternatives to report with each token; None: no log-probabilities
    past_context: PastContext = "stop"


@dataclass(frozen=True)
class Token:
    text: str  # bytes that are no whole character are shown as U+FFFD
    logprob: float  # of the model's own distribution, before penalties, temperature and filters
    top: dict[str, float]  # the likeliest by text


@dataclass
class Piece:
    text: str = ""
    tokens: list[Token] = field(default_factory=list)  # only if log-probabilities are wanted
    count: int = 0  # tokens that it took, the one that ended the text included
    finish: str | None = None  # of the last piece: "stop" or "length"


def write(
    decoder: Decoder, tokenizer: Tokenizer, prompts: Sequence[Sequence[int]], seeds: Sequence[int], wanted: Wanted
) -> Iterator[tuple[int, Piece]]:
    """Continue the prompts together, each with its seed: pieces and the numbers of their prompts.

    `prompts` are token ids that fit (`llm.generate.check_fit`), the one that begins a text included. Closing the
    iterator stops the work.
    """
    end = tokenizer.end_of_text
    streams = [Uniforms(seed) for seed in seeds]
    writing = Writing(decoder, prompts, streams, wanted.max_tokens, wanted.sampling, end, wanted.past_context)
    texts = [_Text(wanted.stops) for _ in prompts]
    while writing.going:
        for row, token, logits in writing.step():
            if token == end:
                piece = Piece(texts[row].rest(), count=1, finish="stop")
            else:
                piece = texts[row].add(tokenizer.decode_bytes([token]), last=row not in writing.going)
                if wanted.top_logprobs is not None:
                    piece.tokens.append(_token(tokenizer, logits, token, wanted.top_logprobs))
            if piece.finish:
                writing.drop(row)
            yield row, piece


class _Text:
    """One text on its way out."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""  # may yet be the beginning of a stop string

    def add(self, token: bytes, last: bool) -> Piece:
        text = self._held + self._decoder.decode(token, final=last)
        place = stop_place(text, self._stops)
        if place is not None:
            return Piece(text[:place], count=1, finish="stop")
        safe = len(text) if last else len(text) - self._overlap(text)
        self._held = text[safe:]
        return Piece(text[:safe], count=1, finish="length" if last else None)

    def rest(self) -> str:
        """What is still held, when nothing more comes."""
        return self._held + self._decoder.decode(b"", final=True)

    def _overlap(self, text: str) -> int:
        """The length of the longest end of `text` that a stop string begins with."""
        longest = max(map(len, self._stops), default=1) - 1
        lengths = range(min(longest, len(text)), 0, -1)
        return next((n for n in lengths if any(stop.startswith(text[-n:]) for stop in self._stops)), 0)


def _token(tokenizer: Tokenizer, logits: torch.Tensor, token: int, top: int) -> Token:
    logprobs = logits.log_softmax(dim=-1)
    best = logprobs.topk(min(top, len(logprobs)))
    likeliest: dict[str, float] = {}
    for other, logprob in zip(best.indices.tolist(), best.values.tolist(), strict=True):
        likeliest.setdefault(tokenizer.decode([other]), logprob)  # of several parts of characters, the likeliest
    return Token(tokenizer.decode([token]), float(logprobs[token]), likeliest)
