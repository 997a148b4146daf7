"""Roles and turns of dialogues: as lists of messages and as plain text.

A message is {role, content}, as in OpenAI's format, or {from, value}, as in ShareGPT's. Roles go by one table,
whatever their case. Text marks a turn by its role and a colon at the beginning of a line ("\\n\\nHuman: …", as in
hh-rlhf; "USER: …"), or behind hash signs ("### Assistant: …", Alpaca's "### Instruction:").
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile
from typing import Any, NamedTuple

from llm.errors import WordmillError

USER, ASSISTANT, SYSTEM, TOOL = "User", "Assistant", "System", "Tool"
ROLES = {
    **dict.fromkeys(("user", "human", "prompter"), USER),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bot", "ai", "model", "chatbot", "function_call"), ASSISTANT),
    **dict.fromkeys(("system", "developer"), SYSTEM),
    **dict.fromkeys(("tool", "function", "observation", "ipython"), TOOL),
}
ROLE_KEYS, CONTENT_KEYS = ("role", "from"), ("content", "value")

# The roles that text is searched for: few, since "Model: …" may begin a line of any text.
TEXT_ROLES = {
    **dict.fromkeys(("user", "human", "prompter", "instruction"), USER),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bot", "ai", "response"), ASSISTANT),
    "system": SYSTEM,
}
MARK = re.compile(rf"(?:(?:\A|\n)[ \t]*|#{{2,}}[ \t]*)({'|'.join(TEXT_ROLES)})[ \t]*:", re.IGNORECASE)
ANSWER = f"\n\n{ASSISTANT}:"


class Turn(NamedTuple):
    role: str  # USER, ASSISTANT, SYSTEM or TOOL
    content: str


class LeftOut(Exception):
    """A record that gives no pair: its cause in `llm.preference_account.CAUSES`, and what a person should see."""

    def __init__(self, cause: str, detail: str = "") -> None:
        super().__init__(cause)
        self.cause = cause
        self.detail = detail


def messages(value: Any, key: str, where: str) -> list[Turn]:
    """A list of messages, or one message, as turns. Raises WordmillError and LeftOut."""
    given = _one_by_one(value) if isinstance(value, Mapping) else value
    if not isinstance(given, list) or not given:
        raise WordmillError(f"{where}: key {key!r} is missing or not a list of messages")
    return [_turn(message, key, where) for message in given]


def _one_by_one(value: Mapping[str, Any]) -> list[Any]:
    """One message, or the messages that {role: […], content: […]} holds in columns, as some Parquet files do."""
    columns = {name: column for name, column in value.items() if isinstance(column, list)}
    if not any(name in columns for name in ROLE_KEYS):
        return [value]
    if len({len(column) for column in columns.values()}) > 1:
        return [value]
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _turn(message: Any, key: str, where: str) -> Turn:
    trouble = WordmillError(f"{where}: key {key!r} holds a message without role and content as strings")
    if not isinstance(message, Mapping):
        raise trouble
    role = next((message[name] for name in ROLE_KEYS if message.get(name) is not None), None)
    content = next((message[name] for name in CONTENT_KEYS if message.get(name) is not None), None)
    if isinstance(content, list):
        content = _text_of_parts(content, key)
    if not isinstance(role, str) or not isinstance(content, str):
        raise trouble
    known = ROLES.get(role.strip().lower())
    if known is None:
        raise LeftOut("unknown_role", f"role {role[:40]!r} in key {key!r}; known are {', '.join(ROLES)}")
    return Turn(known, content)


def _text_of_parts(parts: Sequence[Any], key: str) -> str:
    """Content given as [{type: text, text: …}, …]."""
    texts = []
    for part in parts:
        text = part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else part
        if not isinstance(text, str):
            raise LeftOut("not_text", f"key {key!r}")
        texts.append(text)
    return "".join(texts)


def as_text(turns: Iterable[Turn]) -> str:
    return "".join(f"\n\n{turn.role}: {turn.content}" for turn in turns)


def common_length(one: Sequence[Any], other: Sequence[Any]) -> int:
    """How many items both begin with."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def joined(earlier: Sequence[Turn], turns: Sequence[Turn]) -> list[Turn]:
    """`earlier` before `turns`; what both hold of the same dialogue stands there once."""

    def alike(one: Sequence[Turn], other: Sequence[Turn]) -> bool:
        return [(t.role, t.content.strip()) for t in one] == [(t.role, t.content.strip()) for t in other]

    for start in range(len(turns) - len(earlier) + 1):
        if alike(turns[start : start + len(earlier)], earlier):
            return list(turns)
    shared = next(
        (n for n in range(min(len(earlier), len(turns)), 0, -1) if alike(earlier[-n:], turns[:n])),
        0,
    )
    return [*earlier[: len(earlier) - shared], *turns]


def is_dialogue(text: str) -> bool:
    """Whether text begins with a turn of the user or the system."""
    mark = MARK.match(text.lstrip())
    return mark is not None and TEXT_ROLES[mark[1].lower()] != ASSISTANT


def answer_border(chosen: str, rejected: str) -> int | None:
    """Where the answers of two whole dialogues begin: behind the last mark of an assistant's turn that both share."""
    shared = common_length(chosen, rejected)
    borders = [mark.end() for mark in MARK.finditer(chosen, 0, shared) if TEXT_ROLES[mark[1].lower()] == ASSISTANT]
    return borders[-1] if borders else None


def ends_with_answer_mark(text: str) -> bool:
    """Whether a prompt ends with the mark of an assistant's turn, so that the answer may follow."""
    marks = [mark for mark in MARK.finditer(text) if mark.end() == len(text.rstrip())]
    return bool(marks) and TEXT_ROLES[marks[-1][1].lower()] == ASSISTANT


def opening(prompt: str) -> str:
    """The first turn of the user in a prompt, which all stages of one dialogue share; of other text, all of it."""
    marks = list(MARK.finditer(prompt))
    first = next((i for i, mark in enumerate(marks) if TEXT_ROLES[mark[1].lower()] == USER), None)
    if first is None:
        return prompt.strip()
    ends = (mark.start() for mark in marks[first + 1 :] if TEXT_ROLES[mark[1].lower()] != USER)
    return prompt[marks[first].end() : next(ends, len(prompt))].strip()
