"""Bags of words: the classes that the free places of a story are filled from.

A `Bag` holds values (`otter`), the form each takes on the page (`an otter`) and integer weights. The first word of a
bag is three times as likely as the last, and the weights fall smoothly in between: a little of the unevenness of real
text, hardly any loss of entropy. Integers, so that probabilities are exact ratios and every platform draws alike.

No form of a bag is the beginning of another one (up to a word's end), so at most one of them stands at any place of a
text: that is what makes reading back unambiguous, and it is checked when the bag is made.
"""

import math
import re
from bisect import bisect_right
from collections.abc import Collection, Sequence
from itertools import accumulate

# How many words a form has -> the pattern that cuts so many words from a text.
_CUTS = {n: re.compile(r"[A-Za-z-]+" + r" [A-Za-z-]+" * (n - 1)) for n in range(1, 7)}

# Words whose article does not follow from their first letter.
_VOWEL_UNHEARD = ("one", "uni", "use", "ukulele")
_H_UNHEARD = ("hour", "honest", "heir")

_IRREGULAR = {
    "goose": "geese", "mouse": "mice", "sheep": "sheep", "deer": "deer", "calf": "calves", "wolf": "wolves",
    "elf": "elves", "child": "children", "ox": "oxen", "leaf": "leaves",
    "tooth": "teeth",
}  # fmt: skip


def article(words: str) -> str:
    """`otter` -> `an otter`."""
    vowel = (words[0] in "aeiou" and not words.startswith(_VOWEL_UNHEARD)) or words.startswith(_H_UNHEARD)
    return f"an {words}" if vowel else f"a {words}"


def plural(noun: str) -> str:
    """`pony` -> `ponies`; the last word counts."""
    if noun in _IRREGULAR:
        return _IRREGULAR[noun]
    if noun.endswith(("s", "x", "ch", "sh")):
        return noun + "es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + "s"


def bare(words: str) -> str:
    return words


FORMS = {"": bare, "a": article, "s": plural, "C": str.capitalize}


def ends_word(text: str, position: int) -> bool:
    """Whether no word runs across `position`."""
    return position >= len(text) or not (text[position].isalpha() or text[position] == "-")


class Bag:
    """Values with weights, drawn with one random number and found again in a text."""

    def __init__(self, name: str, values: Sequence[str], form: str = "", flat: bool = False) -> None:
        self.name = name
        self.values = tuple(values)
        self.form = form
        self.flat = flat
        self.forms = tuple(FORMS[form](value) for value in values)
        n = len(values)
        self.weights = [12_000 if flat else round(12_000 / (1 + 2 * i / n)) for i in range(n)]
        self.cumulative = list(accumulate(self.weights))
        self.total = self.cumulative[-1]
        self.log2 = [math.log2(weight / self.total) for weight in self.weights]
        self.index = {form_: i for i, form_ in enumerate(self.forms)}
        self.place = {value: i for i, value in enumerate(self.values)}
        self.lengths = sorted({form_.count(" ") + 1 for form_ in self.forms})
        self._check()

    def _check(self) -> None:
        for words in (self.values, self.forms):
            twice = sorted({w for w in words if words.count(w) > 1})
            if twice:
                raise ValueError(f"bag {self.name}: twice in it: {twice}")
        for longer in self.forms:
            blanks = [at for at, letter in enumerate(longer) if letter == " "]
            for at in blanks:
                if longer[:at] in self.index:
                    raise ValueError(f"bag {self.name}: {longer[:at]!r} is the beginning of {longer!r}")

    def __len__(self) -> int:
        return len(self.values)

    def __contains__(self, value: str) -> bool:
        return value in self.place

    def in_form(self, form: str) -> "Bag":
        """The same bag with another form on the page."""
        return self if form == self.form else Bag(self.name, self.values, form, self.flat)

    def draw(self, r: float, barred: Collection[str]) -> tuple[int, float]:
        """From one random number in [0, 1): the place of the value drawn and log2 of its probability."""
        if not barred:
            i = bisect_right(self.cumulative, r * self.total)
            return i, self.log2[i]
        out = sorted(self.place[value] for value in barred)
        left = self.total - sum(self.weights[i] for i in out)
        mark = r * left
        for i in out:
            # Step over the stretch that the barred value would have had.
            if mark >= self.cumulative[i] - self.weights[i]:
                mark += self.weights[i]
        i = bisect_right(self.cumulative, mark)
        return i, math.log2(self.weights[i] / left)

    def log2_of(self, i: int, barred: Collection[str]) -> float:
        if not barred:
            return self.log2[i]
        return math.log2(self.weights[i] / (self.total - sum(self.weights[self.place[value]] for value in barred)))

    def find(self, text: str, position: int) -> int:
        """The place of the value whose form stands at `position`, -1 when there is none."""
        for n in self.lengths:
            cut = _CUTS[n].match(text, position)
            if cut is None:
                return -1
            i = self.index.get(cut[0], -1)
            if i >= 0:
                return i
        return -1

    def begins(self, rest: str) -> bool:
        """Whether `rest`, the end of a text, may be a form that was cut off."""
        return any(form_.startswith(rest) for form_ in self.forms)

    def entropy(self, barred: Collection[str]) -> float:
        """Shannon entropy of a draw, in bits."""
        left = [w for value, w in zip(self.values, self.weights, strict=True) if value not in barred]
        total = sum(left)
        return -sum(w / total * math.log2(w / total) for w in left)
