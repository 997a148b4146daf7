"""Token shards: a split of the corpus as flat files of token ids that are memory-mapped, never loaded.

A mapped shard holds no file descriptor, so there may be thousands of them.

A folder holds `*.bin` shards and index.json. A shard is

    offset  bytes  content (little-endian)
         0      8  magic "WMSHARD\\0"
         8      4  format version, 1
        12      4  bytes per token: 2 (uint16) up to 65,536 tokens in the vocabulary, else 4 (uint32)
        16      8  number of tokens
        24      8  number of documents
        32      8  bytes of UTF-8 text that the tokens stand for
        40     32  fingerprint of the tokenizer
        72     32  SHA-256 of everything after the header
       104    152  zeros
       256         the tokens, each document ended by <|endoftext|>, filled up with zeros to a multiple of 8 bytes
                   where each document starts, uint64, counted in tokens from the start of the shard

Documents stay whole: a shard ends with the document that takes it past `tokens_per_shard`. A shard is written under
another name, synced and renamed, so a file called *.bin is always a whole one. A `ShardSet` checks header, index and
size against each other when it opens, and (unless told not to) the SHA-256 of every byte; what does not fit is
refused with the file's name.
"""

import hashlib
import json
import os
import struct
from array import array
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from llm.errors import ConfigError, WordmillError
from llm.limits import check_limits
from llm.strict_json import check_json, read_json
from llm.tokenizer.tokenizer import Encoded, Tokenizer

MAGIC = b"WMSHARD\0"
FORMAT = "wordmill token shards"
VERSION = 1
HEADER = struct.Struct("<8sIIQQQ32s32s")
HEADER_BYTES = 256
DTYPES: dict[int, np.dtype[Any]] = {2: np.dtype("<u2"), 4: np.dtype("<u4")}
INDEX = "index.json"
CHUNK = 1 << 20  # tokens counted at a time
MOST_TOKENS = 1 << 24  # in a vocabulary; the largest published ones have a sixteenth of that
COUNT = Field(ge=0, lt=1 << 62)
SHA256 = Field(pattern=r"^[0-9a-f]{64}$")


@dataclass(frozen=True)
class ShardsConfig:
    """Raises ConfigError."""

    tokens_per_shard: int = 10_000_000  # a shard ends with the document that reaches this
    encoder: Literal["auto", "library"] = (
        "auto"  # auto: compiled code for the words that it knows to find, else a library
    )

    def __post_init__(self) -> None:
        if self.tokens_per_shard < 1:
            raise ConfigError("tokens_per_shard", f"{self.tokens_per_shard} is below 1; 10000000 is usual")
        check_limits(self, {"tokens_per_shard": (1, 1 << 40)})


@dataclass(frozen=True)
class ShardInfo:
    """What the index says of a shard."""

    name: str
    tokens: int
    documents: int
    text_bytes: int
    sha256: str  # of everything after the header, hex


class ShardEntry(BaseModel):
    """The same as index.json has it."""

    model_config = ConfigDict(strict=True, extra="forbid")
    name: str = Field(pattern=r"^[^/\\\x00-\x1f]{1,200}\.bin$")
    tokens: int = COUNT
    documents: int = COUNT
    text_bytes: int = COUNT
    sha256: str = SHA256


class Index(BaseModel):
    """index.json."""

    model_config = ConfigDict(strict=True, extra="forbid")
    format: Literal["wordmill token shards"]
    version: Literal[1]
    tokenizer: str = SHA256
    vocab_size: int = Field(ge=1, le=MOST_TOKENS)
    end_of_text: int = COUNT
    dtype: str
    tokens: int = COUNT
    documents: int = COUNT
    text_bytes: int = COUNT
    shards: list[ShardEntry]


class Header(NamedTuple):
    """The fields of a shard's header."""

    token_bytes: int
    tokens: int
    documents: int
    text_bytes: int
    tokenizer: bytes
    sha256: bytes

    @property
    def file_bytes(self) -> int:
        """How long the file is."""
        return HEADER_BYTES + _padded(self.tokens * self.token_bytes) + 8 * self.documents


