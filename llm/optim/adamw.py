"""AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) twice: torch's fused kernel, and by hand for reading.

- Decay is decoupled: it shrinks the weight and never enters the moments, so it does not depend on the gradient's size.
- Matrices decay. Norms' gains and biases do not: they set scales, and nothing grows without bound through them.
- ε is 1e-8, as in the paper.
- A step is skipped, state and all, where `found_inf` is 1: the sign that torch's fused kernels read on the device.
"""

from typing import Any

import torch
from torch import Tensor, nn

from llm.optim.guard import HONOURING

EPS = 1e-8


def groups(model: nn.Module, lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """Parameters with decay and without it. `peak` is the rate that a schedule scales, group by group."""
    weights = list(model.parameters())
    return [
        {"params": [w for w in weights if w.ndim >= 2], "weight_decay": weight_decay, "peak": lr},
        {"params": [w for w in weights if w.ndim < 2], "weight_decay": 0.0, "peak": lr},
    ]


def adamw(model: nn.Module, lr: float, betas: tuple[float, float], weight_decay: float) -> torch.optim.AdamW:
    """The optimizer for `model`: decay on tensors of two and more dimensions only."""
    return torch.optim.AdamW(groups(model, lr, weight_decay), lr=lr, betas=betas, eps=EPS, fused=fuses(model))


def fuses(model: nn.Module) -> bool:
    """Whether torch's fused kernel is used: everywhere but on MPS, where some releases ignore `found_inf`."""
    return all(weight.device.type != "mps" for weight in model.parameters())


class AdamWReference(torch.optim.Optimizer):
    """AdamW as the paper's algorithm 2 has it, one tensor at a time.

    w ← w - lr · decay · w
    m ← β₁ m + (1 - β₁) g            mean of the gradients
    v ← β₂ v + (1 - β₂) g²           mean of their squares
    w ← w - lr · m̂ / (√v̂ + ε)        m̂ = m / (1 - β₁ᵗ), v̂ = v / (1 - β₂ᵗ): both means began at 0
    """

    def __init__(self, parameters: list[dict[str, Any]], lr: float, betas: tuple[float, float]) -> None:
        super().__init__(parameters, {"lr": lr, "betas": betas, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Apply the gradients that are there."""
        found_inf: Tensor | None = getattr(self, "found_inf", None)
        if found_inf is not None and found_inf.item():
            return
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state |= {"step": torch.zeros(()), "m": torch.zeros_like(weight), "v": torch.zeros_like(weight)}
                state["step"] += 1
                t, m, v = state["step"].item(), state["m"], state["v"]
                weight -= group["lr"] * group["weight_decay"] * weight
                m.copy_(beta1 * m + (1 - beta1) * weight.grad)
                v.copy_(beta2 * v + (1 - beta2) * weight.grad.square())
                m_hat, v_hat = m / (1 - beta1**t), v / (1 - beta2**t)
                weight -= group["lr"] * m_hat / (v_hat.sqrt() + EPS)


HONOURING.add(AdamWReference)
