"""Documents from local files: .txt, .jsonl, .json and .parquet, each also packed as .gz or .zst.

Order is fixed: `paths` in the order given, each glob's files sorted, each file once. Plain text and
JSON lines are streamed by chunk, Parquet by batches of rows (a packed Parquet file is first unpacked into the scratch
folder, since its table of contents stands at its end); the text of a .json file is held whole.

Plain text falls into documents by `split_text`: the whole `file`, each `line`, paragraphs between `blank_lines`, or
what stands between a `separator`. A binary file is refused: one with NULs before its end, or where more than one
character in ten is not UTF-8. What little is malformed becomes U+FFFD and is counted.
"""

import gzip
import json
import re
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from llm.corpus.config import CorpusConfig, endings, kind
from llm.corpus.normalise import Document, decode
from llm.errors import WordmillError
from llm.file_patterns import match, no_file
from llm.progress import say

CHUNK = 1 << 20  # bytes read at a time
PACKED_CHUNK = 1 << 14  # the same of a .zst file, which may unpack to a thousand times as much
PARQUET_ROWS = 256  # rows decoded at a time; other writers' row groups may be as large as the file
SNIFF = 1 << 16  # bytes at the start of a text file that must look like text
UNDECODABLE = 0.1  # share of malformed sequences among the characters of a text file that makes it binary
MAX_DOCUMENT = 1 << 30  # bytes of one document, or one line of JSON


class Row(NamedTuple):
    """A record of a JSON or Parquet file."""

    values: Any
    where: str  # file and place, for messages
    replaced: int = 0  # malformed byte sequences that became U+FFFD


class Unit(NamedTuple):
    """A stretch of documents after which reading can go on later: a file, a block of stories."""

    name: str  # changes when its content changes; read anew, the same name gives the same documents
    documents: Callable[[], Iterator[Document]]


def units(config: CorpusConfig, scratch: Path) -> list[Unit]:
    """A unit for each file that `config.paths` names. Raises WordmillError."""
    return [file_unit(path, source_name(path), config, scratch) for path in find(config.paths)]


def file_unit(path: Path, source: str, config: CorpusConfig, scratch: Path) -> Unit:
    """One file as a unit; `source` is what its documents give as their source. Raises WordmillError."""
    if not path.is_file():
        raise WordmillError(f"{path}: {'is a folder; name its files' if path.is_dir() else 'no such file'}")
    if kind(path.name) is None:
        raise WordmillError(f"{path}: unknown kind of file; the name must end in {endings()}")
    stat = path.stat()
    return Unit(f"{source} {stat.st_size} {stat.st_mtime_ns}", lambda: read(path, source, config, scratch))


def find(patterns: tuple[str, ...], key: str = "corpus.paths") -> list[Path]:
    """The files that paths and globs name, in order, each once. Raises WordmillError, which names `key`."""
    found: dict[Path, None] = {}
    for pattern in patterns:
        matches = match(pattern)
        if not matches.paths:
            raise WordmillError(f"{key}: {pattern}: no file matches (seen from {Path.cwd().name}/)")
        if line := matches.left_out_line(pattern):
            say(f"{key}: {line}")
        for path in matches.paths:
            if kind_of := no_file(path):
                raise WordmillError(f"{key}: {path}: is {kind_of}; name a file")
        found.update(dict.fromkeys(matches.paths))
    return list(found)


def source_name(path: Path) -> str:
    """What a document says of where it came from: no folder of this machine, so that all machines write the same."""
    return path.name if path.is_absolute() else path.as_posix()


def read(path: Path, source: str, config: CorpusConfig, scratch: Path) -> Iterator[Document]:
    """The documents of one file. Raises WordmillError naming the file and the place in it."""
    suffix, packing = kind(path.name) or ("", "")
    if suffix == ".txt":
        with _trouble_named(path):
            yield from _plain(path, packing, source, config)
        return
    for row in read_rows(path, scratch, config.text_field):
        yield Document(field_text(row.values, config.text_field, row.where), source, row.replaced)