def write_shards(
    documents: Iterable[Encoded], tokenizer: Tokenizer, folder: Path, name: str, tokens_per_shard: int
) -> list[ShardInfo]:
    """Write encoded documents as shards `<name>-00000.bin`, `<name>-00001.bin`, ... of `folder`.

    The bytes are a function of the documents and the tokenizer, however the documents fall into batches.
    """
    folder.mkdir(parents=True, exist_ok=True)
    infos: list[ShardInfo] = []
    shard: _Writer | None = None
    try:
        for ids, ends, text_bytes in documents:
            first, count = 0, len(ends) - 1
            while first < count:
                if shard is None:
                    shard = _Writer(folder / f"{name}-{len(infos):05d}.bin", tokenizer)
                # a shard ends with the document that fills it
                full = int(np.searchsorted(ends, ends[first] + tokens_per_shard - shard.tokens))
                last = min(count, max(full, first + 1))
                starts = ends[first:last] - ends[first]
                shard.add(ids[ends[first] : ends[last]], starts, int(text_bytes[first:last].sum()))
                if shard.tokens >= tokens_per_shard:
                    infos.append(shard.finish())
                    shard = None
                first = last
        if shard is not None:
            infos.append(shard.finish())
            shard = None
    finally:
        if shard is not None:
            shard.drop()
    return infos


def write_index(folder: Path, shards: list[ShardInfo], tokenizer: Tokenizer) -> None:
    """index.json, which makes the shards of `folder` a set in this order."""
    content = {
        "format": FORMAT,
        "version": VERSION,
        "tokenizer": tokenizer.fingerprint,
        "vocab_size": tokenizer.vocab_size,
        "end_of_text": tokenizer.end_of_text,
        "dtype": DTYPES[_token_bytes(tokenizer.vocab_size)].name,
        "tokens": sum(shard.tokens for shard in shards),
        "documents": sum(shard.documents for shard in shards),
        "text_bytes": sum(shard.text_bytes for shard in shards),
        "shards": [asdict(shard) for shard in shards],
    }
    replace_json(folder / INDEX, content)


def replace_json(path: Path, content: dict[str, Any]) -> None:
    """Write `content` under another name, sync it, and give it the name `path`."""
    half = path.with_name(path.name + ".half")
    with half.open("w", encoding="utf-8") as file:
        file.write(json.dumps(content, indent=2) + "\n")
        os.fsync(file.fileno())
    half.replace(path)


