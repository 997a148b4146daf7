"""Pairs of a model's own stories: who is set against whom, and that they are the same however often they are made."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from llm import judged
from llm.compute import Compute
from llm.corpus.stories import judge, pairs, story
from llm.judged import judged_pairs
from llm.model.config import ModelConfig
from llm.model.transformer import Transformer
from llm.preferences import PreferencesConfig
from llm.tokenizer.config import TokenizerConfig
from llm.tokenizer.tokenizer import Tokenizer
from llm.tokenizer.train import make

CONFIG = PreferencesConfig(
    source="judged",
    pairs=1000,
    openings=12,
    tries=4,
    temperature=0.7,
    pairs_per_story=1,
    held_out_share=0.1,
    paths=(),
    shape="auto",
    dataset="",
    dataset_config="",
    dataset_split="train",
    revision="",
    prompt_characters=60,
    answer_characters=50,
    seed=1,
)
TEXTS = [story(1, index) for index in range(CONFIG.openings)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return make(TokenizerConfig(vocab_size=400), lambda: (story(3, index) for index in range(60))).tokenizer


@pytest.fixture
def model(tokenizer: Tokenizer, tiny_config: ModelConfig) -> Transformer:
    model = Transformer(replace(tiny_config, block_size=96), tokenizer.vocab_size)
    model.initialise(1)
    return model


def opening(text: str) -> str:
    return text[: text.index(".") + 1]


def test_a_model_that_makes_no_sense_is_set_against_the_source(
    model: Transformer, tokenizer: Tokenizer, compute: Compute
) -> None:
    made = judged_pairs(model, tokenizer, TEXTS, CONFIG, compute)
    assert [pair.prompt for pair in made] == [opening(text) for text in TEXTS]
    assert {pair.kind for pair in made} == {"source"}
    for pair, text in zip(made, TEXTS, strict=True):
        assert pair.prompt + pair.chosen == text
        assert not judge(pair.prompt + pair.rejected).sensible
    assert made == judged_pairs(model, tokenizer, TEXTS, CONFIG, compute)
    assert made != judged_pairs(model, tokenizer, TEXTS, replace(CONFIG, seed=2), compute)


def test_own_sensible_stories_are_set_against_own_broken_ones(
    model: Transformer, tokenizer: Tokenizer, compute: Compute, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the model writes is given: for the n-th opening n mod 5 true stories and 4 - n mod 5 broken ones."""

    def written(*arguments: object) -> list[list[str]]:
        openings, start = arguments[2], arguments[3]
        assert isinstance(openings, Sequence)
        assert isinstance(start, int)
        rows = []
        for n, text in enumerate(TEXTS[start : start + len(openings)], start):
            (broken,) = pairs(1, n, at_most=1)
            bad = (broken.prompt + broken.rejected).removeprefix(opening(broken.prompt))
            true = text.removeprefix(opening(text))
            rows.append([true if i < n % 5 else bad for i in range(4)])
        return rows

    monkeypatch.setattr(judged, "_written", written)
    monkeypatch.setattr(judged, "FEW", 1)
    made = judged_pairs(model, tokenizer, TEXTS, CONFIG, compute)
    counts = {text: sum(pair.prompt == opening(text) for pair in made) for text in TEXTS}
    assert list(counts.values()) == [min(n % 5, 4 - n % 5) for n in range(12)]
    for pair in made:
        assert judge(pair.prompt + pair.chosen).sensible
        assert not judge(pair.prompt + pair.rejected).sensible
        assert pair.kind == judge(pair.prompt + pair.rejected).kind != ""
