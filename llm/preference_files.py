"""Preference pairs as the world stores them, from local files and hub data sets.

Shapes, by name; what `auto` goes by is the keys of a file's first record:

- `strings`: prompt, chosen, rejected, all strings;
- `messages`: chosen and rejected are lists of {role, content}; what they begin with in common, up to the assistant's
  turn in which they part, is prompt. A `prompt` of its own, a list or a string, comes before unless they repeat it;
- `dialogues`: as in hh-rlhf, chosen and rejected are whole dialogues in one string, of turns such as
  "\\n\\nHuman: …" and "\\n\\nAssistant: …"; the prompt reaches to the last "\\n\\nAssistant:" that both begin with;
- `instructions`: instruction, perhaps input, chosen, rejected; the prompt is Alpaca's template of the first two.

Messages become text in the form of `dialogues`, with the roles User, Assistant, System. A pair without a common prompt
gets an empty one, and is dropped and counted as such by `llm.preferences.cleaned`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal, NamedTuple

from llm.corpus import hub
from llm.corpus.config import CorpusConfig, kind
from llm.corpus.files import Row, find, read_rows
from llm.errors import WordmillError

ShapeName = Literal["auto", "strings", "messages", "dialogues", "instructions"]
ASSISTANT = "\n\nAssistant:"


class Texts(NamedTuple):
    prompt: str
    chosen: str
    rejected: str


def from_files(paths: tuple[str, ...], shape: ShapeName, scratch: Path) -> Iterator[Texts]:
    """The pairs of all files that paths and globs name, in order. Raises WordmillError naming file and line."""
    for path in find(paths, "preferences.paths"):
        if not path.is_file():
            raise WordmillError(f"preferences.paths: {path}: not found")
        suffix = (kind(path.name) or ("", ""))[0]
        if suffix in ("", ".txt"):
            raise WordmillError(
                f"preferences.paths: {path}: the name must end in .jsonl, .json or .parquet (or that and .gz or .zst)"
            )
        yield from _converted(read_rows(path, scratch), shape)


def from_hub(config: CorpusConfig, shape: ShapeName, scratch: Path) -> Iterator[Texts]:
    """The pairs of one split of a data set, file by file. Raises WordmillError."""
    for rows in hub.open_rows(config, scratch).files:
        yield from _converted(rows(), shape)


def _converted(rows: Iterable[Row], shape: ShapeName) -> Iterator[Texts]:
    for row in rows:
        if row.replaced:
            raise WordmillError(f"{row.where}: not UTF-8 text; save the file as UTF-8")
        if not isinstance(row.values, Mapping):
            raise WordmillError(f"{row.where}: not a record with keys, but a {type(row.values).__name__}")
        if shape == "auto":
            shape = _recognised(row.values)
        texts = SHAPES[shape](row.values, row.where)
        for key, text in zip(Texts._fields, texts, strict=True):
            if any("\ud800" <= character <= "\udfff" for character in text):
                raise WordmillError(
                    f"{row.where}: key {key!r} holds half of a character (a lone surrogate); mend the text"
                )
        yield texts


def _recognised(record: Mapping[str, Any]) -> ShapeName:
    if isinstance(record.get("chosen"), list):
        return "messages"
    if "prompt" in record:
        return "strings"
    if "instruction" in record:
        return "instructions"
    if isinstance(record.get("chosen"), str) and ASSISTANT in record["chosen"]:
        return "dialogues"
    return "strings"  # which says what is missing


def _string(record: Mapping[str, Any], key: str, where: str) -> str:
    value = record.get(key)
    if not isinstance(value, str):
        raise WordmillError(f"{where}: key {key!r} is missing or not a string")
    return value


def _strings(record: Mapping[str, Any], where: str) -> Texts:
    return Texts(*(_string(record, key, where) for key in Texts._fields))


def _instructions(record: Mapping[str, Any], where: str) -> Texts:
    prompt = f"### Instruction:\n{_string(record, 'instruction', where)}\n\n"
    if record.get("input"):
        prompt += f"### Input:\n{_string(record, 'input', where)}\n\n"
    chosen, rejected = (_string(record, key, where) for key in ("chosen", "rejected"))
    return Texts(prompt + "### Response:\n", chosen, rejected)


def _dialogues(record: Mapping[str, Any], where: str) -> Texts:
    chosen, rejected = (_string(record, key, where) for key in ("chosen", "rejected"))
    common = _common(chosen, rejected)
    border = chosen.rfind(ASSISTANT, 0, common)
    if border < 0:
        return Texts("", chosen, rejected)
    border += len(ASSISTANT)
    return Texts(chosen[:border], chosen[border:], rejected[border:])


def _common(chosen: Sequence[Any], rejected: Sequence[Any]) -> int:
    """How many items both begin with."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(chosen, rejected, strict=False)))


def _messages(record: Mapping[str, Any], where: str) -> Texts:
    chosen, rejected = (_turns(record, key, where) for key in ("chosen", "rejected"))
    prompt = record.get("prompt") or []
    turns = [("user", prompt)] if isinstance(prompt, str) else _turns(record, "prompt", where) if prompt else []
    if chosen[: len(turns)] == turns == rejected[: len(turns)]:
        turns = []
    shared = _common(chosen, rejected)
    shared = min(shared, len(chosen) - 1, len(rejected) - 1)
    while shared and not chosen[shared][0] == rejected[shared][0] == "assistant":
        shared -= 1
    if not chosen[shared][0] == rejected[shared][0] == "assistant":
        return Texts("", _dialogue(chosen), _dialogue(rejected))
    before = turns + chosen[:shared]
    answers = [_answer(side[shared:]) for side in (chosen, rejected)]
    return Texts(_dialogue(before) + ASSISTANT if before else "", *answers)


def _answer(turns: list[tuple[str, str]]) -> str:
    """What follows "Assistant:"."""
    return (" " + turns[0][1] if turns[0][1] else "") + _dialogue(turns[1:])


def _turns(record: Mapping[str, Any], key: str, where: str) -> list[tuple[str, str]]:
    value = record.get(key)
    if not isinstance(value, list) or not value:
        raise WordmillError(f"{where}: key {key!r} is missing or not a list of messages")
    for message in value:
        texts = isinstance(message, Mapping) and [message.get(part) for part in ("role", "content")]
        if not texts or not all(isinstance(text, str) for text in texts):
            raise WordmillError(f"{where}: key {key!r} holds a message without role and content as strings")
    return [(message["role"], message["content"]) for message in value]


def _dialogue(turns: Iterable[tuple[str, str]]) -> str:
    return "".join(f"\n\n{role.capitalize()}: {content}" for role, content in turns)


SHAPES: dict[ShapeName, Callable[[Mapping[str, Any], str], Texts]] = {
    "strings": _strings,
    "messages": _messages,
    "dialogues": _dialogues,
    "instructions": _instructions,
}
