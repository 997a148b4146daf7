"""Pairs as tokens, and the scope `fork` against a plain computation, one forward pass for each side of each pair."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from llm.compute import Compute
from llm.corpus.stories import pairs, story
from llm.dpo import DPOConfig, dpo
from llm.model.config import ModelConfig
from llm.model.transformer import Transformer
from llm.pair_scoring import Forks, Pairs, WholeAnswers, encode_pairs
from llm.preferences import PairTexts
from llm.scoring import Segment
from llm.tokenizer.config import TokenizerConfig
from llm.tokenizer.tokenizer import Tokenizer
from llm.tokenizer.train import make
from llm.training_state import Record


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    config = TokenizerConfig(vocab_size=400)
    return make(config, lambda: (story(3, index) for index in range(60))).tokenizer


@pytest.fixture(scope="module")
def texts() -> PairTexts:
    """Three stories with several pairs each, in no order."""
    made = [pair for index in range(3) for pair in pairs(1, index, at_most=6)]
    made = [made[i] for i in np.random.default_rng(0).permutation(len(made))]
    return PairTexts(
        [pair.prompt for pair in made],
        [pair.chosen for pair in made],
        [pair.rejected for pair in made],
        [True] * len(made),
    )


@pytest.mark.parametrize("block_size", [1, 2, 3, 8, 17, 40])
@pytest.mark.parametrize("lengths", [(1, 1, 2), (30, 4, 9), (30, 60, 3), (3, 60, 70)])
def test_what_is_cut_still_begins_with_the_end_of_text(
    tokenizer: Tokenizer, lengths: tuple[int, int, int], block_size: int
) -> None:
    prompt, *answers = ("".join("abcd"[(i * i + k) % 4] + "," for i in range(n)) for k, n in enumerate(lengths))
    pairs = encode_pairs(tokenizer, PairTexts([prompt], answers[:1], answers[1:], [True]), block_size)
    for segment in (pairs.chosen[0], pairs.rejected[0]):
        tokens = segment.tokens.tolist()
        assert tokens[0] == tokenizer.end_of_text
        assert len(tokens) <= block_size + 1
        assert 1 <= segment.first < len(tokens)
        kept = tokenizer.decode(tokens[1 : segment.first])
        assert prompt.endswith(kept) or (prompt + answers[0]).startswith(kept)


@pytest.fixture
def model(tokenizer: Tokenizer, tiny_config: ModelConfig) -> Transformer:
    model = Transformer(replace(tiny_config, block_size=1024), tokenizer.vocab_size)
    model.initialise(1)
    return model


def test_prompt_and_answer_are_encoded_as_the_text_that_they_are(tokenizer: Tokenizer, texts: PairTexts) -> None:
    found = encode_pairs(tokenizer, texts, 1024)
    end = tokenizer.end_of_text
    for prompt, chosen, segment in zip(texts.prompt, texts.chosen, found.chosen, strict=True):
        assert segment.tokens.tolist() == [end, *tokenizer.encode(prompt + chosen), end]
        assert prompt.startswith(tokenizer.decode(segment.tokens[1 : segment.first].tolist()))


def test_what_a_text_would_make_of_the_last_token_is_left_open(tokenizer: Tokenizer) -> None:
    """A full stop is one token with the line end behind it, wherever the prompt or a cut answer ends."""
    cut = encode_pairs(tokenizer, PairTexts(["He sat."], ["\n\nNow he ran."], ["\n\nNow she ran."], [False]), 1024)
    (chosen,) = cut.chosen
    assert chosen.tokens.tolist() == [tokenizer.end_of_text, *tokenizer.encode("He sat.\n\nNow he ran")]
    assert tokenizer.decode(chosen.tokens[1 : chosen.first].tolist()) in ("He sat", "He sat.")


def test_forks_are_what_single_passes_give(
    tokenizer: Tokenizer, texts: PairTexts, model: Transformer, compute: Compute
) -> None:
    encoded = encode_pairs(tokenizer, texts, 1024)
    scope = Forks(encoded)
    assert len(scope) == 3  # one for each story, however many pairs it has
    assert sorted(number for numbers in scope.pairs for number in numbers) == list(range(len(encoded)))
    found, sft = scope.logprobs(model, range(3), compute, sft=True)
    order = [number for numbers in scope.pairs for number in numbers]
    for column, number in enumerate(order):
        sides = encoded.chosen[number].tokens, encoded.rejected[number].tokens
        fork = next(i for i, (a, b) in enumerate(zip(*sides, strict=False)) if a != b)
        for row, tokens in enumerate(sides):
            logits = model(torch.from_numpy(tokens[None, :fork]))[0, -1]
            assert found[row, column].item() == pytest.approx(logits.log_softmax(-1)[tokens[fork]].item(), abs=1e-4)
    nats, count = 0.0, 0
    for numbers in scope.pairs:
        longest = max((encoded.chosen[n] for n in numbers), key=lambda segment: len(segment.tokens))
        first = min(encoded.chosen[n].first for n in numbers)
        logits = model(torch.from_numpy(longest.tokens[None, :-1]))[0].log_softmax(-1)
        each = logits[torch.arange(len(logits)), torch.from_numpy(longest.tokens[1:])]
        nats, count = nats - each[first - 1 :].sum().item(), count + len(longest.tokens) - first
    assert sft is not None
    assert sft.item() == pytest.approx(nats / count, abs=1e-4)


def test_pairs_that_do_not_part_are_dropped_and_counted() -> None:
    prompt = [1, 2]
    chosen = [Segment(np.array([*prompt, *answer]), 2) for answer in ([3, 4], [3], [5, 6])]
    rejected = [Segment(np.array([*prompt, *answer]), 2) for answer in ([3], [4], [5, 7])]
    scope = Forks(Pairs(chosen, rejected, cut=0))
    assert scope.dropped == 1
    assert scope.pairs == [[1], [2]]


def test_dpo_in_the_scope_fork_moves_only_what_parts(
    tokenizer: Tokenizer, texts: PairTexts, model: Transformer, compute: Compute, tmp_path: Path
) -> None:
    """It raises the true word over the false one; what it makes of whole answers is its own business."""
    encoded = encode_pairs(tokenizer, texts, 1024)
    config = DPOConfig(
        scope="fork",
        loss="sigmoid",
        label_smoothing=0.0,
        beta=0.1,
        sft_weight=1.0,
        lr=1e-3,
        final_lr_share=0.1,
        warmup_steps=2,
        epochs=12,
        batch_size=3,
        weight_decay=0.0,
        grad_clip=1.0,
        seed=1,
        log_every=1,
        eval_every=6,
        checkpoint_every=5,
    )
    scope = Forks(encoded)
    records: list[Record] = list(dpo(model, scope, scope, config, compute, tmp_path))
    assert records[0].values["held_out_loss"] == pytest.approx(np.log(2))
    assert records[-1].values["held_out_loss"] < np.log(2) - 0.01
    losses = [record.values["sft_loss"] for record in records if "sft_loss" in record.values]
    assert losses[-1] < losses[0] - 0.1
    assert {type(record.values.get("accuracy", 0.0)) for record in records} == {float}


def test_whole_answers_count_their_own_tokens(
    tokenizer: Tokenizer, texts: PairTexts, model: Transformer, compute: Compute
) -> None:
    scope = WholeAnswers(encode_pairs(tokenizer, texts, 1024))
    found, sft = scope.logprobs(model, [0, 4], compute, sft=True)
    tokens = sum(len(scope.chosen[i].tokens) - scope.chosen[i].first for i in (0, 4))
    assert sft is not None
    assert sft.item() == pytest.approx(-found[0].sum().item() / tokens)
    assert scope.logprobs(model, [0], compute, sft=False)[1] is None
