"""Worktrees of deployed rebuilds: which commit, what they share, and that nothing of them stays."""

import subprocess
from pathlib import Path

import pytest

from llm.errors import WordmillError
from pipeline import dvc, plan
from pipeline.worktree import WORKTREES, worktree


def git(*arguments: str) -> str:
    who = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    return subprocess.run(["git", *who, *arguments], check=True, capture_output=True, text=True).stdout.strip()


def commit(message: str) -> str:
    git("add", ".")
    git("commit", "-qm", message)
    return git("rev-parse", "HEAD")


def test_what_a_worktree_shares_and_leaves(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dvc.run("corpus", lambda line: None)
    first = commit("one")
    git("clone", "-q", "--bare", ".", str(tmp_path / "remote"))
    git("remote", "add", "origin", str(tmp_path / "remote"))
    Path(".dvc/config.local").write_text("[core]\n    checksum_jobs = 2\n")
    Path("params.yaml").write_text("an edit\n")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    killed = WORKTREES / "killed"  # what a SIGKILL left: no process has its lock
    (killed / "runs/undelivered").mkdir(parents=True)
    (killed / "runs/undelivered/a.jsonl").write_text("{}")
    killed.with_suffix(".lock").touch()

    with worktree("HEAD", "run") as place:
        assert Path.cwd() == place.folder != checkout
        assert not (checkout / killed).exists()
        assert (checkout / "runs/undelivered/a.jsonl").exists()
        assert place.commit == first
        assert place.environment["MLFLOW_TRACKING_URI"] == f"sqlite:///{checkout}/mlflow.db"
        assert Path("corpus.out").exists()  # from the checkout's cache
        assert "checksum_jobs = 2" in Path(".dvc/config.local").read_text()
        (Path("runs/pretrain") / "state").write_text("left by a killed training")
        plan.prepare(place.folder, None, {"samples.top_k": 5})
        assert "top_k: 5" in Path("params.yaml").read_text()
        with pytest.raises(WordmillError, match=r"^overrides: samples\.top_q: unknown key"):
            plan.prepare(place.folder, None, {"samples.top_q": 5})
    assert Path.cwd() == checkout
    assert not list(Path(WORKTREES).iterdir())
    assert git("worktree", "list").count("\n") == 0
    assert Path("runs/shared/pretrain/state").exists()
    assert Path("params.yaml").read_text() == "an edit\n"
    assert Path("corpus.out").exists()

    # A branch of a remote is asked for anew.
    git("clone", "-q", str(tmp_path / "remote"), str(tmp_path / "colleague"))
    monkeypatch.chdir(tmp_path / "colleague")
    Path("pipeline/plan.py").write_text("# older than the deployments\n")
    second = commit("two")
    git("push", "-q", "origin", "HEAD")
    branch = git("branch", "--show-current")
    monkeypatch.chdir(checkout)
    with worktree(f"origin/{branch}", "run") as place:
        assert place.commit == second
        with pytest.raises(WordmillError, match=r"^commit: its params cannot be checked by its own code: it is older"):
            plan.prepare(place.folder, None, {"samples.top_k": 5})
    with pytest.raises(WordmillError, match=r"^commit: 'no-such' is no commit, branch or tag in "):
        worktree("no-such", "run").__enter__()
