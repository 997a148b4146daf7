"""params.yaml from presets: presets/default.yaml, what presets/<name>.yaml changes, and what the user changes.

The comments of the default stay, since they say what each key means. Every result is checked against the whole schema
before anything is written.
"""

import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from llm.errors import WordmillError
from pipeline.edit import edited
from pipeline.files import read
from pipeline.status import differing
from stages import params, schema

PRESETS = Path("presets")
DEFAULT = "default"


def names() -> dict[str, str]:
    """Every preset and the first line of its comment; the default comes first."""
    found = {path.stem: _first_comment(path) for path in sorted(PRESETS.glob("*.yaml"), key=lambda path: path.stem)}
    if DEFAULT not in found:
        raise WordmillError(f"{PRESETS}/{DEFAULT}.yaml: not found; run in the repository root")
    return {DEFAULT: found.pop(DEFAULT), **found}


def from_preset(name: str, changes: Mapping[str, Any]) -> str:
    """The text of a params.yaml: default, preset, changes by dotted name. Raises WordmillError."""
    if name not in names():
        raise WordmillError(f"{name}: no such preset; there are {', '.join(names())}")
    text = _read(PRESETS / f"{DEFAULT}.yaml")
    if name != DEFAULT:
        own = params.document(PRESETS / f"{name}.yaml")
        flat = {
            f"{section}.{key}": value
            for section, content in own.items()
            for key, value in _keys(section, content, name)
        }
        text = changed(text, flat, f"{PRESETS}/{name}.yaml")
        lines = text.splitlines(keepends=True)
        while lines and lines[0].startswith("#"):  # what the default says of itself is not true of a preset
            lines.pop(0)
        text = "".join([f"# presets/{name}.yaml over presets/{DEFAULT}.yaml: {names()[name]}\n", *lines])
    else:
        schema.check(params.parse(text, f"{PRESETS}/{DEFAULT}.yaml"), f"{PRESETS}/{DEFAULT}.yaml")
    return changed(text, changes, "--set") if changes else text


def changed(text: str, changes: Mapping[str, Any], source: str) -> str:
    """params.yaml's text with values replaced by dotted name, and checked. `source` is named in error messages."""
    new = edited(text, changes, source)
    schema.check(params.parse(new, source), source)
    return new


def keep_copy(path: Path, new: str) -> Iterator[str]:
    """Copy a params.yaml that holds edits of its own before `new` takes its place; lines that say so."""
    if not path.is_file():
        return
    before = path.read_bytes()
    if before == new.encode():
        return
    try:
        edits = dropped(read(path))
    except (WordmillError, UnicodeDecodeError):
        edits = ["it was not a valid params.yaml"]
    if edits:
        copy = path.with_name(f"{path.name}.bak-{datetime.now().astimezone():%Y%m%d-%H%M%S}")
        copy.write_bytes(before)
        yield f"{path} had edits, which are kept in {copy}:"
        yield from (f"  {line}" for line in edits)


def dropped(before: str, source: str = "params.yaml") -> list[str]:
    """A line for each value of a params.yaml that differs from the preset it was made from.

    Empty where nothing differs, comments and line ends included. Raises WordmillError for a file that cannot be read.
    """
    origin = re.match(rf"\ufeff?# {PRESETS}/([\w.-]+)\.yaml over ", before)
    name = origin[1] if origin and origin[1] in names() else DEFAULT
    made = from_preset(name, {})
    if made == before:
        return []
    old, new = (params.completed(params.parse(text, source)) for text in (made, before))
    lines = [line for section in new for line in differing(section, old.get(section, {}), new[section])]
    return lines or ["comments or line ends"]


def parsed(settings: list[str], source: str = "--set") -> dict[str, Any]:
    """Settings `section.key=value`, the value as YAML reads it. `source` is named in error messages."""
    found: dict[str, Any] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or "." not in name:
            raise WordmillError(f"{source} {setting}: give a name and a value, as in {source} pretrain.lr=1e-3")
        try:
            found[name.strip()] = YAML(typ="safe").load(value)
        except (YAMLError, ValueError, OverflowError) as error:
            raise WordmillError(f"{source} {setting}: not a YAML value: {str(error).splitlines()[0]}") from None
    return found


def _keys(section: str, content: Any, name: str) -> list[tuple[str, Any]]:
    if not isinstance(content, Mapping):
        raise WordmillError(f"{PRESETS}/{name}.yaml: {section}: expected keys and values, found {content!r}")
    return list(content.items())


def _read(path: Path) -> str:
    try:
        return read(path)
    except FileNotFoundError:
        raise WordmillError(f"{path}: not found; run in the repository root") from None
    except UnicodeDecodeError as error:
        raise WordmillError(f"{path}: not UTF-8 text (byte {error.start}); bring back the original") from None
    except OSError as error:
        raise WordmillError(f"{path}: {error.strerror}; it must be a file that can be read") from None


def _first_comment(path: Path) -> str:
    first = _read(path).partition("\n")[0]
    return first.lstrip("# ") if first.startswith("#") else ""
