"""Which tokens step N trains on: a pure function of (seed, step).

The tokens are a ring: the end of the last document is followed by the beginning of the first. Every token is a target
once in an epoch, predicted from the one before it, so a document's first token is predicted from the <|endoftext|>
of the document before. An epoch is laid out in windows of T = block_size targets, in one of three ways:

- `windows` cuts the ring anywhere. Each epoch goes on where the last one stopped: epoch e takes the W·T tokens from
  position e·W·T on, W = floor(tokens / T). No token comes twice in an epoch; the fewer than T that are left out of
  it are the first of the next one, and since the grid has moved by then, its windows are other windows.
- `documents` packs whole documents (best fit, longest first: each goes into the fullest window that still holds it),
  so that a story is always seen from its beginning to its end. A document longer than T gives full windows and a rest
  that is packed like a document. What is left free in a window, mostly a few tokens, is filled with the beginning of
  some document, which is thus seen more than once: `repeated_share` says how much, none is lost.
- `documents_once` packs in the same way, then takes some of the windows apart, evenly spread over all lengths, and
  fills the others with pieces of their documents. So nothing is repeated but the fewer than T tokens that fill the
  last window, and the documents that are cut are as many as the free places ask for.

The windows of an epoch come in an order drawn for that epoch: a permutation computed for one index at a time (a
Feistel network, walked until it lands inside; Black and Rogaway 2002), so nothing is shuffled, stored or restored.
Sequence i of the run is window i mod W of epoch i div W, and step N holds the sequences [N·B, (N + 1)·B): a resumed
run asks for step N and gets it. Processes that share a batch take slices of the same one.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np

from llm.errors import WordmillError
from llm.shards import ShardSet

ROUNDS = 6
B = TypeVar("B")


class Batches:
    """Batches from shards. `packing` is a name in LAYOUTS; process `rank` of `world` gets its share of each."""

    def __init__(
        self,
        shards: ShardSet,
        block_size: int,
        batch_size: int,
        seed: int,
        packing: str = "windows",
        rank: int = 0,
        world: int = 1,
    ) -> None:
        """`batch_size` counts the sequences of all processes. Raises WordmillError."""
        if shards.tokens < block_size:
            raise WordmillError(
                f"{shards.folder}: {shards.tokens} tokens are less than one context window of {block_size}; "
                f"lower model.block_size or give more text"
            )
        if batch_size % world or not 0 <= rank < world:
            raise WordmillError(f"a batch of {batch_size} sequences does not fall into {world} equal shares")
        self.shards = shards
        self.block_size = block_size
        self.batch_size = batch_size
        self.seed = seed
        self._rows = np.arange(batch_size)[rank * (batch_size // world) : (rank + 1) * (batch_size // world)]
        self._layout = LAYOUTS[packing](shards, block_size)

    @property
    def windows(self) -> int:
        """W, the windows of an epoch."""
        return self._layout.windows

    @property
    def batches_per_epoch(self) -> float:
        """How many steps an epoch lasts."""
        return self.windows / self.batch_size

    @property
    def tokens_per_batch(self) -> int:
        """Targets of a step, over all processes."""
        return self.batch_size * self.block_size

    @property
    def repeated_share(self) -> float:
        """Of an epoch's targets, those that the same epoch has elsewhere too."""
        return max(0.0, 1 - self.shards.tokens / (self.windows * self.block_size))

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets of a step, (B, T) int64 each; (B / world, T) for one of several processes."""
        targets = [self._pieces(row) for row in self._sequences(step)]
        y = np.stack([self._gather(pieces, 0) for pieces in targets])
        x = np.stack([self._gather(pieces, -1) for pieces in targets])
        return x, y

    def positions(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Document and place of every input of `batch(step)`, (B, T) int64 each.

        Documents are numbered from 0 within each row; the <|endoftext|> before a document belongs to it, as the place
        0. What is cut off at the beginning of a row counts as a document of its own.
        """
        numbers, places = [], []
        for row in self._sequences(step):
            begins = np.zeros(self.block_size, dtype=bool)
            at = 0
            for start, length in self._pieces(row):
                begins[at + self._document_starts(start, length)] = True
                begins[at] = True
                at += length
            number = np.cumsum(begins) - 1
            numbers.append(number)
            places.append(np.arange(self.block_size) - np.flatnonzero(begins)[number])
        return np.stack(numbers), np.stack(places)

    def _sequences(self, step: int) -> list[tuple[int, int]]:
        """Epoch and window of each row of a step."""
        epochs, index = np.divmod(step * self.batch_size + self._rows, self.windows)
        return [
            (int(epoch), permuted(int(i), self.windows, self.seed, int(epoch)))
            for epoch, i in zip(epochs, index, strict=True)
        ]

    def _pieces(self, row: tuple[int, int]) -> list[tuple[int, int]]:
        return self._layout.pieces(*row)

    def _gather(self, pieces: list[tuple[int, int]], shift: int) -> np.ndarray:
        """The tokens of pieces of the ring, each moved by `shift`."""
        size = self.shards.tokens
        parts = []
        for start, length in pieces:
            begin = (start + shift) % size
            first = min(length, size - begin)
            parts.append(self.shards.window(begin, first))
            if first < length:
                parts.append(self.shards.window(0, length - first))
        return np.concatenate(parts, dtype=np.int64, casting="safe")

    def _document_starts(self, start: int, length: int) -> np.ndarray:
        """Where documents start in a piece of the ring, counted from its beginning."""
        starts, size = self.shards.documents, self.shards.tokens
        if start + length <= size:
            low, high = np.searchsorted(starts, [start, start + length])
            return starts[low:high] - start
        head = self._document_starts(start, size - start)
        return np.concatenate([head, self._document_starts(0, start + length - size) + (size - start)])


