"""From a record to a prompt and two answers: the shapes that preference sets have.

- `strings`: prompt, chosen, rejected, all strings. Other names of the prompt are instruction, question, query, input.
- `messages`: chosen and rejected are messages. By the rule of TRL, lists that hold a user's turn before the turn in
  which they part are the whole dialogue, and a string `prompt` beside them is ignored; else it is the user's turn. A
  list `prompt`, `conversations` (ShareGPT) or `history` comes before, unless the lists repeat it.
- `dialogues`: as in hh-rlhf, chosen and rejected are whole dialogues in one string; the prompt reaches to the last
  mark of an assistant's turn that both begin with.
- `instructions`: instruction, perhaps input, chosen, rejected; the prompt is Alpaca's template.

`system` and `history` ([[question, answer], …] or messages) are kept in every shape, and make a dialogue of a string
prompt. Context that no shape reads (tools, images, …) leaves the record out. Dialogues become text as
"\\n\\nUser: …\\n\\nAssistant: …".

Each function raises WordmillError for a record that is not of its shape, and LeftOut for one that gives no pair.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from llm.errors import WordmillError
from llm.preference_account import Account
from llm.preference_dialogues import (
    ANSWER,
    ASSISTANT,
    SYSTEM,
    USER,
    LeftOut,
    Turn,
    answer_border,
    as_text,
    common_length,
    ends_with_answer_mark,
    is_dialogue,
    joined,
    messages,
)

ShapeName = Literal["auto", "strings", "messages", "dialogues", "instructions"]
PROMPTS = ("prompt", "instruction", "question", "query", "input")
SYSTEMS = ("system", "system_prompt", "system_message")
EARLIER = ("conversations", "conversation", "messages")  # the dialogue before the answers
UNREAD_CONTEXT = ("context", "tools", "image", "images", "video", "videos", "audio", "audios")
ANSWERS = {"chosen": ("chosen", "chosen_response"), "rejected": ("rejected", "rejected_response")}
READ = {*PROMPTS, *SYSTEMS, *EARLIER, "history", *UNREAD_CONTEXT, *ANSWERS["chosen"], *ANSWERS["rejected"]}


class Texts(NamedTuple):
    prompt: str
    chosen: str
    rejected: str


def convert(record: Mapping[str, Any], shape: ShapeName, where: str, account: Account) -> Texts:
    """The prompt and the answers of a record. Raises WordmillError and LeftOut."""
    chosen_shape = recognise(record) if shape == "auto" else shape
    for key in record:
        if key not in READ or (key in EARLIER and chosen_shape != "messages"):
            account.unread[key] = None
    for key in UNREAD_CONTEXT:
        if _given(record, key):
            raise LeftOut("unread_context", f"key {key!r}; put it into the prompt, or remove the key")
    texts = SHAPES[chosen_shape](record, where, account)
    for key, text in zip(Texts._fields, texts, strict=True):
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise WordmillError(f"{where}: key {key!r} holds half of a character (a lone surrogate); correct the text")
    return texts


def recognise(record: Mapping[str, Any]) -> ShapeName:
    """The shape of a record, by its keys and the types of their values."""
    chosen, rejected = (_answer_value(record, side) for side in ANSWERS)
    if isinstance(chosen, list | Mapping) or isinstance(record.get("prompt"), list):
        return "messages"
    texts = isinstance(chosen, str) and isinstance(rejected, str)
    if texts and is_dialogue(chosen) and is_dialogue(rejected) and answer_border(chosen, rejected) is not None:
        return "dialogues"
    if _given(record, "prompt"):
        return "strings"
    if _given(record, "instruction"):
        return "instructions"
    if any(_given(record, key) for key in PROMPTS):
        return "strings"
    if any(isinstance(record.get(key), list) for key in EARLIER):
        return "messages"
    if texts and answer_border(chosen, rejected) is not None:
        return "dialogues"
    return "dialogues" if texts and is_dialogue(chosen) else "strings"  # `strings` says what is missing


def _given(record: Mapping[str, Any], key: str) -> bool:
    """Whether there is something in a key: nulls, blank texts and empty lists are nothing, 0 and false are."""
    value = record.get(key)
    if isinstance(value, str):
        return bool(value.strip())
    return value is not None and not (isinstance(value, list | Mapping) and not value)


def _string(record: Mapping[str, Any], key: str, where: str) -> str:
    value = record.get(key)
    if not isinstance(value, str):
        raise WordmillError(f"{where}: key {key!r} is missing or not a string")
    return value


def _answer_value(record: Mapping[str, Any], side: str) -> Any:
    return next((record[key] for key in ANSWERS[side] if record.get(key) is not None), None)


def _answers(record: Mapping[str, Any], where: str) -> tuple[str, str]:
    found = [_answer_value(record, side) for side in ANSWERS]
    for side, value in zip(ANSWERS, found, strict=True):
        if not isinstance(value, str):
            raise WordmillError(f"{where}: key {side!r} is missing or not a string")
    return found[0], found[1]


def _system(record: Mapping[str, Any], where: str) -> list[Turn]:
    key = next((key for key in SYSTEMS if _given(record, key)), None)
    return [Turn(SYSTEM, _string(record, key, where))] if key else []


def _history(record: Mapping[str, Any], where: str) -> list[Turn]:
    """`history`, as [[question, answer], …] or as messages."""
    value = record.get("history")
    if not _given(record, "history"):
        return []
    if isinstance(value, list) and all(isinstance(item, Mapping) for item in value):
        return messages(value, "history", where)
    turns = []
    for item in value if isinstance(value, list) else [None]:
        if not isinstance(item, list | tuple) or len(item) != 2 or not all(isinstance(text, str) for text in item):
            raise WordmillError(f"{where}: key 'history' is not a list of [question, answer] or of messages")
        turns += [Turn(USER, item[0]), Turn(ASSISTANT, item[1])]
    return turns


def _prompt_key(record: Mapping[str, Any], where: str) -> str:
    """The key of the string prompt. Raises LeftOut where two say different things."""
    keys = [key for key in PROMPTS if _given(record, key)]
    if not keys:
        if all(record.get(key) is None for key in PROMPTS):
            raise WordmillError(f"{where}: key 'prompt' is missing or not a string")
        raise LeftOut("empty_prompt")
    prompt = _string(record, keys[0], where)
    for key in keys[1:]:
        if _string(record, key, where).strip() not in prompt:
            raise LeftOut("two_prompts", f"keys {keys[0]!r} and {key!r}")
    return keys[0]


def _strings(record: Mapping[str, Any], where: str, account: Account) -> Texts:
    chosen, rejected = _answers(record, where)
    key = _prompt_key(record, where)
    prompt = _string(record, key, where)
    if chosen.startswith(prompt) and rejected.startswith(prompt):
        account.notes["prompts that both answers repeat, read once"] += 1
        chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
    if key == "prompt" and not any(name in record for name in (*SYSTEMS, "history")):
        return Texts(prompt, chosen, rejected)
    before = as_text([*_system(record, where), *_history(record, where)])
    before += "\n\n" + prompt.lstrip() if is_dialogue(prompt) else as_text([Turn(USER, prompt)])
    if not ends_with_answer_mark(before):
        before += ANSWER
    return Texts(before, _after_mark(chosen), _after_mark(rejected))


def _after_mark(answer: str) -> str:
    return answer if not answer or answer[0].isspace() else f" {answer}"


def _instructions(record: Mapping[str, Any], where: str, account: Account) -> Texts:
    chosen, rejected = _answers(record, where)
    instruction = _string(record, "instruction", where)
    if not instruction.strip():
        raise LeftOut("empty_prompt")
    for key in ("prompt", "question", "query"):
        if _given(record, key) and _string(record, key, where).strip() not in instruction:
            raise LeftOut("two_prompts", f"keys 'instruction' and {key!r}")
    prompt = "".join(f"{turn.content}\n\n" for turn in _system(record, where))
    for turn in _history(record, where):
        heading = "Response" if turn.role == ASSISTANT else "Instruction"
        prompt += f"### {heading}:\n{turn.content}\n\n"
    prompt += f"### Instruction:\n{instruction}\n\n"
    if _given(record, "input"):
        prompt += f"### Input:\n{_string(record, 'input', where)}\n\n"
    return Texts(prompt + "### Response:\n", chosen, rejected)


def _dialogues(record: Mapping[str, Any], where: str, account: Account) -> Texts:
    chosen, rejected = _answers(record, where)
    border = answer_border(chosen, rejected)
    if border is None:
        raise LeftOut("no_common_prompt")
    prompt = chosen[:border]
    _note_ignored(record, prompt, account)
    before = as_text([*_system(record, where), *_history(record, where)])
    if before and before.strip() not in prompt:
        prompt = f"{before}\n\n{prompt.lstrip()}"
    return Texts(prompt, chosen[border:], rejected[border:])


def _note_ignored(record: Mapping[str, Any], dialogue: str, account: Account) -> None:
    """Count a string prompt that stands beside a whole dialogue and is not in it."""
    prompts = [record[key] for key in PROMPTS if isinstance(record.get(key), str)]
    if any(prompt.strip() not in dialogue for prompt in prompts):
        account.notes["prompts beside a whole dialogue that does not hold them, ignored as TRL does"] += 1


def _messages(record: Mapping[str, Any], where: str, account: Account) -> Texts:
    chosen, rejected = (_answer_turns(record, side, where) for side in ANSWERS)
    fork = _fork(chosen, rejected)
    before = _with_prompt(record, chosen[:fork], [chosen[fork], rejected[fork]], where, account)
    before = joined(_history(record, where), before)
    if (system := _system(record, where)) and system[0] not in before:
        before = system + before
    if not before:
        raise LeftOut("empty_prompt")
    return Texts(as_text(before) + ANSWER, *(_answer(side[fork:]) for side in (chosen, rejected)))


def _answer_turns(record: Mapping[str, Any], side: str, where: str) -> list[Turn]:
    value = _answer_value(record, side)
    if isinstance(value, str) and not isinstance(_answer_value(record, "chosen"), list):
        return [Turn(ASSISTANT, value)]
    if isinstance(value, list) and not value:
        raise LeftOut("empty_answer", f"key {side!r}")
    return messages(value, side, where)


def _fork(chosen: Sequence[Turn], rejected: Sequence[Turn]) -> int:
    """The number of the assistant's turn in which two dialogues part. Raises LeftOut."""
    fork = min(common_length(chosen, rejected), len(chosen) - 1, len(rejected) - 1)
    while fork >= 0 and not chosen[fork].role == rejected[fork].role == ASSISTANT:
        fork -= 1
    if fork < 0:
        raise LeftOut("no_common_prompt")
    return fork


