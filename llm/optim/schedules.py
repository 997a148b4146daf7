"""Learning rates by name: each a function of the step alone, so that a resumed run is on its original schedule.

All rise linearly over the warm-up, and reach their peak `lr` at its last step.

- `cosine`: half a cosine from the peak to `final_share` of it (Loshchilov & Hutter 2017).
- `wsd`: warm-up, stable, decay. Stays at the peak and falls along a line over the last `decay_share` of all steps (Hu
  et al. 2024, MiniCPM; Hägele et al. 2024). A longer run shares its beginning with a shorter one.
- `constant`: stays at the peak.
"""

import math
from collections.abc import Callable

Schedule = Callable[[int, int, int, float, float, float], float]


def cosine(step: int, steps: int, warmup: int, lr: float, final_share: float, decay_share: float = 1.0) -> float:
    """Learning rate of step `step` (from 0) of `steps`; it decays over all that follows the warm-up."""
    if step < warmup:
        return lr * (step + 1) / warmup
    falling = steps - 1 - warmup  # steps after the first one at the peak
    # Where none is left the last step is at the end of the fall, unless it is the only one.
    progress = (step - warmup) / falling if falling > 0 else float(warmup > 0)
    return lr * (final_share + (1 - final_share) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def wsd(step: int, steps: int, warmup: int, lr: float, final_share: float, decay_share: float) -> float:
    """Learning rate of step `step` (from 0) of `steps`: at `lr * final_share` in the last one."""
    if step < warmup:
        return lr * (step + 1) / warmup
    decaying = decay_steps(steps, warmup, decay_share)
    if step < steps - decaying:
        return lr
    return lr * (1 - (1 - final_share) * (step + 1 - (steps - decaying)) / decaying)


def decay_steps(steps: int, warmup: int, decay_share: float) -> int:
    """wsd: how many steps the rate falls for, at the end."""
    return min(round(decay_share * steps), steps - warmup)


def constant(step: int, steps: int, warmup: int, lr: float, final_share: float, decay_share: float = 0.0) -> float:
    """Learning rate of step `step` (from 0): the peak, once it is reached; the shares are not used."""
    return lr * (step + 1) / warmup if step < warmup else lr


SCHEDULES: dict[str, Schedule] = {"cosine": cosine, "wsd": wsd, "constant": constant}
