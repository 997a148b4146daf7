"""What every stage has around its work: strict params, one-line errors, no orphans, a lock, a place to resume from.

`main` is a stage script's entry point. Around `run(params, stage)` it

- reads the declared sections of params.yaml and turns a WordmillError into one line and exit status 2, and so a full
  or read-only disk;
- asks the kernel to end the process when its parent dies: DVC forwards no signal, and an orphaned training would go
  on beside the next one;
- ends it at the first SIGTERM or Ctrl-C, and takes no second one: whoever stops a stage often does so twice (a
  terminal and DVC, a scheduler and the kernel), and the MLflow run must still be closed. A training, which knows
  better where to stop, asks for the signal with `stage.stopping()`;
- holds a lock per stage, for the same reason;
- gives the stage a scratch folder `runs/<stage>/<fingerprint>/`. The fingerprint is taken from the params and the
  content of every dependency, so a run that was killed finds its own state again, and a changed run never finds a
  stale one. The folder is removed once the stage has succeeded (`stages.scratch`);
- opens the MLflow run of the stage, and at the end gives it the figures of the stage's metrics files.
"""

import ctypes
import errno
import hashlib
import json
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout
from ruamel.yaml import YAML

from llm.errors import WordmillError
from stages import last_lines
from stages import params as params_file
from stages.metrics import numbers
from stages.scratch import RUNS, scratch
from stages.tracking import Tracker

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
        self.text = tracker.text
        self.model = tracker.model
        self.stopping = _signals.awaited


def main(name: str, params_type: type[P], run: Callable[[P, Stage], None]) -> None:
    """Run one stage; never returns.

    Exit status 0, 2 for a user's mistake, 75 where the same again may go well, 130 after Ctrl-C, 143 after SIGTERM.
    """
    _signals.install()
    die_with_parent(signal.SIGTERM, os.getppid())
    last_lines.keep()
    try:
        _run(name, params_type, run)
    except WordmillError as error:
        print(f"{name}: {error}", file=sys.stderr)
        sys.exit(error.status)
    except Exception as error:
        if not (problem := disk_problem(error)):
            raise
        print(f"{name}: {problem}", file=sys.stderr)
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
        dependencies, outs, metrics = _declared(name)
        inputs = {path: digest(Path(path)) for path in dependencies}
        fingerprint = hashlib.sha256(json.dumps([flat, inputs], sort_keys=True).encode()).hexdigest()[:16]
        tracker = Tracker(stage=name, params=flat, inputs=inputs, key=fingerprint)
        with scratch(name, fingerprint, params_file.named_files(flat)) as folder, tracker:
            run(params, Stage(name, folder, tracker))
            tracker.headlines({key: value for path in metrics for key, value in _figures(name, Path(path)).items()})
            if sources := params_file.named_files(flat):
                tracker.sources({str(path): digest(path) for path in sources})
            tracker.outputs({path: digest(Path(path)) for path in [*outs, *metrics]})


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


def disk_problem(error: Exception) -> str | None:
    """One line on a disk that takes no more, or that we may not use; None for any other error."""
    number = error.errno if isinstance(error, OSError) else None
    if number is None and (told := re.search(r"\(os error (\d+)\)", str(error))):  # as safetensors, in Rust, says it
        number = int(told[1])
    name = getattr(error, "filename", None)
    place = str(name) if name else "an output"  # a write to an open file does not say which
    if number in (errno.ENOSPC, errno.EDQUOT):
        what = "no space left on device" if number == errno.ENOSPC else "disk quota exceeded"
        return f"{what} while writing {place}; free some and run `dvc repro` again"
    if number == errno.EROFS:
        return f"{place}: the file system is read-only; make it writable and run `dvc repro` again"
    if number in (errno.EACCES, errno.EPERM) and name and Path(os.fsdecode(name)).absolute().is_relative_to(Path.cwd()):
        return f"{place}: permission denied; see with `ls -l` whose it is, and run `dvc repro` again"
    return None


def _figures(stage: str, path: Path) -> dict[str, float]:
    """The numbers of a metrics file; the file's name goes before them where it is not the stage's."""
    content = json.loads(path.read_text(encoding="utf-8"))
    return numbers(content, "" if path.stem == stage else f"{path.stem}.")


def _declared(name: str) -> tuple[list[str], list[str], list[str]]:
    """The dependencies, the outputs (with plots) and the metrics of a stage, as dvc.yaml lists them."""
    stages = YAML(typ="safe", pure=True).load(Path("dvc.yaml"))["stages"]
    stage: dict[str, Any] = stages[name]

    def paths(*kinds: str) -> list[str]:
        entries = [entry for kind in kinds for entry in stage.get(kind, [])]
        return [next(iter(entry)) if isinstance(entry, dict) else entry for entry in entries]

    return paths("deps"), paths("outs", "plots"), paths("metrics")


def die_with_parent(signum: signal.Signals, parent: int) -> None:
    """Ask the kernel for a signal when `parent`, the process that started this one, ends. On Linux only."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signum)
        if os.getppid() != parent:  # it died before the kernel was asked
            sys.exit(143)


class _Signals:
    """The first SIGTERM or Ctrl-C: at once an exception, or a wish that the stage's work looks for."""

    def __init__(self) -> None:
        self._awaited = False
        self._seen = 0

    def install(self) -> None:
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, self._take)

    @contextmanager
    def awaited(self) -> Iterator[Callable[[], bool]]:
        """Within it a signal only makes the function it gives return True; it takes effect at the end of the block."""
        self._awaited = True
        try:
            yield lambda: self._seen != 0
        finally:
            self._awaited = False
        if self._seen:
            self._stop()

    def _take(self, signum: int, frame: Any) -> None:
        for taken in (signal.SIGTERM, signal.SIGINT):
            signal.signal(taken, signal.SIG_IGN)
        self._seen = signum
        if not self._awaited:
            self._stop()

    def _stop(self) -> None:
        if self._seen == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + self._seen)


_signals = _Signals()
