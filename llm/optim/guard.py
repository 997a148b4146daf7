"""Whether a step may be applied, and the loss scale of fp16, decided on the device without waiting for it.

To read the loss on the host at every step would drain a GPU's queue at every step. So the verdict is a tensor: the
optimizers take it as `found_inf` and change nothing where it is 1. The host reads it when it waits anyway, to log or
to save.

- A step whose loss or gradient norm is not finite is **skipped**. After the last skip that is allowed the guard
  **freezes**: weights and optimizer stay as they were before that step, whatever comes after, until the host looks.
  Batches being a function of the step, the step can then be repeated exactly.
- fp16 holds nothing above 65,504 nor below 6e-8, so the loss is multiplied by a scale before backward (Micikevicius et
  al. 2018, arXiv:1710.03740): halved when the gradient overflows, doubled after 1,000 steps without. An **overflow** is
  part of that search and no fault: its step is left out, and counted. Only where the loss itself is not finite, or the
  scale has come down to 1, does the model bear the blame.
"""

import torch
from torch import Tensor, nn

FIRST_SCALE = 2.0**16
LARGEST_SCALE = 2.0**24
GROWTH_STEPS = 1000

# Optimizers, besides torch's fused AdamW, that change nothing where `found_inf` is 1, without the host's looking at it.
HONOURING: set[type[torch.optim.Optimizer]] = set()


def apply(optimizer: torch.optim.Optimizer, verdict: Tensor) -> None:
    """Take the step, unless `verdict` is 1.

    Optimizers known to read it on the device get it as `found_inf`. For others the host reads it, and so it does on
    MPS, where some releases of torch ignore it in the fused kernel (pytorch #186360).
    """
    honours = type(optimizer) in HONOURING or (
        type(optimizer) is torch.optim.AdamW and bool(optimizer.defaults.get("fused"))
    )
    if honours and verdict.device.type != "mps":
        optimizer.found_inf = verdict  # type: ignore[attr-defined]
        optimizer.step()
    elif not verdict.item():
        optimizer.step()


class Guard:
    """`state` holds all of it, for checkpoints: scalars on the device, changed in place."""

    def __init__(self, device: torch.device, allowed: int, scaling: bool) -> None:
        self.allowed = allowed  # skipped steps
        self.scaling = scaling  # fp16
        zero = torch.zeros((), dtype=torch.int64, device=device)
        self.state = {
            "scale": torch.tensor(FIRST_SCALE if scaling else 1.0, device=device),
            "calm": zero.clone(),  # steps since the scale changed
            "overflows": zero.clone(),
            "skips": zero.clone(),
            "frozen_at": zero - 1,  # the step that it froze before, from 0
        }

    def scaled(self, loss: Tensor) -> Tensor:
        """The loss to start backward from."""
        return loss * self.state["scale"] if self.scaling else loss

    def unscale(self, model: nn.Module) -> None:
        """Bring gradients of the scaled loss back to their size."""
        if self.scaling:
            torch._foreach_mul_([w.grad for w in model.parameters() if w.grad is not None], 1 / self.state["scale"])

    @torch.no_grad()
    def judge(self, step: int, loss: Tensor, grad_norm: Tensor) -> Tensor:
        """1.0 where `step` must not be applied, else 0.0, on the device: the optimizers' `found_inf`."""
        scale, calm, overflows, skips, frozen_at = self.state.values()
        frozen = frozen_at >= 0
        finite = loss.isfinite() & grad_norm.isfinite()
        overflow = loss.isfinite() & ~grad_norm.isfinite() & (scale > 1) & ~frozen  # scale is 1 if nothing is scaled
        fault = ~finite & ~overflow & ~frozen
        last_straw = fault & (skips >= self.allowed)
        frozen_at.copy_(torch.where(last_straw, step, frozen_at))
        skips += fault & ~last_straw
        overflows += overflow
        if self.scaling:
            calm.copy_(torch.where(overflow, 0, calm + (finite & ~frozen)))
            grown = calm >= GROWTH_STEPS
            calm.masked_fill_(grown, 0)
            scale.mul_(torch.where(grown, 2.0, torch.where(overflow, 0.5, 1.0))).clamp_(1.0, LARGEST_SCALE)
        return (~finite | (frozen_at >= 0)).float()

    def frozen_at(self) -> int | None:
        """The step (from 0) that froze it. Waits for the device."""
        step = int(self.state["frozen_at"].item())
        return None if step < 0 else step

    def figures(self) -> dict[str, float]:
        """What there is to log: nothing where no step can have been left out."""
        figures: dict[str, float] = {}
        if self.allowed:
            figures["skipped_steps"] = float(self.state["skips"].item())
        if self.scaling:
            figures["loss_scale"] = self.state["scale"].item()
            figures["overflows"] = float(self.state["overflows"].item())
        return figures
