"""A stage run whole, as a process of its own, with every kind of store that it may meet."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from benchmarks.kill import TINY
from llm.errors import WordmillError
from pipeline.presets import changed
from stages import sqlite_store, store
from stages.delivery import deliver_kept
from stages.mailbox import Unavailable, now
from stages.stage_run import StageRun
from stages.store import check_listens, every, reachable
from tests.stages.mlflow_server import ADMIN, answering, free_port, http
from tests.stages.test_tracking import REPO, runs

MAXIMUM_SECONDS = 300


@pytest.fixture
def run_download(folder: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the stage `download` with some documents, in a folder of its own."""
    for name in ("llm", "stages"):
        Path(name).symlink_to(REPO / name)
    Path("dvc.yaml").symlink_to(REPO / "dvc.yaml")
    text = (REPO / "presets/default.yaml").read_text()
    Path("params.yaml").write_text(changed(text, {**TINY, "corpus.documents": 60}, "test"))

    def run(**environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "stages.download"],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=MAXIMUM_SECONDS,
        )

    return run


def finished(address: str, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """The only run of the test's experiment; it has ended well and has its files."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    (run,) = runs("stage")
    (parent,) = runs("rebuild")
    assert (run.info.status, parent.info.status) == ("FINISHED", "FINISHED")
    assert run.data.metrics
    client = MlflowClient(address)
    assert "lineage/outputs.json" in {entry.path for entry in client.list_artifacts(run.info.run_id, "lineage")}
    return run


def assert_delivered(done: subprocess.CompletedProcess[str], address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert done.returncode == 0, done.stderr
    if list(Path("runs").glob("undelivered/*")):  # a machine so busy that the server was not done in time
        assert "the store did not answer within 60 s" in done.stderr
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "180")
        assert deliver_kept(address, print) == 1
        return
    assert "warning" not in done.stderr


def test_a_server_that_prints(
    run_download: Callable[..., subprocess.CompletedProcess[str]], http_store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow's client prints a run's address to standard output when the run is on a server."""
    done = run_download(MLFLOW_TRACKING_URI=http_store, MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT="false")
    assert_delivered(done, http_store, monkeypatch)
    assert "View experiment at" not in done.stdout
    finished(http_store, {}, monkeypatch)


def test_a_server_that_asks_who_it_is(
    run_download: Callable[..., subprocess.CompletedProcess[str]], guarded_store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = run_download(MLFLOW_TRACKING_URI=guarded_store, **ADMIN)
    for name, value in ADMIN.items():
        monkeypatch.setenv(name, value)
    assert_delivered(done, guarded_store, monkeypatch)
    finished(guarded_store, ADMIN, monkeypatch)
    for stranger in ({"MLFLOW_TRACKING_PASSWORD": "wrong"}, {"MLFLOW_TRACKING_USERNAME": ""}):
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "")
        for name, value in {**ADMIN, **stranger}.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(WordmillError, match=r"^MLFLOW_TRACKING_URI: http://127.0.0.1:\d+: .*not authenticated"):
            StageRun(header(), guarded_store)


def test_a_new_database_and_a_half_made_one(
    run_download: Callable[..., subprocess.CompletedProcess[str]], monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    half_made(folder / "mlflow.db", 30)
    done = run_download(MLFLOW_TRACKING_URI="sqlite:///mlflow.db")
    assert done.returncode == 0, done.stderr
    assert "was half made and held no runs; made anew" in done.stderr
    finished(f"sqlite:///{folder}/mlflow.db", {}, monkeypatch)
    (aside,) = folder.glob("mlflow.db.half-made-*")
    assert aside.stat().st_size
    assert not list(folder.glob("mlflow.db.making*"))


def half_made(path: Path, steps: int) -> None:
    """A database as a kill leaves it after so many of MLflow's migrations."""
    from alembic import command
    from alembic.script import ScriptDirectory
    from mlflow.store.db.utils import _get_alembic_config, create_sqlalchemy_engine
    from mlflow.store.tracking.dbmodels.initial_models import Base

    engine = create_sqlalchemy_engine(f"sqlite:///{path}")
    Base.metadata.create_all(engine)
    config = _get_alembic_config(f"sqlite:///{path}")
    revisions = [script.revision for script in ScriptDirectory.from_config(config).walk_revisions()][::-1]
    if steps:
        with engine.begin() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, revisions[steps - 1])
    engine.dispose()


def header() -> dict[str, Any]:
    """What a stage tells first."""
    return {
        "kind": "start",
        "stage": "dpo",
        "params": {},
        "inputs": {},
        "fingerprint": "k",
        "rebuild": "first",
        "pid": str(os.getpid()),
        "started": "1",
        "time": now(),
        "uri": "",
    }


@pytest.mark.parametrize(
    ("answer", "is_mistake"),
    [
        pytest.param(b"", False, id="hangs up"),
        pytest.param(b"SSH-2.0-OpenSSH_9.6\r\n", False, id="speaks another protocol"),
        pytest.param(http("200 OK", "<html>Log in</html>", "text/html"), True, id="a page"),
        pytest.param(http("200 OK", "[1, 2]"), True, id="a list"),
        pytest.param(http("200 OK", '{"experiment": 5}'), True, id="other types"),
        pytest.param(http("200 OK", '{"experiment": {"experiment_id": {"a": 1}}}'), True, id="other types below"),
        pytest.param(http("200 OK", "{}"), None, id="nothing"),
        pytest.param(http("404 Not Found", "no such page", "text/plain"), True, id="another server"),
        pytest.param(http("500 Internal Server Error", "{"), False, id="a broken server"),
        pytest.param(http("503 Service Unavailable", "starting", "text/plain"), False, id="a server that starts"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 999999\r\n\r\n{", False, id="cut"),
    ],
)
def test_rubbish_is_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, answer: bytes, is_mistake: bool | None
) -> None:
    """A wrong address is an error at the start. Whatever may pass is a warning, and the stage goes on."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with answering(answer) as address:
        with pytest.raises((WordmillError, Unavailable)) as caught:
            StageRun(header(), address.replace("//", "//user:secret@"))
        line = str(caught.value)
        assert "\n" not in line
        assert "secret" not in line
        assert address.removeprefix("http://") in line
        if is_mistake is not None:
            assert isinstance(caught.value, WordmillError) is is_mistake
        if is_mistake is False:  # in the middle of a stage it is a warning, too
            with pytest.raises(Unavailable), reachable(address):
                store.client(address).get_run("0" * 32)


def test_runs_whose_files_a_server_cannot_see(folder: Path, http_store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server was put over a database whose runs keep their files in a local folder."""
    client = MlflowClient(http_store)
    client.create_experiment(os.environ["MLFLOW_EXPERIMENT_NAME"], artifact_location=(folder / "files").as_uri())
    StageRun(header(), http_store).deliver([{"kind": "end", "time": now(), "status": "FINISHED", "error": ""}])
    (run,) = runs_at(http_store, monkeypatch)
    assert (folder / "files" / run.info.run_id / "artifacts/lineage/inputs.json").exists()  # one machine: the same disk
    assert not list(folder.glob("files/*/artifacts/probe.txt"))

    # The server is on another machine, and sees nothing of what is written here.
    monkeypatch.setattr(store, "_listed_by_server", lambda client, run_id: set())
    with pytest.raises(WordmillError, match="the server does not see what this machine writes there; name another"):
        StageRun(header() | {"rebuild": "second"}, http_store)
    assert not list(folder.glob("files/*/artifacts/probe.txt"))

    # Its folder cannot even be made here.
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", f"elsewhere-{folder.name}")
    client.create_experiment(os.environ["MLFLOW_EXPERIMENT_NAME"], artifact_location="file:///proc/nowhere")
    with pytest.raises(WordmillError, match=r"keep their files in /proc/nowhere/.*this machine cannot write there"):
        StageRun(header(), http_store)


def runs_at(address: str, monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    return runs("stage")


def test_a_database_whose_files_are_behind_a_server(
    folder: Path, database: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"sqlite:///{database(folder)}"
    MlflowClient(address).create_experiment(os.environ["MLFLOW_EXPERIMENT_NAME"], "mlflow-artifacts:/1")
    with pytest.raises(WordmillError, match="keeps its files behind an MLflow server; name that server"):
        StageRun(header(), address)


@pytest.mark.parametrize("steps", [0, 30])
def test_half_a_schema_is_recognised(tmp_path: Path, steps: int) -> None:
    path = tmp_path / "mlflow.db"
    half_made(path, steps)
    assert sqlite_store.preparation(f"sqlite:///{path}") is not None


def test_a_search_is_read_to_its_last_page() -> None:
    class Page(list[int]):
        def __init__(self, values: list[int], token: str | None) -> None:
            super().__init__(values)
            self.token = token

    pages = {None: Page([1, 2], "a"), "a": Page([], "b"), "b": Page([3], None)}
    assert list(every(lambda token: pages[token])) == [1, 2, 3]
    assert json.dumps(list(every(lambda token: pages["b"]))) == "[3]"


ASKING = """
import sys
from stages.mailbox import Unavailable
from stages.store import check_listens
try:
    check_listens(sys.argv[1])
except Unavailable as error:
    print(error)
print("mlflow" in sys.modules)
"""


def test_a_server_of_this_machine_that_is_not_there_is_said_without_mlflow() -> None:
    """MLflow would be imported for seconds, and would then ask again and again."""
    address = f"http://127.0.0.1:{free_port()}"
    done = subprocess.run([sys.executable, "-c", ASKING, address], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"{address}: nothing listens there", "False"]


def test_what_listens_and_what_is_elsewhere_is_left_to_mlflow(http_store: str) -> None:
    for uri in (http_store, "http://mlflow.invalid:5000", "sqlite:///mlflow.db", "file:///runs"):
        check_listens(uri)
