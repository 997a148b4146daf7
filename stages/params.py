"""params.yaml, read strictly: an unknown key or a wrong type is an error that names its path.

Each stage declares a dataclass whose fields are the sections it reads, each section typed by the configuration
dataclass of the module it belongs to:

    @dataclass(frozen=True)
    class Params:
        tokenizer: TokenizerConfig

Those fields are also the stage's `params` in dvc.yaml (a test compares the two), so a stage reruns exactly when a
section it reads has changed. A key that the file lacks has the value of presets/default.yaml, and one line says so: a
file from before an upgrade stays valid. YAML is read as version 1.2, so `1e-3` is a number.

Every value is held against what any of them can be, before its own configuration sees it: numbers fit 64 bits, texts
hold no NUL and names no control characters.
"""

import difflib
import json
import reprlib
import sys
import unicodedata
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict, fields
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent

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

DEFAULTS = Path(__file__).parents[1] / "presets/default.yaml"
TEXTS = ("prompts", "stop", "separator", "special_tokens", "pattern")  # keys whose values are text: lines may end in it
LONGEST_NAME, LONGEST_TEXT = 4_096, 1_000_000  # characters
LARGEST_FLOAT = 3.4e38  # of fp32, in which the models compute
DEEPEST, MOST_ALIASES = 6, 20  # levels of sections, keys and lists; values that repeat another one
HALF_LINE = 250  # characters of a message's beginning and end that are always shown
SHOWN = reprlib.Repr()  # of a wrong value, in a message of one line
SHOWN.maxstring = SHOWN.maxother = SHOWN.maxlong = 80

T = TypeVar("T")


def load(cls: type[T], path: Path = PARAMS) -> T:
    """The sections of the file at `path` that the dataclass `cls` names. Raises WordmillError."""
    content = document(path)
    loaded = build(cls, content, path.name)
    say_absent({name: content[name] for name in get_type_hints(cls)}, path.name)
    return loaded


def document(path: Path = PARAMS) -> dict[str, Any]:
    """The whole file as plain dicts and lists, its section names checked. Raises WordmillError."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise WordmillError(f"{path}: not found; run in the repository root, or `wordmill use default`") from None
    except UnicodeDecodeError:
        raise WordmillError(f"{path}: not UTF-8 text; `wordmill use default` writes a fresh one") from None
    except OSError as error:
        raise WordmillError(f"{path}: {error.strerror}; it must be a file that can be read") from None
    return parse(text, str(path))


def parse(text: str, source: str) -> dict[str, Any]:
    """The document in `text`, its section names checked; `source` is named in messages. Raises WordmillError."""
    try:
        content = _loaded(text, source)
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        problem = (getattr(error, "problem", None) or str(error)).splitlines()[0]
        raise WordmillError(f"{source}{where}: not valid YAML: {problem}") from None
    except (ValueError, OverflowError) as error:  # a date that is none, a number of 5,000 digits
        raise WordmillError(f"{source}: a value cannot be read: {str(error).partition(';')[0]}") from None
    if not isinstance(content, dict):
        raise WordmillError(f"{source}: expected sections such as `corpus:`, found {_kind(content)}")
    check_sections(content, Path(source).name)
    return content


def _loaded(text: str, source: str) -> Any:
    """A copy for each caller of what is parsed once: parsing takes a tenth of a second."""
    return deepcopy(_parsed(text, source))


@lru_cache(maxsize=8)
def _parsed(text: str, source: str) -> Any:
    """As YAML 1.2; a text with tabs, which that parser refuses, by the other one, which DVC reads it with."""
    try:
        return _of_little_depth(text, source, pure=True)
    except YAMLError as error:
        if "\t" not in text:
            raise
        try:
            return _of_little_depth(text, source, pure=False)
        except YAMLError:
            raise error from None


def _of_little_depth(text: str, source: str, pure: bool) -> Any:
    """Raises WordmillError for nesting and aliases that a parser, or who uses what it gives, would take without end."""
    around: list[str | None] = []  # the anchors of the collections that are open
    aliases = 0
    for event in YAML(typ="safe", pure=pure).parse(text):
        if isinstance(event, CollectionStartEvent):
            around.append(event.anchor)
        elif isinstance(event, CollectionEndEvent):
            around.pop()
        elif isinstance(event, AliasEvent):
            aliases += 1
            if event.anchor in around:
                raise WordmillError(f"{source}: the value &{event.anchor} contains itself; write what is meant")
        if len(around) > DEEPEST or aliases > MOST_ALIASES:
            raise WordmillError(f"{source}: nested too deeply; expected sections with keys and values")
    return YAML(typ="safe", pure=pure).load(text)


@cache
def defaults() -> Mapping[str, Mapping[str, Any]]:
    """The sections of presets/default.yaml; empty where the code lies without it."""
    return document(DEFAULTS) if DEFAULTS.is_file() else {}


def absent(content: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that the given sections lack, by dotted name, with their defaults."""
    return {
        f"{section}.{key}": value
        for section, keys in content.items()
        if isinstance(keys, Mapping)
        for key, value in defaults().get(section, {}).items()
        if key not in keys
    }


