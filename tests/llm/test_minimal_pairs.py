"""Minimal pairs against a scorer written with `transformers`; what a file can have wrong."""

import gzip
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llm.compute import Compute
from llm.errors import WordmillError
from llm.minimal_pair_files import KEYS
from llm.minimal_pairs import (
    MinimalPair,
    pair_margins,
    paradigm_accuracies,
    read_minimal_pairs,
    sentence_logprobs,
)
from llm.model import folder
from llm.model.config import ModelConfig
from llm.model.transformer import Transformer
from llm.tokenizer.config import TokenizerConfig
from llm.tokenizer.train import make


def test_sums_are_those_of_a_scorer_in_transformers(
    tiny_config: ModelConfig, compute: Compute, shared_data: Path, tmp_path: Path
) -> None:
    pairs = read_minimal_pairs((str(shared_data / "blimp/*.jsonl.gz"),), tmp_path)
    assert len(pairs) == 20_000
    assert len({pair.paradigm for pair in pairs}) == 20
    some = pairs[::500]
    settings = TokenizerConfig(kind="bpe", vocab_size=400, min_count=1)
    tokenizer = make(settings, lambda: [pair.good for pair in some]).tokenizer
    model = Transformer(replace(tiny_config, block_size=64), tokenizer.vocab_size)
    model.initialise(seed=5)
    tokenizer.save(tmp_path / "tokenizer")
    folder.save(model, tmp_path / "model", tmp_path / "tokenizer", tokenizer.end_of_text)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    words = AutoTokenizer.from_pretrained(tmp_path / "model")

    def scored(sentence: str) -> float:
        ids = words(words.bos_token + sentence, return_tensors="pt", add_special_tokens=False).input_ids
        with torch.no_grad():
            logprobs = theirs(ids[:, :-1]).logits.double().log_softmax(dim=-1)
        return logprobs.gather(2, ids[:, 1:, None]).sum().item()

    sides = [[pair.good for pair in some], [pair.bad for pair in some]]
    ours = [sentence_logprobs(model, tokenizer, side, compute) for side in sides]
    expected = np.array([[scored(sentence) for sentence in side] for side in sides])
    assert np.stack(ours) == pytest.approx(expected, abs=1e-3)
    accuracies = paradigm_accuracies(some, ours[0] - ours[1])
    assert pair_margins(model, tokenizer, some, compute) == pytest.approx(ours[0] - ours[1])
    assert accuracies[""]["accuracy"] == (expected[0] > expected[1]).mean()
    for name in {pair.paradigm for pair in some}:
        of_name = [row for row, pair in enumerate(some) if pair.paradigm == name]
        assert accuracies[name]["accuracy"] == (expected[0] > expected[1])[of_name].mean()


def test_accuracies_by_paradigm_and_over_all() -> None:
    pairs = [MinimalPair("a", "b" if name == "y" else "a", name) for name in ("x", "y", "x", "y", "y")]
    found = paradigm_accuracies(pairs, np.array([1.0, 2.0, 0.0, -1.0, 3.0]))  # equal sums are wrong
    assert {name: (row["pairs"], row["accuracy"]) for name, row in found.items()} == {
        **{"": (5, 3 / 5), "x": (2, 1 / 2), "y": (3, pytest.approx(2 / 3))}
    }
    assert [found[name]["equal"] for name in ("", "x", "y")] == [2, 2, 0]
    assert all(row["accuracy_low"] < row["accuracy"] < row["accuracy_high"] for row in found.values())


def test_a_sentence_longer_than_the_context_is_scored_whole(
    tiny_config: ModelConfig, compute: Compute, tmp_path: Path
) -> None:
    tokenizer = make(TokenizerConfig(kind="bytes"), lambda: []).tokenizer
    model = Transformer(tiny_config, tokenizer.vocab_size).eval()
    model.initialise(seed=1)
    sentence = "word " * 40
    short, long = (sentence_logprobs(model, tokenizer, [text], compute)[0] for text in (sentence[:30], sentence))
    assert long < 5 * short


def test_a_file_without_paradigms_gives_its_name(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "agreement.jsonl.gz", "wt") as file:
        file.write(json.dumps(dict(zip(KEYS, ("He sings.", "He sing."), strict=True))) + "\n")
    pairs = read_minimal_pairs((str(tmp_path / "*.gz"),), tmp_path)
    assert pairs == [MinimalPair("He sings.", "He sing.", "agreement")]


FINE = '{"sentence_good": "a", "sentence_bad": "b", "UID": "x"}\n'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (FINE + '{"sentence_good": "a"}', "pairs.jsonl line 2: key 'sentence_bad' is missing, empty or not a string"),
        (FINE + "\n" + FINE.replace('"a"', "7"), "pairs.jsonl line 3: key 'sentence_good' is missing, empty or not a"),
        (FINE.replace('"a"', '" "'), "pairs.jsonl line 1: key 'sentence_good' is missing, empty"),
        (FINE.replace('"x"', "3"), "pairs.jsonl line 1: key 'UID' is empty or not a string"),
        (FINE.replace('"b"', '"\\ud800"'), "pairs.jsonl line 1: key 'sentence_bad' holds half of a character"),
        (FINE + "{", "pairs.jsonl line 2: not valid JSON"),
        (FINE + "[1]", "pairs.jsonl line 2: not a record with keys, but a list"),
        ("", "pairs.jsonl: holds no pair"),
    ],
)
def test_what_is_wrong_is_named_by_file_and_line(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text(content)
    with pytest.raises(WordmillError) as caught:
        read_minimal_pairs((str(tmp_path / "pairs.jsonl"),), tmp_path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.jsonl", "none.jsonl: not found"),
        ("*.parquet", "no file matches"),
        ("pairs.csv", "pairs.csv: the name must end in .jsonl, .json or .parquet"),
    ],
)
def test_wrong_paths_are_named(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text("a,b\n")
    with pytest.raises(WordmillError, match=r"^evaluate\.minimal_pairs: ") as caught:
        read_minimal_pairs((str(tmp_path / name),), tmp_path)
    assert message in str(caught.value)
