"""A model as generation uses it: it reads prompts of any lengths, and then a token a row at a time.

Two kinds with one interface:

- `TorchDecoder` runs the model itself, with a cache of keys and values of fixed size, the rows of a batch together. It
  goes wherever torch goes, and is the one for large batches: the stages use it.
- `CompiledDecoder` (`compiled_decoder.py`) is for the CPU: a step is one call of machine code, and each row's figures
  are the same whatever the batch. `wordmill generate` uses it.

Shapes: B rows, T positions, V vocabulary.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from llm.compute import Compute
from llm.model.config import ModelConfig
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


class TorchDecoder:
    """`model`, which goes to the device of `compute` and into evaluation mode."""

    def __init__(self, model: Transformer, compute: Compute) -> None:
        self.model = model.to(compute.device).eval()
        self.config = model.config
        self.vocab_size = model.vocab_size
        self.compute = compute

    def read(self, prompts: Sequence[Sequence[int]], room: int) -> "TorchReading":
        return TorchReading(self.model, self.compute, prompts, room)


class TorchReading:
    @torch.no_grad()
    def __init__(self, model: Transformer, compute: Compute, prompts: Sequence[Sequence[int]], room: int) -> None:
        self._model = model
        self._compute = compute
        self._room = room
        self._cache, self.logits = self._read(prompts)

    @torch.no_grad()
    def step(self, tokens: Tensor) -> None:
        with self._compute.autocast():
            self.logits = self._model.head(self._model.hidden(tokens[:, None], self._cache)[:, -1]).float()

    def keep(self, rows: Tensor) -> None:
        self._cache.keep(rows)
        self.logits = self.logits[rows]

    @torch.no_grad()
    def again(self, row: int, ids: Sequence[int]) -> None:
        cache, logits = self._read([ids])
        self._cache.keys[:, row], self._cache.values[:, row] = cache.keys[:, 0], cache.values[:, 0]
        self._cache.lengths[row] = len(ids)
        self.logits[row] = logits[0]

    def _read(self, prompts: Sequence[Sequence[int]]) -> tuple[Cache, Tensor]:
        device = self._compute.device
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
        ids = torch.zeros(len(prompts), int(lengths.max()), dtype=torch.long)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt)] = torch.tensor(prompt)
        empty = torch.empty(0, dtype=self._compute.dtype, device=device)
        cache = Cache(self._model.config, len(prompts), self._room, empty)
        with self._compute.autocast():
            states = self._model.hidden(ids.to(device), cache)
            cache.lengths.copy_(lengths)  # padding written past a prompt's end is overwritten before it is ever seen
            last = states[torch.arange(len(prompts), device=device), lengths - 1]
            return cache, self._model.head(last).float()
