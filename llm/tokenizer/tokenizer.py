"""Text to token ids and back.

A `Tokenizer` is a byte-level BPE: any text has tokens, and decoding gives back the very bytes. Plain text never
becomes a special token, even where it spells one, so untrusted text is safe to encode; special tokens are put in by
id (`end_of_text`). Encoding is tiktoken's.

On disk a tokenizer is a folder that `transformers` opens too: tokenizer.json (everything that defines it, and all
that `load` reads), tokenizer_config.json.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import regex
import tiktoken

from llm.errors import WordmillError
from llm.tokenizer import huggingface
from llm.tokenizer.huggingface import Definition, Pair

END_OF_TEXT = "<|endoftext|>"
# tiktoken's pattern engine gives up (with a panic) on about a million characters of white space in a row.
LONG_SPACE = regex.compile(r"\s{100000}")
ANYTHING = r"(?s:.+)"


class Tokenizer:
    """A byte-level BPE. Made by `llm.tokenizer.train`, or loaded from a folder."""

    def __init__(self, definition: Definition) -> None:
        self.definition = definition
        if END_OF_TEXT not in definition.special_tokens:
            raise WordmillError(f"the tokenizer has no special token {END_OF_TEXT}, which stands between documents")
        self._encoding = self._tiktoken(definition.pattern)

    @classmethod
    def from_merges(cls, merges: Sequence[Pair], pattern: str, special_tokens: Iterable[str]) -> "Tokenizer":
        """Bytes are ids 0 to 255, the merges follow in order, the special tokens come last."""
        tokens = [bytes([byte]) for byte in range(256)]
        for left, right in merges:
            tokens.append(tokens[left] + tokens[right])
        specials = {token: len(tokens) + i for i, token in enumerate(special_tokens)}
        return cls(Definition(tuple(tokens), tuple(merges), pattern, specials))

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        """The tokenizer in `folder`. Raises WordmillError for a missing, damaged or foreign one."""
        return cls(huggingface.read(folder / "tokenizer.json"))

    def save(self, folder: Path) -> None:
        """Write tokenizer.json and tokenizer_config.json; equal tokenizers give equal bytes."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "tokenizer.json").write_text(huggingface.tokenizer_json(self.definition), encoding="utf-8")
        config = huggingface.tokenizer_config_json(END_OF_TEXT)
        (folder / "tokenizer_config.json").write_text(config, encoding="utf-8")

    @property
    def vocab_size(self) -> int:
        """Bytes, merges and special tokens: ids are below it."""
        return max(len(self.definition.tokens) - 1, *self.definition.special_tokens.values()) + 1

    @property
    def special_tokens(self) -> dict[str, int]:
        """Ids by name."""
        return dict(self.definition.special_tokens)

    @property
    def end_of_text(self) -> int:
        """The id that stands between documents."""
        return self.definition.special_tokens[END_OF_TEXT]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of all that decides ids: equal exactly when two tokenizers give every text the same ids."""
        tokens, merges, pattern, specials = self.definition
        content = [[token.hex() for token in tokens], merges, pattern, sorted(specials.items())]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, none of them special. Raises WordmillError for a lone surrogate."""
        return self.encode_array(text).tolist()

    def encode_array(self, text: str) -> np.ndarray:
        """`encode` as uint32, without a Python object per token."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise surrogate_error(error) from None
        if LONG_SPACE.search(text):
            return np.array(self._encode_words(text), np.uint32)
        return self._encoding.encode_to_numpy(text, disallowed_special=())

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` for each of `texts`."""
        return [self.encode(text) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        """Text; bytes that are not UTF-8 become U+FFFD, special tokens their names."""
        return self.decode_bytes(ids).decode(errors="replace")

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """The very bytes. Raises ValueError for an id that the vocabulary does not have."""
        table = self._bytes_by_id
        try:
            return b"".join(table[number] for number in ids)
        except KeyError as error:
            raise ValueError(f"no token has id {error.args[0]}; the vocabulary ends at {self.vocab_size - 1}") from None

    @cached_property
    def _bytes_by_id(self) -> dict[int, bytes]:
        table = dict(enumerate(self.definition.tokens))
        return table | {number: token.encode() for token, number in self.definition.special_tokens.items()}

    def _tiktoken(self, pattern: str) -> tiktoken.Encoding:
        ranks = {token: rank for rank, token in enumerate(self.definition.tokens)}
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
        return [number for word in words for number in self._whole_words.encode_ordinary(word)]


def surrogate_error(error: UnicodeEncodeError) -> WordmillError:
    """One line for text with half of a UTF-16 pair, which no UTF-8 file can hold."""
    return WordmillError(
        f"text with a lone surrogate U+{ord(error.object[error.start]):04X} at character {error.start} is not "
        f"valid Unicode; repair it where it was read, for instance with errors='replace'"
    )
