"""The source of stories: document *i* as a function of (seed, *i*), and the probability of any text under it.

Random numbers come from `random.Random` seeded with a SHA-256 of the stream's name, the seed and the index: the same on
every platform and Python, and independent for every document, so that documents can be made in any order.
"""

import hashlib
from collections.abc import Sequence
from functools import cache
from random import Random
from typing import NamedTuple

from llm.corpus.stories.compiler import Compiler, expand
from llm.corpus.stories.plots import PARTS
from llm.corpus.stories.program import Step
from llm.corpus.stories.teller import Broken, Pick, Reader, Reteller, Teller, Writer
from llm.corpus.stories.words import BAGS


class NotAStory(ValueError):
    """The text has no derivation: where it stops making sense, what kind of mistake that is, and why."""

    def __init__(self, broken: Broken) -> None:
        super().__init__(str(broken))
        self.position, self.kind, self.reason = broken.position, broken.kind, broken.reason


class Derivation(NamedTuple):
    """A story and the decisions that made it."""

    text: str
    picks: tuple[Pick, ...]

    @property
    def bits(self) -> float:
        """-log2 of the probability."""
        return -sum(pick.log2p for pick in self.picks)


@cache
def program() -> tuple[Step, ...]:
    """The compiled telling program (30 ms, once a process)."""
    return Compiler(BAGS).compile(expand(PARTS["story"], PARTS))


def run(teller: Teller) -> None:
    for step in program():
        step.run(teller)


def random_of(stream: str, seed: int, index: int) -> Random:
    key = f"wordmill stories/{stream}/{seed}/{index}".encode()
    return Random(int.from_bytes(hashlib.sha256(key).digest()[:16], "big"))


def tell(seed: int, index: int) -> Derivation:
    """Story `index` with its decisions."""
    writer = Writer(random_of("corpus", seed, index))
    run(writer)
    return Derivation(writer.text, tuple(writer.picks))


def story(seed: int, index: int) -> str:
    """Story `index`: paragraphs separated by an empty line, no line end at the end."""
    return tell(seed, index).text


def retell(picks: Sequence[Pick]) -> Derivation:
    """The story that decisions make; probabilities and positions are found anew."""
    teller = Reteller((pick.slot, pick.value) for pick in picks)
    run(teller)
    return Derivation(teller.text, tuple(teller.picks))


def parse(text: str) -> Derivation:
    """The one derivation of a text; raises `NotAStory`."""
    reader = Reader(text)
    try:
        run(reader)
        reader.finish()
    except Broken as broken:
        raise NotAStory(broken) from None
    return Derivation(text, tuple(reader.picks))


def bits(text: str) -> float:
    """Exact -log2 probability of the whole text, its end included; raises `NotAStory`."""
    return parse(text).bits
