"""Delivery in the background, so that a slow or dead tracking store never holds up the work.

The stage posts events and goes on; one thread delivers them in order and in batches. What the receiver cannot take is
kept as JSON lines in a file, with one warning, and from then on everything goes there: a store that has failed is not
asked again in the middle of a training. A receiver that says at the start that it is wrongly set up is the user's
mistake, and is raised at the next post.
"""

import json
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from llm.errors import WordmillError

Event = Mapping[str, Any]  # plain data: "kind", "time" (milliseconds since 1970) and what belongs to the kind


class Unavailable(Exception):
    """The receiver cannot take events now; the message is one line."""


class Receiver(Protocol):
    def deliver(self, events: Sequence[Event]) -> None:
        """Take the events, in order. Raises Unavailable."""


class Mailbox:
    """Events to a receiver that `connect` opens, or to the file `kept`.

    `interval` is the time between deliveries in seconds: each costs the same whether it holds one event or hundreds.
    """

    def __init__(self, connect: Callable[[], Receiver], kept: Path, header: Event, interval: float = 3.0) -> None:
        self._connect = connect
        self._kept = kept
        self._header = header
        self._interval = interval
        self._queue: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._in_hand: list[Event] = []
        self._lock = threading.Lock()  # guards the file and `_in_hand` when the main thread gives up waiting
        self._refused: WordmillError | None = None
        self._failed = False
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)
        self._thread.start()

    def post(self, kind: str, **content: Any) -> None:
        """Hand over one event. Raises WordmillError if the receiver turned out to be wrongly set up."""
        if self._refused:
            raise self._refused
        self._queue.put({"kind": kind, "time": time.time_ns() // 1_000_000, **content})

    def close(self, timeout: float) -> None:
        """Deliver what is left, for at most `timeout` seconds; what is not delivered then goes to the file."""
        self._queue.put(None)
        self._closing.set()
        self._thread.join(timeout)
        if self._thread.is_alive():
            with self._lock:
                self._fail(f"it did not answer within {timeout:.0f} s")
                self._keep([*self._in_hand, *self._waiting()])
                self._in_hand = []
        if self._refused:
            raise self._refused

    def _work(self) -> None:
        receiver = None
        try:
            receiver = self._connect()
        except WordmillError as error:
            self._refused = error
        except Unavailable as error:
            self._fail(str(error))
        except Exception:  # a bug: its traceback is shown, and the stage still ends with its result
            self._fail(traceback.format_exc())
        open_ = True
        while open_:
            batch = []
            event = self._queue.get()
            # An event that closes the mailbox is not made to wait for more.
            self._closing.wait(self._interval)
            while event is not None:
                batch.append(event)
                try:
                    event = self._queue.get_nowait()
                except queue.Empty:
                    break
            open_ = event is not None
            if not self._refused:
                self._hand_over(receiver, batch)

    def _hand_over(self, receiver: Receiver | None, batch: list[Event]) -> None:
        with self._lock:
            self._in_hand = batch
        try:
            if receiver and not self._failed and batch:
                receiver.deliver(batch)
                with self._lock:
                    self._in_hand = []
                return
        except Unavailable as error:
            self._fail(str(error))
        except Exception:
            self._fail(traceback.format_exc())
        with self._lock:
            self._keep(self._in_hand)
            self._in_hand = []

    def _fail(self, reason: str) -> None:
        if not self._failed:
            self._failed = True
            print(
                f"warning: tracking is off for the rest of this stage: {reason}\n"
                f"warning: its metrics are kept in {self._kept}",
                file=sys.stderr,
                flush=True,
            )

    def _keep(self, events: Sequence[Event]) -> None:
        if not events:
            return
        try:
            self._kept.parent.mkdir(parents=True, exist_ok=True)
            new = not self._kept.exists()
            with self._kept.open("a", encoding="utf-8") as file:
                for event in [self._header, *events] if new else events:
                    file.write(json.dumps(event, default=str) + "\n")
        except OSError as error:
            print(f"warning: {self._kept}: {error.strerror}; {len(events)} events are lost", file=sys.stderr)

    def _waiting(self) -> list[Event]:
        found: list[Event] = []
        while True:
            try:
                event = self._queue.get_nowait()
            except queue.Empty:
                return found
            if event is not None:
                found.append(event)
