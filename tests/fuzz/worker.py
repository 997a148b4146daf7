"""The process in which `runner.py` calls readers: `python -m tests.fuzz.worker MODULE DESCRIPTOR`.

It imports the module once. Each line of its standard input is a job, done by a forked child: one reader, some inputs.
Two lines of JSON go to the descriptor for each input, before and after it is read.
"""

import faulthandler
import gc
import importlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from llm.errors import WordmillError
from tests.fuzz.mutations import Form, mutate
from tests.fuzz.runner import CPU_LIMIT, MEMORY_LIMIT, Reader

LONGEST = 3_000  # characters of a message that still counts as one clear line
WHOLE_FILE = ("missing", "empty", "folder", "dangling link")
OUT_OF_MEMORY = (
    "DefaultCPUAllocator",
    "Cannot allocate memory",
    "cannot allocate memory",
    "bad_alloc",
    "realloc of size",
)


class TakesTooLong(BaseException):
    """Not an Exception, so that no reader catches it."""


def run(reader: Reader, name: str, seed: int, first: int, end: int, channel: int, folder: Path) -> None:
    reader.write(folder)
    reader.read(folder)  # the undamaged input is accepted, and all modules are imported
    targets = [
        (path, form)
        for pattern, form in reader.files.items()
        for path in sorted(folder.glob(pattern))
        if path.is_file()
    ]
    originals = {path: path.read_bytes() for path, _ in targets}
    assert originals, f"{name}: no file matches {list(reader.files)}"
    _limit_memory()
    before = _resident()
    for index in range(first, end):
        chosen = random.Random(f"{seed}/{name}/{index}")
        path, form = chosen.choice(targets)
        with _damaged(path, form, originals[path], chosen, reader.whole) as mutation:
            what = f"{path.relative_to(folder)}: {mutation}"
            _send(channel, event="begin", index=index, mutation=what)
            _forget_peak()
            outcome, detail = _outcome(reader, folder)
            memory = max(0, _peak() - before)
            _send(
                channel, event="end", index=index, mutation=what, outcome=outcome, detail=detail[-3000:], memory=memory
            )
        gc.collect(0)


@contextmanager
def _damaged(path: Path, form: Form, original: bytes, chosen: random.Random, whole: bool) -> Iterator[str]:
    """One file of the input replaced; it is put back at the end."""
    if whole and chosen.random() < 0.03:
        name = chosen.choice(WHOLE_FILE)
        path.unlink()
        if name == "folder":
            path.mkdir()
        elif name == "dangling link":
            path.symlink_to("nowhere")
        elif name == "empty":
            path.touch()
    else:
        name, content = mutate(original, form, chosen)
        path.write_bytes(content)
    try:
        yield name
    finally:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        path.write_bytes(original)


def _outcome(reader: Reader, folder: Path) -> tuple[str, str]:
    signal.setitimer(signal.ITIMER_PROF, CPU_LIMIT)
    used = int(sum(resource.getrusage(resource.RUSAGE_SELF)[:2]))
    resource.setrlimit(resource.RLIMIT_CPU, (used + int(3 * CPU_LIMIT) + 2, resource.RLIM_INFINITY))
    try:
        reader.read(folder)
        return "accepted", ""
    except WordmillError as error:
        line = str(error)
        if is_clear(line):
            return "clean", line
        return "crash", f"not one printable line: {line[:1000]!r}"
    except TakesTooLong:
        return "hang", traceback.format_exc(limit=-4)
    except MemoryError:
        return "memory", traceback.format_exc(limit=-4)
    except BaseException as error:
        where = traceback.format_exc(limit=-4)
        return ("memory" if any(sign in str(error) for sign in OUT_OF_MEMORY) else "crash"), where
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def is_clear(line: str) -> bool:
    """Whether a message is one printable line that fits into a terminal."""
    return line.isprintable() and 0 < len(line) <= LONGEST


def _too_long(number: int, frame: FrameType | None) -> NoReturn:
    raise TakesTooLong


def _send(channel: int, **event: Any) -> None:
    os.write(channel, json.dumps(event).encode() + b"\n")


def _limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY_LIMIT
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _peak() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def main() -> None:
    module, descriptor = sys.argv[1], int(sys.argv[2])
    os.set_inheritable(descriptor, False)
    readers = importlib.import_module(module).READERS
    for line in sys.stdin:
        job = json.loads(line)
        if child := os.fork():
            _, status = os.waitpid(child, 0)
            _send(descriptor, event="exit", status=os.waitstatus_to_exitcode(status))
        else:
            _work(readers[job["reader"]], job, descriptor)


def _work(reader: Reader, job: dict[str, Any], channel: int) -> NoReturn:
    """A child's whole life."""
    status = 1
    try:
        faulthandler.register(signal.SIGUSR1)
        signal.signal(signal.SIGPROF, _too_long)
        _send(channel, event="child", pid=os.getpid())
        run(reader, job["reader"], job["seed"], job["first"], job["end"], channel, Path(job["folder"]))
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    main()
