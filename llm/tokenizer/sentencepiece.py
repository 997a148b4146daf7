"""SentencePiece (Kudo and Richardson 2018): BPE or unigram over characters, trained and encoded by its own library.

Set so that any text comes back as it was: no normalisation, no space put in front, none removed, and characters that
the vocabulary lacks fall back to their UTF-8 bytes. One hole is left and mended here: the library writes a space as
U+2581, so a U+2581 of the text's own would come back as a space; it is encoded as its three bytes instead.

Training and encoding are by line: a line end is always a byte. In unigram the library adds up a text's scores in
single precision, so that a megabyte in one go is cut worse than its lines are (seen on Tiny Shakespeare). Training is
on one thread, since the library's result depends on their number. Special tokens are control symbols, which no text
becomes.

On disk: tokenizer.model, and what `transformers` needs to open the folder: for BPE its Llama class reads
tokenizer.model, for unigram there is a tokenizer.json. Both give the same ids, save for text that holds U+2581.
"""

import hashlib
import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from llm.errors import WordmillError
from llm.tokenizer.tokenizer import END_OF_TEXT, Tokenizer, valid_utf8, write_files

SPACE = "\u2581"  # how the library writes a space
CUT = re.compile(f"([\n{SPACE}])")
COVERAGE = 0.9995  # of the characters of the training text that become pieces; the rest are bytes
LINE = 16_000  # characters: longer lines are cut, so that none exceeds the library's limit
UNKNOWN = "<unk>"  # the library insists on it; with bytes to fall back on it never occurs


