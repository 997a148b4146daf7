"""AdamW and the learning-rate schedule.

AdamW (Loshchilov & Hutter 2019) is torch's fused kernel. Weight decay applies to matrices and not to the norms'
gains. The schedule rises linearly over the warm-up and falls along a cosine to a share of its peak.
"""

import math

import torch
from torch import nn


def adamw(model: nn.Module, lr: float, betas: tuple[float, float], weight_decay: float) -> torch.optim.AdamW:
    """The optimizer for `model`: decay on tensors of two and more dimensions only."""
    weights = list(model.parameters())
    groups = [
        {"params": [w for w in weights if w.ndim >= 2], "weight_decay": weight_decay},
        {"params": [w for w in weights if w.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=1e-8, fused=True)


def cosine(step: int, steps: int, warmup: int, lr: float, final_share: float) -> float:
    """Learning rate of step `step` (from 0) of `steps`: linear over `warmup`, then a cosine to `lr * final_share`."""
    if step < warmup:
        return lr * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - 1 - warmup)
    return lr * (final_share + (1 - final_share) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))
