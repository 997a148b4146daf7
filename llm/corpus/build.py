"""From a source to the corpus on disk: normalise, drop empty and repeated documents, split, write, count.

Documents come as a stream and are never all in memory: what is kept per document is its 16-byte digest (about 100
bytes as a Python set holds it), besides the up to 64 MB of text of the part that each split is filling.

**Split.** By the document's digest (see `normalise`), so that equal text cannot be on two sides whatever the order.
Where that leaves a split empty, as it can with few documents, the empty split takes the document with the smallest
digest from the split that has the most (of equals the first of train, val, test), until none is empty: still a
function of the set of documents alone. A corpus of exactly one document is one long text, and is cut into contiguous
ranges instead: train first, then val, then test. Two documents are too few for either.

**Kills.** Finished parts stay in the scratch folder, and after a unit of the source (a file, a block of stories), at
most every few seconds, the unfinished ones are saved beside them and `state.json` is replaced in one step. The next
call with the same scratch folder goes on after the last unit saved there, and writes the very bytes that an unbroken
run would have written, since where a part ends depends only on the documents before. The corpus folder itself gets
whole splits by rename, and last the manifest.
"""

import hashlib
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

from llm.corpus import documents as store
from llm.corpus import normalise
from llm.corpus.config import CorpusConfig
from llm.corpus.documents import Row
from llm.corpus.files import source_name
from llm.corpus.normalise import SPLITS, Document
from llm.corpus.records import BadRow
from llm.corpus.sources import SOURCES, Source
from llm.errors import WordmillError
from llm.progress import progress, say

SAVE_SECONDS = 5.0  # at least between two saves of the state
SETTINGS = {  # what of the configuration matters to each source, for the manifest
    "stories": ("seed", "documents", "max_bytes"),
    "files": ("paths", "text_field", "split_text", "separator", "documents", "max_bytes"),
    "url": ("urls", "sha256", "text_field", "split_text", "separator", "documents", "max_bytes"),
    "hub": ("dataset", "dataset_config", "dataset_split", "text_field", "documents", "max_bytes"),
}
SPLIT_SETTINGS = ("val_share", "test_share")
SHOWN = 5  # rows that were left out, as examples


def build(config: CorpusConfig, folder: Path, scratch: Path, save_seconds: float = SAVE_SECONDS) -> dict[str, Any]:
    """Make the corpus in `folder`, with in-flight state in `scratch`; its manifest. Raises WordmillError."""
    scratch.mkdir(parents=True, exist_ok=True)
    source = SOURCES[config.source](config, scratch)
    corpus = _Corpus(config, scratch / "corpus")
    corpus.resume([unit.name for unit in source.units])
    _fill(corpus, source, save_seconds)
    _tell_left_out(corpus)
    _tell_limit(corpus, source)
    corpus.finish()
    manifest = corpus.manifest(source)
    _publish(corpus, manifest, folder)
    return manifest


def _fill(corpus: "_Corpus", source: Source, save_seconds: float) -> None:
    saved = time.monotonic()
    with progress(total=corpus.config.documents or None, unit="documents", label="corpus") as bar:
        bar.start_at(corpus.kept)
        for number, unit in enumerate(source.units):
            if number < len(corpus.units):
                continue
            bar.note(f"{number + 1} of {len(source.units)}: {unit.name.split(' ')[0]}")
            for document in unit.documents():
                if isinstance(document, BadRow):
                    corpus.leave_out(document)
                    continue
                before = corpus.kept
                if not corpus.add(document):
                    return
                bar.update(corpus.kept - before)
            corpus.units.append(unit.name)
            if time.monotonic() - saved >= save_seconds:
                corpus.save()
                saved = time.monotonic()


def _tell_left_out(corpus: "_Corpus") -> None:
    rows, first = corpus.left_out["rows"], corpus.left_out["first"]
    if rows:
        say(f"corpus: {rows:,} rows could not be read and are left out; the first {len(first)}:")
        for line in first:
            say(f"  {line}")


def _tell_limit(corpus: "_Corpus", source: Source) -> None:
    """Say what a limit leaves unread."""
    read, units = len(corpus.units), len(source.units)
    if read < units:
        place = source.units[read].name.split(" ")[0]
        config = corpus.config
        limit = "documents" if corpus.kept == config.documents > 0 else "max_bytes"
        say(
            f"corpus.{limit}: {getattr(config, limit):,} is reached in part {read + 1} of {units} ({place}); "
            f"the rest of it and {units - read - 1} further parts are not read"
        )


