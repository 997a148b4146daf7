"""MLflow's client for the store at an address, and what is wrong with that store when it fails.

A store that is wrongly set up is the user's mistake: WordmillError. One that is down is not: Unavailable.
"""

import socket
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from llm.errors import WordmillError
from stages import sqlite_store
from stages.mailbox import Unavailable
from stages.tracking_uri import is_sqlite, sqlite_path, without_secrets

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment, Run

KIND = {"mlflow.experimentKind": "custom_model_development"}  # of an experiment: opens among the runs, not the chats
PROJECT = Path(__file__).parents[1]
WRONG_STATUSES = (401, 403, 404)  # of HTTP
PROBE = "probe.txt"
LOOPBACK = ("localhost", "127.0.0.1", "::1")
DEFAULT_PORTS = {"http": 80, "https": 443}


def client(uri: str) -> "MlflowClient":
    """MLflow's client. A database that is not there is made first. Call it within `reachable`."""
    from mlflow import MlflowClient

    if work := sqlite_store.preparation(uri):
        work()
    return MlflowClient(tracking_uri=uri)


def check_listens(uri: str) -> None:
    """Raises Unavailable where nothing listens at a server's address on this machine: MLflow would ask for seconds."""
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https") or parts.hostname not in LOOPBACK:
        return  # another machine's may be reached through a proxy alone
    try:
        socket.create_connection((parts.hostname, parts.port or DEFAULT_PORTS[parts.scheme]), timeout=1).close()
    except ConnectionRefusedError:
        raise Unavailable(f"{without_secrets(uri)}: nothing listens there") from None
    except OSError:
        return  # MLflow says better what is the matter


def answers(uri: str) -> bool:
    """Whether the store is up and takes a question."""
    try:
        with reachable(uri):
            client(uri).search_experiments(max_results=1)
    except (Unavailable, WordmillError):
        return False
    return True


def every(search: Callable[[str | None], Any]) -> Iterator[Any]:
    """All results of a search that MLflow answers page by page; `search` gets the token of a page, None at first."""
    token = None
    while True:
        page = search(token)
        yield from page
        if not (token := page.token):
            return


@contextmanager
def reachable(uri: str, starting: bool = False) -> Iterator[None]:
    """Tell a store that is down (Unavailable) from one that is wrongly set up (WordmillError, at the start only).

    A server may answer anything. An error that a library raises over an answer is the store's, and no bug here.
    """
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (WordmillError, Unavailable):
        raise
    except Exception as error:
        known = isinstance(error, MlflowException | SQLAlchemyError | OSError)
        if not known and (is_sqlite(uri) or not _raised_by_a_library(error)):
            raise
        line = " ".join(str(error).split())[:300].replace(uri, without_secrets(uri))
        if is_sqlite(uri):
            wrong = "locked" not in line and "full" not in line
        elif isinstance(error, MlflowException):
            wrong = error.get_http_status_code() in WRONG_STATUSES or "not in a valid JSON format" in line
        else:
            wrong = not known
        if wrong and not known:
            line = f"what answers is no MLflow server ({type(error).__name__}: {line[:100]})"
        if starting and wrong:
            raise WordmillError(f"MLFLOW_TRACKING_URI: {without_secrets(uri)}: {line}") from None
        raise Unavailable(f"{without_secrets(uri)}: {line}") from None


def _raised_by_a_library(error: Exception) -> bool:
    """Whether code of an installed package was at work below the last line of this project's."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if "site-packages" in path.parts:
            return True
        if path.is_relative_to(PROJECT):
            return False
    return False


def experiment_id(client: "MlflowClient", uri: str, name: str) -> str:
    """The experiment of this name, made if there is none.

    Raises WordmillError for a deleted one, and for one whose files would go where nobody looks for them.
    """
    found = client.get_experiment_by_name(name)
    if found is None:
        folder = None  # the server's own
        if is_sqlite(uri):
            folder = (sqlite_path(uri).parent / sqlite_store.ARTIFACTS).as_uri()
        return str(client.create_experiment(name, artifact_location=folder, tags={**KIND, **_creator(uri)}))
    if found.lifecycle_stage == "deleted":
        raise WordmillError(
            f"MLflow experiment {name!r} is deleted; `mlflow experiments restore -x {found.experiment_id}` "
            "brings it back, or set MLFLOW_EXPERIMENT_NAME"
        )
    _check_artifacts(uri, found)
    return str(found.experiment_id)


def _creator(uri: str) -> dict[str, str]:
    """Which machine made an experiment whose files may be on its own disk."""
    return {} if is_sqlite(uri) or uri.startswith(("http", "databricks")) else {"wordmill.host": socket.gethostname()}


def _check_artifacts(uri: str, experiment: "Experiment") -> None:
    place = experiment.artifact_location or ""
    name = experiment.name
    if is_sqlite(uri):
        sqlite_store.relocate(sqlite_path(uri), lambda line: print(line, file=sys.stderr, flush=True))
        if place.startswith("mlflow-artifacts:"):
            raise WordmillError(
                f"MLFLOW_TRACKING_URI: {uri}: experiment {name!r} keeps its files behind an MLflow server; "
                "name that server, as http://host:port, or another experiment by MLFLOW_EXPERIMENT_NAME"
            )
    elif not uri.startswith(("http", "databricks")) and (folder := sqlite_store.local_path(place)):
        made_on = experiment.tags.get("wordmill.host", "another machine")
        if made_on == socket.gethostname():
            return
        told = f"{without_secrets(uri)}: experiment {name!r} keeps its files in {folder} on the disk of {made_on}"
        hint = "use a folder that all machines share: `mlflow experiments create --artifact-location`"
        if not folder.is_dir():
            raise WordmillError(f"MLFLOW_TRACKING_URI: {told}; {hint}, and name it by MLFLOW_EXPERIMENT_NAME")
        print(f"warning: {told}, if that is no shared one; {hint}", file=sys.stderr, flush=True)


def check_shared_disk(client: "MlflowClient", uri: str, run: "Run") -> None:
    """Raises WordmillError where a server's runs keep files in a local folder, which is another here than there.

    MLflow's client writes such files to the disk of the machine that it runs on, and says nothing.
    """
    run_id, folder = run.info.run_id, sqlite_store.local_path(run.info.artifact_uri)
    if not uri.startswith("http") or not folder:
        return
    problem = "this machine cannot write there"
    try:
        client.log_text(run_id, "Does the server see what this machine writes?\n", PROBE)
        if PROBE in _listed_by_server(client, run_id):
            return
        problem = "the server does not see what this machine writes there"
    except OSError:
        pass
    finally:
        (folder / PROBE).unlink(missing_ok=True)
    client.set_terminated(run_id, "FAILED")
    raise WordmillError(
        f"MLFLOW_TRACKING_URI: {without_secrets(uri)}: the runs of this experiment keep their files in {folder}, and "
        f"{problem}; name another experiment by MLFLOW_EXPERIMENT_NAME, "
        "and start the server with --artifacts-destination"
    )


def _listed_by_server(client: "MlflowClient", run_id: str) -> set[str]:
    """The files of a run as the server sees them; the client itself would look at its own disk."""
    from mlflow.utils.rest_utils import http_request

    credentials = client._tracking_client.store.get_host_creds()
    answer = http_request(credentials, "/api/2.0/mlflow/artifacts/list", "GET", params={"run_id": run_id})
    return {entry["path"] for entry in answer.json().get("files", ())}
