"""Pretraining and DPO: a killed run ends with the bytes of an uninterrupted one; the losses are what papers say."""

import errno
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from llm import checkpoint
from llm.compute import Compute, ComputeConfig
from llm.dpo import DPOConfig, dpo
from llm.errors import ConfigError, WordmillError
from llm.gradients import Batch, backward
from llm.model import folder
from llm.model.config import ModelConfig
from llm.model.transformer import Transformer
from llm.optim.guard import Guard
from llm.pair_scoring import Pairs, WholeAnswers
from llm.pretrain import PretrainConfig, pretrain
from llm.scoring import Segment, pair_logprobs, score
from llm.training_state import Record

pytestmark = pytest.mark.usefixtures("no_peak")

PRETRAIN = PretrainConfig(
    start_from="",
    continue_from="",
    steps=12,
    batch_size=4,
    micro_batch_size=2,
    recompute_activations=False,
    packing="windows",
    mask_documents=False,
    optimizer="adamw",
    lr=1e-2,
    muon_lr=0.02,
    schedule="cosine",
    final_lr_share=0.1,
    warmup_steps=2,
    decay_share=0.25,
    beta1=0.9,
    beta2=0.95,
    weight_decay=0.1,
    grad_clip=1.0,
    on_nonfinite="stop",
    max_skips=0,
    seed=1,
    log_every=2,
    eval_every=4,
    eval_documents=1,
    sample_every=6,
    checkpoint_every=3,
    checkpoints_kept=2,
    parallel="none",
    processes=1,
)
DPO = DPOConfig(
    scope="answers",
    loss="sigmoid",
    label_smoothing=0.0,
    beta=0.1,
    sft_weight=0.0,
    lr=1e-3,
    final_lr_share=0.1,
    warmup_steps=2,
    epochs=2,
    batch_size=4,
    weight_decay=0.0,
    grad_clip=1.0,
    seed=1,
    log_every=1,
    eval_every=4,
    checkpoint_every=3,
)


