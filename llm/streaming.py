"""Continuations as text, a piece a token: what is printed or sent while it is being written.

A piece never ends in half a character, nor in what may become a stop string. What is held back comes with a later one.
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
    offset: int  # characters of the text before it; a token inside a character has the offset of that character
    logprob: float  # of the model's own distribution, before penalties, temperature and filters
    top: dict[str, float]  # the likeliest by text


@dataclass
class Piece:
    text: str = ""
    tokens: list[Token] = field(default_factory=list)  # only if log-probabilities are wanted
    count: int = 0  # tokens that it took, the one that ended the text included
    finish: str | None = None  # of the last piece: "stop" or "length"

    def __iadd__(self, other: "Piece") -> "Piece":
        """Add the piece that follows."""
        self.text += other.text
        self.tokens += other.tokens
        self.count += other.count
        self.finish = other.finish
        return self


def write(
    decoder: Decoder, tokenizer: Tokenizer, prompts: Sequence[Sequence[int]], seeds: Sequence[int], wanted: Wanted
) -> Iterator[tuple[int, Piece]]:
    """Continue the prompts together, each with its seed: pieces and the numbers of their prompts.

    `prompts` are token ids that fit (`llm.generate.check_fit`), the one that begins a text included. Closing the
    iterator stops the work.
    """
    end, size = tokenizer.end_of_text, tokenizer.vocab_size
    streams = [Uniforms(seed) for seed in seeds]
    writing = Writing(decoder, prompts, streams, wanted.max_tokens, wanted.sampling, end, wanted.past_context, size)
    texts = [TokenText(tokenizer, wanted) for _ in prompts]
    while writing.going:
        for row, token, logits in writing.step():
            piece = texts[row].add(token, logits, last=row not in writing.going)
            if piece.finish:
                writing.drop(row)
            yield row, piece


class TokenText:
    """The text of one continuation, made from its tokens as they come."""

    def __init__(self, tokenizer: Tokenizer, wanted: Wanted) -> None:
        self._tokenizer = tokenizer
        self._stops = wanted.stops
        self._top = wanted.top_logprobs
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""  # may yet be the beginning of a stop string
        self._decoded = 0  # characters so far, those held back included

    def add(self, token: int, logits: torch.Tensor, last: bool) -> Piece:
        """What the next token adds. `logits` (V,) are the model's own, and no token follows the `last`."""
        if token == self._tokenizer.end_of_text:
            return Piece(self._held + self._decoder.decode(b"", final=True), count=1, finish="stop")
        added = self._tokenizer.decode_bytes([token])
        tokens = [] if self._top is None else [self._described(token, logits, self._offset(added))]
        decoded = self._decoder.decode(added, final=last)
        self._decoded += len(decoded)
        text = self._held + decoded
        place = stop_place(text, self._stops)
        if place is not None:
            return Piece(text[:place], tokens, 1, "stop")
        safe = len(text) if last else len(text) - self._overlap(text)
        self._held = text[safe:]
        return Piece(text[:safe], tokens, 1, "length" if last else None)

    def _offset(self, added: bytes) -> int:
        """Where in the text these bytes begin."""
        begun = self._decoder.getstate()[0]  # the bytes of a character that is not complete
        if begun and added:
            try:
                codecs.utf_8_decode(begun + added[:1], "strict", False)
            except UnicodeDecodeError:  # it will never be complete, so one U+FFFD stands for it
                return self._decoded + 1
        return self._decoded

    def _overlap(self, text: str) -> int:
        """The length of the longest end of `text` that a stop string begins with."""
        longest = max(map(len, self._stops), default=1) - 1
        lengths = range(min(longest, len(text)), 0, -1)
        return next((n for n in lengths if any(stop.startswith(text[-n:]) for stop in self._stops)), 0)

    def _described(self, token: int, logits: torch.Tensor, offset: int) -> Token:
        logprobs = logits[: self._tokenizer.vocab_size].log_softmax(dim=-1)  # without padding
        best = logprobs.topk(min(self._top or 0, len(logprobs)))
        likeliest: dict[str, float] = {}
        for other, logprob in zip(best.indices.tolist(), best.values.tolist(), strict=True):
            # Of several parts of characters, the likeliest.
            likeliest.setdefault(self._tokenizer.decode([other]), logprob)
        return Token(self._tokenizer.decode([token]), offset, float(logprobs[token]), likeliest)
