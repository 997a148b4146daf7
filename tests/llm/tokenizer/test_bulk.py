"""Encoding by compiled code: the ids of the tokenizer's own library, on any text and any number of threads."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.tokenizer import bulk
from llm.tokenizer.bulk import BulkEncoder, encode_batches
from llm.tokenizer.byte_bpe import ByteBPE
from llm.tokenizer.encodings import public
from llm.tokenizer.tokenizer import Tokenizer
from llm.tokenizer.word_table import batch
from llm.tokenizer.words import joined


def same(texts: list[str], tokenizer: Tokenizer, threads: int = 2) -> bool:
    """Whether both ways give the same ids, document by document, and these decode to the texts."""
    assert BulkEncoder.can_encode(tokenizer)
    ways = [list(encode_batches(joined(texts), tokenizer, compiled, threads)) for compiled in (True, False)]
    for ours, theirs in zip(*ways, strict=True):
        np.testing.assert_array_equal(ours.ends, theirs.ends)
        np.testing.assert_array_equal(ours.ids, theirs.ids)
        np.testing.assert_array_equal(ours.text_bytes, theirs.text_bytes)
    return True


@pytest.mark.parametrize("name", ["bpe", "bpe:gpt2", "bytes"])
def test_nasty_text(name: str, small_kinds: dict[str, Tokenizer], nasty: list[str]) -> None:
    tokenizer = small_kinds[name]
    assert same([*nasty, "é" * 70, "x" * 500, " " * 300 + "y", "ab" * 5000], tokenizer)


@given(text=st.text(st.sampled_from("aehtT'sſ 1²,.\n\r\té字\U0001f33e"), max_size=60))
@settings(max_examples=200, deadline=None)
def test_random_text(text: str, small_kinds: dict[str, Tokenizer]) -> None:
    assert same([text, text + "the", ""], small_kinds["bpe"], threads=1)


def test_gpt2_on_shakespeare(
    shared_data: Path, gpt2_cache: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(gpt2_cache(shared_data / "gpt2")))
    text = (shared_data / "shakespeare" / "input.txt").read_text()
    pieces = [text[at : at + 5000] for at in range(0, len(text), 5000)]
    assert same([*pieces, "Grüße, мельник 粉屋は 🌾 naïve café don't DON'T 12345"], public("gpt2"))


def test_a_full_table_is_begun_anew(small_kinds: dict[str, Tokenizer], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "MOST_WORDS", 100)
    tokenizer = small_kinds["bpe"]
    assert isinstance(tokenizer, ByteBPE)
    encoder = BulkEncoder(tokenizer)
    for round_ in range(5):
        text = " ".join(f"w{round_}x{number}" for number in range(150))
        ids = encoder.encode(batch([text.encode()])).ids
        assert ids[:-1].tolist() == tokenizer.encode(text)
    assert len(encoder.table) < 5 * 150


def test_what_compiled_code_cannot_encode(small_kinds: dict[str, Tokenizer]) -> None:
    assert not BulkEncoder.can_encode(small_kinds["sentencepiece:bpe"])
