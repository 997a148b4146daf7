"""A stage's scratch folder, `runs/<stage>/<fingerprint>/`: what a killed run has left there, the next one goes on from.

In a checkout of its own a stage is alone, and removes state that a changed run has left: it can serve nobody any more,
but for what a param names (`pretrain.continue_from`).
Where `runs/<stage>` is a link, several checkouts share the folder behind it (`pipeline.worktree` makes such): then each
state has a lock, and what others have left stays for a week, since their runs may still come back for it.
"""

import shutil
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

RUNS = Path("runs")
KEPT_SECONDS = 7 * 24 * 3600.0  # since something was last written; a shared folder only


@contextmanager
def scratch(stage: str, fingerprint: str, named: Collection[Path] = ()) -> Iterator[Path]:
    """The folder, there and this process's alone inside the block; removed at its end unless that is an error.

    `named` are folders that are left alone.
    """
    folder = RUNS / stage
    own = folder / fingerprint
    if not folder.is_symlink():
        for stale in folder.glob("*"):
            if stale != own and not any(path.resolve().is_relative_to(stale.resolve()) for path in named):
                shutil.rmtree(stale)
        own.mkdir(parents=True, exist_ok=True)
        yield own
        shutil.rmtree(own)
        return
    lock = _lock(folder, fingerprint)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"{stage}: waits for another checkout, which does the same work", flush=True)
        lock.acquire()
    with lock:
        _clear(folder, own)
        own.mkdir(exist_ok=True)
        yield own
        shutil.rmtree(own)


def _lock(folder: Path, fingerprint: str) -> FileLock:
    shared = folder.resolve()
    return FileLock(shared.parent / f"{shared.name}-{fingerprint}.lock")


def _clear(folder: Path, own: Path) -> None:
    for stale in folder.glob("*"):
        newest = max(path.stat().st_mtime for path in (stale, *stale.iterdir()))
        if stale == own or time.time() - newest < KEPT_SECONDS:
            continue
        lock = _lock(folder, stale.name)
        try:
            with lock.acquire(timeout=0):
                shutil.rmtree(stale)
        except Timeout:
            continue  # in use
        Path(lock.lock_file).unlink(missing_ok=True)
