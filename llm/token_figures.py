"""What single tokens tell: the loss by position in the context, and how well confidence is calibrated.

Position is the number of tokens before the one predicted, the end-of-text that begins the document among them. Bins
of positions grow by half octaves, since the loss falls fastest at the start.

Calibration follows Guo et al. 2017 (arXiv:1706.04599): the confidence of a prediction is the probability of the
likeliest token, in `BINS` bins of equal width; in each, accuracy is the share of tokens that were the likeliest. The
expected calibration error is the mean of |accuracy - confidence|, bins weighted by their tokens.
"""

import numpy as np

from llm.evaluate import ScoredTokens
from llm.intervals import LEVELS, interval, resampled

BINS = 15

Row = dict[str, float]


def loss_by_position(tokens: ScoredTokens, block_size: int, seed: int) -> list[Row]:
    """Nats per token in bins of positions `from` to `to`, both inside, with 95 % bootstrap intervals over documents."""
    starts = np.unique(np.round(2 ** np.arange(0, np.log2(block_size) + 0.5, 0.5)).astype(np.int64))
    starts = starts[starts <= block_size]
    ends = np.append(starts[1:] - 1, block_size)
    bins = np.searchsorted(starts, tokens.position, side="right") - 1
    nats = tokens.by_row(-tokens.predictions.logprobs, bins, len(starts))
    counts = tokens.by_row(np.ones(len(bins)), bins, len(starts))
    sums = resampled(np.concatenate([nats, counts], axis=1), seed)
    with np.errstate(invalid="ignore"):  # a draw without any document of that length says nothing of it
        drawn = sums[:, : len(starts)] / sums[:, len(starts) :]
    rows = []
    for number in np.flatnonzero(counts.sum(axis=0)):
        low, high = np.nanquantile(drawn[:, number], LEVELS)
        rows.append(
            {
                "from": float(starts[number]),
                "to": float(ends[number]),
                "tokens": float(counts[:, number].sum()),
                "loss": float(nats[:, number].sum() / counts[:, number].sum()),
                "loss_low": float(low),
                "loss_high": float(high),
            }
        )
    return rows


def calibration(tokens: ScoredTokens, seed: int) -> tuple[Row, list[Row]]:
    """Figures over all tokens, and a row for each bin of confidence that has any.

    `overconfidence` is mean confidence less accuracy, with a 95 % bootstrap interval over documents; below 0 the model
    trusts itself too little.
    """
    confidence, correct = tokens.predictions.confidence, tokens.predictions.correct.astype(np.float64)
    bins = np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)  # ((m - 1) / M, m / M], as the paper's
    counts, accuracies, confidences = (np.bincount(bins, v, BINS) for v in (np.ones(len(bins)), correct, confidence))
    rows = [
        {
            "from": number / BINS,
            "to": (number + 1) / BINS,
            "tokens": float(counts[number]),
            "confidence": float(confidences[number] / counts[number]),
            "accuracy": float(accuracies[number] / counts[number]),
        }
        for number in np.flatnonzero(counts)
    ]
    excess = tokens.by_row(confidence - correct)[:, 0]
    low, high = interval(excess, tokens.by_row(np.ones(len(bins)))[:, 0], seed)
    figures = {
        "expected_calibration_error": float(np.abs(accuracies - confidences).sum() / len(bins)),
        "accuracy": float(correct.mean()),
        "confidence": float(confidence.mean()),
        "overconfidence": float(confidence.mean() - correct.mean()),
        "overconfidence_low": low,
        "overconfidence_high": high,
    }
    return figures, rows
