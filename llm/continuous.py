"""Continuous batching: continuations join a batch between two steps, and leave it when they end.

Each continuation has its own prompt, seed, settings and limit. What it becomes does not depend on its company: the
compiled decoder gives each row the same figures in any batch, and other decoders run each row by itself.

Shapes: B rows, V vocabulary.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from llm.compiled_decoder import CompiledDecoder, CompiledReading
from llm.decoder import Decoder, Reading
from llm.sampling import History, Sampling, Uniforms, draw, of_tokens
from llm.streaming import Piece, TokenText, Wanted
from llm.tokenizer.tokenizer import Tokenizer


class Continuation:
    """A text to be written after `prompt` (token ids), which must fit the context (`llm.generate.check_fit`)."""

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], seed: int, wanted: Wanted, block_size: int) -> None:
        self.prompt = prompt
        self.sampling = wanted.sampling
        self.vocab_size = tokenizer.vocab_size  # ids below it may be drawn
        self.uniforms = Uniforms(seed)
        self.left = min(wanted.max_tokens, block_size - len(prompt))  # tokens that may still be drawn
        self._text = TokenText(tokenizer, wanted)

    def add(self, token: int, logits: Tensor) -> Piece:
        """What a token adds to the text."""
        self.left -= 1
        return self._text.add(token, logits, last=self.left == 0)


class _Row:
    """A continuation in a batch."""

    def __init__(self, text: Continuation, decoder: Decoder) -> None:
        self.text = text
        device = decoder.compute.device
        penalises = text.sampling.penalises
        self.history = History([text.prompt], decoder.vocab_size, device) if penalises else None


class Batch:
    """Up to `slots` continuations of one model. `join`, `draw` and `advance` are called by one thread."""

    def __init__(self, decoder: Decoder, slots: int) -> None:
        self._decoder = decoder
        self._reading = _open(decoder, slots)
        self._rows: list[_Row] = []
        self._tokens: Tensor | None = None  # drawn by each row, and not read yet

    def __len__(self) -> int:
        return len(self._rows)

    def join(self, text: Continuation) -> None:
        """Add a continuation, and read its prompt. Called after `advance`, and before `draw`."""
        self._reading.join(text.prompt, len(text.prompt) + text.left)
        self._rows.append(_Row(text, self._decoder))

    def draw(self) -> list[tuple[Continuation, Piece]]:
        """Draw a token for each continuation: what it adds to the texts. Those that end leave the batch."""
        own = self._reading.logits
        tokens = self._draw(own)
        pieces = [
            (row.text, row.text.add(token, logits))
            for row, token, logits in zip(self._rows, tokens.tolist(), own, strict=True)
        ]
        self._tokens = tokens
        self._keep([place for place, (_, piece) in enumerate(pieces) if not piece.finish])
        return pieces

    def advance(self) -> None:
        """Have the model read the tokens that were drawn."""
        if self._tokens is None or not self._rows:
            return
        for row, token in zip(self._rows, self._tokens, strict=True):
            if row.history is not None:
                row.history.add(token[None])
        self._reading.step(self._tokens)
        self._tokens = None

    def leave(self, texts: Sequence[Continuation]) -> None:
        """Give up these continuations."""
        self._keep([place for place, row in enumerate(self._rows) if row.text not in texts])

    def _keep(self, places: list[int]) -> None:
        if len(places) == len(self._rows):
            return
        keep = torch.tensor(places, dtype=torch.long, device=self._decoder.compute.device)
        self._rows = [self._rows[place] for place in places]
        self._tokens = None if self._tokens is None else self._tokens[keep]
        self._reading.keep(keep)

    def _draw(self, own: Tensor) -> Tensor:
        """A token for each row (B,), from the model's own logits (B, V). Rows of equal settings are drawn together."""
        logits = own
        if any(row.history is not None for row in self._rows):
            logits = own.clone()
        alike: dict[tuple[Sampling, int], list[int]] = {}
        for place, row in enumerate(self._rows):
            alike.setdefault((row.text.sampling, row.text.vocab_size), []).append(place)
            if row.history is not None:
                logits[place] = row.history.penalised(own[place : place + 1], row.text.sampling)[0]
        uniforms = torch.tensor([row.text.uniforms.next() for row in self._rows], dtype=torch.float64)
        if len(alike) == 1:
            text = self._rows[0].text
            return draw(of_tokens(logits, text.vocab_size), uniforms, text.sampling)
        tokens = torch.empty(len(self._rows), dtype=torch.long, device=own.device)
        for (sampling, vocab_size), places in alike.items():
            tokens[places] = draw(of_tokens(logits[places], vocab_size), uniforms[places], sampling)
        return tokens


class _Open(Protocol):
    """A reading that rows can join."""

    @property
    def logits(self) -> Tensor:
        """(B, V), fp32: of the token that follows in each row."""

    def join(self, ids: Sequence[int], room: int) -> None:
        """Add a row, the last one, which reads `ids` and will never hold more than `room` tokens."""

    def step(self, tokens: Tensor) -> None:
        """Read one more token (B,) a row."""

    def keep(self, rows: Tensor) -> None:
        """Forget all rows but these."""


class _Separate:
    """Each row by itself, for decoders whose figures depend on the size of the batch."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._readings: list[Reading] = []

    @property
    def logits(self) -> Tensor:
        return torch.cat([reading.logits for reading in self._readings])

    def join(self, ids: Sequence[int], room: int) -> None:
        self._readings.append(self._decoder.read([ids], room))

    def step(self, tokens: Tensor) -> None:
        for reading, token in zip(self._readings, tokens, strict=True):
            reading.step(token[None])

    def keep(self, rows: Tensor) -> None:
        self._readings = [self._readings[row] for row in rows.tolist()]


def _open(decoder: Decoder, slots: int) -> _Open:
    if isinstance(decoder, CompiledDecoder):
        return CompiledReading(decoder, [], decoder.config.block_size, slots)
    return _Separate(decoder)
