"""Counting words: exact on any text, whichever engine finds them, and evenly sampled."""

import unicodedata
from collections import Counter
from itertools import pairwise

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.errors import WordmillError
from llm.tokenizer.config import PATTERNS
from llm.tokenizer.scan import LETTER, NUMBER, SPACE, Classes
from llm.tokenizer.word_table import batch, prepare
from llm.tokenizer.words import count_words, even_sample


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    """Before anything is timed: the first run on a machine compiles for some seconds."""
    prepare()


@pytest.mark.parametrize("pattern", sorted(PATTERNS))
@given(text=st.text(st.characters(max_codepoint=127)))
@settings(deadline=None)
def test_ascii_words_are_those_of_the_full_pattern(pattern: str, text: str) -> None:
    words = regex.findall(PATTERNS[pattern], text)
    assert "".join(words) == text
    assert count_words([text], pattern).dict() == Counter(word.encode() for word in words)


@pytest.mark.parametrize("pattern", sorted(PATTERNS))
@given(text=st.text())
@settings(deadline=None)
def test_words_are_the_whole_text(pattern: str, text: str) -> None:
    assert "".join(regex.findall(PATTERNS[pattern], text)) == text
    counts = count_words([text, text], pattern)
    assert counts.text_bytes == 2 * len(text.encode())
    assert sum(len(word) * count for word, count in counts.dict().items()) == counts.text_bytes


def test_known_words() -> None:
    assert list(count_words(["I'll pay 12345 dollars!\n\nYOU'LL  not."], "cl100k", threads=1).dict()) == [
        *(b"I", b"'ll", b" pay", b" ", b"123", b"45", b" dollars", b"!\n\n", b"YOU", b"'LL", b" not", b".")
    ]
    assert list(count_words(["I'll pay 12345 dollars!\n\nYOU'LL  not."], "gpt2", threads=1).dict()) == [
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


def test_o200k_is_left_to_its_expression() -> None:
    text = "HelloWorld's naïve 12345 мельник\r\n\n  don't"
    assert list(count_words([text], "o200k").dict()) == [
        *(b"Hello", b"World's", " naïve".encode(), b" ", b"123", b"45"),
        *(" мельник".encode(), b"\r\n\n", b" don't"),
    ]


@pytest.mark.parametrize("pattern", ["gpt2", "cl100k"])
@given(text=st.text(st.sampled_from("aſsT'’ lLvVrRe1٣²,.\t\r\n\u3000\u0085é字\x1c\u200b"), max_size=30))
@settings(max_examples=500, deadline=None)
def test_compiled_words_are_the_expressions_on_nasty_text(pattern: str, text: str) -> None:
    words = regex.findall(PATTERNS[pattern], text)
    assert count_words([text], pattern).dict() == Counter(word.encode() for word in words)


def test_character_classes_are_those_of_the_expressions() -> None:
    # tiktoken's tables of Unicode and regex's are of different years: where they differ, a character is new in one.
    codes = (*range(0xD800), *range(0xE000, 0x110000))
    characters = [chr(code) for code in codes[::7] if unicodedata.category(chr(code)) != "Cn"]
    classes = Classes()
    classes.learn(batch(["".join(characters).encode()]).text)
    for number, pattern in ((LETTER, r"\p{L}"), (NUMBER, r"\p{N}"), (SPACE, r"[^\S\r\n]")):
        theirs = set(regex.findall(pattern, "".join(characters)))
        assert {character for character in characters if classes.table[ord(character)] == number} == theirs


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_any_number_of_threads_counts_the_same(threads: int) -> None:
    texts = [f"word{number % 1000} and {'x' * (number % 50)}é " * 40 for number in range(3000)]
    assert count_words(texts, "gpt2", threads).dict() == Counter(
        word.encode() for text in texts for word in regex.findall(PATTERNS["gpt2"], text)
    )


def test_a_word_of_a_megabyte_and_many_words_make_the_table_grow() -> None:
    text = "a" * 3_000_000 + " " + " ".join(map(str, range(100_000)))
    counts = count_words([text], "gpt2")
    assert counts.distinct == 100_001
    assert counts.text_bytes == len(text)
