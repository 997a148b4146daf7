"""A tokenizer by the settings of the section `tokenizer`: trained on a corpus, or brought from elsewhere.

Each kind of tokenizer is one function in `KINDS`. The modules of the kinds that need another library are imported when
that kind is asked for.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from llm.errors import WordmillError
from llm.tokenizer import bpe
from llm.tokenizer.byte_bpe import ByteBPE
from llm.tokenizer.config import PATTERNS, RESERVED, TokenizerConfig
from llm.tokenizer.huggingface import Pair, definition_of, tokenizer_json
from llm.tokenizer.tokenizer import END_OF_TEXT, Tokenizer
from llm.tokenizer.words import Texts, count_words, even_sample


class Made(NamedTuple):
    """A new tokenizer, and what it was made from."""

    tokenizer: Tokenizer
    source: dict[str, Any]  # for a trained one `bytes`: so much UTF-8 was read; the rest depends on the kind


def make(config: TokenizerConfig, texts: Texts | Callable[[], Iterable[str]]) -> Made:
    """The tokenizer that `config` describes; a trained one has exactly `config.vocab_size` tokens.

    `texts` can be read any number of times. Raises WordmillError when they do not give so many tokens, or what is to be
    loaded is missing, damaged or not supported.
    """
    return KINDS[config.kind](config, texts if isinstance(texts, Texts) else Texts(texts))


def train_bpe(config: TokenizerConfig, texts: Texts) -> Made:
    """Byte pair encoding: the 256 bytes, the most frequent pairs, special tokens, and reserved ones for the rest."""
    if config.pattern not in PATTERNS:
        from llm.tokenizer.foreign import check_cut

        check_cut(config.pattern, texts.strings())
    words = count_words(_read(config, texts), config.pattern)
    wanted = config.vocab_size - 256 - len(config.special_tokens)
    merges = bpe.train(words, wanted, config.min_count)
    missing = wanted - len(merges)
    if missing and not config.reserve_rest:
        reachable = 256 + len(merges) + len(config.special_tokens)
        raise WordmillError(
            f"tokenizer.vocab_size: {config.vocab_size} asked, but the training text gives {reachable} tokens (pairs "
            f"seen at least {config.min_count} times); lower it to {reachable} or less, give more text, or set "
            "tokenizer.reserve_rest: true"
        )
    special_tokens = (*config.special_tokens, *(RESERVED.format(number) for number in range(missing)))
    tokenizer = _from_merges(merges, config.pattern, special_tokens)
    source = {"bytes": words.text_bytes, "words": int(words.counts.sum()), "distinct_words": words.distinct}
    return Made(tokenizer, source | ({"reserved_tokens": missing} if missing else {}))


def _from_merges(merges: list[Pair], pattern: str, special_tokens: tuple[str, ...]) -> Tokenizer:
    """With an expression of one's own, what loading it from disk will give: one that `tokenizers` encodes."""
    if pattern in PATTERNS:
        return ByteBPE.from_merges(merges, PATTERNS[pattern], special_tokens)
    from llm.tokenizer.foreign import HuggingFaceBPE

    content = tokenizer_json(definition_of(merges, pattern, special_tokens))
    return HuggingFaceBPE(json.loads(content), END_OF_TEXT)


def train_sentencepiece(config: TokenizerConfig, texts: Texts) -> Made:
    """BPE or unigram over characters, by its own library."""
    from llm.tokenizer import sentencepiece

    text_bytes = 0

    def counted() -> Iterator[str]:
        nonlocal text_bytes
        for text in _read(config, texts).strings():
            yield text
            text_bytes += len(text.encode())

    tokenizer = sentencepiece.train(counted(), config.algorithm, config.vocab_size, config.special_tokens)
    return Made(tokenizer, {"bytes": text_bytes})


def load_tiktoken(config: TokenizerConfig, texts: Texts) -> Made:
    """A public encoding of OpenAI's."""
    from llm.tokenizer.encodings import ENCODINGS, public

    return Made(public(config.encoding), {"encoding": config.encoding, "sha256": ENCODINGS[config.encoding].files})


def only_bytes(config: TokenizerConfig, texts: Texts) -> Made:
    """No merges: ids 0 to 255 are the bytes, the special tokens follow."""
    return Made(ByteBPE.from_merges([], PATTERNS["gpt2"], config.special_tokens), {})


def load_file(config: TokenizerConfig, texts: Texts) -> Made:
    """A byte-level BPE from elsewhere."""
    from llm.tokenizer.foreign import files_at, read_file

    path = Path(config.path)
    try:
        tokenizer = read_file(path)
    except WordmillError as error:
        raise WordmillError(f"tokenizer.path: {error}") from None
    sha256 = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files_at(path)}
    return Made(tokenizer, {"sha256": sha256})


def _read(config: TokenizerConfig, texts: Texts) -> Texts:
    return Texts(lambda: even_sample(texts.strings, config.max_train_bytes)) if config.max_train_bytes else texts


KINDS: dict[str, Callable[[TokenizerConfig, Texts], Made]] = {
    "bpe": train_bpe,
    "sentencepiece": train_sentencepiece,
    "tiktoken": load_tiktoken,
    "bytes": only_bytes,
    "file": load_file,
}
