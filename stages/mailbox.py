"""Delivery by a process of its own, so that a slow or dead tracking store never holds up the work.

The stage posts events as lines into a pipe and goes on; the process reads them at once and delivers them in order and
in batches. (A thread would not do: beside a stage that computes in Python it gets a share of the interpreter so small
that importing MLflow alone takes ten seconds.) When the stage is killed the pipe closes, and the process still closes
the run.

What the receiver cannot take is kept as JSON lines in a file, with one warning, and from then on everything goes
there: a store that has failed is not asked again in the middle of a training. A receiver that says at the start that
it is wrongly set up is the user's mistake, and is raised at the next post.
"""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from llm.errors import WordmillError

Event = Mapping[str, Any]  # plain data: "kind", "time" (milliseconds since 1970) and what belongs to the kind
KILLED_PATIENCE = 8.0  # seconds for the last delivery when the stage was killed: others wait for its end


class Unavailable(Exception):
    """The receiver cannot take events now; the message is one line."""


class Receiver(Protocol):
    def deliver(self, events: Sequence[Event]) -> None:
        """Take the events, in order. Raises Unavailable."""


class Mailbox:
    """The stage's end of the pipe. `module` is run as a program and calls `serve`; `header` is its first event.

    A thread writes, so that the stage goes on even where the pipe is full, since the process at its other end hangs.
    """

    def __init__(self, module: str, kept: Path, header: Event) -> None:
        self._kept = kept
        self._header = header
        self._refused: WordmillError | None = None
        root = str(Path(__file__).parents[1])
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, str(kept)],
            env={**os.environ, "PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._waiting: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._put(header)
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._send, self._listen)]
        for thread in self._threads:
            thread.start()

    def post(self, kind: str, **content: Any) -> None:
        """Hand over one event. Raises WordmillError if the receiver turned out to be wrongly set up."""
        if self._refused:
            raise self._refused
        self._put({"kind": kind, "time": now(), **content})

    def close(self, patience: float, **last: Any) -> None:
        """Hand over the last event, kind `end`, and wait for at most `patience` seconds until all is delivered."""
        self._put({"kind": "end", "time": now(), "patience": patience, **last})
        self._waiting.put(None)
        try:
            self._process.wait(patience + 5)
        except subprocess.TimeoutExpired:
            self._process.kill()
        if status := self._process.wait():
            print(f"warning: the tracking process ended with status {status}", file=sys.stderr, flush=True)
        for thread in self._threads:
            thread.join()
        if self._refused:
            raise self._refused

    def _put(self, event: Event) -> None:
        self._waiting.put(json.dumps(event, default=str).encode() + b"\n")

    def _send(self) -> None:
        assert self._process.stdin
        try:
            with self._process.stdin as pipe:
                while line := self._waiting.get():
                    pipe.write(line)
                    pipe.flush()
        except BrokenPipeError:  # the process was killed: the file takes what it can no longer
            keep(self._kept, [] if self._kept.exists() else [self._header])
            while line:
                keep(self._kept, [json.loads(line)])
                line = self._waiting.get()

    def _listen(self) -> None:
        assert self._process.stdout
        with self._process.stdout:
            for line in self._process.stdout:
                self._refused = WordmillError(line.decode().strip())


def now() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def serve(connect: Callable[[dict[str, Any]], Receiver], interval: float = 3.0) -> None:
    """The process's end of the pipe: take events from standard input to the receiver that `connect` opens.

    `connect` gets the header, and may add to it what must be kept with it if the receiver fails.

    `interval` is the time between deliveries in seconds: each costs the same whether it holds one event or hundreds.
    """
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)  # it ends when its stage does, and not before
    _Delivery(connect, Path(sys.argv[1]), interval).run()
    sys.stderr.flush()
    os._exit(0)  # the stage is waiting, and taking down so many modules in order takes a while


class _Delivery:
    def __init__(self, connect: Callable[[dict[str, Any]], Receiver], kept: Path, interval: float) -> None:
        self._connect = connect
        self._kept = kept
        self._interval = interval
        self._queue: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._header: dict[str, Any] = json.loads(sys.stdin.buffer.readline())
        self._in_hand: list[Event] = [self._header]
        self._failed = False
        self._refused = False
        self._closing = threading.Event()
        self._done = threading.Event()
        threading.Thread(target=self._read, daemon=True).start()

    def run(self) -> None:
        receiver = self._attempt(lambda: self._connect(self._header))
        going = True
        while going:
            event = self._queue.get()
            self._closing.wait(self._interval)
            batch = []
            while event is not None:
                batch.append(event)
                try:
                    event = self._queue.get_nowait()
                except queue.Empty:
                    break
            going = event is not None
            if receiver and not self._failed and batch:
                self._in_hand = batch
                self._attempt(partial(receiver.deliver, batch))
            elif not self._refused:
                keep(self._kept, batch)
        self._done.set()

    def _read(self) -> None:
        """Empty the pipe at all times; at its end, wait for the deliveries for so long as the stage is patient."""
        last: Event = {}
        for line in sys.stdin.buffer:
            last = json.loads(line)
            self._queue.put(last)
        if last.get("kind") != "end":
            last = {"kind": "end", "time": now(), "status": "KILLED", "error": "", "patience": KILLED_PATIENCE}
            self._queue.put(last)
        self._queue.put(None)
        self._closing.set()
        if not self._done.wait(last["patience"]):
            waiting: list[Event] = []
            while not self._queue.empty():
                if (event := self._queue.get()) is not None:
                    waiting.append(event)
            self._fail(f"the store did not answer within {last['patience']:.0f} s")
            keep(self._kept, waiting)
            os._exit(0)

    def _attempt(self, work: Callable[[], Any]) -> Any:
        """The result of `work`, or None when the receiver failed, and then what was in hand is in the file."""
        try:
            result = work()
            self._in_hand = []
            return result
        except WordmillError as error:
            self._refused = True
            print(error, flush=True)  # to the stage, which raises it
        except Unavailable as error:
            self._fail(str(error))
        except Exception:  # a bug: its traceback is shown, and the stage still ends with its result
            self._fail(traceback.format_exc())
        return None

    def _fail(self, reason: str) -> None:
        if not self._failed:
            self._failed = True
            text = f"warning: tracking is off for the rest of this stage: {reason}\n"
            text += f"warning: its metrics are kept in {self._kept}\n"
            print(text, end="", file=sys.stderr, flush=True)
        header = [] if self._kept.exists() else [self._header]
        keep(self._kept, [*header, *(event for event in self._in_hand if event is not self._header)])
        self._in_hand = []


def keep(path: Path, events: Sequence[Event]) -> None:
    """Append events to a file, a line of JSON each."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(event, default=str) + "\n" for event in events)
    except OSError as error:
        print(f"warning: {path}: {error.strerror}; {len(events)} events are lost", file=sys.stderr, flush=True)
