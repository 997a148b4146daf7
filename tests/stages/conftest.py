"""A folder and an MLflow experiment for each test of a stage that asks for them; MLflow servers for the session."""

import importlib.util
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from stages import tracking
from stages.mailbox import Event, now
from stages.stage_run import StageRun
from stages.tracking_uri import tracking_uri
from tests.stages.mlflow_server import free_port, server


@pytest.fixture
def database(store: str) -> Callable[[Path], Path]:
    """A function that makes a new and empty mlflow.db in a folder: a copy, since making its tables takes seconds."""
    template = Path(store.removeprefix("sqlite:///")).with_name("empty.db")

    def make(folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        return Path(shutil.copy(template, folder / "mlflow.db"))

    return make


@pytest.fixture(scope="session")
def http_store(store: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An MLflow server that serves artifacts, over a database of its own."""
    folder = tmp_path_factory.mktemp("http")
    shutil.copy(Path(store.removeprefix("sqlite:///")).with_name("empty.db"), folder / "mlflow.db")
    with server(free_port(), f"sqlite:///{folder}/mlflow.db", folder) as address:
        yield address


@pytest.fixture(scope="session")
def guarded_store(store: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The same with users and passwords."""
    if importlib.util.find_spec("flask_wtf") is None:
        pytest.skip("needs the package Flask-WTF: pip install -e '.[test]'")
    folder = tmp_path_factory.mktemp("guarded")
    shutil.copy(Path(store.removeprefix("sqlite:///")).with_name("empty.db"), folder / "mlflow.db")
    # By default MLflow hashes the password anew at each request, for tenths of a second.
    (folder / "auth.ini").write_text(
        "[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///basic_auth.db\nadmin_username = admin\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\nauth_cache_ttl_seconds = 600\n"
    )
    with server(free_port(), f"sqlite:///{folder}/mlflow.db", folder, "--app-name", "basic-auth") as address:
        yield address


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: str, request: pytest.FixtureRequest) -> Path:
    """The test runs in a folder of its own, with an experiment of its own in the session's database."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", f"{request.node.name}-{tmp_path.name}")
    monkeypatch.setenv("WORDMILL_REBUILD", "first")
    monkeypatch.setenv("WORDMILL_PREFLIGHT", "own")  # toy stages have no later ones
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "false")
    return tmp_path


class DirectMailbox:
    """In the place of the process beside a stage, which takes seconds to start: delivers all at the end."""

    def __init__(self, module: str, kept: Path, header: dict[str, Any]) -> None:
        self._header = header
        self._events: list[Event] = []

    def post(self, kind: str, **content: Any) -> None:
        self._events.append({"kind": kind, "time": now(), **content})

    def close(self, patience: float, **last: Any) -> None:
        self.post("end", **last)
        StageRun(self._header, tracking_uri()).deliver(self._events)


@pytest.fixture
def direct(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "Mailbox", DirectMailbox)
    monkeypatch.setenv("MLFLOW_LOGGING_LEVEL", "WARNING")
