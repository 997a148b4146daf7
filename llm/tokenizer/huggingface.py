"""A byte-level BPE as Hugging Face's `tokenizer.json`, both ways; the one file that defines a tokenizer on disk.

`tokenizers` and `transformers` open it and give the same ids. In that format a token is written with one printable
character for each of its bytes (GPT-2's table), merges are pairs of such strings, and the split pattern stands in
the pre-tokenizer. Text is written sorted and without times, so equal tokenizers are equal files.

tiktoken and Hugging Face's library merge by different rules: the one joins two neighbours whenever what they spell is
a token, lowest id first; the other only pairs that are listed, in the order of the list. They agree on every text if,
for each token, tiktoken's rule on the token's own bytes ends with the very pair that the list gives, and the list is in
the order of the ids: what happens inside a stretch of bytes, as long as nothing is merged across its ends, does not
depend on what stands around it. `definition` takes a file only if that holds, so a file that it takes can be encoded
by tiktoken.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from llm.tokenizer.file_schema import File, Step, check_specials
from llm.tokenizer.patterns import GPT2, KNOWN, byte_characters
from llm.tokenizer.tokenizer import END_OF_TEXT

Pair = tuple[int, int]


class Definition(NamedTuple):
    """All that decides which ids a text gets."""

    tokens: tuple[bytes, ...]  # the ordinary tokens by id; empty where an id is special or not in use
    merges: tuple[Pair, ...]  # the ids that make each token of more than one byte, in the order of their ids
    pattern: str  # how text falls into words
    special_tokens: dict[str, int]
    end_of_text: str = END_OF_TEXT  # which of them ends a document
    begin_of_text: str = ""  # which of them begins one, if it is another


def definition_of(merges: Sequence[Pair], pattern: str, special_tokens: Sequence[str]) -> Definition:
    """Bytes are ids 0 to 255, the merges follow in order, the special tokens come last.

    Raises WordmillError where a special token has the name of a token of text.
    """
    tokens = [bytes([byte]) for byte in range(256)]
    for left, right in merges:
        tokens.append(tokens[left] + tokens[right])
    check_specials(names_of(tokens), special_tokens)
    specials = {token: len(tokens) + i for i, token in enumerate(special_tokens)}
    return Definition(tuple(tokens), tuple(merges), pattern, specials)


def names_of(tokens: Iterable[bytes]) -> list[str]:
    """Tokens as tokenizer.json writes them: a character for each byte."""
    characters = byte_characters()
    return ["".join(characters[byte] for byte in token) for token in tokens]


def tokenizer_json(definition: Definition) -> str:
    """The content of tokenizer.json."""
    names = names_of(definition.tokens)
    specials = [
        {
            "id": number,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for token, number in sorted(definition.special_tokens.items(), key=lambda item: item[1])
    ]
    split = {"type": "Split", "pattern": {"Regex": definition.pattern}, "behavior": "Isolated", "invert": False}
    to_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": specials,
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, to_bytes]},
        "post_processor": own_beginning(definition.begin_of_text, definition.special_tokens),
        "decoder": to_bytes,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {name: number for number, name in enumerate(names) if name},
            "merges": [[names[left], names[right]] for left, right in definition.merges],
        },
    }
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def own_beginning(begin_of_text: str, special_tokens: Mapping[str, int]) -> dict[str, Any] | None:
    """The post-processor of a tokenizer whose documents begin with a token of their own; None for others."""
    return beginning(begin_of_text, special_tokens[begin_of_text]) if begin_of_text else None


def beginning(token: str, number: int) -> dict[str, Any]:
    """The post-processor that puts `token` in front of each text."""
    special = {"SpecialToken": {"id": token, "type_id": 0}}
    first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    return {
        "type": "TemplateProcessing",
        "single": [special, first],
        "pair": [special, first, special, second],
        "special_tokens": {token: {"id": token, "ids": [number], "tokens": [token]}},
    }


def tokenizer_config_json(end_of_text: str, begin_of_text: str = "") -> str:
    """The content of tokenizer_config.json, by which `transformers.AutoTokenizer` opens the folder."""
    content = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": begin_of_text or end_of_text,
        "eos_token": end_of_text,
        "clean_up_tokenization_spaces": False,
    }
    return json.dumps(content, indent=2) + "\n"


class Unknown(ValueError):
    """A tokenizer.json that may be good, but is not one that tiktoken's way of merging is known to be right for."""


