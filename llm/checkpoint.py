"""Checkpoints that survive a kill at any moment: atomic, verified, free of pickles.

A checkpoint is a folder `step-00000100/` holding `tensors.safetensors` (weights and optimizer state), `state.json`
(everything else) and `SHA256SUMS` of both, which `sha256sum -c` reads too. It is written under a temporary name, synced
to the disk and renamed, so a folder with a final name is a whole one. The newest are kept, and the best; older ones are
removed after the newer one is in place. On reading, the checksums are compared; a damaged newest checkpoint is reported
and the one before it is used. One of a newer format than this is no damage: it is left alone, and the run refused.

`Writer` writes in the background: the training waits only for a copy of the tensors, so what is written is the state of
that very step (docs/LOG.md, 2026-11-25, has what that saves).
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from llm.errors import WordmillError
from llm.strict_json import check_json, read_json

FORMAT = 1  # of what is written here; raised when an older program could not read it any more
NAME = re.compile(r"step-[0-9]{8,}")
TENSORS, STATE, SUMS = "tensors.safetensors", "state.json", "SHA256SUMS"


class Record(BaseModel):
    """state.json."""

    model_config = ConfigDict(strict=True)

    format: int
    step: Annotated[int, Field(ge=0)]
    state: dict[str, Any]


class TooNew(WordmillError):
    """A checkpoint of a newer program."""


class Writer:
    """Writes the checkpoints of one run, one at a time, while the run goes on.

        with Writer(folder, kept=2) as writer:
            ...
            writer.write(step, tensors, state, best=best_step)

    At its end it waits for the last one. What goes wrong on the disk is raised by the next call.
    """

    def __init__(self, folder: Path, kept: int) -> None:
        self.folder = folder
        self.kept = kept
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[Path] | None = None

    def write(
        self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any], besides: Collection[int] = ()
    ) -> None:
        """Copy the tensors, and write them while the caller goes on.

        `besides` are the steps of checkpoints that stay, whatever their age.
        """
        self.wait()
        copies = {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
        # JSON at once, since the caller may add to `state`; in its order, since a resumed run's curve has its columns.
        text = json.dumps(dict(state))
        self._writing = self._thread.submit(_write, self.folder, step, copies, text, self.kept, tuple(besides))

    def check(self) -> None:
        """Raise what has gone wrong so far, without waiting."""
        if self._writing is not None and self._writing.done():
            self.wait()

    def wait(self) -> None:
        """Until all is on the disk. Raises OSError."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._thread.shutdown(wait=True)
        if kind is None:
            self.wait()


def write(folder: Path, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any], kept: int = 2) -> Path:
    """Save one checkpoint of `step` finished steps under `folder` and drop all but the newest `kept`.

    Raises OSError, with the path, where the disk is full; the checkpoints that were there stay.
    """
    here = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
    return _write(folder, step, here, json.dumps(dict(state)), kept, ())


def latest(folder: Path) -> tuple[int, dict[str, Tensor], dict[str, Any]] | None:
    """Step, tensors and state of the newest whole checkpoint under `folder`; None where there is none.

    `folder` may be a checkpoint itself.

    Raises WordmillError for one that a newer program has written.
    """
    for path in reversed(_all(folder)):
        try:
            _verify(path)
            record: Record = check_json(read_json(path / STATE, largest=1 << 32), Record, str(path / STATE))
            if record.format > FORMAT:
                raise TooNew(
                    f"{path}: a checkpoint of format {record.format}, and this program reads up to {FORMAT}; "
                    "go on with the newer version that wrote it, or remove the folder to begin anew"
                )
            return record.step, load_file(path / TENSORS), record.state
        except TooNew:
            raise
        except (OSError, ValueError, WordmillError, SafetensorError) as error:
            print(f"checkpoint {path.name} is damaged ({error}); trying the one before it", flush=True)
    if _all(folder):
        print(f"{folder}: no checkpoint is whole; beginning anew", flush=True)
    return None


def _verify(path: Path) -> None:
    """Raises ValueError or OSError where a file is not what was written."""
    lines = (line.partition("  ") for line in (path / SUMS).read_text().splitlines())
    expected = {name: digest for digest, _, name in lines}
    for name in (TENSORS, STATE):
        with (path / name).open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != expected.get(name):
                raise ValueError(f"the checksum of {name} differs")


def _write(
    folder: Path, step: int, tensors: Mapping[str, Tensor], state: str, kept: int, besides: Collection[int]
) -> Path:
    final = folder / f"step-{step:08d}"
    temporary = folder / f".{final.name}.writing"
    for half in folder.glob(".step-*.writing"):  # of a run that was killed, and takes room
        shutil.rmtree(half, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        sums = {TENSORS: _write_tensors(temporary / TENSORS, tensors)}
        sums[STATE] = _write_text(temporary / STATE, f'{{"format": {FORMAT}, "step": {step}, "state": {state}}}')
        _write_text(temporary / SUMS, "".join(f"{digest}  {name}\n" for name, digest in sums.items()))
        _sync_folder(temporary)
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
        _sync_folder(folder)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)  # half a checkpoint would keep a full disk full
        raise OSError(error.errno, error.strerror, str(error.filename or final)) from error
    steps = {int(path.name.removeprefix("step-")): path for path in _under(folder)}
    older = sorted(number for number in steps if number <= step)
    keep = {*older[-kept:], *besides}
    for number, path in steps.items():
        if number not in keep:  # a newer one was damaged, or this would not have been made after it
            shutil.rmtree(path)
    return final


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write a safetensors file; its SHA-256. Raises OSError."""
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    except SafetensorError as error:
        number = re.search(r"\(os error (\d+)\)", str(error))  # as the library, which is in Rust, says it
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_text(path: Path, text: str) -> str:
    """Write a file; its SHA-256. Raises OSError."""
    content = text.encode()
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return hashlib.sha256(content).hexdigest()


def _all(folder: Path) -> list[Path]:
    """The checkpoints under a folder, the oldest first, or the one that it is."""
    return [folder] if NAME.fullmatch(folder.name) and folder.is_dir() else _under(folder)


def _under(folder: Path) -> list[Path]:
    """The checkpoints under a folder, the oldest first. What else lies there is nobody's business."""
    found = [path for path in folder.glob("step-*") if NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
