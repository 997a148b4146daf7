"""From story templates to the steps of the telling program, and the proof that a text has at most one reading.

A template is English with a few marks:

    {adv}               a word of the bag `adv`, free; {a:tree} with its article, {s:tree} in the plural,
                        {C:furry} with a capital letter
    {toy=wish}          a word of the bag `toy` that becomes the thing in the role `wish`; {a:toy=wish} likewise
    {@wish}             the thing in the role `wish`, to be remembered; {a:@wish}, {s:@beast}
    {name=A}            a person enters; capitalised roles are persons
    {A}                 that person's name
    {A?} {A?s}          as a subject: the name, or He/She (he/she) while the pronoun can mean nobody else
    {A.he} {A.He} {A.him} {A.his} {A.His}   the pronoun where it is clear, the name where it is not
    {A/B=Winner}        one of two persons, who takes the role `Winner`
    [one|two|3*three]   a fork, its branches with weights; at most one branch may be empty or begin with a slot
    <Holder=B>          from here on the role `Holder` is B's; <gone B> leaves, <back B> returns
    ¶                   a new paragraph
    $way                another template

Compiling proves the reading unambiguous: the words that the branches of a fork begin with are pairwise no beginnings of
each other, nor of what may stand after an empty branch, nor do they share a first word with a slot that begins one;
and behind every slot comes no letter. With bags that are prefix-free (`bags.py`), each text has at most one reading.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence

from llm.corpus.stories.bags import FORMS, Bag, ends_word
from llm.corpus.stories.program import (
    ELSE,
    Act,
    Branch,
    Either,
    Enter,
    Fork,
    Free,
    Person,
    Say,
    Step,
    TemplateError,
    Thing,
)
from llm.corpus.stories.world import World

_TOKEN = re.compile(r"\{[^{}]*\}|<[^<>]*>|[\[\]|]|[^\[\]{}|<>]+")
_SLOT = re.compile(r"(?:(\w+):)?(@?)(\w+)(?:=(\w+))?")
_MACRO = re.compile(r"\$(\w+)")


def expand(template: str, parts: Mapping[str, str]) -> str:
    """Other templates written in, blanks made even."""
    while _MACRO.search(template):
        template = _MACRO.sub(lambda match: parts[match[1]].strip(), template)
    text = re.sub(r"\s+", " ", template.strip())
    text = re.sub(r" (?=<)", "", text)
    text = re.sub(r"([\[|]) +", r"\1", text)
    text = re.sub(r" +([|\]])", r"\1", text)
    return re.sub(r" ?¶ ?", "\n\n", text)


class Compiler:
    """Compiles expanded templates; keeps which bag each role is drawn from."""

    def __init__(self, bags: Mapping[str, Bag]) -> None:
        self.bags = bags
        self.formed: dict[tuple[str, str], Bag] = {}
        self.bag_of: dict[str, str] = {}
        self.forks = 0

    def compile(self, text: str) -> tuple[Step, ...]:
        tokens = _TOKEN.findall(text)
        if "".join(tokens) != text:
            raise TemplateError(f"unbalanced marks in: {text[:80]}")
        self.tokens, self.at = tokens, 0
        steps = self._sequence()
        if self.at < len(tokens):
            raise TemplateError(f"unbalanced ] or | before: {''.join(tokens[self.at : self.at + 8])}")
        check(steps, ())
        return steps

    def _sequence(self) -> tuple[Step, ...]:
        steps: list[Step] = []
        while self.at < len(self.tokens) and self.tokens[self.at] not in ("|", "]"):
            token = self.tokens[self.at]
            self.at += 1
            if token == "[":
                steps.append(self._fork())
            elif token[0] == "{":
                steps.append(self._slot(token[1:-1]))
            elif token[0] == "<":
                steps.append(Act(_change(token[1:-1])))
            else:
                steps.append(Say(token))
        return tuple(steps)

    def _fork(self) -> Fork:
        start = self.at
        self.forks += 1
        number = self.forks
        branches = []
        while True:
            weight = 1
            if self.at < len(self.tokens):
                mark = re.match(r"(\d+)\*", self.tokens[self.at])
                if mark:
                    weight = int(mark[1])
                    self.tokens[self.at] = self.tokens[self.at][mark.end() :].lstrip(" ")
                    if not self.tokens[self.at]:
                        self.at += 1
            steps = self._sequence()
            label = steps[0].words if steps and isinstance(steps[0], Say) else ELSE
            branches.append(Branch(label, weight, steps))
            if self.at >= len(self.tokens):
                raise TemplateError(f"[ without ]: {''.join(self.tokens[start : start + 8])}")
            self.at += 1
            if self.tokens[self.at - 1] == "]":
                return Fork(f"turn {number}", tuple(branches))

    def _slot(self, slot: str) -> Step:
        names = self.bags["name"]
        if either := re.fullmatch(r"([A-Z]\w*)/([A-Z]\w*)=([A-Z]\w*)", slot):
            return Either(slot, (either[1], either[2]), either[3], names)
        if person := re.fullmatch(r"([A-Z]\w*)(?:(\?s?)|\.(\w+))?", slot):
            role, mention, case = person.groups()
            if mention:
                return Person(slot, role, "he" if mention == "?s" else "He", True, names)
            return Person(slot, role, case or "", False, names)
        match = _SLOT.fullmatch(slot)
        if match is None:
            raise TemplateError(f"no slot: {{{slot}}}")
        form, at, bag, role = match.groups()
        if at:
            return Thing(slot, bag, self._bag(self.bag_of[bag], form))
        if bag == "name":
            return Enter(names, slot, role)
        if role:
            self.bag_of[role] = bag
        return Free(self._bag(bag, form), slot, role or "")

    def _bag(self, name: str, form: str | None) -> Bag:
        key = (name, form or "")
        if key[1] not in FORMS or name not in self.bags:
            raise TemplateError(f"no bag {name} or no form {form}")
        if key not in self.formed:
            self.formed[key] = self.bags[name].in_form(key[1])
        return self.formed[key]


def _change(action: str) -> Callable[[World], None]:
    if alias := re.fullmatch(r"(\w+)=(\w+)", action):
        new, old = alias.groups()

        def give(world: World) -> None:
            world.roles[new] = world.roles[old]

        return give
    verb, _, role = action.partition(" ")
    if verb == "gone":
        return lambda world: world.leave(role)
    if verb == "back":
        return lambda world: world.come_back(role)
    raise TemplateError(f"no action: <{action}>")


# -- the proof that reading is unambiguous ---------------------------------------------------------------------------


def firsts(steps: Sequence[Step], follow: Sequence[Step]) -> Iterator[Step]:
    """The steps that may be the first to write something, in `steps` or, when they may write nothing, in `follow`."""
    for i, step in enumerate(steps):
        if isinstance(step, Act):
            continue
        if isinstance(step, Fork):
            for branch in step.branches:
                yield from firsts(branch.steps, (*steps[i + 1 :], *follow))
        else:
            yield step
        return
    if follow:
        yield from firsts(follow, ())


def check(steps: Sequence[Step], follow: Sequence[Step]) -> None:
    """Raises `TemplateError` where two readings would be possible."""
    for i, step in enumerate(steps):
        after = (*steps[i + 1 :], *follow)
        if isinstance(step, Fork):
            _check_fork(step, after)
            for branch in step.branches:
                check(branch.steps, after)
        elif not isinstance(step, Say | Act):
            for first in firsts(after, ()):
                if not isinstance(first, Say) or not ends_word(first.words, 0):
                    raise TemplateError(f"a letter may follow {step}, in {first}")


def _check_fork(fork: Fork, after: Sequence[Step]) -> None:
    labels = [branch.label for _, branch in fork.spelled]
    rest = () if fork.otherwise is None else fork.branches[fork.otherwise].steps
    rivals = [] if fork.otherwise is None else list(firsts(rest, after))
    for i, label in enumerate(labels):
        others = labels[i + 1 :] + [step.words for step in rivals if isinstance(step, Say)]
        for other in others:
            if label.startswith(other) or other.startswith(label):
                raise TemplateError(f"{fork.slot}: both {label!r} and {other!r} may stand here")
        first = re.split(r"[^A-Za-z'-]", label, maxsplit=1)[0]
        for step in rivals:
            if first in step.begins():
                raise TemplateError(f"{fork.slot}: {label!r} and {step} may begin alike")
