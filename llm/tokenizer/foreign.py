"""Byte-level BPE tokenizers from elsewhere: any `tokenizer.json`, or GPT-2's own pair of files.

A tokenizer.json that tiktoken is known to encode exactly (`huggingface.definition` says which) becomes a `ByteBPE`,
like those trained here. Any other way of cutting text into words, SmolLM2's with its single digits for one, is left to
the `tokenizers` library: slower, and right by definition. What could not be decoded again (normalisers, splits that
drop text, a space put in front) or is no byte-level BPE is refused by name.

The special token that stands between documents is <|endoftext|> if there is one, else the `eos_token` of the
tokenizer_config.json beside the file.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import regex

from llm.errors import WordmillError
from llm.tokenizer import huggingface
from llm.tokenizer.byte_bpe import ByteBPE
from llm.tokenizer.huggingface import Definition, Unknown
from llm.tokenizer.patterns import GPT2, cut
from llm.tokenizer.tokenizer import END_OF_TEXT, Tokenizer, valid_utf8, write_files

if TYPE_CHECKING:
    import tokenizers

# A merge list and the ids that belong to it: OpenAI's names, then Hugging Face's.
MERGE_FILES = {"vocab.bpe": "encoder.json", "merges.txt": "vocab.json"}
CHECKED = 1_000_000  # characters on which two engines of expressions are compared
CUTS = ("Split", "Digits", "Punctuation", "ByteLevel")  # pre-tokenizers that keep all of the text


class HuggingFaceBPE(Tokenizer):
    """A byte-level BPE that is encoded by Hugging Face's library."""

    def __init__(self, content: Mapping[str, Any], end_of_text: str) -> None:
        # What is put around or cut off a text is not the business of encoding it.
        self.content = {**content, "post_processor": None, "truncation": None, "padding": None}
        self._end_of_text = end_of_text
        self._added = {token["content"]: token["id"] for token in content["added_tokens"]}
        self._special = {token["content"]: token["id"] for token in content["added_tokens"] if token["special"]}

    @cached_property
    def tokens(self) -> tuple[bytes, ...]:
        vocab = self.content["model"]["vocab"]
        ordinary = huggingface.byte_tokens({name: i for name, i in vocab.items() if name not in self._added})
        from_text = {number: name.encode() for name, number in self._added.items() if name not in self._special}
        table = dict(enumerate(ordinary)) | from_text
        return tuple(table.get(number, b"") for number in range(max(table) + 1))

    @property
    def special_tokens(self) -> dict[str, int]:
        return dict(self._special)

    @property
    def end_of_text(self) -> int:
        return self._special[self._end_of_text]

    @cached_property
    def fingerprint(self) -> str:
        return hashlib.sha256(json.dumps(self.content, sort_keys=True).encode()).hexdigest()

    def encode_array(self, text: str) -> np.ndarray:
        valid_utf8(text)
        with _giving_up_told(text):
            return np.array(self._library.encode(text, add_special_tokens=False).ids, np.uint32)

    @cached_property
    def _library(self) -> "tokenizers.Tokenizer":
        import tokenizers  # only here: the default tokenizer does without

        library = tokenizers.Tokenizer.from_str(json.dumps(self.content))
        library.encode_special_tokens = True  # text that spells a special token is text
        return library

    def save(self, folder: Path) -> None:
        """Write tokenizer.json and tokenizer_config.json; equal tokenizers give equal bytes."""
        content = json.dumps(self.content, indent=1, ensure_ascii=False) + "\n"
        config = huggingface.tokenizer_config_json(self._end_of_text)
        write_files(folder, {"tokenizer.json": content.encode(), "tokenizer_config.json": config.encode()})


def check_cut(pattern: str, texts: Iterable[str]) -> None:
    """See that `tokenizers`, which will encode by it, cuts text by `pattern` as Python's `regex` does in training.

    Compares the first `CHECKED` characters. Raises WordmillError.
    """
    import tokenizers
    from tokenizers import pre_tokenizers

    try:
        split = pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
    except Exception as error:  # the library raises nothing more exact
        raise WordmillError(f"tokenizer.pattern: Hugging Face's library cannot read it ({error})") from None
    expression = regex.compile(pattern)
    left = CHECKED
    for text in texts:
        piece = text[:left]
        with _giving_up_told(piece):
            theirs = [word for word, _ in split.pre_tokenize_str(piece)] if piece else []
        ours = cut(piece, expression)
        for our, their in zip(ours, theirs, strict=False):
            if our != their:
                raise WordmillError(
                    f"tokenizer.pattern: Python's `regex` finds the word {our[:40]!r} where Hugging Face's library "
                    f"finds {their[:40]!r}; write it so that both agree (a + behind {{1,3}} means other things there)"
                )
        left -= len(piece)
        if left <= 0:
            return


