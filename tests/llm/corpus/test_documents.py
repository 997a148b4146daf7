import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llm.corpus.documents import Row, check, documents, manifest, parts, read_part, utf8_batches, write_part
from llm.errors import WordmillError

ROWS = [Row(f"{number:032x}", f"text {number} ü".encode(), "a.txt") for number in range(10)]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Two parts and their manifest."""
    (tmp_path / "train").mkdir()
    listed = []
    for name, rows in (("part-00000.parquet", ROWS[:6]), ("part-00001.parquet", ROWS[6:])):
        listed.append({"name": name, "sha256": write_part(tmp_path / "train" / name, rows)})
    split = {"documents": len(ROWS), "bytes": sum(len(row.text) for row in ROWS), "parts": listed}
    empty = {"documents": 0, "bytes": 0, "parts": []}
    content = {"digest": "d", "splits": {"train": split, "val": empty, "test": empty}}
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    return tmp_path


def test_what_is_written_is_read(corpus: Path) -> None:
    assert [row for path in parts(corpus / "train") for row in read_part(path)] == ROWS
    assert list(documents(corpus / "train", verify=True)) == [f"text {number} ü" for number in range(10)]


def test_a_changed_missing_or_strange_part_is_noticed(corpus: Path) -> None:
    first, second = parts(corpus / "train")
    data = second.read_bytes()
    second.write_bytes(data[:-1])
    with pytest.raises(WordmillError, match=r"part-00001\.parquet: changed"):
        documents(corpus / "train", verify=True)
    with pytest.raises(WordmillError, match=r"part-00001\.parquet: cannot be read"):
        list(documents(corpus / "train"))
    second.unlink()
    with pytest.raises(WordmillError, match=r"part-00001\.parquet: missing"):
        check(corpus / "train")
    second.write_bytes(data)
    (corpus / "train" / "part-00002.parquet").write_bytes(first.read_bytes())
    with pytest.raises(WordmillError, match=r"part-00002\.parquet: not in the manifest"):
        check(corpus / "train")


def test_what_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(WordmillError, match="no such folder; the stage `download` makes the corpus"):
        documents(tmp_path / "train")
    (tmp_path / "train").mkdir()
    with pytest.raises(WordmillError, match="holds no part"):
        documents(tmp_path / "train")
    with pytest.raises(WordmillError, match="not found"):
        manifest(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(WordmillError, match="not valid JSON"):
        manifest(tmp_path)


def test_a_column_whose_name_is_no_text_is_one_line(corpus: Path) -> None:
    path = parts(corpus / "train")[0]
    data = path.read_bytes()
    assert data.count(b"source") >= 2
    path.write_bytes(data.replace(b"source", b"\xffource"))
    with pytest.raises(WordmillError, match=r"part-00000\.parquet: cannot be read as a part of the corpus"):
        list(documents(corpus / "train"))


@pytest.mark.parametrize(
    "texts",
    [
        pa.array([b"fine", b"caf\xe9"], pa.binary()).view(pa.string()),
        pa.array(["fine", None], pa.string()),
        pa.array([b"fine", b"too"], pa.binary()),
        pa.array([1, 2]),
    ],
    ids=["no UTF-8", "null", "bytes", "numbers"],
)
def test_a_column_that_is_not_all_text_is_one_line(corpus: Path, texts: pa.Array) -> None:
    path = parts(corpus / "train")[0]
    pq.write_table(pa.table({"id": ["1", "2"], "text": texts, "source": ["a", "a"]}), path)
    for read in (documents, utf8_batches):
        with pytest.raises(WordmillError, match=r"part-00000\.parquet: cannot be read as a part of the corpus"):
            list(read(corpus / "train"))
