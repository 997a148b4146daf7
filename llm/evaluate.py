"""Perplexity and bits per byte of documents, with intervals.

Convention: a document is scored as the model saw it in training, after an end-of-text token and up to and including
the one that closes it, so the sum is the whole code length of the text. Every token is scored once. A document longer
than the context is read in windows that advance by half a context and score only their second half, so each token has
at least half a context before it. Bits per byte divide that sum by the document's UTF-8 bytes and do not depend on
the tokenizer; perplexity is per token and does.

Intervals are 95 % bootstrap intervals over documents (for a single long text: over its windows).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llm.compute import Compute
from llm.errors import ConfigError
from llm.model.transformer import Transformer
from llm.scoring import Segment, score
from llm.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True)
class EvaluateConfig:
    """Raises ConfigError."""

    documents: int  # of each split, evenly spaced; 0 = all
    pairs: int  # held-out preference pairs; 0 = all
    stories: int  # stories to write and judge, each for base and DPO; only for the embedded corpus
    temperature: float  # of those stories
    seed: int  # of those stories and of the bootstrap

    def __post_init__(self) -> None:
        for name in ("documents", "pairs", "stories"):
            if getattr(self, name) < 0:
                raise ConfigError(name, f"{getattr(self, name)} is negative; 0 means all")
        if self.temperature < 0:
            raise ConfigError("temperature", f"{self.temperature} is negative; 0 is greedy")


@dataclass(frozen=True)
class Scores:
    """Code lengths of a set of texts. Rows are documents, or the windows of a single one."""

    nats: np.ndarray
    tokens: np.ndarray
    bytes: np.ndarray

    def summary(self, seed: int) -> dict[str, float]:
        """Loss (nats per token), perplexity, bits per byte and its 95 % interval."""
        loss = self.nats.sum() / self.tokens.sum()
        low, high = interval(self.nats, self.bytes, seed)
        return {
            "loss": float(loss),
            "perplexity": float(np.exp(loss)),
            "bits_per_byte": float(self.nats.sum() / self.bytes.sum() / np.log(2)),
            "bits_per_byte_low": low / float(np.log(2)),
            "bits_per_byte_high": high / float(np.log(2)),
            "documents": float(len(self.nats)),
            "bytes": float(self.bytes.sum()),
        }


def score_documents(model: Transformer, tokenizer: Tokenizer, texts: Sequence[str], compute: Compute) -> Scores:
    """Code lengths of whole documents. The model is set to evaluation and back."""
    segments: list[Segment] = []
    owner: list[int] = []
    for number, text in enumerate(texts):
        cut = windows(bracketed(tokenizer, text), model.config.block_size)
        segments += cut
        owner += [number] * len(cut)
    training = model.training
    model.eval()
    nats = -score(model, segments, compute)
    model.train(training)
    tokens = np.array([len(s.tokens) - s.first for s in segments], dtype=np.float64)
    byte_counts = np.array([len(text.encode()) for text in texts], dtype=np.float64)
    if len(texts) == 1:
        return Scores(nats, tokens, byte_counts[0] * tokens / tokens.sum())
    by_document = [np.bincount(owner, of_segment, len(texts)) for of_segment in (nats, tokens)]
    return Scores(by_document[0], by_document[1], byte_counts)


def bracketed(tokenizer: Tokenizer, text: str) -> np.ndarray:
    """The document's tokens between two end-of-text tokens."""
    return np.array([tokenizer.end_of_text, *tokenizer.encode(text), tokenizer.end_of_text], dtype=np.int64)


def windows(tokens: np.ndarray, block_size: int) -> list[Segment]:
    """Segments of at most block_size + 1 tokens that together score tokens[1:] once each."""
    segments = [Segment(tokens[: block_size + 1], 1)]
    stride = max(1, block_size // 2)
    scored = block_size + 1
    while scored < len(tokens):
        end = min(scored + stride, len(tokens))
        begin = max(0, end - block_size - 1)
        segments.append(Segment(tokens[begin:end], scored - begin))
        scored = end
    return segments


def interval(amounts: np.ndarray, weights: np.ndarray, seed: int, draws: int = 1000) -> tuple[float, float]:
    """95 % bootstrap interval of sum(amounts) / sum(weights), rows drawn with replacement."""
    generator = np.random.Generator(np.random.PCG64(seed))
    ratios = []
    for _ in range(draws):
        rows = generator.integers(0, len(amounts), len(amounts))
        ratios.append(amounts[rows].sum() / weights[rows].sum())
    low, high = np.quantile(ratios, [0.025, 0.975])
    return float(low), float(high)


def share_interval(successes: int, trials: int) -> tuple[float, float]:
    """95 % Wilson interval of a share (Wilson 1927), sound near 0 and 1 where the normal one is not."""
    z = 1.959964
    p, n = successes / trials, trials
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return float(max(0.0, centre - half)), float(min(1.0, centre + half))
