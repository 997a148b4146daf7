"""The corpus folder: its splits, its bytes, its limits, and what a kill leaves."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llm.corpus import build as build_module
from llm.corpus import documents as store
from llm.corpus.build import build
from llm.corpus.config import CorpusConfig
from llm.corpus.documents import documents, manifest
from llm.corpus.normalise import SPLITS, normalise
from llm.errors import WordmillError

ROOT = Path(__file__).parents[3]
SHARED = Path(os.environ.get("WORDMILL_SHARED_DATA", ROOT / "../shared/data"))
needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data folder is not on this machine")


def make(folder: Path, texts: list[str] | Path, **given: Any) -> dict[str, Any]:
    """Build a corpus of JSON lines (or of a path) in `folder`."""
    path = texts if isinstance(texts, Path) else folder / "texts.jsonl"
    if not isinstance(texts, Path):
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    config = CorpusConfig(**{"source": "files", "paths": (str(path),), "documents": 0, **given})
    return build(config, folder / "corpus", folder / "scratch")


def splits(folder: Path) -> dict[str, list[str]]:
    return {split: list(documents(folder / "corpus" / split, verify=True)) for split in SPLITS}


def words(count: int, seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(["ab", "cd", "ef", "gh"], k=draw.randint(1, 60))) + str(i) for i in range(count)]


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    texts=st.lists(st.text(st.sampled_from("ab\u0301\r\n\ufeff\ud800"), max_size=4), max_size=40),
    rearranged=st.randoms(use_true_random=False),
)
def test_equal_text_is_on_one_side_once_in_any_order(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], rearranged: random.Random
) -> None:
    texts = [*texts, "one", "two", "three"]
    expected = {normal for text in texts if (normal := normalise(text).text.decode()).strip()}
    first = tmp_path_factory.mktemp("first")
    made = make(first, texts)
    found = splits(first)
    assert sorted(chain(*found.values())) == sorted(expected)  # all of them, none twice
    assert all(found.values())
    assert made["documents"] + made["duplicates"] + made["empty"] == len(texts)
    second = tmp_path_factory.mktemp("second")
    rearranged.shuffle(texts)
    make(second, texts)
    assert {split: set(part) for split, part in splits(second).items()} == {k: set(v) for k, v in found.items()}


def test_a_text_keeps_its_side_in_any_company(tmp_path: Path) -> None:
    make(tmp_path / "few", words(300))
    make(tmp_path / "many", [*words(300, seed=1), *words(300)])
    few, many = splits(tmp_path / "few"), splits(tmp_path / "many")
    for split in SPLITS:
        assert set(few[split]) <= set(many[split])


@pytest.mark.parametrize("count", [3, 4, 5, 10])
@pytest.mark.parametrize("part_bytes", [10, 1_000_000])
def test_no_split_is_empty(tmp_path: Path, count: int, part_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "PART_BYTES", part_bytes)  # small: the documents to be moved are in finished parts
    texts = words(count)
    make(tmp_path, texts, val_share=0.001, test_share=0.001)
    found = splits(tmp_path)
    assert sorted(chain(*found.values())) == sorted(texts)
    assert [len(found["val"]), len(found["test"])] == [1, 1]


def test_one_long_text_is_cut_into_ranges(tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    path.write_text("".join(f"This is line {i}.\n" for i in range(1000)))
    made = make(tmp_path, path, val_share=0.1, test_share=0.1)
    found = {split: "".join(texts) for split, texts in splits(tmp_path).items()}
    assert found["train"] + found["val"] + found["test"] == path.read_text()
    assert made["split_by"] == "ranges"
    assert abs(len(found["val"]) / path.stat().st_size - 0.1) < 0.01


def test_a_very_long_text_still_falls_into_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "PART_BYTES", 1000)
    path = tmp_path / "long.txt"
    path.write_text("".join(f"This is line {i}.\n" for i in range(1000)))
    made = make(tmp_path, path)
    assert "".join(chain(*splits(tmp_path).values())) == path.read_text()
    assert all(part["bytes"] <= 1000 for split in made["splits"].values() for part in split["parts"])
    assert len(made["splits"]["train"]["parts"]) > 10


@needs_data
def test_shakespeare_comes_back_byte_for_byte(tmp_path: Path) -> None:
    path = SHARED / "shakespeare" / "input.txt"
    made = make(tmp_path, path)
    assert "".join(chain(*splits(tmp_path).values())).encode() == path.read_bytes()
    assert made["characters"] == 1_115_394


@needs_data
def test_the_books_are_all_there(tmp_path: Path) -> None:
    made = make(tmp_path, SHARED / "books" / "*.parquet")
    tables = [pq.read_table(path, columns=["text"]) for path in sorted((SHARED / "books").glob("*.parquet"))]
    texts = pa.concat_tables(tables)["text"]
    assert made["documents"] == len(texts.unique()) == 3197
    assert made["bytes"] == sum(len(text.as_buffer()) for text in texts)
    for split, share in (("val", 0.05), ("test", 0.05)):
        assert abs(made["splits"][split]["documents"] / 3197 - share) < 0.02


def test_parts_have_the_size_and_the_counts_of_the_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "PART_BYTES", 5_000)
    monkeypatch.setattr(store, "ROW_GROUP_BYTES", 1_000)
    texts = words(1000)
    make(tmp_path, texts)
    listed = manifest(tmp_path / "corpus")
    for split in SPLITS:
        for part in listed["splits"][split]["parts"]:
            table = pq.ParquetFile(tmp_path / "corpus" / split / part["name"])
            column = table.read()["text"].to_pylist()
            assert (len(column), sum(map(len, column))) == (part["documents"], part["bytes"])
            assert part["bytes"] <= 5_000
            assert table.schema_arrow.names == ["id", "text", "source"]
        assert sum(part["bytes"] for part in listed["splits"][split]["parts"]) == listed["splits"][split]["bytes"]
    assert len(listed["splits"]["train"]["parts"]) > 5
    train = list(documents(tmp_path / "corpus" / "train"))
    assert train == [text for text in texts if text in set(train)]  # the source's order


def test_the_same_input_gives_the_same_bytes_wherever_it_lies(tmp_path: Path) -> None:
    for name in ("here", "there"):
        make(tmp_path / name, words(200))
    assert content(tmp_path / "here") == content(tmp_path / "there")
    assert str(tmp_path) not in (tmp_path / "here" / "corpus" / "manifest.json").read_text()


def content(folder: Path) -> dict[str, bytes]:
    root = folder / "corpus"
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_limits(tmp_path: Path) -> None:
    texts = ["aaaa", "bbbb", "aaaa", "cccc", "dddd"]
    assert make(tmp_path / "documents", texts, documents=3)["documents"] == 3
    made = make(tmp_path / "bytes", texts, max_bytes=15)
    assert (made["documents"], made["bytes"], made["duplicates"]) == (3, 12, 1)


def test_counts(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"one \xff\n\n  \ntwo\ntwo\r\nthree\n")
    made = make(tmp_path, path, split_text="line")
    assert {name: made[name] for name in ("documents", "duplicates", "empty", "invalid_utf8")} == {
        "documents": 3,
        "duplicates": 1,
        "empty": 3,
        "invalid_utf8": 1,
    }


@pytest.mark.parametrize(
    ("texts", "given", "message"),
    [
        ([], {}, "the corpus is empty"),
        (["", " \n", "\ufeff"], {}, "the corpus is empty (3 documents, all of them without text)"),
        (["a", "b", "b"], {}, "has 2 documents, too few"),
        (["a"], {}, "one text of 1 characters, too short"),
        (["long enough text"], {"max_bytes": 3}, "corpus.max_bytes: 3 is less than the first document (16 bytes)"),
    ],
)
def test_corpora_that_are_none(tmp_path: Path, texts: list[str], given: dict[str, Any], message: str) -> None:
    with pytest.raises(WordmillError) as caught:
        make(tmp_path, texts, **given)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "corpus").exists()


def test_an_older_corpus_is_replaced_whole(tmp_path: Path) -> None:
    make(tmp_path, words(50))
    (tmp_path / "corpus" / "train" / "part-00007.parquet").write_bytes(b"stray")
    make(tmp_path, words(60))
    assert sum(map(len, splits(tmp_path).values())) == 60


SLOW = """
import sys, time
from pathlib import Path
from llm.corpus import build, documents, normalise
from llm.corpus.config import CorpusConfig
documents.PART_BYTES = 20_000
quick = normalise.normalise
def slow(text):
    time.sleep(0.002)
    return quick(text)
