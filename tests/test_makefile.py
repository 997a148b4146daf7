"""`make`: a run installs no test tools, and a folder that is no git repository is refused before any installing."""

import shutil
import subprocess
from pathlib import Path

import pytest

REPO = Path(__file__).parents[1]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What `make` reads, in a folder outside any repository."""
    if shutil.which("make") is None:
        pytest.skip("needs make")
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(REPO / name, tmp_path)
    return tmp_path


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "GIT_CEILING_DIRECTORIES": str(folder.parent)}
    return subprocess.run(["make", *arguments], cwd=folder, env=environment, capture_output=True, text=True)


def test_without_git_nothing_is_installed(folder: Path) -> None:
    done = make(folder, "repro")
    assert done.returncode != 0
    assert done.stderr.startswith("Wordmill needs a git repository here: clone it, or ")
    assert "git init" in done.stderr
    assert not (folder / ".venv").exists()


def test_test_tools_are_installed_for_tests_alone(folder: Path) -> None:
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    installs = {
        goal: [line for line in make(folder, "--dry-run", goal).stdout.splitlines() if "pip install" in line]
        for goal in ("repro", "server", "test", "check")
    }
    assert [line.split()[-1] for line in installs["repro"]] == ["."]
    assert installs["server"] == installs["repro"]
    assert [line.split()[-1] for line in installs["test"]] == [".", "'.[test]'"]
    assert installs["check"] == installs["test"]


def test_a_run_ends_with_what_it_made(folder: Path) -> None:
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    lines = make(folder, "--dry-run", "repro").stdout.splitlines()
    assert lines[-2] == "wordmill check"
    assert "dvc repro" in lines[-1]
    assert "wordmill summary" in lines[-1]
