"""Values of params.yaml replaced in place: every other byte of the file stays as it is.

The parser says where a value begins and ends, and the new value takes its place there. So comments, quotes, tabs, line
ends and a byte order mark survive. A key that the file lacks is added behind the last one of its section. The result is
parsed again and compared with what was asked for.
"""

import json
import re
from collections.abc import Mapping
from io import StringIO
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.nodes import MappingNode, Node

from llm.errors import WordmillError
from stages import params


def edited(text: str, changes: Mapping[str, Any], source: str) -> str:
    """`text` with values replaced by dotted name; `source` is named in messages. Raises WordmillError."""
    wanted = params.parse(text, source)
    for name, value in changes.items():
        section, dot, key = name.partition(".")
        if not dot:
            raise WordmillError(f"{source}: {name}: name a section and a key, as in pretrain.lr")
        params.check_sections({section: {}}, source)
        if not isinstance(wanted.get(section, {}), Mapping):
            raise WordmillError(f"{source}: {section}: expected keys and values, found {wanted[section]!r}")
        wanted[section] = {**wanted.get(section, {}), key: value}
    places = {
        f"{section}.{key}": (node.start_mark.index, _end(text, node))
        for section, keys in _pairs(_nodes(text))
        for key, node in _pairs(keys)
    }
    new = text
    for name in sorted(places.keys() & changes.keys(), key=lambda name: places[name], reverse=True):
        start, stop = places[name]
        blank = "" if text[start - 1].isspace() or text[start - 1] in "[{" else " "
        new = f"{new[:start]}{blank}{_written(changes[name])}{new[stop:]}"
    for name in changes.keys() - places.keys():
        section, _, key = name.partition(".")
        new = _with_key(new, section, key, changes[name])
    if _parsed_or_none(new) != wanted:
        raise WordmillError(f"{source}: {', '.join(changes)}: cannot be changed in place; edit it by hand")
    return new


def _with_key(text: str, section: str, key: str, value: Any) -> str:
    """`text` with a key that it lacks, behind the last one of its section."""
    keys = next((node for name, node in _pairs(_nodes(text)) if name == section), None)
    new = _written(value)
    end = "\r\n" if "\r\n" in text else "\n"
    if not isinstance(keys, MappingNode):
        return f"{text}{'' if text.endswith(end) else end}{section}:{end}  {key}: {new}{end}"
    if not keys.value:
        return f"{text[: keys.start_mark.index]}{{{key}: {new}}}{text[keys.end_mark.index :]}"
    last_key, last = keys.value[-1]
    stop = _end(text, last)
    if keys.flow_style:
        return f"{text[:stop]}, {key}: {new}{text[stop:]}"
    line = re.compile(r"\r\n|\n|\Z").search(text, stop)
    assert line is not None  # the text's end is one
    indent = " " * last_key.start_mark.column
    return f"{text[: line.start()]}{end}{indent}{key}: {new}{text[line.start() :]}"


def _nodes(text: str) -> Any:
    # The parser that keeps places refuses tabs between a key and its value; a blank takes as many characters.
    return YAML(typ="safe", pure=True).compose(StringIO(text.replace("\t", " ")))


def _pairs(node: Any) -> list[tuple[str, Node]]:
    return [(key.value, value) for key, value in node.value] if isinstance(node, MappingNode) else []


def _end(text: str, node: Any) -> int:
    """Where a value ends: of a block of several lines, with its last item."""
    if isinstance(node.value, list) and not node.flow_style and node.value:
        last = node.value[-1]
        return _end(text, last[1] if isinstance(last, tuple) else last)
    return len(text[: node.end_mark.index].rstrip()) if node.value else int(node.end_mark.index)


def _written(value: Any) -> str:
    """A value on one line, as every YAML parser reads it."""
    if isinstance(value, list | dict):
        return json.dumps(value, ensure_ascii=False)
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style, yaml.width, yaml.allow_unicode = True, 10_000_000, True
    out = StringIO()
    yaml.dump([value], out)  # in a list, since a bare value is followed by the mark of a document's end
    return out.getvalue().strip()[1:-1].strip()


def _parsed_or_none(text: str) -> Any:
    try:
        return params.parse(text, "")
    except WordmillError:
        return None
