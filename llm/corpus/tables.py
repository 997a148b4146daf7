"""Records of .csv and .tsv files: the first line names the columns; quotes as in RFC 4180, for both.

A record that goes on over several lines, or has another number of fields than there are columns, is a bad one by
itself; reading goes on behind it.
"""

import csv
from collections.abc import Iterator

from llm.corpus.records import BadRow, Row, too_long
from llm.corpus.split_text import between, line_ends
from llm.corpus.utf8 import Utf8Check
from llm.errors import WordmillError

DELIMITERS = {".csv": ",", ".tsv": "\t"}


def table_rows(chunks: Iterator[bytes], name: str, delimiter: str, limit: int) -> Iterator[Row | BadRow]:
    """The records, as a dict of texts each. Raises WordmillError."""
    check = Utf8Check(name)
    lines = _Lines(check.beginning(chunks), check, limit)
    csv.field_size_limit(limit)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    columns: list[str] = []
    while True:
        lines.start()
        try:
            fields = next(reader, None)
        except csv.Error as error:
            yield BadRow(WordmillError(f"{name} line {lines.first}: not a valid record: {error}"))
            continue
        except _TooLong:
            reader = csv.reader(lines, delimiter=delimiter, strict=True)
            yield too_long(f"{name} line {lines.first}", limit)
            continue
        where = f"{name} line {lines.first}"
        if fields is None:
            break
        if not columns:
            columns = _names(fields, where)
        elif fields and len(fields) != len(columns):
            problem = f"{len(fields)} fields, where the first line names {len(columns)} columns"
            yield BadRow(WordmillError(f"{where}: {problem}"))
        elif fields:
            yield Row(dict(zip(columns, fields, strict=True)), where, lines.replaced)
    check.judge()


def _names(fields: list[str], where: str) -> list[str]:
    """Of the columns. Raises WordmillError."""
    if len(set(fields)) < len(fields):
        twice = next(name for name in fields if fields.count(name) > 1)
        raise WordmillError(f"{where}: two columns have the name {twice!r}; the first line must name the columns")
    return fields


class _TooLong(Exception):
    pass


class _Lines:
    """Lines with their ends, for `csv`, which asks for as many as a record has."""

    def __init__(self, chunks: Iterator[bytes], check: Utf8Check, limit: int) -> None:
        self._lines = between(line_ends(chunks), b"\n", limit)
        self._check = check
        self._limit = limit
        self._number = 0
        self.start()

    def start(self) -> None:
        """A record begins."""
        self.first = self._number + 1
        self.replaced = self._size = 0

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self._number += 1
        self._size += len(line or b"")
        if line is None or self._size > self._limit:
            raise _TooLong
        if b"\0" in line:
            raise self._check.binary()
        text, replaced = self._check.decode(line)
        self.replaced += replaced
        return (text.removeprefix("\ufeff") if self._number == 1 else text) + "\n"
