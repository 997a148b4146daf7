"""The fast trainer against the readable one, merge for merge, and against Hugging Face's."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.tokenizer import bpe, reference
from llm.tokenizer.config import PATTERNS
from llm.tokenizer.patterns import byte_characters
from llm.tokenizer.words import Words, count_words

# Few letters, so that runs, overlaps and ties are frequent.
WORDS = st.dictionaries(st.text("ab c", min_size=1, max_size=14).map(str.encode), st.integers(1, 4), max_size=8)


@given(words=WORDS, merges=st.integers(0, 40), min_count=st.integers(1, 3))
@settings(max_examples=400, deadline=None)
def test_fast_equals_reference(words: dict[bytes, int], merges: int, min_count: int) -> None:
    assert bpe.train(Words.of(words), merges, min_count) == reference.train(words, merges, min_count)


@given(words=st.dictionaries(st.binary(min_size=1, max_size=30), st.integers(1, 1000), max_size=20))
@settings(max_examples=100, deadline=None)
def test_fast_equals_reference_on_any_bytes(words: dict[bytes, int]) -> None:
    assert bpe.train(Words.of(words), 60) == reference.train(words, 60)


@given(words=WORDS)
def test_order_of_words_does_not_matter(words: dict[bytes, int]) -> None:
    assert bpe.train(Words.of(words), 30) == bpe.train(Words.of(dict(sorted(words.items()))), 30)


def test_known_merges() -> None:
    # Worked out by hand: "aaabdaaabac" of the encyclopedias' example, ties to the smallest ids.
    a, b = ord("a"), ord("b")
    assert bpe.train(Words.of({b"aaabdaaabac": 1}), 3) == [(a, a), (a, b), (256, 257)]


def test_runs_merge_from_the_left() -> None:
    a = ord("a")
    assert bpe.train(Words.of({b"aaaaa": 1}), 9, min_count=1) == [(a, a), (256, a), (256, 257)]
    assert reference.encode(b"aaaaaaa", [(a, a), (256, a), (256, 257)]) == [256, 258]


def test_nothing_to_merge() -> None:
    assert bpe.train(Words.of({}), 5) == []
    assert bpe.train(Words.of({b"a": 9, b"b": 9}), 5) == []
    assert bpe.train(Words.of({b"ab": 1}), 5, min_count=2) == []


def test_fast_equals_reference_on_shakespeare(shared_data: Path) -> None:
    text = (shared_data / "shakespeare" / "input.txt").read_text()[:60_000]
    words = count_words([text], "cl100k")
    assert bpe.train(words, 150) == reference.train(words.dict(), 150)


def test_same_as_hugging_face_up_to_ties(shared_data: Path) -> None:
    text = (shared_data / "shakespeare" / "input.txt").read_text()
    words = count_words([text], "cl100k")
    ours = bpe.train(words, 2048 - 256)
    theirs = tokenizers.Tokenizer(tokenizers.models.BPE())
    theirs.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Split(tokenizers.Regex(PATTERNS["cl100k"]), "isolated"),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=2048, show_progress=False, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet()
    )
    theirs.train_from_iterator([text], trainer)

    # Ties fall differently, so the lists differ in places; what each merge is worth must not.
    assert merge_counts(words, ours) == pytest.approx(merge_counts(words, their_merges(theirs)), rel=0.01)


def test_counts_only_fall(shared_data: Path) -> None:
    text = (shared_data / "shakespeare" / "input.txt").read_text()[:200_000]
    words = count_words([text], "gpt2")
    counts = merge_counts(words, bpe.train(words, 400))
    assert counts == sorted(counts, reverse=True)


def their_merges(tokenizer: tokenizers.Tokenizer) -> list[tuple[int, int]]:
    """Merges of a Hugging Face tokenizer in our ids: bytes as themselves, then one id a merge."""
    ids = {character: byte for byte, character in enumerate(byte_characters())}
    merges = []
    for left, right in json.loads(tokenizer.to_str())["model"]["merges"]:
        merges.append((ids[left], ids[right]))
        ids[left + right] = len(ids)
    return merges


def merge_counts(words: Words, merges: list[tuple[int, int]]) -> list[int]:
    """How often each merge's pair occurs when its turn comes, by applying the merges to every word."""
    totals = [0] * len(merges)
    rank = {pair: number for number, pair in enumerate(merges)}
    for word, count in words.dict().items():
        tokens = list(word)
        while True:
            numbers = [rank[pair] for pair in pairwise(tokens) if pair in rank]
            if not numbers:
                break
            number = min(numbers)
            totals[number] += numbers.count(number) * count
            tokens = reference.merge(tokens, merges[number], 256 + number)
    return totals
