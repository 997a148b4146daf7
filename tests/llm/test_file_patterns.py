"""A glob is read the same way by whoever reads it: what is no file is left out with a count, or refused by name."""

import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llm.corpus.files import find
from llm.errors import WordmillError
from llm.file_patterns import match
from stages.params import named_files

KEYS = ("corpus.paths", "preferences.paths", "evaluate.minimal_pairs")
_open: list[socket.socket] = []


def listening(path: Path) -> None:
    _open.append(socket.socket(socket.AF_UNIX))
    _open[-1].bind(path.name)  # its address is short where the path is not


ODD: dict[str, tuple[Callable[[Path], object], str]] = {
    "link to nothing": (lambda path: path.symlink_to("nowhere"), "a link to nothing"),
    "loop": (lambda path: path.symlink_to(path.name), "a link to nothing"),
    "fifo": (os.mkfifo, "a FIFO"),
    "link to a fifo": (lambda path: [os.mkfifo("pipe"), path.symlink_to("pipe")], "a FIFO"),
    "socket": (listening, "a socket"),
    "device": (lambda path: path.symlink_to("/dev/null"), "a device"),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    Path("a.jsonl").write_text(json.dumps({"text": "one"}))
    Path("linked.jsonl").symlink_to("a.jsonl")
    Path("folder.jsonl").mkdir()
    yield tmp_path
    while _open:
        _open.pop().close()


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("absolute", [False, True])
def test_what_is_no_file_is_left_out_of_a_glob_with_a_count(
    folder: Path, kind: str, absolute: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    make, called = ODD[kind]
    make(Path("odd.jsonl"))
    root = folder if absolute else Path()
    expected = [root / "a.jsonl", root / "linked.jsonl"]
    pattern = str(root / "*.jsonl")
    for key in KEYS:
        assert find((pattern,), key) == expected
        told = f"{key}: {pattern}: 1 that are no files are left out, such as {root / 'odd.jsonl'}, {called}"
        assert told in capsys.readouterr().err
        assert named_files({key: [pattern]}) == expected


@pytest.mark.parametrize("kind", ODD)
def test_one_that_is_named_is_refused_before_anything_reads_it(folder: Path, kind: str) -> None:
    make, called = ODD[kind]
    make(Path("odd.jsonl"))
    for key in KEYS:
        with pytest.raises(WordmillError, match=rf"^{key}: odd\.jsonl: is {called}; name a file$"):
            find(("a.jsonl", "odd.jsonl"), key)
        assert named_files({key: ["a.jsonl", "odd.jsonl"]}) == [Path("a.jsonl")]


def test_a_name_with_wildcards_is_itself_where_it_is_there(folder: Path) -> None:
    Path("[a].jsonl").write_text("{}")
    assert match("[a].jsonl").paths == [Path("[a].jsonl")]
    Path("[a].jsonl").unlink()
    assert match("[a].jsonl").paths == [Path("a.jsonl")]
