"""Minimal pairs: does the model find the good sentence likelier than the bad one that differs from it by a word or two?

The format is BLiMP's (Warstadt et al. 2020, arXiv:1912.00582): records with `sentence_good` and `sentence_bad`, and the
paradigm in `UID`; without one, the file's name is the paradigm. A sentence is scored as there, by the sum of the
log-probabilities of its tokens, after an end-of-text token and without one behind it; equal sums count as wrong. BLiMP
itself has pairs of equal sentences; they are counted.
"""

from collections.abc import Sequence

import numpy as np

from llm.compute import Compute
from llm.evaluate import bracketed, windows
from llm.intervals import share_interval
from llm.minimal_pair_files import MinimalPair
from llm.minimal_pair_files import read_minimal_pairs as read_minimal_pairs
from llm.model.transformer import Transformer
from llm.scoring import score
from llm.tokenizer.tokenizer import Tokenizer


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
