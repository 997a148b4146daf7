"""The embedded corpus: short stories for children whose probability is known exactly.

    story(seed, index)   a story; any number of them, each a pure function of its two numbers
    bits(text)           its exact -log2 probability: the loss that no model can beat, on average
    parse(text)          the decisions that made it, found again from the text alone
    judge(text)          whether a text makes sense to its end, and if not, where it stops and why
    pairs(seed, index, at_most)   true continuations and ones that break the story's world

The words are in `words.py`, the plots in `plots.py`; `teller.py` explains how one program tells, reads and judges.
"""

from llm.corpus.stories.judge import Verdict, judge
from llm.corpus.stories.pairs import Pair, pairs
from llm.corpus.stories.source import Derivation, NotAStory, bits, parse, retell, story, tell
from llm.corpus.stories.teller import Pick
from llm.corpus.stories.world import KINDS

__all__ = [
    "KINDS",
    "Derivation",
    "NotAStory",
    "Pair",
    "Pick",
    "Verdict",
    "bits",
    "judge",
    "pairs",
    "parse",
    "retell",
    "story",
    "tell",
]
