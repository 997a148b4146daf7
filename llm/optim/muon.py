"""Muon (Jordan et al. 2024): momentum, made orthogonal, for the hidden matrices; AdamW for all else.

- The momentum matrix M = U S Vᵀ is replaced by about U Vᵀ: every direction that the gradients agree on moves the same
  way far, not only the loudest. Embeddings, the head, norms and biases are no such maps and stay with AdamW.
- U Vᵀ comes from five odd polynomials of degree five in M, matrix products only. Each is the one that brings the worst
  singular value of those the last left nearest to 1, minimax, as in Polar Express (Amsel et al. 2025,
  arXiv:2505.16932): 0.001 to 1 come to 1 ± 0.13. The coefficients are computed for an interval that is 1 % wider than
  need be, against rounding in bf16; a test derives them anew.
- A fused matrix is a stack of maps with singular values of their own: query, key and value, and gate and up, are taken
  apart first.
- Size of an update: lr · √max(1, rows / columns), Jordan's rule: the change of a layer's outputs is then of the order
  of lr for inputs of size one, whatever the width. Decay is decoupled, as AdamW's.
- Parts of one shape are stacked, and orthogonalised in one batched product: fewer, larger kernels.
- `found_inf` is 1 where the step must not be applied. It is never read on the host: the momentum then keeps all of
  itself, and the rate is 0.
"""

import math
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

from llm.model.config import ModelConfig
from llm.model.feed_forward import SwiGLU
from llm.model.transformer import Attention, Transformer
from llm.optim.adamw import EPS, fuses, groups
from llm.optim.guard import HONOURING

MOMENTUM = 0.95
POLYNOMIALS = (  # a, b, c of a·x + b·x³ + c·x⁵, in the order they are applied
    (8.3869, -24.3713, 17.7264),
    (4.1430, -3.0186, 0.5527),
    (3.9312, -2.8741, 0.5367),
    (3.2828, -2.4166, 0.4865),
    (2.2850, -1.6324, 0.4031),
)


def orthogonalised(matrices: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """About U Vᵀ for each of the matrices U S Vᵀ (N, rows, columns); products in `dtype`."""
    x = matrices.to(dtype)
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT  # the smaller Gram matrix
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)  # no singular value above 1
    for a, b, c in POLYNOMIALS:
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return (x.mT if tall else x).to(matrices.dtype)


def part_sizes(name: str, rows: int, config: ModelConfig) -> list[int]:
    """How many rows each map has that the matrix `name` of a `Transformer` holds."""
    if name.endswith("attention.qkv.weight"):
        keys = config.n_kv_head * config.d_head
        return [rows - 2 * keys, keys, keys]
    if name.endswith("feed_forward.gate_up.weight"):
        return [rows // 2, rows // 2]
    return [rows]


class Muon(torch.optim.Optimizer):
    """One optimizer to the outside: `param_groups`, `state` and `found_inf` hold Muon's matrices and AdamW's rest."""

    def __init__(
        self,
        model: Transformer,
        lr: float,
        muon_lr: float,
        betas: tuple[float, float],
        weight_decay: float,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        named = {n: w for n, w in model.named_parameters() if n.startswith("blocks.") and w.ndim == 2}
        rest = groups(model, lr, weight_decay)
        for group in rest:
            group["params"] = [w for w in group["params"] if not any(w is matrix for matrix in named.values())]
        matrices = {"params": list(named.values()), "weight_decay": weight_decay, "peak": muon_lr, "muon": True}
        super().__init__([matrices, *rest], {"lr": lr, "muon": False})
        # Of parts of another class the rows are not known to be several maps.
        known = {name for name, module in model.named_modules() if type(module) in (Attention, SwiGLU)}
        self.sizes = [
            part_sizes(name, len(weight), model.config) if name.rsplit(".", 2)[0] in known else [len(weight)]
            for name, weight in named.items()
        ]
        self.dtype = dtype
        self.found_inf: Tensor | None = None
        self.rest = torch.optim.AdamW(self.param_groups[1:], lr=lr, betas=betas, eps=EPS, fused=fuses(model))

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Apply the gradients that are there."""
        self._step_matrices(self.param_groups[0])
        # A restored state is a new dict, and so are its groups.
        self.rest.state, self.rest.param_groups = self.state, self.param_groups[1:]
        self.rest.found_inf = self.found_inf  # type: ignore[attr-defined]
        self.rest.step()

    def _step_matrices(self, group: dict[str, Any]) -> None:
        weights: list[Tensor] = group["params"]
        bad = weights[0].new_zeros(()) if self.found_inf is None else self.found_inf
        kept = torch.where(bad > 0, 1.0, MOMENTUM)
        rate = torch.where(bad > 0, 0.0, group["lr"])
        parts: dict[tuple[int, ...], list[tuple[Tensor, Tensor]]] = defaultdict(list)  # by shape: weight, direction
        for weight, sizes in zip(weights, self.sizes, strict=True):
            gradient = weight.grad
            if gradient is None:
                continue
            gradient = torch.where(bad > 0, 0.0, gradient)
            state = self.state[weight]
            if not state:
                state["momentum"] = torch.zeros_like(weight)
            mean = state["momentum"].mul_(kept).add_(gradient * (1 - kept))
            ahead = gradient * (1 - kept) + mean * kept  # Nesterov: where the mean will be
            for piece, direction in zip(weight.split(sizes), ahead.split(sizes), strict=True):
                parts[tuple(piece.shape)].append((piece, direction))
        for (rows, columns), same in parts.items():
            size = rate * math.sqrt(max(1, rows / columns))
            updates = orthogonalised(torch.stack([direction for _, direction in same]), self.dtype)
            for (piece, _), update in zip(same, updates, strict=True):
                piece.mul_(1 - rate * group["weight_decay"]).sub_(update * size)


HONOURING.add(Muon)
