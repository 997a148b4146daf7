"""MLflow's SQLite database: made whole or not at all, and brought along when its checkout moves.

MLflow makes its tables by some fifty migrations, each a transaction of its own. A process that is killed among them
leaves half a schema, which MLflow can neither use nor finish. So a new database is made under another name and renamed
when it is whole. MLflow's own programs may still leave a half-made one. Where that holds no runs, it is set aside and
made anew.

The database holds the absolute paths of the runs' files. When it lies in another folder than before, the paths are
changed to those of the files that came along.
"""

import contextlib
import logging
import os
import re
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from filelock import FileLock

from llm.errors import WordmillError
from stages.tracking_uri import is_sqlite, sqlite_path

ARTIFACTS = "mlartifacts"  # the folder of the runs' files beside the database
CONTENTS = ("runs", "registered_models", "logged_models")  # tables whose rows somebody would miss
FIRST_TABLES = {"experiments", "runs", "metrics", "params"}  # MLflow's oldest
SETTLED_SECONDS = 10.0  # a half-made database that nobody has written to for so long is nobody's work any more
# Columns that say where a run's or a model's files are.
PLACES = (
    ("runs", "artifact_uri"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
    ("logged_models", "artifact_location"),
)


def preparation(uri: str) -> Callable[[], None] | None:
    """What must be done before MLflow can open the store at `uri`: making its database; None if nothing must be.

    Raises WordmillError for a database with runs that another version of MLflow has made.
    """
    if not is_sqlite(uri):
        return None
    path = sqlite_path(uri)
    try:
        if path.exists() and path.stat().st_size:
            version, filled = _schema(path)
            if version == _newest_schema():
                return None
            if filled:
                found = f"has schema {version}" if version else "holds tables of another program"
                raise WordmillError(
                    f"MLFLOW_TRACKING_URI: {path}: {found} and this version of MLflow needs schema {_newest_schema()}; "
                    f"copy the file and run `mlflow db upgrade {uri}`, or name another database"
                )
    except sqlite3.Error:
        return None  # no database, or in use: MLflow says so when it opens it
    return lambda: _make(path)


def _newest_schema() -> str:
    from mlflow.store.db.utils import _get_latest_schema_revision

    return str(_get_latest_schema_revision())


def _schema(path: Path) -> tuple[str, bool]:
    """The version of the schema, empty where there is none, and whether the database holds what somebody would miss."""
    with _opened(path) as database:
        tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        version = ""
        if "alembic_version" in tables and (row := database.execute("SELECT * FROM alembic_version").fetchone()):
            version = str(row[0])
        filled = any(
            database.execute(f"SELECT 1 FROM {name} LIMIT 1").fetchone() for name in CONTENTS if name in tables
        )
        if "experiments" in tables:  # MLflow itself makes one, named Default
            filled |= database.execute("SELECT count(*) FROM experiments").fetchone()[0] > 1
        others = {name for name in tables - {"alembic_version"} if not name.startswith("_alembic_tmp_")}
        return version, filled or bool(others and not others & FIRST_TABLES)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=30)) as database:
        yield database


def _make(path: Path) -> None:
    with FileLock(path.with_name(f"{path.name}.lock")):
        if preparation(f"sqlite:///{path}") is None:  # another process was faster
            return
        if path.exists() and path.stat().st_size:
            if not _is_abandoned(path):
                return
            aside = path.with_name(f"{path.name}.half-made-{time.strftime('%Y%m%d-%H%M%S')}")
            path.rename(aside)
            for rest in _beside(path):
                rest.unlink(missing_ok=True)
            print(f"{path}: was half made and held no runs; made anew, the old file is {aside.name}", file=sys.stderr)
        making = path.with_name(f"{path.name}.making")
        for rest in (making, *_beside(making)):  # of a process that was killed
            rest.unlink(missing_ok=True)
        _make_tables(making, path.parent / ARTIFACTS)
        with making.open("rb") as file:
            os.fsync(file.fileno())
        making.replace(path)


def _beside(path: Path) -> list[Path]:
    return [path.with_name(path.name + ending) for ending in ("-journal", "-wal", "-shm")]


def _make_tables(path: Path, artifacts: Path) -> None:
    logging.getLogger("alembic").setLevel(logging.WARNING)
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    store = SqlAlchemyStore(f"sqlite:///{path}", artifacts.as_uri())
    store.engine.dispose()


def _is_abandoned(path: Path) -> bool:
    """Wait until a half-made database is whole, which is False, or nobody has written to it for a while."""
    seen, since = -1, time.monotonic()
    while time.monotonic() - since < SETTLED_SECONDS:
        if preparation(f"sqlite:///{path}") is None:
            return False
        written = max(part.stat().st_mtime_ns for part in (path, *_beside(path)) if part.exists())
        if written != seen:
            seen, since = written, time.monotonic()
        time.sleep(0.2)
    return True


def local_path(place: str) -> Path | None:
    """The folder that an artifact location on a local disk names; None for any other location."""
    parts = urlsplit(place)
    if parts.scheme == "file":
        return Path(url2pathname(parts.path))
    return Path(place) if place and not parts.scheme else None


def relocate(path: Path, tell: Callable[[str], None]) -> None:
    """If the database lies in another folder than when its runs were made, change the places of their files.

    New runs go into the folder beside it. Old runs whose files came along are found there; those of others stay where
    they are.
    """
    if not path.exists():
        return
    try:
        with _opened(path) as database:
            for root in _former_roots(path, database):
                with database:
                    database.execute("BEGIN IMMEDIATE")
                    moved, left = _change_places(database, root, path.parent / ARTIFACTS)
                if moved or left:
                    tell(
                        f"{path.name} was in {root.parent} before: new files go to {path.parent / ARTIFACTS}; "
                        f"{moved} places of old ones were changed to it, {left} stay as they were"
                    )
    except sqlite3.Error as error:
        raise WordmillError(f"{path}: the places of its runs' files cannot be changed: {error}") from None


def _former_roots(path: Path, database: sqlite3.Connection) -> set[Path]:
    """Folders of files beside which the database has been, and is no more."""
    tables = database.execute("SELECT 1 FROM sqlite_master WHERE name = 'experiments'").fetchone()
    places = database.execute("SELECT artifact_location FROM experiments").fetchall() if tables else []
    found = set()
    for (place,) in places:
        root = _root(place or "")
        if root is None or root == path.parent / ARTIFACTS:
            continue
        if root.exists():
            own = path.parent / ARTIFACTS
            if (own.exists() and own.samefile(root)) or not (root.parent / path.name).exists():
                continue  # the same folder by another name, or one that somebody chose
        found.add(root)
    return found


def _root(place: str) -> Path | None:
    found = re.match(rf"(.*/{ARTIFACTS})(?:/.*)?$", place)
    return local_path(found[1]) if found else None


def _change_places(database: sqlite3.Connection, old: Path, new: Path) -> tuple[int, int]:
    """How many places of runs and models were changed, and how many were left since nothing is at the new one."""
    counts = {True: 0, False: 0}
    for table, column in (("experiments", "artifact_location"), *PLACES):
        for number, place in database.execute(f"SELECT rowid, {column} FROM {table}").fetchall():
            if not place or _root(place) != old:
                continue
            rest = re.match(rf".*/{ARTIFACTS}(/.*)?$", place)[1] or ""  # type: ignore[index]
            changed = (new.as_uri() if place.startswith("file:") else str(new)) + rest
            if table != "experiments":
                target = local_path(changed)
                counts[is_there := bool(target and target.exists())] += 1
                if not is_there:
                    continue
            database.execute(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", (changed, number))
    return counts[True], counts[False]
