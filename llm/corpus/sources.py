"""Where documents come from: a table by name. A new source is one function here or in a file of its own, and one line.

A source is given the configuration and a scratch folder (for what must survive a kill) and answers with its units,
in order, and what is known about it as a whole.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from llm.corpus import files, hub, url
from llm.corpus.config import CorpusConfig
from llm.corpus.files import Unit
from llm.corpus.normalise import Document

STORIES_IN_UNIT = 5_000


class Source(NamedTuple):
    """What a source offers."""

    units: list[Unit]
    revision: str | None = None  # the version that was read, where the source has versions
    licence: str | None = None  # where the source says
    downloads: dict[str, str] | None = None  # addresses and the SHA-256 of what came, where files were downloaded


def _stories(config: CorpusConfig, scratch: Path) -> Source:
    starts = range(0, config.documents, STORIES_IN_UNIT)
    return Source([Unit(f"stories {config.seed} from {start}", partial(_block, config, start)) for start in starts])


def _block(config: CorpusConfig, start: int) -> Iterator[Document]:
    from llm.corpus.stories import story  # only here: the other sources do without it

    for index in range(start, min(start + STORIES_IN_UNIT, config.documents)):
        yield Document(story(config.seed, index), "stories")


def _files(config: CorpusConfig, scratch: Path) -> Source:
    return Source(files.units(config, scratch))


def _url(config: CorpusConfig, scratch: Path) -> Source:
    units = url.units(config, scratch)
    return Source(units, downloads=dict(unit.name.rsplit(" ", 1) for unit in units))


def _hub(config: CorpusConfig, scratch: Path) -> Source:
    found = hub.open_dataset(config, scratch)
    return Source(found.units, config.revision or None, found.licence)


SOURCES: dict[str, Callable[[CorpusConfig, Path], Source]] = {
    "stories": _stories,
    "files": _files,
    "url": _url,
    "hub": _hub,
}
