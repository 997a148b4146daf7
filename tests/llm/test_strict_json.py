"""JSON of others: what is no JSON, or more than a reader can bear, is refused in one line."""

import json
from pathlib import Path

import pytest

from llm.errors import WordmillError
from llm.strict_json import parse_json, read_json


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"a": NaN}', "NaN is no JSON number"),
        ('{"a": -Infinity}', "-Infinity is no JSON number"),
        ('{"a": 1e999}', "beyond the range of numbers"),
        ('{"a": ' + "9" * 5000 + "}", "a number of 5000 digits"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        ('{"a": 1, "a": 2}', "the key 'a' stands there twice"),
        ('{"a": "\\ud800"}', "half of a character"),
        ('["\\udfff"]', "half of a character"),
        ("{", "Expecting property name"),
        ("", "Expecting value"),
        ("\ufeff{}", "BOM"),
    ],
)
def test_what_is_not_json_is_one_line(text: str, says: str) -> None:
    with pytest.raises(WordmillError) as caught:
        parse_json(text, "config.json", "; fetch it again")
    line = str(caught.value)
    assert line.startswith("config.json: ")
    assert says in line
    assert line.endswith("; fetch it again")
    assert line.isprintable()


def test_json_is_read_as_python_reads_it(tmp_path: Path) -> None:
    value = {"a": [1, -2.5, 10**30, None, True, "é\U0001f600\u2028"], "b": {}, "": "\\ud800"}
    for ascii_only in (True, False):
        assert parse_json(json.dumps(value, ensure_ascii=ascii_only), "x") == value
    path = tmp_path / "x.json"
    path.write_text(json.dumps(value))
    assert read_json(path) == value
    with pytest.raises(WordmillError, match="more than the 10 that such a file may have"):
        read_json(path, largest=10)
    path.write_bytes(b"\xff{}")
    with pytest.raises(WordmillError, match="not UTF-8"):
        read_json(path)
    with pytest.raises(WordmillError, match="cannot be read"):
        read_json(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "none")