def read_rows(path: Path, scratch: Path, field: str = "") -> Iterator[Row]:
    """The records of a .jsonl, .json or .parquet file, packed or not; of Parquet, only the column that holds `field`,
    or all if that is empty. Raises WordmillError naming the file and the place in it."""
    suffix, packing = kind(path.name) or ("", "")
    with _trouble_named(path):
        if suffix == ".parquet":
            yield from _parquet(path, packing, scratch, field)
        elif suffix == ".jsonl":
            yield from _json_lines(path, packing)
        else:
            yield from _json_array(path, packing)


@contextmanager
def _trouble_named(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, zlib.error, zstandard.ZstdError, pa.ArrowException) as error:
        detail = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WordmillError(f"{path}: cannot be read: {detail}") from None


def field_text(row: Any, field: str, where: str) -> str:
    """The text in `field` of a row (a mapping, or a bare string). A null is empty text. Raises WordmillError."""
    if isinstance(row, str):
        return row
    value = row
    for name in [field] if isinstance(row, Mapping) and field in row else field.split("."):
        if not isinstance(value, Mapping) or name not in value:
            known = ", ".join(map(str, row)) if isinstance(row, Mapping) else f"a bare {type(row).__name__}"
            raise WordmillError(f"{where}: no field {field!r} (found: {known}); set corpus.text_field")
        value = value[name]
    if value is None:
        return ""
    if not isinstance(value, str):
        raise WordmillError(f"{where}: field {field!r} holds {type(value).__name__}, not text; set corpus.text_field")
    return value


def _plain(path: Path, packing: str, source: str, config: CorpusConfig) -> Iterator[Document]:
    chunks = _checked(_chunks(path, packing), path)
    if config.split_text == "file":
        texts: Iterator[bytes] = iter([_whole(chunks, path)])
    elif config.split_text == "line":
        texts = _between(_line_ends(chunks), b"\n", path)
    elif config.split_text == "blank_lines":
        texts = _paragraphs(_between(_line_ends(chunks), b"\n", path))
    else:
        separator = config.separator.encode().replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        texts = (text.strip(b"\n") for text in _between(_line_ends(chunks), separator, path))
    for data in texts:
        if b"\0" in data.rstrip(b"\0"):
            raise _binary(path, "holds NUL bytes")
        text, replaced = decode(data)
        yield Document(text, source, replaced)


def _checked(chunks: Iterator[bytes], path: Path) -> Iterator[bytes]:
    """The chunks, once their start has been seen to be text."""
    first = next(chunks, b"")
    head = first[:SNIFF]
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise WordmillError(f"{path}: is UTF-16; convert it to UTF-8, as with `iconv -f utf-16 -t utf-8`")
    if b"\0" in head.rstrip(b"\0"):
        raise _binary(path, "holds NUL bytes")
    text, replaced = decode(head)
    if replaced > max(1, len(text) * UNDECODABLE):  # one may be a character that the end of `head` cuts
        raise _binary(path, f"{replaced / len(text):.0%} of it is not UTF-8")
    yield first
    yield from chunks


def _binary(path: Path, reason: str) -> WordmillError:
    return WordmillError(f"{path}: not a text file ({reason}); leave it out, or convert it to UTF-8")


def _whole(chunks: Iterator[bytes], path: Path) -> bytes:
    data = bytearray()
    for chunk in chunks:
        data += chunk
        _check_length(len(data), path)
    return bytes(data)


def _between(chunks: Iterator[bytes], separator: bytes, path: Path) -> Iterator[bytes]:
    """What stands between separators, the last piece included."""
    rest = bytearray()
    for chunk in chunks:
        searched = max(0, len(rest) - len(separator) + 1)
        rest += chunk
        if rest.find(separator, searched) >= 0:
            *whole, last = bytes(rest).split(separator)
            yield from whole
            rest = bytearray(last)
        _check_length(len(rest), path)
    yield bytes(rest)


def _paragraphs(lines: Iterator[bytes]) -> Iterator[bytes]:
    """Lines joined up to the next blank one."""
    block: list[bytes] = []
    for line in lines:
        if line.strip():
            block.append(line)
        elif block:
            yield b"\n".join(block)
            block = []
    if block:
        yield b"\n".join(block)


