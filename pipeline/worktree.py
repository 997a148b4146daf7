"""A checkout of its own for a deployed rebuild: git's worktree of one commit, with the agent's cache and state.

Nobody's edits reach it, and it reaches nobody's. It lies in `runs/worktrees/` of the agent's checkout and shares
with it

- DVC's cache, run cache included, and DVC's local configuration (remotes and their credentials);
- `runs/shared/<stage>/`, by links: what a killed training has left is found by the next run of the same work;
- the MLflow store, unless MLFLOW_TRACKING_URI names one.

What a rebuild makes lies in the cache; which of it belongs together (params, dvc.lock, metrics) is saved as a DVC
experiment, a commit on `refs/exps/` that the worktree's removal leaves alone. A worktree whose process was killed is
removed by the next rebuild.
"""

import contextlib
import os
import re
import shutil
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout
from ruamel.yaml import YAML

from llm.errors import TransientError, WordmillError
from pipeline import apart, dvc
from pipeline.git import check_own_repository, git
from stages import delivery
from stages.tracking_uri import environment as tracking_environment

WORKTREES = Path("runs/worktrees")
SHARED = Path("runs/shared")
FETCH_SECONDS = (5, 30)  # between tries


@dataclass(frozen=True)
class Worktree:
    folder: Path  # absolute
    commit: str  # 40 hex digits
    environment: dict[str, str]  # for the stages

    def save(self, name: str, stages: Collection[str]) -> str | None:
        """Save what was rebuilt as a DVC experiment; its name, or None if it is what the commit has already.

        `stages` are those whose outputs are there.
        """
        if not git("status", "--porcelain", cwd=self.folder):
            return None
        name = re.sub(r"[^A-Za-z0-9-]+", "-", name).strip("-")
        dvc.save_experiment(name, stages)
        return name


@contextlib.contextmanager
def worktree(commit: str, name: str) -> Iterator[Worktree]:
    """A worktree of `commit` (anything that git takes for one), removed at the end. Raises WordmillError.

    The working directory is a checkout; inside the block it is the worktree.
    """
    root = Path.cwd()
    check_own_repository()
    revision = _resolved(commit)
    (root / WORKTREES).mkdir(parents=True, exist_ok=True)
    folder = root / WORKTREES / name
    with _sole(root):
        _clear(root)
        lock = _lock(folder)
        lock.acquire(timeout=0)
        git("worktree", "add", "--force", "--detach", str(folder), revision)
    try:
        environment = tracking_environment()  # a relative address is meant from here
        _share(root, folder)
        os.chdir(folder)  # from here on, what DVC is asked for is the worktree's
        dvc.checkout()
        yield Worktree(folder, revision, environment)
    finally:
        os.chdir(root)
        delivery.take_over(folder, root)
        with _sole(root):
            _remove(folder)
            lock.release()


def _resolved(commit: str) -> str:
    """The commit's full name; what a remote has is asked for anew. Raises WordmillError."""
    remote, slash, _ = commit.partition("/")
    if slash and remote in git("remote").split():
        _fetch(remote)
    found = _known(commit)
    if found is None and (remotes := git("remote").split()):
        for remote in remotes:
            _fetch(remote)
        found = _known(commit)
    if found is None:
        raise WordmillError(f"commit: {commit!r} is no commit, branch or tag in {Path.cwd()}; push it, or correct it")
    return found


def _known(commit: str) -> str | None:
    try:
        return git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{commit}^{{commit}}").strip()
    except WordmillError:
        return None


def _fetch(remote: str) -> None:
    for pause in (*FETCH_SECONDS, None):
        try:
            git("fetch", "--quiet", "--tags", remote)
            return
        except WordmillError as error:
            if pause is None:
                raise TransientError(f"{remote}: {error}") from None
            time.sleep(pause)


def _share(root: Path, folder: Path) -> None:
    """Give the worktree the checkout's cache, DVC's local configuration, and the shared state."""
    local = root / ".dvc/config.local"
    if local.exists():
        shutil.copy(local, folder / ".dvc/config.local")
    dvc.share_cache(root, folder)
    pipeline = YAML(typ="safe", pure=True).load(folder / "dvc.yaml")
    (folder / "runs").mkdir(exist_ok=True)
    for stage in pipeline["stages"]:
        shared = root / SHARED / stage
        shared.mkdir(parents=True, exist_ok=True)
        (folder / "runs" / stage).symlink_to(shared, target_is_directory=True)


def _clear(root: Path) -> None:
    """Remove the worktrees whose process is no more. What has no lock beside it is none of them."""
    for folder in (root / WORKTREES).iterdir():
        if folder.is_dir() and not folder.is_symlink() and Path(_lock(folder).lock_file).exists():
            with contextlib.suppress(Timeout), _lock(folder).acquire(timeout=0):
                delivery.take_over(folder, root)
                _remove(folder)


def _remove(folder: Path) -> None:
    apart.remove(folder)
    Path(_lock(folder).lock_file).unlink(missing_ok=True)  # names are not used again


def _lock(folder: Path) -> FileLock:
    return FileLock(folder.with_suffix(".lock"), thread_local=False)


def _sole(root: Path) -> FileLock:
    """Adding and removing worktrees, one process at a time."""
    return FileLock(root / "runs/worktrees.lock", thread_local=False)
