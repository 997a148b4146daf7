"""Learning rates against their closed forms."""

import math

import pytest

from llm.optim.schedules import SCHEDULES, constant, cosine, wsd


@pytest.mark.parametrize("name", SCHEDULES)
def test_all_rise_linearly_to_the_peak(name: str) -> None:
    rates = [SCHEDULES[name](step, 100, 10, 3.0, 0.1, 0.2) for step in range(10)]
    assert rates == pytest.approx([0.3 * (step + 1) for step in range(10)])


@pytest.mark.parametrize("name", SCHEDULES)
def test_all_begin_at_the_peak_without_a_warm_up_and_survive_one_step(name: str) -> None:
    assert SCHEDULES[name](0, 100, 0, 3.0, 0.1, 0.2) == 3.0
    assert SCHEDULES[name](0, 1, 0, 3.0, 0.1, 1.0) == pytest.approx(0.3 if name == "wsd" else 3.0)
    assert SCHEDULES[name](4, 5, 5, 3.0, 0.1, 1.0) == pytest.approx(3.0)


def test_cosine_has_the_stated_corners() -> None:
    rates = [cosine(step, 100, 10, 1.0, 0.1) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == pytest.approx(1.0)
    assert rates[99] == pytest.approx(0.1)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    for step in range(10, 100):
        angle = math.pi * (step - 10) / 89
        assert rates[step] == pytest.approx(0.1 + 0.9 * math.cos(angle / 2) ** 2)


def test_wsd_is_flat_and_then_a_line() -> None:
    rates = [wsd(step, 100, 10, 2.0, 0.1, 0.3) for step in range(100)]
    assert rates[9:70] == [2.0] * 61
    for step in range(70, 100):
        assert rates[step] == pytest.approx(2.0 - 1.8 * (step - 69) / 30)
    assert rates[99] == pytest.approx(0.2)


def test_wsd_of_a_longer_run_begins_as_the_shorter_one() -> None:
    assert [wsd(s, 100, 10, 1.0, 0.1, 0.2) for s in range(80)] == [wsd(s, 300, 10, 1.0, 0.1, 0.2) for s in range(80)]


def test_constant_stays() -> None:
    assert {constant(step, 100, 10, 2.0, 0.1) for step in range(9, 100)} == {2.0}


@pytest.mark.parametrize("name", ["cosine", "wsd"])
@pytest.mark.parametrize("steps", [2, 3, 10])
def test_the_last_step_has_the_final_rate_however_long_the_warm_up(name: str, steps: int) -> None:
    for warmup in range(steps):
        last = SCHEDULES[name](steps - 1, steps, warmup, 2.0, 0.1, 0.3)
        assert last == pytest.approx(0.2), warmup
