"""Preference pairs: a prompt, a chosen and a rejected answer, from the corpus itself or from files.

Sources, by name:
- `stories`: pairs of the embedded corpus. The chosen answer goes on truly, the rejected one breaks the story's world;
  both facts are known exactly. A story gives several pairs, one after the other, each with a mistake elsewhere.
- `judged`: stories that the model writes itself, one that makes sense against one that does not (`llm.judged`).
- `corpus`: pairs made of any corpus. The prompt is a passage, the chosen answer is what follows it, the rejected
  answer is a passage of like length from elsewhere. What DPO learns from them is to stay with the matter at hand.
- `auto`: `files` where `paths` are given, `hub` where a `dataset` is, `judged` for stories, else `corpus`.
- `files`, `hub`: given pairs, in any of the usual shapes (`llm.preference_shapes`).

Pairs with an empty part, with equal answers, or seen before are left out and counted. A limit keeps an even sample and
says what it leaves out. Given pairs are held out by dialogue (`llm.preference_split`), stories by a hash of the prompt
or of the whole story, and pairs made of the corpus with the corpus's split.
"""

import hashlib
import random
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import count, islice
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from llm.corpus.config import CorpusConfig
from llm.corpus.stories import pairs as story_pairs
from llm.errors import ConfigError, WordmillError
from llm.limits import SEED, check_limits
from llm.preference_account import Account
from llm.preference_files import from_files, from_hub
from llm.preference_shapes import ShapeName
from llm.preference_split import HELD_OUT, TRAIN, hashed_split, split_dialogues

MADE = 1000  # pairs that `stories` and `corpus`, which have no end, make where no number is given
LIMITS = {"pairs": (0, 1_000_000_000), "tries": (0, 10_000), "seed": SEED}
SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("prompt", "chosen", "rejected", "kind", "split")] + [("whole", pa.bool_())]
)


@dataclass(frozen=True)
class PreferencesConfig:
    """Raises ConfigError."""

    source: Literal["auto", "judged", "stories", "corpus", "files", "hub"]
    pairs: int  # at most so many, an even sample; 0 = all there are (judged, files, hub), or MADE (stories, corpus)
    openings: int  # judged: of training stories, that the model goes on from
    tries: int  # judged: stories that it writes for each opening
    temperature: float  # judged: of those stories
    pairs_per_story: int  # stories: so many different mistakes in one story at most
    held_out_share: float  # of the pairs, kept from training
    paths: tuple[str, ...]  # files: paths and globs of .jsonl, .json, .parquet, each also .gz or .zst
    shape: ShapeName  # files, hub: `llm.preference_shapes.SHAPES`, or auto
    dataset: str  # hub: owner/name, or a local folder in the hub's layout (starts with / or .)
    dataset_config: str  # hub: subset; empty = the data set's default
    dataset_split: str  # hub: which of the data set's own splits is read (it is split anew here)
    revision: str  # hub: the commit, 40 hex digits; empty for a local folder
    prompt_characters: int  # corpus: length of a prompt, about
    answer_characters: int  # corpus: length of an answer, about
    seed: int  # stories, corpus

    def __post_init__(self) -> None:
        if self.pairs < 0:
            raise ConfigError("pairs", f"{self.pairs} is negative; 0 = all")
        for name in ("openings", "pairs_per_story", "prompt_characters", "answer_characters"):
            if getattr(self, name) < 1:
                raise ConfigError(name, f"{getattr(self, name)} is below 1")
        check_limits(self, LIMITS)
        if self.tries < 2:
            raise ConfigError("tries", f"{self.tries} gives nothing to compare; use 2 or more")
        if self.temperature <= 0:
            raise ConfigError("temperature", f"{self.temperature} is not positive, so that all tries would be alike")
        if not 0 < self.held_out_share < 1:
            raise ConfigError("held_out_share", f"{self.held_out_share} is not between 0 and 1")
        if self.source == "files" and not self.paths:
            raise ConfigError("paths", "empty; name the files that hold the pairs")
        if self.source == "hub":
            _ = self.hub  # checks itself

    @property
    def hub(self) -> CorpusConfig:
        """The data set, as the corpus's reader of such wants it. Raises ConfigError."""
        return CorpusConfig(
            source="hub",
            dataset=self.dataset,
            dataset_config=self.dataset_config,
            dataset_split=self.dataset_split,
            revision=self.revision,
        )


