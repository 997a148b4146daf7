"""What every stage has around its work: strict params, one-line errors, no orphans, a lock, a place to resume from.

`main` is a stage script's entry point. Around `run(params, stage)` it

- reads the declared sections of params.yaml and turns a WordmillError into one line and exit status 2;
- asks the kernel to end the process when its parent dies: DVC forwards no signal, and an orphaned training would go
  on beside the next one;
- ends it at the first SIGTERM or Ctrl-C, and takes no second one: whoever stops a stage often does so twice (a
  terminal and DVC, a scheduler and the kernel), and the MLflow run must still be closed;
- holds a lock per stage, for the same reason;
- gives the stage a scratch folder `runs/<stage>/<fingerprint>/`. The fingerprint is taken from the params and the
  content of every dependency, so a run that was killed finds its own state again, and a changed run never finds a
  stale one. The folder is removed once the stage has succeeded;
- opens the MLflow run of the stage.
"""

import ctypes
import hashlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout
from ruamel.yaml import YAML

from llm.errors import WordmillError
from stages import params as params_file
from stages.tracking import Tracker

RUNS = Path("runs")
LOCK_SECONDS = 10.0  # how long the end of a stopped predecessor may take
P = TypeVar("P")


class Stage:
    """What a running stage gets: its name, its scratch folder, and a way to tell MLflow."""

    def __init__(self, name: str, scratch: Path, tracker: Tracker) -> None:
        self.name = name
        self.scratch = scratch
        self.metrics = tracker.metrics
        self.artifact = tracker.artifact
        self.dataset = tracker.dataset
        self.tags = tracker.tags


def main(name: str, params_type: type[P], run: Callable[[P, Stage], None]) -> None:
    """Run one stage; never returns. Exit status 0, 2 for a user's mistake, 130 after Ctrl-C, 143 after SIGTERM."""
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, _stop)
    _die_with_parent()
    try:
        _run(name, params_type, run)
    except WordmillError as error:
        print(f"{name}: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"{name}: interrupted; `dvc repro` goes on where it stopped", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)


def _run(name: str, params_type: type[P], run: Callable[[P, Stage], None]) -> None:
    params = params_file.load(params_type)
    RUNS.mkdir(exist_ok=True)
    lock = FileLock(RUNS / f"{name}.lock")
    try:
        lock.acquire(timeout=LOCK_SECONDS)
    except Timeout:
        raise WordmillError(f"another `{name}` runs in this folder; wait for it, or stop it, and try again") from None
    with lock:
        flat = params_file.flat(params)
        dependencies, outs = _declared(name)
        inputs = {path: digest(Path(path)) for path in dependencies}
        fingerprint = hashlib.sha256(json.dumps([flat, inputs], sort_keys=True).encode()).hexdigest()[:16]
        scratch = RUNS / name / fingerprint
        for stale in [p for p in (RUNS / name).glob("*") if p != scratch]:
            shutil.rmtree(stale)
        scratch.mkdir(parents=True, exist_ok=True)
        with Tracker(stage=name, params=flat, inputs=inputs, key=fingerprint) as tracker:
            run(params, Stage(name, scratch, tracker))
            tracker.outputs({path: digest(Path(path)) for path in outs})
        shutil.rmtree(scratch)


def digest(path: Path) -> str:
    """SHA-256 of a file, or of a folder's relative names and contents in sorted order. Raises WordmillError."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    if not path.is_dir():
        raise WordmillError(f"{path}: not found; `dvc repro` makes it, or `dvc checkout` brings it back")
    whole = hashlib.sha256()
    for file_path in sorted(p for p in path.rglob("*") if p.is_file()):
        whole.update(f"{file_path.relative_to(path).as_posix()}\0{digest(file_path)}\n".encode())
    return whole.hexdigest()


def _declared(name: str) -> tuple[list[str], list[str]]:
    """The dependencies and the outputs (with metrics and plots) of a stage, as dvc.yaml lists them."""
    stages = YAML(typ="safe", pure=True).load(Path("dvc.yaml"))["stages"]
    stage: dict[str, Any] = stages[name]
    outs = [*stage.get("outs", []), *stage.get("metrics", []), *stage.get("plots", [])]
    return list(stage.get("deps", [])), [next(iter(out)) if isinstance(out, dict) else out for out in outs]


def _die_with_parent() -> None:
    if sys.platform == "linux":
        parent = os.getppid()
        pr_set_pdeathsig = 1
        ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGTERM)
        if os.getppid() != parent:  # it died before the kernel was asked
            sys.exit(143)


def _stop(signum: int, frame: Any) -> None:
    for taken in (signal.SIGTERM, signal.SIGINT):
        signal.signal(taken, signal.SIG_IGN)
    if signum == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + signum)
