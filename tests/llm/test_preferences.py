"""Preference pairs from every source: who wins, what is dropped and counted, and that no prompt is on both sides."""

import json
import random
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from llm.corpus.stories import judge, story
from llm.errors import ConfigError, WordmillError
from llm.preference_account import CAUSES, Account
from llm.preference_dialogues import opening
from llm.preference_split import dialogue_groups, hashed_split, split_dialogues
from llm.preferences import MADE, Pair, PreferencesConfig, pairs, read_pairs, select, write_pairs

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


def untouched() -> Iterator[str]:
    raise AssertionError("this source does not read the corpus")
    yield ""


def made_by(config: PreferencesConfig, train: Iterable[str] = (), held_out: Iterable[str] = ()) -> list[Pair]:
    """What the source gives, before any selection."""
    return list(pairs(config, train, held_out, Account()))


def selected(config: PreferencesConfig, *corpus: Iterable[str]) -> tuple[list[Pair], Account]:
    """What the stage writes, and its account."""
    account = Account()
    train, held_out = corpus or (untouched(), untouched())
    return select(pairs(config, train, held_out, account), config, account), account


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"pairs": -1}, "pairs"),
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
    made = made_by(CONFIG, untouched(), untouched())
    assert len(made) == CONFIG.pairs
    for pair in made:
        true, false = judge(pair.prompt + pair.chosen), judge(pair.prompt + pair.rejected)
        assert true.sensible
        assert false.kind == pair.kind
    assert len({pair.kind for pair in made}) > 5
    assert made == made_by(CONFIG, untouched(), untouched())
    assert made[:50] == made_by(replace(CONFIG, pairs=50), untouched(), untouched())  # pair i is a function of i
    assert made[0] != made_by(replace(CONFIG, seed=2), untouched(), untouched())[0]


@pytest.fixture(scope="module")
def texts() -> tuple[list[str], list[str]]:
    """Two halves of a corpus that have no passage in common."""
    return [story(1, index) for index in range(40)], [story(2, index) for index in range(10)]


def test_corpus_pairs_go_on_truly_or_come_from_elsewhere(texts: tuple[list[str], list[str]]) -> None:
    train, held_out = texts
    config = replace(CONFIG, source="corpus")
    made = made_by(config, iter(train), iter(held_out))
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
    assert made == made_by(config, iter(train), iter(held_out))


def test_one_long_text_is_enough_and_a_short_one_is_not() -> None:
    long = " ".join(story(3, index) for index in range(20))
    config = replace(CONFIG, source="corpus", pairs=20)
    made = made_by(config, [long], [long[::-1]])
    assert len(made) == 20
    assert all(pair.chosen != pair.rejected for pair in made)
    for train, held_out, split in (
        ([], [long], "train"),
        (["short"] * 9, [long], "train"),
        ([long], [long[:50]], "test"),
    ):
        with pytest.raises(WordmillError, match=f"no document of the corpus's {split} split is long enough") as caught:
            made_by(config, train, held_out)
        assert "\n" not in str(caught.value)


def write(path: Path, *records: object) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def given(prompt: str, chosen: str = "yes", rejected: str = "no") -> dict[str, str]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


@pytest.fixture
def two_files(tmp_path: Path) -> PreferencesConfig:
    """Files of 1,500 records each: more than is made where no number is given."""
    first = write(tmp_path / "a.jsonl", *(given(f"first {number}") for number in range(1500)))
    second = write(tmp_path / "b.jsonl", *(given(f"second {number}") for number in range(1500)))
    return replace(CONFIG, source="files", paths=(first, second), pairs=0)


def test_all_given_pairs_are_read_in_order(two_files: PreferencesConfig) -> None:
    kept, account = selected(two_files)
    prompts = [f"{name} {number}" for name in ("first", "second") for number in range(1500)]
    assert [pair.prompt for pair in kept] == prompts
    assert {(pair.chosen, pair.rejected, pair.kind) for pair in kept} == {("yes", "no", "given")}
    assert (account.records, account.kept.total(), account.left_out) == (3000, 3000, {})


