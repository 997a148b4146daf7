"""Documents from local files: text, JSON, tables and Parquet, each also packed as .gz, .zst, .bz2 or .xz.

Order is fixed: `paths` in the order given, each glob's files and each folder's sorted, each file once. All kinds are
streamed: text, JSON lines and tables by chunk, JSON arrays by element, Parquet by a few rows (a packed Parquet file is
first unpacked into the scratch folder, since its table of contents stands at its end). No document and no record may be
longer than `corpus.max_document_bytes`, whatever it comes in.

Plain text falls into documents by `split_text`: the whole `file`, each `line`, paragraphs between `blank_lines`, or
what stands between a `separator`. A file that is not UTF-8 text is refused (`utf8.py`). What little is
malformed becomes U+FFFD and is counted.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from llm.corpus.config import LINES, PLAIN, RECORDS, TABLES, CorpusConfig, endings, kind
from llm.corpus.json_records import json_lines, json_values
from llm.corpus.normalise import Document
from llm.corpus.parquet_records import packed_parquet_rows, parquet_rows
from llm.corpus.records import BadRow, DataFile, Row, local_file, too_long
from llm.corpus.split_text import Piece, between, line_ends, paragraphs, whole
from llm.corpus.tables import DELIMITERS, table_rows
from llm.corpus.unpack import unpacked
from llm.corpus.utf8 import Utf8Check
from llm.errors import WordmillError
from llm.file_patterns import match, no_file
from llm.progress import say

CHUNK = 1 << 20  # bytes read at a time
PACKED_CHUNK = 1 << 11  # the same of a .zst file, which may unpack to 32,768 times as much
MAX_DOCUMENT = 1 << 30  # bytes of one document or record that no setting exceeds


class Unit(NamedTuple):
    """A stretch of documents after which reading can go on later: a file, a block of stories."""

    name: str  # changes when its content changes; read anew, the same name gives the same documents
    documents: Callable[[], Iterator[Document | BadRow]]


def units(config: CorpusConfig, scratch: Path) -> list[Unit]:
    """A unit for each file that `config.paths` names. Raises WordmillError."""
    return [file_unit(path, source_name(path), config, scratch) for path in find(config.paths, folders=True)]


def file_unit(path: Path, source: str, config: CorpusConfig, scratch: Path) -> Unit:
    """One file as a unit; `source` is what its documents give as their source. Raises WordmillError."""
    if not path.is_file():
        raise WordmillError(f"{path}: {'is no regular file' if path.exists() else 'no such file'}")
    if kind(path.name) is None:
        raise WordmillError(f"{path}: unknown kind of file; the name must end in {endings()}")
    stat = path.stat()
    return Unit(f"{source} {stat.st_size} {stat.st_mtime_ns}", lambda: read(path, source, config, scratch))


def find(patterns: tuple[str, ...], key: str = "corpus.paths", folders: bool = False) -> list[Path]:
    """The files that paths and globs name, in order, each once; with `folders`, those in a folder that is named too.

    Raises WordmillError, which names `key`.
    """
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
            found.update(dict.fromkeys(_in_folder(path, key) if folders and path.is_dir() else [path]))
    return list(found)


def _in_folder(folder: Path, key: str) -> list[Path]:
    """The files of known kinds in a folder and the folders in it, none that is hidden. Raises WordmillError."""
    files = [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    known = [path for path in files if kind(path.name) is not None]
    if not known:
        raise WordmillError(f"{key}: {folder}: is a folder without a file whose name ends in {endings()}")
    if len(known) < len(files):
        other = next(path for path in files if path not in set(known))
        say(f"{folder}: {len(files) - len(known)} files of other kinds are left out, such as {other.name}")
    return known


def source_name(path: Path) -> str:
    """What a document says of where it came from: no folder of this machine, so that all machines write the same.

    Bytes of a name that are not UTF-8 become escapes such as \\xff.
    """
    name = path.name if path.is_absolute() else path.as_posix()
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def read(path: Path, source: str, config: CorpusConfig, scratch: Path) -> Iterator[Document | BadRow]:
    """The documents of one file. Raises WordmillError naming the file and the place in it.

    Rows that cannot be read are among them if `config.bad_rows` is skip; otherwise the first one is raised.
    """
    return read_file(local_file(path), source, config, scratch)


def read_file(file: DataFile, source: str, config: CorpusConfig, scratch: Path) -> Iterator[Document | BadRow]:
    """`read` for a file anywhere."""
    limit = min(config.max_document_bytes, MAX_DOCUMENT)
    suffix, _ = kind(file.name) or ("", "")
    if suffix in PLAIN:
        rows: Iterator[Row | BadRow] = _plain(file, config, limit)
    else:
        rows = records(file, scratch, config.text_field, limit)
    return documents_of(rows, source, config)


def documents_of(rows: Iterator[Row | BadRow], source: str, config: CorpusConfig) -> Iterator[Document | BadRow]:
    """Rows as documents. Raises WordmillError for the first bad row, unless `config.bad_rows` is skip."""
    for row in rows:
        document = row if isinstance(row, BadRow) else _document(row, source, config.text_field)
        if isinstance(document, BadRow) and config.bad_rows == "error":
            raise document.error
        yield document


def _document(row: Row, source: str, field: str) -> Document | BadRow:
    try:
        return Document(field_text(row.values, field, row.where), source, row.replaced)
    except WordmillError as error:
        return BadRow(error)


def read_rows(path: Path, scratch: Path, field: str = "") -> Iterator[Row]:
    """The records of a file of records, packed or not; of Parquet, only the column that holds `field`, or all if that
    is empty. Raises WordmillError naming the file and the place in it."""
    return good_rows(records(local_file(path), scratch, field, min(CorpusConfig.max_document_bytes, MAX_DOCUMENT)))


def good_rows(rows: Iterator[Row | BadRow]) -> Iterator[Row]:
    """The rows up to the first bad one. Raises its WordmillError."""
    for row in rows:
        if isinstance(row, BadRow):
            raise row.error
        yield row


def records(file: DataFile, scratch: Path, field: str, limit: int) -> Iterator[Row | BadRow]:
    """The records of a file by its name's ending. Raises WordmillError."""
    suffix, packing = kind(file.name) or ("", "")
    if suffix not in RECORDS:
        raise WordmillError(f"{file.name}: holds no records; the name must end in {endings(RECORDS)}")
    with file.trouble_named():
        if suffix == ".parquet" and not packing:
            yield from parquet_rows(file, field, limit)
            return
        with file.open() as opened:
            chunks = unpacked(opened, packing, CHUNK, PACKED_CHUNK)
            if suffix == ".parquet":
                size = opened.seek(0, 2)
                opened.seek(0)
                yield from packed_parquet_rows(chunks, size, scratch, file, field, limit)
            elif suffix in LINES:
                yield from json_lines(chunks, file.name, limit)
            elif suffix in TABLES:
                yield from table_rows(chunks, file.name, DELIMITERS[suffix], limit)
            else:
                yield from json_values(chunks, file.name, limit)


