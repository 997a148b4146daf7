"""Checkpoints that survive a kill at any moment: atomic, verified, free of pickles.

A checkpoint is a folder `step-00000100/` holding `tensors.safetensors` (weights and optimizer state) and
`state.json` (everything else, and the SHA-256 of the tensor file). It is written under a temporary name, synced to
the disk and renamed, so a folder with a final name is a whole one. The newest are kept, older ones are removed after
the newer one is in place. On reading, the checksum is compared; a damaged newest checkpoint is reported and the one
before it is used.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

KEPT = 2


def write(folder: Path, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> Path:
    """Save one checkpoint of `step` finished steps under `folder` and drop all but the newest `KEPT`."""
    final = folder / f"step-{step:08d}"
    temporary = folder / f".{final.name}.writing"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    payload = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    _write_synced(temporary / "tensors.safetensors", payload)
    record = {"step": step, "sha256": hashlib.sha256(payload).hexdigest(), "state": dict(state)}
    # Keys stay in the caller's order: a resumed run's curve must have the columns of an uninterrupted one's.
    _write_synced(temporary / "state.json", json.dumps(record).encode())
    _sync_folder(temporary)
    shutil.rmtree(final, ignore_errors=True)
    temporary.rename(final)
    _sync_folder(folder)
    for old in _all(folder)[:-KEPT]:
        shutil.rmtree(old)
    return final


def latest(folder: Path) -> tuple[int, dict[str, Tensor], dict[str, Any]] | None:
    """Step, tensors and state of the newest whole checkpoint under `folder`; None where there is none."""
    for path in reversed(_all(folder)):
        try:
            record = json.loads((path / "state.json").read_bytes())
            payload = (path / "tensors.safetensors").read_bytes()
            if hashlib.sha256(payload).hexdigest() != record["sha256"]:
                raise ValueError("its checksum differs")
            return record["step"], load(payload), record["state"]
        except (OSError, ValueError, KeyError) as error:
            print(f"checkpoint {path.name} is damaged ({error}); trying the one before it", flush=True)
    return None


def _all(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"))


def _write_synced(path: Path, payload: bytes) -> None:
    with path.open("wb") as file:
        file.write(payload)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
