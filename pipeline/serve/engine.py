"""One thread that generates, and a short queue before it.

All choices under way are written together, a token each at a time, in one batch a model (`llm.continuous`): so none
waits for a long one, and the machine is never asked for more threads than it has. As many jobs are under way as there
are places in the batch, and each has a place as long as it has choices to write. Further choices of a job leave a
quarter of the places free, so that a job of many choices does not keep others out. Other jobs wait in order. When the
queue is full the next one is refused at once, and a job whose client has gone is dropped where it stands. So memory is
bounded: by the queue's length, by the caches of the batch, and by what one job may ask for.

The thread hands its pieces over without waiting. An event loop that is behind finds several tokens in one piece.
"""

import asyncio
import contextlib
import logging
import threading
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from llm.continuous import Batch, Continuation
from llm.decoder import Decoder
from llm.streaming import Piece, Wanted
from llm.tokenizer.tokenizer import Tokenizer

LOGGER = logging.getLogger("wordmill.serve")


@dataclass(frozen=True)
class Served:
    """A model that answers."""

    decoder: Decoder
    tokenizer: Tokenizer
    created: int  # seconds since 1970

    @cached_property
    def longest_token(self) -> int:
        """Bytes of the longest one."""
        return max(len(token) for token in self.tokenizer.tokens)


@dataclass(frozen=True)
class Choice:
    """A continuation to write."""

    prompt: Sequence[int]
    seed: int
    wanted: Wanted


class Full(Exception):
    """The queue takes no more."""


class Job:
    """The choices of one request and their pieces so far. Made in the event loop's thread."""

    def __init__(self, served: Served, choices: Sequence[Choice]) -> None:
        self.served = served
        self.choices = choices
        self.begun = 0  # choices that have joined a batch
        self.left = len(choices)  # choices that have not ended
        self._gone = threading.Event()
        self._changed = asyncio.Event()
        self._pieces: deque[tuple[int, Piece]] = deque()
        self._error: Exception | None = None

    @property
    def gone(self) -> bool:
        """Nobody waits for it any more."""
        return self._gone.is_set()

    def drop(self) -> None:
        """Nothing more is to be written. Called in the event loop's thread."""
        self._gone.set()
        self._changed.set()

    def add(self, number: int, piece: Piece) -> None:
        """A piece of that choice. Called in the engine's thread, as is `fail`."""
        self._pieces.append((number, piece))
        self.left -= piece.finish is not None

    def fail(self, error: Exception) -> None:
        """It ends with a bug."""
        self._error = error
        self.left = 0

    def wake(self) -> None:
        """There is something new. Called in the event loop's thread."""
        self._changed.set()

    async def pieces(self) -> AsyncIterator[dict[int, Piece]]:
        """What is new, by the numbers of the choices. Leaving it early, or being cancelled, drops the job.

        Raises the exception that ended the work.
        """
        try:
            ended = False
            while not ended:
                await self._changed.wait()
                self._changed.clear()
                ended = self.left == 0 or self.gone  # before the pieces are taken: none comes after it
                found: dict[int, Piece] = {}
                while self._pieces:
                    number, piece = self._pieces.popleft()
                    if number in found:
                        found[number] += piece
                    else:
                        found[number] = piece
                if self._error:
                    raise self._error
                if found:
                    yield found
        finally:
            self._gone.set()


class Engine:
    """Takes `waiting` jobs besides those under way, and writes `at_once` choices together. `threads` are torch's.

    Made in the event loop's thread.
    """

    def __init__(self, waiting: int, at_once: int, threads: int) -> None:
        self._limit = waiting
        self._at_once = at_once
        self._threads = threads
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._stopped = False
        # The engine's thread alone changes these.
        self._going: list[Job] = []
        self._batches: dict[Decoder, Batch] = {}
        self._owners: dict[Continuation, tuple[Job, int]] = {}  # of the choices under way, with their numbers
        # Jobs with pieces that the event loop has not been told of, and whether it is about to look.
        self._new: deque[Job] = deque()
        self._telling = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def full(self) -> bool:
        with self._changed:
            self._waiting = deque(job for job in self._waiting if not job.gone)
            return len(self._waiting) >= self._limit

    def submit(self, served: Served, choices: Sequence[Choice]) -> Job:
        """Queue a job. Raises Full."""
        if self.full:
            raise Full
        job = Job(served, choices)
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
            self._remove_gone()
            if job := self._next():
                with self._failing(job.served.decoder):
                    self._begin(job)
            for decoder, batch in list(self._batches.items()):
                with self._failing(decoder):
                    self._write(batch)
            self._tell()

    def _remove_gone(self) -> None:
        gone = [job for job in self._going if job.gone]
        if gone:
            texts = self._forget(gone)
            for batch in self._batches.values():
                batch.leave(texts)

    def _forget(self, jobs: Sequence[Job]) -> list[Continuation]:
        """Jobs that have come to an end early, and their continuations."""
        texts = [text for text, (job, _) in self._owners.items() if job in jobs]
        for text in texts:
            del self._owners[text]
        self._going = [job for job in self._going if job not in jobs]
        return texts

    @contextlib.contextmanager
    def _failing(self, decoder: Decoder) -> Iterator[None]:
        """An exception here is a bug. It is logged, the jobs of that model are told, and the server goes on."""
        try:
            yield
        except Exception as error:
            LOGGER.exception("A model failed")
            failed = [job for job in self._going if job.served.decoder is decoder]
            for job in failed:
                job.fail(error)
            self._new.extend(failed)
            self._forget(failed)
            self._batches.pop(decoder, None)  # it may be half changed

    def _next(self) -> Job | None:
        """The job whose next choice joins its batch now: one at a time, since reading a prompt makes others wait."""
        free = self._at_once - len(self._owners)
        if not free:
            return None
        rows = Counter(job for job, _ in self._owners.values())
        more = min(
            (job for job in self._going if job.begun < len(job.choices)), key=lambda job: rows[job], default=None
        )
        if more and not rows[more]:
            return more
        if len(self._going) < self._at_once and (job := self._first_waiting()):
            self._going.append(job)
            return job
        return more if free > self._at_once // 4 else None

    def _first_waiting(self) -> Job | None:
        with self._changed:
            while self._waiting:
                job = self._waiting.popleft()
                if not job.gone:
                    return job
        return None

    def _begin(self, job: Job) -> None:
        number, served = job.begun, job.served
        choice = job.choices[number]
        job.begun += 1
        if served.decoder not in self._batches:
            self._batches[served.decoder] = Batch(served.decoder, self._at_once)
        text = Continuation(
            served.tokenizer, choice.prompt, choice.seed, choice.wanted, served.decoder.config.block_size
        )
        self._batches[served.decoder].join(text)
        self._owners[text] = job, number

    def _write(self, batch: Batch) -> None:
        """A token for each choice of the batch."""
        if not len(batch):
            return
        for text, piece in batch.draw():
            job, number = self._owners[text]
            job.add(number, piece)
            self._new.append(job)
            if piece.finish:
                del self._owners[text]
                if not job.left:
                    self._going.remove(job)
        self._tell()  # before the model reads, which takes most of the time
        batch.advance()

    def _tell(self) -> None:
        """Have the event loop wake the jobs that have something new."""
        if self._new and not self._telling:
            self._telling = True
            with contextlib.suppress(RuntimeError):  # the event loop has ended
                self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        """Called in the event loop's thread."""
        self._telling = False  # before the jobs are taken: the engine may add others at any moment
        while self._new:
            self._new.popleft().wake()
