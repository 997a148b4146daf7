"""A byte-level BPE as Hugging Face's `tokenizer.json`, both ways; the one file that defines a tokenizer on disk.

`tokenizers` and `transformers` open it and give the same ids. In that format a token is written with one printable
character for each of its bytes (GPT-2's table), merges are pairs of such strings, and the split pattern stands in
the pre-tokenizer. Text is written sorted and without times, so equal tokenizers are equal files.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from llm.errors import WordmillError

Pair = tuple[int, int]


class Definition(NamedTuple):
    """All that decides which ids a text gets."""

    tokens: tuple[bytes, ...]  # of the ordinary tokens, by id; the first 256 are single bytes
    merges: tuple[Pair, ...]  # the ids that make token 256, 257, ...
    pattern: str  # how text falls into words
    special_tokens: dict[str, int]


def byte_characters() -> list[str]:
    """The character for each byte: itself where it is printable, else the next one free from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {byte: chr(byte) for byte in printable} | {byte: chr(0x100 + i) for i, byte in enumerate(others)}
    return [table[byte] for byte in range(256)]


def tokenizer_json(definition: Definition) -> str:
    """The content of tokenizer.json."""
    characters = byte_characters()
    names = ["".join(characters[byte] for byte in token) for token in definition.tokens]
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
        "post_processor": None,
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
            "vocab": {name: number for number, name in enumerate(names)},
            "merges": [[names[left], names[right]] for left, right in definition.merges],
        },
    }
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def tokenizer_config_json(end_of_text: str) -> str:
    """The content of tokenizer_config.json, by which `transformers.AutoTokenizer` opens the folder."""
    content = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": end_of_text,
        "eos_token": end_of_text,
        "clean_up_tokenization_spaces": False,
    }
    return json.dumps(content, indent=2) + "\n"


def read(path: Path) -> Definition:
    """The tokenizer in a tokenizer.json as `tokenizer_json` writes it. Raises WordmillError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise WordmillError(f"{path}: not found; the stage `tokenizer` makes it") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise WordmillError(f"{path}: not JSON ({error}); `dvc checkout` brings it back") from None
    try:
        return _definition(content)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise WordmillError(f"{path}: not a byte-level BPE as Wordmill writes it ({error!r})") from None


def _definition(content: Mapping[str, Any]) -> Definition:
    model = content["model"]
    split, to_bytes = content["pre_tokenizer"]["pretokenizers"]
    if (model["type"], split["type"], to_bytes["type"]) != ("BPE", "Split", "ByteLevel") or content["normalizer"]:
        raise ValueError("another kind of tokenizer")
    bytes_of = {character: byte for byte, character in enumerate(byte_characters())}
    ids: dict[str, int] = model["vocab"]
    if sorted(ids.values()) != list(range(len(ids))):
        raise ValueError("the ids have gaps")
    tokens = tuple(bytes(bytes_of[c] for c in name) for name in sorted(ids, key=ids.__getitem__))
    merges = tuple((ids[left], ids[right]) for left, right in model["merges"])
    _check(tokens, merges)
    specials = {token["content"]: token["id"] for token in content["added_tokens"]}
    return Definition(tokens, merges, split["pattern"]["Regex"], specials)


def _check(tokens: Sequence[bytes], merges: Sequence[Pair]) -> None:
    if sorted(tokens[:256]) != [bytes([byte]) for byte in range(256)]:
        raise ValueError("the first 256 tokens are not the bytes")
    if [tokens[left] + tokens[right] for left, right in merges] != list(tokens[256:]):
        raise ValueError("the merges do not make the tokens")
