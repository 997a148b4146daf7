"""Readers of foreign files: one limit on every way in, every encoding seen, bad rows counted, errors of one line."""

import bz2
import contextlib
import gzip
import json
import lzma
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from llm.corpus import files
from llm.corpus.build import build
from llm.corpus.config import CorpusConfig
from llm.corpus.files import read_rows, units
from llm.corpus.hub import open_dataset
from llm.corpus.json_records import json_values
from llm.corpus.records import BadRow
from llm.errors import WordmillError, printable

ROOT = Path(__file__).parents[3]
PACK: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": lambda data: gzip.compress(data, 9, mtime=0),
    ".zst": lambda data: zstandard.compress(data, 9),
    ".bz2": bz2.compress,
    ".xz": lambda data: lzma.compress(data, preset=6),
}
TEXTS = ["One.\nTwo.", "Zwölf, 'Boxkämpfer'", "你好 " * 50, 'say "end"']


def config(*paths: Path, **given: Any) -> CorpusConfig:
    return CorpusConfig(**{"source": "files", "paths": tuple(map(str, paths)), "documents": 0, **given})


def read(*paths: Path, **given: Any) -> list[str]:
    found = units(config(*paths, **given), paths[0].parent)
    return [row.text for unit in found for row in unit.documents() if not isinstance(row, BadRow)]


def refused(*paths: Path, **given: Any) -> str:
    with pytest.raises(WordmillError) as caught:
        read(*paths, **given)
    assert str(caught.value).isprintable()
    assert printable(paths[0].name) in str(caught.value)
    return str(caught.value)


# Kinds of files


@pytest.mark.parametrize("packing", PACK)
@pytest.mark.parametrize("kind", [".csv", ".tsv", ".ndjson", ".md", ".json"])
def test_every_kind_gives_the_same_documents(
    kind: str, packing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind in (".csv", ".tsv"):
        quoted = ['"' + text.replace('"', '""') + '"' for text in TEXTS]
        comma = "," if kind == ".csv" else "\t"
        data = "\ufeff" + "\r\n".join(
            f"{n}{comma}{text}" for n, text in zip(["n", *"1234"], ["text", *quoted], strict=True)
        )
    elif kind == ".md":
        data = "<|endoftext|>".join(TEXTS)
    else:  # a .json file of JSON lines, as C4 and Dolma are stored
        data = "\n".join(json.dumps({"text": text}) for text in TEXTS)
    path = tmp_path / f"a{kind}{packing}"
    path.write_bytes(PACK[packing](data.encode()) + (PACK[packing](b"\n") if packing and kind != ".md" else b""))
    for size in (1 << 20, 3):
        monkeypatch.setattr(files, "CHUNK", size)
        assert read(path, split_text="separator") == TEXTS


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1 << 20])
@pytest.mark.parametrize(
    ("text", "values"),
    [
        ('{"text": "a"}\n{"text": "b"}\n', [{"text": "a"}, {"text": "b"}]),
        ('\ufeff\n{"text": "é你"}\n\n"b"', [{"text": "é你"}, "b"]),
        ('{\n "text": "a"\n}\n{\n "text": 12\n}', [{"text": "a"}, {"text": 12}]),
        (' [1, [2], "]", {"a": "["} ]\n', [1, [2], "]", {"a": "["}]),
        ("[]", []),
        ("", []),
        ("12", [12]),
        ("-Infinity", [float("-inf")]),
        ('["' + "x" * 5000 + '", 123456789]', ["x" * 5000, 123456789]),
    ],
)
def test_json_in_pieces_is_json(text: str, values: list[Any], size: int) -> None:
    data = text.encode()
    pieces = iter([data[at : at + size] for at in range(0, len(data), size)])
    rows = json_values(pieces, "a.json", 1 << 20)
    assert [row.values for row in rows if not isinstance(row, BadRow)] == values


