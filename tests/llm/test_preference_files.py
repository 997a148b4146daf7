"""The shapes that preference pairs come in, every packing, and two real sets."""

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from llm.corpus.config import CorpusConfig
from llm.errors import WordmillError
from llm.preference_account import CAUSES, Account
from llm.preference_dialogues import ROLES, opening
from llm.preference_files import from_files, from_hub
from llm.preference_shapes import Texts


def say(*turns: str) -> list[dict[str, str]]:
    """Messages of user and assistant in turn."""
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)]


def said(*turns: tuple[str, str]) -> list[dict[str, str]]:
    """Messages of given roles."""
    return [{"role": role, "content": content} for role, content in turns]


def shared(*turns: tuple[str, str]) -> list[dict[str, str]]:
    """The same in ShareGPT's form."""
    return [{"from": role, "value": content} for role, content in turns]


USER, SYSTEM = ("user", "Hi"), ("system", "Be kind.")
EXPECTED = Texts("\n\nUser: Hi\n\nAssistant:", " Hello!", " Go.")
WITH_SYSTEM = Texts("\n\nSystem: Be kind.\n\nUser: Hi\n\nAssistant:", " Hello!", " Go.")
ALPACA = "### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:\n"
BOTH = {"chosen": "Hello!", "rejected": "Go."}


def both(*before: tuple[str, str], form: Any = said, role: str = "assistant") -> dict[str, Any]:
    """Chosen and rejected as lists that begin with the given turns."""
    return {side: form(*before, (role, text)) for side, text in BOTH.items()}


RECORDS: dict[str, tuple[dict[str, Any], Texts]] = {
    "strings": ({"prompt": "Hi ", **BOTH}, Texts("Hi ", "Hello!", "Go.")),
    "strings, answers repeat the prompt": (
        {"prompt": "Hi there. ", "chosen": "Hi there. Hello!", "rejected": "Hi there. Go."},
        Texts("Hi there. ", "Hello!", "Go."),
    ),
    "strings, system": ({"system": "Be kind.", "prompt": "Hi", **BOTH}, WITH_SYSTEM),
    "strings, system of none": ({"system": None, "prompt": "Hi", **BOTH}, EXPECTED),
    "strings, orca": ({"system": "Be kind.", "question": "Hi", **BOTH}, WITH_SYSTEM),
    "strings, argilla": (
        {"system": "Be kind.", "input": "Hi", "chosen_response": "Hello!", "rejected_response": "Go."},
        WITH_SYSTEM,
    ),
    "strings, history": (
        {"prompt": "Hi", "history": [["A", "b"]], **BOTH},
        Texts("\n\nUser: A\n\nAssistant: b\n\nUser: Hi\n\nAssistant:", " Hello!", " Go."),
    ),
    "strings, system before a dialogue": (
        {"system": "Be kind.", "prompt": "\n\nHuman: Hi\n\nAssistant:", "chosen": " Hello!", "rejected": " Go."},
        Texts("\n\nSystem: Be kind.\n\nHuman: Hi\n\nAssistant:", " Hello!", " Go."),
    ),
    "messages, implicit prompt": (both(USER), EXPECTED),
    "messages, explicit prompt": ({"prompt": said(USER), **both()}, EXPECTED),
    "messages, one message each": ({"prompt": said(USER), **{k: v[0] for k, v in both().items()}}, EXPECTED),
    "messages, prompt and strings": ({"prompt": said(SYSTEM, USER), **BOTH}, WITH_SYSTEM),
    "messages, string prompt": ({"prompt": "Hi", **both()}, EXPECTED),
    "messages, prompt repeated": ({"prompt": "Hi", **both(USER)}, EXPECTED),
    "messages, ultrafeedback_binarized": (
        {"prompt": "Hi", "prompt_id": "1", **both(USER), "messages": both(USER)["chosen"], "score_chosen": 8.5},
        EXPECTED,
    ),
    "messages, orpo-dpo-mix": ({"source": "x", "prompt": "Hi", "question": "Hi", **both(SYSTEM, USER)}, WITH_SYSTEM),
    "messages, prompt of an earlier turn": (
        {"prompt": "A", **both(("user", "A"), ("assistant", "b"), USER)},
        Texts("\n\nUser: A\n\nAssistant: b\n\nUser: Hi\n\nAssistant:", " Hello!", " Go."),
    ),
    "messages, another string prompt": ({"prompt": "Bye", **both(USER)}, EXPECTED),
    "messages, list prompt behind the system": ({"prompt": said(USER), **both(SYSTEM, USER)}, WITH_SYSTEM),
    "messages, list prompt with more": ({"prompt": said(SYSTEM, USER), **both(USER)}, WITH_SYSTEM),
    "messages, list prompt before": ({"prompt": said(SYSTEM), **both(USER)}, WITH_SYSTEM),
    "messages, string prompt behind the system": ({"prompt": "Hi", **both(SYSTEM)}, WITH_SYSTEM),
    "messages, system column": ({"system": "Be kind.", "prompt": "Hi", **both(USER)}, WITH_SYSTEM),
    "messages, system column repeated": ({"system": "Be kind.", **both(SYSTEM, USER)}, WITH_SYSTEM),
    "messages, sharegpt": (
        {"conversations": shared(("human", "Hi")), **both(form=shared, role="gpt"), "system": "Be kind."},
        WITH_SYSTEM,
    ),
    "messages, sharegpt with an answer": (
        {"conversations": shared(("human", "Hi"), ("gpt", "Hello!")), **BOTH},
        EXPECTED,
    ),
    "messages, parts": (
        {side: [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}, both()[side][0]] for side in BOTH},
        EXPECTED,
    ),
    "messages, columns": (
        {side: {"role": ["user", "assistant"], "content": ["Hi", text]} for side, text in BOTH.items()},
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
    "dialogues in capitals": (
        {"chosen": "HUMAN: A\nASSISTANT: b", "rejected": "HUMAN: A\nASSISTANT: c"},
        Texts("HUMAN: A\nASSISTANT:", " b", " c"),
    ),
    "dialogues of guanaco": (
        {"chosen": "### Human: A### Assistant: b", "rejected": "### Human: A### Assistant: c"},
        Texts("### Human: A### Assistant:", " b", " c"),
    ),
    "dialogues, prompt repeated": (
        {"prompt": "A", "chosen": "\n\nHuman: A\n\nAssistant: b", "rejected": "\n\nHuman: A\n\nAssistant: c"},
        Texts("\n\nHuman: A\n\nAssistant:", " b", " c"),
    ),
    "dialogues, system": (
        {"system": "S", "chosen": "\n\nHuman: A\n\nAssistant: b", "rejected": "\n\nHuman: A\n\nAssistant: c"},
        Texts("\n\nSystem: S\n\nHuman: A\n\nAssistant:", " b", " c"),
    ),
    "instructions": (
        {"instruction": "Add.", "input": "1 2", "chosen": "3", "rejected": "4"},
        Texts(ALPACA, "3", "4"),
    ),
    "instructions without input": (
        {"instruction": "Add.", "input": "", "chosen": "3", "rejected": "4"},
        Texts("### Instruction:\nAdd.\n\n### Response:\n", "3", "4"),
    ),
    "instructions, system and history": (
        {
            **{"system": "Be kind.", "history": [["Hi", "Hello!"]]},
            **{"instruction": "Add.", "input": "1 2", "output": "3", "chosen": "3", "rejected": "4"},
        },
        Texts(f"Be kind.\n\n### Instruction:\nHi\n\n### Response:\nHello!\n\n{ALPACA}", "3", "4"),
    ),
}


