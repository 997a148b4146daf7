"""The embedded corpus as its users see it: stories, their probability, the judge, the preference pairs."""

import hashlib
import math
import re
from collections import Counter
from functools import cache

import pytest

from llm.corpus.stories import KINDS, NotAStory, bits, judge, pairs, parse, retell, story, tell
from llm.corpus.stories.__main__ import main

# Of the first hundred stories of seed 1. A change here changes every corpus, model and figure made from the stories.
GOLDEN = "fc00268beec8c4c07c641448e875530b672816f628e2ab536ae674deb83eac7e"


@pytest.fixture(scope="module")
def told():
    return [tell(7, index) for index in range(3000)]


def test_the_first_hundred_stories_are_the_ones_they_always_were():
    digest = hashlib.sha256("\x00".join(story(1, index) for index in range(100)).encode()).hexdigest()
    assert digest == GOLDEN


def test_a_text_gives_back_exactly_the_decisions_that_made_it(told):
    for original in told:
        assert parse(original.text) == original
        assert retell(original.picks) == original


def test_documents_do_not_depend_on_the_order_they_are_made_in():
    forwards = [story(3, index) for index in range(20)]
    backwards = [story(3, index) for index in reversed(range(20))]
    assert forwards == backwards[::-1]
    assert story(3, 0) != story(4, 0)


def test_twenty_thousand_stories_are_all_different_of_fitting_length_and_rich_in_words():
    texts = [story(1, index) for index in range(20_000)]
    assert len(set(texts)) == len(texts)
    lengths = [len(text.split()) for text in texts]
    assert min(lengths) >= 60
    assert max(lengths) <= 250
    assert 130 <= sum(lengths) / len(lengths) <= 170
    words = {word for text in texts for word in re.findall(r"[a-z]+(?:-[a-z]+)*", text.lower())}
    assert len(words) >= 1500
    assert all(text.isascii() and text == text.strip() and "  " not in text for text in texts[:2000])


def test_English_details(told):
    for text, _ in told:
        assert not re.search(r"\b[Aa] [aeio]", text), text
        assert not re.search(r"\b[Aa]n [^aeioh]", text.replace("an u", "")), text
        # Sentences begin with a capital letter; paragraphs are whole sentences.
        assert not re.search(r'[.!?]"? +"?[a-z](?<!" [a-z])', text), text
        assert all(part[-1] in '.!?"' for part in text.split("\n\n"))


def test_mean_bits_agree_with_the_entropy_along_the_paths(told):
    """The mean of -log2 p equals the mean of the decisions' entropies, within sampling error: so it only does if words
    are drawn as often as their stated probability says."""
    from llm.corpus.stories.source import program, random_of
    from llm.corpus.stories.teller import Writer

    @cache
    def of_bag(bag, barred):
        return bag.entropy(barred)

    class Meter(Writer):
        entropy = 0.0

        def pick(self, slot, bag, barred=()):
            self.entropy += of_bag(bag, frozenset(barred))
            return super().pick(slot, bag, barred)

        def choose(self, truth, legal):
            self.entropy += math.log2(len(legal))
            return super().choose(truth, legal)

        def fork(self, fork):
            self.entropy -= sum(2**p * p for p in fork.log2)
            return super().fork(fork)

    gaps = []
    for index in range(4000):
        meter = Meter(random_of("entropy", 1, index))
        for step in program():
            step.run(meter)
        gaps.append(-sum(pick.log2p for pick in meter.picks) - meter.entropy)
    mean = sum(gaps) / len(gaps)
    error = math.sqrt(sum((gap - mean) ** 2 for gap in gaps)) / len(gaps)
    assert abs(mean) < 4 * error
    assert error < 0.1  # of about 340 bits


def test_words_come_as_often_as_they_should(told):
    """A chi-square test of a large bag against its weights."""
    from llm.corpus.stories.words import BAGS

    bag = BAGS["adv"]
    seen = Counter(pick.value for one in told for pick in one.picks if pick.slot == "adv")
    n = sum(seen.values())
    chi = sum(
        (seen[value] - n * weight / bag.total) ** 2 / (n * weight / bag.total)
        for value, weight in zip(bag.values, bag.weights, strict=True)
    )
    freedom = len(bag) - 1
    assert abs(chi - freedom) < 5 * math.sqrt(2 * freedom)


