"""Encoding a corpus: each distinct word once, by compiled code; every other time its tokens are copied.

A byte-level BPE never merges across words, so the tokens of a text are those of its words, and a language has few
words for much text. Words are found and numbered by `word_table.py`; a new one is merged pair by pair, the pair that
comes first in the list of merges first, as tiktoken does; one of over `LONG` bytes is left to tiktoken itself, whose
time does not grow with the square of its length. Ids are tiktoken's on every text (tests compare), at several times
its speed.

Memory is bounded: a table of `MOST_WORDS` words is thrown away and begun anew.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise

import numpy as np
from numba import njit

from llm.tokenizer.byte_bpe import ByteBPE
from llm.tokenizer.scan import SCANNED
from llm.tokenizer.tokenizer import Encoded, Tokenizer
from llm.tokenizer.word_table import BEGIN, LENGTH, STIR, Batch, WordTable
from llm.tokenizer.word_table import batch as in_memory
from llm.tokenizer.words import processors, read_ahead

LONG = 128  # bytes
MOST_WORDS = 1 << 20
SHIFT = 32  # a pair as one integer: left << SHIFT | right


def encode_batches(
    batches: Iterable[Batch], tokenizer: Tokenizer, compiled: bool, threads: int | None = None
) -> Iterator[Encoded]:
    """The batches as tokens, in their order, on as many threads as there are processors, or `threads`.

    `compiled` takes a `BulkEncoder`, for tokenizers that it can encode; otherwise each text goes through the tokenizer.
    The ids are the same.
    """
    if not compiled:
        yield from (_one_by_one(batch, tokenizer) for batch in batches)
        return
    threads = threads or processors()
    assert isinstance(tokenizer, ByteBPE)
    small = read_ahead(batches)  # begins to read while the compiled code is loaded
    encoders = [BulkEncoder(tokenizer) for _ in range(threads)]
    encoders[0].encode(in_memory([b"a"]))  # compiled here, if need be: numba cannot do it in two threads at once
    pools = [ThreadPoolExecutor(1) for _ in range(threads)]
    waiting: deque[Future[Encoded]] = deque()
    try:
        for number, batch in enumerate(small):
            if len(waiting) > threads:  # bounds the memory
                yield waiting.popleft().result()
            waiting.append(pools[number % threads].submit(encoders[number % threads].encode, batch))
        while waiting:
            yield waiting.popleft().result()
    finally:
        for pool in pools:
            pool.shutdown(cancel_futures=True)


def _one_by_one(batch: Batch, tokenizer: Tokenizer) -> Encoded:
    content, ends = batch.text.tobytes(), batch.ends.tolist()
    opening = np.array([tokenizer.begin_of_text] * begins_by_itself(tokenizer), np.uint32)
    closing = np.array([tokenizer.end_of_text], np.uint32)
    documents = [
        np.concatenate(
            [opening, tokenizer.encode_array(content[start:end].decode()), closing], dtype=np.uint32, casting="safe"
        )
        for start, end in pairwise(ends)
    ]
    id_ends = np.cumsum([0, *map(len, documents)], dtype=np.int64)
    return Encoded(np.concatenate(documents) if documents else closing[:0], id_ends, np.diff(batch.ends))


def begins_by_itself(tokenizer: Tokenizer) -> bool:
    """Whether a document begins with a token of its own, besides the one that ends the document before it."""
    return tokenizer.begin_of_text != tokenizer.end_of_text


class BulkEncoder:
    """For one thread. Only for tokenizers of which `can_encode` is true."""

    @staticmethod
    def can_encode(tokenizer: Tokenizer) -> bool:
        """Whether its words are found by compiled code, and its ids follow from merges."""
        known = isinstance(tokenizer, ByteBPE) and tokenizer.definition.pattern in SCANNED
        return known and not begins_by_itself(tokenizer)

    def __init__(self, tokenizer: ByteBPE) -> None:
        self.tokenizer = tokenizer
        tokens, merges = tokenizer.definition.tokens, tokenizer.definition.merges
        number = {token: index for index, token in enumerate(tokens) if token}
        # Pairs by open addressing; beside each its place in the list of merges, beside a free slot the list's length.
        pairs = np.array([left << SHIFT | right for left, right in merges], np.uint64)
        slots = 2 << len(pairs).bit_length()
        self._pairs, self._ranks = np.zeros(slots, np.uint64), np.full(slots, len(pairs), np.int32)
        _place(pairs, self._pairs, self._ranks)
        self._made = np.array([number[tokens[left] + tokens[right]] for left, right in merges], np.int64)
        self._bytes = np.array([number[bytes([byte])] for byte in range(256)], np.int64)
        self._begin()

    def _begin(self) -> None:
        self.table = WordTable(SCANNED[self.tokenizer.definition.pattern])
        self._ids = np.empty(1 << 18, np.uint32)  # tokens of all words
        self._ends = np.zeros(1 << 16, np.int64)  # where each word's end in it, from 0 on

    def encode(self, batch: Batch) -> Encoded:
        """Tokens of the documents of a batch."""
        if len(self.table) > MOST_WORDS:
            self._begin()
        known = len(self.table)
        words, ends = self.table.add(*batch)
        self._learn(known)
        ids = np.empty(len(batch.text) + len(ends) - 1, np.uint32)  # room for a token a byte
        id_ends = np.zeros(len(ends), np.int64)
        _copy(words, ends, self._ids, self._ends, self.tokenizer.end_of_text, ids, id_ends)
        return Encoded(ids[: id_ends[-1]], id_ends, np.diff(batch.ends))

    def _learn(self, known: int) -> None:
        """Tokens of the table's words from number `known` on."""
        words, text_bytes = self.table.used.tolist()
        if words >= len(self._ends):
            self._ends = np.concatenate([self._ends, np.zeros(words, np.int64)])
        if text_bytes > len(self._ids):  # a word has no more tokens than bytes
            self._ids = np.concatenate([self._ids, np.empty(text_bytes, np.uint32)])
        tables = (self._bytes, self._pairs, self._ranks, self._made, self._ids, self._ends)
        while known < words:
            known = _merge(self.table.text, self.table.rows, known, words, *tables)
            if known < words:  # a long one
                begin, length = self.table.rows[known, [BEGIN, LENGTH]].tolist()
                ids = self.tokenizer.encode_word(self.table.text[begin : begin + length].tobytes().decode())
                start = self._ends[known]
                self._ids[start : start + len(ids)] = ids
                self._ends[known + 1] = start + len(ids)
                known += 1