normalise.normalise = slow
build.build(CorpusConfig(source="files", paths=("in/*.jsonl",), documents=0), Path("corpus"), Path("scratch"), 0.0)
"""


def test_a_killed_build_goes_on_and_gives_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(store, "PART_BYTES", 20_000)
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    for number in range(6):
        lines = [json.dumps({"text": text}) for text in words(150, seed=number) + words(10)]
        Path(f"in/{number}.jsonl").write_text("\n".join(lines))
    config = CorpusConfig(source="files", paths=("in/*.jsonl",), documents=0)
    child = subprocess.Popen(
        [sys.executable, "-c", SLOW], env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.DEVNULL
    )
    state = Path("scratch/corpus/state.json")
    while child.poll() is None and not (state.exists() and len(json.loads(state.read_text())["units"]) >= 2):
        time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert not Path("corpus").exists()
    build(config, Path("corpus"), Path("scratch"))
    assert "goes on after" in capsys.readouterr().err
    build(config, tmp_path / "unbroken" / "corpus", tmp_path / "unbroken" / "scratch")
    assert content(tmp_path) == content(tmp_path / "unbroken")


@pytest.mark.parametrize("damage", ["part", "state", "source"])
def test_state_that_does_not_fit_is_not_used(
    tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(build_module, "SAVE_SECONDS", 0.0)
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps(text) for text in words(100)))
    config = CorpusConfig(source="files", paths=(str(path),), documents=0)
    first = build(config, tmp_path / "corpus", tmp_path / "scratch", 0.0)
    if damage == "part":
        [pending] = (tmp_path / "scratch" / "corpus").glob("pending-*-train.parquet")
        pending.write_bytes(b"damaged")
    elif damage == "state":
        (tmp_path / "scratch" / "corpus" / "state.json").write_text("{")
    else:
        path.write_text("\n".join(json.dumps(text) for text in words(101)))
    capsys.readouterr()
    second = build(config, tmp_path / "corpus", tmp_path / "scratch", 0.0)
    assert "starts over" in capsys.readouterr().err
    assert second["documents"] == first["documents"] + (damage == "source")


def test_stories_are_a_source_like_any_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("llm.corpus.stories")
    from llm.corpus.stories import story

    made = build(CorpusConfig(seed=3, documents=60), tmp_path / "corpus", tmp_path / "scratch")
    texts = chain(*splits(tmp_path).values())
    assert sorted(texts) == sorted({story(3, index) for index in range(60)})
    assert made["settings"]["seed"] == 3
