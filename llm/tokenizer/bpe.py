"""BPE training, fast: the merges of `reference.py`, touching only what a merge changes, compiled by numba.

All distinct words stand one after the other in one array, a border between each two. A token that covers the bytes
[start, end) has its id written at `start` and at `end - 1`, so its neighbours are found without links: the one to the
right begins at `end`, the one to the left ends at `start - 1`, and an id tells its length. What lies between the two
marks is stale and never read as a token, because a place counts only if both marks agree.

Two facts make it exact:

- A pair that holds the newest token has all its occurrences made by the newest merge, and an older pair can only lose
  occurrences. So counts only ever fall after the merge that made them.
- Hence a heap entry that is out of date is too high, never too low: correct it when it comes to the top, and the
  first one that is right is the true maximum, ties included.

For every pair a linked list holds where it occurs, in rising order (which keeps merging from the left in runs such as
`aaaa`), and every place knows its pair, so a place where the pair has gone in the meantime is recognised. A pair that a
merge makes holds the new token, so its number is found by its other token alone, without hashing. A merge shortens the
text by a token and makes two pairs at most, which bounds the lists: three places for each byte.

Memory follows the bytes of distinct words, of which a script without spaces (Chinese, Thai) has nearly as many as it
has text: `BYTES` of memory for each of them. What is needed is said before, and refused where the machine lacks it.
"""

import heapq

import numpy as np
import psutil
from numba import njit

from llm.errors import WordmillError
from llm.progress import say
from llm.tokenizer.reference import Pair
from llm.tokenizer.words import Words

BORDER = -1
NONE = -1
SHIFT = 32  # a pair as one integer: left << SHIFT | right, which sorts like the pair
LOW = (1 << SHIFT) - 1
LONGEST = (1 << 31) // 3  # bytes of distinct words: places are 32-bit numbers
BYTES = 60  # of memory for a byte of distinct words: three numbers, and two more for up to three places
MUCH = 1 << 30  # bytes of memory that are worth a word before they are taken


def train(words: Words, merges: int, min_count: int = 2) -> list[Pair]:
    """Up to `merges` pairs in the order in which they are merged; the same as `reference.train`.

    Raises WordmillError for more distinct words than 32-bit numbers can count the bytes of.
    """
    size = len(words.text) + words.distinct + 1
    if size > LONGEST:
        raise WordmillError(
            f"the corpus has {size:,} bytes of distinct words, of which {LONGEST:,} at most can be merged; "
            "set tokenizer.max_train_bytes to train on a sample"
        )
    if not words.distinct:
        return []
    _check_memory(size)
    learned = _merge_all(words.text, words.ends, words.counts, merges, min_count)
    return [(int(pair >> SHIFT), int(pair & LOW)) for pair in learned]


def _check_memory(size: int) -> None:
    """Say how much memory `size` bytes of distinct words take. Raises WordmillError where there is less."""
    needed, free = size * BYTES, psutil.virtual_memory().available
    told = f"{size / 1e6:,.0f} MB of distinct words take about {needed / 1e9:,.1f} GB of memory to train on"
    if needed > free:
        raise WordmillError(
            f"tokenizer: {told}, and {free / 1e9:,.1f} GB are free; set tokenizer.max_train_bytes to train on a sample"
        )
    if needed > MUCH:
        say(f"tokenizer: {told}; tokenizer.max_train_bytes trains on a sample")


