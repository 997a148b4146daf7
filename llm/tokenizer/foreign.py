"""Byte-level BPE tokenizers from elsewhere: any `tokenizer.json`, or GPT-2's own pair of files.

A tokenizer.json that tiktoken is known to encode exactly (`huggingface.definition` says which) becomes a `ByteBPE`,
like those trained here. Any other way of cutting text into words, SmolLM2's with its single digits for one, is left to
the `tokenizers` library: slower, and right by definition. What could not be decoded again (normalisers, splits that
drop text, a space put in front) or is no byte-level BPE is refused by name. One normaliser is left out instead: NFC
(Qwen2.5, Qwen3, GPT-NeoX) changes no text of a corpus, since all of it is NFC already.

The special token that ends a document is <|endoftext|> if there is one, else the `eos_token` of the
tokenizer_config.json beside the file. Another token begins a document where the file puts one in front of each text, or
where the settings name a `bos_token` beside that `eos_token` (Llama 3).
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
from llm.strict_json import check_json, parse_json, quoted
from llm.tokenizer import huggingface
from llm.tokenizer.byte_bpe import ByteBPE
from llm.tokenizer.file_schema import SETTINGS, File, Id, Name, Normalizer, check_names, name_of, read_settings
from llm.tokenizer.file_schema import read_file as read_tokenizer_file
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

    def __init__(self, content: Mapping[str, Any], end_of_text: str, begin_of_text: str = "") -> None:
        added = content.get("added_tokens") or []
        self._added = {token["content"]: token["id"] for token in added}
        self._special = {token["content"]: token["id"] for token in added if token.get("special")}
        self._end_of_text, self._begin_of_text = end_of_text, begin_of_text
        # What is put around or cut off a text is not the business of encoding it.
        own = {"post_processor": huggingface.own_beginning(begin_of_text, self._special)}
        self.content = {**content, "normalizer": None, **own, "truncation": None, "padding": None}

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

    @property
    def begin_of_text(self) -> int:
        return self._special[self._begin_of_text or self._end_of_text]

    @cached_property
    def fingerprint(self) -> str:
        return hashlib.sha256(json.dumps(self.content, sort_keys=True).encode()).hexdigest()

    def encode_array(self, text: str) -> np.ndarray:
        valid_utf8(text)
        with _library_errors(text):
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
        config = huggingface.tokenizer_config_json(self._end_of_text, self._begin_of_text)
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
        with _library_errors(piece):
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
def _library_errors(text: str) -> Iterator[None]:
    """Errors of Hugging Face's library, which have no type of their own; its panics' lines go to standard error."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ == "PanicException":
            raise WordmillError(
                f"Hugging Face's library gives up on the text that begins {text[:40]!r} ({error}); "
                "it is the split pattern: repeats within repeats do that, such as (a+)+"
            ) from None
        if type(error) is not Exception:
            raise
        raise WordmillError(f"Hugging Face's library does not take it: {error}") from None


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
    content, file = read_tokenizer_file(path)
    try:
        _check_supported(file)
        begin, end = _ends(file, path)
        try:
            return ByteBPE(huggingface.definition(file, end, begin))
        except Unknown:
            tokenizer = HuggingFaceBPE(content, end, begin)
            _check_round_trip(tokenizer)
            return tokenizer
    except WordmillError as error:
        raise WordmillError(f"{path}: {error}") from None


def _check_round_trip(tokenizer: HuggingFaceBPE) -> None:
    """See that text comes back, and that text that spells special tokens becomes none. Raises WordmillError."""
    try:
        for text in ("a  b\n\x00\u00e9\U0001f600 123", " ".join(list(tokenizer.special_tokens)[:50])):
            ids = tokenizer.encode(text)
            if tokenizer.decode(ids) != text or set(ids) & set(tokenizer.special_tokens.values()):
                raise WordmillError(f"text does not come back as it was: {quoted(text)}")
    except (ValueError, TypeError, OverflowError) as error:
        raise WordmillError(f"not a well-formed byte-level BPE ({error})") from None


def read_merges(merges: Path, ids: Path) -> ByteBPE:
    """GPT-2's layout: a line "left right" for each merge, and the ids of all tokens as JSON. Raises WordmillError."""
    try:
        contents = merges.read_bytes(), ids.read_bytes()
    except OSError as error:
        raise WordmillError(f"{error.filename}: cannot be read ({error.strerror})") from None
    return ByteBPE(merge_files(*contents, f"{merges} and {ids.name}"))