class ShardSet:
    """The shards of a folder as one stream of tokens. Positions count from its first token."""

    def __init__(self, folder: Path, index: dict[str, Any], parts: list[np.ndarray], starts: list[np.ndarray]) -> None:
        self.folder = folder
        self.tokenizer_fingerprint: str = index["tokenizer"]
        self.end_of_text: int = index["end_of_text"]
        self.vocab_size: int = index["vocab_size"]
        self.text_bytes: int = index["text_bytes"]  # UTF-8 bytes of the documents
        self.digest = hashlib.sha256(json.dumps(index, sort_keys=True).encode()).hexdigest()
        self._parts = parts
        self._starts = starts
        self._ends = np.cumsum([len(part) for part in parts], dtype=np.int64)
        self.tokens = int(self._ends[-1]) if parts else 0

    @classmethod
    def open(cls, folder: Path, tokenizer_fingerprint: str | None = None, verify: bool = True) -> "ShardSet":
        """Map the shards that index.json names. `verify` reads every byte and checks its SHA-256.

        Raises WordmillError for a file that is missing, truncated, altered, foreign, or made by another tokenizer
        than the given one.
        """
        index = _read_index(folder)
        if tokenizer_fingerprint not in (None, index["tokenizer"]):
            raise WordmillError(
                f"{folder / INDEX}: these shards were made by tokenizer {index['tokenizer'][:12]}, not by "
                f"{str(tokenizer_fingerprint)[:12]}; run the stage `shards` again"
            )
        parts, starts = [], []
        for entry in index["shards"]:
            part, begin = _open_shard(folder, ShardInfo(**entry), index, verify)
            parts.append(part)
            starts.append(begin)
        return cls(folder, index, parts, starts)

    @cached_property
    def documents(self) -> np.ndarray:
        """Where each document starts, int64, rising."""
        begins = [int(end) - len(part) for end, part in zip(self._ends, self._parts, strict=True)]
        shifted = [starts.astype(np.int64) + begin for starts, begin in zip(self._starts, begins, strict=True)]
        starts = np.concatenate(shifted) if shifted else np.zeros(0, np.int64)
        if len(starts) and (starts[0] != 0 or starts[-1] >= self.tokens or (np.diff(starts) <= 0).any()):
            raise WordmillError(
                f"{self.folder}: the places where documents start do not rise; run the stage `shards` again"
            )
        return starts

    def window(self, start: int, length: int) -> np.ndarray:
        """The tokens [start, start + length), across shard borders; a view of the file where it lies in one shard."""
        if start < 0 or length < 0 or start + length > self.tokens:
            raise IndexError(f"[{start}, {start + length}) reaches outside [0, {self.tokens})")
        number = int(np.searchsorted(self._ends, start, side="right"))
        pieces = []
        while length:
            part = self._parts[number]
            offset = start - (int(self._ends[number]) - len(part))
            piece = part[offset : offset + length]
            pieces.append(piece)
            start, length, number = start + len(piece), length - len(piece), number + 1
        if len(pieces) == 1:
            return pieces[0]
        return np.concatenate(pieces) if pieces else np.zeros(0, self._parts[0].dtype if self._parts else np.uint16)

    def token_counts(self) -> np.ndarray:
        """How often each id of the vocabulary occurs, int64. Reads everything."""
        counts = np.zeros(self.vocab_size, np.int64)
        for part in self._parts:
            for start in range(0, len(part), CHUNK):
                found = np.bincount(part[start : start + CHUNK], minlength=self.vocab_size)
                if len(found) > self.vocab_size:
                    raise WordmillError(
                        f"{self.folder}: holds token {len(found) - 1}, but the vocabulary ends at "
                        f"{self.vocab_size - 1}; run the stage `shards` again"
                    )
                counts += found
        return counts

    def document(self, number: int) -> np.ndarray:
        """The tokens of one document with the <|endoftext|> that ends it."""
        starts = self.documents
        if not 0 <= number < len(starts):
            raise IndexError(f"document {number} of {len(starts)}")
        end = int(starts[number + 1]) if number + 1 < len(starts) else self.tokens
        return self.window(int(starts[number]), end - int(starts[number]))


class _Writer:
    """One shard under its temporary name, streamed: memory holds one batch and the starts of all documents."""

    def __init__(self, path: Path, tokenizer: Tokenizer) -> None:
        self.path = path
        self.half = path.with_name(path.name + ".half")
        self.tokenizer = tokenizer
        self.token_bytes = _token_bytes(tokenizer.vocab_size)
        self.tokens = self.text_bytes = 0
        self.starts = array("Q")
        self.sha256 = hashlib.sha256()
        self.file = self.half.open("wb")
        self.file.write(bytes(HEADER_BYTES))

    def add(self, ids: np.ndarray, starts: np.ndarray, text_bytes: int) -> None:
        self.starts.frombytes((starts + self.tokens).astype(np.uint64).tobytes())
        self._write(ids.astype(DTYPES[self.token_bytes]).data)
        self.tokens += len(ids)
        self.text_bytes += text_bytes

    def finish(self) -> ShardInfo:
        payload = self.tokens * self.token_bytes
        self._write(bytes(_padded(payload) - payload))
        self._write(np.array(self.starts, "<u8").tobytes())
        fingerprint = bytes.fromhex(self.tokenizer.fingerprint)
        counts = (self.tokens, len(self.starts), self.text_bytes)
        header = HEADER.pack(MAGIC, VERSION, self.token_bytes, *counts, fingerprint, self.sha256.digest())
        self.file.seek(0)
        self.file.write(header)
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        self.half.replace(self.path)
        return ShardInfo(self.path.name, *counts, self.sha256.hexdigest())

    def drop(self) -> None:
        self.file.close()
        self.half.unlink(missing_ok=True)

    def _write(self, data: bytes | memoryview) -> None:
        self.sha256.update(data)
        self.file.write(data)


