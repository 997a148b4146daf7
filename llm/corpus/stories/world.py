"""The world of one story: who is in it, who has left, who was spoken of last, and what each thing is.

The telling program writes facts into the world as the text states them, and asks it for the words that are true at the
next place. For a place with a truth, the world also names the words that would break it, sorted by the kind of mistake,
and says in one line why: that is the judge's verdict and the preference pairs' material.

Kinds of mistake: `pronoun` (she for Tom), `person` (another one of the story), `stranger` (nobody of the story),
`absent` (has gone away), `holder` (does not have the thing), `winner`, and for things the kind of their role: `wish`,
`thing`, `tool`, `place`, `animal`, `food`, `clothes`, `colour`, `number`.
"""

from collections.abc import Collection

from llm.corpus.stories.bags import Bag
from llm.corpus.stories.words import GIRLS

PRONOUNS = {
    "he": ("he", "she"),
    "He": ("He", "She"),
    "him": ("him", "her"),
    "his": ("his", "her"),
    "His": ("His", "Her"),
    # Nouns that agree like pronouns; they stand right behind the name.
    "girl": ("boy", "girl"),
    "daughter": ("son", "daughter"),
}
_OF_GIRLS = {forms[1] for forms in PRONOUNS.values()}

# Role of a thing -> the kind of mistake when the text forgets it, and how the judge says so.
THINGS = {
    "wish": ("wish", "the wish was {right}, not {wrong}"),
    "thing": ("thing", "the thing is {right}, not {wrong}"),
    "tool": ("tool", "what helped was {right}, not {wrong}"),
    "fee": ("thing", "the fee was {right}, not {wrong}"),
    "kin": ("kin", "the relation is the {right}, not the {wrong}"),
    "spot": ("place", "it happens at the {right}, not at the {wrong}"),
    "beast": ("animal", "the animal is {right}, not {wrong}"),
    "food": ("food", "the food was {right}, not {wrong}"),
    "cloth": ("clothes", "it was {right}, not {wrong}"),
    "colour": ("colour", "it was {right}, not {wrong}"),
    "count": ("number", "there were {right}, not {wrong}"),
}
PERSON_KINDS = ("pronoun", "person", "stranger", "absent", "holder", "winner")
KINDS = tuple(dict.fromkeys((*PERSON_KINDS, *(kind for kind, _ in THINGS.values()))))


class World:
    """Facts of one story so far. Persons' roles are capitalised (`A`, `Holder`), things' are not (`wish`)."""

    def __init__(self) -> None:
        self.roles: dict[str, str] = {}
        self.people: list[str] = []
        self.gone: set[str] = set()
        self.last: dict[bool, str] = {}  # is a girl -> whom the pronoun means

    # -- facts ---------------------------------------------------------------------------------------------------

    def introduce(self, role: str, name: str) -> None:
        self.roles[role] = name
        self.people.append(name)
        self.spoken_of(name)

    def spoken_of(self, name: str) -> None:
        self.last[name in GIRLS] = name

    def leave(self, role: str) -> None:
        self.gone.add(self.roles[role])

    def come_back(self, role: str) -> None:
        self.gone.discard(self.roles[role])

    # -- persons -------------------------------------------------------------------------------------------------

    def pronoun(self, role: str, case: str) -> str:
        return PRONOUNS[case][self.roles[role] in GIRLS]

    def mentions(self, role: str, case: str) -> tuple[str, ...]:
        """The forms in which the person of a role may be named as the subject: the name, and the pronoun while it
        can mean nobody else."""
        name = self.roles[role]
        girl = name in GIRLS
        return (name, PRONOUNS[case][girl]) if self.last.get(girl) == name else (name,)

    def wrong_people(self, role: str, allowed: Collection[str], case: str, names: Bag) -> dict[str, list[str]]:
        """Kind -> what would be wrong here. `case` is the pronoun's case, empty where only a name can stand."""
        wrong: dict[str, list[str]] = {}
        for name in self.people:
            if name not in allowed:
                kind = "absent" if name in self.gone else _ALIASES.get(role, "person")
                wrong.setdefault(kind, []).append(name)
        if case:
            other = [word for word in PRONOUNS[case] if word not in allowed]
            if other:
                wrong["pronoun"] = other
        wrong["stranger"] = [name for name in names.values if name not in self.people]
        return wrong

    def why_person(self, kind: str, role: str, wrong: str) -> str:
        right = self.roles[role]
        if kind == "pronoun":
            girl = wrong in _OF_GIRLS
            if (right in GIRLS) != girl:
                return f"{wrong.lower()!r} cannot be {right}"
            return f"{wrong.lower()!r} would be {self.last.get(girl, 'nobody')} here, not {right}"
        if kind == "absent":
            return f"{wrong} has gone away"
        if kind == "stranger":
            return f"there is no {wrong} here"
        if kind == "holder":
            return f"the {self.roles.get('thing', 'thing')} is held by {right}, not {wrong}"
        if kind == "winner":
            return f"the winner is {right}, not {wrong}"
        return f"this is {right}, not {wrong}"

    # -- things --------------------------------------------------------------------------------------------------

    def why_thing(self, role: str, wrong: str) -> str:
        return THINGS[role][1].format(right=self.roles[role], wrong=wrong)


_ALIASES = {"Holder": "holder", "Winner": "winner"}
