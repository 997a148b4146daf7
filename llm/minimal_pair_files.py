"""Minimal pairs on disk, in BLiMP's format: see `llm.minimal_pairs`."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from llm.corpus.config import PAIRS, kind
from llm.corpus.files import Row, find, read_rows
from llm.errors import WordmillError

KEYS = ("sentence_good", "sentence_bad")


class MinimalPair(NamedTuple):
    good: str
    bad: str
    paradigm: str


def read_minimal_pairs(paths: tuple[str, ...], scratch: Path) -> list[MinimalPair]:
    """The pairs of all files that paths and globs name, in order. Raises WordmillError naming file and line."""
    pairs = []
    for path in named(paths):
        of_file = list(of_one_file(path, scratch))
        if not of_file:
            raise WordmillError(f"evaluate.minimal_pairs: {path}: holds no pair")
        pairs += of_file
    return pairs


def named(paths: tuple[str, ...]) -> list[Path]:
    """The files that paths and globs name. Raises WordmillError for one that is not there or of another kind."""
    files = find(paths, "evaluate.minimal_pairs")
    for path in files:
        if not path.is_file():
            raise WordmillError(f"evaluate.minimal_pairs: {path}: not found")
        if (kind(path.name) or ("", ""))[0] not in PAIRS:
            raise WordmillError(
                f"evaluate.minimal_pairs: {path}: the name must end in .jsonl, .json or .parquet, perhaps packed"
            )
    return files


def of_one_file(path: Path, scratch: Path) -> Iterator[MinimalPair]:
    """The pairs of one file. Raises WordmillError naming file and line."""
    for row in read_rows(path, scratch):
        yield _pair(row, path.name.partition(".")[0])


def _pair(row: Row, file: str) -> MinimalPair:
    if row.replaced:
        raise WordmillError(f"{row.where}: not UTF-8 text; save the file as UTF-8")
    if not isinstance(row.values, Mapping):
        raise WordmillError(f"{row.where}: not a record with keys, but a {type(row.values).__name__}")
    good, bad = (row.values.get(key) for key in KEYS)
    for key, text in zip(KEYS, (good, bad), strict=True):
        if not isinstance(text, str) or not text.strip():
            raise WordmillError(f"{row.where}: key {key!r} is missing, empty or not a string")
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise WordmillError(f"{row.where}: key {key!r} holds half of a character (a lone surrogate); mend the text")
    paradigm = row.values.get("UID", file)
    if not isinstance(paradigm, str) or not paradigm:
        raise WordmillError(f"{row.where}: key 'UID' is empty or not a string")
    return MinimalPair(str(good), str(bad), paradigm)
