"""The corpus on disk: a folder per split with Parquet parts, and a manifest beside them.

    corpus/manifest.json                where it came from, counts, and the SHA-256 of every part
    corpus/train/part-00000.parquet     columns id, text, source (all strings)
    corpus/val/…  corpus/test/…

A part holds about `PART_BYTES` of text at most, so that later work can go part by part, in row groups of a few
megabytes, so that reading needs little memory. The bytes of a part are a function of its rows (and of pyarrow's
version): no times, no host, no statistics that depend on the writer.
"""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field

from llm.errors import WordmillError
from llm.strict_json import check_json, read_json

PART_BYTES = 64_000_000  # of text in a part; a single document may be longer
ROW_GROUP_BYTES = 4_000_000  # of text in a row group
SCHEMA = pa.schema([("id", pa.string()), ("text", pa.string()), ("source", pa.string())])


class Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    name: str
    sha256: str


class Split(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    documents: Annotated[int, Field(ge=0, lt=1 << 62)]
    bytes: Annotated[int, Field(ge=0, lt=1 << 62)]
    parts: list[Part]


class Splits(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    train: Split
    val: Split
    test: Split


class Manifest(BaseModel):
    """What every manifest.json of a corpus has. Further keys say where the corpus is from."""

    model_config = ConfigDict(strict=True, extra="ignore")

    digest: str
    splits: Splits


class Row(NamedTuple):
    """One document of a part."""

    id: str  # hex digits of the text's digest
    text: bytes  # UTF-8
    source: str


def documents(folder: Path, *, verify: bool = False) -> Iterator[str]:
    """The texts of one split's folder in their fixed order, a row group at a time.

    With `verify`, the parts are first compared with the manifest. Raises WordmillError, before the first text, when
    the folder is missing, empty, or not what the manifest says.
    """
    paths = parts(folder)
    if verify:
        check(folder)
    return (text for path in paths for text in read_column(path, "text"))


def utf8_batches(folder: Path) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The same texts a row group at a time, as they lie on disk: UTF-8 end to end, and where each text ends.

    The bytes are uint8 and read-only, the ends int64, the first of them 0. Raises WordmillError.
    """
    return (batch for path in parts(folder) for batch in read_utf8(path))


def sample(folder: Path, count: int) -> list[str]:
    """`count` documents of one split, evenly spaced over it; all of them for 0 or where there are no more."""
    total = manifest(folder.parent)["splits"][folder.name]["documents"]
    wanted = range(total) if not 0 < count < total else (index * total // count for index in range(count))
    places = set(wanted)
    return [text for index, text in enumerate(documents(folder)) if index in places]


def parts(folder: Path) -> list[Path]:
    """The Parquet files of one split in order. Raises WordmillError."""
    if not folder.is_dir():
        raise WordmillError(f"{folder}: no such folder; the stage `download` makes the corpus")
    paths = sorted(folder.glob("part-*.parquet"))
    if not paths:
        raise WordmillError(f"{folder}: holds no part-*.parquet; run the stage `download` again")
    return paths


def manifest(corpus: Path) -> dict[str, Any]:
    """The manifest of a corpus folder. Raises WordmillError."""
    again = "; run the stage `download` again"
    path = corpus / "manifest.json"
    try:
        content: dict[str, Any] = read_json(path, again, largest=1 << 30)
    except FileNotFoundError:
        raise WordmillError(f"{path}: not found; the stage `download` makes the corpus") from None
    check_json(content, Manifest, str(path), again)
    return content


def check(folder: Path) -> None:
    """Compare one split's files with the manifest, by SHA-256. Raises WordmillError."""
    listed = {entry["name"]: entry["sha256"] for entry in manifest(folder.parent)["splits"][folder.name]["parts"]}
    found = {path.name: sha256(path) for path in parts(folder) if path.is_file()}
    for name in sorted(listed.keys() | found.keys()):
        if listed.get(name) != found.get(name):
            trouble = "missing" if name not in found else "not in the manifest" if name not in listed else "changed"
            raise WordmillError(f"{folder / name}: {trouble}; run the stage `download` again")


def read_column(path: Path, column: str) -> Iterator[str]:
    """One column of a part, a row group at a time. Raises WordmillError."""
    for values in _read(path, column):
        yield from values.to_pylist()


def _read(path: Path, column: str) -> Iterator[pa.ChunkedArray]:
    try:
        with pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                values = file.read_row_group(group, columns=[column])[column]
                if values.type != pa.string() or values.null_count:
                    raise pa.ArrowInvalid(f"the column {column!r} is not all text")
                values.validate(full=True)  # UTF-8 too, which pyarrow takes from the file as it comes
                yield values
    except (pa.ArrowException, OSError, KeyError, UnicodeDecodeError) as error:
        raise WordmillError(
            f"{path}: cannot be read as a part of the corpus ({_line(error)}); run the stage `download` again"
        ) from None


def read_utf8(path: Path) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The texts of a part as `utf8_batches` gives them. Raises WordmillError."""
    for column in _read(path, "text"):
        for chunk in column.chunks:
            _, offsets, data = chunk.buffers()
            ends = np.frombuffer(offsets, np.int32)[chunk.offset : chunk.offset + len(chunk) + 1].astype(np.int64)
            text = np.frombuffer(data, np.uint8) if data else np.zeros(0, np.uint8)
            yield text[ends[0] : ends[-1]], ends - ends[0]


def document_sources(path: Path) -> tuple[list[str], np.ndarray]:
    """The sources in a part, and for each document the number of its own, int64. Raises WordmillError."""
    numbers: dict[str, int] = {}
    of_document = [numbers.setdefault(name, len(numbers)) for name in read_column(path, "source")]
    return list(numbers), np.array(of_document, np.int64)


def write_part(path: Path, rows: Sequence[Row]) -> str:
    """Write `rows` as one part, whole or not at all; its SHA-256."""
    half = path.with_name(path.name + ".half")
    # Statistics of the text column would put whole documents into the footer.
    with pq.ParquetWriter(
        half, SCHEMA, compression="zstd", use_dictionary=["source"], write_statistics=["source"]
    ) as file:
        for group in _groups(rows):
            columns = [
                pa.array([row.id for row in group], pa.string()),
                pa.array([row.text for row in group], pa.binary()).cast(pa.string()),
                pa.array([row.source for row in group], pa.string()),
            ]
            file.write_table(pa.Table.from_arrays(columns, schema=SCHEMA))
    half.replace(path)
    return sha256(path)


def read_part(path: Path) -> Iterator[Row]:
    """The rows of a part."""
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group)
            texts = table["text"].cast(pa.binary()).to_pylist()
            yield from map(Row, table["id"].to_pylist(), texts, table["source"].to_pylist())


def sha256(path: Path) -> str:
    """Of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _groups(rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
    start = size = 0
    for at, row in enumerate(rows):
        if size and size + len(row.text) > ROW_GROUP_BYTES:
            yield rows[start:at]
            start, size = at, 0
        size += len(row.text)
    if rows:
        yield rows[start:]


def _line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
