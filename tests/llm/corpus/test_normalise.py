import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm.corpus import normalise as n

ANY_TEXT = st.text(st.characters(), max_size=200)  # lone surrogates included
NASTY = st.text(st.sampled_from("a \n\r\0\ufeff\u0301e\ud800\udc00\ufffd\u1100\u1161"), max_size=30)


@given(ANY_TEXT | NASTY)
def test_normal_form_is_a_fixed_point(text: str) -> None:
    once = n.normalise(text)
    twice = n.normalise(once.text.decode())
    assert twice.text == once.text
    assert twice.replaced == 0
    assert once.characters == len(once.text.decode())


@given(ANY_TEXT | NASTY)
def test_normal_form_is_nfc_with_plain_line_ends(text: str) -> None:
    normal = n.normalise(text).text.decode()
    assert unicodedata.is_normalized("NFC", normal)
    assert "\r" not in normal
    assert not normal.startswith("\ufeff")
    assert not normal.endswith("\0")


@given(st.text(st.characters(codec="ascii", exclude_characters="\r\0"), max_size=200))
def test_nothing_else_is_touched(text: str) -> None:
    assert n.normalise(text) == (text.encode(), len(text), 0)


@pytest.mark.parametrize(
    ("text", "normal", "replaced"),
    [
        ("\ufeffa\r\nb\rc\n\0\0", "a\nb\nc\n", 0),
        ("e\u0301", "é", 0),
        ("\ud83d\ude00", "😀", 0),  # a pair of surrogates is a character
        ("x\ud83dy\ufffd", "x\ufffdy\ufffd", 1),
        ("a\ufeffb\0c", "a\ufeffb\0c", 0),
    ],
)
def test_examples(text: str, normal: str, replaced: int) -> None:
    assert n.normalise(text) == (normal.encode(), len(normal), replaced)


@given(st.binary(max_size=60) | st.text(max_size=20).map(str.encode))
def test_decode_counts_what_python_replaces(data: bytes) -> None:
    text, replaced = n.decode(data)
    assert text == data.decode("utf-8", "replace")
    spots = []

    def handler(error: UnicodeError) -> tuple[str, int]:
        assert isinstance(error, UnicodeDecodeError)
        spots.append(error.start)
        return "?", error.end

    import codecs

    codecs.register_error("count-spots", handler)
    data.decode("utf-8", "count-spots")
    assert replaced == len(spots)


def test_split_shares_are_met() -> None:
    sides = [n.split_of(n.digest(str(i).encode()), 0.1, 0.05) for i in range(20_000)]
    for split, share in (("train", 0.85), ("val", 0.1), ("test", 0.05)):
        assert abs(sides.count(split) / len(sides) - share) < 4 * (share * (1 - share) / len(sides)) ** 0.5


def test_a_larger_share_only_moves_documents_out_of_train() -> None:
    digests = [n.digest(str(i).encode()) for i in range(2_000)]
    small = {d for d in digests if n.split_of(d, 0.05, 0.05) == "test"}
    large = {d for d in digests if n.split_of(d, 0.05, 0.1) == "test"}
    assert small < large


@given(st.text(st.sampled_from("ab \n"), min_size=1, max_size=400), st.floats(0.01, 0.4), st.floats(0.01, 0.4))
def test_ranges_join_to_the_text(text: str, val: float, test: float) -> None:
    ranges = n.ranges(text, val, test)
    assert list(ranges) == ["train", "val", "test"]
    assert "".join(ranges.values()) == text


def test_ranges_cut_at_line_ends_near_the_shares() -> None:
    text = "".join(f"line {i}\n" for i in range(10_000))
    ranges = n.ranges(text, 0.1, 0.05)
    assert all(part.endswith("\n") for part in ranges.values())
    for split, share in (("train", 0.85), ("val", 0.1), ("test", 0.05)):
        assert abs(len(ranges[split]) / len(text) - share) < 0.001


def test_a_cut_does_not_stray_where_there_are_no_lines() -> None:
    ranges = n.ranges("\n" + "x" * 1_000_000, 0.1, 0.1)
    assert [round(len(part) / 1e6, 3) for part in ranges.values()] == [0.8, 0.1, 0.1]


@given(st.text(st.sampled_from("ab \n"), max_size=400), st.integers(1, 50))
def test_pieces_join_to_the_text(text: str, size: int) -> None:
    assert "".join(n.pieces(text, size)) == text
