"""BPE training, fast: the merges of `reference.py`, touching only what a merge changes.

All distinct words stand one after the other in one list, a border between each two. A token that covers the bytes
[start, end) has its id written at `start` and at `end - 1`, so its neighbours are found without links: the one to the
right begins at `end`, the one to the left ends at `start - 1`, and an id tells its length. What lies between the two
marks is stale and never read as a token, because a place counts only if both marks agree.

Two facts make it exact:

- A pair that holds the newest token has all its occurrences made by the newest merge, and an older pair can only lose
  occurrences. So counts only ever fall after the merge that made them.
- Hence a heap entry that is out of date is too high, never too low: correct it when it comes to the top, and the
  first one that is right is the true maximum, ties included.

For every pair a list holds where it occurs, in rising order (which keeps merging from the left in runs such as
`aaaa`); places where the pair has gone in the meantime are recognised by their marks and skipped.
"""

import heapq
from array import array
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from llm.tokenizer.reference import Pair

BORDER = -1
SHIFT = 32  # a pair as one integer: left << SHIFT | right, which sorts like the pair
LOW = (1 << SHIFT) - 1


def train(
    words: Mapping[bytes, int], merges: int, min_count: int = 2, tell: Callable[[], object] = lambda: None
) -> list[Pair]:
    """Up to `merges` pairs in the order in which they are merged; the same as `reference.train`.

    `tell` is called after every merge.
    """
    marks, weight = _lay_out(words)
    counts, places = _first_pairs(marks, weight)
    ids: list[int] = marks.tolist()
    weights: list[int] = weight.tolist()
    length = [1] * 256
    heap = [(-count, key) for key, count in counts.items()]
    heapq.heapify(heap)
    learned: list[Pair] = []
    while heap and len(learned) < merges:
        negative, key = heapq.heappop(heap)
        count = counts[key]
        if count < min_count:  # fallen since, or never enough
            continue
        if count != -negative:
            heapq.heappush(heap, (-count, key))
            continue
        left, right = key >> SHIFT, key & LOW
        new = len(length)
        length.append(length[left] + length[right])
        learned.append((left, right))
        made = _merge(left, right, new, ids, weights, length, counts, places)
        for born in made:
            if counts[born] >= min_count:
                heapq.heappush(heap, (-counts[born], born))
        tell()
    return learned


def _merge(
    left: int,
    right: int,
    new: int,
    ids: list[int],
    weights: list[int],
    length: list[int],
    counts: dict[int, int],
    places: dict[int, Iterable[int]],
) -> list[int]:
    """Replace the pair everywhere by `new` and bring counts and places up to date; the pairs that this has made."""
    key = left << SHIFT | right
    size_left, size_right = length[left], length[right]
    born: dict[int, array[int]] = {}
    for start in places.pop(key):
        after = start + size_left
        if ids[start] != left or ids[after - 1] != left or ids[after] != right:
            continue
        end = after + size_right
        weight = weights[start]
        before, behind = ids[start - 1], ids[end]
        if before != BORDER:
            counts[before << SHIFT | left] -= weight
            pair = before << SHIFT | new
            if pair not in born:
                born[pair] = array("q")
                counts[pair] = 0
            counts[pair] += weight
            born[pair].append(start - length[before])
        if behind != BORDER:
            counts[right << SHIFT | behind] -= weight
            pair = new << SHIFT | behind
            if pair not in born:
                born[pair] = array("q")
                counts[pair] = 0
            counts[pair] += weight
            born[pair].append(start)
        ids[start] = ids[end - 1] = new
    del counts[key]
    places.update(born)
    return list(born)


def _lay_out(words: Mapping[bytes, int]) -> tuple[np.ndarray, np.ndarray]:
    """The bytes of all words with borders around them, and at each byte how often its word occurs."""
    lengths = np.fromiter((len(word) + 1 for word in words), np.int64, len(words))
    times = np.fromiter(words.values(), np.int64, len(words))
    text = np.frombuffer(b"".join(word + b"\0" for word in words), np.uint8)
    marks = np.full(len(text) + 1, BORDER, np.int64)
    marks[1:] = text
    marks[np.cumsum(lengths)] = BORDER
    return marks, np.concatenate([np.zeros(1, np.int64), np.repeat(times, lengths)])


def _first_pairs(marks: np.ndarray, weight: np.ndarray) -> tuple[dict[int, int], dict[int, Iterable[int]]]:
    """Counts and places of all pairs of bytes."""
    at = np.flatnonzero((marks[:-1] != BORDER) & (marks[1:] != BORDER))
    keys = marks[at] << SHIFT | marks[at + 1]
    order = np.argsort(keys, kind="stable")
    keys, at = keys[order], at[order]
    pairs, first = np.unique(keys, return_index=True)
    totals = np.add.reduceat(weight[at], first) if len(at) else np.zeros(0, np.int64)
    counts = dict(zip(pairs.tolist(), totals.tolist(), strict=True))
    places: dict[int, Iterable[int]] = {
        pair: array("q", part.tobytes())
        for pair, part in zip(pairs.tolist(), np.split(at, first[1:]) if len(at) else [], strict=True)
    }
    return counts, places
