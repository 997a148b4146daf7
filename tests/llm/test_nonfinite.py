"""The NaN detective: planted faults are named, bundles repeat them, skipping goes on from the right weights."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llm.compute import Compute, ComputeConfig
from llm.errors import WordmillError
from llm.gradients import Batch
from llm.model.config import ModelConfig
from llm.model.transformer import Transformer
from llm.nonfinite import Finding, investigate, replay
from llm.optim.guard import Guard
from llm.pretrain import PretrainConfig, pretrain
from tests.llm.test_training import PRETRAIN, Ramps

pytestmark = pytest.mark.usefixtures("no_peak")
REPO = Path(__file__).parents[2]
NAN = float("nan")


class GoodForwardBadBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0].index_fill(-1, torch.tensor([3]), NAN)


def bad_backward(module: torch.nn.Module) -> None:
    """Make the module's backward pass wrong and leave its forward pass as it is."""
    plain = module.forward
    module.forward = lambda *inputs: plain(GoodForwardBadBackward.apply(inputs[0]), *inputs[1:])


def plant(weight: Tensor, value: float = NAN) -> None:
    with torch.no_grad():
        weight.view(-1)[5] = value


def run(
    model: Transformer, settings: PretrainConfig, compute: Compute, at: Path, batches: Ramps | None = None
) -> list[dict[str, float]]:
    records = pretrain(model, batches or Ramps(), settings, compute, lambda m: {}, lambda m: "", at)
    return [record.values for record in records if "loss" in record.values or "skipped_steps" in record.values]


def find(model: Transformer, compute: Compute) -> Finding | None:
    batch = Batch(0, *(torch.from_numpy(part) for part in Ramps().batch(0)))
    return investigate(model, batch, PRETRAIN, compute, Guard(compute.device, 0, compute.scales_loss))


