"""The place that talks to DVC: its graph, and running one of its stages. (`pipeline.status` asks it what would run.)

A stage runs as `dvc repro --single-item` in a process of its own (this module run as a program). DVC forwards no
signal, and an orchestrator's cancelling kills no grandchildren, so the process

- is the leader of a session, and the whole session is ended (TERM, a time of grace, KILL) whatever way `run` is left;
- is told by the kernel when the process that started it dies, however that happens;
- is read by a thread, so that the waiting code wakes five times a second, and sees a wish to stop and a time limit.

`--wait-for-lock` makes stages that run at the same time safe: without it one that ends while another holds DVC's lock
fails and loses its outputs.
"""

import contextlib
import math
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from enum import Enum
from pathlib import Path

from llm.errors import TransientError, WordmillError
from pipeline.repair import repair
from stages.processes import die_with_parent

# What DVC says after each stage about commands to type next.
HINTS = (
    "To track the changes with git",
    "\tgit add",
    "To enable auto staging",
    "\tdvc config core.autostage",
    "Use `dvc push`",
)
GRACE = 15.0  # seconds between TERM and KILL: a training writes its checkpoint


class Outcome(Enum):
    RAN = "ran"
    UNCHANGED = "nothing that it depends on has changed"
    CACHED = "its output was made before and comes from the cache"


class StageFailedError(Exception):
    """A stage ended with an error; the message is its last words. `transient`: the same again may go well."""

    def __init__(self, message: str, transient: bool = False) -> None:
        super().__init__(message)
        self.transient = transient


class StoppedError(Exception):
    """A stage was stopped because `stop` was set."""


class _Limit:
    """When to leave a stage that still runs: at a wish, or after a time."""

    def __init__(self, stop: threading.Event | None, seconds: float | None) -> None:
        self._stop = stop
        self._seconds = seconds
        self._end = math.inf if seconds is None else time.monotonic() + seconds

    def check(self, name: str) -> None:
        if self._stop is not None and self._stop.is_set():
            raise StoppedError(f"{name}: stopped; the next rebuild goes on where it stopped")
        if time.monotonic() > self._end:
            raise StageFailedError(
                f"{name}: stopped at the time limit of {self._seconds:g} s; the next rebuild goes on where it stopped"
            )


def graph() -> dict[str, tuple[str, ...]]:
    """Every stage and those whose output it needs, each after these. Raises WordmillError."""
    from dvc.repo import Repo

    repair()
    with _told(), Repo() as repo:
        edges = repo.index.graph  # from a stage to what it needs
        needs = {stage.addressing: sorted(other.addressing for other in edges.successors(stage)) for stage in edges}
    ordered: dict[str, tuple[str, ...]] = {}

    def visit(name: str) -> None:  # DVC has made sure that there is no cycle
        if name not in ordered:
            for other in needs[name]:
                visit(other)
            ordered[name] = tuple(needs[name])

    for name in needs:
        visit(name)
    return ordered


def between(graph: Mapping[str, tuple[str, ...]], first: str | None, last: str | None) -> list[str]:
    """The stages from `first` on (it and all that follows from it) and up to `last` (it and all that it needs).

    In the graph's order; None sets no end. Raises WordmillError for a name that is no stage's, or if none is left.
    """
    for option, name in (("from_stage", first), ("until_stage", last)):
        if name is not None and name not in graph:
            raise WordmillError(f"{option}: {name!r} is no stage; there are {', '.join(graph)}")
    wanted = set(graph)
    if last is not None:
        wanted = {last}
        for name in reversed(list(graph)):
            if name in wanted:
                wanted |= set(graph[name])
    if first is not None:
        following = {first}
        for name, needed in graph.items():
            if following & set(needed):
                following.add(name)
        wanted &= following
    if not wanted:
        raise WordmillError(f"from_stage, until_stage: {last} does not follow from {first}, so no stage is left")
    return [name for name in graph if name in wanted]


def check_inputs(graph: Mapping[str, tuple[str, ...]], wanted: Collection[str]) -> None:
    """Raises WordmillError if a stage in `wanted` needs what a stage that is not in it should have made and has not."""
    from dvc.repo import Repo

    with Repo() as repo:
        for name in wanted:
            for other in graph[name]:
                if other in wanted:
                    continue
                (stage,) = repo.stage.collect(other)
                absent = [str(out) for out in stage.outs if not out.exists]
                if absent:
                    raise WordmillError(
                        f"from_stage: {name} needs {absent[0]}, which {other} makes and which is not there; "
                        f"begin at {other}"
                    )


def share_cache(root: Path, folder: Path) -> None:
    """Have the checkout in `folder` use the cache of the one in `root`, run cache included."""
    from dvc.repo import Repo

    with Repo(str(root)) as repo:
        cache = repo.cache.local_cache_dir
    with Repo(str(folder)) as repo, repo.config.edit("local") as config:
        config["cache"]["dir"] = cache


def checkout() -> None:
    """Bring back every output that dvc.lock names and the cache holds; the others are made again."""
    from dvc.repo import Repo

    with _told(), Repo() as repo:
        repo.checkout(force=True, allow_missing=True)


def save_experiment(name: str, stages: Collection[str]) -> None:
    """Save params, dvc.lock and metrics as the experiment `name`; `stages` are those whose outputs are there."""
    from dvc.repo import Repo

    with _told(), Repo() as repo:
        repo.experiments.save(list(stages), name=name, force=True, include_untracked=["dvc.lock"])


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """DVC's own errors as one line."""
    from dvc.exceptions import DvcException

    try:
        yield
    except DvcException as error:
        raise WordmillError(f"DVC: {' '.join(str(error).split())}") from None


