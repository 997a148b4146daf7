"""The NaN detective: which module, which tensor, forward or backward, was the first to hold a NaN or an infinity.

A training step whose loss or gradient is not finite is never applied (llm/optim/guard.py), so the weights are those
before it and its batch is a function of the step. Here the step is repeated by the same code, watched:

- every module's inputs and outputs on the way forward, and the gradients that reach and leave it on the way back, in
  the order in which they are computed. The first bad one is the culprit; all that comes after has only caught it.
- a module whose output is bad while its inputs are fine is named; where one of its own weights is bad, that weight is.
- what is done between modules (the attention product, residual sums, the loss) shows at the next module's door: as its
  input, or on the way back as the gradient that reaches its output.

The step is left as a bundle, a folder with weights, batch and settings that repeats it anywhere:

    python -m llm.nonfinite FOLDER [--device cpu]

A compiled model is repeated uncompiled: hooks cannot see into what torch.compile fuses. If the step then is finite,
the report says so, and the compiler is the suspect.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from llm.compute import Compute, ComputeConfig
from llm.devices import as_float64
from llm.errors import WordmillError
from llm.gradients import Batch, backward
from llm.model.config import ModelConfig
from llm.model.transformer import Transformer
from llm.optim.guard import Guard


class Settings(Protocol):
    """What of a `PretrainConfig` a step depends on."""

    @property
    def micro_batch_size(self) -> int: ...
    @property
    def seed(self) -> int: ...


@dataclass(frozen=True)
class Finding:
    """The first bad tensor; shares are of its elements, the other figures of those that are finite."""

    phase: str  # forward or backward
    module: str  # path in the model
    tensor: str  # such as `output`, `weight`, `gradient of weight`
    shape: tuple[int, ...]
    dtype: str
    nan_share: float
    inf_share: float
    min: float | None  # None where no element is finite
    max: float | None
    mean: float | None

    def __str__(self) -> str:
        finite = "nothing finite"
        if self.min is not None:
            finite = f"the rest from {self.min:.3g} to {self.max:.3g}, mean {self.mean:.3g}"
        shape = "×".join(map(str, self.shape)) or "scalar"
        return (
            f"{self.phase}, {self.module}, {self.tensor} ({shape} {self.dtype}: "
            f"{100 * self.nan_share:.2g}% NaN, {100 * self.inf_share:.2g}% infinite, {finite})"
        )


def report(model: Transformer, batch: Batch, settings: Settings, compute: Compute, guard: Guard, folder: Path) -> str:
    """Repeat the step of `batch` from the weights as they are, write its bundle under `folder`; one line for the user.

    The model's gradients are lost.
    """
    finding = investigate(model, batch, settings, compute, guard)
    bundle = folder / f"nonfinite-step-{batch.step}"
    _write(bundle, model, batch, settings, compute, guard, finding)
    found = f"; first in {finding}" if finding else ", but all of it is when repeated"
    if finding is None and compute.config.compile:
        found += " without torch.compile"
    return (
        f"step {batch.step}: loss or gradient is not finite{found}; `python -m llm.nonfinite {bundle}` repeats it; "
        "lower pretrain.lr, or leave such steps out with pretrain.on_nonfinite: skip"
    )


def investigate(model: Transformer, batch: Batch, settings: Settings, compute: Compute, guard: Guard) -> Finding | None:
    """The first bad tensor of the step, or None if all of it is finite. The model's gradients are lost."""
    model.zero_grad()
    as_it_is = compute.uncompiled()
    with _watched(model) as findings:
        loss, _ = backward(model, model.hidden, batch, settings.micro_batch_size, settings.seed, as_it_is, guard)
        guard.unscale(model)
    if not loss.isfinite() and (not findings or findings[0].phase == "backward"):
        # The head's product and the loss are one function, not a module.
        findings[:0] = [_bad_parameter(model.head, "head") or _finding("forward", "head", "loss", loss)]
    if not findings:
        findings += _summed(model)
    model.zero_grad()
    return findings[0] if findings else None


def _summed(model: nn.Module) -> list[Finding]:
    """What only shows in sums: over the micro-batches, or over the squares of the gradient's norm."""
    gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    norms = {name: torch.linalg.vector_norm(gradient) for name, gradient in gradients.items()}
    if torch.linalg.vector_norm(torch.stack(list(norms.values()))).isfinite():
        return []
    bad = [name for name, gradient in gradients.items() if not gradient.isfinite().all()]
    name = bad[0] if bad else max(gradients, key=lambda name: gradients[name].abs().max().item())
    module, _, tensor = name.rpartition(".")
    what = "summed over the batch" if bad else "the largest of those whose squares overflow"
    return [_finding("backward", module, f"gradient of {tensor}, {what}", gradients[name])]


