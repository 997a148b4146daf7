"""Prints stories with their figures, or preference pairs: `python -m llm.corpus.stories 10 --seed 1 [--pairs]`."""

import argparse
import textwrap

from llm.corpus.stories import bits, judge, pair, story


def _wrapped(text: str) -> str:
    return "\n\n".join(textwrap.fill(paragraph, 100) for paragraph in text.split("\n\n"))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m llm.corpus.stories", description=__doc__)
    parser.add_argument("count", type=int, nargs="?", default=3, help="how many")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--pairs", action="store_true", help="preference pairs instead of stories")
    args = parser.parse_args()
    for index in range(args.count):
        if args.pairs:
            prompt, chosen, rejected, kind = pair(args.seed, index)
            verdict = judge(prompt + rejected)
            print(f"--- pair {index}: {kind}: {verdict.reason}\n{_wrapped(prompt)}")
            print(f"\n  chosen:  {chosen[:200].strip()!r}\n  rejected: {rejected[:200].strip()!r}\n")
        else:
            text = story(args.seed, index)
            size = f"{len(text.split())} words, {bits(text):.0f} bits, {bits(text) / len(text.encode()):.2f} a byte"
            print(f"--- story {index}: {size}\n{_wrapped(text)}\n")


if __name__ == "__main__":
    main()
