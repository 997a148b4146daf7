"""What a training stage shows: a line for each record in a log, a bar on a terminal."""

import io
import sys
from pathlib import Path
from typing import Any

import pytest

from llm.training_state import Record
from stages.records import Teller
from stages.stage import Stage

RECORDS = [
    Record(10, {"loss": 2.5, "lr": 0.001}, {"tokens_per_second": 12345.6, "fraction_of_peak": 0.213}, resumed=True),
    Record(20, {"loss": 1.5, "lr": 0.001}, {"tokens_per_second": 12345.6, "fraction_of_peak": 0.213}),
    Record(20, {"val_loss": 1.75}),
    Record(20, text="Once."),
]


class Tracker:
    def __init__(self) -> None:
        self.told: list[tuple[int, dict[str, float]]] = []
        self.texts: list[tuple[str, str]] = []
        self.artifact = self.dataset = self.model = self.tags = None

    def metrics(self, figures: dict[str, float], step: int) -> None:
        self.told.append((step, figures))

    def text(self, path: str, text: str) -> None:
        self.texts.append((path, text))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def tell_all() -> list[tuple[int, dict[str, float]]]:
    tracker: Any = Tracker()
    with Teller(Stage("pretrain", Path(), tracker), 40) as tell:
        for record in RECORDS:
            tell(record)
    assert tracker.texts == [("samples/step-00000020.txt", "Once.")]
    return tracker.told


def test_a_log_gets_a_line_for_each_record(capsys: pytest.CaptureFixture[str]) -> None:
    told = tell_all()
    assert [step for step, _ in told] == [10, 20, 20]
    assert told[1][1] == {"loss": 1.5, "lr": 0.001, "tokens_per_second": 12345.6, "fraction_of_peak": 0.213}
    out, err = capsys.readouterr()
    rest = "learning rate 0.001, 12,346 tokens/s, 21% of the machine's peak"
    left = ", 00:00 left"  # 20 steps took no time, 20 are to come
    assert out.splitlines() == [
        f"step 10 of 40: loss 2.500 nats, {rest}",
        f"step 20 of 40: loss 1.500 nats, {rest}{left}",
        f"step 20 of 40: validation loss 1.750 nats{left}",
        "step 20 of 40: sample:",
        "Once.",
        "",
    ]
    assert err == ""


def test_a_terminal_gets_a_bar_with_the_figures_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    out, err = Terminal(), Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    tell_all()
    shown = err.getvalue()
    assert out.getvalue() == ""
    assert "pretrain:  50%" in shown
    assert "20.0/40.0" in shown
    assert "loss 1.500, 12,346 tokens/s, 21% of peak" in shown
    assert "step 20 of 40: validation loss 1.750 nats" in shown
    assert "step 20 of 40: sample:\nOnce.\n" in shown
    assert "step 20 of 40: loss" not in shown