def is_unchanged(name: str) -> bool:
    """Whether DVC would skip a stage. False if it cannot be told now: running the stage tells."""
    from dvc.exceptions import DvcException
    from dvc.lock import LockError
    from dvc.repo import Repo

    try:
        with Repo() as repo, repo.lock:
            (stage,) = repo.stage.collect(name)
            return not stage.changed()
    except (DvcException, LockError):
        return False


def run(
    name: str,
    tell: Callable[[str], None],
    force: bool = False,
    environment: Mapping[str, str] | None = None,
    stop: threading.Event | None = None,
    seconds: float | None = None,
) -> Outcome:
    """Bring one stage up to date; `tell` gets each line of output.

    `seconds` is the longest that it may take. Raises StageFailedError, and StoppedError soon after `stop` is set;
    either way nothing of the stage runs any more.
    """
    command = [sys.executable, "-m", "pipeline.dvc", str(os.getpid())]
    command += ["--wait-for-lock", "repro", "--single-item", *(["--force"] if force else []), name]
    limit = _Limit(stop, seconds)
    limit.check(name)
    lines, status = _heard(command, environment or {}, Path(), tell, lambda: limit.check(name))
    if status:
        told = f"exited with {TransientError.status}"  # DVC's own status is the same for every failure
        transient = any(line.startswith("ERROR: ") and line.endswith(told) for line in lines)
        raise StageFailedError(_last_words(name, lines, status), transient)
    if f"Stage '{name}' didn't change, skipping" in lines:
        return Outcome.UNCHANGED
    if f"Stage '{name}' is cached - skipping run, checking out outputs" in lines:
        return Outcome.CACHED
    return Outcome.RAN


def repro(
    folder: Path, targets: list[str], tell: Callable[[str], None], environment: Mapping[str, str] | None = None
) -> None:
    """`dvc repro` in another checkout, all stages or what `targets` need. Raises StageFailedError.

    An empty value in `environment` takes a name out of it.
    """
    repair(folder, tell)
    command = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", *targets]
    lines, status = _heard(command, environment or {}, folder, tell, lambda: None)
    if status:
        started = [line.split("'")[1] for line in lines if line.startswith("Running stage '")]
        raise StageFailedError(_last_words(started[-1] if started else "dvc", lines, status))


def _heard(
    command: list[str],
    environment: Mapping[str, str],
    folder: Path,
    tell: Callable[[str], None],
    check: Callable[[], None],
) -> tuple[list[str], int]:
    """What a command prints, each line told but for DVC's hints, and its exit status. `check` may raise at any time."""
    lines: list[str] = []
    with _session(command, environment, folder) as process:
        for line in _lines(process):
            check()
            if line is not None:
                lines.append(line)
                if not line.startswith(HINTS):
                    tell(line)
        return lines, process.wait()


@contextlib.contextmanager
def _session(command: list[str], environment: Mapping[str, str], folder: Path) -> Iterator[subprocess.Popen[str]]:
    programs = str(Path(sys.executable).parent)  # `python` in dvc.yaml is this environment's
    env = {
        **os.environ,
        "PATH": os.pathsep.join([programs, os.environ.get("PATH", os.defpath)]),
        "PYTHONUNBUFFERED": "1",
        "DVC_NO_ANALYTICS": "1",
        **environment,
    }
    process = subprocess.Popen(
        command,
        cwd=folder,
        env={name: value for name, value in env.items() if value},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    )
    try:
        yield process
    finally:
        _end(process)


def _end(process: subprocess.Popen[str]) -> None:
    """End every process of the session that is left."""
    deadline = time.monotonic() + GRACE
    with contextlib.suppress(ProcessLookupError):  # none is left
        os.killpg(process.pid, signal.SIGTERM)
        while time.monotonic() < deadline:
            process.poll()  # a dead leader that nobody waited for would count as alive
            os.killpg(process.pid, 0)
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _lines(process: subprocess.Popen[str]) -> Iterator[str | None]:
    """The lines that a process prints, until it closes its output; None at times while it prints none.

    A progress bar's returns end a line too.
    """
    pieces: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    stream = process.stdout
    assert stream is not None

    def pump() -> None:
        for line in stream:
            pieces.put(line)
        pieces.put(None)

    threading.Thread(target=pump, daemon=True).start()
    while True:
        try:
            line = pieces.get(timeout=0.2)
        except queue.Empty:
            yield None
            continue
        if line is None:
            return
        for part in re.split(r"[\r\n]+", line):
            if part.strip():
                yield part.rstrip()


def _last_words(name: str, lines: list[str], status: int) -> str:
    """The line that says best why a stage failed: its own one-line error, else the end of its traceback."""
    own = [line for line in lines if not line.startswith(("ERROR: ", "WARNING: "))]
    for line in reversed(own):
        if line.startswith(f"{name}: "):
            return line
    ours = [line for line in lines if line.startswith("ERROR: ")]
    ran = f"Running stage '{name}':" in lines
    last = (own[-1] if ran and own else ours[-1].removeprefix("ERROR: ") if ours else "") or f"ended with {status}"
    return f"{name}: {last}"


def _be_dvc(parent: int, arguments: list[str]) -> int:
    """What the child process does: tie its life to its parent's, then be DVC."""
    die_with_parent(signal.SIGTERM, parent)
    repair()
    from dvc.cli import main

    return int(main(arguments))


if __name__ == "__main__":
    sys.exit(_be_dvc(int(sys.argv[1]), sys.argv[2:]))