class Ramps:
    """Sequences that count upwards from a place that is a function of the step: learnable at once."""

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        starts = np.random.default_rng(step).integers(0, 64, 4)
        tokens = (starts[:, None] + np.arange(17)) % 64
        return tokens[:, :-1], tokens[:, 1:]

    def positions(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Two documents in each sequence."""
        return np.repeat(np.arange(16)[None] // 8, 4, axis=0), np.repeat(np.arange(16)[None] % 8, 4, axis=0)


def start_pretraining(
    config: ModelConfig,
    compute: Compute,
    at: Path,
    settings: PretrainConfig = PRETRAIN,
    stopping: Callable[[], bool] = lambda: False,
) -> tuple[Transformer, Iterator[Record]]:
    model = Transformer(config, 64)
    model.initialise(settings.seed)
    return model, pretrain(model, Ramps(), settings, compute, lambda m: {"loss": 1.0}, lambda m: "text", at, stopping)


def start_dpo(
    config: ModelConfig, compute: Compute, at: Path, stopping: Callable[[], bool] = lambda: False
) -> tuple[Transformer, Iterator[Record]]:
    policy = Transformer(replace(config, dropout=0.1), 64)  # which DPO leaves off
    policy.initialise(2)
    return policy, dpo(
        policy, WholeAnswers(ascending_pairs(12, 0)), WholeAnswers(ascending_pairs(6, 1)), DPO, compute, at, stopping
    )


def ascending_pairs(count: int, seed: int) -> Pairs:
    """The chosen answer counts on, the rejected one is noise."""
    random = np.random.default_rng(seed)
    chosen, rejected = [], []
    for start in random.integers(0, 40, count):
        prompt = np.arange(start, start + 5)
        chosen.append(Segment(np.concatenate([prompt, np.arange(start + 5, start + 9)]), 5))
        rejected.append(Segment(np.concatenate([prompt, random.integers(0, 64, 4)]), 5))
    return Pairs(chosen, rejected, cut=0)


@pytest.mark.parametrize("start", [start_pretraining, start_dpo])
@pytest.mark.parametrize("stopped_after", [1, 4, 8])
def test_a_stopped_run_resumes_to_the_same_bytes(
    tiny_config: ModelConfig, compute: Compute, tmp_path: Path, start: object, stopped_after: int
) -> None:
    whole, records = start(tiny_config, compute, tmp_path / "whole")
    expected = [(r.step, r.values, r.text) for r in records]
    _, records = start(tiny_config, compute, tmp_path / "stopped")
    for _ in range(stopped_after):
        next(records)
    records.close()
    resumed, records = start(tiny_config, compute, tmp_path / "stopped")
    assert [(r.step, r.values, r.text) for r in records] == expected
    assert folder.fingerprint(resumed) == folder.fingerprint(whole)


def test_recomputed_activations_change_no_bit(tiny_config: ModelConfig, tmp_path: Path) -> None:
    """With dropout, masks, and products in bf16; and what backward keeps is far less."""
    config = replace(tiny_config, dropout=0.1)
    compute = Compute(ComputeConfig(device="cpu", precision="bf16", tf32=False, compile=False, threads=1))
    ends, kept = [], []

    def count(tensor: torch.Tensor) -> torch.Tensor:
        kept[-1] += tensor.numel()
        return tensor

    for recompute in (False, True):
        settings = replace(PRETRAIN, mask_documents=True, steps=3, recompute_activations=recompute)
        model, records = start_pretraining(config, compute, tmp_path / str(recompute), settings)
        kept.append(0)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            ends.append([(r.step, r.values) for r in records])
        ends.append(folder.fingerprint(model))
    assert ends[:2] == ends[2:]
    assert kept[1] < kept[0] / 3


def test_the_host_waits_for_no_step_that_it_does_not_log(
    tiny_config: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first and the last are looked at; nine steps between them cost as few looks as one. As on a GPU, counted."""
    monkeypatch.setattr(Compute, "in_step", False)
    for precision, optimizer in (("bf16", "adamw"), ("fp16", "adamw"), ("fp32", "muon")):
        compute = Compute(ComputeConfig(device="cpu", precision=precision, tf32=False, compile=False, threads=1))  # type: ignore[arg-type]
        counts = []
        for steps in (3, 11):
            each = dict.fromkeys(("log_every", "eval_every", "sample_every", "checkpoint_every"), 99)
            settings = replace(PRETRAIN, steps=steps, optimizer=optimizer, **each)  # type: ignore[arg-type]
            config = replace(tiny_config, dropout=0.1)
            _, records = start_pretraining(config, compute, tmp_path / f"{precision} {optimizer} {steps}", settings)
            with Looks() as looks:
                assert [record.step for record in records] == [1, steps, steps, steps]
            counts.append(looks.count)
        assert counts[0] == counts[1] > 0


class Looks(TorchDispatchMode):
    """Counts what would make the host wait for a device: values and shapes that depend on values."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.count += name in ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "_unique2")
        return func(*args, **(kwargs or {}))


def test_compiling_is_estimated_measured_and_changes_no_bit(
    tiny_config: ModelConfig, compute: Compute, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    """With a compiler that takes its time and gives the model as it is."""

    def slowly(function: Callable[..., Any]) -> Callable[..., Any]:
        waits = iter([0.3])

        def called(*args: Any, **kwargs: Any) -> Any:
            time.sleep(next(waits, 0))
            return function(*args, **kwargs)

        return called

    monkeypatch.setattr(torch, "compile", slowly)
    compiling = Compute(replace(compute.config, compile=True))
    with monkeypatch.context() as untried:
        untried.setattr("llm.pretrain.trial", lambda *given: None)
        plain, records = start_pretraining(tiny_config, compiling, tmp_path / "plain")
        list(records)
    tried, records = start_pretraining(tiny_config, compiling, tmp_path / "tried")
    list(records)
    assert folder.fingerprint(tried) == folder.fingerprint(plain)
    told = capfd.readouterr().out
    assert re.search(r"a step's gradients take 0\.\d+ s without it, 12 steps' \d+ s; it cannot pay\n", told)
    assert re.search(r"took 0\.[3-9] s; .* loses \d s: compute\.compile: false is faster\n", told)


def test_training_learns_and_shows_healthy_signs(tiny_config: ModelConfig, compute: Compute, tmp_path: Path) -> None:
    _, records = start_pretraining(tiny_config, compute, tmp_path)
    logged = [r.values for r in records if "loss" in r.values]
    assert abs(logged[0]["loss"] - np.log(64)) < 0.3
    assert abs(logged[0]["logit_entropy"] - np.log(64)) < 0.3
    assert logged[-1]["loss"] < logged[0]["loss"] - 0.5
    assert all(1e-5 < values["update_ratio"] < 0.2 for values in logged)
    assert logged[-1]["tokens"] == 12 * 4 * 16


def test_micro_batches_add_up_to_the_batch(tiny_config: ModelConfig, compute: Compute, tmp_path: Path) -> None:
    ends = []
    for micro in (1, 4):
        model = Transformer(tiny_config, 64)
        model.initialise(1)
        config = replace(PRETRAIN, micro_batch_size=micro, steps=3)
        list(pretrain(model, Ramps(), config, compute, lambda m: {}, lambda m: "", tmp_path / str(micro)))
        ends.append(torch.cat([w.detach().flatten() for w in model.parameters()]))
    torch.testing.assert_close(*ends, atol=2e-4, rtol=0)


VARIANTS: dict[str, dict[str, object]] = {
    "adamw_reference": {"optimizer": "adamw_reference"},
    "muon": {"optimizer": "muon"},
    "wsd": {"schedule": "wsd"},
    "masked": {"mask_documents": True},
    "dropout": {},
    "fp16": {},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_learns_and_resumes_to_the_same_bytes(
    tiny_config: ModelConfig, tmp_path: Path, variant: str
) -> None:
    settings = replace(PRETRAIN, **VARIANTS[variant])
    config = replace(tiny_config, dropout=0.1) if variant == "dropout" else tiny_config
    precision = "fp16" if variant == "fp16" else "fp32"
    compute = Compute(ComputeConfig(device="cpu", precision=precision, tf32=False, compile=False, threads=1))
    whole, records = start_pretraining(config, compute, tmp_path / "whole", settings)
    expected = [(r.step, r.values, r.text) for r in records]
    losses = [values["loss"] for _, values, _ in expected if "loss" in values]
    assert losses[-1] < losses[0] - 0.3
    _, records = start_pretraining(config, compute, tmp_path / "stopped", settings)
    assert next(record for record in records if record.step == 8)  # two steps after the checkpoint
    records.close()
    torch.manual_seed(99)  # the state of torch's own generator must not matter
    resumed, records = start_pretraining(config, compute, tmp_path / "stopped", settings)
    again = list(records)
    assert [r.step for r in again if r.resumed] == [1, 2, 4, 4, 6, 6]
    assert [(r.step, r.values, r.text) for r in again] == expected
    assert folder.fingerprint(resumed) == folder.fingerprint(whole)


def test_fp16_trains_as_fp32_does_and_shows_its_scale(tiny_config: ModelConfig, tmp_path: Path) -> None:
    ends = []
    for precision in ("fp32", "fp16"):
        compute = Compute(ComputeConfig(device="cpu", precision=precision, tf32=False, compile=False, threads=1))
        _, records = start_pretraining(tiny_config, compute, tmp_path / precision)
        ends.append([r.values for r in records if "loss" in r.values][-1])
    assert ends[1]["loss"] == pytest.approx(ends[0]["loss"], abs=0.02)
    assert ends[1]["grad_norm"] == pytest.approx(ends[0]["grad_norm"], rel=0.05)
    assert ends[1]["loss_scale"] == 2**16
    assert "loss_scale" not in ends[0]


def test_documents_that_are_masked_do_not_see_each_other(tiny_config: ModelConfig, compute: Compute) -> None:
    """A sequence of two documents costs what the two cost apart, where places do not matter."""
    model = Transformer(replace(tiny_config, position="none"), 64)
    model.initialise(1)
    x, y = (torch.from_numpy(part) for part in Ramps().batch(0))
    guard = Guard(compute.device, 0, scaling=False)
    documents = torch.from_numpy(Ramps().positions(0)[0])
    masked, _ = backward(model, model.hidden, Batch(0, x, y, documents), 4, 1, compute, guard)
    halves = Batch(0, torch.cat([x[:, :8], x[:, 8:]]), torch.cat([y[:, :8], y[:, 8:]]))
    apart, _ = backward(model, model.hidden, halves, 8, 1, compute, guard)
    together, _ = backward(model, model.hidden, Batch(0, x, y), 4, 1, compute, guard)
    assert masked.item() == pytest.approx(apart.item(), abs=1e-6)
    assert abs(masked.item() - together.item()) > 1e-4


@pytest.mark.parametrize("position", ["rope", "learned"])
def test_logprobs_are_those_of_the_whole_softmax(tiny_config: ModelConfig, position: Any, compute: Compute) -> None:
    """Values and gradients, of pairs that share prompts, more than prompts, or all of the shorter one."""
    model = Transformer(replace(tiny_config, position=position), vocab_size=64)
    model.initialise(5)
    start = list(range(3, 9))
    pairs = [((*start, 1, 2), (*start, 4)), ((*start[:3], 9, 8, 7, 6), (*start[:3], 9, 8, 5, 5)), ((9, 8, 7), (9, 8))]
    firsts = (6, 3, 1)
    sides = [[Segment(np.array(pair[i]), first) for pair, first in zip(pairs, firsts, strict=True)] for i in (0, 1)]
    expected = []
    for segment in [*sides[0], *sides[1]]:
        tokens = torch.from_numpy(segment.tokens)
        each = model(tokens[None, :-1])[0].log_softmax(-1)[torch.arange(len(tokens) - 1), tokens[1:]]
        expected.append(each[segment.first - 1 :].sum())
    found = pair_logprobs(model, *sides, compute)
    torch.testing.assert_close(found.flatten(), torch.stack(expected), atol=1e-4, rtol=0)
    weights = torch.tensor([1.0, -2.0, 0.5, 3.0, -1.0, 2.0])
    gradients = [
        torch.autograd.grad(weights @ values, list(model.parameters()), allow_unused=True)
        for values in (found.flatten(), torch.stack(expected))
    ]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    ordered = score(model, [*sides[0], *sides[1]], compute, tokens_at_once=12)
    np.testing.assert_allclose(ordered, torch.stack(expected).detach().numpy(), atol=1e-4)


def test_dpo_starts_at_ln_2_and_prefers_the_chosen(tiny_config: ModelConfig, compute: Compute, tmp_path: Path) -> None:
    _, records = start_dpo(tiny_config, compute, tmp_path)
    held_out = [r.values for r in records if "held_out_loss" in r.values]
    assert held_out[0]["held_out_loss"] == pytest.approx(np.log(2), abs=1e-5)
    assert held_out[0]["held_out_margin"] == pytest.approx(0, abs=1e-5)
    assert held_out[-1]["held_out_loss"] < np.log(2)


def test_dpo_in_fp16_learns_as_in_fp32(tiny_config: ModelConfig, compute: Compute, tmp_path: Path) -> None:
    half = Compute(ComputeConfig(device="cpu", precision="fp16", tf32=False, compile=False, threads=1))
    ends = []
    for name, format in (("fp32", compute), ("fp16", half)):
        _, records = start_dpo(tiny_config, format, tmp_path / name)
        ends.append([r.values for r in records if "margin" in r.values][-1])
    assert ends[1]["grad_norm"] == pytest.approx(ends[0]["grad_norm"], rel=0.05)
    assert ends[1]["loss"] == pytest.approx(ends[0]["loss"], abs=0.01)


def test_dpo_stops_before_a_step_that_is_not_finite(tiny_config: ModelConfig, compute: Compute, tmp_path: Path) -> None:
    policy, records = start_dpo(tiny_config, compute, tmp_path)
    next(records)
    before = [weight.detach().clone() for weight in policy.parameters()]
    policy.norm.weight.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(WordmillError, match=r"step 0: loss or gradient is not finite; lower dpo\.lr"):
        next(records)
    assert all(torch.equal(one, two) for one, two in zip(policy.parameters(), before, strict=True))


def test_dpo_refuses_fewer_pairs_than_a_batch(tiny_model: Transformer, compute: Compute, tmp_path: Path) -> None:
    with pytest.raises(WordmillError, match=r"dpo.batch_size: 4 is more than the 3 training texts"):
        next(
            dpo(
                tiny_model,
                WholeAnswers(ascending_pairs(3, 0)),
                WholeAnswers(ascending_pairs(1, 1)),
                DPO,
                compute,
                tmp_path,
            )
        )


def test_a_checkpoint_from_the_end_of_the_run_needs_no_more_steps(
    tiny_config: ModelConfig, compute: Compute, tmp_path: Path
) -> None:
    whole, records = start_pretraining(tiny_config, compute, tmp_path)
    told = [r.values for r in records]
    again, records = start_pretraining(tiny_config, compute, tmp_path)
    repeated = list(records)
    assert [r.values for r in repeated] == told
    assert all(r.resumed for r in repeated)
    assert folder.fingerprint(again) == folder.fingerprint(whole)


@pytest.mark.parametrize("start", [start_pretraining, start_dpo])
def test_a_stop_between_checkpoints_loses_no_step(
    tiny_config: ModelConfig, compute: Compute, tmp_path: Path, start: Callable[..., Any]
) -> None:
    whole, records = start(tiny_config, compute, tmp_path / "whole")
    expected = [(r.step, r.values, r.text) for r in records]
    asked = iter([False] * 3 + [True])
    _, records = start(tiny_config, compute, tmp_path / "stopped", stopping=lambda: next(asked))
    list(records)
    found = checkpoint.latest(tmp_path / "stopped")
    assert found is not None
    assert found[0] == 4  # of every third
    resumed, records = start(tiny_config, compute, tmp_path / "stopped")
    assert [(r.step, r.values, r.text) for r in records] == expected
    assert folder.fingerprint(resumed) == folder.fingerprint(whole)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 12}, r"continue_from: \S+ is after step 12; raise pretrain\.steps above it"),
        ({"seed": 2}, r"pretrain\.seed: 2, but \S+ holds checkpoints of a run with 1"),
        ({"optimizer": "muon"}, r"pretrain\.optimizer: muon, but \S+ holds checkpoints of a run with adamw"),
        ({"continue_from": "nowhere"}, r"pretrain\.continue_from: nowhere holds no whole checkpoint"),
    ],
)
def test_what_cannot_be_continued_is_refused(
    tiny_config: ModelConfig, compute: Compute, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    list(start_pretraining(tiny_config, compute, tmp_path / "first")[1])
    settings = replace(PRETRAIN, **{"steps": 20, "continue_from": str(tmp_path / "first")} | change)
    with pytest.raises(WordmillError, match=message):
        next(start_pretraining(tiny_config, compute, tmp_path / "second", settings)[1])


@pytest.mark.parametrize(("change", "name"), [({"d_ff": 64}, "feed_forward"), ({"n_layer": 1}, "blocks.1")])
def test_a_checkpoint_of_another_model_is_refused(
    tiny_config: ModelConfig, compute: Compute, tmp_path: Path, change: dict[str, Any], name: str
) -> None:
    _, records = start_pretraining(tiny_config, compute, tmp_path)
    list(records)
    _, records = start_pretraining(replace(tiny_config, **change), compute, tmp_path)
    with pytest.raises(WordmillError, match=rf"holds checkpoints of another model \(.*{name}"):
        next(records)


def test_a_disk_that_fills_up_in_a_checkpoint_loses_nothing(
    tiny_config: ModelConfig, compute: Compute, tmp_path: Path
) -> None:
    """A file system that holds one checkpoint, of step 3, and a part of the next, the best one of step 4."""
    whole, records = start_pretraining(tiny_config, compute, tmp_path / "whole")
    expected = [(r.step, r.values, r.text) for r in records]
    small = tmp_path / "small"
    small.mkdir()
    one = sum(path.stat().st_size for path in (tmp_path / "whole/step-00000009").iterdir())
    mounting = ["mount", "-t", "tmpfs", "-o", f"size={one * 3 // 2}", "tmpfs", str(small)]
    if sys.platform != "linux" or subprocess.run(mounting, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small file system")
    try:
        _, records = start_pretraining(tiny_config, compute, small)
        with pytest.raises(OSError, match="step-00000004") as caught:
            list(records)
        assert caught.value.errno == errno.ENOSPC
        assert [path.name for path in small.iterdir()] == ["step-00000003"]
        subprocess.run(["mount", "-o", f"remount,size={one * 10}", str(small)], check=True)
        resumed, records = start_pretraining(tiny_config, compute, small)
        again = list(records)
        assert again[0].resumed
        assert [(r.step, r.values, r.text) for r in again] == expected
        assert folder.fingerprint(resumed) == folder.fingerprint(whole)
    finally:
        subprocess.run(["umount", "--lazy", str(small)], check=True)  # a tensor may still be mapped


def test_the_best_is_kept_besides_the_newest(tiny_config: ModelConfig, compute: Compute, tmp_path: Path) -> None:
    losses = iter([0.5, 0.2, 0.9])
    model = Transformer(tiny_config, 64)
    model.initialise(1)
    config = replace(PRETRAIN, eval_every=2, checkpoint_every=1, steps=6, checkpoints_kept=1)
    list(pretrain(model, Ramps(), config, compute, lambda m: {"loss": next(losses)}, lambda m: "", tmp_path))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000004", "step-00000006"]
    found = checkpoint.latest(tmp_path)
    assert found is not None
    assert found[2]["best"] == {"step": 4, "val_loss": 0.2}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": -1e-3}, "lr: -0.001 is not positive"),
        ({"steps": 0}, "steps: 0 is not positive"),
        ({"micro_batch_size": 3}, "3 does not divide 4"),
        ({"warmup_steps": 13}, "not between 0 and steps"),
        ({"decay_share": 0.0}, "decay_share: 0.0 is not above 0"),
        ({"muon_lr": 0.0}, "muon_lr: 0.0 is not positive"),
        ({"max_skips": -1}, "max_skips: -1 is negative"),
        ({"beta2": 1.0}, r"not in \[0, 1\)"),
    ],
)
def test_settings_out_of_range_are_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(PRETRAIN, **change)