def _with_prompt(
    record: Mapping[str, Any], shared: list[Turn], answers: Sequence[Turn], where: str, account: Account
) -> list[Turn]:
    """The turns that both lists begin with, after those of the record's own prompt."""
    if isinstance(record.get("prompt"), list) and record["prompt"]:
        return joined(messages(record["prompt"], "prompt", where), shared)
    if any(turn.role == USER for turn in shared):
        _note_ignored(record, as_text(shared), account)
        return shared
    if any(_given(record, key) for key in PROMPTS):
        prompt = Turn(USER, _string(record, _prompt_key(record, where), where))
        first = next((i for i, turn in enumerate(shared) if turn.role != SYSTEM), len(shared))
        return [*shared[:first], prompt, *shared[first:]]
    for key in EARLIER:
        if _given(record, key):
            earlier = messages(record[key], key, where)
            return joined(earlier[:-1] if earlier[-1] in answers else earlier, shared)
    return shared


def _answer(turns: Sequence[Turn]) -> str:
    """What follows "Assistant:"."""
    return (f" {turns[0].content}" if turns[0].content else "") + as_text(turns[1:])


SHAPES: dict[ShapeName, Callable[[Mapping[str, Any], str, Account], Texts]] = {
    "strings": _strings,
    "messages": _messages,
    "dialogues": _dialogues,
    "instructions": _instructions,
}
