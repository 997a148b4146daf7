"""Preference pairs: a prompt, a chosen and a rejected answer, from the corpus itself or from files.

Sources, by name:
- `stories`: pairs of the embedded corpus. The chosen answer goes on truly, the rejected one breaks the story's world;
  both facts are known exactly. A story gives several pairs, one after the other, each with a mistake elsewhere.
- `judged`: stories that the model writes itself, one that makes sense against one that does not (`llm.judged`).
- `corpus`: pairs made of any corpus. The prompt is a passage, the chosen answer is what follows it, the rejected
  answer is a passage of like length from elsewhere. What DPO learns from them is to stay with the matter at hand.
- `files`, `hub`: given pairs, in any of the usual shapes (`llm.preference_files`).

Pairs with an empty part, with equal answers, or seen before are dropped and counted. A pair is held out by a hash of
its prompt, or of its whole story, so that neither is ever on both sides; pairs made of the corpus are held out with the
corpus's split.
"""

import hashlib
import random
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from llm.corpus.config import CorpusConfig
from llm.corpus.stories import pairs as story_pairs
from llm.errors import ConfigError, WordmillError
from llm.preference_files import ShapeName, from_files, from_hub

HELD_OUT = "test"
SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("prompt", "chosen", "rejected", "kind", "split")] + [("whole", pa.bool_())]
)


@dataclass(frozen=True)
class PreferencesConfig:
    """Raises ConfigError."""

    source: Literal["judged", "stories", "corpus", "files", "hub"]
    pairs: int  # to make (stories, corpus) or to make or read at most (judged, files, hub)
    openings: int  # judged: of training stories, that the model goes on from
    tries: int  # judged: stories that it writes for each opening
    temperature: float  # judged: of those stories
    pairs_per_story: int  # stories: so many different mistakes in one story at most
    held_out_share: float  # of the pairs, kept from training
    paths: tuple[str, ...]  # files: paths and globs of .jsonl, .json, .parquet, each also .gz or .zst
    shape: ShapeName  # files, hub: `llm.preference_files.SHAPES`, or auto
    dataset: str  # hub: owner/name, or a local folder in the hub's layout (starts with / or .)
    dataset_config: str  # hub: subset; empty = the data set's default
    dataset_split: str  # hub: which of the data set's own splits is read (it is split anew here)
    revision: str  # hub: the commit, 40 hex digits; empty for a local folder
    prompt_characters: int  # corpus: length of a prompt, about
    answer_characters: int  # corpus: length of an answer, about
    seed: int  # stories, corpus

    def __post_init__(self) -> None:
        for name in ("pairs", "openings", "pairs_per_story", "prompt_characters", "answer_characters"):
            if getattr(self, name) < 1:
                raise ConfigError(name, f"{getattr(self, name)} is below 1")
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


@dataclass(frozen=True)
class Pair:
    prompt: str
    chosen: str
    rejected: str
    kind: str  # what makes the rejected answer worse, or where the pair comes from
    split: str  # "train" or "test"
    whole: bool = True  # the answers are complete: an end of text follows them


@dataclass(frozen=True)
class PairTexts:
    """Pairs of one split, a list for each part."""

    prompt: list[str]
    chosen: list[str]
    rejected: list[str]
    whole: list[bool]


