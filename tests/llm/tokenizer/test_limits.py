"""Time and memory on texts that are not like English: long white space, and scripts without spaces."""

import time
from collections import namedtuple

import pytest

from llm.errors import WordmillError
from llm.tokenizer import bpe
from llm.tokenizer.bulk import encode_batches
from llm.tokenizer.byte_bpe import ByteBPE
from llm.tokenizer.config import PATTERNS
from llm.tokenizer.tokenizer import END_OF_TEXT, Tokenizer
from llm.tokenizer.train import _from_merges
from llm.tokenizer.word_table import batch
from llm.tokenizer.words import Words, count_words

SECONDS = 10.0  # of processor time; each takes less than one, and took minutes where time grew with the square
OWN = r" ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
SIZE = 300_000
BLANK = {
    "spaces": " " * SIZE,
    "line ends": "\n" * SIZE,
    "mixed": " \n\t" * (SIZE // 3),
    "just below what tiktoken bears": (" " * 99_999 + "a") * (SIZE // 100_000),
    "wide": "\u3000" * SIZE,
    "before and after a word": "a" + " " * SIZE + "b",
}


def tokenizer(pattern: str) -> Tokenizer:
    merges = [(ord(" "), ord(" ")), (ord("a"), ord("b"))]
    if pattern in PATTERNS:
        return ByteBPE.from_merges(merges, PATTERNS[pattern], (END_OF_TEXT,))
    return _from_merges(merges, pattern, (END_OF_TEXT,))


@pytest.mark.parametrize("pattern", [*PATTERNS, OWN])
def test_encoding_white_space_takes_linear_time(pattern: str) -> None:
    made = tokenizer(pattern)
    for name, text in BLANK.items():
        text = text[: SIZE if pattern in PATTERNS else SIZE // 3]  # for one's own it is another library's time
        began = time.process_time()
        ids = made.encode(text)
        assert time.process_time() - began < SECONDS, name
        assert made.decode(ids) == text, name


@pytest.mark.parametrize("pattern", [*PATTERNS, OWN])
def test_counting_white_space_takes_linear_time(pattern: str) -> None:
    for name, text in BLANK.items():
        began = time.process_time()
        assert count_words([text], pattern, 1).text_bytes == len(text.encode())
        assert time.process_time() - began < SECONDS, name


@pytest.mark.parametrize("pattern", ["gpt2", "cl100k"])
def test_compiled_encoding_of_white_space_takes_linear_time(pattern: str) -> None:
    made = tokenizer(pattern)
    for name, text in BLANK.items():
        began = time.process_time()
        [encoded] = encode_batches([batch([text.encode()])], made, compiled=True, threads=1)
        assert time.process_time() - began < SECONDS, name
        assert made.decode(encoded.ids[:-1].tolist()) == text, name


Memory = namedtuple("Memory", "available")


def test_too_much_text_for_the_memory_is_said_before(monkeypatch: pytest.MonkeyPatch) -> None:
    words = Words.of({b"ab" * 50: 3, b"cd" * 50: 2})
    monkeypatch.setattr(bpe.psutil, "virtual_memory", lambda: Memory(201 * bpe.BYTES))
    with pytest.raises(WordmillError, match=r"are free; set tokenizer\.max_train_bytes to train on a sample"):
        bpe.train(words, 10)


def test_much_memory_is_said_before(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    words = Words.of({b"ab" * 50: 3})
    bpe.train(words, 1)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(bpe, "MUCH", 1000)
    bpe.train(words, 1)
    assert "of distinct words take about 0.0 GB of memory to train on" in capsys.readouterr().err
