"""Data sets of the Hugging Face hub, streamed file by file; nothing is downloaded whole.

The `datasets` library finds the files. Files of the kinds that `files.py` reads are read by its readers, which bound
what a record may take; others, and those that the data set's card gives options for, by the library.

The revision is a commit, so the same settings always read the same files, in the same order. A unit is one data file:
a kill resumes at the file where it came. A folder on this machine in the hub's layout (Parquet, JSON lines … with an
optional README.md that names subsets) goes the same way.

Before anything else one question is asked of the hub, with a short time limit: does it know this data set and this
commit? Offline, that gives one clear line within seconds, where the library alone would try for half a minute. Code
that comes with a data set is never run, and the library's telemetry is off.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from llm.corpus.addresses import shown
from llm.corpus.config import PLAIN, CorpusConfig, kind
from llm.corpus.files import Unit, documents_of, good_rows, records, source_name, text_lines
from llm.corpus.normalise import Document
from llm.corpus.parquet_records import text_size
from llm.corpus.records import BadRow, DataFile, Row, too_long
from llm.corpus.tables import DELIMITERS
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


class _Found(NamedTuple):
    """As `Rows`, rows that cannot be read among them."""

    files: list[Callable[[], Iterator[Row | BadRow]]]
    names: list[str]
    versions: list[str]
    licence: str | None


def open_dataset(config: CorpusConfig, scratch: Path) -> Dataset:
    """The data files of `config.dataset` at `config.revision` as documents. Raises WordmillError."""
    found = _find(config, scratch)
    units = [
        Unit(f"{name} {version}", partial(_documents, rows, name, config))
        for rows, name, version in zip(found.files, found.names, found.versions, strict=True)
    ]
    return Dataset(units, found.licence)


def _documents(
    rows: Callable[[], Iterator[Row | BadRow]], source: str, config: CorpusConfig
) -> Iterator[Document | BadRow]:
    return documents_of(rows(), source, config)


def open_rows(config: CorpusConfig, scratch: Path) -> Rows:
    """Find the data files of `config.dataset` at `config.revision`. Raises WordmillError."""
    found = _find(config, scratch)
    return Rows([lambda rows=rows: good_rows(rows()) for rows in found.files], *found[1:])  # type: ignore[misc]


def _find(config: CorpusConfig, scratch: Path) -> _Found:
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
        files: list[Callable[[], Iterator[Row | BadRow]]]
        if all(_is_ours(name, builder.config) for name in names):
            files = [partial(_read, name, config, scratch) for name in names]
        else:
            stream = datasets.load_dataset(**place, split=config.dataset_split, streaming=True)
            if stream.num_shards != len(names):
                raise WordmillError(
                    f"{where}: {len(names)} files read as {stream.num_shards} streams; use another format"
                )
            files = [partial(_stream, stream, len(names), index, name, config) for index, name in enumerate(names)]
    except _troubles() as error:
        if isinstance(error, WordmillError):
            raise
        raise WordmillError(f"{where}: {_line(error)}") from None
    return _Found(files, [_short(name, config) for name in names], [_version(name, config) for name in names], licence)


def _version(name: str, config: CorpusConfig) -> str:
    """What changes with a file's content: the commit, or the time of a local file."""
    if config.revision or not Path(name).exists():
        return config.revision
    stat = Path(name).stat()
    return f"{stat.st_size} {stat.st_mtime_ns}"


def _is_ours(name: str, options: Any) -> bool:
    """Whether our own readers, which bound a record's length, read a file as the library would.

    Not with options in the data set's card, and not inside an archive.
    """
    suffix, _ = kind(name.rpartition("/")[2]) or ("", "")
    if not suffix or "::" in name:
        return False
    usual = type(options)()
    given = {
        field.name
        for field in fields(options)
        if field.name not in ("name", "version", "data_dir", "data_files", "description")
        and getattr(options, field.name) != getattr(usual, field.name)
    }
    return not given or (given == {"sep"} and options.sep == DELIMITERS.get(suffix))


def _read(name: str, config: CorpusConfig, scratch: Path) -> Iterator[Row | BadRow]:
    """The records of one data file, read here."""
    import fsspec

    short = _short(name, config)
    path = Path(name) if Path(name).exists() else None

    def trouble(name: str, error: Exception) -> WordmillError:
        kind = TransientError if _is_passing(error) else WordmillError
        return kind(f"data set {config.dataset}: {name}: {_line(error)}; the next run goes on at this file")

    def opened() -> BinaryIO:
        return path.open("rb") if path else fsspec.open(name, "rb").open()

    file = DataFile(short, opened, path, trouble)
    limit = config.max_document_bytes
    with file.trouble_named(_troubles()):
        if (kind(short) or ("", ""))[0] in PLAIN:
            yield from text_lines(file, limit)
        else:
            yield from records(file, scratch, "", limit)


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


def _stream(stream: Any, count: int, index: int, name: str, config: CorpusConfig) -> Iterator[Row | BadRow]:
    """The records of one data file, read by the library."""
    source = _short(name, config)
    row = 0
    try:
        for values in stream.shard(num_shards=count, index=index):
            row += 1
            where = f"{source} row {row}"
            size = text_size(values, config.max_document_bytes)
            yield (
                Row(values, where) if size <= config.max_document_bytes else too_long(where, config.max_document_bytes)
            )
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
    if not config.dataset_is_local:
        return name.partition(f"@{config.revision}/")[2] or shown(name)
    if "://" in name:
        return shown(name)  # which the data set's README.md names
    # Links are not followed: the files of a hub's cache are links to files without an ending.
    for path, folder in ((Path(name), Path(config.dataset)), (Path(name).resolve(), Path(config.dataset).resolve())):
        if path.absolute().is_relative_to(folder.absolute()):
            return source_name(path.absolute().relative_to(folder.absolute()))
    return source_name(Path(Path(name).name))


def _line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
