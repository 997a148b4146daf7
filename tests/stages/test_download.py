import json
from pathlib import Path
from typing import Any

import pytest

download = pytest.importorskip("stages.download", exc_type=ImportError)

from llm.corpus.config import CorpusConfig  # noqa: E402


class Recorder:
    """Stands for the stage: a scratch folder, and what MLflow would be told."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self.told: dict[str, Any] = {}

    def metrics(self, values: dict[str, float]) -> None:
        self.told["metrics"] = values

    def tags(self, values: dict[str, str]) -> None:
        self.told["tags"] = values

    def artifact(self, path: Path) -> None:
        self.told["artifact"] = path

    def dataset(self, name: str, source: str, digest: str, counts: dict[str, int]) -> None:
        self.told["dataset"] = (name, source, digest, counts)


def test_the_stage_writes_the_corpus_and_tells_its_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("raw.txt").write_text("one\ntwo\nthree\nthree\n\n")
    config = CorpusConfig(source="files", paths=("raw.txt",), split_text="line", documents=0)
    stage = Recorder(Path("scratch"))
    download.run(download.Params(config), stage)
    manifest = json.loads(Path("data/corpus/manifest.json").read_text())
    assert stage.told["metrics"]["documents"] == manifest["documents"] == 3
    assert stage.told["metrics"]["duplicates"] == 1
    counts = {"train": 1, "val": 1, "test": 1}
    assert stage.told["dataset"] == ("corpus", "files", manifest["digest"], counts)
    assert stage.told["tags"] == {"corpus.source": "files", "corpus.digest": manifest["digest"]}
    assert stage.told["artifact"] == Path("data/corpus/manifest.json")
    assert "3 documents" in capsys.readouterr().out
    assert sorted(p.name for p in Path("data/corpus").iterdir()) == ["manifest.json", "test", "train", "val"]