@njit(cache=True, nogil=True)
def _merge_all(text: np.ndarray, ends: np.ndarray, times: np.ndarray, merges: int, min_count: int) -> np.ndarray:
    """The pairs merged, as integers. Word n is text[ends[n] : ends[n + 1]] and occurs times[n] times."""
    size = len(text) + len(times) + 1
    ids, owner = np.full(size, BORDER, np.int32), np.empty(size, np.int32)  # tokens as laid out above, and their words
    owner[0] = 0
    at = 1
    for word in range(len(times)):
        for byte in range(ends[word], ends[word + 1]):
            ids[at], owner[at] = text[byte], word
            at += 1
        owner[at] = word
        at += 1

    most = 1 << 16  # pairs of bytes; more with each merge
    keys, counts = np.empty(most, np.int64), np.zeros(most, np.int64)  # of each pair
    first, last = np.full(most, NONE, np.int32), np.empty(most, np.int32)  # its list of places
    place, following = np.empty(size, np.int32), np.empty(size, np.int32)
    pair_at = np.full(size, NONE, np.int32)  # the pair whose left token starts there
    pairs = places = 0

    of_bytes = np.full(1 << 16, NONE, np.int32)
    for at in range(size - 1):
        if ids[at] != BORDER and ids[at + 1] != BORDER:
            pair = of_bytes[ids[at] << 8 | ids[at + 1]]
            if pair == NONE:
                pair, pairs = pairs, pairs + 1
                of_bytes[ids[at] << 8 | ids[at + 1]] = pair
                keys[pair] = np.int64(ids[at]) << SHIFT | ids[at + 1]
            counts[pair] += times[owner[at]]
            pair_at[at] = pair
            place[places], following[places] = at, NONE
            if first[pair] == NONE:
                first[pair] = places
            else:
                following[last[pair]] = places
            last[pair] = places
            places += 1
    heap = [(-counts[pair], keys[pair], pair) for pair in range(pairs)]
    heapq.heapify(heap)

    length = np.ones(256 + merges, np.int32)
    made_with = np.full((2, 256 + merges), NONE, np.int32)  # pairs (token, new) and (new, token)
    learned = np.empty(merges, np.int64)
    done = 0
    while done < merges and len(heap) > 0:
        negative, key, pair = heapq.heappop(heap)
        count = counts[pair]
        if count < min_count:  # fallen since, or never enough
            continue
        if count != -negative:
            heapq.heappush(heap, (-count, key, pair))
            continue
        left, right, new = key >> SHIFT, key & LOW, 256 + done
        length[new] = length[left] + length[right]
        learned[done] = key
        done += 1
        oldest = pairs  # pairs from here on are made by this merge
        if pairs + 2 * (new + 1) > len(keys):  # each token may stand at either side of the new one
            most = 2 * len(keys) + 2 * (new + 1)
            keys, counts = _grown(keys, most, 0), _grown(counts, most, 0)
            first, last = _grown(first, most, NONE), _grown(last, most, NONE)
        entry = first[pair]
        while entry != NONE:
            start = place[entry]
            entry = following[entry]
            if pair_at[start] != pair:
                continue
            after = start + length[left]
            end = after + length[right]
            weight = times[owner[start]]
            if places + 2 > len(place):
                most = min(3 * size, len(place) + len(place) // 4 + 2)
                place, following = _grown(place, most, NONE), _grown(following, most, NONE)
            pair_at[start], pair_at[after] = pair_at[after], NONE
            for side in range(2):
                token = np.int64(ids[start - 1] if side == 0 else ids[end])
                if token == BORDER:
                    continue
                at = start - length[token] if side == 0 else start
                counts[pair_at[at]] -= weight
                made = made_with[side, token]
                if made == NONE:
                    made, pairs = pairs, pairs + 1
                    made_with[side, token] = made
                    keys[made] = token << SHIFT | new if side == 0 else new << SHIFT | token
                counts[made] += weight
                pair_at[at] = made
                place[places], following[places] = at, NONE
                if first[made] == NONE:
                    first[made] = places
                else:
                    following[last[made]] = places
                last[made] = places
                places += 1
            ids[start] = ids[end - 1] = new
        counts[pair] = 0
        for made in range(oldest, pairs):
            made_with[0, keys[made] >> SHIFT] = made_with[1, keys[made] & LOW] = NONE
            if counts[made] >= min_count:
                heapq.heappush(heap, (-counts[made], keys[made], made))
    return learned[:done]


@njit(cache=True, nogil=True)
def _grown(array: np.ndarray, size: int, filling: int) -> np.ndarray:
    grown = np.full(size, filling, array.dtype)
    grown[: len(array)] = array
    return grown
