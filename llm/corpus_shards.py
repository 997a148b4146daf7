"""One Parquet part of the corpus becomes its token shards: a function of that file, the tokenizer and the settings.

So parts can be encoded in any order and on any machine, a task each. Beside the shards lies `<part>.json`, written
last: what the shards hold, by source too, and how the part begins. Where it is there and the shards are still what it
says, the part is not encoded again; so a folder that a kill has left half done is finished part by part.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from llm.corpus.documents import document_sources, read_utf8
from llm.shards import HEADER_BYTES, ShardInfo, ShardsConfig, replace_json, write_shards
from llm.tokenizer.bulk import BulkEncoder, encode_batches
from llm.tokenizer.diagnostics import OPENING
from llm.tokenizer.tokenizer import Encoded, Tokenizer
from llm.tokenizer.word_table import Batch

SOURCES = 20  # the largest ones are told apart


@dataclass(frozen=True)
class SourceCounts:
    """How much text of one source there is; tokens without the <|endoftext|> that ends each document."""

    documents: int
    text_bytes: int
    tokens: int

    def __add__(self, other: "SourceCounts") -> "SourceCounts":
        return SourceCounts(
            self.documents + other.documents, self.text_bytes + other.text_bytes, self.tokens + other.tokens
        )


@dataclass(frozen=True)
class PartRecord:
    """What became of a part."""

    shards: list[ShardInfo]
    characters: int
    opening: str  # the first `OPENING` characters
    sources: dict[str, SourceCounts]

    @property
    def text_bytes(self) -> int:
        """UTF-8 bytes of the part's documents."""
        return sum(shard.text_bytes for shard in self.shards)


def uses_compiled_code(config: ShardsConfig, tokenizer: Tokenizer) -> bool:
    """Whether `encode_part` takes the compiled encoder, rather than the library of the tokenizer."""
    return config.encoder == "auto" and BulkEncoder.can_encode(tokenizer)


def encode_part(
    part: Path,
    tokenizer: Tokenizer,
    folder: Path,
    config: ShardsConfig,
    told: Callable[[int], object] = lambda text_bytes: None,
) -> PartRecord:
    """Make sure that the shards of `part` are in `folder`, and say what they hold.

    `told` hears of progress, in bytes of text. Raises WordmillError for a part that cannot be read.
    """
    path = folder / f"{part.stem}.json"
    if (done := _finished(path)) is not None:
        told(done.text_bytes)
        return done
    characters, opening = 0, ""

    def batches() -> Iterator[Batch]:
        nonlocal characters, opening
        for text, ends in read_utf8(part):
            opening = opening or text[: ends[1]].tobytes().decode()[:OPENING]
            characters += int(np.count_nonzero(text & 0xC0 != 0x80))  # bytes that begin one
            yield Batch(text, ends)
            told(len(text))

    names, of_document = document_sources(part)
    tally = np.zeros((3, len(names)))
    encoded = encode_batches(batches(), tokenizer, uses_compiled_code(config, tokenizer))
    shards = write_shards(_counted(encoded, of_document, tally), tokenizer, folder, part.stem, config.tokens_per_shard)
    counts = tally.astype(np.int64).T.tolist()
    sources = {name: SourceCounts(*row) for name, row in zip(names, counts, strict=True)}
    record = PartRecord(shards, characters, opening, sources)
    replace_json(path, asdict(record))
    return record


def _counted(encoded: Iterable[Encoded], of_document: np.ndarray, tally: np.ndarray) -> Iterator[Encoded]:
    """Passes batches on; adds documents, bytes and tokens to `tally` (3, sources)."""
    at = 0
    for batch in encoded:
        count = len(batch.text_bytes)
        owners = of_document[at : at + count]
        for row, weights in zip(tally, (None, batch.text_bytes, np.diff(batch.ends) - 1), strict=True):
            row += np.bincount(owners, weights, minlength=len(row))
        at += count
        yield batch


def _finished(path: Path) -> PartRecord | None:
    """The record at `path`, if every shard that it names is there with the bytes that were written."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        shards = [ShardInfo(**shard) for shard in content["shards"]]
        sources = {name: SourceCounts(**counts) for name, counts in content["sources"].items()}
        record = PartRecord(shards, content["characters"], content["opening"], sources)
        whole = all(_payload(path.with_name(shard.name)) == shard.sha256 for shard in shards)
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    return record if whole else None


def _payload(path: Path) -> str:
    """SHA-256 of what follows a shard's header. Raises FileNotFoundError."""
    with path.open("rb") as file:
        file.seek(HEADER_BYTES)
        return hashlib.file_digest(file, "sha256").hexdigest()


def by_source(records: Iterable[PartRecord]) -> dict[str, SourceCounts]:
    """The counts of all parts by source, the one with the most text first; beyond `SOURCES`, "others" together."""
    total: dict[str, SourceCounts] = {}
    for record in records:
        for name, counts in record.sources.items():
            total[name] = total[name] + counts if name in total else counts
    names = sorted(total, key=lambda name: (-total[name].text_bytes, name))
    listed = {name: total[name] for name in names[:SOURCES]}
    for name in names[SOURCES:]:
        listed["others"] = listed["others"] + total[name] if "others" in listed else total[name]
    return listed
