"""Preference pairs: a true continuation against one that breaks the world, both with the same beginning.

A story is told; among the places where a fact has to be remembered, some are drawn (first the kind of mistake, so that
rare kinds are not rare in the pairs, then a place that allows it, then the wrong word). For each of them the story is
told again from the same random numbers with the wrong word in that place, and goes on as if it were so. So chosen and
rejected differ in the mistake and in what follows from it, not by chance. The prompt ends with the sentence before the
mistake's.
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


_Chance = tuple[int, str, Sequence[str], int]  # place in the telling, kind, wrong words, position in the text


class _Watcher(Writer):
    """Writes, and notes for every place with a truth what would be wrong there."""

    def __init__(self, random: Random) -> None:
        super().__init__(random)
        self.chances: list[_Chance] = []

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


def pairs(seed: int, index: int, at_most: int) -> list[Pair]:
    """Pairs of story `index`, in the story's order: a pure function of (seed, index), from another stream of stories
    than the corpus. Each has its mistake in another place."""
    watcher = _Watcher(random_of("pairs", seed, index))
    run(watcher)
    text = watcher.text
    ends = [match.end() for match in _BETWEEN.finditer(text)]  # of sentences
    draw = random_of("mistakes", seed, index)
    made = []
    for place, kind, words, position in _drawn(
        [chance for chance in watcher.chances if chance[3] > ends[0]],  # the first sentence is always prompt
        at_most,
        draw,
    ):
        wrong = words[int(draw.random() * len(words))]
        breaker = _Breaker(random_of("pairs", seed, index), place, wrong)
        run(breaker)
        cut = max(end for end in ends if end <= position + 1)
        made.append(Pair(text[:cut], text[cut:], breaker.text[cut:], kind))
    return made


def _drawn(chances: list[_Chance], at_most: int, draw: Random) -> list[_Chance]:
    """Some of `chances`, none of them in the place of another: first a kind is drawn, then one of that kind."""
    by_kind: dict[str, list[_Chance]] = {}
    for chance in chances:
        by_kind.setdefault(chance[1], []).append(chance)
    drawn: dict[int, _Chance] = {}
    while by_kind and len(drawn) < at_most:
        kinds = sorted(by_kind)
        kind = kinds[int(draw.random() * len(kinds))]
        of_kind = by_kind[kind]
        chance = of_kind.pop(int(draw.random() * len(of_kind)))
        if not of_kind:
            del by_kind[kind]
        drawn.setdefault(chance[0], chance)
    return [drawn[place] for place in sorted(drawn)]
