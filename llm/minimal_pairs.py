"""Minimal pairs: does the model find the good sentence likelier than the bad one that differs from it by a word or two?

The format is BLiMP's (Warstadt et al. 2020, arXiv:1912.00582): records with `sentence_good` and `sentence_bad`, and the
paradigm in `UID`; without one, the file's name is the paradigm. A sentence is scored as there, by the sum of the
log-probabilities of its tokens, after an end-of-text token and without one behind it; equal sums count as wrong. BLiMP
itself has pairs of equal sentences; they are counted.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from llm.compute import Compute
from llm.corpus.config import PAIRS, kind
from llm.corpus.files import Row, find, read_rows
from llm.errors import WordmillError
from llm.evaluate import bracketed, windows
from llm.intervals import share_interval
from llm.model.transformer import Transformer
from llm.scoring import score
from llm.tokenizer.tokenizer import Tokenizer

KEYS = ("sentence_good", "sentence_bad")


class MinimalPair(NamedTuple):
    good: str
    bad: str
    paradigm: str


def read_minimal_pairs(paths: tuple[str, ...], scratch: Path) -> list[MinimalPair]:
    """The pairs of all files that paths and globs name, in order. Raises WordmillError naming file and line."""
    pairs = []
    for path in find(paths, "evaluate.minimal_pairs"):
        if not path.is_file():
            raise WordmillError(f"evaluate.minimal_pairs: {path}: not found")
        suffix = (kind(path.name) or ("", ""))[0]
        if suffix not in PAIRS:
            raise WordmillError(
                f"evaluate.minimal_pairs: {path}: the name must end in .jsonl, .json or .parquet, perhaps packed"
            )
        of_file = [_pair(row, path.name.partition(".")[0]) for row in read_rows(path, scratch)]
        if not of_file:
            raise WordmillError(f"evaluate.minimal_pairs: {path}: holds no pair")
        pairs += of_file
    return pairs


def sentence_logprobs(
    model: Transformer, tokenizer: Tokenizer, sentences: Sequence[str], compute: Compute
) -> np.ndarray:
    """Sum of log-probabilities in nats of each sentence's tokens, (len(sentences),)."""
    cut = [windows(bracketed(tokenizer, sentence)[:-1], model.config.block_size) for sentence in sentences]
    sums = score(model, [segment for segments in cut for segment in segments], compute)
    return np.bincount(np.repeat(np.arange(len(cut)), [len(segments) for segments in cut]), sums, len(cut))


def pair_margins(
    model: Transformer, tokenizer: Tokenizer, pairs: Sequence[MinimalPair], compute: Compute
) -> np.ndarray:
    """By how many nats each pair's good sentence is the likelier one, (len(pairs),)."""
    good = sentence_logprobs(model, tokenizer, [pair.good for pair in pairs], compute)
    bad = sentence_logprobs(model, tokenizer, [pair.bad for pair in pairs], compute)
    differ = np.array([pair.good != pair.bad for pair in pairs])
    return np.where(differ, good - bad, 0.0)  # the same sentence in another batch may be rounded otherwise


def paradigm_accuracies(pairs: Sequence[MinimalPair], margins: np.ndarray) -> dict[str, dict[str, float]]:
    """By paradigm, and over all pairs under "": how many there are, and the share won, with its 95 % interval.

    `margins` are those of `pair_margins`.
    """
    found = {}
    names = np.array([pair.paradigm for pair in pairs])
    equal = np.array([pair.good == pair.bad for pair in pairs])
    for name in ("", *sorted(set(names))):
        those = (names == name) | (name == "")
        won = margins[those] > 0
        low, high = share_interval(int(won.sum()), len(won))
        found[str(name)] = {
            "pairs": float(len(won)),
            "equal": float(equal[those].sum()),
            "accuracy": float(won.mean()),
            "accuracy_low": low,
            "accuracy_high": high,
        }
    return found


def _pair(row: Row, file: str) -> MinimalPair:
    if row.replaced:
        raise WordmillError(f"{row.where}: not UTF-8 text; save the file as UTF-8")
    if not isinstance(row.values, Mapping):
        raise WordmillError(f"{row.where}: not a record with keys, but a {type(row.values).__name__}")
    good, bad = (row.values.get(key) for key in KEYS)
    for key, text in zip(KEYS, (good, bad), strict=True):
        if not isinstance(text, str) or not text.strip():
            raise WordmillError(f"{row.where}: key {key!r} is missing, empty or not a string")
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise WordmillError(f"{row.where}: key {key!r} holds half of a character (a lone surrogate); mend the text")
    paradigm = row.values.get("UID", file)
    if not isinstance(paradigm, str) or not paradigm:
        raise WordmillError(f"{row.where}: key 'UID' is empty or not a string")
    return MinimalPair(str(good), str(bad), paradigm)
