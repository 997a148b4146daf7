"""Text to token ids and back: what every kind of tokenizer can do.

Whatever the kind, any text has ids, and decoding gives back the very bytes. Plain text never becomes a special token,
even where it spells one, so untrusted text is safe to encode; special tokens are put in by id (`end_of_text`).

On disk a tokenizer is a folder, and `Tokenizer.load` sees from its files which kind it is:

    tokenizer.model   SentencePiece (`sentencepiece.py`)
    tokenizer.json    byte-level BPE, tiktoken's and single bytes included (`byte_bpe.py`); one that is cut into words
                      in a way that only Hugging Face's library knows is left to that library (`foreign.py`)
"""

from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from llm.errors import WordmillError

END_OF_TEXT = "<|endoftext|>"
FILES = ("tokenizer.model", "tokenizer.json", "tokenizer_config.json")


class Encoded(NamedTuple):
    """A batch of documents as tokens, each document ended by <|endoftext|>."""

    ids: np.ndarray  # uint32, the documents one behind the other
    ends: np.ndarray  # int64: where each document ends in `ids`, from 0 on
    text_bytes: np.ndarray  # int64: UTF-8 bytes of each document


class Tokenizer(Protocol):
    """The interface, and what follows from it. A kind derives from it and fills in the abstract part."""

    @property
    @abstractmethod
    def tokens(self) -> tuple[bytes, ...]:
        """What each id stands for in text; empty for special tokens and for ids that are not in use."""

    @property
    @abstractmethod
    def special_tokens(self) -> dict[str, int]:
        """Ids by name."""

    @property
    @abstractmethod
    def end_of_text(self) -> int:
        """The id that ends a document."""

    @property
    def begin_of_text(self) -> int:
        """The id that begins a document; `end_of_text` for tokenizers that have one token between documents."""
        return self.end_of_text

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """SHA-256 (hex) of all that decides ids: tokenizers with the same one give every text the same ids."""

    @abstractmethod
    def encode_array(self, text: str) -> np.ndarray:
        """The ids of `text` as uint32, none of them special. Raises WordmillError for a lone surrogate."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the files that `load` reads; equal tokenizers give equal bytes."""

    @staticmethod
    def load(folder: Path) -> "Tokenizer":
        """The tokenizer in `folder`. Raises WordmillError for a missing, damaged or unsupported one."""
        if (folder / "tokenizer.model").exists():  # imported only where needed: not every machine has every library
            from llm.tokenizer.sentencepiece import SentencePiece

            return SentencePiece.read(folder / "tokenizer.model")
        from llm.tokenizer.foreign import read_json

        return read_json(folder / "tokenizer.json")

    @property
    def vocab_size(self) -> int:
        """Ids are below it."""
        return max(len(self.tokens) - 1, *self.special_tokens.values()) + 1

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, none of them special. Raises WordmillError for a lone surrogate."""
        return self.encode_array(text).tolist()

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` for each of `texts`."""
        return [self.encode(text) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        """Text; bytes that are not UTF-8 and ids that are not in use become U+FFFD, special tokens their names."""
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
        not_in_use = "\ufffd".encode()  # a model may still predict it
        table = dict.fromkeys(range(self.vocab_size), not_in_use)
        table |= {number: token for number, token in enumerate(self.tokens) if token}
        return table | {number: token.encode() for token, number in self.special_tokens.items()}


def files(folder: Path) -> list[str]:
    """Names of the tokenizer's files in `folder`: all that `Tokenizer.load` and `transformers` read of it.

    Raises WordmillError if there is no tokenizer.
    """
    found = [name for name in FILES if (folder / name).exists()]
    if not set(found) & set(FILES[:2]):
        raise WordmillError(f"{folder}: no tokenizer there; the stage `tokenizer` makes data/tokenizer")
    return found


def write_files(folder: Path, contents: dict[str, bytes]) -> None:
    """Make `contents` the tokenizer's files in `folder`; those of another kind that was there are removed."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in set(FILES) - set(contents):
        (folder / name).unlink(missing_ok=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)


def valid_utf8(text: str) -> bytes:
    """`text` as UTF-8. Raises WordmillError for a lone surrogate."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise surrogate_error(error) from None


def surrogate_error(error: UnicodeEncodeError) -> WordmillError:
    """One line for text with half of a UTF-16 pair, which no UTF-8 file can hold."""
    return WordmillError(
        f"text with a lone surrogate U+{ord(error.object[error.start]):04X} at character {error.start} is not "
        f"valid Unicode; repair it where it was read, for instance with errors='replace'"
    )
