"""The place that talks to DVC: its graph, and running one of its stages. (`pipeline.status` asks it what would run.)

A stage runs as `dvc repro --single-item` in a process of its own (this module run as a program). DVC forwards no
signal, and an orchestrator's cancelling kills no grandchildren, so the process

- is the leader of a session, and the whole session is ended (TERM, a time of grace, KILL) whatever way `run` is left;
- is told by the kernel when the process that started it dies, however that happens;
- is read by a thread, so that the waiting code wakes five times a second and can be cancelled.

`--wait-for-lock` makes stages that run at the same time safe: without it one that ends while another holds DVC's lock
fails and loses its outputs.
"""

import contextlib
import ctypes
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from pathlib import Path

from llm.errors import WordmillError

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
    """A stage ended with an error; the message is its last words."""


def graph() -> dict[str, tuple[str, ...]]:
    """Every stage and those whose output it needs, each after these. Raises WordmillError."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo() as repo:
            edges = repo.index.graph  # from a stage to what it needs
            needs = {stage.addressing: sorted(other.addressing for other in edges.successors(stage)) for stage in edges}
    except DvcException as error:
        raise WordmillError(f"DVC: {' '.join(str(error).split())}") from None
    ordered: dict[str, tuple[str, ...]] = {}

    def visit(name: str) -> None:  # DVC has made sure that there is no cycle
        if name not in ordered:
            for other in needs[name]:
                visit(other)
            ordered[name] = tuple(needs[name])

    for name in needs:
        visit(name)
    return ordered


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
) -> Outcome:
    """Bring one stage up to date; `tell` gets each line of output. Raises StageFailedError."""
    command = [sys.executable, "-m", "pipeline.dvc", str(os.getpid())]
    command += ["--wait-for-lock", "repro", "--single-item", *(["--force"] if force else []), name]
    lines: list[str] = []
    with _session(command, environment or {}) as process:
        for line in _lines(process):
            lines.append(line)
            if not line.startswith(HINTS):
                tell(line)
        status = process.wait()
    if status:
        raise StageFailedError(_last_words(name, lines, status))
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
    command = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", *targets]
    lines: list[str] = []
    with _session(command, environment or {}, folder) as process:
        for line in _lines(process):
            lines.append(line)
            if not line.startswith(HINTS):
                tell(line)
        status = process.wait()
    if status:
        started = [line.split("'")[1] for line in lines if line.startswith("Running stage '")]
        raise StageFailedError(_last_words(started[-1] if started else "dvc", lines, status))


@contextlib.contextmanager
def _session(
    command: list[str], environment: Mapping[str, str], folder: Path = Path()
) -> Iterator[subprocess.Popen[str]]:
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


def _lines(process: subprocess.Popen[str]) -> Iterator[str]:
    """The lines that a process prints, until it closes its output; a progress bar's returns end a line too."""
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
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)
        if os.getppid() != parent:  # it died before the kernel was asked
            return 143
    from dvc.cli import main

    return int(main(arguments))


if __name__ == "__main__":
    sys.exit(_be_dvc(int(sys.argv[1]), sys.argv[2:]))
