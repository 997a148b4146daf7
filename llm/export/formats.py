"""The forms by name: for each where it lies, how it is written, and how its weights are read back.

Adding a form is a line here, one in `llm.export.fits` and its name in `llm.export.config.Format`.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from llm.errors import WordmillError
from llm.export import gguf, int8
from llm.export.config import Format
from llm.export.fits import check_formats as check_formats
from llm.export.tokenizer_files import write_tokenizer_files
from llm.model import folder
from llm.model.layouts import layout_for
from llm.model.transformer import Transformer
from llm.model.weight_files import WEIGHTS, write_sums
from llm.tokenizer.tokenizer import Tokenizer, files


@dataclass(frozen=True)
class Source:
    """A model to export, as it was loaded (fp32, on the CPU) from its folder."""

    folder: Path
    model: Transformer
    tokenizer: Tokenizer
    name: str

    @classmethod
    def load(cls, path: Path, name: str) -> "Source":
        tokenizer = Tokenizer.load(path)
        return cls(path, folder.load(path, vocab_size=tokenizer.vocab_size), tokenizer, name)


@dataclass(frozen=True)
class Form:
    path: Callable[[str], str]  # from the model's name, below the folder of exports
    write: Callable[[Source, Path], None]
    read_weights: Callable[[Path, Transformer], None]  # into a model of the same shape


def _copy_folder(source: Source, target: Path) -> None:
    if layout_for(source.model) == "wordmill":
        raise WordmillError(
            "export.formats: huggingface: `transformers` has no class for a model with these parts; leave it out"
        )
    target.mkdir(parents=True, exist_ok=True)
    for name in (WEIGHTS, "config.json", *files(source.folder)):
        shutil.copyfile(source.folder / name, target / name)
    write_tokenizer_files(source.tokenizer, target, source.model.config.block_size)
    write_sums(target, [WEIGHTS])


def _write_int8(source: Source, target: Path) -> None:
    int8.save(source.folder, target)
    write_tokenizer_files(source.tokenizer, target, source.model.config.block_size)


def _read_folder(path: Path, model: Transformer) -> None:
    model.load_state_dict(folder.load(path).state_dict())


def _gguf(precision: gguf.Precision) -> Form:
    def write(source: Source, path: Path) -> None:
        gguf.write(source.model, source.tokenizer, path, precision, source.name)

    return Form(lambda name: f"gguf/{name}-{precision}.gguf", write, gguf.read_weights)


FORMS: dict[Format, Form] = {
    "huggingface": Form(lambda name: "huggingface", _copy_folder, _read_folder),
    "gguf-f32": _gguf("f32"),
    "gguf-f16": _gguf("f16"),
    "gguf-q8_0": _gguf("q8_0"),
    "int8": Form(lambda name: "int8", _write_int8, int8.read_weights),
}


def size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    return path.stat().st_size if path.is_file() else sum(file.stat().st_size for file in path.iterdir())