def field_text(row: Any, field: str, where: str) -> str:
    """The text in `field` of a row (a mapping, or a bare string). A null on the way is empty text.

    Raises WordmillError.
    """
    if isinstance(row, str):
        return row
    value = row
    for name in [field] if isinstance(row, Mapping) and field in row else field.split("."):
        if value is None and isinstance(row, Mapping):
            return ""
        if not isinstance(value, Mapping) or name not in value:
            known = ", ".join(map(str, row)) if isinstance(row, Mapping) else f"a bare {type(row).__name__}"
            raise WordmillError(f"{where}: no field {field!r} (found: {known}); set corpus.text_field")
        value = value[name]
    if value is None:
        return ""
    if not isinstance(value, str):
        raise WordmillError(f"{where}: field {field!r} holds {type(value).__name__}, not text; set corpus.text_field")
    return value


def _plain(file: DataFile, config: CorpusConfig, limit: int) -> Iterator[Row | BadRow]:
    """The documents of a text file, as rows."""
    _, packing = kind(file.name) or ("", "")
    check = Utf8Check(file.name)
    with file.trouble_named(), file.open() as opened:
        chunks = check.beginning(unpacked(opened, packing, CHUNK, PACKED_CHUNK))
        for number, data in enumerate(_pieces(chunks, config, limit), 1):
            where = file.name if config.split_text == "file" else f"{file.name} document {number}"
            if data is None:
                yield too_long(where, limit)
                continue
            if b"\0" in data.rstrip(b"\0"):
                raise check.binary()
            text, replaced = check.decode(data)
            yield Row(text, where, replaced)
        check.judge()


def text_lines(file: DataFile, limit: int) -> Iterator[Row | BadRow]:
    """The lines of a text file as records with the field `text`, as data sets of the hub have them."""
    _, packing = kind(file.name) or ("", "")
    check = Utf8Check(file.name)
    with file.trouble_named(), file.open() as opened:
        chunks = line_ends(check.beginning(unpacked(opened, packing, CHUNK, PACKED_CHUNK)))
        for number, data in enumerate(between(chunks, b"\n", limit), 1):
            where = f"{file.name} line {number}"
            if data is None:
                yield too_long(where, limit)
            elif data:
                text, replaced = check.decode(data)
                yield Row({"text": text}, where, replaced)
        check.judge()


def _pieces(chunks: Iterator[bytes], config: CorpusConfig, limit: int) -> Iterator[Piece]:
    if config.split_text == "file":
        return whole(chunks, limit)
    lines = line_ends(chunks)
    if config.split_text == "line":
        return between(lines, b"\n", limit)
    if config.split_text == "blank_lines":
        return paragraphs(between(lines, b"\n", limit), limit)
    separator = config.separator.encode().replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    return (text and text.strip(b"\n") for text in between(lines, separator, limit))