@contextmanager
def _watched(model: nn.Module) -> Iterator[list[Finding]]:
    """Within, the list fills with what goes wrong in `model`, in order; its first entry is the culprit."""
    findings: list[Finding] = []

    def look(phase: str, module: str, tensor: str, value: Any) -> None:
        if findings:
            return
        for each in value if isinstance(value, tuple | list) else (value,):
            if isinstance(each, Tensor) and each.is_floating_point() and not each.isfinite().all():
                findings.append(_finding(phase, module, tensor, each))
                return

    def enter(name: str, module: nn.Module, inputs: Any) -> None:
        look("forward", name, "input", inputs[:1])  # the states; a mask that comes with them may hold infinities

    def leave(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        if not findings and (own := _bad_parameter(module, name)) is not None:
            findings.append(own)
        look("forward", name, "output", output)

    def enter_backward(name: str, module: nn.Module, gradients: Any) -> None:
        look("backward", name, "gradient of output", gradients)

    def leave_backward(name: str, module: nn.Module, to_inputs: Any, to_outputs: Any) -> None:
        look("backward", name, "gradient of input", to_inputs)

    def reach(name: str, tensor: str, gradient: Tensor) -> None:
        look("backward", name, f"gradient of {tensor}", gradient)

    with ExitStack() as hooks:
        for name, module in model.named_modules():
            handles = [
                module.register_forward_pre_hook(partial(enter, name)),
                module.register_forward_hook(partial(leave, name)),
            ]
            if not isinstance(module, nn.Embedding):  # its inputs are ids, which have no gradient
                handles += [
                    module.register_full_backward_pre_hook(partial(enter_backward, name)),
                    module.register_full_backward_hook(partial(leave_backward, name)),
                ]
            for handle in handles:
                hooks.callback(handle.remove)
        for name, weight in model.named_parameters():
            module_name, _, tensor = name.rpartition(".")
            hooks.callback(weight.register_hook(partial(reach, module_name, tensor)).remove)
        yield findings


def _bad_parameter(module: nn.Module, name: str) -> Finding | None:
    for tensor, weight in module.named_parameters(recurse=False):
        if not weight.isfinite().all():
            return _finding("forward", name, tensor, weight)
    return None


def _finding(phase: str, module: str, tensor: str, value: Tensor) -> Finding:
    value = value.detach()
    finite = as_float64(value[value.isfinite()])
    return Finding(
        phase=phase,
        module=module,
        tensor=tensor,
        shape=tuple(value.shape),
        dtype=str(value.dtype).removeprefix("torch."),
        nan_share=value.isnan().float().mean().item(),
        inf_share=value.isinf().float().mean().item(),
        min=finite.min().item() if len(finite) else None,
        max=finite.max().item() if len(finite) else None,
        mean=finite.mean().item() if len(finite) else None,
    )


README = """# A training step that was not finite

Step {step} (counted from 0). First: {finding}.

`weights.safetensors` holds the weights before the step, `batch.safetensors` the token ids it trained on, `step.json`
the settings and the finding. To repeat the step, with wordmill installed:

    python -m llm.nonfinite {folder}
"""


def _write(
    folder: Path,
    model: Transformer,
    batch: Batch,
    settings: Settings,
    compute: Compute,
    guard: Guard,
    finding: Finding | None,
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: weight.detach().cpu().contiguous() for name, weight in model.named_parameters()}
    save_file(weights, folder / "weights.safetensors")
    tokens = {"inputs": batch.inputs, "targets": batch.targets}
    for name in ("documents", "places"):
        if (given := getattr(batch, name)) is not None:
            tokens[name] = given
    save_file({name: ids.cpu().contiguous() for name, ids in tokens.items()}, folder / "batch.safetensors")
    content = {
        "step": batch.step,
        "micro_batch_size": settings.micro_batch_size,
        "seed": settings.seed,
        "vocab_size": model.vocab_size,
        "model": asdict(model.config),
        "compute": asdict(compute.config) | {"device": compute.device.type},
        "loss_scale": guard.state["scale"].item(),
        "finding": asdict(finding) if finding else None,
    }
    (folder / "step.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    text = README.format(step=batch.step, finding=finding or "nothing, when it was repeated", folder=folder)
    (folder / "README.md").write_text(text, encoding="utf-8")


@dataclass(frozen=True)
class _Saved:
    micro_batch_size: int
    seed: int


def replay(folder: Path, device: str | None = None) -> Finding | None:
    """Repeat the step of a bundle, on its own kind of device or another. Raises WordmillError."""
    try:
        content = json.loads((folder / "step.json").read_text(encoding="utf-8"))
        weights = load_file(folder / "weights.safetensors")
        tokens = load_file(folder / "batch.safetensors")
    except FileNotFoundError as error:
        raise WordmillError(f"{folder}: no bundle of a step ({Path(str(error.filename)).name} is missing)") from None
    compute = Compute(ComputeConfig(**(content["compute"] | {"device": device or content["compute"]["device"]})))
    model = Transformer(ModelConfig(**content["model"]), content["vocab_size"])
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(weights[name])
    model.to(compute.device).train()
    guard = Guard(compute.device, 0, compute.scales_loss)
    guard.state["scale"].fill_(content["loss_scale"])
    here = {name: ids.to(compute.device) for name, ids in tokens.items()}
    batch = Batch(content["step"], here["inputs"], here["targets"], here.get("documents"), here.get("places"))
    return investigate(model, batch, _Saved(content["micro_batch_size"], content["seed"]), compute, guard)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m llm.nonfinite", description="Repeat a step that was not finite.")
    parser.add_argument("folder", type=Path, help="the bundle: …/nonfinite-step-N")
    parser.add_argument("--device", choices=["cpu", "cuda", "mps"], help="another device than the run's")
    given = parser.parse_args()
    try:
        finding = replay(given.folder, given.device)
    except WordmillError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    print(f"first: {finding}" if finding else "every tensor of the step is finite here")


if __name__ == "__main__":
    main()
