"""One run found among thousands."""

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient

from llm.errors import WordmillError
from stages import history, stage_run
from stages.stage_run import StageRun
from tests.stages.test_stores import header

MANY = 1100  # MLflow answers a thousand at a time


@pytest.fixture
def crowded(folder: Path, database: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch) -> str:
    """A rebuild, and after it so many newer ones; its id."""
    path = database(folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{path}")
    Path("params.yaml").write_text("dpo: {beta: 0.1}\n")
    run = StageRun(header() | {"time": 1}, f"sqlite:///{path}")
    run.deliver([{"kind": "end", "time": 2, "status": "FINISHED", "error": ""}])
    with sqlite3.connect(path) as connection:
        (columns,) = connection.execute("SELECT group_concat(name) FROM pragma_table_info('runs')").fetchall()
        names = [name for name in columns[0].split(",") if name not in ("run_uuid", "name", "start_time")]
        kept = ",".join(f'"{name}"' for name in names)
        for number in range(MANY):
            run_id = f"{number:032x}"
            connection.execute(
                f"INSERT INTO runs (run_uuid, name, start_time, {kept}) SELECT ?, ?, ?, {kept} FROM runs LIMIT 1",
                (run_id, f"rebuild {number}", 1000 + number),
            )
            connection.execute(
                "INSERT INTO tags (key, value, run_uuid) VALUES ('wordmill.kind', 'rebuild', ?)", (run_id,)
            )
    connection.close()
    query = "attributes.start_time = 1 AND tags.`wordmill.kind` = 'rebuild'"
    (parent,) = MlflowClient(f"sqlite:///{path}").search_runs(["1"], query)
    return str(parent.info.run_id)


def test_an_old_run_is_found(crowded: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for word in (crowded, crowded[:12]):
        assert history.find(word).run_id == crowded
    name = history.find(crowded).name
    assert history.find(name).run_id == crowded
    with pytest.raises(WordmillError, match=r"^00000000: several runs: 0000000.*; give an id$"):
        history.find("00000000")
    for word in ("f" * 32, "ffff", "no 'such' name", "\"both' of them", "%", ""):
        with pytest.raises(WordmillError, match=r"no such run in experiment .*; the newest are 00000000 "):
            history.find(word)


def test_a_search_for_runs_reads_every_page(crowded: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage_run, "PAGE", 300)
    uri = history.tracking_uri()
    run = StageRun(header() | {"rebuild": "second"}, uri)
    found = run._search("tags.`wordmill.kind` = 'rebuild'")
    assert len(found) == MANY + 2
    assert len(run._search("tags.`wordmill.kind` = 'rebuild'", limit=3)) == 3
