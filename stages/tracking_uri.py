"""Where MLflow's runs are kept: MLFLOW_TRACKING_URI, or a database in the working directory."""

import os
from pathlib import Path
from urllib.parse import urlsplit

from llm.errors import WordmillError

DATABASE = Path("mlflow.db")
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


def is_sqlite(uri: str) -> bool:
    return uri.startswith("sqlite")


def sqlite_path(uri: str) -> Path:
    """The database file of a `sqlite:///…` address."""
    return Path(urlsplit(uri).path.removeprefix("/") or DATABASE)


def without_secrets(uri: str) -> str:
    """The address as it may appear in a log: no password, no query."""
    parts = urlsplit(uri)
    place = parts.netloc.rpartition("@")[2]
    user = f"{parts.username}@" if parts.username else ""
    return parts._replace(netloc=user + place, query="").geturl()
