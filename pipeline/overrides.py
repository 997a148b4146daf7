"""Params for one rebuild: the user's params.yaml comes back afterwards.

DVC reads params from params.yaml and nowhere else, so a rebuild with overrides changes that file while it runs. Before
that the original is put aside in runs/, and it comes back when the rebuild ends in whatever way; after a SIGKILL, at
the next `wordmill` command or flow. A file that was edited in the meantime is left alone. What the rebuild leaves is
what the overrides made: dvc.lock records them, and `dvc status` says that params.yaml differs.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from llm.errors import WordmillError
from pipeline.files import read, replace
from stages.params import PARAMS

ORIGINAL = Path("runs/overridden/original.yaml")
APPLIED = Path("runs/overridden/applied.yaml")
LOCK = Path("runs/rebuild.lock")


@contextlib.contextmanager
def sole_rebuild() -> Iterator[None]:
    """Hold the folder: two rebuilds in one would overwrite each other's params. Raises WordmillError if it is held."""
    LOCK.parent.mkdir(exist_ok=True)
    lock = FileLock(LOCK, timeout=0, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        raise WordmillError("another rebuild runs in this folder; wait for it, or stop it, and try again") from None
    try:
        recover()
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def applied(text: str | None) -> Iterator[None]:
    """params.yaml holds `text` inside the block; None leaves it as it is. The caller holds `sole_rebuild`."""
    if text is None or text == read(PARAMS):
        yield
        return
    ORIGINAL.parent.mkdir(parents=True, exist_ok=True)
    replace(APPLIED, text)
    replace(ORIGINAL, read(PARAMS))  # from here on recover() has something to do
    try:
        replace(PARAMS, text)
        yield
    finally:
        recover()


def recover_if_idle() -> None:
    """Bring params.yaml back after a rebuild that was killed, unless one is running now."""
    if ORIGINAL.exists():
        with contextlib.suppress(WordmillError), sole_rebuild():
            pass


def recover() -> None:
    """Bring the original back, unless params.yaml was edited since. The caller holds the lock."""
    if not ORIGINAL.exists():
        return
    present = read(PARAMS) if PARAMS.exists() else None
    if present is None or present == read(APPLIED):
        replace(PARAMS, read(ORIGINAL))  # not a rename: params.yaml may be a link, and has its own permissions
        ORIGINAL.unlink()
    else:
        if present != read(ORIGINAL):
            print(f"warning: params.yaml was edited during a rebuild and is kept; before it was {ORIGINAL}.kept")
            ORIGINAL.replace(ORIGINAL.with_name(f"{ORIGINAL.name}.kept"))
        ORIGINAL.unlink(missing_ok=True)
    APPLIED.unlink(missing_ok=True)