def _read_index(folder: Path) -> dict[str, Any]:
    path = folder / INDEX
    again = "; run the stage `shards` again"
    try:
        index: dict[str, Any] = read_json(path, again, largest=1 << 30)
    except FileNotFoundError:
        raise WordmillError(f"{path}: not found; the stage `shards` makes it") from None
    if not isinstance(index, dict) or (index.get("format"), index.get("version")) != (FORMAT, VERSION):
        raise WordmillError(f"{path}: not an index of token shards, version {VERSION}{again}")
    check_json(index, Index, str(path), again)
    for name in ("tokens", "documents", "text_bytes"):
        if index[name] != sum(shard[name] for shard in index["shards"]):
            raise WordmillError(f"{path}: {name} is not the sum over its shards{again}")
    if len({shard["name"] for shard in index["shards"]}) < len(index["shards"]):
        raise WordmillError(f"{path}: damaged: names a shard twice{again}")
    if index["end_of_text"] >= index["vocab_size"]:
        raise WordmillError(f"{path}: damaged: end_of_text is outside the vocabulary{again}")
    return index


def _open_shard(folder: Path, info: ShardInfo, index: dict[str, Any], verify: bool) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and document starts, both mapped."""
    path = folder / info.name
    again = "run the stage `shards` again"
    try:
        with pa.memory_map(str(path)) as file:  # unlike numpy's, it lets go of the file and keeps the mapping
            data = np.frombuffer(file.read_buffer(), np.uint8)
    except FileNotFoundError:
        raise WordmillError(f"{path}: not found, though the index names it; {again}") from None
    except (ValueError, OSError) as error:
        raise WordmillError(f"{path}: cannot be mapped ({error}); {again}") from None
    header = _read_header(path, data)
    if header.file_bytes != len(data):
        trouble = "truncated" if len(data) < header.file_bytes else "too long"
        raise WordmillError(f"{path}: {trouble}: {len(data)} bytes, its header says {header.file_bytes}; {again}")
    if header.tokenizer.hex() != index["tokenizer"]:
        raise WordmillError(f"{path}: made by another tokenizer than the index says; {again}")
    found = ShardInfo(info.name, header.tokens, header.documents, header.text_bytes, header.sha256.hex())
    if found != info or header.token_bytes != _token_bytes(index["vocab_size"]):
        raise WordmillError(f"{path}: header and {INDEX} do not agree; {again}")
    if verify and hashlib.sha256(data[HEADER_BYTES:].data).digest() != header.sha256:
        raise WordmillError(f"{path}: damaged: its bytes are not those that were written (SHA-256); {again}")
    end = HEADER_BYTES + header.tokens * header.token_bytes
    tokens = data[HEADER_BYTES:end].view(DTYPES[header.token_bytes])
    return tokens, data[HEADER_BYTES + _padded(end - HEADER_BYTES) :].view("<u8")


def _read_header(path: Path, data: np.ndarray) -> Header:
    if len(data) < HEADER_BYTES or bytes(data[: len(MAGIC)]) != MAGIC:
        raise WordmillError(f"{path}: not a token shard (no {MAGIC[:7].decode()} at its beginning)")
    _, version, *fields = HEADER.unpack_from(data.data)
    if version != VERSION:
        raise WordmillError(f"{path}: format version {version}; this program reads version {VERSION}")
    header = Header(*fields)
    if header.token_bytes not in DTYPES:
        raise WordmillError(f"{path}: damaged header: {header.token_bytes} bytes per token")
    return header


def _token_bytes(vocab_size: int) -> int:
    return 2 if vocab_size <= 65_536 else 4


def _padded(size: int) -> int:
    return -(-size // 8) * 8
