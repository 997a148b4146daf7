import io
import sys

import pytest

from llm import progress as module
from llm.progress import progress, say


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_log_gets_plain_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(module, "LOG_SECONDS", 0.0)
    with progress(total=4, unit="steps", label="pretrain") as bar:
        bar.note("loss 1.5")
        bar.update()
    first, last = capsys.readouterr().err.splitlines()
    assert first.startswith("pretrain: 1 of 4 steps, ")
    assert first.endswith("left, loss 1.5")
    assert last.startswith("pretrain: 1 of 4 steps, ")


def test_a_log_is_not_flooded(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress(range(1000), label="count")) == list(range(1000))
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("count: 1,000 of 1,000 steps")


def test_a_failure_has_the_last_word_in_a_log(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ZeroDivisionError), progress(total=3, label="count") as bar:
        bar.update(1 // bar.done)
    assert capsys.readouterr().err == ""


def test_what_was_done_before_is_not_speed(capsys: pytest.CaptureFixture[str]) -> None:
    with progress(unit="B", label="a.txt") as bar:
        bar.start_at(5_000_000, total=10_000_000)
    assert capsys.readouterr().err == "a.txt: 5.00MB of 10.0MB, 0.00B/s\n"


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress(total=10, unit="documents", label="corpus") as bar:
        bar.start_at(4)
        say("a line above")
        bar.update(6)
    shown = terminal.getvalue()
    assert "a line above\n" in shown
    assert "corpus: 100%" in shown
    assert "10.0/10.0" in shown


def test_iterating_needs_items() -> None:
    with pytest.raises(TypeError):
        list(progress(total=3))
