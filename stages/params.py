"""params.yaml, read strictly: an unknown key, a missing one or a wrong type is an error that names its path.

Each stage declares a dataclass whose fields are the sections it reads, each section typed by the configuration
dataclass of the module it belongs to:

    @dataclass(frozen=True)
    class Params:
        tokenizer: TokenizerConfig

Those fields are also the stage's `params` in dvc.yaml (a test compares the two), so a stage reruns exactly when a
section it reads has changed. There are no defaults in the code: what a run used is what params.yaml says. YAML is
read as version 1.2, as DVC reads it, so `1e-3` is a number.
"""

import difflib
import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from llm.errors import ConfigError, WordmillError
from llm.file_patterns import match, no_file

PARAMS = Path("params.yaml")
SECTIONS = (
    "corpus",
    "tokenizer",
    "shards",
    "model",
    "pretrain",
    "preferences",
    "dpo",
    "evaluate",
    "samples",
    "export",
    "compute",
)
NAMING = ("path", "paths", "start_from", "continue_from", "minimal_pairs")  # keys whose values name files

T = TypeVar("T")


def load(cls: type[T], path: Path = PARAMS) -> T:
    """The sections of the file at `path` that the dataclass `cls` names. Raises WordmillError."""
    return build(cls, document(path), path.name)


def document(path: Path = PARAMS) -> dict[str, Any]:
    """The whole file as plain dicts and lists, its section names checked. Raises WordmillError."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise WordmillError(f"{path}: not found; run in the repository root, or `wordmill use default`") from None
    except UnicodeDecodeError:
        raise WordmillError(f"{path}: not UTF-8 text; `wordmill use default` writes a fresh one") from None
    try:
        content = YAML(typ="safe", pure=True).load(text)
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        problem = (getattr(error, "problem", None) or str(error)).splitlines()[0]
        raise WordmillError(f"{path}{where}: not valid YAML: {problem}") from None
    if not isinstance(content, dict):
        raise WordmillError(f"{path}: expected sections such as `corpus:`, found {_kind(content)}")
    check_sections(content, path.name)
    return content


def check_sections(content: Mapping[str, Any], source: str) -> None:
    """Refuse section names that no stage reads."""
    for name in content:
        if name not in SECTIONS:
            raise WordmillError(f"{source}: {name}: unknown section{_guess(str(name), SECTIONS)}")


def build(cls: type[T], content: Mapping[str, Any], source: str) -> T:
    """`cls` from an already read document; `source` is the file's name in error messages."""
    sections = {}
    for name, section_type in get_type_hints(cls).items():
        if name not in content:
            raise WordmillError(f"{source}: {name}: section missing; see presets/default.yaml")
        if not isinstance(content[name], Mapping):
            raise WordmillError(f"{source}: {name}: expected keys and values, found {content[name]!r}")
        sections[name] = _section(section_type, content[name], f"{source}: {name}")
    return cls(**sections)


def flat(params: Any) -> dict[str, Any]:
    """The dotted keys and values of a `Params`, as MLflow logs them: {"pretrain.lr": 0.001, ...}."""
    return {f"{section}.{key}": value for section, keys in asdict(params).items() for key, value in keys.items()}


def named_files(values: Mapping[str, Any]) -> list[Path]:
    """The user's own files and folders that dotted params name, which dvc.yaml knows nothing of, each once."""
    found: dict[Path, None] = {}
    for name, value in values.items():
        if name.rpartition(".")[2] in NAMING:
            for pattern in filter(None, [value] if isinstance(value, str) else value):
                paths = match(pattern).paths
                found.update(dict.fromkeys(path for path in paths if path.exists() and not no_file(path)))
    return list(found)


def _section(section_type: type, values: Mapping[str, Any], where: str) -> Any:
    known = [field.name for field in fields(section_type)]
    for key in values:
        if key not in known:
            raise WordmillError(f"{where}.{key}: unknown key{_guess(str(key), known)}")
    for key in known:
        if key not in values:
            raise WordmillError(f"{where}.{key}: missing; see presets/default.yaml")
    types = get_type_hints(section_type)
    required: dict[str, Any] = {key: (types[key], ...) for key in known}
    strict = ConfigDict(strict=True, allow_inf_nan=False, protected_namespaces=())
    checker: type[BaseModel] = create_model(section_type.__name__, __config__=strict, **required)
    try:
        # JSON mode is strict about types and still takes a list for a tuple.
        typed = checker.model_validate_json(json.dumps(values))
        return section_type(**{key: getattr(typed, key) for key in known})
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(str(part) for part in first["loc"])
        message = first["msg"][0].lower() + first["msg"][1:]
        raise WordmillError(f"{where}.{path}: {message}, found {first['input']!r}") from None
    except ConfigError as error:
        raise WordmillError(f"{where}.{error.field}: {error.problem}") from None
    except (TypeError, ValueError) as error:
        raise WordmillError(f"{where}: {error}; use numbers, strings, booleans and lists") from None


def _kind(content: Any) -> str:
    return "nothing" if content is None else type(content).__name__


def _guess(name: str, known: tuple[str, ...] | list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(known)}"
