"""A table of distinct words that compiled code fills: open addressing, the words' bytes end to end in one array.

numba has a dictionary of its own, which takes longer to compile than all of this and to look up than a word takes to
find. A table grows only between two calls of compiled code, which therefore stops when there is no room left.
"""

import gc
import sys
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from numba import njit

from llm.tokenizer.bits import HIGH_BITS, eight_bytes, trailing_zeros
from llm.tokenizer.scan import LETTER, NEWLINE, NUMBER, OTHER, SPACE, UNSEEN, Classes, unseen, word_end

EMPTY = -1
WHOLE = -1  # in the place of a pattern: a document is one word
STIR = np.uint64(0x9E3779B97F4A7C15)  # odd, its bits without order: 2**64 by the golden ratio
ALL_BITS = np.uint64(0xFFFFFFFFFFFFFFFF)
LOW_BITS = ~HIGH_BITS
SMALL = np.uint64(0x2020202020202020)  # makes an ASCII letter small
FROM_A = np.uint64(0x0101010101010101 * (0x80 - ord("a")))  # added, a high bit says: a or above
BEYOND_Z = np.uint64(0x0101010101010101 * (0x7F - ord("z")))
HASH, BEGIN, LENGTH, COUNT = range(4)  # columns of a word's row: one row, half a line of the processor's cache


class Batch(NamedTuple):
    """Documents as UTF-8, end to end."""

    text: np.ndarray  # uint8, read-only: compiled code is compiled anew for each kind of array, so all are of one
    ends: np.ndarray  # int64: where each document ends in `text`, from 0 on


class Numbered(NamedTuple):
    """A batch of documents as numbers of words."""

    words: np.ndarray  # int32, the documents one behind the other
    ends: np.ndarray  # int64: where each document ends in `words`, from 0 on


def batch(documents: Sequence[bytes]) -> Batch:
    """Documents in memory as a batch."""
    return Batch(np.frombuffer(b"".join(documents), np.uint8), np.cumsum([0, *map(len, documents)], dtype=np.int64))


def read_only(array: np.ndarray) -> np.ndarray:
    """A view that cannot be written to."""
    view = array.view()
    view.flags.writeable = False
    return view


class WordTable:
    """Distinct words, numbered from 0 in the order in which they come, and how often each has come."""

    def __init__(self, pattern: int) -> None:
        prepare()
        words = 1 << 16
        self.pattern = pattern  # by its number in `scan.SCANNED`, or WHOLE
        self.classes = Classes()
        self.slots = np.full(2 * words, EMPTY, np.int32)  # word numbers; a power of two of them
        self.rows = np.empty((words, 4), np.int64)
        self.text = np.empty(1 << 20, np.uint8)
        self._numbers = np.empty(0, np.int32)
        self.used = np.zeros(2, np.int64)  # words, bytes of text; an array, so that compiled code can change it

    def __len__(self) -> int:
        return int(self.used[0])

    def add(self, text: np.ndarray, ends: np.ndarray, times: np.ndarray | None = None) -> Numbered:
        """Number the words of a batch (see `Batch`). Those of document i count times[i] times each, else once."""
        if times is None:
            times = np.zeros(0, np.int64)
        self.classes.learn(text)
        if len(self._numbers) < len(text):
            self._numbers = np.empty(len(text), np.int32)
        numbers, number_ends = self._numbers, np.zeros(len(ends), np.int64)
        state = np.zeros(3, np.int64)
        while state[0] < len(ends) - 1:
            tables = (self.slots, self.rows, self.text, self.used)
            _add(text, ends, times, self.classes.table, self.pattern, state, *tables, numbers, number_ends)
            if state[0] < len(ends) - 1:
                self._grow(int(np.diff(ends).max()))
        return Numbered(numbers[: state[2]], number_ends)

    def _grow(self, longest: int) -> None:
        """Room for twice the words, and for one of `longest` bytes at least."""
        words, used = self.used.tolist()
        if 2 * words >= len(self.rows):
            self.rows = np.concatenate([self.rows[:words], np.empty((2 * len(self.rows) - words, 4), np.int64)])
            self.slots = np.full(2 * len(self.slots), EMPTY, np.int32)
            _place_all(self.slots, self.rows, words)
        if used + longest > len(self.text) // 2:
            self.text = np.concatenate([self.text[:used], np.empty(used + 2 * longest, np.uint8)])


