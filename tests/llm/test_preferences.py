"""Preference pairs from every source: who wins, what is dropped and counted, and that no prompt is on both sides."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from llm.corpus.stories import judge, story
from llm.errors import ConfigError, WordmillError
from llm.preferences import Pair, PreferencesConfig, cleaned, hashed_split, pairs, read_pairs, write_pairs

CONFIG = PreferencesConfig(
    source="stories",
    pairs=200,
    openings=10,
    tries=2,
    temperature=0.7,
    pairs_per_story=3,
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
COUNTS = ("train", "test", "empty", "equal_answers", "duplicates")


def untouched() -> Iterator[str]:
    raise AssertionError("this source does not read the corpus")
    yield ""


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"pairs": 0}, "pairs"),
        ({"pairs_per_story": 0}, "pairs_per_story"),
        ({"openings": 0}, "openings"),
        ({"tries": 1}, "tries"),
        ({"temperature": 0.0}, "temperature"),
        ({"held_out_share": 0.0}, "held_out_share"),
        ({"held_out_share": 1.0}, "held_out_share"),
        ({"prompt_characters": 0}, "prompt_characters"),
        ({"source": "files"}, "paths"),
    ],
)
def test_limits(change: dict[str, object], field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        replace(CONFIG, **change)  # type: ignore[arg-type]
    assert caught.value.field == field


def test_stories_are_true_against_false_by_the_judge() -> None:
    made = list(pairs(CONFIG, untouched(), untouched()))
    assert len(made) == CONFIG.pairs
    for pair in made:
        true, false = judge(pair.prompt + pair.chosen), judge(pair.prompt + pair.rejected)
        assert true.sensible
        assert false.kind == pair.kind
    assert len({pair.kind for pair in made}) > 5
    assert made == list(pairs(CONFIG, untouched(), untouched()))
    assert made[:50] == list(pairs(replace(CONFIG, pairs=50), untouched(), untouched()))  # pair i is a function of i
    assert made[0] != next(pairs(replace(CONFIG, seed=2), untouched(), untouched()))


@pytest.fixture(scope="module")
def texts() -> tuple[list[str], list[str]]:
    """Two halves of a corpus that have no passage in common."""
    return [story(1, index) for index in range(40)], [story(2, index) for index in range(10)]


def test_corpus_pairs_go_on_truly_or_come_from_elsewhere(texts: tuple[list[str], list[str]]) -> None:
    train, held_out = texts
    config = replace(CONFIG, source="corpus")
    made = list(pairs(config, iter(train), iter(held_out)))
    assert [pair.split for pair in made] == ["train"] * 180 + ["test"] * 20
    for pair in made:
        own = train if pair.split == "train" else held_out
        assert any(pair.prompt + pair.chosen in text for text in own)
        assert any(pair.rejected in text for text in own)
        assert not any(pair.prompt + pair.rejected in text for text in own)
        assert 20 <= len(pair.prompt) <= 100
        assert 10 <= len(pair.chosen) <= 50
        assert 10 <= len(pair.rejected) <= 50
    sides = [{pair.prompt for pair in made if pair.split == split} for split in ("train", "test")]
    assert not sides[0] & sides[1]
    assert made == list(pairs(config, iter(train), iter(held_out)))


def test_one_long_text_is_enough_and_a_short_one_is_not() -> None:
    long = " ".join(story(3, index) for index in range(20))
    config = replace(CONFIG, source="corpus", pairs=20)
    made = list(pairs(config, [long], [long[::-1]]))
    assert len(made) == 20
    assert all(pair.chosen != pair.rejected for pair in made)
    for train, held_out, split in (
        ([], [long], "train"),
        (["short"] * 9, [long], "train"),
        ([long], [long[:50]], "test"),
    ):
        with pytest.raises(WordmillError, match=f"no document of the corpus's {split} split is long enough") as caught:
            list(pairs(config, train, held_out))
        assert "\n" not in str(caught.value)


def write(path: Path, *records: object) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def given(prompt: str, chosen: str = "yes", rejected: str = "no") -> dict[str, str]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def test_files_in_order_and_at_most_so_many(tmp_path: Path) -> None:
    first = write(tmp_path / "a.jsonl", *(given(f"first {number}") for number in range(30)))
    second = write(tmp_path / "b.jsonl", *(given(f"second {number}") for number in range(30)))
    config = replace(CONFIG, source="files", paths=(first, second), pairs=40)
    made = list(pairs(config, untouched(), untouched()))
    prompts = [f"first {number}" for number in range(30)] + [f"second {number}" for number in range(10)]
    assert [pair.prompt for pair in made] == prompts
    assert {(pair.chosen, pair.rejected, pair.kind) for pair in made} == {("yes", "no", "given")}


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"prompt": "a", "chosen": "b"}', "key 'rejected' is missing or not a string"),
        (b'{"prompt": "a", "chosen": 3, "rejected": "c"}', "key 'chosen' is missing or not a string"),
        (b'["a", "b", "c"]', "not a record with keys, but a list"),
        (b'{"prompt": ', "not valid JSON: Expecting value"),
        (b"[" * 100_000, "not valid JSON: nested too deeply"),
        (b'{"prompt": "caf\xe9", "chosen": "b", "rejected": "c"}', "not UTF-8 text; save the file as UTF-8"),
        (b'{"prompt": "\\ud83d", "chosen": "b", "rejected": "c"}', "key 'prompt' holds half of a character"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: bytes, problem: str) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(given("a")).encode() + b"\r\n\n" + line)
    source = pairs(replace(CONFIG, source="files", paths=(str(path),)), untouched(), untouched())
    assert next(source).prompt == "a"
    with pytest.raises(WordmillError) as caught:
        next(source)
    assert str(caught.value).startswith(f"{path} line 3: {problem}")
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named() -> None:
    config = replace(CONFIG, source="files", paths=("nothing.jsonl",))
    with pytest.raises(WordmillError, match=r"^preferences.paths: nothing.jsonl: not found$"):
        list(pairs(config, untouched(), untouched()))


def test_useless_pairs_are_dropped_and_counted() -> None:
    source = [
        Pair("p", "a", "b", "k", "train"),
        Pair("p", "a", "b", "k", "train"),  # the same again
        Pair("p", "a", "c", "k", "train"),  # the same prompt with another answer is another pair
        Pair("q", "a", "a", "k", "train"),
        Pair("q", "a", " \n", "k", "test"),
        Pair(" ", "a", "b", "k", "test"),
        Pair("r", "a", "b", "k", "test"),
    ]
    counts: dict[str, int] = {}
    kept = list(cleaned(source, counts))
    assert kept == [source[0], source[2], source[6]]
    assert counts == dict(zip(COUNTS, (2, 1, 2, 1, 1), strict=True))


def test_the_split_is_a_function_of_the_prompt() -> None:
    prompts = [f"prompt {number}" for number in range(20_000)]
    held_out = {prompt for prompt in prompts if hashed_split(prompt, 0.1) == "test"}
    assert abs(len(held_out) - 2000) < 5 * (20_000 * 0.1 * 0.9) ** 0.5  # five standard deviations
    assert held_out < {prompt for prompt in prompts if hashed_split(prompt, 0.2) == "test"}


def test_round_trip_and_the_same_bytes_twice(tmp_path: Path) -> None:
    made = list(pairs(CONFIG, untouched(), untouched()))
    write_pairs(iter(made), tmp_path / "one/pairs.parquet")
    write_pairs(iter(made), tmp_path / "two.parquet")
    assert (tmp_path / "one/pairs.parquet").read_bytes() == (tmp_path / "two.parquet").read_bytes()
    for split in ("train", "test"):
        own = [pair for pair in made if pair.split == split]
        read = read_pairs(tmp_path / "two.parquet", split)
        assert list(zip(read.prompt, read.chosen, read.rejected, strict=True)) == [
            (pair.prompt, pair.chosen, pair.rejected) for pair in own
        ]
        assert read_pairs(tmp_path / "two.parquet", split, limit=3).prompt == read.prompt[:3]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two.parquet"]


def test_a_split_without_pairs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WordmillError, match=r"no pair is left for the test split; raise preferences\.pairs"):
        write_pairs([Pair("p", "a", "b", "k", "train")], tmp_path / "pairs.parquet")
    with pytest.raises(WordmillError, match="`dvc repro preferences` makes it"):
        read_pairs(tmp_path / "none.parquet", "train")
