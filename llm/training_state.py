"""What a training tells, keeps in its checkpoints, and takes up again from them; the same for pretraining and DPO.

A checkpoint holds the weights, the optimizer's state, the guard's, the step and the records so far. No random
generator's state is in it, since none is needed: batches and what dropout drops are functions of (seed, step).
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llm import checkpoint
from llm.errors import WordmillError
from llm.model.transformer import Transformer
from llm.parallel import share

BEFORE = {"model.head_dim": 0}  # settings that checkpoints from before they existed do not name, and their value then


@dataclass(frozen=True)
class Record:
    """What there is to tell after `step` finished steps."""

    step: int
    values: dict[str, float] = field(default_factory=dict)  # functions of data and settings: the same on every run
    machine: dict[str, float] = field(default_factory=dict)  # speeds and memory: different on every run
    text: str = ""  # a sample
    resumed: bool = False  # told before, by the run that this one goes on from


def best(records: Iterable[Record], figure: str) -> int | None:
    """The step at which `figure`, a loss, was least; None where there is none."""
    found = [(record.values[figure], record.step) for record in records if figure in record.values]
    return min(found)[1] if found else None


def save(
    writer: checkpoint.Writer,
    step: int,
    tensors: Mapping[str, Tensor],
    records: list[Record],
    loss: str,
    settings: Mapping[str, Any],
    origin: Mapping[str, Any] | None = None,
    besides: Collection[int] = (),
) -> None:
    """A checkpoint after `step` steps; that of the step with the least `loss` is kept for as long as it is so.

    `settings` are those without which it could not be gone on from, `origin` says what its state has a meaning with
    (`restore`). `besides` are the steps of checkpoints that stay, whatever their age.
    """
    least = best(records, loss)
    known = {} if least is None else {"step": least, loss: min(r.values[loss] for r in records if loss in r.values)}
    told = [asdict(record) for record in records]
    state = {"settings": dict(settings), "origin": dict(origin or {}), "best": known, "records": told}
    writer.write(step, tensors, state, {*besides, *(() if least is None else (least,))})


def saved_tensors(
    model: Transformer, optimizer: torch.optim.Optimizer, guard: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Weights, optimizer state and the guard's under flat names, as a checkpoint holds them."""
    tensors: dict[str, Tensor] = {f"model.{name}": weight for name, weight in model.named_parameters()}
    for index, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            if not isinstance(value, Tensor):
                raise WordmillError(
                    f"checkpoints hold tensors, and {type(optimizer).__name__} keeps {key} as {type(value).__name__}"
                )
            tensors[f"optimizer.{index}.{key}"] = value
    return tensors | {f"guard.{name}": value for name, value in guard.items()}


def restore(
    model: Transformer,
    optimizer: torch.optim.Optimizer,
    folder: Path,
    guard: Mapping[str, Tensor],
    settings: Mapping[str, Any],
    origin: Mapping[str, Any] | None = None,
) -> tuple[int, list[Record]]:
    """Put the newest checkpoint's state into model, optimizer and guard; its step and records, or 0 and none.

    `origin` names what the state has a meaning with: the model's settings, the tokenizer, the shards. Raises
    WordmillError where the checkpoint is of another origin, of a model of another shape, or of other `settings`.
    """
    found = checkpoint.latest(folder)
    if found is None:
        return 0, []
    step, tensors, state = found
    if origin:
        _check_origin(folder, state.get("origin") or {}, origin)
    here = {f"model.{name}": tuple(weight.shape) for name, weight in model.named_parameters()}
    there = {name: tuple(tensor.shape) for name, tensor in tensors.items() if name.startswith("model.")}
    if here != there:
        name = next(name for name in {**here, **there} if here.get(name) != there.get(name))
        raise WordmillError(
            f"{folder}: holds checkpoints of another model ({name.removeprefix('model.')} is "
            f"{there.get(name, 'not there')}, here {here.get(name, 'not there')}); name an empty folder"
        )
    for name, value in settings.items():
        if state["settings"][name] != value:
            raise WordmillError(
                f"pretrain.{name}: {value}, but {folder} holds checkpoints of a run with {state['settings'][name]}"
            )
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(share(tensors[f"model.{name}"], weight))
    saved = optimizer.state_dict()
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]  # as its state counts them
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".")
            saved["state"].setdefault(int(index), {})[key] = share(tensor, weights[int(index)])
    optimizer.load_state_dict(saved)
    for name, value in guard.items():
        value.copy_(tensors[f"guard.{name}"])
    print(f"resuming after step {step}", flush=True)
    return step, [Record(**{**record, "resumed": True}) for record in state["records"]]


def _check_origin(folder: Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Raises WordmillError with what differs. A checkpoint of an older version does not say its origin."""
    if not there:
        print(f"{folder}: an older version wrote it, so only its shapes and few settings can be compared", flush=True)
        return
    there = {**BEFORE, **there}
    other = [f"{name} is {there.get(name)}, here {value}" for name, value in here.items() if there.get(name) != value]
    if other:
        raise WordmillError(
            f"pretrain.continue_from: {folder} holds the state of another training, which means nothing here: "
            f"{'; '.join(other)}; set these back, or begin anew with continue_from: ''"
        )
