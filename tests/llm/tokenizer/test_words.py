"""Counting words: exact on any text, whichever engine finds them, and evenly sampled."""

from itertools import pairwise

import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st

from llm.errors import WordmillError
from llm.tokenizer.config import PATTERNS
from llm.tokenizer.words import count_words, even_sample


@pytest.mark.parametrize("pattern", sorted(PATTERNS))
@given(text=st.text(st.characters(max_codepoint=127)))
def test_ascii_words_are_those_of_the_full_pattern(pattern: str, text: str) -> None:
    words = regex.findall(PATTERNS[pattern], text)
    assert "".join(words) == text
    assert list(count_words([text], pattern)) == [word.encode() for word in dict.fromkeys(words)]


@pytest.mark.parametrize("pattern", sorted(PATTERNS))
@given(text=st.text())
def test_words_are_the_whole_text(pattern: str, text: str) -> None:
    assert "".join(regex.findall(PATTERNS[pattern], text)) == text
    counts = count_words([text, text], pattern)
    assert sum(len(word) * count for word, count in counts.items()) == 2 * len(text.encode())


def test_known_words() -> None:
    assert list(count_words(["I'll pay 12345 dollars!\n\nYOU'LL  not."], "cl100k")) == [
        *(b"I", b"'ll", b" pay", b" ", b"123", b"45", b" dollars", b"!\n\n", b"YOU", b"'LL", b" not", b".")
    ]
    assert list(count_words(["I'll pay 12345 dollars!\n\nYOU'LL  not."], "gpt2")) == [
        *(b"I", b"'ll", b" pay", b" 12345", b" dollars", b"!", b"\n", b"YOU", b"'", b"LL", b" ", b" not", b".")
    ]


def test_lone_surrogate_is_refused() -> None:
    with pytest.raises(WordmillError, match=r"U\+D800"):
        count_words(["fine", "not \ud800 fine"], "cl100k")


def test_sample_is_even() -> None:
    texts = [f"{number:05d}" * 20 for number in range(1000)]
    sample = list(even_sample(lambda: texts, 10_000))
    numbers = [int(text[:5]) for text in sample]
    assert len(numbers) == 100
    assert all(8 <= later - earlier <= 12 for earlier, later in pairwise(numbers))


def test_sample_of_one_long_text_is_even() -> None:
    text = "".join(f"{number:07d} " for number in range(500_000))
    sample = list(even_sample(lambda: [text], 1_000_000))
    assert 900_000 <= sum(map(len, sample)) <= 1_000_000
    places = [text.index(piece) / len(text) for piece in sample]
    assert places[0] < 0.15
    assert places[-1] > 0.85


def test_sample_of_a_small_corpus_is_all_of_it() -> None:
    assert list(even_sample(lambda: ["one", "", "two"], 6)) == ["one", "", "two"]