@njit(cache=True, nogil=True)
def _merge(
    text: np.ndarray,
    rows: np.ndarray,
    word: int,
    words: int,
    byte_ids: np.ndarray,
    pairs: np.ndarray,
    ranks: np.ndarray,
    made: np.ndarray,
    ids: np.ndarray,
    ends: np.ndarray,
) -> int:
    """Tokens of the words from number `word` on; the number of the first long one, or `words`."""
    parts, rank_at = np.empty(LONG, np.int64), np.empty(LONG, np.int64)
    never = len(made)
    while word < words and rows[word, LENGTH] <= LONG:
        begin, size = rows[word, BEGIN], rows[word, LENGTH]
        for at in range(size):
            parts[at] = byte_ids[text[begin + at]]
        for at in range(size - 1):
            rank_at[at] = _rank(pairs, ranks, never, parts[at], parts[at + 1])
        while size > 1:
            best = 0
            for at in range(1, size - 1):
                if rank_at[at] < rank_at[best]:
                    best = at
            if rank_at[best] == never:
                break
            parts[best] = made[rank_at[best]]
            size -= 1
            for at in range(best + 1, size):
                parts[at], rank_at[at - 1] = parts[at + 1], rank_at[at]
            if best > 0:
                rank_at[best - 1] = _rank(pairs, ranks, never, parts[best - 1], parts[best])
            if best < size - 1:
                rank_at[best] = _rank(pairs, ranks, never, parts[best], parts[best + 1])
        start = ends[word]
        for at in range(size):
            ids[start + at] = parts[at]
        word += 1
        ends[word] = start + size
    return word


@njit(cache=True, nogil=True)
def _place(merged: np.ndarray, pairs: np.ndarray, ranks: np.ndarray) -> None:
    for rank in range(len(merged)):
        slot = _slot(pairs, ranks, len(merged), merged[rank])
        if ranks[slot] == len(merged):  # should a pair be there twice, the first counts
            pairs[slot], ranks[slot] = merged[rank], rank


@njit(cache=True, nogil=True)
def _rank(pairs: np.ndarray, ranks: np.ndarray, never: int, left: int, right: int) -> int:
    """The place of a pair in the list of merges, or `never`, that list's length."""
    return ranks[_slot(pairs, ranks, never, np.uint64(left) << np.uint64(SHIFT) | np.uint64(right))]


@njit(cache=True, nogil=True)
def _slot(pairs: np.ndarray, ranks: np.ndarray, never: int, pair: np.uint64) -> np.uint64:
    """Where a pair is in the table, or the free slot in which it would be."""
    mask = np.uint64(len(pairs) - 1)
    slot = (pair * STIR) >> np.uint64(SHIFT) & mask
    while ranks[slot] != never and pairs[slot] != pair:
        slot = (slot + np.uint64(1)) & mask
    return slot


@njit(cache=True, nogil=True)
def _copy(
    words: np.ndarray,
    word_ends: np.ndarray,
    ids: np.ndarray,
    ends: np.ndarray,
    end_of_text: int,
    out: np.ndarray,
    out_ends: np.ndarray,
) -> None:
    at = 0
    for document in range(len(word_ends) - 1):
        for place in range(word_ends[document], word_ends[document + 1]):
            word = words[place]
            for token in range(ends[word], ends[word + 1]):
                out[at] = ids[token]
                at += 1
        out[at] = end_of_text
        at += 1
        out_ends[document + 1] = at