def ahead(load: Callable[[int], B], steps: range) -> Iterator[tuple[int, B]]:
    """Each step with what `load` gives for it, which a thread prepares while the one before is in use."""
    with ThreadPoolExecutor(1) as reader:
        following = {step: reader.submit(load, step) for step in steps[:1]}
        for step in steps:
            batch = following.pop(step).result()
            if step + 1 in steps:
                following[step + 1] = reader.submit(load, step + 1)
            yield step, batch


class Windows:
    """The ring cut every T tokens, each epoch going on where the last one stopped."""

    def __init__(self, shards: ShardSet, block_size: int) -> None:
        self.windows = shards.tokens // block_size
        self._tokens = shards.tokens
        self._block_size = block_size

    def pieces(self, epoch: int, window: int) -> list[tuple[int, int]]:
        """Start and length of what a window holds."""
        return [((epoch * self.windows + window) * self._block_size % self._tokens, self._block_size)]


class Documents:
    """Whole documents, packed by best fit; the same in every epoch, but for what fills the windows up."""

    def __init__(self, shards: ShardSet, block_size: int) -> None:
        starts, lengths = _cut(shards.documents, shards.tokens, block_size)
        bins, free = best_fit(lengths, block_size)
        self.windows = len(free)
        order = np.argsort(bins, kind="stable")
        self._starts = starts[order]
        self._lengths = lengths[order]
        self._first = np.searchsorted(bins[order], np.arange(self.windows + 1))
        self._free = free
        self._documents = shards.documents

    def pieces(self, epoch: int, window: int) -> list[tuple[int, int]]:
        """Start and length of what a window holds."""
        pieces = self._whole(window)
        if self._free[window]:
            filler = (epoch * self.windows + window) % len(self._documents)  # another one in each epoch
            pieces.append((int(self._documents[filler]), int(self._free[window])))
        return pieces

    def _whole(self, window: int) -> list[tuple[int, int]]:
        """The pieces of a window without what fills it up."""
        begin, end = self._first[window], self._first[window + 1]
        return list(zip(self._starts[begin:end].tolist(), self._lengths[begin:end].tolist(), strict=True))


