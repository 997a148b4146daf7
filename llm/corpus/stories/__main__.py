"""Prints stories, preference pairs, or the table of docs/stories.md.

python -m llm.corpus.stories 10 --seed 1            ten stories, each with its size and its exact bits
python -m llm.corpus.stories 5 --pairs              five preference pairs
python -m llm.corpus.stories 20000 --figures        words, bits and facts to remember by plot, and the vocabulary
"""

import argparse
import math
import re
import statistics
import textwrap
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from llm.corpus.stories import Pick, bits, judge, pairs, story, tell
from llm.corpus.stories.plots import PLOTS

WORD = re.compile(r"[a-z]+")


class Told(NamedTuple):
    """One story in figures."""

    words: int
    bytes: int
    bits: float
    facts: int
    picks: int


def _wrapped(text: str) -> str:
    return "\n\n".join(textwrap.fill(paragraph, 100) for paragraph in text.split("\n\n"))


def table(seed: int, count: int) -> str:
    """Means by plot over stories 0 to `count` as a Markdown table, and what they have in common above it."""
    by_plot: dict[str, list[Told]] = defaultdict(list)
    vocabulary: Counter[str] = Counter()
    texts: set[str] = set()
    for index in range(count):
        derivation = tell(seed, index)
        text, picks = derivation.text, derivation.picks
        tracked = sum(pick.tracked for pick in picks)
        told = Told(len(text.split()), len(text.encode()), derivation.bits, tracked, len(picks))
        by_plot[plot_of(picks)].append(told)
        vocabulary.update(WORD.findall(text.lower()))
        texts.add(text)
    everything = [told for stories in by_plot.values() for told in stories]
    often = sum(n >= 10 for n in vocabulary.values())
    lines = [
        f"{count:,} stories of seed {seed}: {len(vocabulary):,} distinct words ({often:,} of them at least ten times), "
        f"{len(texts):,} distinct stories, {_mean(everything, 'words'):.0f} words and "
        f"{_mean(everything, 'picks'):.0f} decisions a story",
        "",
        "| plot | share | words | bytes | bits | bits a byte | facts to remember |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, stories in [(plot, by_plot[plot]) for plot in PLOTS if plot in by_plot] + [("all", everything)]:
        words, size, exact, facts = (_mean(stories, column) for column in ("words", "bytes", "bits", "facts"))
        share = len(stories) / count
        lines.append(
            f"| {name} | {share:.2f} | {words:.0f} | {size:.0f} | {exact:.0f} | {exact / size:.4f} | {facts:.1f} |"
        )
    return "\n".join(lines)


def plot_of(picks: Sequence[Pick]) -> str:
    """The plot's name: it is decided at the only fork with that many branches, and by its first words."""
    start = next(p.value for p in picks if p.slot.startswith("turn") and math.isclose(p.log2p, -math.log2(len(PLOTS))))
    return next(name for name, template in PLOTS.items() if template.lstrip().startswith(start))


def _mean(stories: list[Told], column: str) -> float:
    return statistics.fmean(getattr(told, column) for told in stories)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m llm.corpus.stories", description="Stories with known entropy.")
    parser.add_argument("count", type=int, nargs="?", default=3, help="how many")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--pairs", action="store_true", help="preference pairs instead of stories")
    parser.add_argument("--figures", action="store_true", help="a table over so many stories")
    args = parser.parse_args()
    if args.figures:
        print(table(args.seed, args.count))
        return
    for index in range(args.count):
        if args.pairs:
            ((prompt, chosen, rejected, kind),) = pairs(args.seed, index, at_most=1)
            verdict = judge(prompt + rejected)
            print(f"--- pair {index}: {kind}: {verdict.reason}\n{_wrapped(prompt)}")
            print(f"\n  chosen:  {chosen[:200].strip()!r}\n  rejected: {rejected[:200].strip()!r}\n")
        else:
            text = story(args.seed, index)
            size = f"{len(text.split())} words, {bits(text):.0f} bits, {bits(text) / len(text.encode()):.2f} a byte"
            print(f"--- story {index}: {size}\n{_wrapped(text)}\n")


if __name__ == "__main__":
    main()
