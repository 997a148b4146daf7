"""The telling program: story templates compiled into steps that any teller can walk.

A template is English with a few marks:

    {adv}               a word of the bag `adv`, free; {a:tree} with its article, {s:tree} in the plural
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

import math
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from llm.corpus.stories.bags import FORMS, Bag, ends_word
from llm.corpus.stories.teller import Teller
from llm.corpus.stories.world import PRONOUNS, THINGS, World

ELSE = "…"  # the label of the branch that no fixed words begin


class TemplateError(ValueError):
    """A template that cannot be told or read back."""


class Step:
    """One step of the program."""

    def run(self, teller: Teller) -> None:
        raise NotImplementedError

    def begins(self) -> set[str]:
        """The first words that this step may write."""
        return set()


@dataclass(frozen=True)
class Say(Step):
    words: str

    def run(self, teller: Teller) -> None:
        teller.say(self.words)


@dataclass(frozen=True)
class Act(Step):
    """A change of the world that the text before it has stated."""

    change: Callable[[World], None]

    def run(self, teller: Teller) -> None:
        self.change(teller.world)


@dataclass(frozen=True)
class Free(Step):
    """A word of a bag; with a role, the thing that plays it, unlike any other thing of that bag in the story."""

    bag: Bag
    slot: str
    role: str = ""

    def run(self, teller: Teller) -> None:
        if not self.role:
            teller.pick(self.slot, self.bag)
            return
        roles = teller.world.roles
        barred = {value for value in roles.values() if value in self.bag}
        roles[self.role] = teller.pick(self.slot, self.bag, barred)

    def begins(self) -> set[str]:
        return {form.split(" ")[0] for form in self.bag.forms}


@dataclass(frozen=True)
class Enter(Step):
    """A person enters."""

    names: Bag
    slot: str
    role: str

    def run(self, teller: Teller) -> None:
        name = teller.pick(self.slot, self.names, teller.world.people)
        teller.world.introduce(self.role, name)

    def begins(self) -> set[str]:
        return set(self.names.values)


class Truth(Step):
    """A place where the world says what may stand."""

    slot: str

    def wrong(self, world: World, legal: Sequence[str]) -> Mapping[str, Sequence[str]]:
        """Kind of mistake -> the forms that would make it here."""
        raise NotImplementedError

    def why(self, world: World, kind: str, word: str) -> str:
        raise NotImplementedError


@dataclass(frozen=True)
class Person(Truth):
    """The person of a role, by name or pronoun."""

    slot: str
    role: str
    case: str  # of the pronoun, empty: always by name
    subject: bool  # name and pronoun are both possible while the pronoun is clear
    names: Bag

    def _own(self, name: str) -> str:
        return name + "'s" if self.case.lower() == "his" else name

    def run(self, teller: Teller) -> None:
        world = teller.world
        name = world.roles[self.role]
        if not self.case:
            legal: tuple[str, ...] = (name,)
        else:
            legal = world.mentions(self.role, self.case)
            if not self.subject:
                legal = (self._own(name),) if len(legal) == 1 else (legal[1],)
        told = teller.choose(self, legal).removesuffix("'s")
        if told in world.people and told != name:  # a rejected telling goes on as if it were so
            world.spoken_of(told)
            if len(self.role) > 1:
                world.roles[self.role] = told
        else:
            world.spoken_of(name)

    def wrong(self, world: World, legal: Sequence[str]) -> Mapping[str, Sequence[str]]:
        allowed = {word.removesuffix("'s") for word in legal} | {world.roles[self.role]}
        kinds = world.wrong_people(self.role, allowed, self.case, self.names)
        if self.case and not self.subject and legal[0] in PRONOUNS[self.case]:
            return {"pronoun": kinds["pronoun"]}
        if self.case and not self.subject:
            return {k: [w if k == "pronoun" else self._own(w) for w in words] for k, words in kinds.items()}
        return kinds

    def why(self, world: World, kind: str, word: str) -> str:
        return world.why_person(kind, self.role, word.removesuffix("'s"))

    def begins(self) -> set[str]:
        return {self._own(name) for name in self.names.values} | set(PRONOUNS.get(self.case, ()))


@dataclass(frozen=True)
class Either(Truth):
    """One of two persons, who takes a role."""

    slot: str
    roles: tuple[str, str]
    becomes: str
    names: Bag

    def run(self, teller: Teller) -> None:
        world = teller.world
        told = teller.choose(self, tuple(world.roles[role] for role in self.roles))
        world.roles[self.becomes] = told
        if told in world.people:
            world.spoken_of(told)

    def wrong(self, world: World, legal: Sequence[str]) -> Mapping[str, Sequence[str]]:
        kinds = world.wrong_people(self.roles[0], legal, "", self.names)
        return {k: [word for word in words if word not in world.people or k != "stranger"] for k, words in kinds.items()}

    def why(self, world: World, kind: str, word: str) -> str:
        return world.why_person(kind, self.roles[0], word)

    def begins(self) -> set[str]:
        return set(self.names.values)


@dataclass(frozen=True)
class Thing(Truth):
    """The thing in a role, to be remembered."""

    slot: str
    role: str
    bag: Bag

    def run(self, teller: Teller) -> None:
        roles = teller.world.roles
        right = roles[self.role]
        form = self.bag.forms[self.bag.place[right]]
        told = teller.choose(self, (form,))
        if told != form:
            roles[self.role] = self.bag.values[self.bag.index[told]]

    def wrong(self, world: World, legal: Sequence[str]) -> Mapping[str, Sequence[str]]:
        return {THINGS[self.role][0]: [form for form in self.bag.forms if form not in legal]}

    def why(self, world: World, kind: str, word: str) -> str:
        return world.why_thing(self.role, self.bag.values[self.bag.index[word]])

    def begins(self) -> set[str]:
        return {form.split(" ")[0] for form in self.bag.forms}


@dataclass(frozen=True)
class Branch:
    label: str
    weight: int
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class Fork(Step):
    """A choice between ways to go on, each told apart by its first words."""

    slot: str
    branches: tuple[Branch, ...]
    cumulative: tuple[int, ...] = field(init=False)
    log2: tuple[float, ...] = field(init=False)
    spelled: tuple[tuple[int, Branch], ...] = field(init=False)
    otherwise: int | None = field(init=False)
    labels: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "cumulative", tuple(accumulate(b.weight for b in self.branches)))
        put(self, "log2", tuple(math.log2(b.weight / self.cumulative[-1]) for b in self.branches))
        put(self, "spelled", tuple((i, b) for i, b in enumerate(self.branches) if b.label != ELSE))
        rest = [i for i, b in enumerate(self.branches) if b.label == ELSE]
        if len(rest) > 1:
            raise TemplateError(f"{self.slot}: more than one branch is empty or begins with a slot")
        put(self, "otherwise", rest[0] if rest else None)
        put(self, "labels", {b.label: i for i, b in enumerate(self.branches)})

    def draw(self, r: float) -> int:
        return bisect_right(self.cumulative, r * self.cumulative[-1])

    def run(self, teller: Teller) -> None:
        for step in teller.fork(self).steps:
            step.run(teller)


# -- from template to steps ------------------------------------------------------------------------------------------

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