def test_a_folder_stands_for_its_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("b.txt", "a.md", "sub/c.jsonl.gz", "photo.png", ".hidden.txt", ".git/x.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        data = json.dumps({"text": name}).encode()
        (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else name.encode())
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "dangling.txt").symlink_to("nowhere")
    assert read(tmp_path) == ["a.md", "b.txt", "sub/c.jsonl.gz"]
    assert "1 files of other kinds are left out, such as photo.png" in capsys.readouterr().err


def test_an_unknown_kind_says_what_is_taken(tmp_path: Path) -> None:
    (tmp_path / "a.docx").write_bytes(b"x")
    line = refused(tmp_path / "a.docx")
    assert all(ending in line for ending in (".txt", ".csv", ".tsv", ".md", ".ndjson", ".parquet", ".bz2", ".xz"))


# Limits


def _row(text: str) -> bytes:
    return json.dumps({"text": text}).encode()


WAYS: dict[str, Callable[[bytes], bytes]] = {
    ".txt": bytes,
    ".md": bytes,
    ".jsonl": lambda text: _row(text.decode()) + b"\n",
    ".ndjson": lambda text: _row(text.decode()) + b"\n",
    ".json": lambda text: b"[" + _row(text.decode()) + b"]",
    ".csv": lambda text: b'n,text\n1,"' + text + b'"\n',
    ".tsv": lambda text: b'n\ttext\n1\t"' + text + b'"\n',
}


