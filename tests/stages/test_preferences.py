"""The stage on given pairs: what it writes, counts and says."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from llm.preferences import read_pairs
from pipeline import presets

REPO = Path(__file__).parents[2]


def test_every_given_record_is_written_or_counted(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run_stages: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("presets").symlink_to(REPO / "presets")
    records = [{"prompt": f"question {n}", "chosen": "yes", "rejected": "no", "score": n} for n in range(1200)]
    records += [{"prompt": "equal", "chosen": "no", "rejected": "no", "score": 0}] * 3
    for number in range(2):
        lines = (json.dumps(record) + "\n" for record in records[number::2])
        Path(f"pairs-{number}.jsonl").write_text("".join(lines))
    settings = {"corpus.documents": 60, "preferences.source": "files", "preferences.paths": ["pairs-*.jsonl"]}

    Path("params.yaml").write_text(presets.from_preset("default", settings))
    run_stages("download", "preferences")
    said = capsys.readouterr().out
    assert "preferences: 1,203 records give 1,200 pairs" in said
    assert "left out: 3 with equal answers (first: pairs-0.jsonl line 601)" in said
    assert "columns that are not read: score" in said
    assert json.loads(Path("reports/preferences.json").read_text()) == {"pairs": 1200, "left_out": 3}
    counts = json.loads(Path("reports/preferences/counts.json").read_text())
    assert counts["records"] == 1203
    assert counts["equal_answers"] == 3
    written = {
        split: len(read_pairs(Path("data/preferences/pairs.parquet"), split).prompt) for split in ("train", "test")
    }
    assert written == {"train": counts["train"], "test": counts["test"]}
    assert 60 < written["test"] < 180

    Path("params.yaml").write_text(presets.from_preset("default", settings | {"preferences.pairs": 200}))
    run_stages("preferences")
    assert "preferences.pairs leaves out 1,000 pairs and keeps an even sample; 0 keeps all" in capsys.readouterr().out
    assert json.loads(Path("reports/preferences.json").read_text()) == {"pairs": 200, "left_out": 1003}
