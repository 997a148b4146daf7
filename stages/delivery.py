"""Events on their way to MLflow: the program beside a stage, and what earlier stages could not deliver.

What a store that was down did not take lies in runs/undelivered/, a file for each stage: the header, then the events.
It is delivered by the next stage that finds the same store again, beside its own work, or by `wordmill deliver`. A file
is removed when all of it is in the store; delivering the same twice does no harm. A file that is damaged is renamed, so
that it is told once, and holds back no other.
"""

import contextlib
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from llm.errors import WordmillError
from stages import processes, sqlite_store
from stages.kept_events import DamagedFileError, read, read_header
from stages.mailbox import Event, Unavailable, serve
from stages.stage_run import StageRun, moment
from stages.store import answers, check_listens
from stages.tracking_uri import tracking_uri, without_secrets

UNDELIVERED = Path("runs/undelivered")
PATIENCE = 5.0  # seconds that a stage at its end may wait for the rest of what others have left


def preparation(start: dict[str, Any]) -> Callable[[], None] | None:
    """Add what describes the moment to the header; then what must be done before its store can be opened."""
    start["moment"] = moment()
    return sqlite_store.preparation(tracking_uri())


def connect(start: dict[str, Any]) -> "Courier":
    """What a stage's events are delivered by."""
    return Courier(start)


class Courier:
    """A stage's run, and a thread that delivers meanwhile what others have left for the same store."""

    def __init__(self, start: dict[str, Any]) -> None:
        uri = tracking_uri()
        check_listens(uri)
        self._run = StageRun(start, uri)
        self._thread = threading.Thread(target=self._others, args=(uri,), daemon=True)
        self._thread.start()

    def deliver(self, events: Sequence[Event]) -> None:
        self._run.deliver(events)
        if any(event["kind"] == "end" and event["status"] != "KILLED" for event in events):
            self._thread.join(PATIENCE)

    def _others(self, uri: str) -> None:
        with contextlib.suppress(Unavailable):  # they stay where they are
            deliver_kept(uri, lambda line: print(line, file=sys.stderr, flush=True), only_same_store=True)


def deliver_kept(uri: str, tell: Callable[[str], None], only_same_store: bool = False) -> int:
    """Deliver to the store at `uri` what is in runs/undelivered/, oldest first; how many files there were.

    Files of stages that still run are left alone, and so are those that the store refuses, with a line each. Raises
    Unavailable if the store is down.
    """
    count = 0
    for path in _oldest_first():
        lock = path.with_suffix(".lock")
        with contextlib.suppress(Timeout), FileLock(lock, timeout=0):
            count += path.exists() and _deliver_file(path, uri, tell, only_same_store)
            lock.unlink(missing_ok=True)
    return count


def _oldest_first() -> list[Path]:
    found = []
    for path in UNDELIVERED.glob("*.jsonl"):
        with contextlib.suppress(FileNotFoundError):  # another stage has just delivered it
            found.append((path.stat().st_mtime_ns, path))
    return [path for _, path in sorted(found)]


def _deliver_file(path: Path, uri: str, tell: Callable[[str], None], only_same_store: bool) -> bool:
    try:
        start, events, damaged = read(path)
    except DamagedFileError as error:
        _set_aside(path, str(error), tell)
        return False
    alive = processes.started(int(start["pid"])) == start["started"]
    if alive or (only_same_store and without_secrets(start["uri"]) != without_secrets(uri)):
        return False
    try:
        StageRun(start, uri, late=True).deliver(events)
    except WordmillError as error:
        if not only_same_store:
            tell(f"{path}: not delivered: {error}")
        return False
    except Unavailable as error:
        if not answers(uri):
            raise
        _set_aside(path, f"the store does not take it: {error}", tell)
        return False
    except Exception as error:  # its values are not what a stage writes
        _set_aside(path, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}", tell)
        return False
    path.unlink()
    tell(f"{start['stage']}: {len(events)} events that were kept are now in {without_secrets(uri)}")
    if damaged:
        tell(f"warning: {path}: {damaged} damaged lines were left out")
    return True


def _set_aside(path: Path, reason: str, tell: Callable[[str], None]) -> None:
    aside = path.with_suffix(".damaged")
    try:
        path.rename(aside)
        what = f"is now {aside.name}; mend it and rename it back, or remove it"
    except OSError as error:
        what = f"cannot be renamed ({error.strerror}); remove it"
    tell(f"warning: {path}: not delivered: {reason}; the file {what}")


def take_over(folder: Path, root: Path) -> None:
    """Bring what stages in the checkout `folder` could not deliver to the one in `root`, before `folder` goes."""
    for path in (folder / UNDELIVERED).glob("*.jsonl"):
        (root / UNDELIVERED).mkdir(parents=True, exist_ok=True)
        path.replace(root / UNDELIVERED / path.name)


def are_kept(uri: str) -> bool:
    """Whether events of some stage wait for the store at `uri`."""
    for path in UNDELIVERED.glob("*.jsonl"):
        with contextlib.suppress(DamagedFileError):
            if without_secrets(read_header(path)["uri"]) == without_secrets(uri):
                return True
    return False


if __name__ == "__main__":
    serve(connect, preparation)
