"""The main figures as a table, and the last lines of a rebuild."""

import json
from pathlib import Path

import pytest

from llm.errors import WordmillError
from pipeline import figures


@pytest.fixture
def reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "reports"
    contents = {
        "evaluate/base.json": {"bits_per_byte": 0.42552, "preferred": 0.587, "excess": 0.038, "sensible": 0.227},
        "evaluate/dpo.json": {"bits_per_byte": 0.43041, "preferred": 0.609, "excess": 0.05, "sensible": 0.4},
        "corpus.json": {"documents": 29_988},
        "pretrain.json": {"parameters": 1_180_800, "step": 1250},
    }
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    return folder


def test_the_table(reports: Path) -> None:
    lines = list(figures.metrics())
    assert lines[0].split() == ["base", "after", "DPO"]
    assert "bits per byte, test             0.4255      0.4304" in lines
    assert "sensible stories                 22.7%       40.0%" in lines
    assert "1,180,800 parameters" in lines
    assert max(map(len, lines)) <= 80


def test_another_corpus_has_no_stories(reports: Path) -> None:
    for name in ("base", "dpo"):
        (reports / f"evaluate/{name}.json").write_text('{"bits_per_byte": 1.5, "preferred": 0.5}')
    assert not any("stories" in line for line in figures.metrics())


def test_before_the_first_rebuild(tmp_path: Path) -> None:
    with pytest.raises(WordmillError, match="there are no figures yet"):
        list(figures.metrics(tmp_path))


def test_the_last_lines(reports: Path) -> None:
    (reports / "report.html").touch()
    text = "\n".join(figures.summary(since=0.0))
    assert "Done in " in text
    assert "reports/report.html" in text
    assert "models/export" not in text  # it was not made
    assert "wordmill serve" in text


@pytest.mark.parametrize(("seconds", "said"), [(7.4, "7 s"), (252, "4 min 12 s"), (7_290, "2 h 1 min"), (-3, "0 s")])
def test_durations(seconds: float, said: str) -> None:
    assert figures.duration(seconds) == said