def _line_ends(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The same bytes with \\n for \\r\\n and \\r, also where a chunk ends between the two."""
    held = b""
    for chunk in chunks:
        chunk = held + chunk
        held = b"\r" if chunk.endswith(b"\r") else b""
        yield chunk[: len(chunk) - len(held)].replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    if held:
        yield b"\n"


def _json_lines(path: Path, packing: str) -> Iterator[Row]:
    for number, line in enumerate(_between(_chunks(path, packing), b"\n", path), 1):
        text, replaced = decode(line)
        text = text.lstrip("\ufeff")
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise WordmillError(f"{path} line {number}: not valid JSON: {_json_trouble(error)}") from None
        yield Row(row, f"{path} line {number}", replaced)


def _json_array(path: Path, packing: str) -> Iterator[Row]:
    """A JSON file: an array whose elements are documents, or one value. The text is held whole, its values are not."""
    text, replaced = decode(_whole(_chunks(path, packing), path))
    for number, row in enumerate(_elements(text.lstrip("\ufeff"), path), 1):
        yield Row(row, f"{path} element {number}", replaced)
        replaced = 0  # counted once for the file


def _elements(text: str, path: Path) -> Iterator[Any]:
    decoder = json.JSONDecoder()
    blank = re.compile(r"[ \t\r\n]*")

    def skip(at: int) -> int:
        return blank.match(text, at).end()  # type: ignore[union-attr]  # it matches the empty string too

    def trouble(at: int, problem: str) -> WordmillError:
        return WordmillError(f"{path} line {text.count(chr(10), 0, at) + 1}: not valid JSON: {problem}")

    def value(at: int) -> tuple[Any, int]:
        try:
            return decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            raise trouble(getattr(error, "pos", at), _json_trouble(error)) from None

    at = skip(0)
    if text[at : at + 1] == "[":
        at = skip(at + 1)
        more = text[at : at + 1] != "]"
        while more:
            element, at = value(at)
            yield element
            at = skip(at)
            more = text[at : at + 1] == ","
            if more:
                at = skip(at + 1)
        if text[at : at + 1] != "]":
            raise trouble(at, "expected a comma or the array's end")
        at += 1
    elif at < len(text):
        element, at = value(at)
        yield element
    if skip(at) < len(text):
        raise trouble(skip(at), "something follows the end")


def _json_trouble(error: Exception) -> str:
    return error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply"


def _parquet(path: Path, packing: str, scratch: Path, field: str) -> Iterator[Row]:
    with tempfile.TemporaryFile(dir=scratch) as unpacked:
        if packing:
            for chunk in _chunks(path, packing):
                unpacked.write(chunk)
            unpacked.seek(0)
        with pq.ParquetFile(unpacked if packing else path) as file:
            names = file.schema_arrow.names
            column = field if field in names else field.split(".")[0]
            if field and column not in names:
                raise WordmillError(f"{path}: no column {field!r} (found: {', '.join(names)}); set corpus.text_field")
            row = 0
            for batch in file.iter_batches(batch_size=PARQUET_ROWS, columns=[column] if field else None):
                for values in batch.to_pylist():
                    row += 1
                    yield Row(values, f"{path} row {row}")


def _chunks(path: Path, packing: str) -> Iterator[bytes]:
    """The unpacked content, a piece at a time."""
    with path.open("rb") as file:
        if packing == ".zst":
            yield from _unzstd(file)
        elif packing == ".gz":
            with gzip.open(file) as unpacked:
                while chunk := unpacked.read(CHUNK):
                    yield chunk
        else:
            while chunk := file.read(CHUNK):
                yield chunk


def _unzstd(file: BinaryIO) -> Iterator[bytes]:
    # Not `stream_reader`: it takes a truncated file for a short one.
    unpacker = zstandard.ZstdDecompressor(max_window_size=1 << 31)
    frame = unpacker.decompressobj()
    begun = False
    while data := file.read(PACKED_CHUNK):
        while data:
            if frame.eof:
                frame = unpacker.decompressobj()
            if chunk := frame.decompress(data):
                yield chunk
            begun = True
            data = frame.unused_data if frame.eof else b""
    if not begun or not frame.eof:
        raise EOFError("the compressed file ends too early")


def _check_length(length: int, path: Path) -> None:
    if length > MAX_DOCUMENT:
        raise WordmillError(
            f"{path}: a document of more than {MAX_DOCUMENT >> 20} MiB; split it "
            f"(corpus.split_text: blank_lines), or use JSON lines"
        )
