"""Pairs of sequences that begin alike, as one row of tokens: what they share is there once, and padding not at all.

All of a transformer but attention treats each token by itself, so for all of it the tokens of many sequences may stand
in one row (1, N). For attention alone they are laid out as sequences again, each with its own copy of the shared
beginning, and what attention finds for a token is read back once. Causal attention finds the same for both copies, so
the result is that of two separate passes, for the tokens of one and a part. Any kind of attention will do.

Laying out and reading back are gathers in both directions: their gradients by autograd would be sums by index, which a
CPU adds one row at a time.

Shapes: N tokens of the row, S = 2 · pairs sequences, T tokens of the longest, H heads, E head width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llm.devices import LENGTHS, rounded_up


@dataclass(frozen=True)
class _Places:
    """Where the heads' vectors stand, (N, H) in the row and (S, H, T) in the sequences, both counted flat."""

    sources: Tensor  # (S·H·T,) into the row; padding is some token's copy, which is never read
    firsts: Tensor  # (N·H,) into the sequences
    shared: Tensor  # into the row: what has a second copy, and
    seconds: Tensor  # into the sequences: that copy


class Packing:
    """`pairs` of token ids, each of 1 or more; the first sequences of all pairs come before the second ones."""

    def __init__(self, pairs: Sequence[tuple[np.ndarray, np.ndarray]], device: torch.device) -> None:
        sequences = [one for one, _ in pairs] + [other for _, other in pairs]
        S, T = len(sequences), rounded_up(max(map(len, sequences)), LENGTHS, device)
        self.sources = np.zeros((S, T), dtype=np.int64)  # which token of the row stands there
        self._firsts: list[np.ndarray] = []
        self._shared: list[np.ndarray] = []
        self._seconds: list[np.ndarray] = []
        ids, positions, count = [], [], 0
        for row, tokens in enumerate(sequences):
            partner = row - len(pairs)  # that stands in the row already
            common = shared_length(tokens, sequences[partner]) if partner >= 0 else 0
            own = np.arange(common, len(tokens))
            self.sources[row, :common] = self.sources[partner, :common]
            self.sources[row, own] = count + np.arange(len(own))
            self._firsts.append(row * T + own)
            self._shared.append(self.sources[row, :common])
            self._seconds.append(row * T + np.arange(common))
            ids.append(tokens[common:])
            positions.append(own)
            count += len(own)
        self.device = device
        self.ids = torch.from_numpy(np.concatenate(ids)[None]).to(device)  # (1, N)
        self.positions = torch.from_numpy(np.concatenate(positions)[None]).to(device)  # (1, N), each in its sequence
        self._by_heads: dict[int, _Places] = {}

    def lay_out(self, x: Tensor) -> Tensor:
        """Vectors of the row's tokens (1, H, N, E) as those of the sequences, (S, H, T, E)."""
        H, E = x.shape[1], x.shape[3]
        S, T = self.sources.shape
        return _LayOut.apply(x.transpose(1, 2).reshape(-1, E), self._places(H)).view(S, H, T, E)

    def read_back(self, y: Tensor) -> Tensor:
        """Vectors of the sequences (S, H, T, E) as those of the row's tokens, (1, N, H·E)."""
        H, E = y.shape[1], y.shape[3]
        return _ReadBack.apply(y.reshape(-1, E), self._places(H)).view(1, -1, H * E)

    def _places(self, H: int) -> _Places:
        if H not in self._by_heads:
            T = self.sources.shape[1]
            heads = np.arange(H)

            def in_row(tokens: np.ndarray) -> np.ndarray:
                return (tokens[:, None] * H + heads).ravel()

            def in_sequences(flat: np.ndarray) -> np.ndarray:
                return ((flat // T * H)[:, None] * T + heads * T + (flat % T)[:, None]).ravel()

            arrays = (
                (self.sources[:, None] * H + heads[:, None]).ravel(),
                in_sequences(np.concatenate(self._firsts)),
                in_row(np.concatenate(self._shared)),
                in_sequences(np.concatenate(self._seconds)),
            )
            self._by_heads[H] = _Places(*(torch.from_numpy(array).to(self.device) for array in arrays))
        return self._by_heads[H]


def shared_length(one: np.ndarray, other: np.ndarray) -> int:
    """How many tokens both begin with."""
    shorter = min(len(one), len(other))
    parting = np.flatnonzero(one[:shorter] != other[:shorter])
    return int(parting[0]) if len(parting) else shorter


class _LayOut(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, places: _Places) -> Tensor:
        ctx.places = places
        return x[places.sources]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        places, gradient = ctx.places, grads[0]
        summed = gradient[places.firsts]
        summed[places.shared] += gradient[places.seconds]
        return summed, None


class _ReadBack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, places: _Places) -> Tensor:
        ctx.places, ctx.rows = places, len(y)
        return y[places.firsts]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        gradient = grads[0].new_zeros(ctx.rows, grads[0].shape[1])
        gradient[ctx.places.firsts] = grads[0]
        return gradient, None
