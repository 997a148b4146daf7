"""What every stage has around its work: strict params, one-line errors, no orphans, a lock, a place to resume from.

`main` is a stage script's entry point. Around `run(params, stage)` it

- reads the declared sections of params.yaml, checks what all stages that follow would refuse (`stages.preflight`), and
  turns a WordmillError into one line and exit status 2, and so a full
  or read-only disk;
- asks the kernel to end the process when its parent dies: DVC forwards no signal, and an orphaned training would go
  on beside the next one;
- ends it at the first SIGTERM or Ctrl-C, and takes no second one: whoever stops a stage often does so twice (a
  terminal and DVC, a scheduler and the kernel), and the MLflow run must still be closed. A training, which knows
  better where to stop, asks for the signal with `stage.stopping()`;
- holds a lock per stage, for the same reason;
- gives the stage a scratch folder `runs/<stage>/<fingerprint>/`. The fingerprint is taken from the params and the
  content of every dependency, so a run that was killed finds its own state again, and a changed run never finds a
  stale one (`stages.scratch`);
- compares params and dependencies at the end with what they were at the beginning, and fails where they differ, since
  DVC would record the later ones (`stages.inputs`);
- opens the MLflow run of the stage, and at the end gives it the figures of the stage's metrics files.
"""

import errno
import importlib
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from filelock import FileLock, Timeout

from llm.errors import WordmillError
from stages import last_lines, lineage
from stages import params as params_file
from stages.inputs import fingerprint, read
from stages.lineage import declared, digest
from stages.metrics import figures
from stages.processes import die_with_parent
from stages.scratch import RUNS, finish, scratch
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
        self.kept_steps: set[int] = set()  # checkpoints that stay when the run has finished, besides the newest


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
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # at once: taking down so many modules in order would give an edit time to come before DVC's hashing


def _run(name: str, params_type: type[P], run: Callable[[P, Stage], None]) -> None:
    content = params_file.document()
    params = params_file.build(params_type, content, params_file.PARAMS.name)
    params_file.say_absent({name: content[name] for name in get_type_hints(params_type)})
    # By its name, since none of it goes into what a stage makes: DVC need not watch it.
    importlib.import_module("stages.preflight").check_from(name)
    if RUNS.exists() and not RUNS.is_dir():
        raise WordmillError(f"{RUNS}: not a folder, and stages keep their state there; move it away")
    RUNS.mkdir(exist_ok=True)
    lock = FileLock(RUNS / f"{name}.lock")
    try:
        lock.acquire(timeout=LOCK_SECONDS)
    except Timeout:
        raise WordmillError(f"another `{name}` runs in this folder; wait for it, or stop it, and try again") from None
    with lock:
        lineage.keep_lock()
        flat = params_file.flat(params)
        declaration = next(stage for stage in declared() if stage.name == name)
        inputs = read(declaration, content)
        named = [Path(source) for source in inputs.sources]
        recorded = partial(lineage.recorded, declaration, inputs.sections)
        key = fingerprint(params, inputs)
        tracker = Tracker(stage=name, params=flat, inputs=inputs.digests, key=key)
        with scratch(name, key, flat, named, recorded) as folder:
            stage = Stage(name, folder, tracker)
            with tracker:
                run(params, stage)
                inputs.check_unchanged()
                tracker.headlines(figures(name, declaration.metrics))
                if inputs.sources:
                    tracker.sources(inputs.sources)
                tracker.outputs({path: digest(Path(path)) for path in declaration.outs})
            inputs.check_unchanged()  # the tracker's end takes up to a minute
            left = finish(name, folder, stage.kept_steps, named, recorded)
        if left and name == "pretrain":
            print(f"{name}: for more steps, pretrain.continue_from: {left}", flush=True)
        inputs.check_unchanged()  # as late as can be: DVC is about to look at them


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
