"""Mutations are repeatable and reach past a reader's first check. The fuzzer tells the outcomes apart."""

import json
import random
from collections.abc import Iterator

import pytest
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import ones

from tests.fuzz import runner, worker
from tests.fuzz.mutations import FORMS, Form, mutate
from tests.fuzz.runner import Fuzzer

TREE = {"name": "x", "list": [1, 2, {"deep": [None, True]}], "map": {"a": 1.5, "b": "text"}}
VALID: dict[Form, bytes] = {
    "bytes": bytes(range(256)),
    "json": json.dumps(TREE).encode(),
    "jsonl": (json.dumps(TREE) + "\n").encode() * 5,
    "yaml": b"# comment\nmodel:\n  n_layer: 2  # blocks\n  names: [a, b]\ntokenizer:\n  kind: bpe\n",
    "safetensors": save({"a": ones(3, 4), "b": ones(5)}),
    "text": b"one two\nthree four\nfive\n",
}


def damaged(form: Form, count: int) -> list[bytes]:
    return [mutate(VALID[form], form, random.Random(number)).content for number in range(count)]


@pytest.mark.parametrize("form", FORMS)
def test_a_seed_gives_the_same_copies_and_other_seeds_give_others(form: Form) -> None:
    copies = damaged(form, 200)
    assert copies == damaged(form, 200)
    assert len(set(copies)) > 100
    assert sum(copy == VALID[form] for copy in copies) < 20


def test_most_copies_of_json_are_still_json_in_form() -> None:
    """Else a reader of JSON would be tried for nothing but its parser."""
    parsed = 0
    for copy in damaged("json", 300):
        try:
            json.loads(copy)
            parsed += 1
        except (ValueError, RecursionError):
            pass
    assert parsed > 150


def test_some_copies_of_safetensors_are_still_opened() -> None:
    def opened() -> Iterator[bool]:
        for copy in damaged("safetensors", 300):
            try:
                load(copy)
                yield True
            except (SafetensorError, KeyError, ValueError, TypeError, RuntimeError):
                yield False

    count = sum(opened())
    assert 30 < count < 270


def test_each_outcome_is_told_from_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = {
        "clean": "clean",
        "mute": "crash",
        "unexpected": "crash",
        "killed": "crash",
        "endless": "hang",
        "greedy": "memory",
    }
    monkeypatch.setenv("FUZZ_CPU_LIMIT", "0.2")
    with Fuzzer("tests.fuzz.faulty") as fuzzer:
        for name, outcome in wanted.items():
            result = fuzzer.run(name, 3)
            assert result.counts == {outcome: 3}, name
            assert len(result.bad) == (0 if outcome == "clean" else 3)
        monkeypatch.setattr(runner, "WALL_LIMIT", 1.0)
        assert fuzzer.run("deaf", 1).counts == {"hang": 1}


def test_a_message_is_one_printable_line() -> None:
    assert worker.is_clear("config.json: vocab_size: missing")
    for line in ("", "two\nlines", "\x1b[2J", "x" * 4000, "\u2028"):
        assert not worker.is_clear(line)