class DocumentsOnce(Documents):
    """Whole documents, packed by best fit, and pieces of others in the places that are left free."""

    def __init__(self, shards: ShardSet, block_size: int) -> None:
        super().__init__(shards, block_size)
        used = block_size - self._free
        golden = np.uint64(0x9E3779B97F4A7C15)  # i·golden mod 2^64 is spread evenly, however many i are taken
        order = np.argsort(np.arange(self.windows, dtype=np.uint64) * golden, kind="stable")
        # The fewest windows whose tokens fill the free places of all others; the rest makes less than one window.
        apart = np.cumsum(used[order])
        free = self._free.sum() - np.cumsum(self._free[order])
        count = int(np.searchsorted(apart - free, 0)) + 1 if self._free.any() else 0
        cut = np.sort(order[:count])
        self._fill(np.setdiff1d(np.arange(self.windows), cut), cut, block_size)

    def _fill(self, kept: np.ndarray, cut: np.ndarray, block_size: int) -> None:
        """Windows `kept`, their free places filled with the pieces of windows `cut`, and one for what is left."""
        waiting = [piece for window in cut for piece in self._whole(window)]
        waiting.reverse()
        rows = []
        free = []
        for window in [*kept.tolist(), None]:
            pieces = [] if window is None else self._whole(window)
            room = block_size - sum(length for _, length in pieces)
            while room and waiting:
                start, length = waiting.pop()
                taken = min(room, length)
                pieces.append((start, taken))
                room -= taken
                if taken < length:
                    waiting.append((start + taken, length - taken))
            if pieces:
                rows.append(pieces)
                free.append(room)
        self.windows = len(rows)
        self._starts, self._lengths = np.array([piece for row in rows for piece in row], np.int64).T
        self._first = np.cumsum([0, *map(len, rows)])
        self._free = np.array(free, np.int64)


LAYOUTS: dict[str, type[Windows] | type[Documents]] = {
    "windows": Windows,
    "documents": Documents,
    "documents_once": DocumentsOnce,
}


class Packing(NamedTuple):
    """Which bin each item is in, and what is left free in each bin."""

    bins: np.ndarray
    free: np.ndarray


def best_fit(lengths: np.ndarray, size: int) -> Packing:
    """Bins of `size` for items of at most that length, longest first, each into the fullest bin that still holds it."""
    bins = np.empty(len(lengths), np.int64)
    free: list[int] = []
    by_free: list[list[int]] = [[] for _ in range(size + 1)]
    some = 0  # bit f is set while some bin has f left; the lowest set bit above a length is the best fit
    for item in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[item])
        fitting = some >> length
        if fitting:
            left = length + (fitting & -fitting).bit_length() - 1
            number = by_free[left].pop()
            if not by_free[left]:
                some ^= 1 << left
        else:
            left, number = size, len(free)
            free.append(size)
        bins[item] = number
        free[number] = left - length
        if left > length:
            by_free[left - length].append(number)
            some |= 1 << (left - length)
    return Packing(bins, np.array(free, np.int64))


def permuted(index: int, size: int, seed: int, epoch: int) -> int:
    """Where `index` goes in the permutation of range(size) that belongs to (seed, epoch)."""
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    key = _mix(_mix(seed & _WORD) ^ epoch)
    while True:
        left, right = index >> half, index & mask
        for number in range(ROUNDS):
            left, right = right, left ^ (_mix(key ^ (number << 56) ^ right) & mask)
        index = left << half | right
        if index < size:
            return index


_WORD = (1 << 64) - 1


def _mix(value: int) -> int:
    """A 64-bit word well stirred: the finaliser of SplitMix64 (Steele, Lea and Flood 2014)."""
    value = (value + 0x9E3779B97F4A7C15) & _WORD
    value = ((value ^ value >> 30) * 0xBF58476D1CE4E5B9) & _WORD
    value = ((value ^ value >> 27) * 0x94D049BB133111EB) & _WORD
    return value ^ value >> 31


def _cut(starts: np.ndarray, tokens: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Starts and lengths of all documents, those longer than `size` cut into pieces of `size` and a rest."""
    lengths = np.diff(np.append(starts, tokens))
    counts = -(-lengths // size)
    owner = np.repeat(np.arange(len(starts)), counts)
    number = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
    return starts[owner] + number * size, np.minimum(lengths[owner] - number * size, size)
