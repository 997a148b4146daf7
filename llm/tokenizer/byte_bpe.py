"""Byte-level BPE: text falls into words, the UTF-8 bytes of a word are merged pair by pair. Encoding is tiktoken's.

One class for all of this kind: trained here, GPT-2's and its successors', and, without a single merge, plain bytes. On
disk it is Hugging Face's tokenizer.json, which `transformers` opens with the same ids.
"""

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import regex
import tiktoken

from llm.errors import WordmillError
from llm.tokenizer import huggingface
from llm.tokenizer.huggingface import Definition, Pair
from llm.tokenizer.tokenizer import Tokenizer, valid_utf8, write_files

# tiktoken's pattern engine gives up (with a panic) on about a million characters of white space in a row.
LONG_SPACE = 100_000
# In linear time: the first part fails after a hundred characters at most, the second gives nothing back.
WHITE_SPACE = regex.compile(r"\s{100}\s*+")
ANYTHING = r"(?s:.+)"


class ByteBPE(Tokenizer):
    """A byte-level BPE. Made by `llm.tokenizer.train`, or loaded from a folder by `Tokenizer.load`."""

    def __init__(self, definition: Definition) -> None:
        self.definition = definition
        if definition.end_of_text not in definition.special_tokens:
            raise WordmillError(
                f"the tokenizer has no special token {definition.end_of_text}, which stands between documents"
            )
        self._encoding = self._tiktoken(definition.pattern)

    @classmethod
    def from_merges(cls, merges: Sequence[Pair], pattern: str, special_tokens: Sequence[str]) -> "ByteBPE":
        """Bytes are ids 0 to 255, the merges follow in order, the special tokens come last."""
        return cls(huggingface.definition_of(merges, pattern, special_tokens))

    def save(self, folder: Path) -> None:
        """Write tokenizer.json and tokenizer_config.json; equal tokenizers give equal bytes."""
        config = huggingface.tokenizer_config_json(self.definition.end_of_text, self.definition.begin_of_text)
        content = huggingface.tokenizer_json(self.definition)
        write_files(folder, {"tokenizer.json": content.encode(), "tokenizer_config.json": config.encode()})

    @property
    def tokens(self) -> tuple[bytes, ...]:
        return self.definition.tokens

    @property
    def special_tokens(self) -> dict[str, int]:
        return dict(self.definition.special_tokens)

    @property
    def end_of_text(self) -> int:
        return self.definition.special_tokens[self.definition.end_of_text]

    @property
    def begin_of_text(self) -> int:
        return self.definition.special_tokens[self.definition.begin_of_text or self.definition.end_of_text]

    @cached_property
    def fingerprint(self) -> str:
        content = [
            [token.hex() for token in self.definition.tokens],
            self.definition.merges,
            self.definition.pattern,
            sorted(self.definition.special_tokens.items()),
        ]
        if self.definition.begin_of_text:
            content.append(self.definition.begin_of_text)
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def encode_array(self, text: str) -> np.ndarray:
        encoded = valid_utf8(text)
        if not self.definition.merges:
            return self._byte_ids[np.frombuffer(encoded, np.uint8)]
        if _has_long_space(text):
            return np.array(self._encode_words(text), np.uint32)
        return self._encoding.encode_to_numpy(text, disallowed_special=())

    @cached_property
    def _byte_ids(self) -> np.ndarray:
        """The id of each byte."""
        return np.array([self.definition.tokens.index(bytes([byte])) for byte in range(256)], np.uint32)

    def _tiktoken(self, pattern: str) -> tiktoken.Encoding:
        ranks = {token: rank for rank, token in enumerate(self.definition.tokens) if token}
        return tiktoken.Encoding(
            "wordmill", pat_str=pattern, mergeable_ranks=ranks, special_tokens=self.definition.special_tokens
        )

    @cached_property
    def _whole_words(self) -> tiktoken.Encoding:
        return self._tiktoken(ANYTHING)

    def _encode_words(self, text: str) -> list[int]:
        """The same, with the words found by Python's `regex`, which no run of white space exhausts.

        Its Unicode tables are newer than tiktoken's, so letters of the latest years may be cut differently; here only.
        """
        words = regex.findall(self.definition.pattern, text)
        return [number for word in words for number in self.encode_word(word)]

    def encode_word(self, word: str) -> list[int]:
        """The ids of what is one word, of any length."""
        return self._whole_words.encode_ordinary(word)


def _has_long_space(text: str) -> bool:
    if len(text) < LONG_SPACE:
        return False
    return any(match.end() - match.start() >= LONG_SPACE for match in WHITE_SPACE.finditer(text))
