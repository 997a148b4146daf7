"""N-gram overlap against sets of tuples, on small worlds where much repeats, however the training text is cut."""

import re
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm import contamination as module
from llm.contamination import contamination

text = st.lists(st.sampled_from(["a", "B", "b", "Ça", "mill", "don't", ",", "\n", "…", "9"]), max_size=30).map(" ".join)


def plain(held_out: Sequence[str], train: Sequence[str], n: int) -> dict[str, float]:
    """The figures by sets of tuples of words."""

    def grams(text: str) -> list[tuple[str, ...]]:
        words = re.findall(r"\w+", text.lower())
        return [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]

    seen = {gram for document in train for gram in grams(document)}
    hits = [[gram in seen for gram in grams(document)] for document in held_out if grams(document)]
    found = {"documents": float(len(hits)), "ngrams": float(sum(map(len, hits)))}
    if hits:
        found["documents_hit"] = float(np.mean([any(document) for document in hits]))
        found["documents_mostly"] = float(np.mean([np.mean(document) >= 0.7 for document in hits]))
        found["ngrams_hit"] = sum(map(sum, hits)) / found["ngrams"]
    return found


@settings(max_examples=60)
@given(val=st.lists(text, min_size=1, max_size=4), train=st.lists(text, max_size=6), small=st.booleans())
def test_overlap_is_that_of_sets_of_words(val: list[str], train: list[str], small: bool) -> None:
    with pytest.MonkeyPatch.context() as patch:
        if small:  # so that documents are read in pieces, and n-grams stretch over them
            patch.setattr(module, "PIECE", 7)
            patch.setattr(module, "AT_ONCE", 5)
        found = contamination({"val": val, "test": val[:1]}, iter(train), (1, 2, 3, 5))
    for n in (1, 2, 3, 5):
        assert found["val"][n] == pytest.approx(plain(val, train, n))
        assert found["test"][n] == pytest.approx(plain(val[:1], train, n))


def test_a_copied_passage_is_found_and_no_run_reaches_across_documents() -> None:
    words = [f"w{number}" for number in range(40)]
    passage = " ".join(words[10:23])  # 13 words
    train = [f"Something else; then: “{passage.upper()}”!", " ".join(words[:5]), " ".join(words[5:10])]
    found = contamination({"test": [" ".join(words), "nothing of it"]}, train, (8, 13))["test"]
    assert found[13] == {
        **{"documents": 1, "ngrams": 28, "documents_hit": 1, "documents_mostly": 0},
        **{"ngrams_hit": pytest.approx(1 / 28)},
    }
    assert found[8]["ngrams_hit"] == pytest.approx(6 / 33)
    assert contamination({"test": [" ".join(words[:10])]}, train[1:], (6,))["test"][6]["ngrams_hit"] == 0


def test_a_training_text_of_any_length_is_held_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PIECE", 1000)
    monkeypatch.setattr(module, "AT_ONCE", 500)
    stretches = list(module._stretches(["a b c d " * 50_000, "a"] * 2, {"a": 1, "b": 2, "c": 3, "d": 4}, overlap=12))
    assert max(map(len, stretches)) <= 500 + 1000 // 2
    assert sum(map(len, stretches)) - 12 * (len(stretches) - 1) == 2 * (200_000 + 1) + 4  # and a 0 before each text


def test_no_lengths_mean_no_check_and_no_reading() -> None:
    def never() -> str:
        raise AssertionError

    assert contamination({"test": ["a"]}, (never() for _ in range(1)), ()) == {"test": {}}
