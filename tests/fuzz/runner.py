"""Runs a reader on many damaged inputs, in a process of its own with limits, and counts what comes of each.

A `Reader` writes a valid input into a folder, and reads it. A `Fuzzer` damages one file at a time (`mutations.py`) and
calls the reader. What can come of it:

- accepted: the reader returned.
- clean: the reader raised WordmillError with one printable line.
- crash: any other exception, a line that is not one printable line, or the end of the process.
- hang: more than `CPU_LIMIT` seconds of processor time, or no answer for `WALL_LIMIT` seconds.
- memory: more than `MEMORY_LIMIT` bytes of address space beside what the process had.

The mutation number `index` of a seed is always the same, so a finding can be run again alone:

    python -m tests.fuzz.runner tests.fuzz.readers "model folder" --seed 1 --first 123 --count 1
"""

import argparse
import importlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from tests.fuzz.mutations import Form

CPU_LIMIT = float(os.environ.get("FUZZ_CPU_LIMIT", "10"))  # seconds of processor time for one input
WALL_LIMIT = 300.0  # seconds for one input: a reader that waits for something that never comes
MEMORY_LIMIT = 1 << 30  # bytes
ROOT = Path(__file__).parents[2]
# A process that forks must have no threads: no pool of OpenMP's, and none of the allocator that Arrow brings along.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "ARROW_DEFAULT_MEMORY_POOL": "system", "HF_HUB_OFFLINE": "1"}
CLASSES = ("accepted", "clean", "crash", "hang", "memory")


@dataclass(frozen=True)
class Reader:
    """A reader under test. `write` and `read` get the same folder, which is empty before `write`."""

    write: Callable[[Path], object]  # a valid input
    read: Callable[[Path], object]  # raises WordmillError for a damaged one
    files: Mapping[str, Form]  # patterns below the folder, of the files to damage, and their forms
    whole: bool = True  # files are also removed, emptied and replaced by folders and dangling links


@dataclass(frozen=True)
class Finding:
    """What came of one input."""

    index: int
    mutation: str
    outcome: str  # one of CLASSES
    detail: str = ""  # the message, or the end of the traceback


@dataclass
class Result:
    """The counts of one reader."""

    counts: Counter[str] = field(default_factory=Counter)
    bad: list[Finding] = field(default_factory=list)
    memory: int = 0  # largest resident set beside that before the first input, bytes
    messages: Counter[str] = field(default_factory=Counter)  # of the clean outcomes, their first words

    @property
    def mutations(self) -> int:
        return sum(self.counts.values())

    def __iadd__(self, other: "Result") -> "Result":
        self.counts += other.counts
        self.bad += other.bad
        self.messages += other.messages
        self.memory = max(self.memory, other.memory)
        return self

    def add(self, finding: Finding, memory: int) -> None:
        self.counts[finding.outcome] += 1
        self.memory = max(self.memory, memory)
        if finding.outcome == "clean":
            self.messages[finding.detail[:60]] += 1
        elif finding.outcome != "accepted":
            self.bad.append(finding)


class Fuzzer:
    """One process that has imported `module`, with its table READERS, and forks for each reader.

    with Fuzzer("tests.fuzz.readers") as fuzzer:
        result = fuzzer.run("Llama folder", count=300)
    """

    def __init__(self, module: str) -> None:
        self.module = module

    def __enter__(self) -> Self:
        self._folder = tempfile.mkdtemp(prefix="fuzz-")
        self._channel, write_end = os.pipe()
        self._errors = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.fuzz.worker", self.module, str(write_end)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), **ENVIRONMENT},
            pass_fds=[write_end],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self._errors,
        )
        os.close(write_end)
        self._waiting = b""
        return self

    def __exit__(self, *error: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        self._errors.close()
        os.close(self._channel)
        shutil.rmtree(self._folder, ignore_errors=True)

    def run(self, reader: str, count: int, seed: int = 1, first: int = 0) -> Result:
        """Run the inputs `first` to `first + count` of one reader."""
        result, end = Result(), first + count
        while first < end:
            finding = None
            for finding, memory in self._fork(reader, seed, first, end):
                result.add(finding, memory)
            if finding is None:
                raise RuntimeError(f"{reader}: the undamaged input is not accepted: {self._stderr()}")
            first = finding.index + 1
        return result

    def _fork(self, reader: str, seed: int, first: int, end: int) -> Iterator[tuple[Finding, int]]:
        """What one child finds until it is done or dies; the input at which it died is the last finding."""
        at = Path(tempfile.mkdtemp(dir=self._folder))
        job = {"reader": reader, "seed": seed, "first": first, "end": end, "folder": str(at)}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(job).encode() + b"\n")
        self._process.stdin.flush()
        child, begun, hangs = 0, None, False
        while True:
            event = self._event()
            if event is None:
                hangs = True
                os.kill(child, signal.SIGKILL)
            elif event["event"] == "child":
                child = event["pid"]
            elif event["event"] == "begin":
                begun = event
            elif event["event"] == "end":
                begun = None
                yield Finding(event["index"], event["mutation"], event["outcome"], event["detail"]), event["memory"]
            else:
                if begun is not None:
                    hangs = hangs or event["status"] == -signal.SIGXCPU
                    detail = f"the process ended with status {event['status']}: {self._stderr()}"
                    yield Finding(begun["index"], begun["mutation"], "hang" if hangs else "crash", detail), 0
                elif event["status"]:
                    raise RuntimeError(f"{reader}: the fuzzing process failed: {self._stderr()}")
                break
        shutil.rmtree(at, ignore_errors=True)

    def _event(self) -> dict[str, Any] | None:
        """The next line of the process; None if it sends nothing for too long."""
        while b"\n" not in self._waiting:
            if not select.select([self._channel], [], [], WALL_LIMIT)[0]:
                return None
            data = os.read(self._channel, 1 << 16)
            if not data:
                raise RuntimeError(f"the fuzzing process ended: {self._stderr()}")
            self._waiting += data
        line, _, self._waiting = self._waiting.partition(b"\n")
        event: dict[str, Any] = json.loads(line)
        return event

    def _stderr(self) -> str:
        self._errors.seek(max(0, os.fstat(self._errors.fileno()).st_size - 3000))
        return self._errors.read().decode(errors="replace")


def main() -> None:
    parser = argparse.ArgumentParser(description="Run one reader on damaged inputs and print what is not clean.")
    parser.add_argument("module")
    parser.add_argument("reader", nargs="?", help="default: all of the module's table READERS")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=300)
    options = parser.parse_args()
    names = [options.reader] if options.reader else list(importlib.import_module(options.module).READERS)
    with Fuzzer(options.module) as fuzzer:
        for name in names:
            result = fuzzer.run(name, options.count, options.seed, options.first)
            print(f"{name}: {dict(result.counts)}, {result.memory / 1e6:.0f} MB", flush=True)
            for finding in result.bad:
                print(f"  {finding.index} {finding.outcome}: {finding.mutation}\n    {finding.detail}", flush=True)


if __name__ == "__main__":
    main()
