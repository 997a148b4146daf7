"""Records of JSON files, one at a time: lines, an array, or values one behind the other.

What a .json file holds shows at its beginning: `[` begins an array, whose elements are the records. Where the first
line is a whole value, the file holds JSON lines (C4, Dolma and others store them as .json.gz). Anything else is one
value, or several one behind the other. In each case one record is in memory, not the file.
"""

import json
import re
from collections.abc import Iterator
from itertools import chain
from typing import Any

from llm.corpus.normalise import decode
from llm.corpus.records import BadRow, Row, too_long
from llm.corpus.split_text import between
from llm.corpus.utf8 import Utf8Check
from llm.errors import WordmillError

BLANK = re.compile(r"[ \t\r\n\ufeff]*")


def json_lines(chunks: Iterator[bytes], name: str, limit: int) -> Iterator[Row | BadRow]:
    """The records of JSON lines; blank lines are none. Raises WordmillError."""
    check = Utf8Check(name)
    for number, line in enumerate(between(check.beginning(chunks, zeros=True), b"\n", limit), 1):
        where = f"{name} line {number}"
        if line is None:
            yield too_long(where, limit)
            continue
        text, replaced = check.decode(line)
        text = text.lstrip("\ufeff")
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:
            yield BadRow(WordmillError(f"{where}: not valid JSON: {trouble(error)}"))
            continue
        yield Row(row, where, replaced)
    check.judge()


def json_values(chunks: Iterator[bytes], name: str, limit: int) -> Iterator[Row | BadRow]:
    """The records of a JSON file. Raises WordmillError."""
    first = bytearray()
    for chunk in chunks:
        first += chunk
        if (begun := first.removeprefix(b"\xef\xbb\xbf").lstrip()) and (
            begun.startswith(b"[") or b"\n" in begun or len(begun) > limit
        ):
            break
    line = first.removeprefix(b"\xef\xbb\xbf").lstrip().partition(b"\n")[0]
    chunks = chain([bytes(first)], chunks)
    if not line.startswith(b"[") and _is_value(line):
        yield from json_lines(chunks, name, limit)
        return
    check = Utf8Check(name)
    text = _Text(check.beginning(chunks, zeros=True), check, limit)
    replaced = 0
    for number, value in enumerate(_array(text) if text.sign() == "[" else _values(text), 1):
        yield Row(value, f"{name} element {number}", text.replaced - replaced)
        replaced = text.replaced
    check.judge()


def _is_value(line: bytes | bytearray) -> bool:
    try:
        json.loads(decode(bytes(line))[0])
    except (ValueError, RecursionError):
        return False
    return True


def trouble(error: Exception) -> str:
    """What is wrong, in a few words."""
    if isinstance(error, json.JSONDecodeError):
        return error.msg
    return "nested too deeply" if isinstance(error, RecursionError) else "a number of too many digits"


def _array(text: "_Text") -> Iterator[Any]:
    text.take()
    more = text.sign() != "]"
    while more:
        yield text.value()
        more = text.sign() == ","
        if more:
            text.take()
    if text.sign() != "]":
        raise text.error("expected a comma or the array's end")
    text.take()
    if text.sign():
        raise text.error("something follows the end")


def _values(text: "_Text") -> Iterator[Any]:
    while text.sign():
        yield text.value()


class _Text:
    """Text that comes in pieces, read value by value. No more is held than one value and a piece."""

    def __init__(self, chunks: Iterator[bytes], check: Utf8Check, limit: int) -> None:
        self.replaced = 0
        self._chunks = chunks
        self._check = check
        self._limit = limit
        self._decoder = json.JSONDecoder()
        self._text = ""
        self._at = 0
        self._lines = 0  # before the text that is held
        self._cut = b""  # the first bytes of a character whose others come in the next chunk
        self._over = False

    def sign(self) -> str:
        """The next character that is not blank; empty at the end."""
        while True:
            self._at = BLANK.match(self._text, self._at).end()  # type: ignore[union-attr]  # it matches "" too
            if self._at < len(self._text) or not self._more():
                return self._text[self._at : self._at + 1]

    def take(self) -> None:
        """Go on behind that character."""
        self._at += 1

    def value(self) -> Any:
        """The value that begins at the next sign. Raises WordmillError."""
        self.sign()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
                if end < len(self._text) or not self._grow():  # a number may go on in the next piece
                    self._check_length(end - self._at)
                    self._at = end
                    return value
            except (ValueError, RecursionError) as error:
                if not self._may_be_unfinished(error) or not self._grow():
                    self._at = max(self._at, getattr(error, "pos", self._at))
                    raise self.error(trouble(error)) from None

    def _may_be_unfinished(self, error: Exception) -> bool:
        """Whether the value could be right if more of the file were held."""
        if not isinstance(error, json.JSONDecodeError):
            return False
        return error.msg.startswith("Unterminated") or error.pos >= len(self._text) - len("-Infinity")

    def _grow(self) -> bool:
        """Hold twice as much, so that a long value is not tried again for each piece. False at the end of the file."""
        held = len(self._text) - self._at
        self._check_length(held)
        grown = self._more()
        while len(self._text) - self._at < 2 * held and self._more():
            pass
        return grown

    def _check_length(self, length: int) -> None:
        if length > self._limit:
            raise too_long(f"{self._check.name} line {self._lines + 1}", self._limit).error

    def error(self, problem: str) -> WordmillError:
        line = self._lines + self._text.count("\n", 0, self._at) + 1
        return WordmillError(f"{self._check.name} line {line}: not valid JSON: {problem}")

    def _more(self) -> bool:
        """Hold another piece, and let go of what has been read."""
        if self._over:
            return False
        chunk = next(self._chunks, b"")
        self._over = not chunk
        data = self._cut + chunk
        self._cut = b"" if self._over else _unfinished(data)
        text, replaced = self._check.decode(data[: len(data) - len(self._cut)])
        self.replaced += replaced
        self._lines += self._text.count("\n", 0, self._at)
        self._text = self._text[self._at :] + text
        self._at = 0
        return bool(text) or not self._over


def _unfinished(data: bytes) -> bytes:
    """The beginning of a longer UTF-8 sequence at the end of `data`."""
    for back in range(1, min(4, len(data)) + 1):
        if data[-back] >= 0xC0:  # a sequence begins here
            return data[-back:]
        if data[-back] < 0x80:
            break
    return b""
