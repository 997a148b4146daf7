"""OpenAI's encodings beyond GPT-2: our table against tiktoken's own, with small stand-ins for the large files."""

import base64
import hashlib
from pathlib import Path
from typing import Any

import pytest
import tiktoken
import tiktoken_ext.openai_public as theirs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llm.tokenizer import encodings, file_schema
from llm.tokenizer.byte_bpe import ByteBPE
from llm.tokenizer.config import ENCODINGS as NAMES
from llm.tokenizer.huggingface import Unknown, merges_of
from llm.tokenizer.tokenizer import Tokenizer

WORDS = [
    *(bytes([b]) for b in range(256)),
    b"th",
    b"the",
    b" the",
    b"  ",
    b"    ",
    b"'s",
    b"12",
    b"\r\n",
    b" \xd0",
    b"in",
]
RANKS = {token: rank for rank, token in enumerate(WORDS)}
LARGE = ["r50k_base", "p50k_base", "cl100k_base", "o200k_base"]


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[str, str]]:
    """tiktoken's constructors without their files; which address and hash each would have used."""
    used: dict[str, tuple[str, str]] = {}

    def load(address: str, expected_hash: str) -> dict[bytes, int]:
        used[address.removeprefix(encodings.ADDRESS)] = address, expected_hash
        return RANKS

    monkeypatch.setattr(theirs, "load_tiktoken_bpe", load)
    return used


def constructed(name: str) -> dict[str, Any]:
    return theirs.ENCODING_CONSTRUCTORS[name]()


def test_our_table_is_tiktokens(stand_ins: dict[str, tuple[str, str]]) -> None:
    assert list(encodings.ENCODINGS) == list(NAMES)
    for name in LARGE:
        stand_ins.clear()
        special_tokens = constructed(name)["special_tokens"]
        assert special_tokens == encodings.ENCODINGS[name].special_tokens
        assert {path: sha256 for path, (_, sha256) in stand_ins.items()} == encodings.ENCODINGS[name].files


@pytest.mark.parametrize("name", LARGE)
def test_words_are_cut_as_tiktoken_cuts(name: str, stand_ins: dict[str, tuple[str, str]], nasty: list[str]) -> None:
    pattern = constructed(name)["pat_str"]
    # With every run of signs a token, ids would hide nothing: compare how the words fall, through merges over borders.
    original = tiktoken.Encoding(
        "theirs", pat_str=pattern, mergeable_ranks=RANKS, special_tokens={"<|endoftext|>": 999}
    )
    tokens = tuple(RANKS)
    specials = {"<|endoftext|>": 999}
    ours = ByteBPE(encodings.Definition(tokens, merges_of(tokens), encodings.ENCODINGS[name].pattern, specials))

    @given(text=st.one_of(st.text(), st.text("tT he'sS12 3\r\n\t/éÉǅʰ́中.!\u00a0", max_size=40)))
    @settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def holds(text: str) -> None:
        assert ours.encode(text) == original.encode_ordinary(text)

    holds()
    for text in nasty:
        assert ours.encode(text) == original.encode_ordinary(text)


@pytest.mark.parametrize("name", LARGE)
def test_an_encoding_from_its_file(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nasty: list[str]
) -> None:
    lines = b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in RANKS.items() if rank != 260)
    ((path, _),) = encodings.ENCODINGS[name].files.items()
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    encodings.cache_file(encodings.ADDRESS + path).write_bytes(lines)
    known = encodings.ENCODINGS[name]._replace(files={path: hashlib.sha256(lines).hexdigest()})
    monkeypatch.setitem(encodings.ENCODINGS, name, known)
    # Token 260 is missing, as 50256 is among p50k_base's ordinary tokens.
    tokenizer = encodings.public(name)
    assert tokenizer.end_of_text == known.special_tokens["<|endoftext|>"]
    assert tokenizer.vocab_size == max(known.special_tokens.values()) + 1
    assert tokenizer.decode([260]) == "\ufffd"
    tokenizer.save(tmp_path / "folder")
    monkeypatch.setattr(file_schema, "UNUSED", max(known.special_tokens.values()))  # few tokens stand for many here
    again = Tokenizer.load(tmp_path / "folder")
    assert again.fingerprint == tokenizer.fingerprint
    assert again.encode_batch(nasty) == tokenizer.encode_batch(nasty)


@pytest.mark.parametrize("name", LARGE)
@pytest.mark.parametrize("unit", ["a", "A", " ", "\n", "中", "1", "!", "aB"])
def test_a_million_of_the_same(name: str, unit: str) -> None:
    tokens = tuple(RANKS)
    pattern = encodings.ENCODINGS[name].pattern
    ours = ByteBPE(encodings.Definition(tokens, merges_of(tokens), pattern, {"<|endoftext|>": 999}))
    text = unit * (1_000_000 // len(unit.encode()))
    assert ours.decode(ours.encode(text)) == text


def test_merges_follow_from_ranks_or_are_refused() -> None:
    assert merges_of([b"a", b"b", b"c", b"ab", b"abc", b"cab"]) == ((0, 1), (3, 2), (2, 3))
    with pytest.raises(Unknown, match="no two earlier tokens make token 3"):
        merges_of([b"a", b"b", b"c", b"abc"])