def merge_files(merges: bytes, ids: bytes, source: str) -> Definition:
    """The same from the files' bytes; `source` is named in errors. Raises WordmillError."""
    problem = f"{source}: not a byte-level BPE as GPT-2's is"
    vocabulary: dict[str, int] = check_json(parse_json(ids, problem), dict[Name, Id], problem)
    try:
        check_names(vocabulary, {})
        lines = [line for line in merges.decode().splitlines() if line and not line.startswith("#version")]
        pairs = tuple((vocabulary[left], vocabulary[right]) for left, right in (line.split(" ") for line in lines))
        if END_OF_TEXT not in vocabulary:
            raise Unknown(f"there is no {END_OF_TEXT}")
        tokens = huggingface.byte_tokens({name: i for name, i in vocabulary.items() if name != END_OF_TEXT})
        if pairs != huggingface.merges_of(tokens):
            raise Unknown("the merges do not make the tokens")
    except KeyError as error:
        raise WordmillError(f"{problem}: {quoted(error.args[0])} is no token") from None
    except (ValueError, WordmillError) as error:
        raise WordmillError(f"{problem}: {error}") from None
    return Definition(tokens, pairs, GPT2, {END_OF_TEXT: vocabulary[END_OF_TEXT]})


def _check_supported(file: File) -> None:
    """Refuse, by name, what is no byte-level BPE or does not give text back. Raises WordmillError."""
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
        if value := getattr(file.model, name):
            raise WordmillError(f"model.{name} {quoted(value)} is not supported; only plain byte-level BPE is")
    for normalizer in _normalizers(file.normalizer):
        if normalizer.type != "NFC":
            raise WordmillError(
                f"the normalizer {quoted(normalizer.type)} is not supported: it changes text, so decoding could not "
                "undo it"
            )
    steps = huggingface.steps_of(file.pre_tokenizer)
    for step in steps:
        if step.type not in CUTS or step.behavior == "Removed":
            raise WordmillError(f"the pre-tokenizer {quoted(step.type)} is not supported; {', '.join(CUTS)} are")
        if step.add_prefix_space:
            raise WordmillError("add_prefix_space is not supported: decoding could not tell that space from the text's")
    if not any(step.type == "ByteLevel" for step in steps):
        raise WordmillError("the pre-tokenizer turns nothing into bytes; only byte-level BPE is supported")
    for token in file.added_tokens:
        if not token.special and (token.lstrip or token.rstrip):
            raise WordmillError(f"the added token {quoted(token.content)} swallows the spaces beside it: not supported")
    added = {token.content for token in file.added_tokens}
    try:
        huggingface.byte_tokens({name: number for name, number in file.model.vocab.items() if name not in added})
    except Unknown as error:
        raise WordmillError(f"not byte-level: {error}") from None


def _normalizers(normalizer: Normalizer | None) -> list[Normalizer]:
    if normalizer is None:
        return []
    return normalizer.normalizers or [] if normalizer.type == "Sequence" else [normalizer]


def _ends(file: File, path: Path) -> tuple[str, str]:
    """The special token that begins a document, empty if it is the same, and the one that ends it.

    Raises WordmillError if the files name none.
    """
    specials = [token.content for token in file.added_tokens if token.special]
    settings = read_settings(path.with_name(SETTINGS))
    end = END_OF_TEXT if END_OF_TEXT in specials else name_of(settings.eos_token)
    if end not in specials:
        names = ", ".join(specials[:20]) or "it has none"
        raise WordmillError(
            f"no special token {END_OF_TEXT}, and no {SETTINGS} beside it whose eos_token is one of its own ({names})"
        )
    named = name_of(settings.bos_token) if end != END_OF_TEXT else ""
    begin = _put_in_front(file.post_processor) or named
    return begin if begin in specials and begin != end else "", end


def _put_in_front(post_processor: dict[str, Any] | None) -> str:
    """The token that a post-processor puts in front of a text; empty if it puts none or is of another kind."""
    steps = (post_processor or {}).get("processors") or [post_processor]
    for step in steps if isinstance(steps, list) else []:
        template = step.get("single") if isinstance(step, dict) else None
        first = template[0] if isinstance(template, list) and template else None
        token = first.get("SpecialToken") if isinstance(first, dict) else None
        if isinstance(token, dict) and isinstance(token.get("id"), str):
            return str(token["id"])
    return ""