def test_facts_to_remember_are_many_in_each_story(told):
    facts = [sum(pick.tracked for pick in one.picks) for one in told]
    assert min(facts) >= 8
    assert sum(facts) / len(facts) <= 30


# -- the judge ---------------------------------------------------------------------------------------------------------


def test_true_stories_are_sensible(told):
    for text, _ in told[:500]:
        verdict = judge(text)
        assert (verdict.sensible, verdict.complete, verdict.position) == (True, True, len(text))


def test_a_story_cut_off_anywhere_makes_sense_so_far():
    text = story(2, 0)
    for end in range(len(text)):
        verdict = judge(text[:end])
        assert (verdict.sensible, verdict.complete, verdict.kind, verdict.position) == (False, False, "unfinished", end)


def test_going_on_after_the_end_is_noticed():
    text = story(2, 1)
    verdict = judge(text + " And so on.")
    assert (verdict.sensible, verdict.complete, verdict.kind, verdict.position) == (False, True, "overlong", len(text))


def test_every_fact_put_wrong_is_found_where_it_stands(told):
    """Each place with a truth, each kind of mistake possible there, with a wrong word planted: the judge names the kind
    and the very place."""
    from llm.corpus.stories.pairs import _Breaker, _Watcher
    from llm.corpus.stories.source import random_of, run

    found = Counter()
    for index in range(60):
        watcher = _Watcher(random_of("corpus", 7, index))
        run(watcher)
        for place, kind, words, position in watcher.chances:
            breaker = _Breaker(random_of("corpus", 7, index), place, words[index % len(words)])
            run(breaker)
            verdict = judge(breaker.text)
            assert (verdict.sensible, verdict.kind, verdict.position) == (False, kind, position), breaker.text
            assert verdict.reason
            assert "\n" not in verdict.reason
            found[kind] += 1
    assert set(found) == set(KINDS)


def test_reasons_are_readable():
    text = story(1, 0)
    names = re.findall(r"\b(?:Ada|[A-Z][a-z]+)\b", text)
    with pytest.raises(NotAStory, match="not a sentence this story can have") as caught:
        bits(text.replace(names[-1], "the the"))
    assert caught.value.kind == "grammar"


@pytest.mark.parametrize("text", ["", "Once", "Hello world", "\n", '"', "Once upon a time.", "é" * 50])
def test_odd_texts_are_judged_without_ado(text):
    assert not judge(text).sensible


# -- preference pairs --------------------------------------------------------------------------------------------------


def test_pairs_are_true_stories_against_broken_ones():
    kinds = Counter()
    corpus = {story(5, index) for index in range(600)}
    for index in range(600):
        (one,) = pairs(5, index, at_most=1)
        assert [one] == pairs(5, index, at_most=1)
        whole = one.prompt + one.chosen
        assert judge(whole).sensible
        assert whole not in corpus
        verdict = judge(one.prompt + one.rejected)
        assert not verdict.sensible
        assert verdict.kind == one.kind
        assert verdict.position >= len(one.prompt)
        # The prompt is whole sentences, the mistake stands in the first sentence after it.
        assert one.prompt[-1] in '.!?"'
        assert one.chosen[0] in " \n"
        rest = (one.prompt + one.rejected)[len(one.prompt) : verdict.position]
        assert not re.search(r'[.!?]"?\s+["A-Z]\w', rest.lstrip()), rest
        kinds[one.kind] += 1
    assert set(kinds) == set(KINDS)


def test_a_story_gives_pairs_with_mistakes_in_different_places():
    for index in range(40):
        made = pairs(5, index, at_most=12)
        assert len(made) > 8
        places = [judge(one.prompt + one.rejected).position for one in made]
        assert places == sorted(set(places))
        assert len({one.prompt + one.chosen for one in made}) == 1
        assert len({one.kind for one in made}) > 4


def test_the_command_prints_stories_and_pairs(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["stories", "2", "--seed", "9"])
    main()
    assert " ".join(story(9, 1).split()) in " ".join(capsys.readouterr().out.split())
    monkeypatch.setattr("sys.argv", ["stories", "1", "--pairs"])
    main()
    assert "rejected" in capsys.readouterr().out
