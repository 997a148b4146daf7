"""BPE training to read: count all pairs, merge the most frequent, begin again.

Byte pair encoding (Gage 1994; for words, Sennrich et al. 2016; on bytes, Radford et al. 2019). The vocabulary begins
with the 256 bytes. Each step takes the pair of neighbouring tokens that occurs most often in the corpus and makes it
a new token. Of pairs with the same count the one with the smallest ids is taken, first id first; with that rule the
result is a function of the words and their counts alone, whatever order they come in.

This is slow, about a whole recount a merge. `bpe.py` gives the same merges fast, and the tests hold the two equal.
"""

from collections import Counter
from collections.abc import Mapping
from itertools import pairwise

Pair = tuple[int, int]


def train(words: Mapping[bytes, int], merges: int, min_count: int = 2) -> list[Pair]:
    """Up to `merges` pairs in the order in which they are merged; pair number i makes token 256 + i.

    `words` maps each word to how often it occurs. Fewer merges come back when no pair is left that occurs `min_count`
    times.
    """
    corpus = [(list(word), count) for word, count in words.items()]
    learned: list[Pair] = []
    while len(learned) < merges:
        counts = count_pairs(corpus)
        if not counts:
            break
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        if counts[best] < min_count:
            break
        corpus = [(merge(tokens, best, 256 + len(learned)), count) for tokens, count in corpus]
        learned.append(best)
    return learned


def count_pairs(corpus: list[tuple[list[int], int]]) -> Counter[Pair]:
    """How often each pair of neighbours occurs; in `aaa` the pair (a, a) occurs twice."""
    counts: Counter[Pair] = Counter()
    for tokens, count in corpus:
        for pair in pairwise(tokens):
            counts[pair] += count
    return counts


def merge(tokens: list[int], pair: Pair, new: int) -> list[int]:
    """`tokens` with `pair` replaced by `new`, from the left: `aaa` becomes (aa) a."""
    merged: list[int] = []
    at = 0
    while at < len(tokens):
        if at + 1 < len(tokens) and (tokens[at], tokens[at + 1]) == pair:
            merged.append(new)
            at += 2
        else:
            merged.append(tokens[at])
            at += 1
    return merged


def encode(word: bytes, merges: list[Pair]) -> list[int]:
    """The tokens of one word: every merge applied in its turn."""
    tokens = list(word)
    for number, pair in enumerate(merges):
        tokens = merge(tokens, pair, 256 + number)
    return tokens
