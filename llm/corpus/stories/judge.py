"""The judge: does a text make sense to its end, and if not, where does it stop and why?

Judging is reading: the first word that the world of the story does not allow ends it. The verdict tells mistakes about
the world (`world.py` lists their kinds) from words that no story can have at that place (`grammar`), from texts that
stop early (`unfinished`) or go on after the end (`overlong`).
"""

from typing import NamedTuple

from llm.corpus.stories.source import NotAStory, parse


class Verdict(NamedTuple):
    """What the judge says of a text."""

    sensible: bool  # complete, and true to its world to the end
    complete: bool  # reaches an end; a story that then goes on is complete and not sensible
    position: int  # so many characters make sense
    kind: str  # "" for a sensible text
    reason: str  # one readable line, "" for a sensible text


def judge(text: str) -> Verdict:
    try:
        parse(text)
    except NotAStory as fault:
        return Verdict(False, fault.kind == "overlong", fault.position, fault.kind, fault.reason)
    return Verdict(True, True, len(text), "", "")
