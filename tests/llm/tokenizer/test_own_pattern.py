"""A split pattern of one's own: the same ids here, from disk and in Hugging Face's library, and bad ones told."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import regex

from llm.errors import ConfigError, WordmillError
from llm.tokenizer import reference
from llm.tokenizer.config import TokenizerConfig
from llm.tokenizer.tokenizer import Tokenizer
from llm.tokenizer.train import make
from tests.llm.tokenizer.conftest import TEXTS

DIGITS = r"\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+"  # single digits, as SmolLM2 has them


def trained(pattern: str, vocab_size: int = 330) -> Tokenizer:
    return make(TokenizerConfig(vocab_size=vocab_size, pattern=pattern), lambda: TEXTS).tokenizer


@pytest.mark.parametrize("pattern", [DIGITS, r"\p{L}+"])  # the second leaves most signs out
def test_ids_are_the_same_everywhere(pattern: str, tmp_path: Path, nasty: list[str]) -> None:
    from transformers import AutoTokenizer

    tokenizer = trained(pattern)
    tokenizer.save(tmp_path)
    loaded, theirs = Tokenizer.load(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.fingerprint == tokenizer.fingerprint
    for text in nasty:
        ids = tokenizer.encode(text)
        assert tokenizer.decode_bytes(ids) == text.encode()
        assert loaded.encode(text) == ids
        if "<|endoftext|>" not in text:  # theirs takes it for the special token
            assert theirs.encode(text, add_special_tokens=False) == ids


def test_merges_stay_within_its_words() -> None:
    tokenizer = trained(DIGITS, 400)
    multiple = [token.decode(errors="replace") for token in tokenizer.tokens if len(token) > 1]
    assert not [token for token in multiple if any(sign.isdigit() for sign in token)]
    words = Counter(word.encode() for text in TEXTS for word in regex.findall(DIGITS, text))
    merges = reference.train(dict(words), 400 - 257, 2)
    expected = [bytes([byte]) for byte in range(256)]
    for left, right in merges:
        expected.append(expected[left] + expected[right])
    assert list(tokenizer.tokens[: len(expected)]) == expected


@pytest.mark.parametrize(
    ("pattern", "told"),
    [("cl100", "did you mean 'cl100k'"), ("words", "neither a known name"), (r"(\p{L}+", "not a regular expression")],
)
def test_what_is_no_pattern(pattern: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        TokenizerConfig(pattern=pattern)


def test_a_pattern_that_two_engines_read_differently() -> None:
    with pytest.raises(WordmillError, match=r"write it so that both agree"):
        make(TokenizerConfig(vocab_size=300, pattern=r"\p{N}{1,3}+|\P{N}+"), lambda: ["1234567 sheep"])


def test_a_catastrophic_pattern_ends_with_one_line() -> None:
    # In a process of its own: Rust writes a line about its panic to standard error.
    code = (
        "from llm.tokenizer.config import TokenizerConfig; from llm.tokenizer.train import make\n"
        "try: make(TokenizerConfig(vocab_size=300, pattern=r'(a+)+b|\\s+'), lambda: ['a' * 5000])\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert done.stdout.startswith("WordmillError Hugging Face's library gives up on the text that begins 'aaaa")
