"""MLflow, as a stage sees it: a run that takes metrics, artifacts, data sets and models.

One parent run per rebuild, one child run per stage that really ran:

- the child has the stage's params, metrics over time, artifacts, data sets, digests of inputs and outputs, commit,
  uncommitted changes, packages and hardware. It ends FINISHED, KILLED, or FAILED with the error in a tag; what the
  stage printed last is then in `log/last_lines.txt`;
- the parent is made by the first stage that runs. It links every stage's run (tags `stage.<name>` and a table in its
  description): its own child, or, for a stage that DVC skipped, the earlier run that made the output. The headlines
  of all linked runs (what `dvc metrics show` shows) are its metrics, as `<stage>/<name>`, so one row of MLflow's
  table is one rebuild.
  It is RUNNING while a stage runs, FAILED after a failed stage, FINISHED otherwise.

Everything goes through a process beside the stage (`stages.mailbox`, `stages.delivery`, `stages.stage_run`), MLflow's
import of over a second included. By default runs are in `mlflow.db` and their files in `mlartifacts/`;
MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME are honoured.
"""

import contextlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from llm.errors import WordmillError
from stages import delivery, last_lines, lineage, processes
from stages.mailbox import KILLED_PATIENCE, Mailbox, now
from stages.tracking_uri import tracking_uri, without_secrets

PATIENCE = 60.0  # seconds that a stage waits at its end until all is delivered
AFTER_FAILURE = 10.0  # the same where the store has not taken an earlier stage's events yet: it is down or slow


class Tracker:
    """The MLflow run of one stage, from `with` to its end.

    `params` are dotted names and values, `inputs` digests by path, `key` the stage's fingerprint. Raises
    WordmillError where MLflow is wrongly set up; a store that is down costs a warning, not the stage.
    """

    def __init__(self, stage: str, params: Mapping[str, Any], inputs: Mapping[str, str], key: str) -> None:
        self._stage = stage
        self._start = {
            "kind": "start",
            "stage": stage,
            "params": dict(params),
            "inputs": dict(inputs),
            "fingerprint": key,
            "rebuild": lineage.rebuild(),
            "pid": str(os.getpid()),
            "started": processes.started(os.getpid()),
        }

    def __enter__(self) -> "Tracker":
        self._uri = tracking_uri()
        # What cannot be delivered is kept in a file, so no password goes along. The process knows the address itself.
        start = {**self._start, "uri": without_secrets(self._uri), "time": now()}
        kept = delivery.UNDELIVERED / f"{self._stage}-{self._start['pid']}-{self._start['started']}.jsonl"
        self._mailbox = Mailbox(delivery.__name__, kept, start)
        return self

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Figures at a step."""
        self._mailbox.post("metrics", values={name: float(value) for name, value in values.items()}, step=step)

    def artifact(self, path: Path, folder: str = "") -> None:
        """A file or folder to keep with the run. It is read in the background: leave it as it is until the end."""
        if not path.exists():
            raise FileNotFoundError(path)
        self._mailbox.post("artifact", path=str(path), folder=folder, modified=lineage.modified(path))

    def dataset(self, name: str, source: str, digest: str, counts: Mapping[str, int]) -> None:
        """A data set that the stage used or made: what it is called, where it is from, its hash, its sizes."""
        self._mailbox.post("dataset", name=name, source=source, digest=digest, counts=dict(counts))

    def tags(self, values: Mapping[str, str]) -> None:
        """Short texts about the run."""
        self._mailbox.post("tags", values={name: str(value) for name, value in values.items()})

    def text(self, path: str, text: str) -> None:
        """A text to keep with the run, as a file at `path`."""
        self._mailbox.post("text", path=path, text=text)

    def sources(self, digests: Mapping[str, str]) -> None:
        """Digests of the files of the user's own that the stage has read, by path."""
        self._mailbox.post("sources", digests=dict(digests))

    def headlines(self, values: Mapping[str, float]) -> None:
        """The few figures by which rebuilds are compared: the parent shows these and no others."""
        self._mailbox.post("headlines", values=dict(values))

    def model(self, folder: Path, name: str, tags: Mapping[str, str]) -> None:
        """A model folder to register under `name` (`stages.registry`). Leave it as it is until the end."""
        self._mailbox.post("model", path=str(folder), name=name, tags=dict(tags), modified=lineage.modified(folder))

    def outputs(self, digests: Mapping[str, str]) -> None:
        """Digests of what the stage has made, by path: how later rebuilds find this run."""
        self._mailbox.post("outputs", digests=dict(digests))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            status = "FINISHED"
        elif isinstance(error, Exception):
            status = "FAILED"
        else:
            status = "KILLED"
        # The end of the parent process sends another SIGTERM: the run must be closed all the same.
        in_main = threading.current_thread() is threading.main_thread()
        handler = signal.signal(signal.SIGTERM, signal.SIG_IGN) if in_main else None
        try:
            if error is not None:
                told = "".join(traceback.format_exception(error)) if isinstance(error, Exception) else ""
                text = f"{last_lines.printed()}\n{told}".strip()
                with contextlib.suppress(WordmillError):  # wrongly set up: `close` tells it
                    self.text("log/last_lines.txt", text)
            message = f"{type(error).__name__}: {error}" if isinstance(error, Exception) else ""
            try:
                self._mailbox.close(self._patience(status), status=status, error=message)
            except WordmillError as refused:
                if error is None:
                    raise
                print(f"warning: {refused}", file=sys.stderr)
        finally:
            if in_main:
                signal.signal(signal.SIGTERM, handler)

    def _patience(self, status: str) -> float:
        if status == "KILLED":
            return KILLED_PATIENCE
        return AFTER_FAILURE if delivery.are_kept(self._uri) else PATIENCE
