"""Which tokenizer is made, and from how much text."""

import difflib
from dataclasses import dataclass, replace
from typing import Any, Literal

import regex

from llm.errors import ConfigError
from llm.limits import check_limits
from llm.tokenizer.patterns import CL100K, GPT2, O200K, byte_characters
from llm.tokenizer.tokenizer import END_OF_TEXT

PATTERNS = {"gpt2": GPT2, "cl100k": CL100K, "o200k": O200K}
LIMITS = {"vocab_size": (1, 16_777_216)}
LONGEST_PATTERN = 10_000  # characters
ENCODINGS = ("gpt2", "r50k_base", "p50k_base", "cl100k_base", "o200k_base")
RESERVED = "<|reserved_{}|>"  # special tokens that no text becomes: a vocabulary of a given size on a smaller text
# What follows the colon in `compare`, by kind.
VARIANTS = {"bpe": "pattern", "sentencepiece": "algorithm", "tiktoken": "encoding", "bytes": "", "file": "path"}


@dataclass(frozen=True)
class TokenizerConfig:
    """Fields that the chosen kind does not read are still checked for their form. Raises ConfigError."""

    kind: Literal["bpe", "sentencepiece", "tiktoken", "bytes", "file"] = "bpe"  # the first two are trained
    vocab_size: int = 4096  # bpe, sentencepiece: all together: 256 bytes, merges or pieces, special tokens
    pattern: str = "cl100k"  # bpe: how text falls into words: a name in PATTERNS, or an expression of one's own
    algorithm: Literal["bpe", "unigram"] = "unigram"  # sentencepiece
    encoding: str = "gpt2"  # tiktoken: one of ENCODINGS
    path: str = ""  # file: a tokenizer.json, or a merge list (vocab.bpe, merges.txt) with its ids beside it
    special_tokens: tuple[str, ...] = (END_OF_TEXT,)  # bpe, sentencepiece, bytes: never made by plain text
    min_count: int = 2  # bpe: a pair of tokens must be seen so often to be merged
    reserve_rest: bool = False  # bpe: what the texts do not give of vocab_size becomes reserved tokens, not an error
    max_train_bytes: int = 0  # train on an even sample of so many UTF-8 bytes; 0 = all of the training split
    compare: tuple[str, ...] = ()  # kinds to set beside it, as kind or kind:variant (tiktoken:gpt2)

    def __post_init__(self) -> None:
        check_limits(self, LIMITS)
        if END_OF_TEXT not in self.special_tokens:
            raise ConfigError("special_tokens", f"lacks {END_OF_TEXT}, which stands between documents; add it")
        if len(set(self.special_tokens)) < len(self.special_tokens):
            raise ConfigError("special_tokens", "holds one twice")
        if any(not token or token != token.strip() for token in self.special_tokens):
            raise ConfigError("special_tokens", "one is empty or begins or ends with white space")
        for token in self.special_tokens:
            if self.kind in ("bpe", "bytes") and token in byte_characters():
                raise ConfigError(
                    "special_tokens", f"{token!r} stands for a byte in tokenizer.json; use a longer name, <|{token}|>"
                )
            if not token.isprintable():
                raise ConfigError("special_tokens", f"{token!r} holds a control character; use another name")
        if self.reserve_rest and any(token.startswith(RESERVED.partition("{")[0]) for token in self.special_tokens):
            raise ConfigError("special_tokens", f"reserve_rest makes {RESERVED.format(0)} and so on; use other names")
        least = 256 + len(self.special_tokens) + (self.kind == "sentencepiece")  # its <unk>
        if self.kind in ("bpe", "sentencepiece") and self.vocab_size < least:
            raise ConfigError(
                "vocab_size", f"{self.vocab_size} has no room for 256 bytes and the special tokens; use {least} or more"
            )
        self._check_pattern()
        if self.min_count < 1:
            raise ConfigError("min_count", f"{self.min_count} is below 1; 2 is usual")
        if self.max_train_bytes < 0:
            raise ConfigError("max_train_bytes", f"{self.max_train_bytes} is negative; 0 means all")
        if self.encoding not in ENCODINGS:
            close = difflib.get_close_matches(self.encoding, ENCODINGS, n=1, cutoff=0.3)
            guess = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(ENCODINGS)}"
            raise ConfigError("encoding", f"{self.encoding!r} is not one of tiktoken's that are known here; {guess}")
        if self.kind == "file" and not self.path:
            raise ConfigError("path", "empty; name a tokenizer.json, or a vocab.bpe with its encoder.json beside it")
        for name in self.compare:
            self.variant(name)

    def _check_pattern(self) -> None:
        if self.pattern in PATTERNS:
            return
        if regex.fullmatch(r"[\w-]*", self.pattern):  # no sign that an expression would have
            close = difflib.get_close_matches(self.pattern, PATTERNS, n=1, cutoff=0.3)
            guess = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(PATTERNS)}"
            raise ConfigError("pattern", f"{self.pattern!r} is neither a known name nor an expression; {guess}")
        if len(self.pattern) > LONGEST_PATTERN:
            raise ConfigError("pattern", f"{len(self.pattern):,} characters are more than {LONGEST_PATTERN:,}")
        try:
            regex.compile(self.pattern)
        except (regex.error, RecursionError, OverflowError, MemoryError, ValueError) as error:
            raise ConfigError("pattern", f"{self.pattern!r} is not a regular expression ({error})") from None

    @property
    def name(self) -> str:
        """As an entry of `compare` would name it."""
        field = VARIANTS[self.kind]
        return f"{self.kind}:{getattr(self, field)}" if field else self.kind

    def variant(self, name: str) -> "TokenizerConfig":
        """These settings for an entry of `compare`: "bytes", "sentencepiece:bpe", "file:PATH". Raises ConfigError."""
        kind, colon, variant = name.partition(":")
        if kind not in VARIANTS:
            raise ConfigError("compare", f"{name!r} names no kind of tokenizer; there are {', '.join(VARIANTS)}")
        field = VARIANTS[kind]
        allowed = {"pattern": tuple(PATTERNS), "algorithm": ("bpe", "unigram"), "encoding": ENCODINGS}.get(field)
        if colon and (not field or (allowed and variant not in allowed)):
            takes = f"one of {', '.join(allowed)}" if allowed else "nothing"
            raise ConfigError("compare", f"{name!r}: after the colon {kind} takes {takes}")
        chosen: dict[str, Any] = {"kind": kind, "compare": ()} | ({field: variant} if colon else {})
        try:
            return replace(self, **chosen)
        except ConfigError as error:
            raise ConfigError("compare", f"{name!r}: {error.field}: {error.problem}") from None