def resolved(config: PreferencesConfig, corpus: str) -> PreferencesConfig:
    """The same with a source in the place of `auto`: given pairs if there are any, else what suits the corpus.

    `corpus` is the corpus's source. Raises ConfigError.
    """
    if config.source != "auto":
        return config
    if config.paths and config.dataset:
        raise ConfigError("source", "auto finds both paths and a dataset; use files or hub")
    if config.paths:
        return replace(config, source="files")
    if config.dataset:
        return replace(config, source="hub")
    return replace(config, source="judged" if corpus == "stories" else "corpus")


@dataclass(frozen=True)
class Pair:
    prompt: str
    chosen: str
    rejected: str
    kind: str  # what makes the rejected answer worse, or where the pair comes from
    split: str  # "train" or "test"; given pairs get theirs when all are known
    whole: bool = True  # the answers are complete: an end of text follows them
    where: str = ""  # file and line that a given pair comes from; not stored


@dataclass(frozen=True)
class PairTexts:
    """Pairs of one split, a list for each part."""

    prompt: list[str]
    chosen: list[str]
    rejected: list[str]
    whole: list[bool]


def pairs(
    config: PreferencesConfig,
    train: Iterable[str],
    held_out: Iterable[str],
    account: Account,
    scratch: Path | None = None,
) -> Iterator[Pair]:
    """The pairs of the configured source, `judged` apart, which needs a model, as they come: `select` chooses.

    `train` and `held_out` are the corpus's documents, read only by `corpus`; `scratch` is a folder for what `files` and
    `hub` unpack, by default the system's own for such. `account` counts the records. Raises WordmillError for files
    that do not hold pairs and for a corpus too small to make them of.
    """
    wanted = config.pairs or MADE
    if config.source == "stories":
        yield from counted(islice(_from_stories(config), wanted), account)
    elif config.source == "corpus":
        test_pairs = max(1, round(wanted * config.held_out_share))
        yield from counted(_passages(config, list(train), wanted - test_pairs, TRAIN, account), account)
        yield from counted(_passages(config, list(held_out), test_pairs, HELD_OUT, account), account)
    elif config.source in ("files", "hub"):
        folder = scratch or Path(tempfile.gettempdir())
        if config.source == "files":
            given = from_files(config.paths, config.shape, folder, account)
        else:
            given = from_hub(config.hub, config.shape, folder, account)
        for (prompt, chosen, rejected), where in given:
            yield Pair(prompt, chosen, rejected, "given", "", where=where)
    else:
        raise ValueError(f"the source {config.source} is llm.judged's")


def counted(source: Iterable[Pair], account: Account) -> Iterator[Pair]:
    """The pairs of `source`, each a record of the account."""
    for pair in source:
        account.records += 1
        yield pair


def select(source: Iterable[Pair], config: PreferencesConfig, account: Account) -> list[Pair]:
    """The pairs of `source` to learn from, each with its split. Raises WordmillError where a split gets none."""
    kept = list(_useful(source, account))
    if config.pairs:
        kept = _sample(kept, config.pairs, account)
    if not all(pair.split for pair in kept):  # given pairs
        splits = split_dialogues([pair.prompt for pair in kept], config.held_out_share)
        kept = [replace(pair, split=split) for pair, split in zip(kept, splits, strict=True)]
    for pair in kept:
        account.kept[pair.split] += 1
        account.kinds[pair.kind] += 1
    account.check()
    for split in (TRAIN, HELD_OUT):
        if not account.kept[split]:
            raise WordmillError(_none_left(split, config, account))
    return kept


def _none_left(split: str, config: PreferencesConfig, account: Account) -> str:
    kept = account.kept.total()
    told = f"preferences: no pair is left for the {split} split; {account.records:,} records gave {kept:,} pairs"
    if account.left_out:
        told += f" (left out: {account.causes()})"
    if not kept:
        return f"{told}; correct the records, or give others"
    limited = " and raise preferences.pairs" if config.pairs else ""
    share = "raise" if split == HELD_OUT else "lower"
    return f"{told}; {share} preferences.held_out_share, or give more data{limited}"


def _useful(source: Iterable[Pair], account: Account) -> Iterator[Pair]:
    """`source` without pairs that teach nothing."""
    seen: set[bytes] = set()
    for pair in source:
        key = _digest(pair)
        if not pair.prompt.strip():
            account.leave_out("empty_prompt", pair.where)
        elif not (pair.chosen.strip() and pair.rejected.strip()):
            account.leave_out("empty_answer", pair.where)
        elif pair.chosen == pair.rejected:
            account.leave_out("equal_answers", pair.where)
        elif key in seen:
            account.leave_out("duplicates", pair.where)
        else:
            seen.add(key)
            yield pair


