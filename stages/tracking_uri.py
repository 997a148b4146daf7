"""Where MLflow's runs are kept, and what is wrong with that place when it fails.

The place is MLFLOW_TRACKING_URI, or a database in the working directory. A place that is wrongly set up is the user's
mistake; one that is down is not.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from llm.errors import WordmillError
from stages.mailbox import Unavailable

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXPERIMENT = "wordmill"
DATABASE = Path("mlflow.db")
KIND = {"mlflow.experimentKind": "custom_model_development"}  # of an experiment: opens among the runs, not the chats
PAGES = "workflowType=machine_learning"  # without it MLflow shows its pages for chats around a run
SCHEMES = ("sqlite", "http", "https", "postgresql", "mysql", "mssql", "databricks")


def tracking_uri() -> str:
    """The address of the tracking store. Raises WordmillError for one that cannot work, before anything runs."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{DATABASE.absolute()}"
    parts = urlsplit(uri)
    scheme = parts.scheme.partition("+")[0]
    if uri != "databricks" and scheme not in SCHEMES:
        hint = "MLflow has given up plain folders; " if scheme in ("", "file") else ""
        raise WordmillError(
            f"MLFLOW_TRACKING_URI: {uri!r} is no tracking store; "
            f"{hint}use sqlite:///path/to/mlflow.db or http://host:port"
        )
    if scheme.startswith("http") and not parts.hostname:
        raise WordmillError(f"MLFLOW_TRACKING_URI: {uri!r} names no host; use http://host:port")
    if is_sqlite(uri) and not (folder := sqlite_path(uri).parent).is_dir():
        raise WordmillError(f"MLFLOW_TRACKING_URI: the folder {folder} does not exist; make it, or change the address")
    return uri


def experiment_name() -> str:
    """The experiment that the runs are in."""
    return os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT


def client(uri: str) -> "MlflowClient":
    """MLflow's client: quiet, and soon done with a server that does not answer. Call it within `reachable`."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")  # seconds
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def experiment_id(client: "MlflowClient", uri: str, name: str) -> str:
    """The experiment of this name, made if there is none. Raises WordmillError for a deleted one."""
    found = client.get_experiment_by_name(name)
    if found is None:
        folder = None  # the server's own
        if is_sqlite(uri):
            folder = (sqlite_path(uri).absolute().parent / "mlartifacts").as_uri()
        return str(client.create_experiment(name, artifact_location=folder, tags=KIND))
    if found.lifecycle_stage == "deleted":
        raise WordmillError(
            f"MLflow experiment {name!r} is deleted; `mlflow experiments restore -x {found.experiment_id}` "
            "brings it back, or set MLFLOW_EXPERIMENT_NAME"
        )
    return str(found.experiment_id)


def is_sqlite(uri: str) -> bool:
    return uri.startswith("sqlite")


def is_local(uri: str) -> bool:
    """Whether the store is a database that this machine opens itself, and no server with pages of its own."""
    return not uri.startswith(("http", "databricks"))


def sqlite_path(uri: str) -> Path:
    """The database file of a `sqlite:///…` address."""
    return Path(urlsplit(uri).path.removeprefix("/") or DATABASE)


def without_secrets(uri: str) -> str:
    """The address as it may appear in a log: no password, no query."""
    if is_sqlite(uri):
        return uri
    parts = urlsplit(uri)
    place = parts.netloc.rpartition("@")[2]
    user = f"{parts.username}@" if parts.username else ""
    return parts._replace(netloc=user + place, query="").geturl()


@contextmanager
def reachable(uri: str, starting: bool = False) -> Iterator[None]:
    """Tell a store that is down (Unavailable) from one that is wrongly set up (WordmillError, at the start only)."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:
        line = " ".join(str(error).split())[:300].replace(uri, without_secrets(uri))
        if is_sqlite(uri):
            wrong = "locked" not in line and "full" not in line
        else:
            wrong = isinstance(error, MlflowException) and error.get_http_status_code() in (401, 403, 404)
        if starting and wrong:
            raise WordmillError(f"MLFLOW_TRACKING_URI: {without_secrets(uri)}: {line}") from None
        raise Unavailable(f"{without_secrets(uri)}: {line}") from None
