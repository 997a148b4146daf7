"""Perplexity and bits per byte of documents, with intervals.

Convention: a document is scored as the model saw it in training, after an end-of-text token and up to and including
the one that closes it, so the sum is the whole code length of the text. Every token is scored once, and so every byte
counts once. A document longer than the context is read in windows: the first one scores all that it holds, each later
one advances by `stride` tokens and scores only those, after as much context as fits. A shorter stride gives tokens
more context and takes more passes. Bits per byte divide the sum by the bytes that the tokens stand for, which are the
document's UTF-8 bytes however it is cut; perplexity is per token and depends on the tokenizer.

Intervals are 95 % bootstrap intervals over documents (for a single long text: over its windows).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llm.compute import Compute
from llm.errors import ConfigError
from llm.evaluate_config import EvaluateConfig as EvaluateConfig
from llm.intervals import interval
from llm.model.transformer import Transformer
from llm.scoring import Predictions, Segment, predictions
from llm.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True)
class Scores:
    """Code lengths of a set of texts. Rows are documents, or the windows of a single one."""

    nats: np.ndarray
    tokens: np.ndarray
    bytes: np.ndarray
    documents: int | None = None  # where they are not as many as rows

    def summary(self, seed: int) -> dict[str, float]:
        """Loss (nats per token), perplexity, bits per byte and its 95 % interval; of a single document, its windows."""
        loss = self.nats.sum() / self.tokens.sum()
        low, high = interval(self.nats, self.bytes, seed)
        rows = len(self.nats)
        documents = rows if self.documents is None else self.documents
        windows = {} if documents == rows else {"windows": float(rows)}
        return {
            "loss": float(loss),
            "perplexity": float(np.exp(loss)),
            "bits_per_byte": float(self.nats.sum() / self.bytes.sum() / np.log(2)),
            "bits_per_byte_low": low / float(np.log(2)),
            "bits_per_byte_high": high / float(np.log(2)),
            "documents": float(documents),
            "bytes": float(self.bytes.sum()),
            **windows,
        }


@dataclass(frozen=True)
class ScoredTokens:
    """Every token of a set of texts, text after text; arrays of one length (N,)."""

    predictions: Predictions
    position: np.ndarray  # tokens of context before it, 1 to block_size
    bytes: np.ndarray  # of text that it stands for; none for end-of-text
    row: np.ndarray  # its document's number, or, of a single document, its window's
    rows: int
    documents: int | None = None  # where they are not as many as rows

    def by_row(self, values: np.ndarray, groups: np.ndarray | None = None, count: int = 1) -> np.ndarray:
        """Sums of `values` (N,) by row, and by `groups` (N,) in [0, count) if given: (rows, count)."""
        places = self.row * count + (0 if groups is None else groups)
        return np.bincount(places, values, self.rows * count).reshape(self.rows, count)

    def scores(self) -> Scores:
        columns = (-self.predictions.logprobs, np.ones(len(self.row)), self.bytes)
        nats, tokens, sizes = (self.by_row(column)[:, 0] for column in columns)
        return Scores(nats, tokens, sizes, self.documents)


def score_documents(
    model: Transformer, tokenizer: Tokenizer, texts: Sequence[str], compute: Compute, stride: int = 0
) -> Scores:
    """Code lengths of whole documents. The model is set to evaluation and back. Raises ConfigError."""
    return score_tokens(model, tokenizer, texts, compute, stride).scores()


def score_tokens(
    model: Transformer, tokenizer: Tokenizer, texts: Sequence[str], compute: Compute, stride: int = 0
) -> ScoredTokens:
    """What the model says of each token of whole documents. Raises ConfigError for a stride that leaves tokens out."""
    segments: list[Segment] = []
    owner: list[int] = []
    for number, text in enumerate(texts):
        cut = windows(bracketed(tokenizer, text), model.config.block_size, stride)
        segments += cut
        owner += [number] * len(cut)
    training = model.training
    model.eval()
    found = predictions(model, segments, compute)
    model.train(training)
    tokens = np.concatenate([segment.tokens[segment.first :] for segment in segments])
    position = np.concatenate([np.arange(segment.first, len(segment.tokens)) for segment in segments])
    rows = np.arange(len(segments)) if len(texts) == 1 else np.array(owner)
    row = np.repeat(rows, [len(segment.tokens) - segment.first for segment in segments])
    lengths = np.zeros(tokenizer.vocab_size, dtype=np.int64)
    lengths[: len(tokenizer.tokens)] = [len(token) for token in tokenizer.tokens]
    return ScoredTokens(found, position, lengths[tokens], row, int(rows[-1]) + 1, len(texts))


def bracketed(tokenizer: Tokenizer, text: str) -> np.ndarray:
    """The document's tokens between the token that begins a text and the one that ends it."""
    return np.array([tokenizer.begin_of_text, *tokenizer.encode(text), tokenizer.end_of_text], dtype=np.int64)


def windows(tokens: np.ndarray, block_size: int, stride: int = 0) -> list[Segment]:
    """Segments of at most block_size + 1 tokens that together score tokens[1:] once each.

    `stride` tokens at a time once the context is full; 0 is half of it. Raises ConfigError.
    """
    if stride > block_size:
        raise ConfigError("stride", f"{stride} is longer than the context of {block_size} tokens")
    stride = stride or max(1, block_size // 2)
    segments = [Segment(tokens[: block_size + 1], 1)]
    scored = block_size + 1
    while scored < len(tokens):
        end = min(scored + stride, len(tokens))
        begin = max(0, end - block_size - 1)
        segments.append(Segment(tokens[begin:end], scored - begin))
        scored = end
    return segments
