"""`wordmill runs`: what is listed, what is removed, and what stays."""

import shutil
from pathlib import Path

import pytest
from filelock import FileLock
from typer.testing import CliRunner

from pipeline.cli import app
from stages import scratch
from tests.stages.test_scratch import A, B, aged, checkpoint

REPO = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with a stopped pretraining, a stopped DPO, and one that a deployed rebuild has left."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(REPO / "dvc.yaml", tmp_path)
    shutil.copy(REPO / "presets/default.yaml", tmp_path / "params.yaml")
    for stage, fingerprint, step in (("pretrain", A, 1540), ("dpo", B, 3), ("shared/pretrain", B, 7)):
        name = stage.rpartition("/")[2]
        own = tmp_path / "runs" / stage / fingerprint
        own.mkdir(parents=True)
        checkpoint(own, step)
        about = f'{{"stage": "{name}", "params": {{"{name}.log_every": 100, "{name}.steps": 5000}}}}'
        (own / "about.json").write_text(about)
    (tmp_path / "runs/pretrain/.DS_Store").touch()
    return tmp_path


def wordmill(*words: str) -> str:
    done = CliRunner().invoke(app, list(words))
    assert done.exit_code == 0, done.output
    return done.stdout


def test_every_state_is_listed_with_its_step_and_what_differs(folder: Path) -> None:
    told = wordmill("runs")
    assert f"runs/pretrain/{A} (stopped, step 1,540 of 5,000, 0.0 MB)\n    pretrain.log_every 100 -> 10\n" in told
    assert f"runs/dpo/{B} (stopped, step 3" in told
    assert f"runs/shared/pretrain/{B} (stopped, step 7" in told
    assert "pretrain.continue_from" in told


def test_what_is_over_the_limits_goes_and_the_rest_stays(folder: Path) -> None:
    assert wordmill("runs", "prune") == "nothing is over the limits\n"
    aged(folder / "runs/pretrain" / A, scratch.KEPT_DAYS + 1)
    assert f"removed runs/pretrain/{A} (stopped" in wordmill("runs", "prune")
    assert not (folder / "runs/pretrain" / A).exists()
    assert (folder / "runs/pretrain/.DS_Store").exists()
    wordmill("runs", "prune", "--gb", "0")
    assert wordmill("runs") == "no run has left anything under runs/\n"


@pytest.mark.parametrize("why", ["named", "in use", "in use elsewhere"])
def test_what_is_named_or_in_use_stays(folder: Path, why: str) -> None:
    own = folder / "runs/pretrain" / A
    lock = FileLock(folder / "runs/pretrain.lock")
    if why == "in use elsewhere":  # by a worktree
        own = folder / "runs/shared/pretrain" / B
        lock = FileLock(folder / f"runs/shared/pretrain-{B}.lock")
    if why == "named":
        text = Path("params.yaml").read_text()
        Path("params.yaml").write_text(text.replace('continue_from: ""', f"continue_from: runs/pretrain/{A}"))
    else:
        lock.acquire()
    told = wordmill("runs", "prune", "--days", "0")
    lock.release()
    assert f"left {own.relative_to(folder)} " in told
    assert own.is_dir()
    assert not (folder / "runs/dpo" / B).exists()


@pytest.mark.parametrize("words", [["--days", "-1"], ["--gb", "-1"], ["--days", "many"]])
def test_a_limit_that_is_none_is_refused(folder: Path, words: list[str]) -> None:
    assert CliRunner().invoke(app, ["runs", "prune", *words]).exit_code == 2
    assert (folder / "runs/pretrain" / A).is_dir()
