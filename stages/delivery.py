"""Events on their way to MLflow: the program beside a stage, and what earlier stages could not deliver.

What a store that was down did not take lies in runs/undelivered/, a file for each stage: the header, then the events.
It is delivered by the next stage that finds the same store again, beside its own work, or by `wordmill deliver`. A file
is removed when all of it is in the store; delivering the same twice does no harm.
"""

import contextlib
import json
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from llm.errors import WordmillError
from stages import processes
from stages.mailbox import Event, Unavailable, serve
from stages.stage_run import StageRun
from stages.tracking_uri import without_secrets

UNDELIVERED = Path("runs/undelivered")
PATIENCE = 5.0  # seconds that a stage at its end may wait for the rest of what others have left


def connect(start: dict[str, Any]) -> "Courier":
    """What a stage's events are delivered by."""
    return Courier(start)


class Courier:
    """A stage's run, and a thread that delivers meanwhile what others have left for the same store."""

    def __init__(self, start: dict[str, Any]) -> None:
        self._run = StageRun(start)
        self._thread = threading.Thread(target=self._others, args=(start["uri"],), daemon=True)
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

    Files of stages that still run are left alone. Raises Unavailable if the store does not take them.
    """
    count = 0
    for path in sorted(UNDELIVERED.glob("*.jsonl"), key=lambda path: path.stat().st_mtime):
        with contextlib.suppress(Timeout, FileNotFoundError), FileLock(path.with_suffix(".lock"), timeout=0):
            start, events = _read(path)
            alive = processes.started(int(start["pid"])) == start["started"]
            if alive or (only_same_store and start["uri"] != uri):
                continue
            try:
                StageRun({**start, "uri": uri}, late=True).deliver(events)
            except WordmillError as error:
                raise Unavailable(str(error)) from None
            path.unlink()
            count += 1
            tell(f"{start['stage']}: {len(events)} events that were kept are now in {without_secrets(uri)}")
        path.with_suffix(".lock").unlink(missing_ok=True)
    return count


def take_over(folder: Path, root: Path) -> None:
    """Bring what stages in the checkout `folder` could not deliver to the one in `root`, before `folder` goes."""
    for path in (folder / UNDELIVERED).glob("*.jsonl"):
        (root / UNDELIVERED).mkdir(parents=True, exist_ok=True)
        path.replace(root / UNDELIVERED / path.name)


def are_kept(uri: str) -> bool:
    """Whether events of some stage wait for the store at `uri`."""
    for path in UNDELIVERED.glob("*.jsonl"):
        with contextlib.suppress(OSError, json.JSONDecodeError), path.open(encoding="utf-8") as file:
            if json.loads(file.readline()).get("uri") == uri:
                return True
    return False


def _read(path: Path) -> tuple[dict[str, Any], list[Event]]:
    """The header and the events of a file; one that ends in the middle of a line, or without an end, is closed."""
    events: list[Event] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(json.JSONDecodeError):  # the machine went down as it was written
            events.append(json.loads(line))
    headers = [event for event in events if event["kind"] == "start"]
    if not headers:
        raise WordmillError(f"{path}: holds no header, so nobody knows whose events these are; remove it")
    rest = [event for event in events if event["kind"] != "start"]
    if not rest or rest[-1]["kind"] != "end":
        last = rest[-1]["time"] if rest else headers[0]["time"]
        rest.append({"kind": "end", "time": last, "status": "KILLED", "error": ""})
    return dict(headers[0]), rest


if __name__ == "__main__":
    serve(connect)