@pytest.mark.parametrize("split_text", ["file", "line", "blank_lines", "separator"])
@pytest.mark.parametrize("packing", PACK)
@pytest.mark.parametrize("kind", WAYS)
def test_the_limit_holds_on_every_way_in(kind: str, packing: str, split_text: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{kind}{packing}"
    path.write_bytes(PACK[packing](WAYS[kind](b"ab cd " * 30)))
    given = {"split_text": split_text, "max_document_bytes": 250}
    assert len(read(path, **given)) >= 1
    path.write_bytes(PACK[packing](WAYS[kind](b"ab cd " * 50)))
    assert "more than 250 bytes" in refused(path, **given)
    if kind not in (".txt", ".md", ".json"):
        assert read(path, bad_rows="skip", **given) == []


def test_lines_of_a_paragraph_count_together(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one line\n" * 20 + "\n\nshort\n\n" + "x" * 300 + "\nand more\n\nlast")
    given = {"split_text": "blank_lines", "max_document_bytes": 100}
    assert "more than 100 bytes" in refused(path, **given)
    assert read(path, bad_rows="skip", **given) == ["short", "last"]


@pytest.mark.parametrize("packing", ["", ".gz", ".zst", ".xz"])
@pytest.mark.parametrize("field", ["text", "meta.body"])
def test_the_limit_holds_for_parquet(packing: str, field: str, tmp_path: Path) -> None:
    texts = ["short", "x" * 300, "also short"]
    table = pa.table({"text": texts, "meta": [{"body": text} for text in texts]})
    pq.write_table(table, tmp_path / "plain")
    path = tmp_path / f"a.parquet{packing}"
    path.write_bytes(PACK[packing]((tmp_path / "plain").read_bytes()))
    given = {"text_field": field, "max_document_bytes": 100}
    assert "a.parquet" + packing + " row 2: a document of more than 100 bytes" in refused(path, **given)
    assert read(path, bad_rows="skip", **given) == ["short", "also short"]


def test_the_limit_holds_for_data_sets_and_for_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "set").mkdir()
    pq.write_table(pa.table({"text": ["short", "x" * 300]}), tmp_path / "set/a.parquet")
    hub = CorpusConfig(source="hub", dataset=str(tmp_path / "set"), documents=0, max_document_bytes=100)
    with pytest.raises(WordmillError, match="more than 100 bytes"):
        [list(unit.documents()) for unit in open_dataset(hub, tmp_path).units]
    monkeypatch.setattr(files, "MAX_DOCUMENT", 100)
    with pytest.raises(WordmillError, match="more than 100 bytes"):
        list(read_rows(tmp_path / "set/a.parquet", tmp_path))


BOMBS = """
import gzip, resource, zstandard
import pyarrow as pa, pyarrow.parquet as pq
from pathlib import Path
from llm.corpus.config import CorpusConfig
from llm.corpus.files import units
from llm.errors import WordmillError
long = b"x" * (1 << 20)
many = gzip.compress(long) * 100
Path("a.txt.gz").write_bytes(gzip.compress((b"x" * 999 + b"\\n") * 1000) * 100)
Path("b.jsonl.gz").write_bytes(many)
Path("c.json.gz").write_bytes(gzip.compress(b'["') + many)
Path("d.csv.gz").write_bytes(gzip.compress(b'text\\n"') + many)
Path("e.txt.zst").write_bytes(zstandard.compress(long * 32) * 4)
Path("f.jsonl.zst").write_bytes(zstandard.compress(b"[" + long * 32) * 4)
value = "v" * 3_000_000
same = pa.DictionaryArray.from_arrays(pa.array([0] * 260, pa.int32()), [value])
pq.write_table(pa.table({"text": same}), "g.parquet", compression="zstd", store_schema=False)
pq.write_table(pa.table({"text": [value + str(i) for i in range(50)]}), "h.parquet", compression="zstd",
               use_dictionary=False, column_encoding={"text": "DELTA_BYTE_ARRAY"})
nested = pa.StructArray.from_arrays([same], ["text"])
pq.write_table(pa.table({"m": nested}), "i.parquet", compression="zstd", store_schema=False)
del long, many, value
room = 1_000_000_000
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + room, used + room))
for path in sorted(Path().glob("?.*")):
    for split_text in ("blank_lines", "file") if ".txt" in path.name else ("file",):
        config = CorpusConfig(source="files", paths=(str(path),), documents=0, split_text=split_text,
                              text_field="m.text" if path.name[0] == "i" else "text", max_document_bytes=20_000_000)
        try:
            count = sum(len(document.text) > 1000 for unit in units(config, Path()) for document in unit.documents())
            print(path, count, flush=True)
        except WordmillError as error:
            print(path, error, flush=True)
"""


def test_a_small_file_takes_bounded_memory(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", BOMBS],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.splitlines()
    assert len(lines) == 11
    for line in lines[:8]:
        assert "more than 20,000,000 bytes" in line, line
    assert [line.split() for line in lines[8:]] == [["g.parquet", "260"], ["h.parquet", "50"], ["i.parquet", "260"]]


# Encodings

FRENCH = "Les élèves étudiaient déjà à l'école près de la forêt; la fenêtre était fermée. "
CHINESE = "磨坊主每天早上都会去河边看水车转动，然后把面粉装进袋子里运到城里去卖。"
ENCODED = {
    "latin-1": FRENCH.encode("latin-1"),
    "cp1252": FRENCH.replace("'", "\u2019").encode("cp1252"),
    "gbk": CHINESE.encode("gbk"),
    "big5": "磨坊主每天早上都會去河邊看水車轉動".encode("big5"),
    "shift-jis": "水車小屋の主人は毎朝川へ行きます".encode("shift-jis"),
    "cp1251": "Мельник каждое утро ходит к реке".encode("cp1251"),
}


def _text_files(folder: Path, data: bytes, count: int, before: str = "") -> list[Path]:
    """The same text in every kind of file that holds text as bytes."""
    ascii_row = b'{"text": "plain words, nothing else"}\n'
    rows = [
        ("a.txt", before.encode() + (data + b"\n") * count),
        ("a.md", before.encode() + (data + b"\n") * count),
        ("a.jsonl", (ascii_row * (len(before) // 30)) + (b'{"text": "' + data + b'"}\n') * count),
        ("a.json", b"[" + b'"plain words",' * (len(before) // 20) + b",".join([b'"' + data + b'"'] * count) + b"]"),
        ("a.csv", b"n,text\n" + b"1,plain\n" * (len(before) // 9) + (b'1,"' + data + b'"\n') * count),
    ]
    for name, content in rows:
        (folder / name).write_bytes(content)
    offsets = pa.py_buffer(b"".join((len(data) * n).to_bytes(4, "little") for n in range(count + 1)))
    column = pa.Array.from_buffers(pa.string(), count, [None, offsets, pa.py_buffer(data * count)])
    table = pa.table({"text": column})
    if before:
        plain = pa.table({"text": ["plain words, nothing else"] * (len(before) // 30)})
        table = pa.concat_tables([plain, table])
    pq.write_table(table, folder / "a.parquet")
    return [folder / name for name, _ in rows] + [folder / "a.parquet"]


@pytest.mark.parametrize("encoding", ENCODED)
def test_other_encodings_are_refused_by_every_reader(encoding: str, tmp_path: Path) -> None:
    for path in _text_files(tmp_path, ENCODED[encoding].replace(b"\\", b"/").replace(b'"', b"'"), 20):
        assert "of it is not UTF-8" in refused(path), path.name


@pytest.mark.parametrize("encoding", ["latin-1", "gbk"])
def test_the_whole_file_counts_not_its_beginning(encoding: str, tmp_path: Path) -> None:
    before = "plain words, and nothing else than those\n" * 2000
    for path in _text_files(tmp_path, ENCODED[encoding].replace(b"\\", b"/").replace(b'"', b"'"), 1000, before):
        assert "of it is not UTF-8" in refused(path, split_text="line"), path.name


def test_hints_name_an_encoding(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes((b'{"text": "' + CHINESE.encode("gbk") + b'"}\n') * 20)
    assert "iconv -f gb" in refused(tmp_path / "a.jsonl")
    (tmp_path / "b.txt").write_bytes((FRENCH + "\n").encode("latin-1") * 20)
    assert "it may be" in refused(tmp_path / "b.txt")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.json", "a.csv", "a.md.gz"])
def test_utf_16_is_named(name: str, encoding: str, tmp_path: Path) -> None:
    data = '{"text": "hello there, this is some text"}\n'.encode(encoding) * 20
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    line = refused(tmp_path / name)
    assert "UTF-16" in line
    assert "iconv" in line


def test_few_malformed_sequences_are_counted(tmp_path: Path) -> None:
    data = "A good line, and one in well-formed letters: Grüße.".encode()
    for path in _text_files(tmp_path, data + b" \xff", 1, "much more that is well-formed\n" * 300):
        found = [row for unit in units(config(path), tmp_path) for row in unit.documents()]
        assert sum(row.replaced for row in found if not isinstance(row, BadRow)) == 1, path.name


# Bad rows

ROWS = b'{"text": "one"}\n{"text": \n{"body": "x"}\n{"text": 3}\n[[\n{"text": "two"}\n"three"\n'


def test_bad_rows_are_left_out_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(ROWS)
    assert "a.jsonl line 2: not valid JSON" in refused(path)
    made = build(config(path, bad_rows="skip"), tmp_path / "corpus", tmp_path / "scratch")
    assert made["documents"] == 3
    assert made["left_out"]["rows"] == 4
    assert len(made["left_out"]["first"]) == 4
    assert "line 2: not valid JSON" in made["left_out"]["first"][0]
    printed = capsys.readouterr().err
    assert "4 rows could not be read and are left out; the first 4:" in printed
    assert "line 3: no field 'text'" in printed
    (tmp_path / "b.jsonl").write_bytes(b'{"text": "one"}\n{"text": "two"}\n"three"\n')
    assert "left_out" not in build(config(tmp_path / "b.jsonl"), tmp_path / "c", tmp_path / "s")


def test_bad_rows_of_tables(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b'n,text\n1,one\n2\n3,"x"y\n4,two,more\n\n5,"th\nree"\n')
    assert "a.csv line 3: 1 fields, where the first line names 2 columns" in refused(path)
    assert read(path, bad_rows="skip") == ["one", "th\nree"]
    path.write_bytes(b"text,text\na,b\n")
    assert "two columns have the name 'text'" in refused(path, bad_rows="skip")


def test_only_bad_rows_are_an_empty_corpus(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"body": "x"}\n' * 9)
    with pytest.raises(WordmillError, match=r"9 bad rows; the first: .* no field 'text'"):
        build(config(tmp_path / "a.jsonl", bad_rows="skip"), tmp_path / "corpus", tmp_path / "scratch")


# What used to be tracebacks


def test_parquet_text_that_is_not_utf_8(tmp_path: Path) -> None:
    texts = [b"a good text, long enough \xff to be one", "Größe".encode(), b"plain " * 40]
    column = pa.array(texts, pa.binary())
    raw = pa.StringArray.from_buffers(3, *column.buffers()[1:], None, 0)
    nested = pa.StructArray.from_arrays([raw], ["body"])
    pq.write_table(pa.table({"text": raw, "meta": nested}), tmp_path / "a.parquet")
    for field in ("text", "meta.body"):
        rows = [
            row
            for unit in units(config(tmp_path / "a.parquet", text_field=field), tmp_path)
            for row in unit.documents()
        ]
        assert [(row.text[:5], row.replaced) for row in rows if not isinstance(row, BadRow)] == [
            ("a goo", 1), ("Größe", 0), ("plain", 0),
        ]  # fmt: skip


@pytest.mark.parametrize("codec", ["snappy", "zstd", "gzip", "none"])
def test_a_corrupt_page_is_one_line(codec: str, tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": [f"text {n} " * 20 for n in range(300)]}), tmp_path / "p", compression=codec)
    data = bytearray((tmp_path / "p").read_bytes())
    data[30:90] = os.urandom(60)
    (tmp_path / "a.parquet").write_bytes(data)
    with contextlib.suppress(WordmillError):  # without a checksum a page's text may have changed unseen
        read(tmp_path / "a.parquet")


@pytest.mark.parametrize("kind", [".jsonl", ".json", ".txt"])
def test_a_file_name_that_is_not_utf_8(kind: str, tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9" + kind.encode())
    (tmp_path / name).write_text('"one"\n"two"\n"three"\n')
    made = build(config(tmp_path / "*.*", split_text="line"), tmp_path / "corpus", tmp_path / "scratch")
    assert made["documents"] == 3
    sources = pq.read_table(tmp_path / "corpus/train")["source"].to_pylist()
    assert set(sources) == {"caf\\xe9" + kind}
    (tmp_path / name).write_text("{")
    if kind != ".txt":
        assert "caf\\udce9" in refused(tmp_path / name)


@pytest.mark.parametrize("row", ['{"meta": null}', '{"meta": {"body": null}}', "null"])
def test_nulls_on_the_way_to_the_text_are_empty(row: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(row)
    if row == "null":
        assert "no field 'meta.body'" in refused(tmp_path / "a.jsonl", text_field="meta.body")
    else:
        assert read(tmp_path / "a.jsonl", text_field="meta.body") == [""]


def test_nulls_in_parquet_structs_are_empty(tmp_path: Path) -> None:
    kind = pa.struct([("body", pa.string())])
    pq.write_table(pa.table({"meta": pa.array([None, {"body": "x"}], kind)}), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet", text_field="meta.body") == ["", "x"]


@pytest.mark.parametrize("kind", [".jsonl", ".json", ".ndjson"])
@pytest.mark.parametrize("value", ["9" * 5000, "-" + "9" * 5000, "[" * 100_000, '{"a":' * 100_000])
def test_absurd_values_are_one_line(value: str, kind: str, tmp_path: Path) -> None:
    (tmp_path / f"a{kind}").write_text(f'{{"text": "x",\t"n": {value}}}\n')
    line = refused(tmp_path / f"a{kind}")
    assert "too many digits" in line or "nested too deeply" in line


def test_foreign_names_in_messages_are_escaped(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"\x1b[2J\u202ekey": 1}))
    assert "\\x1b[2J\\u202ekey" in refused(tmp_path / "a.jsonl")
    pq.write_table(pa.table({"\x1b]0;x\x07": [1]}), tmp_path / "a.parquet")
    assert "\\x1b]0;x\\x07" in refused(tmp_path / "a.parquet")