def read(folder: Path, shape: str = "auto", account: Account | None = None) -> list[Texts]:
    """The texts of all files of a folder."""
    given = from_files((str(folder / "*"),), shape, folder, account or Account())  # type: ignore[arg-type]
    return [texts for texts, _ in given]


def write(folder: Path, *records: dict[str, Any]) -> Path:
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.mark.parametrize("name", RECORDS)
def test_shapes(name: str, tmp_path: Path) -> None:
    record, expected = RECORDS[name]
    write(tmp_path, record)
    for shape in ("auto", name.partition(",")[0].split()[0]):
        assert read(tmp_path, shape) == [expected]


def test_records_of_many_shapes_in_one_file(tmp_path: Path) -> None:
    write(tmp_path, *(record for record, _ in RECORDS.values()))
    account = Account()
    assert read(tmp_path, account=account) == [expected for _, expected in RECORDS.values()]
    assert account.records == len(RECORDS)
    assert not account.left_out
    assert list(account.unread) == ["prompt_id", "score_chosen", "source", "output"]
    assert account.notes == {
        "prompts that both answers repeat, read once": 1,
        "prompts beside a whole dialogue that does not hold them, ignored as TRL does": 1,
    }


@pytest.mark.parametrize("role", [*ROLES, "Human", "ASSISTANT", " User "])
def test_every_role_in_any_case(role: str, tmp_path: Path) -> None:
    known = ROLES[role.strip().lower()]
    write(tmp_path, both(USER, role=role) if known == "Assistant" else both((role, "Hi")))
    asks = "User" if known == "Assistant" else known
    assert read(tmp_path) == [EXPECTED._replace(prompt=f"\n\n{asks}: Hi\n\nAssistant:")]


LEFT_OUT: dict[str, dict[str, Any]] = {
    "unknown_role": both(("narrator", "Hi")),
    "not_text": {side: [{"role": "user", "content": [{"type": "image"}]}, both()[side][0]] for side in BOTH},
    "unread_context": {"prompt": "Hi", "tools": [{"name": "f"}], **BOTH},
    "two_prompts": {"prompt": "Hi", "instruction": "Add.", **BOTH},
    "no_common_prompt": {"chosen": "\n\nHuman: A\n\nAssistant: b", "rejected": "\n\nHuman: X\n\nAssistant: b"},
    "empty_prompt": {"prompt": " ", **BOTH},
    "empty_answer": {**both(USER), "rejected": []},
}


