"""Evaluation against `transformers`' loss on the same windows, and exact counting of tokens and bytes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, PreTrainedModel

from llm.compute import Compute
from llm.errors import ConfigError
from llm.evaluate import EvaluateConfig, Scores, bracketed, score_documents, score_tokens, windows
from llm.model import folder
from llm.model.config import ModelConfig
from llm.model.transformer import Transformer
from llm.tokenizer.config import TokenizerConfig
from llm.tokenizer.tokenizer import Tokenizer
from llm.tokenizer.train import make

SHORT, LONG = "Ann sang.", "The miller's daughter said 'näïve' 粉屋 thrice, and then went home to bed. " * 3
LEARNT = [LONG, "Ann sang to her hen and then sold the mill and the barn."] * 3
TEXTS = [SHORT, "\n", LONG, "A mill, and a mill"]


@pytest.fixture(scope="module", params=["bytes", "bpe", "sentencepiece"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return make(TokenizerConfig(kind=request.param, vocab_size=290, min_count=1), lambda: LEARNT).tokenizer


@pytest.fixture
def model(tiny_config: ModelConfig, tokenizer: Tokenizer) -> Transformer:
    """Of a context that one of the texts is longer than, whatever the tokenizer; sure of itself, often wrongly."""
    model = Transformer(replace(tiny_config, block_size=24), tokenizer.vocab_size)
    model.initialise(seed=5)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight *= 2
    return model.eval()


@pytest.fixture
def theirs(model: Transformer, tokenizer: Tokenizer, tmp_path: Path) -> PreTrainedModel:
    tokenizer.save(tmp_path / "tokenizer")
    folder.save(model, tmp_path / "model", tmp_path / "tokenizer", tokenizer.end_of_text)
    return AutoModelForCausalLM.from_pretrained(tmp_path / "model")


def their_loss(model: PreTrainedModel, ids: list[int], context: int, stride: int) -> float:
    """Nats of ids[1:] by the sliding window of `transformers`' own guide to perplexity: labels of -100 do not count."""
    total, done = 0.0, 1
    while done < len(ids):
        end = min(len(ids), done + (stride if done > 1 else context))
        window = torch.tensor([ids[max(0, end - context - 1) : end]])
        labels = window.clone()
        labels[:, : window.shape[1] - (end - done)] = -100
        with torch.no_grad():
            total += model(window, labels=labels).loss.item() * (end - done)
        done = end
    return total


@pytest.mark.parametrize("stride", [0, 1, 7, 24])
def test_the_loss_is_that_of_transformers_on_documents_longer_than_the_context_too(
    model: Transformer, theirs: PreTrainedModel, tokenizer: Tokenizer, compute: Compute, stride: int
) -> None:
    scores = score_documents(model, tokenizer, TEXTS, compute, stride)
    lengths = []
    for row, text in enumerate(TEXTS):
        ids = bracketed(tokenizer, text).tolist()
        lengths.append(len(ids))
        assert (ids[0], ids[-1]) == (tokenizer.end_of_text, tokenizer.end_of_text)
        assert scores.tokens[row] == len(ids) - 1
        expected = their_loss(theirs, ids, 24, stride or 12)
        assert scores.nats[row] / scores.tokens[row] == pytest.approx(expected / (len(ids) - 1), abs=1e-4)
    assert lengths[2] > 3 * 24
    loss = scores.summary(seed=1)["loss"]
    expected = sum(their_loss(theirs, bracketed(tokenizer, text).tolist(), 24, stride or 12) for text in TEXTS)
    assert loss == pytest.approx(expected / scores.tokens.sum(), abs=1e-4)


def test_predictions_are_those_of_the_whole_softmax(
    model: Transformer, theirs: PreTrainedModel, tokenizer: Tokenizer, compute: Compute
) -> None:
    found = score_tokens(model, tokenizer, [SHORT], compute)
    ids = bracketed(tokenizer, SHORT)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(ids)[None]).logits[0, :-1].softmax(dim=-1).double()
    assert found.predictions.confidence == pytest.approx(expected.amax(dim=-1).numpy(), abs=1e-5)
    assert found.predictions.correct.tolist() == (expected.argmax(dim=-1).numpy() == ids[1:]).tolist()
    assert found.position.tolist() == list(range(1, len(ids)))


@given(length=st.integers(2, 200), block=st.integers(1, 64), data=st.data())
def test_every_token_is_scored_once_with_as_much_context_as_fits(length: int, block: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(0, block))
    tokens = np.arange(length)
    scored = []
    for number, segment in enumerate(windows(tokens, block, stride)):
        assert len(segment.tokens) <= block + 1
        scored += segment.tokens[segment.first :].tolist()
        if number:
            assert len(segment.tokens) == block + 1
            assert segment.first >= block + 1 - (stride or max(1, block // 2))
    assert scored == tokens[1:].tolist()


def test_a_stride_that_leaves_tokens_out_is_refused() -> None:
    with pytest.raises(ConfigError, match="stride: 9 is longer than the context of 8 tokens"):
        windows(np.arange(30), 8, 9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stride": -1}, "stride: -1 is negative; 0 means half the context"),
        ({"documents": -1}, "documents: -1 is negative; 0 means all"),
        ({"ngrams": (8, 0)}, r"ngrams: \[8, 0\]: numbers of words, each once, from 1 to 1,000"),
        ({"ngrams": (8, 8)}, r"ngrams: \[8, 8\]: "),
    ],
)
def test_settings_out_of_range_are_refused(change: dict[str, Any], message: str) -> None:
    counts = dict.fromkeys(("documents", "stride", "pairs", "stories"), 0)
    fine = EvaluateConfig(**counts, ngrams=(), minimal_pairs=(), temperature=0.0, seed=1)
    with pytest.raises(ConfigError, match=message):
        replace(fine, **change)


@pytest.mark.parametrize("texts", [TEXTS, [LONG]], ids=["documents", "one long document"])
def test_bytes_add_up_exactly_however_the_text_is_cut(
    model: Transformer, tokenizer: Tokenizer, compute: Compute, texts: list[str]
) -> None:
    scores = score_documents(model, tokenizer, texts, compute)
    if len(texts) > 1:
        assert scores.bytes.tolist() == [len(text.encode()) for text in texts]
    else:  # its rows are windows
        assert len(scores.bytes) > 2
        assert (scores.bytes[:-1] > 0).all()  # the last may hold no more than end-of-text
        assert scores.bytes.sum() == len(LONG.encode())
    assert scores.summary(seed=0)["bytes"] == sum(len(text.encode()) for text in texts)


def test_one_text_is_one_document_however_many_windows_it_takes(
    model: Transformer, compute: Compute, tokenizer: Tokenizer
) -> None:
    long = "abc " * 40
    one = score_documents(model, tokenizer, [long], compute).summary(seed=0)
    assert (one["documents"], one["windows"]) == (1, len(windows(bracketed(tokenizer, long), 24)))
    two = score_documents(model, tokenizer, [long, long], compute).summary(seed=0)
    assert two["documents"] == 2
    assert "windows" not in two


def test_bits_per_byte_do_not_depend_on_the_tokens() -> None:
    nats = np.array([10.0, 20.0])
    few = Scores(nats, np.array([5.0, 5.0]), np.array([40.0, 60.0])).summary(seed=0)
    many = Scores(nats, np.array([50.0, 50.0]), np.array([40.0, 60.0])).summary(seed=0)
    assert few["bits_per_byte"] == many["bits_per_byte"] == pytest.approx(30 / 100 / np.log(2))
    assert few["perplexity"] == pytest.approx(np.exp(3.0))
