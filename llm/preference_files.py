"""Preference records from local files and from hub data sets, each as a prompt and two answers.

All files are looked for before the first is read, and all are read to their end: a limit of pairs is applied later
(`llm.preferences`), where it can say what it leaves out. What becomes of each record is in the account.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from llm.corpus import hub
from llm.corpus.config import PAIRS, CorpusConfig, kind
from llm.corpus.files import Row, find, read_rows
from llm.errors import WordmillError
from llm.preference_account import Account
from llm.preference_dialogues import LeftOut
from llm.preference_shapes import ShapeName, Texts, convert


class Given(NamedTuple):
    """One record's texts and where it stands."""

    texts: Texts
    where: str


def from_files(paths: tuple[str, ...], shape: ShapeName, scratch: Path, account: Account) -> Iterator[Given]:
    """The records of all files that paths and globs name, in order. Raises WordmillError naming file and line."""
    files = find(paths, "preferences.paths")
    for path in files:
        _check_file(path)
    for path in files:
        yield from converted(read_rows(path, scratch), shape, account)


def from_hub(config: CorpusConfig, shape: ShapeName, scratch: Path, account: Account) -> Iterator[Given]:
    """The records of one split of a data set, file by file. Raises WordmillError."""
    for rows in hub.open_rows(config, scratch).files:
        yield from converted(rows(), shape, account)


def _check_file(path: Path) -> None:
    if not path.is_file():
        problem = "is a folder; name its files" if path.is_dir() else "not found"
        raise WordmillError(f"preferences.paths: {path}: {problem}")
    suffix = (kind(path.name) or ("", ""))[0]
    if suffix not in PAIRS:
        raise WordmillError(
            f"preferences.paths: {path}: the name must end in .jsonl, .json or .parquet (or that and .gz or .zst)"
        )


def converted(rows: Iterable[Row], shape: ShapeName, account: Account) -> Iterator[Given]:
    for row in rows:
        if row.replaced:
            raise WordmillError(f"{row.where}: not UTF-8 text; save the file as UTF-8")
        if not isinstance(row.values, Mapping):
            raise WordmillError(f"{row.where}: not a record with keys, but a {type(row.values).__name__}")
        account.records += 1
        try:
            yield Given(convert(row.values, shape, row.where, account), row.where)
        except LeftOut as left:
            account.leave_out(left.cause, f"{row.where}: {left.detail}" if left.detail else row.where)
