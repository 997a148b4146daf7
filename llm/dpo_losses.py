"""What DPO minimises, by name.

With Δ the answer's log π - log π_ref and m = β (Δ_chosen - Δ_rejected) a pair's margin, its loss is

- `sigmoid`: -log σ(m) (Rafailov et al. 2023, arXiv:2305.18290). With label smoothing ε, the share of pairs that are
  believed to stand the wrong way round, -(1 - ε) log σ(m) - ε log σ(-m): conservative DPO (Mitchell 2023);
- `hinge`: max(0, 1 - m) (Zhao et al. 2023, arXiv:2305.10425);
- `ipo`: (δ - 1 / 2β)², δ the difference of the two Δ, each divided by its answer's tokens (Azar et al. 2023,
  arXiv:2310.12036; a mean rather than a sum, as the authors ran it and TRL does). Its β is the paper's τ;
- `sigmoid_norm`: -log σ(β δ): the sigmoid loss that does not care how long answers are (TRL's name for it).
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from llm.dpo_config import LossName


def _sigmoid(ratios: Tensor, lengths: Tensor, beta: float, smoothing: float) -> Tensor:
    margins = beta * ratios[0] - beta * ratios[1]
    return -(1 - smoothing) * F.logsigmoid(margins) - smoothing * F.logsigmoid(-margins)


def _hinge(ratios: Tensor, lengths: Tensor, beta: float, smoothing: float) -> Tensor:
    return torch.relu(1 - beta * (ratios[0] - ratios[1]))


def _ipo(ratios: Tensor, lengths: Tensor, beta: float, smoothing: float) -> Tensor:
    each = ratios / lengths
    return (each[0] - each[1] - 1 / (2 * beta)) ** 2


def _sigmoid_norm(ratios: Tensor, lengths: Tensor, beta: float, smoothing: float) -> Tensor:
    each = ratios / lengths
    return -F.logsigmoid(beta * (each[0] - each[1]))


LOSSES: dict[LossName, Callable[[Tensor, Tensor, float, float], Tensor]] = {
    "sigmoid": _sigmoid,
    "hinge": _hinge,
    "ipo": _ipo,
    "sigmoid_norm": _sigmoid_norm,
}


def preference_loss(name: LossName, ratios: Tensor, lengths: Tensor, beta: float, smoothing: float) -> Tensor:
    """Mean loss over the pairs B.

    `ratios` (2, B) are log π - log π_ref of chosen and rejected answers in nats, `lengths` (2, B) their scored tokens;
    `smoothing` is read by `sigmoid` alone.
    """
    return LOSSES[name](ratios, lengths, beta, smoothing).mean()