def definition(file: File, end_of_text: str = END_OF_TEXT, begin_of_text: str = "") -> Definition:
    """What a tokenizer.json says, if tiktoken can do exactly that. Raises Unknown if not."""
    if file.model.dropout or not all(token.special for token in file.added_tokens):
        raise Unknown("merges left out at random, or tokens that are found in text before it falls into words")
    specials = {token.content: token.id for token in file.added_tokens}
    names = file.model.vocab
    tokens = byte_tokens({name: number for name, number in names.items() if name not in specials})
    pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in file.model.merges]
    try:
        merges = tuple((names[left], names[right]) for left, right in pairs)
    except (KeyError, ValueError):
        raise Unknown("a merge of what are no tokens") from None
    if merges != merges_of(tokens):
        raise Unknown("merges that do not follow from the order of the tokens")
    return Definition(tokens, merges, _pattern(file.pre_tokenizer), specials, end_of_text, begin_of_text)


def byte_tokens(ids: Mapping[str, int]) -> tuple[bytes, ...]:
    """The bytes of tokens written in GPT-2's table, by id. Raises Unknown for other signs or if a byte is missing."""
    bytes_of = {character: byte for byte, character in enumerate(byte_characters())}
    tokens = [b""] * (max(ids.values(), default=-1) + 1)
    for name, number in ids.items():
        try:
            tokens[number] = bytes(bytes_of[character] for character in name)
        except KeyError:
            raise Unknown(f"the token {name!r} is not written in bytes") from None
    if missing := {bytes([byte]) for byte in range(256)} - set(tokens):
        raise Unknown(f"{len(missing)} of the 256 bytes are no tokens")
    return tuple(tokens)


def merges_of(tokens: Sequence[bytes]) -> tuple[Pair, ...]:
    """The pair that makes each token of more than one byte, in the order of ids, by tiktoken's rule.

    Raises Unknown where a token is not made of two earlier ones, and so never appears in any text.
    """
    ids = {token: number for number, token in enumerate(tokens) if token}
    merges = []
    for number, token in enumerate(tokens):
        if len(token) > 1:
            parts = [token[i : i + 1] for i in range(len(token))]
            ranks = [ids.get(token[i : i + 2], number) for i in range(len(token) - 1)]  # of each two neighbours
            while len(parts) > 2:
                lowest = min(ranks)
                if lowest >= number:
                    raise Unknown(f"no two earlier tokens make token {number}")
                at = ranks.index(lowest)
                parts[at] += parts.pop(at + 1)
                del ranks[at]
                if at:
                    ranks[at - 1] = ids.get(parts[at - 1] + parts[at], number)
                if at < len(ranks):
                    ranks[at] = ids.get(parts[at] + parts[at + 1], number)
            merges.append((ids[parts[0]], ids[parts[1]]))
    return tuple(merges)


def _pattern(pre_tokenizer: Step | None) -> str:
    """The split pattern, if it is one that both libraries are known to read alike."""
    steps = steps_of(pre_tokenizer)
    if steps and steps[-1].type == "ByteLevel" and not steps[-1].add_prefix_space:
        splits, own = steps[:-1], steps[-1].use_regex is not False
        if own and not splits:
            return GPT2
        if not own and len(splits) == 1 and (splits[0].type, splits[0].behavior) == ("Split", "Isolated"):
            pattern = splits[0].pattern.Regex if splits[0].pattern else None
            if pattern in KNOWN and not splits[0].invert:
                return str(pattern)
    raise Unknown("another way of cutting text into words")


def steps_of(pre_tokenizer: Step | None) -> list[Step]:
    """The steps of a pre-tokenizer, in order."""
    if pre_tokenizer is None:
        return []
    return pre_tokenizer.pretokenizers or [] if pre_tokenizer.type == "Sequence" else [pre_tokenizer]
