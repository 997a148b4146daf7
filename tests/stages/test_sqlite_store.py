"""MLflow's database: killed while it is made, moved, copied, reached by another name; and addresses of databases."""

import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient

from llm.errors import WordmillError
from stages import history, sqlite_store
from stages.tracking import Tracker
from stages.tracking_uri import environment, sqlite_path, tracking_uri
from tests.stages.test_stores import half_made
from tests.stages.test_tracking import runs

MAKING = "import sys; from stages.store import client; client(sys.argv[1])"


def test_killed_while_it_is_made_it_is_not_there(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mlflow.db"
    process = subprocess.Popen([sys.executable, "-c", MAKING, f"sqlite:///{path}"], cwd=Path(__file__).parents[2])
    making = path.with_name("mlflow.db.making")
    deadline = time.monotonic() + 180
    while not (making.exists() and making.stat().st_size > 100_000):  # some of the tables are there
        assert process.poll() is None, "it was made before it could be killed"
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not path.exists()
    work = sqlite_store.preparation(f"sqlite:///{path}")
    assert work is not None
    work()
    assert sqlite_store.preparation(f"sqlite:///{path}") is None
    assert sorted(file.name for file in tmp_path.iterdir() if file.suffix != ".lock") == ["mlflow.db"]
    assert MlflowClient(f"sqlite:///{path}").search_experiments()


def test_what_is_not_ours_is_left_alone(tmp_path: Path, database: Callable[[Path], Path]) -> None:
    """A database with runs that another version made, one of another program, and one that is no database."""
    older = tmp_path / "older/mlflow.db"
    older.parent.mkdir()
    half_made(older, 20)
    with sqlite3.connect(older) as connection:
        connection.execute("INSERT INTO runs (run_uuid) VALUES ('a')")
    connection.close()
    newer = database(tmp_path / "newer")
    with sqlite3.connect(newer) as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'f00d'")
        connection.execute("INSERT INTO runs (run_uuid, experiment_id) VALUES ('a', 0)")
    connection.close()
    other = tmp_path / "other.db"
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE recipes (name TEXT)")
    connection.close()
    for path, words in ((older, "has schema"), (newer, "has schema f00d"), (other, "holds tables of another program")):
        before = path.read_bytes()
        with pytest.raises(WordmillError, match=rf"{path}: {words}.* copy the file and run `mlflow db upgrade"):
            sqlite_store.preparation(f"sqlite:///{path}")
        assert path.read_bytes() == before
    note = tmp_path / "note.txt"
    note.write_text("a text, and no database of SQLite's\n" * 9)
    assert sqlite_store.preparation(f"sqlite:///{note}") is None  # MLflow says so


def a_run(rebuild: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run a stage in the folder that we are in; where its file lies."""
    monkeypatch.setenv("WORDMILL_REBUILD", rebuild)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    Path("params.yaml").write_text("dpo: {beta: 0.1}\n")
    with Tracker("dpo", {}, {}, "k") as tracker:
        tracker.text("note.txt", rebuild)
    folder = place_of(rebuild, monkeypatch)
    assert (folder / "note.txt").read_text() == rebuild
    return folder


def place_of(rebuild: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the files of a rebuild's stage are, by the database in the folder that we are in."""
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", tracking_uri())
        run = next(run for run in runs("stage") if run.data.tags["wordmill.rebuild"] == rebuild)
    folder = sqlite_store.local_path(run.info.artifact_uri)
    assert folder is not None
    return folder


def test_a_checkout_that_moves_or_is_copied_takes_its_files_along(
    direct: None,
    database: Callable[[Path], Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    first = tmp_path / "a folder #1 50% ä"
    database(first)
    monkeypatch.chdir(first)
    assert a_run("one", monkeypatch).is_relative_to(first / "mlartifacts")
    assert capfd.readouterr().err == ""

    moved = tmp_path / "moved"
    first.rename(moved)
    monkeypatch.chdir(moved)
    assert history.find("latest").params == "dpo: {beta: 0.1}\n"  # its file, found where it is now
    assert f"mlflow.db was in {first} before: new files go to {moved}/mlartifacts" in capfd.readouterr().err
    assert a_run("two", monkeypatch).is_relative_to(moved / "mlartifacts")
    assert not first.exists()

    copied = tmp_path / "copied"
    shutil.copytree(moved, copied)
    before = sorted(moved.rglob("*"))
    monkeypatch.chdir(copied)
    assert a_run("three", monkeypatch).is_relative_to(copied / "mlartifacts")
    assert sorted(moved.rglob("*")) == before
    assert len(history.find("latest").stages) == 1

    alone = tmp_path / "alone"  # the database without its files: those of old runs stay where they are
    alone.mkdir()
    shutil.copy(moved / "mlflow.db", alone)
    monkeypatch.chdir(alone)
    assert a_run("four", monkeypatch).is_relative_to(alone / "mlartifacts")
    assert place_of("one", monkeypatch).is_relative_to(moved)

    capfd.readouterr()
    link = tmp_path / "link"
    link.symlink_to(alone, target_is_directory=True)
    monkeypatch.chdir(link)
    a_run("five", monkeypatch)
    assert capfd.readouterr().err == ""  # the same folder by another name


def test_a_place_that_somebody_chose_stays(database: Callable[[Path], Path], tmp_path: Path) -> None:
    path = database(tmp_path / "checkout")
    chosen = tmp_path / "disk/mlartifacts"
    chosen.mkdir(parents=True)
    client = MlflowClient(f"sqlite:///{path}")
    for name, place in (("near", chosen.as_uri()), ("far", "s3://bucket/mlartifacts")):
        client.create_experiment(name, artifact_location=place)
    told: list[str] = []
    sqlite_store.relocate(path, told.append)
    places = {experiment.name: experiment.artifact_location for experiment in client.search_experiments()}
    assert (places["near"], places["far"]) == (chosen.as_uri(), "s3://bucket/mlartifacts")


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ("", "mlflow.db"),
        ("sqlite:///mlflow.db", "mlflow.db"),
        ("sqlite:///../other.db", "../other.db"),
        ("sqlite+pysqlite:///mlflow.db", "mlflow.db"),
        ("sqlite:////tmp/mlflow.db", "/tmp/mlflow.db"),
        ("sqlite:///mlflow.db?timeout=30", "mlflow.db"),
    ],
)
@pytest.mark.parametrize("name", ["plain", "with #hash and %41"])
def test_an_address_means_the_same_in_every_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, path: str, name: str
) -> None:
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / name)
    for variable in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        monkeypatch.setenv(variable, given)
    found = environment()
    monkeypatch.chdir("/")
    assert sqlite_path(found["MLFLOW_TRACKING_URI"]) == tmp_path / name / path
    assert found["MLFLOW_TRACKING_URI"].partition("?")[2] == given.partition("?")[2]
    if given:
        assert found["MLFLOW_REGISTRY_URI"] == found["MLFLOW_TRACKING_URI"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", found["MLFLOW_TRACKING_URI"])
    assert tracking_uri() == found["MLFLOW_TRACKING_URI"]


def test_a_queued_experiment_uses_the_checkouts_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    queued = tmp_path / ".dvc/tmp/exps/tmpabc"
    queued.mkdir(parents=True)
    monkeypatch.chdir(queued)
    for given in ("", "sqlite:///mlflow.db"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", given)
        assert tracking_uri() == f"sqlite:///{tmp_path}/mlflow.db"


@pytest.mark.parametrize("given", ["sqlite://", "sqlite:///", "sqlite:///:memory:", "sqlite:///file:a.db?uri=true"])
def test_an_address_without_a_file_is_refused(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", given)
    with pytest.raises(WordmillError, match="names no file; use sqlite:///"):
        tracking_uri()


def test_a_folder_that_no_address_can_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "what?").mkdir()
    monkeypatch.chdir(tmp_path / "what?")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(WordmillError, match="cannot hold a question mark; rename the folder"):
        tracking_uri()
    assert not list(Path.cwd().iterdir())
