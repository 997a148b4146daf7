"""A checkout apart from this one: some commit and some changes in a git worktree, where stages run undisturbed."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from ruamel.yaml import YAML

from llm.errors import WordmillError
from pipeline.files import replace
from stages import lineage
from stages.params import named_files

# Names that would lead commands in the other checkout back to this one.
ALONE = {"MLFLOW_TRACKING_URI": "", "MLFLOW_EXPERIMENT_NAME": "", "WORDMILL_REBUILD": "", "DVC_ROOT": ""}


def make(folder: Path, commit: str, patch: bytes, params: str, left_out: Iterable[str], cached: bool) -> None:
    """Make the worktree anew. `left_out` are files too big for the patch; `cached` shares this checkout's DVC cache.

    The user's own files that params name by a path inside the checkout are linked. Raises WordmillError.
    """
    remove(folder)
    _must("worktree", "add", "--quiet", "--detach", "--force", str(folder), commit)
    if patch:
        _must("-C", str(folder), "apply", "--whitespace=nowarn", "-", data=patch)
    if params:
        replace(folder / "params.yaml", params)
    content = YAML(typ="safe", pure=True).load(params) or {}
    for path in [*map(Path, left_out), *named_files(lineage.flat(content))]:
        target = folder / path
        if path.exists() and not path.is_absolute() and not target.exists() and ".." not in path.parts:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(path.absolute())
    if cached:
        _dvc(folder, "cache", "dir", "--local", str(Path(_dvc(Path(), "cache", "dir")).absolute()))


def remove(folder: Path) -> None:
    """Take the worktree away, whatever is left of it."""
    git("worktree", "remove", "--force", str(folder))
    if folder.exists():  # git knows nothing of it
        shutil.rmtree(folder)
    git("worktree", "prune")


def _must(*arguments: str, data: bytes | None = None) -> None:
    if problem := git(*arguments, data=data):
        raise WordmillError(f"git {arguments[0] if arguments[0] != '-C' else arguments[2]}: {problem}")


def git(*arguments: str, data: bytes | None = None) -> str | None:
    """Run git: None, or in one line what it says against it."""
    done = subprocess.run(["git", *arguments], input=data, capture_output=True, check=False)
    words = " ".join(done.stderr.decode(errors="replace").split())
    return None if done.returncode == 0 else words or f"ended with status {done.returncode}"


def _dvc(folder: Path, *arguments: str) -> str:
    """What a command of DVC prints. Raises WordmillError."""
    environment = {**os.environ, **ALONE, "DVC_NO_ANALYTICS": "1"}
    command = [sys.executable, "-m", "dvc", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise WordmillError(f"dvc {' '.join(arguments)}: {' '.join(done.stderr.split())}")
    return done.stdout.strip()