@njit(cache=True, nogil=True)
def _add(
    text: np.ndarray,
    ends: np.ndarray,
    times: np.ndarray,
    classes: np.ndarray,
    pattern: int,
    state: np.ndarray,
    slots: np.ndarray,
    rows: np.ndarray,
    words: np.ndarray,
    used: np.ndarray,
    numbers: np.ndarray,
    number_ends: np.ndarray,
) -> None:
    """Go on from `state` (document, byte, words so far) until the table is full, or to the end.

    One function rather than three: where arrays are handed on inside a loop, numba counts references for each word,
    which takes longer than all the rest. Eight bytes are looked at together, as one number: which of them are ASCII
    letters, and, where the word is no longer than that, the word itself as its own hash (docs/LOG.md, 2026-11-25).
    """
    document, at, done = state[0], state[1], state[2]
    mask = np.uint64(len(slots) - 1)
    shift = np.uint64(64 - trailing_zeros(np.uint64(len(slots))))
    size = len(text)
    while document < len(ends) - 1:
        end = ends[document + 1]
        count = times[document] if len(times) > 0 else 1
        while at < end:
            if at + 8 <= size:
                head = eight_bytes(text, at)
            else:
                head = np.uint64(0)
                for place in range(at, size):
                    head |= np.uint64(text[place]) << np.uint64(8 * (place - at))
            # The high bit of each byte that is no ASCII letter; a space before the letters belongs to them.
            small = (head | SMALL) & LOW_BITS
            others = ~((small + FROM_A) & ~(small + BEYOND_Z) & ~head) & HIGH_BITS
            letters = at
            if head & np.uint64(0xFF) == np.uint64(0x20):
                others &= ~np.uint64(0x80)
                letters += 1
            if others != np.uint64(0):
                after = at + (trailing_zeros(others) >> 3)
            else:
                after = at + 8
                while after < end and text[after] < 0x80 and classes[text[after]] == LETTER:
                    after += 1
            after = min(after, end)
            if pattern == WHOLE:
                after = end
            elif after == letters or (after < end and text[after] >= 0x80):  # not just a space and ASCII letters
                following = classes[text[at + 1]] if at + 1 < end and text[at + 1] < 0x80 else UNSEEN
                kind = classes[text[at]] if text[at] < 0x80 else UNSEEN
                if (kind == OTHER and following == SPACE) or (kind == NEWLINE and following in (LETTER, NUMBER, OTHER)):
                    after = at + 1
                else:
                    after = word_end(text, at, end, classes, pattern)
            length = after - at
            if length <= 8:
                code = head & (ALL_BITS >> np.uint64(64 - 8 * length))
            else:
                code = head
                for place in range(at + 8, after - 8, 8):
                    code = (code ^ (code >> np.uint64(29)) ^ eight_bytes(text, place)) * STIR
                code = (code ^ (code >> np.uint64(29)) ^ eight_bytes(text, after - 8)) * STIR
            slot = (code * STIR) >> shift
            found = np.int64(-1)  # numba would make a float of a signed and an unsigned number
            while slots[slot] >= 0:
                word = np.uint64(slots[slot])
                if rows[word, HASH] == np.int64(code) and rows[word, LENGTH] == length:
                    begin = rows[word, BEGIN]
                    same = 8
                    while same < length and words[begin + same] == text[at + same]:
                        same += 1
                    if same >= length:
                        found = np.int64(word)
                        break
                slot = (slot + np.uint64(1)) & mask
            if found < 0:
                found, begin = used[0], used[1]
                if found == len(rows) or begin + length > len(words):
                    state[0], state[1], state[2] = document, at, done
                    return
                for place in range(length):
                    words[begin + place] = text[at + place]
                rows[found, HASH], rows[found, BEGIN] = np.int64(code), begin
                rows[found, LENGTH], rows[found, COUNT] = length, 0
                slots[slot] = found
                used[0], used[1] = found + 1, begin + length
            rows[found, COUNT] += count
            numbers[done] = found
            done += 1
            at = after
        document += 1
        number_ends[document] = done
    state[0], state[1], state[2] = document, at, done


@cache
def prepare() -> None:
    """Load or compile the code now, in this thread: numba cannot do it in two at once. Without, the first use does.

    numba would import SciPy to see if it has BLAS routines, and Python would look through numba's 200,000 objects at
    every full collection and at its end: a third of a second that nothing here has use for (docs/LOG.md, 2026-11-25).
    """
    absent = "scipy" not in sys.modules
    if absent:
        sys.modules["scipy"] = None  # type: ignore[assignment]
    try:
        text, ends = batch([])
        characters, numbers, rows = np.zeros(0, np.uint8), np.zeros(0, np.int32), np.zeros((0, 4), np.int64)
        unseen(text, characters)
        _add(text, ends, ends, characters, WHOLE, np.zeros(3, np.int64), numbers, rows, characters, ends, numbers, ends)
    finally:
        if absent:
            del sys.modules["scipy"]
    gc.freeze()


@njit(cache=True, nogil=True)
def _place_all(slots: np.ndarray, rows: np.ndarray, words: int) -> None:
    mask = np.uint64(len(slots) - 1)
    shift = np.uint64(64 - trailing_zeros(np.uint64(len(slots))))
    for word in range(words):
        slot = (np.uint64(rows[word, HASH]) * STIR) >> shift
        while slots[slot] != EMPTY:
            slot = (slot + np.uint64(1)) & mask
        slots[slot] = word
