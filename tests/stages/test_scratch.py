"""State of killed runs where several checkouts share it."""

import os
import time
from pathlib import Path

import pytest

from stages import scratch as module
from stages.scratch import scratch


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder behind `runs/pretrain`; the test runs in a checkout."""
    shared = tmp_path / "shared/pretrain"
    shared.mkdir(parents=True)
    (tmp_path / "checkout/runs").mkdir(parents=True)
    (tmp_path / "checkout/runs/pretrain").symlink_to(shared)
    monkeypatch.chdir(tmp_path / "checkout")
    return shared


def left(fingerprint: str) -> None:
    """A run that is stopped in the middle."""

    def killed() -> None:
        with scratch("pretrain", fingerprint) as folder:
            (folder / "step").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        killed()


def aged(folder: Path) -> None:
    then = time.time() - module.KEPT_SECONDS - 60
    for path in (*folder.iterdir(), folder):
        os.utime(path, (then, then))


def test_state_of_other_runs_stays_for_a_week(shared: Path) -> None:
    left("a")
    left("b")
    with scratch("pretrain", "a") as folder:
        assert (folder / "step").exists()
        assert (shared / "b/step").exists()
    assert sorted(path.name for path in shared.iterdir()) == ["b"]
    aged(shared / "b")
    with scratch("pretrain", "c"):
        assert [path.name for path in shared.iterdir()] == ["c"]


def test_state_that_is_in_use_is_left_alone_and_waited_for(shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with scratch("pretrain", "a"):
        aged(shared / "a")
        with scratch("pretrain", "b"):
            assert (shared / "a").exists()
    assert capsys.readouterr().out == ""