def test_a_limit_keeps_an_even_sample_of_all_files_and_says_what_it_leaves_out(two_files: PreferencesConfig) -> None:
    kept, account = selected(replace(two_files, pairs=600))
    assert len(kept) == 600
    assert account.records == 3000
    assert account.left_out == {"over_limit": 2400}
    assert any("preferences.pairs leaves out 2,400 pairs" in line for line in account.lines())
    numbers = np.array([int(pair.prompt.split()[1]) + 1500 * (pair.prompt[0] == "s") for pair in kept])
    assert (np.diff(numbers) > 0).all()  # in order
    tenths = np.bincount(numbers // 300, minlength=10)
    assert abs(tenths - 60).max() < 5 * (60 * 0.8 * 0.9) ** 0.5  # five standard deviations of a hypergeometric count
    fewer, _ = selected(replace(two_files, pairs=100))
    assert {pair.prompt for pair in fewer} < {pair.prompt for pair in kept}


def test_sources_without_an_end_make_what_they_are_asked_for(texts: tuple[list[str], list[str]]) -> None:
    for source in ("stories", "corpus"):
        for number, wanted in ((0, MADE), (70, 70)):
            config = replace(CONFIG, source=source, pairs=number)  # type: ignore[arg-type]
            corpus = texts if source == "corpus" else ()
            kept, account = selected(config, *corpus)
            assert account.records == wanted
            assert len(kept) + account.left_out.total() == wanted
            assert not account.left_out["over_limit"]


def test_documents_too_short_for_a_pair_are_told(texts: tuple[list[str], list[str]]) -> None:
    config = replace(CONFIG, source="corpus", pairs=50)
    _, account = selected(config, [*texts[0], "short", "shorter"], texts[1])
    assert account.notes == {"documents of 42 in train are too short for a pair of 110 characters": 2}


USELESS = {
    "empty_prompt": given(" "),
    "empty_answer": given("a", " \n"),
    "equal_answers": given("b", "no"),
    "duplicates": given("first 0"),
    "unknown_role": {"chosen": [{"role": "x", "content": "a"}], "rejected": [{"role": "x", "content": "b"}]},
    "two_prompts": {**given("c"), "instruction": "d"},
}


def test_records_in_are_pairs_out_and_counted_causes(two_files: PreferencesConfig, tmp_path: Path) -> None:
    bad = write(tmp_path / "c.jsonl", *USELESS.values(), *USELESS.values())
    config = replace(two_files, paths=(*two_files.paths, bad), pairs=2000)
    kept, account = selected(config)
    assert account.records == 3000 + 2 * len(USELESS)
    assert account.left_out == {**dict.fromkeys(USELESS, 2), "over_limit": 1000}
    assert account.kept.total() == len(kept) == 2000
    assert account.records == len(kept) + account.left_out.total()
    (told,) = [line for line in account.lines() if line.startswith("left out: ")]
    for line, cause in enumerate(USELESS, 1):
        assert f"2 {CAUSES[cause]} (first: {bad} line {line}" in told
    first = account.figures()["first_left_out"]
    assert first.keys() == account.left_out.keys()
    assert str(tmp_path) not in json.dumps(account.figures())  # another machine writes the same bytes
    assert first["empty_prompt"] == "c.jsonl line 1"
    assert sum(account.counts()[name] for name in ("train", "test", *CAUSES)) == account.counts()["records"]


def test_where_nothing_is_left_each_cause_is_told(tmp_path: Path) -> None:
    messages = [{"role": "narrator", "content": "a"}], [{"role": "narrator", "content": "b"}]
    path = write(tmp_path / "pairs.jsonl", *[{"chosen": messages[0], "rejected": messages[1]}] * 500, given("a", "no"))
    with pytest.raises(WordmillError) as caught:
        selected(replace(CONFIG, source="files", paths=(path,), pairs=0))
    assert str(caught.value).startswith(
        "preferences: no pair is left for the train split; 501 records gave 0 pairs (left out: 500 with a role that is "
        f"not in the table of roles (first: {path} line 1: role 'narrator'"
    )
    assert f"1 with equal answers (first: {path} line 501)" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_account_that_does_not_add_up_is_a_bug() -> None:
    account = Account(records=3)
    account.kept["train"] += 1
    account.leave_out("duplicates", "a")
    with pytest.raises(RuntimeError, match="3 preference records were read, but 2 are accounted for"):
        account.check()


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
    config = replace(CONFIG, source="files", paths=(str(path),))
    source = pairs(config, untouched(), untouched(), Account())
    assert next(source).prompt == "a"
    with pytest.raises(WordmillError) as caught:
        next(source)
    assert str(caught.value).startswith(f"{path} line 3: {problem}")
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named() -> None:
    config = replace(CONFIG, source="files", paths=("nothing.jsonl",))
    with pytest.raises(WordmillError, match=r"^preferences.paths: nothing.jsonl: not found$"):
        made_by(config, untouched(), untouched())


def test_useless_pairs_of_any_source_are_left_out_and_counted() -> None:
    source = [
        Pair("p", "a", "b", "k", "train"),
        Pair("p", "a", "b", "k", "train"),  # the same again
        Pair("p", "a", "c", "k", "train"),  # the same prompt with another answer is another pair
        Pair("q", "a", "a", "k", "train"),
        Pair("q", "a", " \n", "k", "test"),
        Pair(" ", "a", "b", "k", "test"),
        Pair("r", "a", "b", "k", "test"),
    ]
    account = Account(records=len(source))
    kept = select(iter(source), replace(CONFIG, pairs=0), account)
    assert kept == [source[0], source[2], source[6]]
    assert account.left_out == dict.fromkeys(("duplicates", "equal_answers", "empty_answer", "empty_prompt"), 1)
    assert account.kept == {"train": 2, "test": 1}


def test_the_split_is_a_function_of_the_prompt() -> None:
    prompts = [f"prompt {number}" for number in range(20_000)]
    held_out = {prompt for prompt in prompts if hashed_split(prompt, 0.1) == "test"}
    assert abs(len(held_out) - 2000) < 5 * (20_000 * 0.1 * 0.9) ** 0.5  # five standard deviations
    assert held_out < {prompt for prompt in prompts if hashed_split(prompt, 0.2) == "test"}


def dialogue(*turns: str) -> str:
    """A prompt of turns of human and assistant, that ends with the assistant's mark."""
    return "".join(f"\n\n{('Human', 'Assistant')[i % 2]}: {turn}" for i, turn in enumerate(turns)) + "\n\nAssistant:"


def test_prompts_of_one_dialogue_are_on_one_side() -> None:
    rng = random.Random(1)
    prompts = []
    for number in range(300):
        turns = [f"question {number}"]
        for _ in range(rng.randrange(4)):
            turns += [f"answer {rng.randrange(3)}", f"more {rng.randrange(3)}"]
            prompts.append(dialogue(*turns))  # beginnings of one another, and branches from one first turn
        prompts += [dialogue(*turns), f"plain {number}", f"plain {number} and more of the same"]
    rng.shuffle(prompts)
    splits = dict(zip(prompts, split_dialogues(prompts, 0.1), strict=True))
    held_out = [prompt for prompt, split in splits.items() if split == "test"]
    train = [prompt for prompt, split in splits.items() if split == "train"]
    assert 0.04 < len(held_out) / len(splits) < 0.2
    assert not {opening(prompt) for prompt in held_out} & {opening(prompt) for prompt in train}
    assert not [(a, b) for a in held_out for b in train if begins(a, b) or begins(b, a)]
    assert splits == dict(zip(prompts[::-1], split_dialogues(prompts[::-1], 0.1), strict=True))


def begins(one: str, other: str) -> bool:
    """Whether `other` goes on from `one`, at a border between words."""
    return other.startswith(one) and not (one[-1:].isalnum() and other[len(one) : len(one) + 1].isalnum())


def test_a_group_that_is_too_large_to_be_held_out_is_trained_on() -> None:
    prompts = ["Answer:", *(f"Answer: {number}" for number in range(50)), *(f"Another {n}" for n in range(50))]
    assert len(set(dialogue_groups(prompts))) == 51
    splits = split_dialogues(prompts, 0.1)
    assert set(splits[:51]) == {"train"}
    assert set(splits) == {"train", "test"}
    assert split_dialogues(["a b", "c d"], 0.01).count("test") == 1  # two groups are enough
    assert split_dialogues(["a b", "c d"], 0.99).count("train") == 1
    assert split_dialogues(["a b", "a b c"], 0.5) == ["train", "train"]  # one is not


def test_no_held_out_dialogue_of_a_real_set_is_trained_on(shared_data: Path, tmp_path: Path) -> None:
    config = replace(CONFIG, source="files", paths=(str(shared_data / "preferences/hh-harmless.jsonl.gz"),), pairs=0)
    kept, account = selected(config)
    assert account.records == 1500
    sides = [{pair.prompt for pair in kept if pair.split == split} for split in ("train", "test")]
    assert 100 < len(sides[1]) < 200
    assert not [(a, b) for a in sides[0] for b in sides[1] if a.startswith(b) or b.startswith(a)]


def test_round_trip_and_the_same_bytes_twice(tmp_path: Path) -> None:
    made = made_by(CONFIG, untouched(), untouched())
    write_pairs(iter(made), tmp_path / "one/pairs.parquet")
    write_pairs(iter(made), tmp_path / "two.parquet")
    assert (tmp_path / "one/pairs.parquet").read_bytes() == (tmp_path / "two.parquet").read_bytes()
    for split in ("train", "test"):
        own = [pair for pair in made if pair.split == split]
        read = read_pairs(tmp_path / "two.parquet", split)
        assert list(zip(read.prompt, read.chosen, read.rejected, strict=True)) == [
            (pair.prompt, pair.chosen, pair.rejected) for pair in own
        ]
        assert read_pairs(tmp_path / "two.parquet", split, limit=3).prompt == [
            read.prompt[i * len(own) // 3] for i in range(3)
        ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two.parquet"]


def test_a_split_without_pairs_is_refused(tmp_path: Path) -> None:
    account = Account(records=1)
    with pytest.raises(WordmillError, match=r"no pair is left for the test split; .*raise preferences\.held_out_share"):
        select([Pair("p", "a", "b", "k", "train")], CONFIG, account)
    with pytest.raises(WordmillError, match="`dvc repro preferences` makes it"):
        read_pairs(tmp_path / "none.parquet", "train")
