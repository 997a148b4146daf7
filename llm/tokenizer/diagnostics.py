"""What a tokenizer is like, and what it makes of a text, in figures that are easy to compare."""

import numpy as np

from llm.tokenizer.tokenizer import Tokenizer

OPENING = 80  # characters


def longest_tokens(tokenizer: Tokenizer, count: int) -> list[str]:
    """The longest ordinary tokens by bytes, longest first, then by id; parts of characters are shown as U+FFFD."""
    tokens = sorted(tokenizer.tokens, key=len, reverse=True)  # a stable sort: ids stay in order
    return [token.decode(errors="replace") for token in tokens[:count]]


def rarest_tokens(tokenizer: Tokenizer, token_counts: np.ndarray, count: int) -> list[str]:
    """Of the ordinary tokens that occur at all those that do so least, then by id; shown as `longest_tokens` are."""
    used = [number for number in np.flatnonzero(token_counts[: len(tokenizer.tokens)]) if tokenizer.tokens[number]]
    used.sort(key=lambda number: token_counts[number])  # a stable sort
    return [tokenizer.tokens[number].decode(errors="replace") for number in used[:count]]


def by_length(tokenizer: Tokenizer, token_counts: np.ndarray) -> dict[str, list[int]]:
    """How many ordinary tokens have each length in bytes, from 1 on: in the vocabulary, and in the text."""
    lengths = np.array([len(token) for token in tokenizer.tokens])
    in_text = np.bincount(lengths, token_counts[: len(lengths)]).astype(np.int64)
    return {"vocabulary": np.bincount(lengths)[1:].tolist(), "text": in_text[1:].tolist()}


def diagnostics(
    token_counts: np.ndarray, documents: int, text_bytes: int, characters: int, opening: str
) -> dict[str, float | str]:
    """Figures of one split. `token_counts` says how often each id occurs, `opening` is how the split begins.

    Bytes per token leave aside the <|endoftext|> that ends each document; `tokens` counts them.
    """
    tokens = int(token_counts.sum())
    used = int(np.count_nonzero(token_counts))
    return {
        "documents": documents,
        "characters": characters,
        "bytes": text_bytes,
        "tokens": tokens,
        "tokens_per_document": tokens / documents,
        "bytes_per_token": text_bytes / (tokens - documents),
        "unique_tokens": used,
        "vocabulary_used": used / len(token_counts),
        "first_characters": opening[:OPENING].replace("\n", "⏎"),
    }


def printed(split: str, figures: dict[str, float | str]) -> str:
    """The same as a paragraph for the log."""
    return (
        f"{split}: {figures['documents']:,} documents, {figures['characters']:,} characters, "
        f"{figures['bytes']:,} bytes, {figures['tokens']:,} tokens, {figures['bytes_per_token']:.3f} bytes per token, "
        f"{figures['unique_tokens']:,} different tokens used ({figures['vocabulary_used']:.1%} of the vocabulary)\n"
        f"  begins: {figures['first_characters']}"
    )