@contextmanager
def _giving_up_told(text: str) -> Iterator[None]:
    """Hugging Face's engine panics where an expression tries too much; Rust's own lines go to standard error."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise WordmillError(
            f"Hugging Face's library gives up on the text that begins {text[:40]!r} ({error}); "
            "it is the split pattern: repeats within repeats do that, such as (a+)+"
        ) from None


def read_file(path: Path) -> Tokenizer:
    """The tokenizer at `path`: a tokenizer.json, a merge list with its ids beside it, or a folder that holds either.

    Raises WordmillError for a missing, damaged or unsupported one.
    """
    first, *ids = files_at(path)
    return read_merges(first, ids[0]) if ids else read_json(first)


def files_at(path: Path) -> list[Path]:
    """The file or the two files that `read_file` reads. Raises WordmillError if they are not there."""
    if path.is_dir():
        found = [path / name for name in ("tokenizer.json", *MERGE_FILES) if (path / name).exists()]
        if not found:
            raise WordmillError(f"{path}: holds no tokenizer.json, nor {' nor '.join(MERGE_FILES)}")
        path = found[0]
    if path.suffix != ".json" and path.name not in MERGE_FILES:
        raise WordmillError(f"{path}: neither a tokenizer.json nor one of {', '.join(MERGE_FILES)}")
    files = [path, path.with_name(MERGE_FILES[path.name])] if path.name in MERGE_FILES else [path]
    for file in files:
        if not file.exists():
            beside = f"; it belongs beside {path.name}" if file is not path else ""
            raise WordmillError(f"{file}: no such file{beside}")
    return files


def read_json(path: Path) -> Tokenizer:
    """The tokenizer in a tokenizer.json. Raises WordmillError for a missing, damaged or unsupported one."""
    content = huggingface.read(path)
    try:
        _check_supported(content)
        end_of_text = _end_of_text(content, path)
        try:
            return ByteBPE(huggingface.definition(content, end_of_text))
        except Unknown:
            tokenizer = HuggingFaceBPE(content, end_of_text)
            tokenizer.encode("a")
            return tokenizer
    except WordmillError as error:
        raise WordmillError(f"{path}: {error}") from None
    except Exception as error:  # the library's own errors have no common type
        raise WordmillError(f"{path}: not a well-formed byte-level BPE ({type(error).__name__}: {error})") from None


def read_merges(merges: Path, ids: Path) -> ByteBPE:
    """GPT-2's layout: a line "left right" for each merge, and the ids of all tokens as JSON. Raises WordmillError."""
    return ByteBPE(merge_files(merges.read_bytes(), ids.read_bytes(), f"{merges} and {ids.name}"))


def merge_files(merges: bytes, ids: bytes, source: str) -> Definition:
    """The same from the files' bytes; `source` is named in errors. Raises WordmillError."""
    try:
        vocabulary: dict[str, int] = json.loads(ids)
        lines = [line for line in merges.decode().splitlines() if line and not line.startswith("#version")]
        pairs = tuple((vocabulary[left], vocabulary[right]) for left, right in (line.split(" ") for line in lines))
        if END_OF_TEXT not in vocabulary:
            raise Unknown(f"there is no {END_OF_TEXT}")
        tokens = huggingface.byte_tokens({name: i for name, i in vocabulary.items() if name != END_OF_TEXT})
        if pairs != huggingface.merges_of(tokens):
            raise Unknown("the merges do not make the tokens")
    except (ValueError, KeyError, AttributeError) as error:
        raise WordmillError(f"{source}: not a byte-level BPE as GPT-2's is: {error}") from None
    return Definition(tokens, pairs, GPT2, {END_OF_TEXT: vocabulary[END_OF_TEXT]})


def _check_supported(content: Mapping[str, Any]) -> None:
    """Refuse, by name, what is no byte-level BPE or does not give text back. Raises WordmillError."""
    model = content["model"]
    if model.get("type") != "BPE":
        raise WordmillError(f"a model of type {model.get('type')} is not supported; only byte-level BPE is")
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
        if model.get(name):
            raise WordmillError(f"model.{name} {model[name]!r} is not supported; only plain byte-level BPE is")
    if content.get("normalizer"):
        kind = content["normalizer"].get("type")
        raise WordmillError(f"the normalizer {kind} is not supported: it changes text, so decoding could not undo it")
    pre_tokenizer = content.get("pre_tokenizer") or {"type": "none"}
    steps = pre_tokenizer["pretokenizers"] if pre_tokenizer["type"] == "Sequence" else [pre_tokenizer]
    for step in steps:
        if step["type"] not in CUTS or step.get("behavior") == "Removed":
            raise WordmillError(f"the pre-tokenizer {step['type']} is not supported; {', '.join(CUTS)} are")
        if step.get("add_prefix_space"):
            raise WordmillError("add_prefix_space is not supported: decoding could not tell that space from the text's")
    if not any(step["type"] == "ByteLevel" for step in steps):
        raise WordmillError("the pre-tokenizer turns nothing into bytes; only byte-level BPE is supported")
    for token in content["added_tokens"]:
        if not token["special"] and (token["lstrip"] or token["rstrip"]):
            raise WordmillError(f"the added token {token['content']!r} swallows the spaces beside it: not supported")
    specials = {token["content"] for token in content["added_tokens"]}
    try:
        huggingface.byte_tokens({name: number for name, number in model["vocab"].items() if name not in specials})
    except Unknown as error:
        raise WordmillError(f"not byte-level: {error}") from None


def _end_of_text(content: Mapping[str, Any], path: Path) -> str:
    """The special token between documents. Raises WordmillError if the files name none."""
    specials = [token["content"] for token in content["added_tokens"] if token["special"]]
    if END_OF_TEXT in specials:
        return END_OF_TEXT
    beside = path.with_name("tokenizer_config.json")
    if beside.exists():
        eos = json.loads(beside.read_text(encoding="utf-8")).get("eos_token")
        name: str = eos["content"] if isinstance(eos, dict) else eos
        if name in specials:
            return name
    raise WordmillError(
        f"no special token {END_OF_TEXT}, and no tokenizer_config.json beside it whose eos_token is one of its own "
        f"({', '.join(specials) or 'it has none'})"
    )
