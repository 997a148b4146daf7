"""Which given pairs are held out: whole groups of dialogues, so that no dialogue is on both sides.

Prompts belong together that begin with the same first turn of the user (`llm.preference_dialogues.opening`), and so do
prompts of which one is the beginning of the other up to a border between words. A group is held out by a hash. A group
of more pairs than should be held out in all is trained on.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence

from llm.preference_dialogues import opening

TRAIN, HELD_OUT = "train", "test"


def hashed_split(text: str, share: float) -> str:
    """ "test" for about `share` of all texts, decided by the text's hash alone."""
    return HELD_OUT if _number(text) < share * 2**64 else TRAIN


def split_dialogues(prompts: Sequence[str], share: float) -> list[str]:
    """The split of each prompt. Where chance leaves a split empty, it gets a group if there are two."""
    groups = dialogue_groups(prompts)
    sizes = Counter(groups)
    most = max(1, share * len(prompts))
    splits = {group: hashed_split(group, share) if size <= most else TRAIN for group, size in sizes.items()}
    if len(sizes) > 1 and HELD_OUT not in splits.values():
        splits[min(sizes, key=lambda group: (sizes[group], _number(group)))] = HELD_OUT
    if len(sizes) > 1 and TRAIN not in splits.values():
        splits[max(sizes, key=lambda group: (sizes[group], _number(group)))] = TRAIN
    return [splits[group] for group in groups]


def dialogue_groups(prompts: Sequence[str]) -> list[str]:
    """For each prompt the name of its group: the least of the openings in it."""
    openings = {prompt: opening(prompt) for prompt in prompts}
    parents = {text: text for text in openings.values()}

    def root(text: str) -> str:
        while parents[text] != text:
            parents[text] = parents[parents[text]]
            text = parents[text]
        return text

    for shorter, longer in _beginnings(openings):
        least, other = sorted((root(openings[shorter]), root(openings[longer])))
        parents[other] = least
    return [root(openings[prompt]) for prompt in prompts]


def _beginnings(prompts: Iterable[str]) -> Iterable[tuple[str, str]]:
    """Each prompt with the longest other one that it begins with, up to a border between words."""
    above: list[str] = []  # sorted texts: what a text begins with stands before it
    for prompt in sorted(prompts, key=str.rstrip):
        while above and not prompt.startswith(above[-1].rstrip()):
            above.pop()
        for shorter in reversed(above):
            end = len(shorter.rstrip())
            if shorter.strip() and not (prompt[end - 1 : end].isalnum() and prompt[end : end + 1].isalnum()):
                yield shorter, prompt
                break
        above.append(prompt)


def _number(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