@pytest.fixture(autouse=True)
def one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches do things to the model here on their way, so none may be prepared ahead of its step."""
    monkeypatch.setattr("llm.pretrain.ahead", lambda load, steps: ((step, load(step)) for step in steps))


@pytest.fixture
def model(tiny_config: ModelConfig) -> Transformer:
    model = Transformer(replace(tiny_config, tie_head=False), 64)
    model.initialise(1)
    return model


def test_a_sound_step_has_no_finding(model: Transformer, compute: Compute) -> None:
    assert find(model, compute) is None


@pytest.mark.parametrize(
    "name",
    [
        "embedding.weight",
        "blocks.0.attention_norm.weight",
        "blocks.0.attention.qkv.weight",
        "blocks.1.attention.out.weight",
        "blocks.1.feed_forward.gate_up.weight",
        "blocks.1.feed_forward.down.weight",
        "norm.weight",
        "head.weight",
    ],
)
@pytest.mark.parametrize("value", [NAN, float("inf")])
def test_a_planted_weight_is_named(model: Transformer, compute: Compute, name: str, value: float) -> None:
    plant(model.get_parameter(name), value)
    finding = find(model, compute)
    assert finding is not None
    assert (finding.phase, f"{finding.module}.{finding.tensor}") == ("forward", name)
    weight = model.get_parameter(name)
    assert finding.shape == tuple(weight.shape)
    bad = finding.nan_share if value != value else finding.inf_share
    assert bad == pytest.approx(1 / weight.numel())
    rest = weight.detach()[weight.detach().isfinite()]
    assert (finding.min, finding.max) == (rest.min().item(), rest.max().item())
    assert finding.mean == pytest.approx(rest.mean().item(), abs=1e-6)


@pytest.mark.parametrize(
    "name", ["blocks.0.feed_forward", "blocks.1.attention.out", "blocks.1.feed_forward_norm", "blocks.0", "norm"]
)
def test_a_fault_in_one_backward_is_named(model: Transformer, compute: Compute, name: str) -> None:
    bad_backward(model.get_submodule(name))
    finding = find(model, compute)
    assert finding is not None
    assert (finding.phase, finding.module, finding.tensor) == ("backward", name, "gradient of input")
    assert finding.nan_share == pytest.approx(1 / finding.shape[-1])


def test_a_fault_between_modules_shows_at_the_next_door(model: Transformer, compute: Compute) -> None:
    """An infinite product of queries and keys, all weights finite: what enters `attention.out` is bad first."""
    with torch.no_grad():
        model.get_parameter("blocks.1.attention.qkv.weight").mul_(1e25)
    finding = find(model, compute)
    assert finding is not None
    assert (finding.phase, finding.module, finding.tensor) == ("forward", "blocks.1.attention.out", "input")


def test_a_norm_that_overflows_names_the_largest_gradient(model: Transformer, compute: Compute) -> None:
    weight = model.get_parameter("blocks.0.attention.out.weight")
    handle = weight.register_hook(lambda gradient: gradient * 1e25)
    finding = find(model, compute)
    handle.remove()
    assert finding is not None
    assert (finding.phase, finding.module) == ("backward", "blocks.0.attention.out")
    assert finding.tensor == "gradient of weight, the largest of those whose squares overflow"


def test_hooks_are_gone_afterwards(model: Transformer, compute: Compute) -> None:
    find(model, compute)
    for module in model.modules():
        hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
        assert not any(hooks)
    assert all(weight.grad is None and not weight._backward_hooks for weight in model.parameters())


def test_training_stops_with_one_line_and_a_bundle_that_repeats_it(
    model: Transformer, compute: Compute, tmp_path: Path
) -> None:
    plant(model.get_parameter("blocks.1.feed_forward.down.weight"))
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    with pytest.raises(WordmillError) as caught:
        run(model, PRETRAIN, compute, tmp_path)
    bundle = tmp_path / "nonfinite-step-0"
    line = str(caught.value)
    assert "\n" not in line
    assert "forward, blocks.1.feed_forward.down, weight (32×48 float32: 0.065% NaN" in line
    assert str(bundle) in line
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight.detach(), before[name], rtol=0, atol=0, equal_nan=True)
    assert sorted(path.name for path in bundle.iterdir()) == [
        "README.md",
        "batch.safetensors",
        "step.json",
        "weights.safetensors",
    ]
    finding = json.loads((bundle / "step.json").read_text())["finding"]
    assert (finding["module"], finding["tensor"]) == ("blocks.1.feed_forward.down", "weight")
    replayed = subprocess.run(
        [sys.executable, "-m", "llm.nonfinite", str(bundle)], cwd=REPO, capture_output=True, text=True, check=True
    )
    assert replayed.stdout.startswith("first: forward, blocks.1.feed_forward.down, weight (32×48 float32: 0.065% NaN")


def test_a_step_in_the_middle_is_stopped_before_it_does_harm(
    model: Transformer, compute: Compute, tmp_path: Path
) -> None:
    """A backward that turns bad at step 5: the weights are those after 5 good steps."""
    good = Transformer(model.config, 64)
    good.load_state_dict(model.state_dict())
    run(good, replace(PRETRAIN, steps=5, schedule="constant", warmup_steps=0), compute, tmp_path / "good")
    settings = replace(PRETRAIN, schedule="constant", warmup_steps=0)
    with pytest.raises(WordmillError, match=r"step 5: .* backward, blocks.0.attention.out, gradient of input"):
        run(model, settings, compute, tmp_path / "bad", Poisoned(lambda: bad_backward(_out(model)), at=5))
    for one, other in zip(model.parameters(), good.parameters(), strict=True):
        assert torch.equal(one, other)


class Poisoned(Ramps):
    """Batches that do something on the way to one step."""

    def __init__(self, act: Callable[[], None], at: int) -> None:
        self.act, self.at = act, at

    def batch(self, step: int) -> Any:
        if step == self.at:
            self.act()
        return super().batch(step)


def _out(model: Transformer) -> torch.nn.Module:
    return model.get_submodule("blocks.0.attention.out")


class Lapses(Ramps):
    """The model is broken during some steps only; their batches are remembered, so that a run can go without them."""

    def __init__(self, model: Transformer, bad: set[int]) -> None:
        self.model, self.bad = model, bad
        self.plain = _out(model).forward

    def batch(self, step: int) -> Any:
        _out(self.model).forward = self.plain
        if step in self.bad:
            bad_backward(_out(self.model))
        return super().batch(step)


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_reference", "muon"])
def test_skipping_goes_on_as_if_the_step_had_not_been(
    model: Transformer, compute: Compute, tmp_path: Path, optimizer: str
) -> None:
    settings = replace(
        PRETRAIN, optimizer=optimizer, schedule="constant", warmup_steps=0, on_nonfinite="skip", max_skips=2
    )
    other = Transformer(model.config, 64)
    other.load_state_dict(model.state_dict())
    values = run(model, settings, compute, tmp_path / "skipping", Lapses(model, {3, 7}))
    assert [v["skipped_steps"] for v in values] == [0, 0, 1, 1, 2, 2, 2]
    assert all(torch.isfinite(torch.tensor(list(v.values()))).all() for v in values)

    class Others(Ramps):
        def batch(self, step: int) -> Any:
            return super().batch([s for s in range(12) if s not in (3, 7)][step])

    run(other, replace(settings, steps=10), compute, tmp_path / "without", Others())
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)


def test_skips_are_bounded(model: Transformer, compute: Compute, tmp_path: Path) -> None:
    settings = replace(PRETRAIN, on_nonfinite="skip", max_skips=2)
    with pytest.raises(WordmillError, match=r"step 9: .* blocks.0.attention.out"):
        run(model, settings, compute, tmp_path, Lapses(model, {3, 7, 9}))


def test_fp16_names_a_fault_that_no_scale_can_mend(tiny_config: ModelConfig, tmp_path: Path) -> None:
    compute = Compute(ComputeConfig(device="cpu", precision="fp16", tf32=False, compile=False, threads=1))
    model = Transformer(tiny_config, 64)
    model.initialise(1)
    bad_backward(_out(model))
    with pytest.raises(WordmillError, match=r"step 16: .* backward, blocks.0.attention.out"):
        run(model, replace(PRETRAIN, steps=40), compute, tmp_path)


def test_a_folder_without_a_bundle_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(WordmillError, match=r"no bundle of a step \(step.json is missing\)"):
        replay(tmp_path)
