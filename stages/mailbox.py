"""Delivery by a process of its own, so that a slow or dead tracking store never holds up the work.

The stage posts events as lines into a pipe and goes on; the process reads them at once and delivers them in order and
in batches. (A thread would not do: beside a stage that computes in Python it gets a share of the interpreter so small
that importing MLflow alone takes ten seconds.) When the stage is killed the pipe closes, and the process still closes
the run.

Stage and process talk through two pipes that nobody else knows of: events go one way, notices the other. Any library
may write to standard output or read standard input: MLflow's client prints there at the end of a run. So the process's
standard output goes to standard error, and its standard input is empty.

What the receiver cannot take is kept as JSON lines in a file, with one warning, and from then on everything goes
there: a store that has failed is not asked again in the middle of a training. A receiver that says at the start that
it is wrongly set up is the user's mistake, and is raised at the next post.
"""

import contextlib
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
from typing import Any, BinaryIO, Protocol, TextIO

from llm.errors import WordmillError

Event = Mapping[str, Any]  # plain data: "kind", "time" (milliseconds since 1970) and what belongs to the kind
POLL_SECONDS = 0.2
KILLED_PATIENCE = 8.0  # seconds for the last delivery when the stage was killed: others wait for its end
PREPARATION_PATIENCE = 600.0  # seconds that a stage waits for a store that is being made


class Unavailable(Exception):
    """The receiver cannot take events now; the message is one line."""


class Receiver(Protocol):
    def deliver(self, events: Sequence[Event]) -> None:
        """Take the events, in order. Raises Unavailable."""


class Preparation:
    """Whether the store is being made now. Both ends of the pipes know it: patience counts from its end."""

    def __init__(self) -> None:
        self._active = False
        self._ended = 0.0

    def set(self, active: bool) -> None:
        if self._active and not active:
            self._ended = time.monotonic()
        self._active = active

    def deadline(self, closed: float, patience: float, killed: bool) -> float:
        """When to give up, if the stage has ended at `closed`. Nobody waits for a preparation after a kill."""
        if killed:
            return closed + patience
        return closed + PREPARATION_PATIENCE if self._active else max(closed, self._ended) + patience


class Mailbox:
    """The stage's end of the pipes. `module` is run as a program and calls `serve`; `header` is its first event.

    A thread writes, so that the stage goes on even where the pipe is full, since the process at its other end hangs.
    """

    def __init__(self, module: str, kept: Path, header: Event) -> None:
        self._kept = kept
        self._header = header
        self._refused: WordmillError | None = None
        self._preparation = Preparation()
        root = str(Path(__file__).parents[1])
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        events, self._events = os.pipe()
        self._notices, notices = os.pipe()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, str(kept), str(events), str(notices)],
                env={**os.environ, "PYTHONPATH": path},
                stdin=subprocess.DEVNULL,
                pass_fds=(events, notices),
            )
        finally:
            os.close(events)
            os.close(notices)
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
        """Hand over the last event, kind `end`, and wait for at most `patience` seconds until all is delivered.

        A stage that was not killed also waits until the store is made.
        """
        self._put({"kind": "end", "time": now(), "patience": patience, **last})
        self._waiting.put(None)
        closed = time.monotonic()
        while self._process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(POLL_SECONDS)
            if time.monotonic() > self._preparation.deadline(closed, patience + 5, last.get("status") == "KILLED"):
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
        try:
            with os.fdopen(self._events, "wb") as pipe:
                while line := self._waiting.get():
                    pipe.write(line)
                    pipe.flush()
        except BrokenPipeError:  # the process was killed: the file takes what it can no longer
            keep(self._kept, [] if self._kept.exists() else [self._header])
            while line:
                keep(self._kept, [json.loads(line)])
                line = self._waiting.get()

    def _listen(self) -> None:
        with os.fdopen(self._notices, "rb") as pipe:
            for line in pipe:
                notice = json.loads(line)
                if "refused" in notice:
                    self._refused = WordmillError(notice["refused"])
                else:
                    self._preparation.set(notice["preparing"])


