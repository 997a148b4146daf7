"""Who tells the story: one program, told in several ways.

The program (`plots.py`, compiled by `compiler.py`) walks through a story and asks its teller at every step: `say` fixed
words, `pick` a word of a bag, `choose` one of the words that are true here, take a `fork`. A `Writer` decides by random
numbers and writes; a `Reader` finds every decision again in a given text; a `Reteller` repeats recorded decisions. As
the words of a decision stand in the text right where it is taken, and no two of them can stand at the same place, a
text has at most one reading, found without ever going back, and its probability is the product over the decisions.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Sequence
from random import Random
from typing import TYPE_CHECKING, NamedTuple

from llm.corpus.stories.bags import Bag, ends_word
from llm.corpus.stories.world import World

if TYPE_CHECKING:
    from llm.corpus.stories.program import Branch, Fork, Truth


class Pick(NamedTuple):
    """One decision: where in the text, for which slot, what, and log2 of its probability among what was legal."""

    slot: str
    value: str
    log2p: float
    position: int
    tracked: bool  # whether the world so far restricted it: a fact to remember


class Broken(Exception):
    """The text stops making sense at `position`."""

    def __init__(self, position: int, kind: str, reason: str) -> None:
        super().__init__(f"at character {position}: {reason}")
        self.position = position
        self.kind = kind
        self.reason = reason


class Teller(ABC):
    """The interface between program and teller; the world is kept here."""

    def __init__(self) -> None:
        self.world = World()
        self.picks: list[Pick] = []

    @abstractmethod
    def say(self, words: str) -> None:
        """Fixed words."""

    @abstractmethod
    def pick(self, slot: str, bag: Bag, barred: Collection[str] = ()) -> str:
        """A value of the bag that is not barred."""

    @abstractmethod
    def choose(self, truth: "Truth", legal: Sequence[str]) -> str:
        """One of the forms that are true here, all equally likely."""

    @abstractmethod
    def fork(self, fork: "Fork") -> "Branch":
        """The branch that the story takes."""


class Writer(Teller):
    """Decides by random numbers, one a decision that has a choice, and writes the text."""

    def __init__(self, random: Random) -> None:
        super().__init__()
        self.random = random.random
        self.parts: list[str] = []
        self.position = 0

    @property
    def text(self) -> str:
        return "".join(self.parts)

    def say(self, words: str) -> None:
        self.parts.append(words)
        self.position += len(words)

    def pick(self, slot: str, bag: Bag, barred: Collection[str] = ()) -> str:
        i, log2p = bag.draw(self.random(), barred)
        value, form = bag.values[i], bag.forms[i]
        self.picks.append(Pick(slot, value, log2p, self.position, False))
        self.parts.append(form)
        self.position += len(form)
        return value

    def choose(self, truth: "Truth", legal: Sequence[str]) -> str:
        n = len(legal)
        word = legal[0] if n == 1 else legal[int(self.random() * n)]
        self.picks.append(Pick(truth.slot, word, -math.log2(n), self.position, True))
        self.parts.append(word)
        self.position += len(word)
        return word

    def fork(self, fork: "Fork") -> "Branch":
        i = fork.draw(self.random())
        branch = fork.branches[i]
        self.picks.append(Pick(fork.slot, branch.label, fork.log2[i], self.position, False))
        return branch


class Reteller(Writer):
    """Repeats recorded decisions, given as (slot, value), and writes the text."""

    def __init__(self, decisions: Iterable[tuple[str, str]]) -> None:
        super().__init__(Random(0))
        self.decisions = iter(decisions)

    def _next(self, slot: str) -> str:
        recorded, value = next(self.decisions)
        if recorded != slot:
            raise ValueError(f"the telling asks for {slot}, the record has {recorded}")
        return value

    def pick(self, slot: str, bag: Bag, barred: Collection[str] = ()) -> str:
        value = self._next(slot)
        i = bag.place[value]
        self.picks.append(Pick(slot, value, bag.log2_of(i, barred), self.position, False))
        self.say(bag.forms[i])
        return value

    def choose(self, truth: "Truth", legal: Sequence[str]) -> str:
        word = self._next(truth.slot)
        if word not in legal:
            raise ValueError(f"{truth.slot}: {word!r} is none of {legal}")
        self.picks.append(Pick(truth.slot, word, -math.log2(len(legal)), self.position, True))
        self.say(word)
        return word

    def fork(self, fork: "Fork") -> "Branch":
        i = fork.labels[self._next(fork.slot)]
        self.picks.append(Pick(fork.slot, fork.branches[i].label, fork.log2[i], self.position, False))
        return fork.branches[i]


class Reader(Teller):
    """Finds the decisions in a text; raises `Broken` where none fits."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.given = text
        self.position = 0

    def _fail(self, expected: str) -> Broken:
        if self.position == len(self.given):
            return self._cut_off()
        found = self.given[self.position : self.position + 24].replace("\n", " ")
        return Broken(self.position, "grammar", f"not a sentence this story can have: {expected}, found {found!r}")

    def _cut_off(self) -> Broken:
        return Broken(len(self.given), "unfinished", "the story stops before its end")

    def say(self, words: str) -> None:
        if not self.given.startswith(words, self.position):
            rest = self.given[self.position :]
            if words.startswith(rest):
                raise self._cut_off()
            while words and not self.given.startswith(words, self.position):
                words = words[:-1]
            self.position += len(words)
            raise self._fail("other words have to follow")
        self.position += len(words)

    def pick(self, slot: str, bag: Bag, barred: Collection[str] = ()) -> str:
        i = bag.find(self.given, self.position)
        if i < 0:
            if bag.begins(self.given[self.position :]):
                raise self._cut_off()
            raise self._fail(f"a word for {slot} has to follow")
        value = bag.values[i]
        if value in barred:
            raise Broken(self.position, "repeated", f"{value} is in this story already")
        self.picks.append(Pick(slot, value, bag.log2_of(i, barred), self.position, False))
        self.position += len(bag.forms[i])
        return value

    def _stands(self, word: str) -> bool:
        return self.given.startswith(word, self.position) and ends_word(self.given, self.position + len(word))

    def choose(self, truth: "Truth", legal: Sequence[str]) -> str:
        for word in legal:
            if self._stands(word):
                self.picks.append(Pick(truth.slot, word, -math.log2(len(legal)), self.position, True))
                self.position += len(word)
                return word
        rest = self.given[self.position :]
        if any(word.startswith(rest) for word in legal):
            raise self._cut_off()
        for kind, words in truth.wrong(self.world, legal).items():
            for word in words:
                if self._stands(word):
                    raise Broken(self.position, kind, truth.why(self.world, kind, word))
        raise self._fail(f"{legal[0]} has to follow")

    def fork(self, fork: "Fork") -> "Branch":
        i = self._turn(fork)
        branch = fork.branches[i]
        self.picks.append(Pick(fork.slot, branch.label, fork.log2[i], self.position, False))
        return branch

    def _turn(self, fork: "Fork") -> int:
        for i, branch in fork.spelled:
            if self.given.startswith(branch.label, self.position):
                return i
        rest = self.given[self.position :]
        if any(branch.label.startswith(rest) for _, branch in fork.spelled):
            raise self._cut_off()
        if fork.otherwise is None:
            raise self._fail("another turn has to follow")
        return fork.otherwise

    def finish(self) -> None:
        """Nothing may follow the story's end."""
        if self.position < len(self.given):
            raise Broken(self.position, "overlong", "the story is over, but the text goes on")
