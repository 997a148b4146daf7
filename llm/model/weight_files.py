"""The tensors of a folder, by name: their shapes first, and each one's numbers when they are asked for.

A folder has one `model.safetensors`, or several files and an index that says which tensor is in which. A file
`SHA256SUMS` beside them, as the stage `export` writes, is held against their bytes. Pickled weights are refused.
"""

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict
from safetensors import SafetensorError, safe_open
from torch import Tensor

from llm.errors import WordmillError
from llm.model.hf_configs import REMEDY
from llm.strict_json import check_json, quoted, read_json

WEIGHTS = "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
SUMS = "SHA256SUMS"
LONGEST_NAME = 255  # bytes that a file's name may have, nearly everywhere
FLOATS = ("F64", "F32", "F16", "BF16")


class Index(BaseModel):
    """model.safetensors.index.json."""

    model_config = ConfigDict(strict=True, extra="ignore")

    weight_map: dict[str, str]


@dataclass(frozen=True)
class Stored:
    """A tensor in a safetensors file."""

    name: str
    path: Path
    dtype: str  # as safetensors names it
    shape: tuple[int, ...]

    def read(self) -> Tensor:
        """Raises WordmillError."""
        with _opened(self.path) as file:
            tensor: Tensor = file.get_tensor(self.name)
            return tensor


def stored_tensors(folder: Path) -> dict[str, Stored]:
    """All tensors of a model folder. Raises WordmillError."""
    if (folder / WEIGHTS).exists():
        return tensors_of(folder / WEIGHTS)
    if not (folder / INDEX).exists():
        pickled = [path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in sorted(folder.glob(pattern))]
        if pickled:
            raise WordmillError(
                f"{folder}: {pickled[0]} is pickled, and opening it could run anything; "
                "save it as safetensors where you trust it (save_pretrained does)"
            )
        raise WordmillError(f"{folder}: no model there ({WEIGHTS} is missing)")
    index: Index = check_json(read_json(folder / INDEX, f"; {REMEDY}"), Index, f"{folder / INDEX}")
    files = sorted(set(index.weight_map.values()))
    found: dict[str, Stored] = {}
    for name in files:
        if Path(name).name != name or "\0" in name or len(name.encode()) > LONGEST_NAME:
            raise WordmillError(f"{folder / INDEX}: {quoted(name)} is not a file beside it")
        if not (folder / name).exists():
            raise WordmillError(f"{folder}: no model there ({name} is missing)")
        for tensor in tensors_of(folder / name).values():
            if index.weight_map.get(tensor.name) != name:
                raise WordmillError(f"{folder / INDEX}: does not say that {quoted(tensor.name)} is in {name}")
            found[tensor.name] = tensor
    for name, file in index.weight_map.items():
        if name not in found:
            raise WordmillError(f"{folder / INDEX}: says that {quoted(name)} is in {file}, and it is not")
    return found


def tensors_of(path: Path) -> dict[str, Stored]:
    """The tensors of one safetensors file. Raises WordmillError."""
    with _opened(path) as file:
        slices = ((name, file.get_slice(name)) for name in list(file.keys()))
        return {name: Stored(name, path, part.get_dtype(), tuple(part.get_shape())) for name, part in slices}


def write_sums(folder: Path, names: Iterable[str]) -> None:
    """SHA256SUMS of files of the folder, which `sha256sum -c` reads too."""
    lines = [f"{_sha256(folder / name)}  {name}\n" for name in sorted(names)]
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")


def verify_sums(folder: Path) -> None:
    """Hold the files of the folder against its SHA256SUMS, if it has one. Raises WordmillError."""
    sums = folder / SUMS
    if not sums.exists():
        return
    try:
        lines = [line.split("  ", 1) for line in sums.read_text(encoding="ascii").splitlines()]
        expected = {name: digest for digest, name in lines}
        for name, digest in expected.items():
            if Path(name).name != name or _sha256(folder / name) != digest:
                raise WordmillError(f"{folder / name}: not the bytes that were written (SHA-256 in {SUMS}); {REMEDY}")
    except (OSError, ValueError) as error:
        raise WordmillError(f"{sums}: cannot be compared with the files beside it ({error}); {REMEDY}") from None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError, UnicodeDecodeError) as error:
        raise WordmillError(f"{path}: damaged ({error}); {REMEDY}") from None
