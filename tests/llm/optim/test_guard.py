"""The guard: what it lets pass, what it counts, how the loss scale moves, and that a bad step changes no bit."""

import pytest
import torch

from llm.model.config import ModelConfig
from llm.model.transformer import Transformer
from llm.optim.guard import FIRST_SCALE, GROWTH_STEPS, Guard
from llm.optim.optimizers import OPTIMIZERS, Settings

CPU = torch.device("cpu")
GOOD, NAN, INF = torch.tensor(1.0), torch.tensor(float("nan")), torch.tensor(float("inf"))
SETTINGS = Settings(lr=1e-2, muon_lr=0.02, betas=(0.9, 0.95), weight_decay=0.1, dtype=torch.float32)


def test_a_bad_step_freezes_and_the_later_ones_do_not_pass() -> None:
    guard = Guard(CPU, allowed=0, scaling=False)
    assert guard.judge(0, GOOD, GOOD).item() == 0
    assert guard.frozen_at() is None
    assert guard.judge(1, GOOD, INF).item() == 1
    assert [guard.judge(step, GOOD, GOOD).item() for step in (2, 3)] == [1, 1]
    assert guard.judge(4, NAN, NAN).item() == 1
    assert guard.frozen_at() == 1


def test_so_many_skips_are_allowed_and_counted() -> None:
    guard = Guard(CPU, allowed=2, scaling=False)
    verdicts = [guard.judge(step, NAN if step % 2 else GOOD, GOOD).item() for step in range(7)]
    assert verdicts == [0, 1, 0, 1, 0, 1, 1]
    assert guard.figures() == {"skipped_steps": 2}
    assert guard.frozen_at() == 5


def test_the_loss_scale_halves_on_overflow_and_doubles_after_calm() -> None:
    guard = Guard(CPU, allowed=0, scaling=True)
    assert guard.scaled(GOOD).item() == FIRST_SCALE
    assert guard.judge(0, GOOD, INF).item() == 1
    assert guard.frozen_at() is None
    assert guard.figures() == {"loss_scale": FIRST_SCALE / 2, "overflows": 1}
    for step in range(GROWTH_STEPS):
        assert guard.judge(1 + step, GOOD, GOOD).item() == 0
    assert guard.figures() == {"loss_scale": FIRST_SCALE, "overflows": 1}


def test_overflow_at_the_smallest_scale_is_a_fault_and_so_is_a_bad_loss() -> None:
    guard = Guard(CPU, allowed=0, scaling=True)
    for step in range(16):
        guard.judge(step, GOOD, NAN)
    assert guard.figures() == {"loss_scale": 1, "overflows": 16}
    assert guard.frozen_at() is None
    guard.judge(16, GOOD, NAN)
    assert guard.frozen_at() == 16
    other = Guard(CPU, allowed=0, scaling=True)
    other.judge(0, NAN, NAN)
    assert other.frozen_at() == 0
    assert other.figures()["loss_scale"] == FIRST_SCALE


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_that_may_not_pass_changes_no_bit(tiny_config: ModelConfig, name: str) -> None:
    """With it or without it, the steps around it give the same weights and state."""
    ends = []
    for bad_at in (None, 0, 2):
        model = Transformer(tiny_config, 64)
        model.initialise(1)
        optimizer = OPTIMIZERS[name](model, SETTINGS)
        generator = torch.Generator().manual_seed(1)
        for step in range(4):
            if step == bad_at:
                for weight in model.parameters():
                    weight.grad = torch.full_like(weight, float("nan"))
                optimizer.found_inf = torch.tensor(1.0)
                optimizer.step()
            for weight in model.parameters():
                weight.grad = torch.randn(weight.shape, generator=generator)
            optimizer.found_inf = torch.tensor(0.0)
            optimizer.step()
        tensors = [w.detach() for w in model.parameters()]
        for state in optimizer.state_dict()["state"].values():
            tensors += state.values()
        ends.append(tensors)
    for other in ends[1:]:
        assert len(other) == len(ends[0])
        assert all(torch.equal(one, two) for one, two in zip(ends[0], other, strict=True))
