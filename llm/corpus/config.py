"""Which documents make the corpus, and how they are split."""

import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from llm.corpus import addresses
from llm.errors import ConfigError
from llm.limits import SEED, check_limits

PLAIN = (".txt", ".md")  # files of text
LINES = (".jsonl", ".ndjson")  # files of records
TABLES = (".csv", ".tsv")
PAIRS = (*LINES, ".json", ".parquet")  # of records that may have lists in them
RECORDS = (*PAIRS, *TABLES)
KINDS = (*PLAIN, *RECORDS)  # what a file may hold
PACKINGS = (".gz", ".zst", ".bz2", ".xz")  # what may be around it
MAX_DOCUMENT = 1 << 28  # bytes of one document or record, unless set otherwise
MAX_DOWNLOAD = 100_000_000_000  # bytes of one downloaded file, unless set otherwise
MOST_STORIES = 1_000_000_000
LIMITS = {"documents": (0, 1_000_000_000_000), "seed": SEED}
UNVERIFIED = "unverified"  # in the place of a SHA-256: what comes is taken as it is, and its digest is recorded


@dataclass(frozen=True)
class CorpusConfig:
    """Fields that the chosen source does not read are still checked for their form. Raises ConfigError."""

    source: Literal["stories", "files", "url", "hub"] = "stories"
    seed: int = 1  # stories: story i is a function of (seed, i)
    documents: int = 30_000  # stop after so many kept documents; 0 = all of them (stories have no end: a number)
    max_bytes: int = 0  # stop before the kept text (UTF-8, normalised) passes so many bytes; 0 = no limit
    paths: tuple[str, ...] = ()  # files: paths and globs, relative to the working folder
    text_field: str = "text"  # JSON and Parquet: the field that holds the text; a.b reaches into structs
    split_text: Literal["file", "blank_lines", "line", "separator"] = "file"  # how plain text falls into documents
    separator: str = "<|endoftext|>"  # what stands between documents where split_text is "separator"
    max_document_bytes: int = MAX_DOCUMENT  # a longer document or record is a bad row
    bad_rows: Literal["error", "skip"] = "error"  # skip: leave out rows that cannot be read, count and show them
    urls: tuple[str, ...] = ()  # url: what to download, http or https
    sha256: tuple[str, ...] = ()  # url: one for each of `urls`, or UNVERIFIED
    max_download_bytes: int = MAX_DOWNLOAD  # url: a longer file is refused; 0 = no limit
    dataset: str = ""  # hub: owner/name, or a local folder in the hub's layout (starts with / or .)
    dataset_config: str = ""  # hub: subset, such as sample-10BT; empty = the data set's default
    dataset_split: str = "train"  # hub: which of the data set's own splits is read (it is split anew here)
    revision: str = ""  # hub: the commit, 40 hex digits; empty for a local folder
    val_share: float = 0.05  # of the documents; of the characters where the corpus is one long text
    test_share: float = 0.05

    def __post_init__(self) -> None:
        for name in ("documents", "max_bytes", "max_download_bytes", "seed"):
            if getattr(self, name) < 0:
                raise ConfigError(name, f"{getattr(self, name)} is negative")
        if not 1 <= self.max_document_bytes <= 1 << 30:
            raise ConfigError(
                "max_document_bytes", f"{self.max_document_bytes} is outside [1, {1 << 30}]; {MAX_DOCUMENT} is usual"
            )
        check_limits(self, LIMITS)
        for name in ("val_share", "test_share"):
            if not 0 < getattr(self, name) <= 0.4:
                raise ConfigError(name, f"{getattr(self, name)} is outside (0, 0.4]; 0.05 is usual")
        for name in ("text_field", "separator", "dataset_split"):
            if not getattr(self, name):
                raise ConfigError(name, "is empty")
        if re.search(r"[\[\]+%]", self.dataset_split):
            raise ConfigError(
                "dataset_split", f"{self.dataset_split!r} is a slice; name a split, and limit it by `documents`"
            )
        if self.source == "stories" and not self.documents:
            raise ConfigError("documents", "0 stories; the generator has no end, so give a number, such as 30000")
        if self.source == "stories" and self.documents > MOST_STORIES:
            raise ConfigError("documents", f"{self.documents} is more than {MOST_STORIES:,}, the most for stories")
        if self.source == "files" and not self.paths:
            raise ConfigError("paths", "empty; name the files of the corpus, such as [data/raw/*.txt]")
        if self.source == "url":
            self._check_urls()
        if self.source == "hub":
            self._check_hub()

    @property
    def dataset_is_local(self) -> bool:
        """A path, rather than a name on the hub."""
        return self.dataset.startswith(("/", "."))

    def _check_urls(self) -> None:
        if not self.urls:
            raise ConfigError("urls", "empty; name what to download")
        for url in self.urls:
            if kind(addresses.check(url).path) is None:
                raise ConfigError("urls", f"{addresses.shown(url)!r} does not end in {endings()}")
        if len(self.sha256) != len(self.urls):
            raise ConfigError("sha256", f"{len(self.sha256)} given for {len(self.urls)} urls; each needs one")
        for digest in self.sha256:
            if digest != UNVERIFIED and not re.fullmatch(r"[0-9a-f]{64}", digest):
                raise ConfigError("sha256", f"{digest!r} is not 64 lower-case hex digits, nor {UNVERIFIED}")

    def _check_hub(self) -> None:
        if not self.dataset:
            raise ConfigError("dataset", "empty; name a data set, such as HuggingFaceFW/fineweb-edu")
        if self.dataset_is_local:
            if self.revision:
                raise ConfigError("revision", "a local folder has none; leave it empty")
            return
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", self.dataset):
            raise ConfigError("dataset", f"{self.dataset!r} is neither owner/name nor a path that starts with / or .")
        if not re.fullmatch(r"[0-9a-f]{40}", self.revision):
            raise ConfigError(
                "revision",
                f"{self.revision!r} is not a commit (40 hex digits); a branch moves, so copy the commit "
                f"from the data set's history on the hub",
            )


def kind(name: str) -> tuple[str, str] | None:
    """The ending of a file's name and of its packing, (".jsonl", ".gz") for a.jsonl.gz; None if not a known one."""
    suffixes = [suffix.lower() for suffix in PurePosixPath(name).suffixes]
    packing = suffixes.pop() if suffixes and suffixes[-1] in PACKINGS else ""
    return (suffixes[-1], packing) if suffixes and suffixes[-1] in KINDS else None


def endings(kinds: tuple[str, ...] = KINDS) -> str:
    """The known endings, for messages."""
    return f"{', '.join(kinds)} (or one of them and {' or '.join(PACKINGS)})"
