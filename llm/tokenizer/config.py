"""Which tokenizer is made, and from how much text."""

from dataclasses import dataclass
from typing import Literal

from llm.errors import ConfigError
from llm.tokenizer.tokenizer import END_OF_TEXT

# How text falls into words before any merge; no token ever crosses a word's border. Both are public definitions, in
# the spelling that Python's `regex`, tiktoken and Hugging Face's `tokenizers` all read alike.
#   gpt2    words with the space before them, numbers of any length, runs of other signs
#   cl100k  GPT-4's: numbers fall into groups of three digits, line ends stay with the signs before them, a word may
#           begin with any one sign, "don't" splits in capitals too
PATTERNS = {
    "gpt2": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "cl100k": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
}


@dataclass(frozen=True)
class TokenizerConfig:
    """Raises ConfigError."""

    kind: Literal["bpe"] = "bpe"  # byte-level BPE, trained on the training split
    vocab_size: int = 4096  # 256 bytes, merges and special tokens together
    pattern: Literal["gpt2", "cl100k"] = "cl100k"  # how text falls into words
    special_tokens: tuple[str, ...] = (END_OF_TEXT,)  # never made by plain text; the last ids of the vocabulary
    min_count: int = 2  # a pair of tokens must be seen so often to be merged
    max_train_bytes: int = 0  # train on an even sample of so many UTF-8 bytes; 0 = all of the training split

    def __post_init__(self) -> None:
        if END_OF_TEXT not in self.special_tokens:
            raise ConfigError("special_tokens", f"lacks {END_OF_TEXT}, which stands between documents; add it")
        if len(set(self.special_tokens)) < len(self.special_tokens):
            raise ConfigError("special_tokens", "holds one twice")
        if any(not token or token != token.strip() for token in self.special_tokens):
            raise ConfigError("special_tokens", "one is empty or begins or ends with white space")
        least = 256 + len(self.special_tokens)
        if self.vocab_size < least:
            raise ConfigError(
                "vocab_size", f"{self.vocab_size} has no room for 256 bytes and the special tokens; use {least} or more"
            )
        if self.min_count < 1:
            raise ConfigError("min_count", f"{self.min_count} is below 1; 2 is usual")
        if self.max_train_bytes < 0:
            raise ConfigError("max_train_bytes", f"{self.max_train_bytes} is negative; 0 means all")
