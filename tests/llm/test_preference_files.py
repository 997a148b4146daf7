"""The shapes that preference pairs come in, every packing, and two real sets."""

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from llm.corpus.config import CorpusConfig
from llm.errors import WordmillError
from llm.preference_files import Texts, from_files, from_hub


def say(*turns: str) -> list[dict[str, str]]:
    """Messages of user and assistant in turn."""
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)]


EXPECTED = Texts("\n\nUser: Hi\n\nAssistant:", " Hello!", " Go.")
RECORDS: dict[str, tuple[dict[str, Any], Texts]] = {
    "strings": ({"prompt": "Hi ", "chosen": "Hello!", "rejected": "Go."}, Texts("Hi ", "Hello!", "Go.")),
    "messages, implicit prompt": ({"chosen": say("Hi", "Hello!"), "rejected": say("Hi", "Go.")}, EXPECTED),
    "messages, explicit prompt": (
        {"prompt": say("Hi"), "chosen": say("", "Hello!")[1:], "rejected": say("", "Go.")[1:]},
        EXPECTED,
    ),
    "messages, prompt repeated": (
        {"prompt": "Hi", "chosen": say("Hi", "Hello!"), "rejected": say("Hi", "Go.")},
        EXPECTED,
    ),
    "messages that part at a later turn": (
        {"chosen": say("A", "b", "C", "d"), "rejected": say("A", "b", "C", "e", "F", "g")},
        Texts("\n\nUser: A\n\nAssistant: b\n\nUser: C\n\nAssistant:", " d", " e\n\nUser: F\n\nAssistant: g"),
    ),
    "messages that part at a user's turn": (
        {"chosen": say("A", "b", "C", "d"), "rejected": say("A", "b", "X", "d")},
        Texts(
            "\n\nUser: A\n\nAssistant:",
            " b\n\nUser: C\n\nAssistant: d",
            " b\n\nUser: X\n\nAssistant: d",
        ),
    ),
    "dialogues": (
        {
            "chosen": "\n\nHuman: A\n\nAssistant: b\n\nHuman: C\n\nAssistant: dear",
            "rejected": "\n\nHuman: A\n\nAssistant: b\n\nHuman: C\n\nAssistant: dead",
        },
        Texts("\n\nHuman: A\n\nAssistant: b\n\nHuman: C\n\nAssistant:", " dear", " dead"),
    ),
    "dialogues without a common turn": (
        {"chosen": "\n\nHuman: A\n\nAssistant: b", "rejected": "\n\nHuman: X\n\nAssistant: b"},
        Texts("", "\n\nHuman: A\n\nAssistant: b", "\n\nHuman: X\n\nAssistant: b"),
    ),
    "instructions": (
        {"instruction": "Add.", "input": "1 2", "chosen": "3", "rejected": "4"},
        Texts("### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:\n", "3", "4"),
    ),
    "instructions without input": (
        {"instruction": "Add.", "input": "", "chosen": "3", "rejected": "4"},
        Texts("### Instruction:\nAdd.\n\n### Response:\n", "3", "4"),
    ),
}


@pytest.mark.parametrize("name", RECORDS)
def test_shapes(name: str, tmp_path: Path) -> None:
    record, expected = RECORDS[name]
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(record))
    for shape in ("auto", name.partition(",")[0].split()[0]):
        assert list(from_files((str(path),), shape, tmp_path)) == [expected]  # type: ignore[arg-type]


def test_every_packing_and_the_shape_of_each_file(tmp_path: Path) -> None:
    first, second = RECORDS["messages, implicit prompt"], RECORDS["strings"]
    rows = [first[0]] * 3
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(json.dumps(rows).encode()))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "b.parquet")
    (tmp_path / "c.parquet.zst").write_bytes(zstandard.compress((tmp_path / "b.parquet").read_bytes()))
    (tmp_path / "d.jsonl.zst").write_bytes(zstandard.compress(json.dumps(second[0]).encode() + b"\n"))
    found = list(from_files((str(tmp_path / "*"),), "auto", tmp_path))
    assert found == [first[1]] * 9 + [second[1]]


def test_a_folder_in_the_hubs_layout(tmp_path: Path) -> None:
    record, expected = RECORDS["dialogues"]
    (tmp_path / "set/data").mkdir(parents=True)
    for number in range(2):
        (tmp_path / f"set/data/train-{number}.jsonl").write_text((json.dumps(record) + "\n") * 2)
    config = CorpusConfig(source="hub", dataset=str(tmp_path / "set"))
    assert list(from_hub(config, "auto", tmp_path)) == [expected] * 4


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        (
            {"chosen": say("a"), "rejected": [{"role": "user"}]},
            "key 'rejected' holds a message without role and content",
        ),
        ({"chosen": say("a"), "rejected": "b"}, "key 'rejected' is missing or not a list of messages"),
        ({"instruction": "a", "chosen": "b"}, "key 'rejected' is missing or not a string"),
        ({"chosen": "b", "rejected": "c"}, "key 'prompt' is missing or not a string"),
    ],
)
def test_what_is_missing_is_named_by_file_and_line(record: dict[str, Any], problem: str, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n" + json.dumps(record))
    with pytest.raises(WordmillError, match=f"pairs.jsonl line 2: {problem}"):
        list(from_files((str(path),), "auto", tmp_path))


def test_other_kinds_of_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "pairs.txt").write_text("a")
    with pytest.raises(WordmillError, match=r"the name must end in \.jsonl"):
        list(from_files((str(tmp_path / "pairs.txt"),), "auto", tmp_path))


def test_real_sets(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "preferences"
    made = list(from_files((str(folder / "instructions.jsonl"),), "auto", tmp_path))
    assert len(made) == 800
    assert all(pair.prompt.endswith("### Response:\n") for pair in made)
    dialogues = folder / "hh-harmless.jsonl.gz"
    made = list(from_files((str(dialogues),), "auto", tmp_path))
    whole = [json.loads(line) for line in gzip.decompress(dialogues.read_bytes()).splitlines()]
    assert [(p + c, p + r) for p, c, r in made] == [(row["chosen"], row["rejected"]) for row in whole]
    ends = Counter(pair.prompt.rpartition("\n\n")[2] for pair in made)
    assert ends["Assistant:"] > 0.99 * len(made)
