"""95 % intervals: by the bootstrap over documents (Efron 1979), and Wilson's for shares of independent trials.

Tokens of one document depend on each other, so it is documents that are drawn with replacement, never tokens.
"""

import numpy as np

DRAWS = 1000
LEVELS = (0.025, 0.975)


def resampled(columns: np.ndarray, seed: int, draws: int = DRAWS) -> np.ndarray:
    """Sums over rows of `columns` (rows, k), the rows drawn with replacement; (draws, k)."""
    generator = np.random.Generator(np.random.PCG64(seed))
    rows = len(columns)
    return np.stack([columns[generator.integers(0, rows, rows)].sum(axis=0) for _ in range(draws)])


def interval(amounts: np.ndarray, weights: np.ndarray, seed: int, draws: int = DRAWS) -> tuple[float, float]:
    """Of sum(amounts) / sum(weights), an entry a document."""
    low, high = np.quantile(_ratios(amounts, weights, seed, draws), LEVELS)
    return float(low), float(high)


def mean_interval(values: np.ndarray, seed: int) -> tuple[float, float]:
    """Of the mean."""
    return interval(np.asarray(values, dtype=np.float64), np.ones(len(values)), seed)


def difference_interval(
    left: tuple[np.ndarray, np.ndarray], right: tuple[np.ndarray, np.ndarray], seed: int
) -> tuple[float, float]:
    """Of the ratio of `left` less that of `right`, amounts and weights of two independent sets of documents."""
    low, high = np.quantile(_ratios(*left, seed, DRAWS) - _ratios(*right, seed + 1, DRAWS), LEVELS)
    return float(low), float(high)


def share_interval(successes: int, trials: int) -> tuple[float, float]:
    """Of a share (Wilson 1927): sound near 0 and 1, where the normal one is not."""
    z = 1.959964
    p, n = successes / trials, trials
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return float(max(0.0, centre - half)), float(min(1.0, centre + half))


def _ratios(amounts: np.ndarray, weights: np.ndarray, seed: int, draws: int) -> np.ndarray:
    sums = resampled(np.stack([amounts, weights], axis=1), seed, draws)
    return sums[:, 0] / sums[:, 1]