def test_what_gives_no_pair_is_counted_by_its_cause(tmp_path: Path) -> None:
    """The causes that are not counted here are those of whole pairs (test_preferences.py)."""
    path = write(tmp_path, RECORDS["strings"][0], *LEFT_OUT.values(), *LEFT_OUT.values())
    account = Account()
    assert read(tmp_path, account=account) == [RECORDS["strings"][1]]
    assert account.records == 1 + 2 * len(LEFT_OUT)
    assert account.left_out == dict.fromkeys(LEFT_OUT, 2)
    assert set(CAUSES) - set(LEFT_OUT) == {"equal_answers", "duplicates", "over_limit"}
    for line, cause in enumerate(LEFT_OUT, 2):
        assert account.first[cause].startswith(f"{path} line {line}")
    assert "role 'narrator'" in account.first["unknown_role"]
    assert "key 'tools'" in account.first["unread_context"]


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        (
            {"chosen": say("a"), "rejected": [{"role": "user"}]},
            "key 'rejected' holds a message without role and content",
        ),
        ({"chosen": say("a"), "rejected": "b"}, "key 'rejected' is missing or not a list of messages"),
        ({"instruction": "a", "chosen": "b"}, "key 'rejected' is missing or not a string"),
        (BOTH, "key 'prompt' is missing or not a string"),
        ({"prompt": 3, **BOTH}, "key 'prompt' is missing or not a string"),
        ({"instruction": "Add.", "input": 0, **BOTH}, "key 'input' is missing or not a string"),
        ({"instruction": "Add.", "input": False, **BOTH}, "key 'input' is missing or not a string"),
        ({"prompt": "Hi", "system": 0, **BOTH}, "key 'system' is missing or not a string"),
        ({"prompt": "Hi", "history": "A b", **BOTH}, "key 'history' is not a list of"),
        ({"prompt": "Hi", "history": [["A"]], **BOTH}, "key 'history' is not a list of"),
    ],
)
def test_what_is_wrong_is_named_by_file_and_line(record: dict[str, Any], problem: str, tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text("\n" + json.dumps(record))
    with pytest.raises(WordmillError, match=f"pairs.jsonl line 2: {re.escape(problem)}"):
        read(tmp_path)


def test_every_packing(tmp_path: Path) -> None:
    first, second = RECORDS["messages, implicit prompt"], RECORDS["strings"]
    rows = [first[0]] * 3
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(json.dumps(rows).encode()))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "b.parquet")
    (tmp_path / "c.parquet.zst").write_bytes(zstandard.compress((tmp_path / "b.parquet").read_bytes()))
    (tmp_path / "d.jsonl.zst").write_bytes(zstandard.compress(json.dumps(second[0]).encode() + b"\n"))
    assert read(tmp_path) == [first[1]] * 9 + [second[1]]


def test_a_folder_in_the_hubs_layout(tmp_path: Path) -> None:
    record, expected = RECORDS["dialogues"]
    (tmp_path / "set/data").mkdir(parents=True)
    for number in range(2):
        (tmp_path / f"set/data/train-{number}.jsonl").write_text((json.dumps(record) + "\n") * 2)
    config = CorpusConfig(source="hub", dataset=str(tmp_path / "set"))
    account = Account()
    assert [texts for texts, _ in from_hub(config, "auto", tmp_path, account)] == [expected] * 4
    assert account.records == 4


@pytest.mark.parametrize(
    ("name", "problem"),
    [("pairs.txt", r"the name must end in \.jsonl"), ("folder", "is a folder; name its files"), ("none", "not found")],
)
def test_a_file_that_cannot_be_read_is_named_before_any_other_is(name: str, problem: str, tmp_path: Path) -> None:
    good = write(tmp_path, RECORDS["strings"][0])
    (tmp_path / "pairs.txt").write_text("a")
    (tmp_path / "folder").mkdir()
    with pytest.raises(WordmillError, match=problem):
        next(from_files((str(good), str(tmp_path / name)), "auto", tmp_path, Account()))


def test_the_opening_of_a_dialogue() -> None:
    assert opening("\n\nSystem: S\n\nUser: A\nB\n\nAssistant: c\n\nUser: D\n\nAssistant:") == "A\nB"
    assert opening("\n\nHuman: A\nB\n\nAssistant:") == "A\nB"
    assert opening("### Instruction:\nA\n\n### Input:\nB\n\n### Response:\n") == "A\n\n### Input:\nB"
    assert opening(" Any text ") == "Any text"


def test_real_sets(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "preferences"

    def given(path: Path) -> list[Texts]:
        return [texts for texts, _ in from_files((str(path),), "auto", tmp_path, Account())]

    made = given(folder / "instructions.jsonl")
    assert len(made) == 800
    assert all(pair.prompt.endswith("### Response:\n") for pair in made)
    dialogues = folder / "hh-harmless.jsonl.gz"
    made = given(dialogues)
    whole = [json.loads(line) for line in gzip.decompress(dialogues.read_bytes()).splitlines()]
    sides = {(row["chosen"], row["rejected"]) for row in whole}
    assert {(p + c, p + r) for p, c, r in made} <= sides
    assert len(made) > 0.99 * len(whole)
    assert all(pair.prompt.endswith("\n\nAssistant:") for pair in made)
