"""Whether torch.compile pays for itself in a run: estimated before it compiles, measured after, and said.

The choice is the user's (`compute.compile`) and not taken here: a run whose form depended on a measured time could give
other bytes the next time. Nothing of the trial stays: its gradients are dropped, and the loop draws no random numbers
that it has not seeded itself.
"""

import time
from collections.abc import Callable

from torch import Tensor

from llm.compute import Compute
from llm.gradients import Batch, backward
from llm.model.transformer import Transformer
from llm.optim.guard import Guard

USUAL_SECONDS = 30.0  # that torch.compile took for small models on two cores (docs/LOG.md)


def trial(
    model: Transformer,
    compiled: Callable[..., Tensor],
    batch: Batch,
    micro_batch_size: int,
    steps: int,
    compute: Compute,
    guard: Guard,
) -> None:
    """Time a batch's gradients by the model as it is and as `compiled`, and print what that means for `steps` steps."""

    def seconds(hidden: Callable[..., Tensor], how: Compute) -> float:
        begun = time.perf_counter()
        loss, _ = backward(model, hidden, batch, micro_batch_size, 0, how, guard)
        loss.item()  # waits for the device
        model.zero_grad()
        return time.perf_counter() - begun

    plain = [seconds(model.hidden, compute.uncompiled()) for _ in range(2)][-1]
    share = USUAL_SECONDS / (plain * steps)
    print(
        f"torch.compile: a step's gradients take {plain:.3f} s without it, {steps} steps' {plain * steps:.0f} s; "
        + (f"it must save {share:.1%} of that to pay for some {USUAL_SECONDS:.0f} s" if share < 1 else "it cannot pay"),
        flush=True,
    )
    first, quick = (seconds(compiled, compute) for _ in range(2))
    cost, gain = first - quick, plain - quick
    saved = gain * steps - cost
    print(
        f"torch.compile: took {cost:.1f} s; a step's gradients now take {quick:.3f} s; over the run it "
        + (f"saves {saved:.0f} s" if saved > 0 else f"loses {-saved:.0f} s: compute.compile: false is faster"),
        flush=True,
    )
