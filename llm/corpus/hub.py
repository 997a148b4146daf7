"""Data sets of the Hugging Face hub, streamed file by file by the `datasets` library; nothing is downloaded whole.

The revision is a commit, so the same settings always read the same files, in the same order. A unit is one data file:
a kill resumes at the file where it came. A folder on this machine in the hub's layout (Parquet, JSON lines … with an
optional README.md that names subsets) goes the same way.

Before anything else one question is asked of the hub, with a short time limit: does it know this data set and this
commit? Offline, that gives one clear line within seconds, where the library alone would try for half a minute. Code
that comes with a data set is never run, and the library's telemetry is off.
"""

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from llm.corpus.config import CorpusConfig
from llm.corpus.files import Row, Unit, field_text
from llm.corpus.normalise import Document
from llm.errors import TransientError, WordmillError

PATIENCE = 8.0  # seconds for the hub's first answer


class Rows(NamedTuple):
    """The data files of one split of a data set: their records, each file's name and version."""

    files: list[Callable[[], Iterator[Row]]]
    names: list[str]
    versions: list[str]
    licence: str | None


class Dataset(NamedTuple):
    """The data files of one split of a data set, as units."""

    units: list[Unit]
    licence: str | None


def open_dataset(config: CorpusConfig, scratch: Path) -> Dataset:
    """The data files of `config.dataset` at `config.revision` as documents. Raises WordmillError."""
    found = open_rows(config, scratch)

    def documents(rows: Callable[[], Iterator[Row]], source: str) -> Iterator[Document]:
        for row in rows():
            yield Document(field_text(row.values, config.text_field, row.where), source)

    units = [
        Unit(f"{name} {version}", partial(documents, rows, name))
        for rows, name, version in zip(found.files, found.names, found.versions, strict=True)
    ]
    return Dataset(units, found.licence)


def open_rows(config: CorpusConfig, scratch: Path) -> Rows:
    """Find the data files of `config.dataset` at `config.revision`. Raises WordmillError."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    where = f"data set {config.dataset}"
    if config.dataset_is_local:
        if not Path(config.dataset).is_dir():
            raise WordmillError(f"{where}: no such folder")
        licence = None
    else:
        licence = _ask_hub(config, where)

    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    place: dict[str, Any] = {
        "path": config.dataset,
        "name": config.dataset_config or None,
        "revision": config.revision or None,
        "cache_dir": str(scratch / "hub"),
    }
    try:
        builder = datasets.load_dataset_builder(**place)
        known = builder.config.data_files or {}
        if config.dataset_split not in known:
            raise WordmillError(
                f"{where}: no split {config.dataset_split!r}; it has {', '.join(map(str, known)) or 'none'}"
            )
        names = [str(name) for name in known[config.dataset_split]]
        stream = datasets.load_dataset(**place, split=config.dataset_split, streaming=True)
    except _troubles() as error:
        if isinstance(error, WordmillError):
            raise
        raise WordmillError(f"{where}: {_line(error)}") from None
    if stream.num_shards != len(names):
        raise WordmillError(f"{where}: {len(names)} files read as {stream.num_shards} streams; use another format")
    files: list[Callable[[], Iterator[Row]]] = []
    versions = []
    for index, name in enumerate(names):
        version = f"{Path(name).stat().st_size} {Path(name).stat().st_mtime_ns}" if config.dataset_is_local else ""
        versions.append(config.revision or version)
        files.append(partial(_rows, stream, len(names), index, _short(name, config), config))
    return Rows(files, [_short(name, config) for name in names], versions, licence)


def _ask_hub(config: CorpusConfig, where: str) -> str | None:
    """Does the hub know this commit of the data set? Gives the licence its card states. Raises WordmillError."""
    from huggingface_hub import HfApi
    from huggingface_hub import errors as hub_errors

    try:
        info = HfApi().dataset_info(config.dataset, revision=config.revision, timeout=PATIENCE)
    except hub_errors.RevisionNotFoundError:
        raise WordmillError(f"{where}: has no commit {config.revision}; correct the revision") from None
    except hub_errors.GatedRepoError:
        raise WordmillError(f"{where}: access is granted on its page; ask there, then `hf auth login`") from None
    except hub_errors.RepositoryNotFoundError:
        raise WordmillError(f"{where}: unknown to the hub or private; correct the name, or `hf auth login`") from None
    except hub_errors.OfflineModeIsEnabled:
        raise WordmillError(
            f"{where}: HF_HUB_OFFLINE is set; unset it, or use corpus.source stories or files"
        ) from None
    except _troubles() as error:
        raise (TransientError if _is_passing(error) else WordmillError)(
            f"{where}: the hub cannot be reached ({_line(error)}); go online, or use corpus.source stories or files"
        ) from None
    licence = info.card_data.get("license") if info.card_data else None
    return ", ".join(map(str, licence)) if isinstance(licence, list) else licence


def _rows(stream: Any, count: int, index: int, source: str, config: CorpusConfig) -> Iterator[Row]:
    """The records of one data file."""
    row = 0
    try:
        for values in stream.shard(num_shards=count, index=index):
            row += 1
            yield Row(values, f"{source} row {row}")
    except _troubles() as error:
        raise (TransientError if _is_passing(error) else WordmillError)(
            f"data set {config.dataset}: {source} after row {row}: {_line(error)}; the next run goes on at this file"
        ) from None


def _troubles() -> tuple[type[Exception], ...]:
    """What the two libraries raise for a data set that cannot be read or a hub that cannot be reached."""
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import HfHubHTTPError, HTTPError

    return (OSError, ValueError, RuntimeError, DatasetsError, HfHubHTTPError, HTTPError)


def _is_passing(error: Exception) -> bool:
    """Whether the network or a busy hub is to blame."""
    from huggingface_hub.errors import HfHubHTTPError, HTTPError

    if isinstance(error, HfHubHTTPError):
        return error.response.status_code == 429 or error.response.status_code >= 500
    return isinstance(error, HTTPError | ConnectionError | TimeoutError)


def _short(name: str, config: CorpusConfig) -> str:
    """The file's path inside the data set: no host, no folder of this machine."""
    if config.dataset_is_local:
        return Path(name).resolve().relative_to(Path(config.dataset).resolve()).as_posix()
    return name.partition(f"@{config.revision}/")[2] or name


def _line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
