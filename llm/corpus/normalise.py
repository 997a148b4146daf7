"""One form for every text, and the side of the split it belongs to: pure functions, the same everywhere.

Normal form: Unicode NFC, line ends as \\n, no byte order mark at the start, no NULs at the end, encodable as UTF-8
(a lone surrogate, which JSON can smuggle in, becomes U+FFFD and is counted). Nothing else is touched: no spaces, no
quotes, no case. `normalise` applied twice is `normalise` applied once.

A document's digest is the first 16 bytes of BLAKE2b of its normal form. It serves three ends: exact duplicates have
equal digests; the split is read off it, so that equal text always lands on the same side, in any order and in any
company; and its hex form is the document's id.
"""

import hashlib
import unicodedata
from collections.abc import Iterator
from typing import NamedTuple

SPLITS = ("train", "val", "test")
REPLACEMENT = "\ufffd"
CUT_REACH = 10_000  # characters around a wished cut where a line end is looked for


class Document(NamedTuple):
    """A text as its source gave it."""

    text: str
    source: str  # where it came from, for the reader of the Parquet file
    replaced: int = 0  # malformed byte sequences that already became U+FFFD in decoding


class Normal(NamedTuple):
    """A text in normal form."""

    text: bytes  # UTF-8
    characters: int
    replaced: int  # lone surrogates that became U+FFFD


def decode(data: bytes) -> tuple[str, int]:
    """UTF-8 to text, malformed sequences as U+FFFD, and how many of those there were."""
    try:
        return data.decode("utf-8"), 0
    except UnicodeDecodeError:
        text = data.decode("utf-8", "replace")
        # A well-formed U+FFFD in the data is not a replacement; EF never continues a sequence, so this count is exact.
        return text, text.count(REPLACEMENT) - data.count(REPLACEMENT.encode())


def normalise(text: str) -> Normal:
    """The normal form described above."""
    replaced = 0
    try:
        data = text.encode("utf-8")
        if text.isascii() and "\r" not in text and not text.endswith("\0"):  # as most English is
            return Normal(data, len(text), 0)
    except UnicodeEncodeError:
        before = text.count(REPLACEMENT)
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        replaced = text.count(REPLACEMENT) - before
    text = text.lstrip("\ufeff").rstrip("\0")
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    text = unicodedata.normalize("NFC", text)
    return Normal(text.encode("utf-8"), len(text), replaced)


def digest(text: bytes) -> bytes:
    """16 bytes that stand for a text in normal form."""
    return hashlib.blake2b(text, digest_size=16).digest()


def split_of(digest: bytes, val_share: float, test_share: float) -> str:
    """The side of the split: the digest as a number in [0, 1), its low end the test split, then val, then train."""
    number = int.from_bytes(digest[:8], "big") / 2**64
    if number < test_share:
        return "test"
    return "val" if number < test_share + val_share else "train"


def ranges(text: str, val_share: float, test_share: float) -> dict[str, str]:
    """One long text as three contiguous ranges: train first, then val, then test; joined, they are the text.

    A range is empty only where the text is too short to be cut.
    """
    test = _cut(text, 0, round(len(text) * (1 - test_share)))
    val = _cut(text[:test], 0, round(len(text) * (1 - test_share - val_share)))
    return {"train": text[:val], "val": text[val:test], "test": text[test:]}


def pieces(text: str, size: int) -> Iterator[str]:
    """`text` in pieces of about `size` characters, cut as in `ranges`."""
    start = 0
    while len(text) - start > size:
        end = _cut(text, start, start + size)
        yield text[start:end]
        start = end
    yield text[start:]


def _cut(text: str, start: int, near: int) -> int:
    """Where to cut text[start:]: at the line end nearest to `near`, else at a space, so that no word is torn.

    Only the text around is searched, so a cut never strays far in a text that has neither.
    """
    near = min(near, len(text) - 1)
    for mark in ("\n", " "):
        before = text.rfind(mark, max(start, near - CUT_REACH), near) + 1
        after = text.find(mark, max(start, near - 1), min(near + CUT_REACH, len(text) - 1)) + 1
        found = [place for place in (after, before) if place > start]
        if found:
            return min(found, key=lambda place: abs(place - near))
    return near
