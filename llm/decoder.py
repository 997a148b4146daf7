"""A model as generation uses it: it reads prompts of any lengths, and then a token a row at a time.

Three kinds with one interface:

- `TorchDecoder` runs the model itself, with a cache of keys and values of fixed size, the rows of a batch together. It
  goes wherever torch goes, and is the one for large batches: the stages use it.
- `CompiledDecoder` (`compiled_decoder.py`) is for the CPU: a step is one call of machine code, and each row's figures
  are the same whatever the batch. `wordmill generate` uses it.

- `WholeTextDecoder` reads the whole text again for each token. It is for models with parts that the others do not know
  (`llm.model.exact`), and is as slow as it sounds.

Shapes: B rows, T positions, V vocabulary.
"""

import sys
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from llm.compute import Compute
from llm.devices import LENGTHS, ROWS, rounded_up
from llm.errors import WordmillError
from llm.model.config import ModelConfig
from llm.model.exact import unknown_mixer
from llm.model.transformer import Cache, Transformer


class Reading(Protocol):
    """A batch and what it has read so far."""

    logits: Tensor  # (B, V), fp32: of the token that follows in each row

    def step(self, tokens: Tensor) -> None:
        """Read one more token (B,) a row."""

    def keep(self, rows: Tensor) -> None:
        """Forget all rows but these; to be followed by `step` or `again`."""

    def again(self, row: int, ids: Sequence[int]) -> None:
        """Forget what `row` has read, and read `ids` from position 0 on."""


class Decoder(Protocol):
    config: ModelConfig
    vocab_size: int
    compute: Compute

    def read(self, prompts: Sequence[Sequence[int]], room: int) -> Reading:
        """Begin a batch that no row of which will ever hold more than `room` tokens."""


def decoder_for(model: Transformer, compute: Compute) -> Decoder:
    """The decoder for many rows, which is the model's own code. Says so where it has to be the slow one."""
    if part := unknown_mixer(model):
        print(f"generation reads the whole text for each token: the cache does not know {part}", file=sys.stderr)
        return WholeTextDecoder(model, compute)
    return TorchDecoder(model, compute)


class TorchDecoder:
    """`model`, which goes to the device of `compute` and into evaluation mode.

    Raises WordmillError for parts that it does not know.
    """

    def __init__(self, model: Transformer, compute: Compute) -> None:
        if part := unknown_mixer(model):
            raise WordmillError(f"the cache of generation does not know {part}; use the decoder for whole texts")
        self.model = model.to(compute.device).eval()
        self.config = model.config
        self.vocab_size = model.vocab_size
        self.compute = compute

    def read(self, prompts: Sequence[Sequence[int]], room: int) -> "TorchReading":
        return TorchReading(self.model, self.compute, prompts, room)


class TorchReading:
    """On a GPU rows and lengths are padded to few different shapes: the last rows of the cache may be nobody's."""

    @torch.no_grad()
    def __init__(self, model: Transformer, compute: Compute, prompts: Sequence[Sequence[int]], room: int) -> None:
        self._model = model
        self._compute = compute
        self._room = rounded_up(room, LENGTHS, compute.device, model.config.block_size)
        self._rows = len(prompts)
        self._cache, self.logits = self._read(prompts)

    @torch.no_grad()
    def step(self, tokens: Tensor) -> None:
        spare = len(self._cache.lengths) - self._rows
        if spare:
            self._cache.lengths[self._rows :] = 0
            tokens = torch.cat([tokens, tokens[-1:].expand(spare)])
        with self._compute.autocast():
            states = self._model.hidden(tokens[:, None], self._cache)[: self._rows, -1]
            self.logits = self._model.head(states).float()

    def keep(self, rows: Tensor) -> None:
        self._rows = len(rows)
        spare = rounded_up(len(rows), ROWS, self._compute.device) - len(rows)
        self._cache.keep(torch.cat([rows, rows[-1:].expand(spare)]) if spare else rows)
        self.logits = self.logits[rows]

    @torch.no_grad()
    def again(self, row: int, ids: Sequence[int]) -> None:
        cache, logits = self._read([ids])
        self._cache.keys[:, row], self._cache.values[:, row] = cache.keys[:, 0], cache.values[:, 0]
        self._cache.lengths[row] = len(ids)
        self.logits[row] = logits[0]

    def _read(self, prompts: Sequence[Sequence[int]]) -> tuple[Cache, Tensor]:
        device = self._compute.device
        rows = rounded_up(len(prompts), ROWS, device)
        length = rounded_up(max(map(len, prompts)), LENGTHS, device, self._room)
        lengths = torch.tensor([len(prompt) for prompt in prompts] + [1] * (rows - len(prompts)), device=device)
        ids = torch.zeros(rows, length, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt)] = torch.tensor(prompt)
        empty = torch.empty(0, dtype=self._compute.dtype, device=device)
        cache = Cache(self._model.config, rows, self._room, empty)
        with self._compute.autocast():
            states = self._model.hidden(ids.to(device), cache)
            cache.lengths.copy_(lengths)  # padding written past a prompt's end is overwritten before it is ever seen
            last = states[torch.arange(rows, device=device), lengths - 1][: len(prompts)]
            return cache, self._model.head(last).float()


class WholeTextDecoder:
    """`model`, which goes to the device of `compute` and into evaluation mode."""

    def __init__(self, model: Transformer, compute: Compute) -> None:
        self.model = model.to(compute.device).eval()
        self.config = model.config
        self.vocab_size = model.vocab_size
        self.compute = compute

    def read(self, prompts: Sequence[Sequence[int]], room: int) -> "WholeTextReading":
        return WholeTextReading(self, prompts)


class WholeTextReading:
    def __init__(self, decoder: WholeTextDecoder, prompts: Sequence[Sequence[int]]) -> None:
        self._decoder = decoder
        self._texts = [list(prompt) for prompt in prompts]
        self.logits = self._next()

    def step(self, tokens: Tensor) -> None:
        for text, token in zip(self._texts, tokens.tolist(), strict=True):
            text.append(token)
        self.logits = self._next()

    def keep(self, rows: Tensor) -> None:
        self._texts = [self._texts[row] for row in rows.tolist()]
        self.logits = self.logits[rows]

    def again(self, row: int, ids: Sequence[int]) -> None:
        self._texts[row] = list(ids)

    @torch.no_grad()
    def _next(self) -> Tensor:
        """The logits (B, V) after each text; rows of equal lengths are read together, so that nothing is padded."""
        model, compute = self._decoder.model, self._decoder.compute
        logits = torch.empty(len(self._texts), model.vocab_size, device=compute.device)
        for length in sorted(set(map(len, self._texts))):
            rows = [row for row, text in enumerate(self._texts) if len(text) == length]
            ids = torch.tensor([self._texts[row] for row in rows], device=compute.device)
            with compute.autocast():
                logits[torch.tensor(rows, device=compute.device)] = model(ids)[:, -1].float()
        return logits
