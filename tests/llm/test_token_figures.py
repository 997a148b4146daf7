"""Loss by position and calibration, against plain loops and predictions of known calibration."""

from itertools import pairwise

import numpy as np
import pytest

from llm.evaluate import ScoredTokens
from llm.scoring import Predictions
from llm.token_figures import calibration, loss_by_position


def tokens(count: int, documents: int, confidence: np.ndarray, correct: np.ndarray) -> ScoredTokens:
    random = np.random.default_rng(2)
    made = Predictions(-random.exponential(2.0, count), confidence, correct)
    length = count // documents
    position, row = np.tile(np.arange(1, length + 1), documents), np.repeat(np.arange(documents), length)
    return ScoredTokens(made, position, np.ones(count, dtype=np.int64), row, documents)


def test_loss_by_position_adds_up_to_the_loss() -> None:
    found = tokens(4000, 40, np.full(4000, 0.5), np.ones(4000, dtype=bool))
    rows = loss_by_position(found, block_size=128, seed=1)
    bounds = [(row["from"], row["to"]) for row in rows]
    assert bounds[:3] == [(1, 1), (2, 2), (3, 3)]
    assert bounds[-1] == (91, 127)  # no document is longer than 100
    assert all(first[1] + 1 == second[0] for first, second in pairwise(bounds))
    nats = -found.predictions.logprobs
    for row in rows:
        inside = (found.position >= row["from"]) & (found.position <= row["to"])
        assert row["tokens"] == inside.sum()
        assert row["loss"] == pytest.approx(nats[inside].mean())
        assert row["loss_low"] < row["loss"] < row["loss_high"]
    assert sum(row["tokens"] * row["loss"] for row in rows) == pytest.approx(nats.sum())


def test_the_last_position_of_the_context_has_a_bin() -> None:
    found = tokens(300, 3, np.full(300, 0.5), np.ones(300, dtype=bool))
    for block in (100, 128, 181):
        assert loss_by_position(found, block, seed=1)[-1]["to"] >= 100


def test_calibration_of_predictions_that_are_as_right_as_they_are_sure() -> None:
    """With n tokens a bin, |accuracy - confidence| is about 0.8 √(p (1 - p) / n) by chance alone."""
    random = np.random.default_rng(5)
    confidence = random.uniform(0, 1, 60_000)
    correct = random.uniform(0, 1, 60_000) < confidence
    figures, bins = calibration(tokens(60_000, 600, confidence, correct), seed=1)
    assert figures["expected_calibration_error"] < 0.01
    assert figures["overconfidence_low"] < 0 < figures["overconfidence_high"]
    assert len(bins) == 15
    assert sum(row["tokens"] for row in bins) == 60_000


def test_the_calibration_error_of_the_paper_by_a_plain_loop() -> None:
    random = np.random.default_rng(6)
    confidence = np.append(random.uniform(0, 1, 996), [1 / 15, 2 / 15, 1.0, 0.0])  # on the bins' upper edges, too
    correct = random.uniform(0, 1, 1000) < 0.3
    figures, bins = calibration(tokens(1000, 10, confidence, correct), seed=1)
    error = 0.0
    for number in range(15):
        inside = (confidence > number / 15) & (confidence <= (number + 1) / 15)
        inside |= (confidence == 0) & (number == 0)
        error += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
        assert bins[number]["tokens"] == inside.sum()
    assert figures["expected_calibration_error"] == pytest.approx(error)
    assert figures["overconfidence"] == pytest.approx(confidence.mean() - correct.mean())
    assert figures["overconfidence_low"] > 0
