"""The steps of the telling program, which `compiler.py` makes from the templates of `plots.py`.

Each step is told through a `Teller`. Steps that have a choice also know which words they may begin with, for the proof
that reading is unambiguous (`compiler.py`), and places with a truth know what would be wrong there.
"""

import math
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from llm.corpus.stories.bags import Bag
from llm.corpus.stories.teller import Teller
from llm.corpus.stories.world import PRONOUNS, THINGS, World

ELSE = "…"  # the label of the branch that no fixed words begin


class TemplateError(ValueError):
    """A template that cannot be told or read back."""


class Step(ABC):
    """One step of the program."""

    @abstractmethod
    def run(self, teller: Teller) -> None: ...

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

    @abstractmethod
    def wrong(self, world: World, legal: Sequence[str]) -> Mapping[str, Sequence[str]]:
        """Kind of mistake -> the forms that would make it here."""

    @abstractmethod
    def why(self, world: World, kind: str, word: str) -> str:
        """What is wrong with the word, in one readable line."""


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
        return world.wrong_people(self.roles[0], legal, "", self.names)

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
