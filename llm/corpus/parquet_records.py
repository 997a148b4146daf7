"""Records of Parquet files, a few rows at a time, as few as memory allows.

What a file says of its own sizes is the size before decoding, and two encodings make many long values out of one short
text: a dictionary, and prefixes shared with the value before (DELTA_BYTE_ARRAY). So before a row group is read its
dictionaries are looked at, and rows are decoded so few at a time that they stay within `BUDGET` and one value more.
Row groups that would unpack to a thousand times the file's size are refused.
"""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from llm.corpus.normalise import decode
from llm.corpus.records import BadRow, DataFile, Row, too_long
from llm.corpus.utf8 import Utf8Check
from llm.errors import WordmillError

ROWS = 256  # decoded at a time; other writers' row groups may be as large as the file
BUDGET = 1 << 27  # bytes that they may take; buffers that grow while they are filled take three times as much
RATIO = 1_000  # that a column may unpack to, above the limit of a document
PACKED_RATIO = 100  # the same of a packed Parquet file, above
PACKED_SIZE = 1 << 30  # bytes
SPACE_CHECK = 1 << 26  # bytes between two looks at the disk
BUFFER = 1 << 20  # bytes read at a time


# Libraries that read Parquet have no common type of error: `trouble_named(Exception)`.


def parquet_rows(file: DataFile, field: str, limit: int) -> Iterator[Row | BadRow]:
    """The records: all columns, or with `field` the one that holds it. Raises WordmillError."""
    with file.open() as opened, file.trouble_named(Exception):
        yield from _rows(opened if file.path is None else file.path, file.name, field, limit)


def packed_parquet_rows(
    chunks: Iterator[bytes], packed_size: int, scratch: Path, file: DataFile, field: str, limit: int
) -> Iterator[Row | BadRow]:
    """The same of a packed file, which is first unpacked into `scratch`: its table of contents stands at its end."""
    with tempfile.TemporaryFile(dir=scratch) as content, file.trouble_named(Exception):
        size = looked = 0
        for chunk in chunks:
            size += len(chunk)
            if size > max(PACKED_SIZE, PACKED_RATIO * packed_size):
                raise WordmillError(f"{file.name}: unpacks to more than {size:,} bytes; unpack it yourself if it may")
            if size - looked >= SPACE_CHECK and shutil.disk_usage(scratch).free < 2 * SPACE_CHECK:
                raise WordmillError(f"{file.name}: no room to unpack it in {scratch}; make room")
            content.write(chunk)
        content.seek(0)
        yield from _rows(content, file.name, field, limit)


def _rows(source: BinaryIO | Path, name: str, field: str, limit: int) -> Iterator[Row | BadRow]:
    check = Utf8Check(name)
    number = 0
    with pq.ParquetFile(source, buffer_size=BUFFER) as file:
        names = file.schema_arrow.names
        column = field if field in names else field.split(".")[0]
        if field and column not in names:
            raise WordmillError(f"{name}: no column {field!r} (found: {', '.join(names)}); set corpus.text_field")
        wanted = [column] if field else None
        for group in range(file.num_row_groups):
            count = _rows_at_once(file, source, group, wanted, name, limit)
            for batch in file.iter_batches(batch_size=count, row_groups=[group], columns=wanted):
                for values, replaced in _values(batch):
                    number += 1
                    where = f"{name} row {number}"
                    size = text_size(values, limit)
                    for text in _texts(values):
                        check.add(text, 0)
                    check.add("", replaced)
                    yield too_long(where, limit) if size > limit else Row(values, where, replaced)
                if number <= ROWS:
                    check.judge()
    check.judge()


def _rows_at_once(
    file: pq.ParquetFile, source: BinaryIO | Path, group: int, wanted: list[str] | None, name: str, limit: int
) -> int:
    """How many rows of a group may be decoded together. Raises WordmillError for one that no memory holds."""
    about = file.metadata.row_group(group)
    if about.total_byte_size > limit and about.total_byte_size > RATIO * _size(source):
        raise WordmillError(f"{name}: unpacks to {about.total_byte_size:,} bytes, over {RATIO:,} times its size")
    # A damaged description of a column is an error here, but would end the process in `about.column`.
    next(file.iter_batches(batch_size=1, row_groups=[group], columns=wanted), None)
    longest = 0.0
    suspects = []
    for index in range(len(file.schema)):
        described = file.schema.column(index)
        needed = not wanted or described.path.split(".")[0] in wanted
        if not needed or described.physical_type != "BYTE_ARRAY":
            continue
        column = about.column(index)
        size = column.total_uncompressed_size
        values_in_row = max(1.0, column.num_values / max(1, about.num_rows))
        if "DELTA_BYTE_ARRAY" in column.encodings:
            longest += size * values_in_row
        elif size * values_in_row * ROWS > BUDGET and any("DICTIONARY" in kind for kind in column.encodings):
            suspects.append((column.path_in_schema, values_in_row))
    if suspects:
        with pq.ParquetFile(source, read_dictionary=[path for path, _ in suspects]) as coded:
            for path, values_in_row in suspects:
                for batch in coded.iter_batches(batch_size=1, row_groups=[group], columns=[path]):
                    longest += _longest(batch.column(0)) * values_in_row
                    break
    return max(1, min(ROWS, int(BUDGET / max(1.0, longest))))


def _size(source: BinaryIO | Path) -> int:
    return source.stat().st_size if isinstance(source, Path) else source.seek(0, 2)


def _longest(array: pa.Array) -> int:
    """Bytes of the longest value in the dictionaries of an array."""
    if isinstance(array, pa.DictionaryArray):
        lengths = pc.binary_length(array.dictionary)
        return pc.max(lengths).as_py() or 0
    if pa.types.is_struct(array.type):
        return max((_longest(array.field(index)) for index in range(array.type.num_fields)), default=0)
    if pa.types.is_map(array.type):
        return max(_longest(array.keys), _longest(array.items))
    if pa.types.is_list(array.type) or pa.types.is_large_list(array.type):
        return _longest(array.values)
    return 0


def _values(batch: pa.RecordBatch) -> Iterator[tuple[dict[str, Any], int]]:
    """The rows of a batch, and how many malformed byte sequences became U+FFFD in each."""
    try:
        rows = batch.to_pylist()
    except UnicodeDecodeError:
        # the same columns as bytes, and Parquet's text decoded here
        fields = [pa.field(field.name, _as_bytes(field.type)) for field in batch.schema]
        rows = batch.cast(pa.schema(fields)).to_pylist()
        yield from map(_decoded, rows)
        return
    for row in rows:
        yield row, 0


def _as_bytes(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_string(kind):
        return pa.binary()
    if pa.types.is_large_string(kind):
        return pa.large_binary()
    if pa.types.is_list(kind):
        return pa.list_(_as_bytes(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(field.name, _as_bytes(field.type)) for field in kind])
    return kind


def _decoded(value: Any) -> tuple[Any, int]:
    if isinstance(value, bytes):
        return decode(value)
    if isinstance(value, dict):
        pairs = {key: _decoded(item) for key, item in value.items()}
        return {key: item for key, (item, _) in pairs.items()}, sum(count for _, count in pairs.values())
    if isinstance(value, list):
        items = [_decoded(item) for item in value]
        return [item for item, _ in items], sum(count for _, count in items)
    return value, 0


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)


def text_size(value: Any, limit: int) -> int:
    """Bytes of a record's texts as UTF-8; characters where they are few enough anyway."""
    characters = sum(map(len, _texts(value)))
    if 4 * characters <= limit:
        return characters
    return sum(len(text.encode("utf-8", "surrogatepass")) for text in _texts(value))
