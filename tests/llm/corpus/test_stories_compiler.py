"""Templates, bags and the proof of unambiguity, on grammars small enough to write down every text."""

import math

import pytest

from llm.corpus.stories.bags import Bag, article, plural
from llm.corpus.stories.compiler import Compiler, expand
from llm.corpus.stories.plots import PARTS
from llm.corpus.stories.program import Fork, TemplateError
from llm.corpus.stories.source import program
from llm.corpus.stories.teller import Broken, Reader, Teller
from llm.corpus.stories.words import BAGS, BOYS, GIRLS

SMALL = {
    "name": Bag("name", ["Leo", "Leon", "Alice"], flat=True),
    "toy": Bag("toy", ["kite", "orb", "music box"]),
    "adv": Bag("adv", ["slowly", "gladly"]),
}
TALE = """
{name=A} [had {a:toy=wish}|2*and {name=B} shared {a:toy=wish}, <Holder=B> but {Holder} took it]. {A?} {adv} hid {A.his}
[{s:@wish}|very {@wish}]. [{A} won the {@wish}|The end]!
"""


class Every(Teller):
    """Tells all texts of a program in turn: each time another way at the last decision that has one left."""

    def __init__(self, script):
        super().__init__()
        self.script, self.ways, self.parts, self.log2p = script, [], [], 0.0

    def _next(self, log2):
        at = len(self.ways)
        way = self.script[at] if at < len(self.script) else 0
        self.ways.append((way, len(log2)))
        self.log2p += log2[way]
        return way

    def say(self, words):
        self.parts.append(words)

    def pick(self, slot, bag, barred=()):
        left = [i for i, value in enumerate(bag.values) if value not in barred]
        i = left[self._next([bag.log2_of(i, barred) for i in left])]
        self.say(bag.forms[i])
        return bag.values[i]

    def choose(self, truth, legal):
        word = legal[self._next([-math.log2(len(legal))] * len(legal))]
        self.say(word)
        return word

    def fork(self, fork):
        return fork.branches[self._next(fork.log2)]


def every_text(steps):
    script = []
    while script is not None:
        teller = Every(script)
        for step in steps:
            step.run(teller)
        yield "".join(teller.parts), teller.log2p
        ways = teller.ways
        while ways and ways[-1][0] + 1 == ways[-1][1]:
            ways.pop()
        script = [way for way, _ in ways[:-1]] + [ways[-1][0] + 1] if ways else None


def read(steps, text):
    reader = Reader(text)
    for step in steps:
        step.run(reader)
    reader.finish()
    return reader


def test_all_texts_of_a_small_program_are_different_are_read_back_and_add_up_to_one():
    steps = Compiler(SMALL).compile(expand(TALE, {}))
    texts = list(every_text(steps))
    assert len({text for text, _ in texts}) == len(texts) > 300
    assert sum(2**log2p for _, log2p in texts) == pytest.approx(1, abs=1e-12)
    for text, log2p in texts:
        assert sum(pick.log2p for pick in read(steps, text).picks) == pytest.approx(log2p)


def test_one_text_in_detail():
    steps = Compiler(SMALL).compile(expand(TALE, {}))
    text = "Alice and Leo shared an orb, but Leo took it. She gladly hid her orbs. The end!"
    picks = read(steps, text).picks
    assert [pick.value for pick in picks][:4] == ["Alice", "and ", "Leo", "orb"]
    # A name of three, a fork, a name of two, the toy, name or pronoun, the adverb, two more forks.
    p = 1 / 3 * 2 / 3 * 1 / 2 * 7200 / (12000 + 7200 + 5143) * 1 / 2 * 6000 / 18000 * 1 / 2 * 1 / 2
    assert sum(pick.log2p for pick in picks) == pytest.approx(math.log2(p))
    for right, wrong, reason in (
        ("but Leo", "but Alice", "the thing is held by Leo, not Alice"),
        ("but Leo", "but Leon", "there is no Leon here"),
        ("She", "He", "'he' cannot be Alice"),
        ("her", "his", "'his' cannot be Alice"),
        ("orbs", "kites", "the wish was orb, not kite"),
        ("an orb", "a orb", "a word for a:toy=wish has to follow"),
        ("!", ".", "other words have to follow"),
    ):
        with pytest.raises(Broken) as caught:
            read(steps, text.replace(right, wrong, 1))
        assert reason in caught.value.reason
    with pytest.raises(Broken, match="'he' would be Leo here, not Leon"):
        read(steps, "Leon and Leo shared an orb, but Leo took it. He gladly hid his orbs. The end!")


