"""Evaluation against `transformers`' loss, exact counting, and intervals of known coverage."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from llm.compute import Compute
from llm.evaluate import Scores, interval, share_interval, windows
from llm.model import folder
from llm.model.transformer import Transformer
from llm.scoring import score


@given(length=st.integers(2, 200), block=st.integers(1, 64))
def test_every_token_is_scored_once_with_half_a_context_before_it(length: int, block: int) -> None:
    tokens = np.arange(length)
    scored = []
    for number, segment in enumerate(windows(tokens, block)):
        assert len(segment.tokens) <= block + 1
        scored += segment.tokens[segment.first :].tolist()
        if number:
            assert segment.first >= min(block // 2, 1)
            assert segment.first >= block // 2
    assert scored == tokens[1:].tolist()


def test_loss_is_that_of_transformers(tiny_model: Transformer, compute: Compute, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    folder.save(tiny_model, tmp_path / "model", tmp_path, end_of_text=0)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    tokens = torch.randint(0, 64, (1, 30), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = theirs(tokens, labels=tokens).loss.item()
    (segment,) = windows(tokens[0].numpy(), 32)
    assert -score(tiny_model, [segment], compute)[0] / 29 == pytest.approx(expected, abs=1e-5)


def test_bits_per_byte_do_not_depend_on_the_tokens() -> None:
    nats = np.array([10.0, 20.0])
    few = Scores(nats, np.array([5.0, 5.0]), np.array([40.0, 60.0])).summary(seed=0)
    many = Scores(nats, np.array([50.0, 50.0]), np.array([40.0, 60.0])).summary(seed=0)
    assert few["bits_per_byte"] == many["bits_per_byte"] == pytest.approx(30 / 100 / np.log(2))
    assert few["perplexity"] == pytest.approx(np.exp(3.0))


def test_bootstrap_covers_the_truth_as_often_as_it_says() -> None:
    """The ratio of means is 2; of 200 samples about 190 intervals must hold it (171 is 6 standard deviations low)."""
    random = np.random.default_rng(7)
    held = 0
    for trial in range(200):
        sizes = random.integers(50, 150, 80).astype(float)
        low, high = interval(sizes * 2 + random.normal(0, 30, 80), sizes, seed=trial, draws=200)
        held += low <= 2 <= high
    assert 171 <= held <= 200


def test_wilson_interval_has_its_known_values() -> None:
    assert share_interval(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert share_interval(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert share_interval(10, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)
