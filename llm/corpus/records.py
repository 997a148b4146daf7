"""What readers of files give: records, and what could not be read as one."""

import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import zstandard

from llm.errors import WordmillError

UNREADABLE = (OSError, EOFError, zlib.error, lzma.LZMAError, zstandard.ZstdError, MemoryError)


class Row(NamedTuple):
    """A record of a JSON, CSV or Parquet file."""

    values: Any
    where: str  # file and place, for messages
    replaced: int = 0  # malformed byte sequences that became U+FFFD


class BadRow(NamedTuple):
    """A record that cannot be read, though those behind it can."""

    error: WordmillError


def cannot_be_read(name: str, error: Exception) -> WordmillError:
    """For a file that a library refuses."""
    detail = str(error).splitlines()[0] if str(error).strip() else type(error).__name__
    return WordmillError(f"{name}: cannot be read: {detail}")


class DataFile(NamedTuple):
    """A file to be read, here or elsewhere."""

    name: str  # its ending says what it holds; messages show it
    open: Callable[[], BinaryIO]
    path: Path | None = None  # where it is a local file
    trouble: Callable[[str, Exception], WordmillError] = cannot_be_read  # what to say of what a library raises

    @contextmanager
    def trouble_named(self, kinds: type[Exception] | tuple[type[Exception], ...] = UNREADABLE) -> Iterator[None]:
        """Makes one line of a library's errors. Raises WordmillError."""
        try:
            yield
        except WordmillError:
            raise
        except kinds as error:
            raise self.trouble(self.name, error) from None


def local_file(path: Path) -> DataFile:
    """A file of this machine."""
    return DataFile(str(path), lambda: path.open("rb"), path)


def too_long(where: str, limit: int) -> BadRow:
    """For a document or a record above the limit."""
    return BadRow(
        WordmillError(
            f"{where}: a document of more than {limit:,} bytes; split it (corpus.split_text: blank_lines), "
            "use JSON lines, or raise corpus.max_document_bytes"
        )
    )
