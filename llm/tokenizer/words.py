"""Text to words with their counts: all that BPE training needs to know of a corpus.

Merges never cross a word's border, so a corpus of any size shrinks to its distinct words, counted in one stream; the
memory needed is that of the distinct words and of a few batches of text. Words are found by compiled code (`scan.py`)
for the patterns that it knows, else by `regex`. Threads count batches side by side, each into a table of its own;
how many there are changes nothing in the counts.
"""

import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import regex

from llm.tokenizer.config import PATTERNS
from llm.tokenizer.patterns import KNOWN, cut
from llm.tokenizer.scan import SCANNED
from llm.tokenizer.tokenizer import valid_utf8
from llm.tokenizer.word_table import BEGIN, COUNT, WHOLE, Batch, WordTable, batch, read_only

PIECE = 100_000  # characters: the grain of a sample
BATCH = 1_000_000  # bytes of text that a thread counts at a time
MOST_THREADS = 8


class Words(NamedTuple):
    """Distinct words as UTF-8, end to end: word n is text[ends[n] : ends[n + 1]] and occurs counts[n] times."""

    text: np.ndarray  # uint8, read-only
    ends: np.ndarray  # int64, the first one 0
    counts: np.ndarray  # int64

    @classmethod
    def of(cls, counts: Mapping[bytes, int]) -> "Words":
        """From words with their counts."""
        ends = np.cumsum([0, *map(len, counts)], dtype=np.int64)
        return cls(np.frombuffer(b"".join(counts), np.uint8), ends, np.fromiter(counts.values(), np.int64, len(counts)))

    def dict(self) -> dict[bytes, int]:
        """Words with their counts."""
        content, ends = self.text.tobytes(), self.ends.tolist()
        words = (content[start:end] for start, end in pairwise(ends))
        return dict(zip(words, self.counts.tolist(), strict=True))

    @property
    def distinct(self) -> int:
        """How many different words there are."""
        return len(self.counts)

    @property
    def text_bytes(self) -> int:
        """How much text they were counted in: the words of a text are all of it."""
        return int((np.diff(self.ends) * self.counts).sum())


class Texts:
    """A corpus that can be read again and again: as strings, or as batches of UTF-8, which is faster.

    `strings` begins anew at each call, and so does `batches`, where the corpus lies on disk as UTF-8 already.
    """

    def __init__(
        self, strings: Callable[[], Iterable[str]], batches: Callable[[], Iterable[Batch]] | None = None
    ) -> None:
        self.strings = strings
        self.batches = batches or (lambda: joined(strings()))


def count_words(texts: Texts | Iterable[str], pattern: str, threads: int | None = None) -> Words:
    """The words of `texts` with their counts, on as many threads as there are processors, or `threads`.

    `pattern` is a name in `PATTERNS`, or an expression. Raises WordmillError for text that is not valid Unicode, and
    for an expression that takes too long.
    """
    corpus = texts if isinstance(texts, Texts) else Texts(lambda: texts)
    expression = PATTERNS.get(pattern, pattern)
    if expression not in SCANNED:
        return Words.of(_count_by_regex(corpus.strings(), expression))
    threads = threads or processors()
    small = read_ahead(corpus.batches())  # begins to read while the compiled code is loaded
    tables = [WordTable(SCANNED[expression]) for _ in range(threads)]
    pools = [ThreadPoolExecutor(1) for _ in range(threads)]
    waiting: deque[Future[object]] = deque()
    try:
        for number, part in enumerate(small):
            if len(waiting) > threads:  # bounds the memory
                waiting.popleft().result()
            waiting.append(pools[number % threads].submit(tables[number % threads].add, *part))
        for future in waiting:
            future.result()
    finally:
        for pool in pools:
            pool.shutdown(cancel_futures=True)
    whole, *others = tables
    whole.pattern = WHOLE  # from here on, what is added is one word each
    for other in others:
        whole.add(*_words(other))
    return _words(whole)


def processors() -> int:
    """How many threads are worth while: the processors that this process may use, `MOST_THREADS` at most."""
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    return min(MOST_THREADS, len(usable))


def read_ahead(batches: Iterable[Batch]) -> Iterator[Batch]:
    """The same documents in batches of about `BATCH` bytes. The next ones are read while the last are in use."""
    reader = ThreadPoolExecutor(1)
    source = iter(batches)
    coming = reader.submit(next, source, None)

    def parts() -> Iterator[Batch]:
        following = coming
        try:
            while (batch := following.result()) is not None:
                following = reader.submit(next, source, None)
                text, ends = batch
                first = 0
                while first < len(ends) - 1:
                    last = max(first + 1, int(np.searchsorted(ends, ends[first] + BATCH)))
                    part = ends[first : last + 1]
                    yield Batch(text[part[0] : part[-1]], part - part[0])
                    first = len(part) - 1 + first
        finally:
            reader.shutdown(cancel_futures=True)

    return parts()


def _words(table: WordTable) -> Words:
    size, text_bytes = table.used.tolist()
    ends = np.append(table.rows[:size, BEGIN], text_bytes)
    return Words(read_only(table.text[:text_bytes]), ends, table.rows[:size, COUNT].copy())


def joined(texts: Iterable[str]) -> Iterator[Batch]:
    """Texts as batches of about `BATCH` bytes. Raises WordmillError for a lone surrogate."""
    parts: list[bytes] = []
    size = 0
    for text in texts:
        parts.append(valid_utf8(text))
        size += len(parts[-1])
        if size >= BATCH:
            yield batch(parts)
            parts, size = [], 0
    if parts:
        yield batch(parts)


def _count_by_regex(texts: Iterable[str], expression: str) -> Counter[bytes]:
    compiled = regex.compile(expression)
    counts: Counter[str] = Counter()
    for text in texts:
        valid_utf8(text)
        counts.update(compiled.findall(text) if expression in KNOWN else cut(text, compiled))
    return Counter({word.encode(): count for word, count in counts.items()})


def even_sample(texts: Callable[[], Iterable[str]], max_bytes: int) -> Iterator[str]:
    """About `max_bytes` (UTF-8) of the corpus, taken evenly from its beginning to its end; all of it if it is smaller.

    The corpus is read twice. Documents count as a whole, except that those above `PIECE` characters are taken in
    pieces, so that a corpus of one long text can be sampled too.
    """
    total = sum(len(piece.encode()) for piece in _pieces(texts()))
    if total <= max_bytes:
        yield from texts()
        return
    seen = taken = 0
    for piece in _pieces(texts()):
        size = len(piece.encode())
        seen += size
        # Take a piece whenever the sample has fallen behind its share of what has been seen.
        if (taken + size) * total <= seen * max_bytes:
            taken += size
            yield piece


def _pieces(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        for start in range(0, len(text), PIECE):
            yield text[start : start + PIECE]
