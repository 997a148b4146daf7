"""Loss and gradients of one batch: what a training step does before it changes anything.

Apart from the loop, so that the detective of llm/nonfinite.py repeats a step by the very same code.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from llm.compute import Compute
from llm.loss import next_token_loss
from llm.model.attention import cudnn_is_right
from llm.model.positions import Rope, Unplaced
from llm.model.transformer import Transformer
from llm.optim.guard import Guard


@dataclass(frozen=True)
class Batch:
    """What step `step` trains on: inputs and targets (rows, T) int64, on the model's device."""

    step: int
    inputs: Tensor
    targets: Tensor
    documents: Tensor | None = None  # (batch_size, T) int64: a position sees only those of equal number; None: all
    places: Tensor | None = None  # (batch_size, T) int64, with documents: where each token stands in its own
    first: int = 0  # row of the whole batch that this begins with, where several processes share one


def needs_places(model: Transformer) -> bool:
    """Whether masked documents need each token's place in its own document.

    In evaluation a document begins at place 0, so it must in training. RoPE depends on distances alone.
    """
    return type(model.position) not in (Rope, Unplaced)


def backward(
    model: Transformer,
    hidden: Callable[..., Tensor],
    batch: Batch,
    micro_batch_size: int,
    seed: int,
    compute: Compute,
    guard: Guard,
    around: Callable[[bool], AbstractContextManager[None]] = lambda last: nullcontext(),
) -> tuple[Tensor, Tensor]:
    """Add the gradients of `batch` to the model's; its mean loss, and the last sequences' states (B, T, D).

    `hidden` is the model's, as it is or compiled. Gradients are those of the mean over the batch, whatever the size of
    a micro-batch, times the guard's loss scale. `around` surrounds each of these, told whether it is the last.
    """
    loss = torch.zeros((), device=compute.device)
    batch_size = len(batch.inputs)
    packed = {"documents": batch.documents, "places": batch.places}
    free = compute.device.type == "cuda" and not compute.config.deterministic
    cudnn = free and cudnn_is_right(model.config, batch.documents is not None, compute.device)
    for start in range(0, batch_size, micro_batch_size):
        rows = slice(start, start + micro_batch_size)
        x, y = batch.inputs[rows], batch.targets[rows]
        if model.config.dropout > 0:
            torch.manual_seed(dropout_seed(seed, batch.step, (batch.first + start) // micro_batch_size))
        given = {name: each[rows] for name, each in packed.items() if each is not None}
        with around(start + micro_batch_size >= batch_size), compute.fixed_shapes(cudnn):
            with compute.autocast():
                states = hidden(x, **given)
                part = next_token_loss(states, model.head.weight, y, compute.config.compile) * (len(x) / batch_size)
            guard.scaled(part).backward()
        loss += part.detach()
    return loss, states


def dropout_seed(seed: int, step: int, index: int) -> int:
    """A seed for torch of its own for each micro-batch of each step, so that a resumed run drops the same."""
    return int(np.random.SeedSequence([seed, step, index]).generate_state(1, np.uint64)[0] >> 1)