@pytest.mark.parametrize(
    ("template", "complaint"),
    [
        ("[big|bigger] dog", "may stand here"),
        ("old[, very|], very old dog", "may stand here"),
        ("[{adv}|{toy}] it", "more than one branch"),
        ("[slowly ran|{adv} went] off", "may begin alike"),
        ("{toy}s", "a letter may follow"),
        ("{toy}[s|-like] thing", "a letter may follow"),
        ("{cow} ran", "no bag cow"),
        ("[one|two", "without"),
        ("one] two", "unbalanced"),
        ("<fly A> up", "no action"),
        ("{to y}", "no slot"),
    ],
)
def test_ambiguous_or_broken_templates_are_refused(template, complaint):
    with pytest.raises(TemplateError, match=complaint):
        Compiler(SMALL).compile(expand(template, {}))


def test_bags_with_two_readings_are_refused():
    with pytest.raises(ValueError, match="beginning"):
        Bag("toy", ["music", "music box"])
    with pytest.raises(ValueError, match="twice"):
        Bag("toy", ["kite", "kite"])


def test_each_word_of_each_bag_is_found_again_and_no_other():
    for bag in BAGS.values():
        for form in ("", "a", "s", "C"):
            formed = bag.in_form(form)
            for i, words in enumerate(formed.forms):
                for behind in (" ran", ",", ".", "'s", ""):
                    assert formed.find(f"x {words}{behind}", 2) == i


def test_draws_leave_out_what_is_barred_and_keep_the_proportions():
    bag = BAGS["toy"]
    barred = {bag.values[0], bag.values[5], bag.values[-1]}
    n = 40_000
    counts = [0] * len(bag)
    for k in range(n):
        i, log2p = bag.draw((k + 0.5) / n, barred)
        counts[i] += 1
        assert log2p == bag.log2_of(i, barred)
    for i, value in enumerate(bag.values):
        expected = 0 if value in barred else n * 2 ** bag.log2_of(i, barred)
        assert abs(counts[i] - expected) <= 1


def test_articles_and_plurals():
    assert [article(w) for w in ("otter", "hour", "unicycle", "useful", "ugly", "kite")] == [
        "an otter", "an hour", "a unicycle", "a useful", "an ugly", "a kite",
    ]  # fmt: skip
    assert [plural(w) for w in ("pony", "day", "box", "leaf", "tooth", "cherry tree", "goose")] == [
        "ponies", "days", "boxes", "leaves", "teeth", "cherry trees", "geese",
    ]  # fmt: skip
    assert not GIRLS & BOYS


def extent(steps):
    """The fewest and the most words that steps may write, counting blanks."""
    low = high = 0
    for step in steps:
        if isinstance(step, Fork):
            ends = [extent(branch.steps) for branch in step.branches]
            low, high = low + min(a for a, _ in ends), high + max(b for _, b in ends)
        elif hasattr(step, "words"):
            gaps = len(step.words.split()) - 1 + step.words[:1].isspace() + step.words[-1:].isspace()
            low, high = low + max(gaps, 0), high + max(gaps, 0)
        elif hasattr(step, "bag"):
            low, high = low + step.bag.lengths[0] - 1, high + step.bag.lengths[-1] - 1
    return low, high


def test_no_story_at_all_can_be_shorter_than_60_or_longer_than_250_words():
    """Not of those seen: of all that the program can tell. Blanks between words are counted, all paths considered."""
    low, high = extent(program())
    assert low >= 60
    assert high <= 250


def test_each_plot_can_be_told_on_its_own():
    for plot in ("lost", "present", "crossing", "trade", "quarrel", "contest", "rescue", "storm", "thief", "pet"):
        assert Compiler(BAGS).compile(expand(f"$opening ${plot}", PARTS))