def pairs(
    config: PreferencesConfig, train: Iterable[str], held_out: Iterable[str], scratch: Path | None = None
) -> Iterator[Pair]:
    """The pairs of the configured source, `judged` apart, which needs a model.

    `train` and `held_out` are the corpus's documents, read only by `corpus`; `scratch` is a folder for what `files` and
    `hub` unpack, by default the system's own for such. Raises WordmillError for files that do not
    hold pairs and for a corpus too small to make them of.
    """
    if config.source == "stories":
        yield from islice(_from_stories(config), config.pairs)
    elif config.source == "corpus":
        test_pairs = max(1, round(config.pairs * config.held_out_share))
        yield from _passages(config, list(train), config.pairs - test_pairs, "train")
        yield from _passages(config, list(held_out), test_pairs, HELD_OUT)
    elif config.source in ("files", "hub"):
        folder = scratch or Path(tempfile.gettempdir())
        if config.source == "files":
            given = from_files(config.paths, config.shape, folder)
        else:
            given = from_hub(config.hub, config.shape, folder)
        for prompt, chosen, rejected in islice(given, config.pairs):
            yield Pair(prompt, chosen, rejected, "given", hashed_split(prompt, config.held_out_share))
    else:
        raise ValueError(f"the source {config.source} is llm.judged's")


def cleaned(source: Iterable[Pair], counts: dict[str, int]) -> Iterator[Pair]:
    """`source` without useless pairs; `counts` gets how many were kept and how many dropped, by reason."""
    counts |= dict.fromkeys(("train", HELD_OUT, "empty", "equal_answers", "duplicates"), 0)
    seen: set[bytes] = set()
    for pair in source:
        key = hashlib.blake2b("\0".join((pair.prompt, pair.chosen, pair.rejected)).encode(), digest_size=16).digest()
        if not (pair.prompt.strip() and pair.chosen.strip() and pair.rejected.strip()):
            counts["empty"] += 1
        elif pair.chosen == pair.rejected:
            counts["equal_answers"] += 1
        elif key in seen:
            counts["duplicates"] += 1
        else:
            seen.add(key)
            counts[pair.split] += 1
            yield pair


def write_pairs(source: Iterable[Pair], path: Path) -> None:
    """Pairs as Parquet: prompt, chosen, rejected, kind, split, whole. Written under a temporary name, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = list(source)
    for split in ("train", HELD_OUT):
        if not any(pair.split == split for pair in rows):
            raise WordmillError(
                f"preferences: no pair is left for the {split} split; raise preferences.pairs or give more data"
            )
    table = pa.Table.from_pylist([vars(pair) for pair in rows], SCHEMA)
    temporary = path.with_name(f".{path.name}.writing")
    pq.write_table(table, temporary, compression="zstd")
    temporary.rename(path)


def read_pairs(path: Path, split: str, limit: int = 0) -> PairTexts:
    """The pairs of one split, the first `limit` of them (0 = all)."""
    if not path.is_file():
        raise WordmillError(f"{path}: not found; `dvc repro preferences` makes it")
    try:
        # Not by pq.read_table: it waits for ever for some damaged files.
        with pq.ParquetFile(path, pre_buffer=False) as file:
            table = file.read(use_threads=False)
        if not table.schema.equals(SCHEMA) or any(column.null_count for column in table.columns):
            raise pa.ArrowInvalid("other columns than those of pairs")
        rows = table.filter(pc.equal(table["split"], split)).slice(0, limit or None)
        return PairTexts(*(rows.column(name).to_pylist() for name in ("prompt", "chosen", "rejected", "whole")))
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WordmillError(f"{path}: cannot be read as pairs ({line}); `dvc repro preferences` makes it") from None


def hashed_split(prompt: str, share: float) -> str:
    """ "test" for about `share` of all prompts, decided by the prompt's hash alone."""
    number = int.from_bytes(hashlib.blake2b(prompt.encode(), digest_size=8).digest(), "big")
    return HELD_OUT if number < share * 2**64 else "train"


def _from_stories(config: PreferencesConfig) -> Iterator[Pair]:
    for index in count():
        for made in story_pairs(config.seed, index, config.pairs_per_story):
            split = hashed_split(made.prompt + made.chosen, config.held_out_share)  # the whole story: it has one side
            yield Pair(made.prompt, made.chosen, made.rejected, made.kind, split)


def _passages(config: PreferencesConfig, texts: list[str], wanted: int, split: str) -> Iterator[Pair]:
    length = config.prompt_characters + config.answer_characters
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
