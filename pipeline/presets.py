"""params.yaml from presets: presets/default.yaml, what presets/<name>.yaml changes, and what the user changes.

The comments of the default stay, since they say what each key means. Every result is checked against the whole schema
before anything is written.
"""

from collections.abc import Mapping
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.error import YAMLError

from llm.errors import WordmillError
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
        schema.check(_load(text, f"{PRESETS}/{DEFAULT}.yaml"), f"{PRESETS}/{DEFAULT}.yaml")
    return changed(text, changes, "--set") if changes else text


def changed(text: str, changes: Mapping[str, Any], source: str) -> str:
    """params.yaml's text with values replaced by dotted name, and checked. `source` is named in error messages."""
    content = _load(text, source)
    for name, value in changes.items():
        section, dot, key = name.partition(".")
        if not dot:
            raise WordmillError(f"{source}: {name}: name a section and a key, as in pretrain.lr")
        if section not in content or key not in content[section]:
            # The schema's own message says what was meant; it needs the key in its place.
            params.check_sections({section: {}}, source)
            content.setdefault(section, CommentedMap())
        content[section][key] = value
    schema.check(_plain(content), source)
    out = StringIO()
    _yaml().dump(content, out)
    return out.getvalue()


def parsed(settings: list[str]) -> dict[str, Any]:
    """`--set` options: each `section.key=value`, the value as YAML reads it."""
    found: dict[str, Any] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or "." not in name:
            raise WordmillError(f"--set {setting}: give a name and a value, as in --set pretrain.lr=1e-3")
        try:
            found[name.strip()] = YAML(typ="safe", pure=True).load(value)
        except YAMLError as error:
            raise WordmillError(f"--set {setting}: not a YAML value: {str(error).splitlines()[0]}") from None
    return found


def _keys(section: str, content: Any, name: str) -> list[tuple[str, Any]]:
    if not isinstance(content, Mapping):
        raise WordmillError(f"{PRESETS}/{name}.yaml: {section}: expected keys and values, found {content!r}")
    return list(content.items())


def _load(text: str, source: str) -> CommentedMap:
    try:
        content = _yaml().load(text)
    except YAMLError as error:
        raise WordmillError(f"{source}: not valid YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(content, CommentedMap):
        raise WordmillError(f"{source}: expected sections such as `corpus:`")
    return content


def _yaml() -> YAML:
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 10_000  # no line of the user's is folded
    return yaml


def _plain(content: CommentedMap) -> Any:
    """The document as the stages read it, without ruamel's own types."""
    out = StringIO()
    _yaml().dump(content, out)
    return YAML(typ="safe", pure=True).load(out.getvalue())


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise WordmillError(f"{path}: not found; run in the repository root") from None


def _first_comment(path: Path) -> str:
    first = _read(path).partition("\n")[0]
    return first.lstrip("# ") if first.startswith("#") else ""