def _digest(pair: Pair) -> bytes:
    text = "\0".join((pair.prompt, pair.chosen, pair.rejected))
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def _sample(pairs: list[Pair], limit: int, account: Account) -> list[Pair]:
    """`limit` of the pairs, in their order: those of the smallest digests, an even sample of all files."""
    if len(pairs) <= limit:
        return pairs
    chosen = set(sorted(range(len(pairs)), key=lambda i: _digest(pairs[i]))[:limit])
    first = next(i for i in range(len(pairs)) if i not in chosen)
    account.leave_out("over_limit", pairs[first].where, len(pairs) - limit)
    return [pairs[i] for i in sorted(chosen)]


def write_pairs(source: Iterable[Pair], path: Path) -> None:
    """Pairs as Parquet: prompt, chosen, rejected, kind, split, whole. Written under a temporary name, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist([vars(pair) for pair in source], SCHEMA)
    temporary = path.with_name(f".{path.name}.writing")
    pq.write_table(table, temporary, compression="zstd")
    temporary.rename(path)


def read_pairs(path: Path, split: str, limit: int = 0) -> PairTexts:
    """The pairs of one split, or `limit` of them, evenly spaced (0 = all)."""
    if not path.is_file():
        raise WordmillError(f"{path}: not found; `dvc repro preferences` makes it")
    try:
        # Not by pq.read_table: it waits for ever for some damaged files.
        with pq.ParquetFile(path, pre_buffer=False) as file:
            table = file.read(use_threads=False)
        if not table.schema.equals(SCHEMA) or any(column.null_count for column in table.columns):
            raise pa.ArrowInvalid("other columns than those of pairs")
        rows = table.filter(pc.equal(table["split"], split))
        if 0 < limit < len(rows):
            rows = rows.take([i * len(rows) // limit for i in range(limit)])
        return PairTexts(*(rows.column(name).to_pylist() for name in ("prompt", "chosen", "rejected", "whole")))
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WordmillError(f"{path}: cannot be read as pairs ({line}); `dvc repro preferences` makes it") from None


def _from_stories(config: PreferencesConfig) -> Iterator[Pair]:
    for index in count():
        for made in story_pairs(config.seed, index, config.pairs_per_story):
            split = hashed_split(made.prompt + made.chosen, config.held_out_share)  # the whole story: it has one side
            yield Pair(made.prompt, made.chosen, made.rejected, made.kind, split)


def _passages(config: PreferencesConfig, texts: list[str], wanted: int, split: str, account: Account) -> Iterator[Pair]:
    length = config.prompt_characters + config.answer_characters
    if short := sum(len(text) < length for text in texts):
        account.notes[f"documents of {len(texts):,} in {split} are too short for a pair of {length} characters"] = short
    texts = [text for text in texts if len(text) >= length]
    if sum(len(text) for text in texts) < 2 * length:
        raise WordmillError(
            f"preferences: no document of the corpus's {split} split is long enough for a prompt and an answer of "
            f"{length} characters and another one; lower preferences.prompt_characters and answer_characters"
        )
    random_source = random.Random(f"{config.seed} {split}")
    sizes = [len(text) for text in texts]

    def passage(characters: int) -> tuple[int, int]:
        (number,) = random_source.choices(range(len(texts)), weights=sizes)
        start = random_source.randrange(len(texts[number]) - characters + 1)
        return number, _next_word(texts[number], start)

    for _ in range(wanted):
        number, start = passage(length)
        other, elsewhere = passage(config.answer_characters)
        while other == number and abs(elsewhere - start) < 2 * length and sum(sizes) > 6 * length:
            other, elsewhere = passage(config.answer_characters)
        middle = _next_word(texts[number], start + config.prompt_characters)
        answer = texts[number][middle : middle + config.answer_characters]
        yield Pair(
            texts[number][start:middle],
            answer,
            texts[other][elsewhere : elsewhere + config.answer_characters],
            "passage from elsewhere",
            split,
            whole=False,
        )


def _next_word(text: str, start: int) -> int:
    """The next place that a space or line end stands at, so passages begin between words; `start` if none is near."""
    for place in range(start, min(start + 40, len(text))):
        if text[place] in " \n":
            return place
    return start
