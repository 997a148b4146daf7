"""What the stage `evaluate` says of two models on the same documents and pairs."""

import numpy as np
import pytest

from stages.evaluate import change, preferences

from llm.evaluate import Scores  # isort: skip

BEFORE = np.array([[-2.0, 1.0, -3.0, 4.0], [0.5, -0.1, -0.2, 0.3]])  # of whole answers, of their mean tokens
AFTER = np.array([[1.0, 2.0, 0.0, 3.0], [0.6, 0.1, 0.2, 0.4]])


def test_preferences_are_shares_of_pairs_in_both_measures() -> None:
    figures = preferences(AFTER, seed=1)
    assert (figures["accuracy"], figures["accuracy_per_token"], figures["pairs"]) == (
        0.75,
        1.0,
        4.0,
    )  # a tie counts not
    assert (figures["margin"], figures["margin_per_token"]) == (1.5, pytest.approx(0.325))


def test_change_is_measured_pair_by_pair_and_document_by_document() -> None:
    """All documents worse by the same per token, all pairs raised by one half: no interval left."""
    tokens, size = np.array([10.0, 30.0, 20.0]), np.array([40.0, 90.0, 80.0])
    base, dpo = Scores(tokens * 3, tokens, size), Scores(tokens * (3 + np.log(1.1)), tokens, size)
    figures = change(base, dpo, BEFORE, AFTER, seed=1)
    assert [figures[f"perplexity{end}"] for end in ("", "_low", "_high")] == pytest.approx([0.1] * 3)
    assert (figures["accuracy"], figures["accuracy_per_token"], figures["margin"]) == (0.25, 0.5, 1.5)
    assert figures["accuracy_low"] == 0 < figures["accuracy"] < figures["accuracy_high"] <= 1
    moved = change(base, dpo, BEFORE, BEFORE + 0.5, seed=1)
    assert [moved[f"margin{end}"] for end in ("", "_low", "_high")] == [0.5] * 3
    assert [moved[f"accuracy{end}"] for end in ("", "_low", "_high")] == [0] * 3  # no whole answer changes sides
