"""One thread that generates, and a short queue before it.

A model uses all the threads that it is given, so the jobs under way take turns, a token each: none waits for a long
one, and the machine is never asked for more than it has. Other jobs wait in order; when the queue is full the next is
refused at once, and a job whose client has gone is dropped where it stands. So memory is bounded: by the queue's
length, by the caches of those under way, and by what one job may ask for.
"""

import asyncio
import contextlib
import threading
import traceback
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence

import torch

from llm.streaming import Piece

Work = Callable[[], Iterator[Piece]]  # one continuation
Event = tuple[int, Piece] | Exception | None  # a piece of the choice with that number; None at the end


class Full(Exception):
    """The queue takes no more."""


class Job:
    """Continuations to write one after the other, and what came of them so far. Made in the event loop's thread."""

    def __init__(self, works: Sequence[Work]) -> None:
        self._works = works
        self._gone = threading.Event()
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event] = asyncio.Queue()

    @property
    def gone(self) -> bool:
        """Nobody waits for it any more."""
        return self._gone.is_set()

    def drop(self) -> None:
        """Nothing more is to be written."""
        self._gone.set()
        self._events.put_nowait(None)

    async def pieces(self) -> AsyncIterator[tuple[int, Piece]]:
        """The pieces with the number of their choice. Leaving it early, or being cancelled, drops the job."""
        try:
            while (event := await self._events.get()) is not None:
                if isinstance(event, Exception):
                    raise event
                yield event
        finally:
            self._gone.set()

    def write(self) -> Iterator[tuple[int, Piece]]:
        """Do the work, in the engine's thread."""
        for number, work in enumerate(self._works):
            for piece in work():
                yield number, piece

    def tell(self, event: Event) -> None:
        """Hand over a piece or the end, from the engine's thread."""
        with contextlib.suppress(RuntimeError):  # the event loop has ended
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)


class Engine:
    """Takes `waiting` jobs besides the `at_once` that are under way. `threads` are torch's."""

    def __init__(self, waiting: int, at_once: int, threads: int) -> None:
        self._limit = waiting
        self._at_once = at_once
        self._threads = threads
        self._waiting: deque[Job] = deque()
        self._going: deque[tuple[Job, Iterator[tuple[int, Piece]]]] = deque()  # the engine's thread alone changes it
        self._changed = threading.Condition()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def full(self) -> bool:
        with self._changed:
            self._waiting = deque(job for job in self._waiting if not job.gone)
            return len(self._waiting) >= self._limit

    def submit(self, works: Sequence[Work]) -> Job:
        """Queue a job. Raises Full."""
        if self.full:
            raise Full
        job = Job(works)
        with self._changed:
            self._waiting.append(job)
            self._changed.notify()
        return job

    def stop(self) -> None:
        """End after the token that is being written."""
        with self._changed:
            self._stopped = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        torch.set_num_threads(self._threads)  # it is a thread's own setting
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._going or self._stopped)
                if self._stopped:
                    return
                while self._waiting and len(self._going) < self._at_once:
                    job = self._waiting.popleft()
                    self._going.append((job, job.write()))
            job, pieces = self._going.popleft()
            event: Event
            try:
                event = None if job.gone else next(pieces, None)
            except Exception as error:  # a bug: its traceback is shown, the client is told, the server goes on
                traceback.print_exc()
                event = error
            if isinstance(event, tuple):
                self._going.append((job, pieces))
            job.tell(event)
