"""Optimizers by name. Each is made from the same settings and takes what it needs."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from llm.model.transformer import Transformer
from llm.optim.adamw import AdamWReference, adamw, groups
from llm.optim.muon import Muon


@dataclass(frozen=True)
class Settings:
    lr: float  # peak learning rate
    muon_lr: float  # that of the matrices that Muon moves
    betas: tuple[float, float]  # AdamW's
    weight_decay: float
    dtype: torch.dtype  # of products inside an optimizer, where rounding is harmless


def _adamw(model: Transformer, settings: Settings) -> torch.optim.Optimizer:
    return adamw(model, settings.lr, settings.betas, settings.weight_decay)


def _adamw_reference(model: Transformer, settings: Settings) -> torch.optim.Optimizer:
    return AdamWReference(groups(model, settings.lr, settings.weight_decay), settings.lr, settings.betas)


def _muon(model: Transformer, settings: Settings) -> torch.optim.Optimizer:
    return Muon(model, settings.lr, settings.muon_lr, settings.betas, settings.weight_decay, settings.dtype)


OPTIMIZERS: dict[str, Callable[[Transformer, Settings], torch.optim.Optimizer]] = {
    "adamw": _adamw,
    "adamw_reference": _adamw_reference,
    "muon": _muon,
}
