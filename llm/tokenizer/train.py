"""A tokenizer from a corpus, by the settings of the section `tokenizer`.

Each kind of tokenizer is one function in `KINDS`.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from llm.errors import WordmillError
from llm.tokenizer import bpe
from llm.tokenizer.config import PATTERNS, TokenizerConfig
from llm.tokenizer.tokenizer import Tokenizer
from llm.tokenizer.words import count_words, even_sample

Texts = Callable[[], Iterable[str]]  # begins anew at each call


class Trained(NamedTuple):
    """A new tokenizer, and what it was made from."""

    tokenizer: Tokenizer
    text_bytes: int  # UTF-8 bytes that were counted
    words: int  # in the sense of the split pattern
    distinct_words: int


def train(config: TokenizerConfig, texts: Texts, tell: Callable[[], object] = lambda: None) -> Trained:
    """A tokenizer of exactly `config.vocab_size` tokens.

    `tell` is called after every merge. Raises WordmillError when the texts do not give that many.
    """
    return KINDS[config.kind](config, texts, tell)


def train_bpe(config: TokenizerConfig, texts: Texts, tell: Callable[[], object]) -> Trained:
    """Byte pair encoding: the 256 bytes, the most frequent pairs, the special tokens."""
    source = even_sample(texts, config.max_train_bytes) if config.max_train_bytes else texts()
    words = count_words(source, config.pattern)
    wanted = config.vocab_size - 256 - len(config.special_tokens)
    merges = bpe.train(words, wanted, config.min_count, tell)
    if len(merges) < wanted:
        reachable = 256 + len(merges) + len(config.special_tokens)
        raise WordmillError(
            f"tokenizer.vocab_size: {config.vocab_size} asked, but the training text gives {reachable} tokens (pairs "
            f"seen at least {config.min_count} times); lower it to {reachable} or less, or give more text"
        )
    tokenizer = Tokenizer.from_merges(merges, PATTERNS[config.pattern], config.special_tokens)
    text_bytes = sum(len(word) * count for word, count in words.items())  # the words of a text are all of it
    return Trained(tokenizer, text_bytes, words.total(), len(words))


KINDS: dict[str, Callable[[TokenizerConfig, Texts, Callable[[], object]], Trained]] = {"bpe": train_bpe}
