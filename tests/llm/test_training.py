"""Pretraining and DPO: a killed run ends with the bytes of an uninterrupted one; the losses are what papers say."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from llm import checkpoint, optim
from llm.compute import Compute
from llm.dpo import DPOConfig, Pairs, dpo, sigmoid_loss
from llm.errors import ConfigError, WordmillError
from llm.model import folder
from llm.model.config import ModelConfig
from llm.model.transformer import Transformer
from llm.pretrain import PretrainConfig, Record, pretrain
from llm.scoring import Segment, logprobs, score

PRETRAIN = PretrainConfig(
    steps=12,
    batch_size=4,
    micro_batch_size=2,
    packing="windows",
    lr=1e-2,
    final_lr_share=0.1,
    warmup_steps=2,
    beta1=0.9,
    beta2=0.95,
    weight_decay=0.1,
    grad_clip=1.0,
    seed=1,
    log_every=2,
    eval_every=4,
    eval_documents=1,
    sample_every=6,
    checkpoint_every=3,
)
DPO = DPOConfig(
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


def start_pretraining(config: ModelConfig, compute: Compute, at: Path) -> tuple[Transformer, Iterator[Record]]:
    model = Transformer(config, 64)
    model.initialise(PRETRAIN.seed)
    return model, pretrain(model, Ramps(), PRETRAIN, compute, lambda m: {"loss": 1.0}, lambda m: "text", at)


def start_dpo(config: ModelConfig, compute: Compute, at: Path) -> tuple[Transformer, Iterator[Record]]:
    policy = Transformer(config, 64)
    policy.initialise(2)
    return policy, dpo(policy, ascending_pairs(12, 0), ascending_pairs(6, 1), DPO, compute, at)


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


def test_schedule_has_the_stated_corners() -> None:
    rates = [optim.cosine(step, 100, 10, 1.0, 0.1) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == pytest.approx(1.0)
    assert rates[99] == pytest.approx(0.1)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_only_matrices_decay(tiny_model: Transformer) -> None:
    decayed, kept = optim.adamw(tiny_model, 1e-3, (0.9, 0.99), 0.1).param_groups
    assert decayed["weight_decay"] == 0.1
    assert kept["weight_decay"] == 0.0
    assert {w.ndim for w in kept["params"]} == {1}
    assert len(decayed["params"]) + len(kept["params"]) == len(list(tiny_model.parameters()))


def test_logprobs_are_those_of_the_whole_softmax(tiny_model: Transformer, compute: Compute) -> None:
    segments = [Segment(np.arange(3, 3 + n), first) for n, first in ((10, 4), (5, 1), (17, 16))]
    expected = []
    for segment in segments:
        tokens = torch.from_numpy(segment.tokens)
        each = tiny_model(tokens[None, :-1])[0].log_softmax(-1)[torch.arange(len(tokens) - 1), tokens[1:]]
        expected.append(each[segment.first - 1 :].sum())
    torch.testing.assert_close(logprobs(tiny_model, segments, compute), torch.stack(expected), atol=1e-4, rtol=0)
    ordered = score(tiny_model, segments, compute, tokens_at_once=12)
    np.testing.assert_allclose(ordered, torch.stack(expected).detach().numpy(), atol=1e-4)


def test_dpo_loss_has_the_papers_gradient() -> None:
    """Equation 7 of the paper: the weight of a pair is σ(reward_rejected - reward_chosen)."""
    margins = torch.tensor([-2.0, 0.0, 3.0], requires_grad=True)
    loss = sigmoid_loss(margins)
    assert loss.item() == pytest.approx(np.log1p(np.exp([2.0, 0.0, -3.0])).mean(), abs=1e-6)
    (gradient,) = torch.autograd.grad(loss, margins)
    torch.testing.assert_close(gradient, -torch.sigmoid(-margins.detach()) / 3)


def test_dpo_starts_at_ln_2_and_prefers_the_chosen(tiny_config: ModelConfig, compute: Compute, tmp_path: Path) -> None:
    _, records = start_dpo(tiny_config, compute, tmp_path)
    held_out = [r.values for r in records if "held_out_loss" in r.values]
    assert held_out[0]["held_out_loss"] == pytest.approx(np.log(2), abs=1e-5)
    assert held_out[0]["held_out_margin"] == pytest.approx(0, abs=1e-5)
    assert held_out[-1]["held_out_loss"] < np.log(2)


def test_dpo_refuses_fewer_pairs_than_a_batch(tiny_model: Transformer, compute: Compute, tmp_path: Path) -> None:
    with pytest.raises(WordmillError, match=r"dpo.batch_size: 4 is more than the 3 training pairs"):
        next(dpo(tiny_model, ascending_pairs(3, 0), ascending_pairs(1, 1), DPO, compute, tmp_path))


def test_a_checkpoint_from_the_end_of_the_run_needs_no_more_steps(
    tiny_config: ModelConfig, compute: Compute, tmp_path: Path
) -> None:
    _, records = start_pretraining(tiny_config, compute, tmp_path)
    list(records)
    found = checkpoint.latest(tmp_path)
    assert found is not None
    assert found[0] == 9  # the last multiple of checkpoint_every before the end, which the stage's output replaces


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": -1e-3}, "lr: -0.001 is not positive"),
        ({"steps": 0}, "steps: 0 is not positive"),
        ({"micro_batch_size": 3}, "3 does not divide 4"),
        ({"warmup_steps": 13}, "not between 0 and steps"),
        ({"beta2": 1.0}, r"not in \[0, 1\)"),
    ],
)
def test_settings_out_of_range_are_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(PRETRAIN, **change)
