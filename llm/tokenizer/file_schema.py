"""The schemas of tokenizer.json and tokenizer_config.json, and what must hold between their parts.

Tokens of text and special tokens share one table of names in a tokenizer.json. So a special token whose name or id is
also that of a token that text becomes is refused: text would become special, or a token would be lost.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from llm.errors import WordmillError
from llm.strict_json import check_json, quoted, read_json

LARGEST_FILE = 200_000_000  # bytes of a tokenizer.json; Gemma 3's has 33 MB
UNUSED = 100_000  # ids without a token that a vocabulary may have, beside as many as it has tokens
TOKENIZER, SETTINGS = "tokenizer.json", "tokenizer_config.json"

Id = Annotated[int, Field(ge=0, lt=1 << 31)]
Name = Annotated[str, Field(min_length=1)]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")


class AddedToken(_Part):
    id: Id
    content: Name
    special: bool = False
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False


class Pattern(_Part):
    Regex: str | None = None
    String: str | None = None


class Step(_Part):
    """A pre-tokenizer."""

    type: str
    pattern: Pattern | None = None
    behavior: str | None = None
    invert: bool = False
    add_prefix_space: bool | None = None
    use_regex: bool | None = None
    pretokenizers: list["Step"] | None = None


class Normalizer(_Part):
    type: str
    normalizers: list["Normalizer"] | None = None


class Model(_Part):
    type: str = "BPE"
    vocab: dict[Name, Id]
    merges: list[str | Annotated[list[str], Field(min_length=2, max_length=2)]]
    dropout: float | None = None
    continuing_subword_prefix: str | None = None
    end_of_word_suffix: str | None = None
    byte_fallback: bool | None = None


class File(_Part):
    """A tokenizer.json with a BPE."""

    model: Model
    added_tokens: list[AddedToken] = []
    normalizer: Normalizer | None = None
    pre_tokenizer: Step | None = None
    post_processor: dict[str, Any] | None = None
    decoder: dict[str, Any] | None = None


class Named(_Part):
    content: str


class Settings(_Part):
    """tokenizer_config.json."""

    bos_token: str | Named | None = None
    eos_token: str | Named | None = None


def read_file(path: Path) -> tuple[dict[str, Any], File]:
    """The content of a tokenizer.json, as it stands and checked. Raises WordmillError."""
    remedy = "; `dvc checkout` brings back what DVC made"
    try:
        content = read_json(path, remedy, LARGEST_FILE)
    except FileNotFoundError:
        raise WordmillError(f"{path}: not found; the stage `tokenizer` makes it") from None
    model = content.get("model") if isinstance(content, dict) else None
    if not isinstance(model, dict):
        raise WordmillError(f"{path}: not a tokenizer.json: it names no model")
    if model.get("type", "BPE") != "BPE":
        raise WordmillError(f"{path}: a model of type {quoted(model['type'])} is not supported; only byte-level BPE is")
    checked: File = check_json(content, File, str(path))
    try:
        check_names(checked.model.vocab, {token.content: token.id for token in checked.added_tokens})
        if len({token.content for token in checked.added_tokens}) < len(checked.added_tokens):
            raise WordmillError("added_tokens: one stands there twice")
        _check_merges(checked)
    except WordmillError as error:
        raise WordmillError(f"{path}: {error}") from None
    found: dict[str, Any] = content
    return found, checked


def check_names(vocab: Mapping[str, int], added: Mapping[str, int]) -> None:
    """See that each id has one name, each name one id, and few ids have none. Raises WordmillError."""
    names: dict[int, str] = {}
    for table in (vocab, added):
        for name, number in table.items():
            if names.setdefault(number, name) != name:
                raise WordmillError(f"the id {number} belongs to {quoted(names[number])} and to {quoted(name)}")
    for name, number in added.items():
        if vocab.get(name, number) != number:
            raise WordmillError(f"the token {quoted(name)} has the ids {vocab[name]} and {number}")
    if max(names, default=-1) >= 2 * len(names) + UNUSED:
        raise WordmillError(f"ids reach to {max(names)}, though there are only {len(names)} tokens")


def _check_merges(file: File) -> None:
    """A special token that a merge makes is one that plain text becomes."""
    pairs = (pair.split(" ") if isinstance(pair, str) else pair for pair in file.model.merges)
    made = {"".join(pair) for pair in pairs}
    for token in file.added_tokens:
        if token.special and token.content in made:
            raise WordmillError(
                f"the special token {quoted(token.content)} is also what a merge makes of text, so plain text would "
                "become special"
            )


def check_specials(names: Iterable[str], special_tokens: Iterable[str]) -> None:
    """See that no special token has the name, as tokenizer.json writes it, of a token of text. Raises WordmillError."""
    taken = set(names)
    for token in special_tokens:
        if token in taken:
            raise WordmillError(
                f"tokenizer.special_tokens: {quoted(token)} is also a token that text becomes, and tokenizer.json has "
                "one table of names for both; choose a name that no text teaches, such as <|"
                + token.strip("<|>")
                + "|>"
            )


def read_settings(path: Path) -> Settings:
    """The tokenizer_config.json at `path`; without any setting where there is none. Raises WordmillError."""
    try:
        settings: Settings = check_json(read_json(path), Settings, str(path))
        return settings
    except FileNotFoundError:
        return Settings()


def name_of(token: str | Named | None) -> str:
    """The text of a token in tokenizer_config.json; empty for none."""
    return token.content if isinstance(token, Named) else token or ""
