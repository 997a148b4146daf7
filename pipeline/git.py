"""git, as worktrees need it: asks nobody for a password, and what is wrong comes as one line."""

import os
import subprocess
from pathlib import Path

from llm.errors import WordmillError


def git(*arguments: str, cwd: Path | None = None, data: bytes | None = None) -> str:
    """What `git` with these arguments prints; `data` is its standard input. Raises WordmillError if it fails."""
    environment = {**os.environ, "GIT_TERMINAL_PROMPT": "0"}
    done = subprocess.run(["git", *arguments], cwd=cwd, env=environment, input=data, capture_output=True, check=False)
    if done.returncode:
        words = " ".join((done.stderr or done.stdout).decode(errors="replace").split())
        raise WordmillError(f"git {arguments[0]}: {words or f'ended with status {done.returncode}'}")
    return done.stdout.decode(errors="replace")


def check_own_repository() -> None:
    """Raises WordmillError where a worktree would not be one of the working directory, or DVC would not work in it."""
    here, root = Path.cwd().resolve(), Path(git("rev-parse", "--show-toplevel").strip()).resolve()
    if root != here:
        raise WordmillError(
            f"{here} is a folder of the git repository {root}, and a worktree would be one of all that; use a clone of "
            "Wordmill that is a repository of its own"
        )
    if outer := git("rev-parse", "--show-superproject-working-tree").strip():
        raise WordmillError(
            f"{here} is a submodule of {outer}, and DVC does not work in a worktree of a submodule; use a clone of "
            "Wordmill beside it"
        )