def now() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def serve(
    connect: Callable[[dict[str, Any]], Receiver],
    preparation: Callable[[dict[str, Any]], Callable[[], None] | None] = lambda header: None,
    interval: float = 3.0,
) -> None:
    """The process's end of the pipes: take events to the receiver that `connect` opens.

    `connect` and `preparation` get the header, and may add to it what must be kept with it if the receiver fails.
    `preparation` returns what must be done before the store can be opened at all, such as making it; a stage's patience
    does not end it.

    `interval` is the time between deliveries in seconds: each costs the same whether it holds one event or hundreds.
    """
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)  # it ends when its stage does, and not before
    os.dup2(sys.stderr.fileno(), 1)  # also for what libraries that are not in Python print
    sys.stdout = sys.stderr
    events, notices = os.fdopen(int(sys.argv[2]), "rb"), os.fdopen(int(sys.argv[3]), "w", encoding="utf-8")
    _Delivery(connect, preparation, Path(sys.argv[1]), interval, events, notices).run()
    sys.stderr.flush()
    os._exit(0)  # the stage is waiting, and taking down so many modules in order takes a while


class _Delivery:
    def __init__(
        self,
        connect: Callable[[dict[str, Any]], Receiver],
        preparation: Callable[[dict[str, Any]], Callable[[], None] | None],
        kept: Path,
        interval: float,
        events: BinaryIO,
        notices: TextIO,
    ) -> None:
        self._connect = connect
        self._prepare_store = preparation
        self._preparation = Preparation()
        self._kept = kept
        self._interval = interval
        self._events = events
        self._notices = notices
        self._queue: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._header: dict[str, Any] = json.loads(events.readline())
        self._in_hand: list[Event] = [self._header]
        self._failed = False
        self._refused = False
        self._closing = threading.Event()
        self._done = threading.Event()
        threading.Thread(target=self._read, daemon=True).start()

    def run(self) -> None:
        receiver = None
        self._attempt(self._prepare)
        if not self._failed and not self._refused:
            self._in_hand = [self._header]
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

    def _prepare(self) -> None:
        if work := self._prepare_store(self._header):
            self._announce(True)
            try:
                work()
            finally:
                self._announce(False)

    def _announce(self, preparing: bool) -> None:
        self._preparation.set(preparing)
        self._notify(preparing=preparing)

    def _notify(self, **notice: Any) -> None:
        with contextlib.suppress(BrokenPipeError):  # the stage was killed
            self._notices.write(json.dumps(notice) + "\n")
            self._notices.flush()

    def _read(self) -> None:
        """Empty the pipe at all times; at its end, wait for the deliveries for so long as the stage is patient."""
        last: Event = {}
        for line in self._events:
            last = json.loads(line)
            self._queue.put(last)
        if last.get("kind") != "end":
            last = {"kind": "end", "time": now(), "status": "KILLED", "error": "", "patience": KILLED_PATIENCE}
            self._queue.put(last)
        self._queue.put(None)
        self._closing.set()
        if not self._wait_until_done(last):
            waiting: list[Event] = []
            while not self._queue.empty():
                if (event := self._queue.get()) is not None:
                    waiting.append(event)
            self._fail(f"the store did not answer within {last['patience']:.0f} s")
            keep(self._kept, waiting)
            os._exit(0)

    def _wait_until_done(self, last: Event) -> bool:
        closed = time.monotonic()
        while not self._done.wait(POLL_SECONDS):
            if time.monotonic() > self._preparation.deadline(closed, last["patience"], last["status"] == "KILLED"):
                return False
        return True

    def _attempt(self, work: Callable[[], Any]) -> Any:
        """The result of `work`, or None when the receiver failed, and then what was in hand is in the file."""
        try:
            result = work()
            self._in_hand = []
            return result
        except WordmillError as error:
            self._refused = True
            self._notify(refused=str(error))  # the stage raises it
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
