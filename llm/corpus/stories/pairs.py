"""Preference pairs: a true continuation against one that breaks the world, both with the same beginning.

A story is told; among the places where a fact has to be remembered, one is drawn (first the kind of mistake, so that
rare kinds are not rare in the pairs, then a place that allows it, then the wrong word). The story is told again from
the same random numbers with the wrong word in that place, and goes on as if it were so. So chosen and rejected differ
in the mistake and in what follows from it, not by chance. The prompt ends with the sentence before the mistake's.
"""

import re
from collections.abc import Sequence
from random import Random
from typing import NamedTuple

from llm.corpus.stories.program import Truth
from llm.corpus.stories.source import random_of, run
from llm.corpus.stories.teller import Writer

# Between two sentences: the blank behind a full stop (or what stands for it) and a closing quotation mark.
_BETWEEN = re.compile(r'[.!?]"?(?=\s+["A-Z])')


class Pair(NamedTuple):
    """`prompt + chosen` is a whole story; `prompt + rejected` breaks its world in the rejected part."""

    prompt: str
    chosen: str
    rejected: str
    kind: str  # of the mistake


class _Watcher(Writer):
    """Writes, and notes for every place with a truth what would be wrong there."""

    def __init__(self, random: Random) -> None:
        super().__init__(random)
        self.chances: list[tuple[int, str, Sequence[str], int]] = []  # place, kind, wrong words, position

    def choose(self, truth: Truth, legal: Sequence[str]) -> str:
        for kind, words in truth.wrong(self.world, legal).items():
            if words:
                self.chances.append((len(self.picks), kind, words, self.position))
        return super().choose(truth, legal)


class _Breaker(Writer):
    """Writes, with a wrong word at one place."""

    def __init__(self, random: Random, place: int, wrong: str) -> None:
        super().__init__(random)
        self.place, self.wrong = place, wrong

    def choose(self, truth: Truth, legal: Sequence[str]) -> str:
        if len(self.picks) != self.place:
            return super().choose(truth, legal)
        # The same random numbers are used up as for a true word.
        super().choose(truth, legal)
        self.position += len(self.wrong) - len(self.parts[-1])
        self.parts[-1] = self.wrong
        return self.wrong


def pair(seed: int, index: int) -> Pair:
    """Pair `index`: a pure function of (seed, index), from another stream of stories than the corpus."""
    watcher = _Watcher(random_of("pairs", seed, index))
    run(watcher)
    text = watcher.text
    first = next(match.end() for match in _BETWEEN.finditer(text))  # the first sentence is always prompt
    possible = [chance for chance in watcher.chances if chance[3] > first]
    draw = random_of("mistakes", seed, index)
    kinds = sorted({kind for _, kind, _, _ in possible})
    kind = kinds[int(draw.random() * len(kinds))]
    chances = [chance for chance in possible if chance[1] == kind]
    place, _, words, position = chances[int(draw.random() * len(chances))]
    wrong = words[int(draw.random() * len(words))]
    breaker = _Breaker(random_of("pairs", seed, index), place, wrong)
    run(breaker)
    cut = max(match.end() for match in _BETWEEN.finditer(text[: position + 1]))
    return Pair(text[:cut], text[cut:], breaker.text[cut:], kind)