class _Corpus:
    """A corpus in the making: counts, the digests seen, finished parts, and the rows of the unfinished ones."""

    def __init__(self, config: CorpusConfig, folder: Path) -> None:
        self.config = config
        self.folder = folder
        self._clear()

    def _clear(self) -> None:
        self.units: list[str] = []  # names of the source's units that are done
        self.counts = {"duplicates": 0, "empty": 0, "invalid_utf8": 0}
        self.left_out: dict[str, Any] = {"rows": 0, "first": []}
        self.totals = {split: {"documents": 0, "bytes": 0, "characters": 0} for split in SPLITS}
        self.parts: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
        self.pending: dict[str, list[Row]] = {split: [] for split in SPLITS}
        self.pending_bytes = dict.fromkeys(SPLITS, 0)
        self.kept = 0  # documents, in all splits
        self.kept_bytes = 0  # of their text
        self.generation = 0  # of saves
        self.seen: set[bytes] = set()

    def leave_out(self, row: BadRow) -> None:
        """Count a row that cannot be read, as `bad_rows: skip` asks."""
        self.left_out["rows"] += 1
        if len(self.left_out["first"]) < SHOWN:
            self.left_out["first"].append(str(row.error))

    def add(self, document: Document) -> bool:
        """Take one document in; False if a limit was reached before it, and reading is over."""
        if self.kept == self.config.documents > 0:
            return False
        normal = normalise.normalise(document.text)
        if not normal.text.strip():
            self.counts["empty"] += 1
            return True
        digest = normalise.digest(normal.text)
        if digest in self.seen:
            self.counts["duplicates"] += 1
            return True
        limit = self.config.max_bytes
        if limit and self.kept_bytes + len(normal.text) > limit:
            if not self.seen:
                raise WordmillError(
                    f"corpus.max_bytes: {limit} is less than the first document ({len(normal.text)} bytes); raise it, "
                    f"or split plain text finer (corpus.split_text)"
                )
            return False
        self.seen.add(digest)
        self.counts["invalid_utf8"] += document.replaced + normal.replaced
        split = normalise.split_of(digest, self.config.val_share, self.config.test_share)
        self._put(split, Row(digest.hex(), normal.text, document.source), normal.characters)
        return True

    def _put(self, split: str, row: Row, characters: int) -> None:
        if self.pending_bytes[split] + len(row.text) > store.PART_BYTES:
            self._end_part(split)
        self.pending[split].append(row)
        self.pending_bytes[split] += len(row.text)
        self._count(split, row, characters, 1)

    def _count(self, split: str, row: Row, characters: int, sign: int) -> None:
        self.kept += sign
        self.kept_bytes += sign * len(row.text)
        total = self.totals[split]
        total["documents"] += sign
        total["bytes"] += sign * len(row.text)
        total["characters"] += sign * characters

    def _end_part(self, split: str) -> None:
        rows = self.pending[split]
        if not rows:
            return
        name = f"part-{len(self.parts[split]):05}.parquet"
        self.parts[split].append(self._write(split, name, rows))
        self.pending[split], self.pending_bytes[split] = [], 0

    def _write(self, split: str, name: str, rows: list[Row]) -> dict[str, Any]:
        (self.folder / split).mkdir(parents=True, exist_ok=True)
        sha256 = store.write_part(self.folder / split / name, rows)
        return {"name": name, "documents": len(rows), "bytes": sum(len(row.text) for row in rows), "sha256": sha256}

    # In-flight state.

    def save(self) -> None:
        """Make everything up to here survive a kill."""
        self.generation += 1
        pending = {}
        for split in SPLITS:
            if self.pending[split]:
                name = f"pending-{self.generation}-{split}.parquet"
                pending[split] = {"name": name, "sha256": store.write_part(self.folder / name, self.pending[split])}
        state = {
            "units": self.units,
            "counts": self.counts,
            "left_out": self.left_out,
            "totals": self.totals,
            "parts": self.parts,
            "pending": pending,
            "generation": self.generation,
        }
        half = self.folder / "state.json.half"
        half.write_text(json.dumps(state), encoding="utf-8")
        half.replace(self.folder / "state.json")
        for path in self.folder.glob("pending-*"):
            if not path.name.startswith(f"pending-{self.generation}-"):
                path.unlink()

    def resume(self, units: list[str]) -> None:
        """Take up what an earlier call saved, if it belongs to a source of these units; else start afresh."""
        try:
            state = json.loads((self.folder / "state.json").read_text(encoding="utf-8"))
            if units[: len(state["units"])] != state["units"]:
                raise ValueError("the source has changed")
            self._load(state)
            say(f"corpus: goes on after {self.kept:,} documents")
        except (FileNotFoundError, ValueError) as reason:
            if not isinstance(reason, FileNotFoundError):
                say(f"corpus: starts over: {reason}")
            self._clear()
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)

    def _load(self, state: dict[str, Any]) -> None:
        self.units, self.counts, self.totals = state["units"], state["counts"], state["totals"]
        self.parts, self.generation = state["parts"], state["generation"]
        self.left_out = state.get("left_out", self.left_out)
        self.kept = sum(total["documents"] for total in self.totals.values())
        self.kept_bytes = sum(total["bytes"] for total in self.totals.values())
        for split in SPLITS:
            for part in self.parts[split]:
                path = self._sound(self.folder / split / part["name"], part["sha256"])
                self.seen.update(map(bytes.fromhex, store.read_column(path, "id")))
            if split in state["pending"]:
                part = state["pending"][split]
                self.pending[split] = list(store.read_part(self._sound(self.folder / part["name"], part["sha256"])))
                self.pending_bytes[split] = sum(len(row.text) for row in self.pending[split])
                self.seen.update(bytes.fromhex(row.id) for row in self.pending[split])

    def _sound(self, path: Path, sha256: str) -> Path:
        if not path.exists() or store.sha256(path) != sha256:
            raise ValueError(f"{path.name} was lost")
        return path

    # The end.

    def finish(self) -> None:
        """Leave no split empty, and write the last parts. Raises WordmillError for a corpus too small to split."""
        self.split_by = "digest"
        if self.kept == 0:
            bad = (
                f", {self.left_out['rows']} bad rows; the first: {self.left_out['first'][0]}"
                if self.left_out["rows"]
                else ""
            )
            raise WordmillError(
                f"corpus.source {self.config.source}: the corpus is empty "
                f"({self.counts['empty']} documents, all of them without text{bad})"
            )
        if self.kept == 2:
            raise WordmillError(
                "the corpus has 2 documents, too few for train, val and test; add documents, or split plain text "
                "finer (corpus.split_text: blank_lines or line)"
            )
        if self.kept == 1:
            self._split_one_text()
        while empty := [split for split in SPLITS if not self.totals[split]["documents"]]:
            largest = max(SPLITS, key=lambda split: self.totals[split]["documents"])
            row = self._take_smallest(largest)
            self._put(empty[0], row, len(row.text.decode()))
        for split in SPLITS:
            self._end_part(split)

    def _split_one_text(self) -> None:
        self.split_by = "ranges"
        [split] = [split for split in SPLITS if self.totals[split]["documents"]]
        [row] = self.pending[split]
        self.pending[split], self.pending_bytes[split] = [], 0
        text = row.text.decode()
        self._count(split, row, len(text), -1)
        ranges = normalise.ranges(text, self.config.val_share, self.config.test_share)
        if not all(piece.strip() for piece in ranges.values()):
            raise WordmillError(f"the corpus is one text of {len(text)} characters, too short to cut into three")
        for name, piece in ranges.items():
            for part in normalise.pieces(piece, store.PART_BYTES // 2):
                data = part.encode()
                self._put(name, Row(normalise.digest(data).hex(), data, row.source), len(part))

    def _take_smallest(self, split: str) -> Row:
        """Remove the row with the smallest id from a split, from a finished part too."""
        files = [self.folder / split / part["name"] for part in self.parts[split]]
        ids = [min(store.read_column(path, "id"), default="~") for path in files]  # "~" is after all hex digits
        ids += [min(row.id for row in self.pending[split])] if self.pending[split] else []
        place = ids.index(min(ids))
        rows = list(store.read_part(files[place])) if place < len(files) else self.pending[split]
        taken = min(rows, key=lambda row: row.id)
        rows.remove(taken)
        if place == len(files):
            self.pending_bytes[split] -= len(taken.text)
        else:
            self.parts[split][place] = self._write(split, files[place].name, rows)
        self._count(split, taken, len(taken.text.decode()), -1)
        return taken

    def manifest(self, source: Source) -> dict[str, Any]:
        """What is known of the corpus: no times, no hosts, no folders of this machine."""
        settings = {name: getattr(self.config, name) for name in (*SETTINGS[self.config.source], *SPLIT_SETTINGS)}
        if "paths" in settings:
            settings["paths"] = [source_name(Path(path)) for path in settings["paths"]]
        if "dataset" in settings:
            settings["dataset"] = source_name(Path(settings["dataset"]))
        whole = hashlib.sha256()
        for split in SPLITS:
            whole.update(f"{split}\n".encode())
            for part in self.parts[split]:
                for name in store.read_column(self.folder / split / part["name"], "id"):
                    whole.update(f"{name}\n".encode())
        return {
            "format": 1,
            "source": self.config.source,
            "settings": settings,
            "revision": source.revision,
            "licence": source.licence,
            **({"downloads": source.downloads} if source.downloads else {}),
            "digest": whole.hexdigest()[:16],
            "split_by": self.split_by,
            **{name: sum(total[name] for total in self.totals.values()) for name in self.totals["train"]},
            **self.counts,
            **({"left_out": self.left_out} if self.config.bad_rows == "skip" else {}),
            "splits": {split: {**self.totals[split], "parts": self.parts[split]} for split in SPLITS},
        }


def _publish(corpus: _Corpus, manifest: dict[str, Any], folder: Path) -> None:
    """Put the finished corpus into its folder: each split whole, and the manifest last."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").unlink(missing_ok=True)  # so that a mixture of old and new is never believed
    for split in SPLITS:
        half = folder / f"{split}.half"
        for old in (half, folder / split):
            shutil.rmtree(old, ignore_errors=True)
        half.mkdir()
        for part in corpus.parts[split]:
            _link(corpus.folder / split / part["name"], half / part["name"])
        half.replace(folder / split)
    half = folder / "manifest.json.half"
    half.write_text(json.dumps(manifest, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
    half.replace(folder / "manifest.json")


def _link(path: Path, new: Path) -> None:
    """The same file under a second name, so that a kill between two splits costs nothing."""
    try:
        os.link(path, new)
    except OSError:  # another file system, or one without links
        shutil.copyfile(path, new)
