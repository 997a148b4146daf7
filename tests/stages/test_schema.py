"""Every key of params.yaml with extreme values: `check` takes it or refuses it in one line, in no time."""

import copy
import time
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from llm.errors import LONGEST, WordmillError
from stages import params, preflight, schema

REPO = Path(__file__).parents[2]
DEFAULT = params.parse((REPO / "presets/default.yaml").read_text(), "default.yaml")
KEYS = [(section, key) for section, keys in DEFAULT.items() for key in keys]
NUMBERS = [-1, 0, 2**31, 2**63 - 1, 2**63, 2**64, 10**30, -(2**70), 1_000_000_000_001, 10**9, 1e308, -1e308, 1e-308]
NUMBERS += [float("nan"), float("inf"), float("-inf"), int("9" * 4_000)]
TEXTS = ["", " ", "\0", "a\0b", "\x1b[31m", "line\nline", "\u2028", "\ud800", "\u202e", "'", '"', "o'brien", "a: b"]
TEXTS += ["#x", "../..", "~", "*", "[", "{a}", "%s", "$(x)", "x" * 300, "x" * 100_000, "/" * 5_000, "é", "日本", "- a"]
TEXTS += ["(?:" * 900]
OTHERS = [None, True, [], {}, [[]], [None], {"a": 1}, [1, "a"], "1", [""], ["\0"], ["x" * 300], [2**64], [-1], [1e308]]


def checked(content: dict[str, Any]) -> schema.Schema | str:
    """The typed params, or the one line of the refusal; within two seconds of processor time."""
    began = time.process_time()
    try:
        found = schema.check(content)
        preflight.check(found)
        return found
    except WordmillError as error:
        return str(error)
    finally:
        assert time.process_time() - began < 2


@pytest.mark.parametrize(("section", "key"), KEYS, ids=lambda value: str(value))
def test_extreme_values(section: str, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for value in [*NUMBERS, *TEXTS, *OTHERS]:
        content = copy.deepcopy(DEFAULT)
        content[section][key] = value
        found = checked(content)
        if isinstance(found, str):
            assert len(found.splitlines()) == 1, found
            assert len(found) <= LONGEST + 3, found
            assert not any(ord(character) < 32 for character in found), found
            assert found.startswith(("params.yaml: ", *(f"{name}" for name in DEFAULT))), found
        elif isinstance(value, float | int) and not isinstance(value, bool):
            assert abs(value) < 2**63


def test_every_seed_ends_at_63_bits() -> None:
    seeds = [(section, key) for section, key in KEYS if key == "seed"]
    assert len(seeds) >= 5
    for section, key in seeds:
        for value, taken in ((0, True), (2**63 - 1, True), (-1, False), (2**63, False), (2**64, False)):
            content = copy.deepcopy(DEFAULT)
            content[section][key] = value
            assert isinstance(checked(content), schema.Schema) is taken, (section, value)


def test_the_largest_seed_is_one_for_every_generator(tiny_config: Any) -> None:
    import numpy as np

    from llm.gradients import dropout_seed
    from llm.intervals import difference_interval, interval
    from llm.limits import LARGEST_SEED
    from llm.model.transformer import Transformer
    from llm.sampling import Uniforms

    Transformer(tiny_config, 8).initialise(LARGEST_SEED)
    dropout_seed(LARGEST_SEED, 1, 1)
    ones = np.ones(3)
    interval(ones, ones, LARGEST_SEED)
    difference_interval((ones, ones), (ones, ones), LARGEST_SEED)
    assert 0 <= Uniforms(LARGEST_SEED * 1_000_003, 5).next() < 1


def test_every_section_of_the_schema_is_covered() -> None:
    for section in fields(schema.Schema):
        known = {field.name for field in fields(get_type_hints(schema.Schema)[section.name])}
        assert known == set(DEFAULT[section.name])


UNREADABLE = [
    "corpus: {seed: " + "9" * 5_000 + "}",
    "corpus: 2001-99-99",
    "[" * 50_000,
    "a: &a [*a]",
    "\x00",
    "a: \x07",
]
BOMB = "\n".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" if n else "a0: &a0 [1]" for n in range(12))


@pytest.mark.parametrize("text", [*UNREADABLE, BOMB, "corpus: !!python/object:os.x {}", "- " * 5_000], ids=range(9))
def test_documents_that_cannot_be_read(text: str) -> None:
    with pytest.raises(WordmillError) as caught:
        params.parse(text, "params.yaml")
    assert len(str(caught.value).splitlines()) == 1


def test_a_tab_and_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    text = (REPO / "presets/default.yaml").read_text()
    file = tmp_path / "params.yaml"
    file.write_bytes(("\ufeff" + text.replace("  steps: ", "  steps:\t").replace(" # ", "\t# ")).encode())
    assert params.document(file) == DEFAULT
