"""The address of the store that MLflow's runs are kept in: MLFLOW_TRACKING_URI, or a database in the checkout.

Every module that imports MLflow imports this one before: it turns MLflow's telemetry off. MLflow starts it while it is
imported.
"""

import os
from pathlib import Path
from urllib.parse import urlsplit

from llm.errors import WordmillError

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
# MLflow reads these while it is imported, too: quiet, and soon done with a server that does not answer.
for _name, _value in {
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",  # seconds
    "MLFLOW_LOGGING_LEVEL": "WARNING",
}.items():
    os.environ.setdefault(_name, _value)

EXPERIMENT = "wordmill"
DATABASE = Path("mlflow.db")
PAGES = "workflowType=machine_learning"  # without it MLflow shows its pages for chats around a run
SCHEMES = ("sqlite", "http", "https", "postgresql", "mysql", "mssql", "databricks")
TEMPORARY_CHECKOUTS = (".dvc", "tmp", "exps")  # DVC runs queued experiments in there, and removes them


def tracking_uri() -> str:
    """The address of the tracking store, a database's path made absolute.

    Raises WordmillError for one that cannot work, before anything runs.
    """
    return _checked("MLFLOW_TRACKING_URI", os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{DATABASE}")


def environment() -> dict[str, str]:
    """The same store for a process that works in another folder, as environment variables."""
    names = {"MLFLOW_TRACKING_URI": tracking_uri(), "MLFLOW_EXPERIMENT_NAME": experiment_name()}
    if registry := os.environ.get("MLFLOW_REGISTRY_URI"):
        names["MLFLOW_REGISTRY_URI"] = _checked("MLFLOW_REGISTRY_URI", registry)
    return names


def experiment_name() -> str:
    """The experiment that the runs are in."""
    return os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT


def _checked(variable: str, uri: str) -> str:
    shown = without_secrets(uri)
    try:
        parts = urlsplit(uri)
        host = parts.hostname
        _ = parts.port
    except ValueError as error:
        raise WordmillError(f"{variable}: {uri!r} is no address: {error}; use http://host:port") from None
    scheme = parts.scheme.partition("+")[0]
    if uri != "databricks" and scheme not in SCHEMES:
        hint = "MLflow has given up plain folders; " if scheme in ("", "file") else ""
        raise WordmillError(
            f"{variable}: {shown!r} is no tracking store; {hint}use sqlite:///path/to/mlflow.db or http://host:port"
        )
    if scheme.startswith("http") and not host:
        raise WordmillError(f"{variable}: {shown!r} names no host; use http://host:port")
    return _absolute(variable, uri) if is_sqlite(uri) else uri


def _absolute(variable: str, uri: str) -> str:
    """A database's address that means the same in every folder. Raises WordmillError."""
    path = sqlite_path(uri)
    if str(path) in (".", ":memory:") or str(path).startswith("file:"):
        raise WordmillError(f"{variable}: {uri!r} names no file; use sqlite:///path/to/mlflow.db")
    path = checkout() / path
    if "?" in str(path):
        raise WordmillError(
            f"{variable}: {path}: a database's address cannot hold a question mark; "
            "rename the folder, or put the database elsewhere by sqlite:///path/to/mlflow.db"
        )
    if not path.parent.is_dir():
        raise WordmillError(f"{variable}: the folder {path.parent} does not exist; make it, or change the address")
    driver, _, rest = uri.partition(":///")
    query = rest.partition("?")[2]
    return f"{driver}:///{path}" + (f"?{query}" if query else "")


def checkout() -> Path:
    """The checkout that this process works in; of a queued DVC experiment, the one it was queued in."""
    here = Path.cwd()
    for folder in here.parents:
        if folder.parts[-len(TEMPORARY_CHECKOUTS) :] == TEMPORARY_CHECKOUTS:
            return folder.parents[len(TEMPORARY_CHECKOUTS) - 1]
    return here


def is_sqlite(uri: str) -> bool:
    return uri.startswith("sqlite")


def is_local(uri: str) -> bool:
    """Whether the store is a database that this machine opens itself, and no server with pages of its own."""
    return not uri.startswith(("http", "databricks"))


def sqlite_path(uri: str) -> Path:
    """The database file of a `sqlite:///…` address, which is no URL: `#` and `%` stand for themselves."""
    return Path(uri.partition(":///")[2].partition("?")[0])


def without_secrets(uri: str) -> str:
    """The address as it may appear in a log: no password, no query."""
    if is_sqlite(uri):
        return uri
    try:
        parts = urlsplit(uri)
    except ValueError:
        return uri.rpartition("@")[2]
    place = parts.netloc.rpartition("@")[2]
    user = f"{parts.username}@" if parts.username else ""
    return parts._replace(netloc=user + place, query="").geturl()