class SentencePiece(Tokenizer):
    """A SentencePiece model. Made by `train`, or loaded from a folder by `Tokenizer.load`."""

    def __init__(self, model: bytes) -> None:
        self.model = model
        self._library = _library().SentencePieceProcessor(model_proto=model)
        if END_OF_TEXT not in self.special_tokens:
            raise WordmillError(f"it has no control symbol {END_OF_TEXT}, which stands between documents")
        for text in ("a", "  b  c ", "\ufb01\u2460\0"):
            if (back := self.decode(self.encode(text))) != text:
                raise WordmillError(f"text does not come back as it was: {text!r} becomes {back!r}")
        if any(b"\n" in token and len(token) > 1 for token in self.tokens):
            raise WordmillError("it has pieces that cross a line end, which is not supported")

    @classmethod
    def read(cls, path: Path) -> "SentencePiece":
        """The model in a tokenizer.model. Raises WordmillError for a damaged or unsupported one."""
        try:
            return cls(path.read_bytes())
        except WordmillError as error:
            raise WordmillError(f"{path}: {error}") from None
        except OSError as error:
            raise WordmillError(f"{path}: cannot be read ({error.strerror})") from None
        except (RuntimeError, UnicodeDecodeError, ValueError):
            raise WordmillError(f"{path}: not a SentencePiece model; `dvc checkout` brings it back") from None

    @cached_property
    def tokens(self) -> tuple[bytes, ...]:
        return tuple(self._token(number) for number in range(self._library.piece_size()))

    @cached_property
    def special_tokens(self) -> dict[str, int]:
        library = self._library
        ids = [i for i in range(library.piece_size()) if library.is_control(i) or library.is_unknown(i)]
        return {library.id_to_piece(number): number for number in ids}

    @property
    def end_of_text(self) -> int:
        return self.special_tokens[END_OF_TEXT]

    @cached_property
    def fingerprint(self) -> str:
        return hashlib.sha256(self.model).hexdigest()

    def encode_array(self, text: str) -> np.ndarray:
        valid_utf8(text)
        own = self._own_bytes
        ids: list[int] = []
        for part in CUT.split(text):
            ids += own[part] if part in own else self._library.encode(part)
        return np.array(ids, np.uint32)

    @cached_property
    def _own_bytes(self) -> dict[str, list[int]]:
        """What is never a part of a piece, as ids of its bytes; nothing for nothing."""
        ids = {sign: [self._library.piece_to_id(f"<0x{byte:02X}>") for byte in sign.encode()] for sign in ("\n", SPACE)}
        return {"": [], **ids}

    def save(self, folder: Path) -> None:
        """Write tokenizer.model and what `transformers` needs; equal tokenizers give equal bytes."""
        config: dict[str, Any] = {
            "tokenizer_class": "LlamaTokenizer",
            "bos_token": END_OF_TEXT,
            "eos_token": END_OF_TEXT,
            "unk_token": UNKNOWN,
            "add_bos_token": False,
            "add_eos_token": False,
            "add_prefix_space": False,
            "legacy": False,
            "clean_up_tokenization_spaces": False,
        }
        contents = {"tokenizer.model": self.model}
        if not self._merges:
            config["tokenizer_class"] = "PreTrainedTokenizerFast"
            fast = json.dumps(self._unigram_json(), indent=1, ensure_ascii=False)
            contents["tokenizer.json"] = (fast + "\n").encode()
        contents["tokenizer_config.json"] = (json.dumps(config, indent=2) + "\n").encode()
        write_files(folder, contents)

    @property
    def _merges(self) -> bool:
        """Trained as BPE: there a piece's score is minus its number, in unigram the logarithm of its probability."""
        pieces = [i for i in range(len(self.tokens)) if not self._library.is_byte(i) and self.tokens[i]]
        return all(self._library.get_score(number) == -rank for rank, number in enumerate(pieces))

    def _token(self, number: int) -> bytes:
        library = self._library
        if library.is_control(number) or library.is_unknown(number):
            return b""
        piece: str = library.id_to_piece(number)
        return bytes([int(piece[3:5], 16)]) if library.is_byte(number) else piece.replace(SPACE, " ").encode()

    def _unigram_json(self) -> dict[str, Any]:
        """The same model in the form of the `tokenizers` library."""
        library = self._library
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        decoders: list[dict[str, Any]] = [
            {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
        ]
        return {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [{"id": i, "content": name, **flags} for name, i in self.special_tokens.items()],
            "normalizer": None,
            "pre_tokenizer": {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "never", "split": False},
            "post_processor": None,
            "decoder": {"type": "Sequence", "decoders": decoders},
            "model": {
                "type": "Unigram",
                "unk_id": library.unk_id(),
                "vocab": [[library.id_to_piece(i), library.get_score(i)] for i in range(library.piece_size())],
                "byte_fallback": True,
            },
        }


def train(
    texts: Iterable[str], algorithm: Literal["bpe", "unigram"], vocab_size: int, special_tokens: Sequence[str]
) -> SentencePiece:
    """A model of exactly `vocab_size` tokens: <unk>, the special tokens, 256 bytes, pieces.

    Raises WordmillError when the texts do not give that many, or hold more different characters than there is room.
    """
    out = io.BytesIO()
    try:
        _library().SentencePieceTrainer.train(
            sentence_iterator=_lines(texts),
            model_writer=out,
            model_type=algorithm,
            vocab_size=vocab_size,
            control_symbols=list(special_tokens),
            character_coverage=COVERAGE,
            byte_fallback=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            max_sentence_length=4 * LINE,
            unk_id=0,
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            unk_piece=UNKNOWN,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise _refusal(str(error), vocab_size) from None
    return SentencePiece(out.getvalue())


def _lines(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        valid_utf8(text)
        for line in text.split("\n"):
            for start in range(0, len(line), LINE):
                yield line[start : start + LINE]


def _refusal(error: str, vocab_size: int) -> WordmillError:
    """The library's complaint in our words, with the size that would do."""
    if found := re.search(r"set it to a value <= (\d+)", error):
        return WordmillError(
            f"tokenizer.vocab_size: {vocab_size} asked, but the training text gives {found[1]} tokens; lower it to "
            f"{found[1]} or less, or give more text"
        )
    if found := re.search(r"smaller than required_chars\. \d+ vs (\d+)", error):
        return WordmillError(
            f"tokenizer.vocab_size: {vocab_size} has no room for the special tokens, 256 bytes and the characters of "
            f"the text; use more than {found[1]}"
        )
    return WordmillError(f"SentencePiece cannot be trained: {error.splitlines()[0] if error else 'no reason given'}")


def _library() -> Any:
    """The package, imported only where it is needed."""
    import sentencepiece

    return sentencepiece
