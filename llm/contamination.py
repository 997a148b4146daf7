"""How much of held-out text stands in the training text too, by n-grams of words.

After GPT-3's appendix C (Brown et al. 2020, arXiv:2005.14165): text in lower case, punctuation ignored, and a document
is hit if any of its runs of n words occurs anywhere in the training text; there n is 8 to 13. PaLM (Chowdhery et al.
2022, arXiv:2204.02311) counts documents of which 70 % of the 8-grams occur; that share is given, too.

A word is a run of letters, digits and underscores, so a script without spaces makes long words and few n-grams. Runs
do not reach across documents. The held-out text's n-grams are held as 64-bit hashes; the training text streams past
them in pieces, so memory grows with the held-out text alone. Among a million held-out and ten billion training n-grams
a false match has a chance of one in two thousand.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import repeat

import numpy as np

MOSTLY = 0.7  # of a document's n-grams
PIECE = 1 << 20  # characters taken apart at a time
AT_ONCE = 1 << 18  # words looked up at a time
FILTER_BITS = 22  # of the table that most n-grams without a match fail at
FACTOR = np.uint64(0x9E3779B97F4A7C13)  # odd, and 3 modulo 4: differences of its powers have few factors of 2
WORD, SPACE = re.compile(r"\w+"), re.compile(r"\s")

Figures = dict[str, float]


def contamination(
    held_out: Mapping[str, Sequence[str]], train: Iterable[str], lengths: Sequence[int]
) -> dict[str, dict[int, Figures]]:
    """By split and n: `documents` long enough to have an n-gram, their n-grams, and what of both is in `train`.

    `documents_hit` is the share of documents with at least one n-gram that is, `documents_mostly` of those with at
    least `MOSTLY` of theirs, `ngrams_hit` the share of n-grams; one that occurs twice counts twice.
    """
    if not lengths:
        return {split: {} for split in held_out}
    words: dict[str, int] = {}
    ids = {
        split: [np.array([words.setdefault(word, len(words) + 1) for word in _words(text)], np.int64) for text in texts]
        for split, texts in held_out.items()
    }
    codes = np.random.Generator(np.random.PCG64(0)).integers(0, 2**64, len(words) + 1, np.uint64)
    sought = {n: _Sought([_hashes(codes[d], n) for documents in ids.values() for d in documents]) for n in lengths}
    for stretch in _stretches(train, words, max(lengths) - 1):
        for n, grams in sought.items():
            grams.look_for(_hashes(codes[stretch], n)[_all_known(stretch, n)])
    return {
        split: {n: grams.figures([_hashes(codes[d], n) for d in documents]) for n, grams in sought.items()}
        for split, documents in ids.items()
    }


class _Sought:
    """A set of hashes, and which of them have been met."""

    def __init__(self, hashes: list[np.ndarray]) -> None:
        self.hashes = np.unique(np.concatenate(hashes)) if hashes else np.zeros(0, np.uint64)
        self.met = np.zeros(len(self.hashes), dtype=bool)
        self.shift = np.uint64(64 - FILTER_BITS)
        self.filter = np.zeros(1 << FILTER_BITS, dtype=bool)
        self.filter[self.hashes >> self.shift] = True

    def look_for(self, hashes: np.ndarray) -> None:
        likely = hashes[self.filter[hashes >> self.shift]]
        places = np.searchsorted(self.hashes, likely)
        places = places[self.hashes[np.minimum(places, len(self.hashes) - 1)] == likely]
        self.met[places] = True

    def figures(self, documents: list[np.ndarray]) -> Figures:
        documents = [hashes for hashes in documents if len(hashes)]
        hits = np.array([self.met[np.searchsorted(self.hashes, hashes)].sum() for hashes in documents])
        totals = np.array([len(hashes) for hashes in documents])
        found = {"documents": float(len(documents)), "ngrams": float(totals.sum())}
        if documents:
            found["documents_hit"] = float((hits > 0).mean())
            found["documents_mostly"] = float((hits >= MOSTLY * totals).mean())
            found["ngrams_hit"] = float(hits.sum() / totals.sum())
        return found


def _stretches(texts: Iterable[str], words: Mapping[str, int], overlap: int) -> Iterator[np.ndarray]:
    """The texts' words as numbers, 0 for those not in `words` and between texts; a stretch begins with the `overlap`
    last words of the one before."""
    waiting: list[int] = []
    for text in texts:
        waiting.append(0)
        for piece in _pieces(text):
            waiting += map(words.get, WORD.findall(piece), repeat(0))
            if len(waiting) >= AT_ONCE:
                yield np.array(waiting, dtype=np.int64)
                waiting = waiting[len(waiting) - overlap :]
    yield np.array(waiting, dtype=np.int64)


def _pieces(text: str) -> Iterator[str]:
    """The text in lower case, cut at white space."""
    start = 0
    while start < len(text):
        cut = SPACE.search(text, start + PIECE)
        end = cut.start() if cut else len(text)
        yield text[start:end].lower()
        start = end


def _words(text: str) -> Iterator[str]:
    for piece in _pieces(text):
        yield from WORD.findall(piece)


def _hashes(codes: np.ndarray, n: int) -> np.ndarray:
    """A hash of each run of n of the codes (words,): (words - n + 1,), or none."""
    count = max(0, len(codes) - n + 1)
    found = np.zeros(count, dtype=np.uint64)
    for place in range(n):
        found = found * FACTOR + codes[place : place + count]
    return found


def _all_known(stretch: np.ndarray, n: int) -> np.ndarray:
    """Which runs of n words hold no 0."""
    unknown = np.cumsum(np.append(0, stretch == 0))
    count = max(0, len(stretch) - n + 1)
    return unknown[n : n + count] == unknown[:count]
