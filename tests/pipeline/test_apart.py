"""Worktrees where the checkout lies inside another repository; and what beside worktrees is none."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from llm.errors import WordmillError
from pipeline import apart, sweep
from pipeline.worktree import worktree

WHO = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "protocol.file.allow=always"]


def git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", *WHO, *words], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout


def committed(folder: Path) -> Path:
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "one")
    return folder


@pytest.fixture
def submodule(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The checkout as a submodule of another repository; the test runs in it."""
    committed(checkout)
    outer = tmp_path / "outer"
    outer.mkdir()
    git(outer, "init", "-q")
    git(outer, "submodule", "add", "-q", str(checkout), "models/wordmill")
    committed(outer)
    monkeypatch.chdir(outer / "models/wordmill")
    return outer / "models/wordmill"


@pytest.fixture
def subfolder(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The checkout's files in a folder of a larger repository; the test runs in it."""
    outer = tmp_path / "outer"
    outer.mkdir()
    git(outer, "init", "-q")
    shutil.copytree(checkout, outer / "wordmill", ignore=shutil.ignore_patterns(".git"))
    committed(outer)
    monkeypatch.chdir(outer / "wordmill")
    return outer / "wordmill"


def enter() -> None:
    with worktree("HEAD", "run"):
        raise AssertionError("it was entered")


WAYS: dict[str, Callable[[], object]] = {
    "make": lambda: apart.make(Path("runs/sweep/1"), "HEAD", b"", "{}", [], cached=False),
    "worktree": enter,
    "sweep": lambda: sweep.sweep(sweep.points(["samples.top_k=[1,2]"]), lambda line: None),
}


KINDS = {"submodule": "is a submodule of", "subfolder": "is a folder of the git repository"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkout_inside_another_repository_is_refused_and_nothing_is_left(
    kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = request.getfixturevalue(kind)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///never.db")
    for act in WAYS.values():
        with pytest.raises(WordmillError, match=rf"^{folder} {KINDS[kind]} \S+/outer, .* use a clone") as caught:
            act()
        assert "\n" not in str(caught.value)
    assert git(folder, "worktree", "list").count("\n") == 1
    assert not Path("never.db").exists()
    assert not Path("runs/sweep/1").exists()
    assert not list(Path("runs/worktrees").glob("*"))


def test_what_is_no_worktree_stays(checkout: Path) -> None:
    """A user's own folder or file beside the worktrees."""
    committed(checkout)
    for path in ("runs/worktrees/mine/kept", "runs/worktrees/.DS_Store"):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).touch()
    Path("runs/worktrees/gone").symlink_to("nowhere")
    with worktree("HEAD", "run"):
        pass
    assert Path("runs/worktrees/mine/kept").exists()
    assert Path("runs/worktrees/.DS_Store").exists()