def say_absent(content: Mapping[str, Any], source: str = PARAMS.name) -> None:
    """One line on standard error where keys are absent."""
    if found := absent(content):
        listed = " ".join(f"{name}={json.dumps(value)}" for name, value in found.items())
        print(f"{source}: absent keys have their defaults: {listed}", file=sys.stderr, flush=True)


def completed(content: Mapping[str, Any]) -> dict[str, Any]:
    """The same sections with absent keys at their defaults."""
    return {
        name: {**keys, **{key: value for key, value in defaults().get(name, {}).items() if key not in keys}}
        if isinstance(keys, Mapping)
        else keys
        for name, keys in content.items()
    }


def check_sections(content: Mapping[str, Any], source: str) -> None:
    """Refuse section names that no stage reads."""
    for name in content:
        if name not in SECTIONS:
            raise WordmillError(f"{source}: {_short(name)}: unknown section{_guess(str(name), SECTIONS)}")


def build(cls: type[T], content: Mapping[str, Any], source: str) -> T:
    """`cls` from an already read document; `source` is the file's name in error messages."""
    sections = {}
    for name, section_type in get_type_hints(cls).items():
        if name not in content:
            raise WordmillError(f"{source}: {name}: section missing; copy it from presets/default.yaml")
        if not isinstance(content[name], Mapping):
            raise WordmillError(f"{source}: {name}: expected keys and values, found {SHOWN.repr(content[name])}")
        sections[name] = _section(section_type, {**content[name]}, name, source)
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


def _section(section_type: type, values: dict[str, Any], name: str, source: str) -> Any:
    where = f"{source}: {name}"
    known = [field.name for field in fields(section_type)]
    for key in values:
        if key not in known:
            raise WordmillError(f"{where}.{_short(key)}: unknown key{_guess(str(key), known)}")
    values |= {key: default for key, default in defaults().get(name, {}).items() if key in known and key not in values}
    for key in known:
        if key not in values:
            raise WordmillError(f"{where}.{key}: missing; see presets/default.yaml")
        _check_value(values[key], key, f"{where}.{key}")
    try:
        # JSON mode is strict about types and still takes a list for a tuple.
        typed = _checker(section_type).model_validate_json(json.dumps(values))
        return section_type(**{key: getattr(typed, key) for key in known})
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(str(part) for part in first["loc"])
        message = first["msg"][0].lower() + first["msg"][1:]
        raise WordmillError(f"{where}.{path}: {message}, found {SHOWN.repr(first['input'])}") from None
    except ConfigError as error:
        raise WordmillError(f"{where}.{error.field}: {shortened(error.problem)}") from None
    except (TypeError, ValueError, RecursionError) as error:
        raise WordmillError(f"{where}: {shortened(error)}; use numbers, strings, booleans and lists") from None


@cache
def _checker(section_type: type) -> type[BaseModel]:
    hints = get_type_hints(section_type)
    required: dict[str, Any] = {field.name: (hints[field.name], ...) for field in fields(section_type)}
    strict = ConfigDict(strict=True, allow_inf_nan=False, protected_namespaces=())
    return create_model(section_type.__name__, __config__=strict, **required)


def _check_value(value: Any, key: str, where: str) -> None:
    """What holds for every value, whatever its key. Raises WordmillError."""
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, int) and not -(2**63) <= item < 2**63:
            raise WordmillError(f"{where}: {SHOWN.repr(item)} does not fit 64 bits; use a smaller number")
        if isinstance(item, float) and LARGEST_FLOAT < abs(item) < float("inf"):
            raise WordmillError(f"{where}: {item} is beyond the range of fp32; use a smaller number")
        if isinstance(item, str):
            _check_text(item, key in TEXTS, where)


def _check_text(text: str, lines_allowed: bool, where: str) -> None:
    longest = LONGEST_TEXT if lines_allowed else LONGEST_NAME
    if len(text) > longest:
        raise WordmillError(f"{where}: {len(text):,} characters are more than {longest:,}; use a shorter one")
    for character in text:
        kind = unicodedata.category(character)
        if character == "\0" or kind == "Cs" or (kind in ("Cc", "Zl", "Zp") and not lines_allowed):
            raise WordmillError(f"{where}: {SHOWN.repr(text)} holds the character {character!a}; leave it out")


def shortened(problem: object) -> str:
    """A message that a value makes long, without its middle."""
    text = " ".join(str(problem).split())
    return text if len(text) <= 2 * HALF_LINE else f"{text[:HALF_LINE]} … {text[-HALF_LINE:]}"


def _short(key: Any) -> str:
    return SHOWN.repr(key) if len(str(key)) > SHOWN.maxstring or not str(key).isprintable() else str(key)


def _kind(content: Any) -> str:
    return "nothing" if content is None else type(content).__name__


def _guess(name: str, known: tuple[str, ...] | list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(known)}"
