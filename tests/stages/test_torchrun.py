"""Processes that torchrun started for a stage: heard, explained when one dies, and gone when the stage is."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from llm.errors import WordmillError
from stages.torchrun import _explained, launched, nodes
from tests.waiting import wait_for

REPO = Path(__file__).parents[2]
TOY = """
import os, sys, time
from pathlib import Path
from llm.training_state import Record
from stages.torchrun import Process

def work(process):
    (process.scratch / f"pid-{process.rank}").write_text(str(os.getpid()))
    process.tell(Record(process.params["step"], {"rank": process.rank}))
    time.sleep(600)

Process(Path(sys.argv[2])).run(work)
"""
STAGE = """
import sys
from pathlib import Path
from stages.torchrun import launched
list(launched("toy", {"step": 7}, 2, Path(sys.argv[1]), lambda: False))
"""


def started(scratch: Path) -> list[psutil.Process]:
    """Both processes and torchrun, once they are at work."""
    paths = [scratch / f"pid-{rank}" for rank in range(2)]
    wait_for(lambda: all(path.exists() and path.read_text() for path in paths))
    two = [psutil.Process(int((scratch / f"pid-{rank}").read_text())) for rank in range(2)]
    assert two[0].parent() == two[1].parent()
    return [*two, psutil.Process(two[0].ppid())]


def gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def test_a_death_takes_the_others_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one process: one line, at once. Of the stage, by SIGKILL: nothing of it is left. Two run side by side."""
    monkeypatch.setenv("PYTHONPATH", f"{REPO}{os.pathsep}{tmp_path}")
    (tmp_path / "toy.py").write_text(TOY)
    mine, other = tmp_path / "mine", tmp_path / "other"
    mine.mkdir()
    other.mkdir()
    stage = subprocess.Popen([sys.executable, "-c", STAGE, str(other)], stderr=subprocess.DEVNULL)
    try:
        records = launched("toy", {"step": 7}, 2, mine, lambda: False)
        record = next(records)
        assert (record.step, record.values) == (7, {"rank": 0})  # the first one's alone
        family = started(mine)
        family[1].kill()
        with pytest.raises(WordmillError, match=r"process 1 was ended by SIGKILL.*the others were stopped; `dvc"):
            list(records)
        assert all(gone(process) for process in family)

        family = started(other)
        if sys.platform == "linux":  # only Linux tells a process of its parent's death
            stage.kill()
            wait_for(lambda: all(gone(process) for process in family))
    finally:
        stage.send_signal(signal.SIGKILL)
        stage.wait()


def test_a_users_mistake_is_its_line_and_a_bug_the_end_of_the_log(tmp_path: Path) -> None:
    (tmp_path / "torchrun.log").write_text("Traceback\nKeyError: 'deep down'\n")
    bug = _explained(tmp_path, 1)
    assert type(bug) is RuntimeError
    assert str(bug).endswith("KeyError: 'deep down'")
    (tmp_path / "failure.json").write_text('{"rank": 0, "exitcode": 1}')
    assert type(_explained(tmp_path, 1)) is RuntimeError
    (tmp_path / "refused-1").write_text("no space left on device")
    refused = _explained(tmp_path, 1)
    assert type(refused) is WordmillError
    assert str(refused) == "no space left on device"


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ("3", "WORDMILL_NODES: 3 machines cannot share pretrain.processes 4 evenly"),
        ("two", "WORDMILL_NODES: two machines"),
        ("0", "WORDMILL_NODES: 0 machines"),
        ("2", "WORDMILL_RENDEZVOUS: not set; name the machine of the stage and a free port"),
    ],
)
def test_machines_that_cannot_share(monkeypatch: pytest.MonkeyPatch, told: str, message: str) -> None:
    monkeypatch.delenv("WORDMILL_RENDEZVOUS", raising=False)
    monkeypatch.setenv("WORDMILL_NODES", told)
    with pytest.raises(WordmillError, match=message):
        nodes(4)
    monkeypatch.setenv("WORDMILL_NODES", "2")
    monkeypatch.setenv("WORDMILL_RENDEZVOUS", "first:29400")
    assert nodes(4) == 2
