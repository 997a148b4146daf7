"""What every kind of tokenizer promises, kind by kind."""

import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llm.errors import ConfigError, WordmillError
from llm.tokenizer.compare import measure, table
from llm.tokenizer.config import VARIANTS, TokenizerConfig
from llm.tokenizer.tokenizer import Tokenizer, files
from llm.tokenizer.train import KINDS, make

SPECIALS = ["<|endoftext|>", "<|im_start|>"]


def test_any_text_comes_back(kind: Tokenizer, nasty: list[str]) -> None:
    for text in nasty:
        ids = kind.encode(text)
        assert kind.decode(ids) == text
        assert kind.decode_bytes(ids) == text.encode()
        assert kind.encode_array(text).dtype == np.uint32
        assert kind.encode_array(text).tolist() == ids
        assert all(0 <= number < kind.vocab_size for number in ids)
        assert not set(ids) & set(kind.special_tokens.values())
    assert kind.encode_batch(nasty) == [kind.encode(text) for text in nasty]


@given(text=st.text())
@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_comes_back_whatever_it_is(kind: Tokenizer, text: str) -> None:
    assert kind.decode(kind.encode(text)) == text


def test_special_tokens_come_by_id_only(kind: Tokenizer) -> None:
    end = kind.end_of_text
    assert kind.special_tokens["<|endoftext|>"] == end
    assert set(kind.special_tokens) >= set(SPECIALS)
    assert kind.decode([*kind.encode("a"), end]) == "a<|endoftext|>"
    assert len(kind.encode("<|endoftext|>")) > 1


@pytest.mark.parametrize("unit", ["a", " ", "\n", "=", "\u2581", "\0", "😀", "あ", "ab ", "\t "])
def test_a_million_of_the_same(kind: Tokenizer, unit: str) -> None:
    text = unit * (1_000_000 // len(unit.encode())) + "x"
    began = time.process_time()
    ids = kind.encode(text)
    assert time.process_time() - began < 5
    assert kind.decode(ids) == text


def test_lone_surrogates_are_refused_with_one_line(kind: Tokenizer) -> None:
    for surrogate in ("\ud800", "\udbff", "\udc00", "\udfff"):
        with pytest.raises(WordmillError, match=r"lone surrogate U\+D.* at character 3") as caught:
            kind.encode("abc" + surrogate)
        assert "\n" not in str(caught.value)


def test_folders_load_and_repeat_to_the_byte(kind: Tokenizer, nasty: list[str], tmp_path: Path) -> None:
    kind.save(tmp_path / "one")
    again = Tokenizer.load(tmp_path / "one")
    again.save(tmp_path / "two")
    assert type(again) is type(kind)
    assert again.fingerprint == kind.fingerprint
    assert (again.vocab_size, again.end_of_text) == (kind.vocab_size, kind.end_of_text)
    assert again.special_tokens == kind.special_tokens
    assert again.encode_batch(nasty) == kind.encode_batch(nasty)
    assert files(tmp_path / "one") == files(tmp_path / "two")
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == sorted(files(tmp_path / "one"))
    for name in files(tmp_path / "one"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_transformers_opens_the_folder(kind: Tokenizer, nasty: list[str], tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    kind.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.eos_token_id == kind.end_of_text
    assert len(theirs) == kind.vocab_size
    for text in nasty:
        if "<" in text or (type(kind).__name__ == "SentencePiece" and "\u2581" in text):
            continue  # they make special tokens of text, and spaces of U+2581
        ids = theirs.encode(text, add_special_tokens=False)
        assert ids == kind.encode(text), text
        assert theirs.decode(ids) == text


def test_a_folder_holds_one_kind_at_a_time(small_kinds: dict[str, Tokenizer], tmp_path: Path) -> None:
    for name in ("sentencepiece:unigram", "bpe", "sentencepiece:bpe", "bytes"):
        small_kinds[name].save(tmp_path)
        assert Tokenizer.load(tmp_path).fingerprint == small_kinds[name].fingerprint


def test_kinds_differ(small_kinds: dict[str, Tokenizer]) -> None:
    assert len({tokenizer.fingerprint for tokenizer in small_kinds.values()}) == len(small_kinds)


def test_bytes_are_bytes(small_kinds: dict[str, Tokenizer]) -> None:
    tokenizer = small_kinds["bytes"]
    assert tokenizer.encode("aé\n") == list("aé\n".encode())
    assert tokenizer.end_of_text == 256
    assert tokenizer.vocab_size == 256 + len(SPECIALS)


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(WordmillError, match="no tokenizer there"):
        files(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(WordmillError, match="no tokenizer there"):
        files(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"nothing of the kind")
    with pytest.raises(WordmillError, match=r"tokenizer.model: not a SentencePiece model"):
        Tokenizer.load(tmp_path)


def test_comparison(small_kinds: dict[str, Tokenizer]) -> None:
    texts = ["ab 粉", "c"]  # 6 + 1 bytes
    row, speed = measure("bytes", small_kinds["bytes"], texts)
    assert (row.bytes_per_token, row.unknown, row.parts, row.lossy) == (1.0, 0, 3, 0)
    assert row.vocabulary_used == 7 / 258
    assert speed > 0
    whole, _ = measure("sentencepiece", small_kinds["sentencepiece:bpe"], texts)
    assert (whole.unknown, whole.parts, whole.lossy) == (0, 0, 0)
    lines = table([row, whole], [speed, 1.25]).splitlines()
    assert len(lines) == 3
    assert lines[2].split() == [
        "sentencepiece",
        "390",
        f"{whole.bytes_per_token:.3f}",
        "0",
        "0",
        f"{whole.vocabulary_used:.1%}",
        "exact",
        "1.2",
    ]


def test_every_kind_has_its_name_and_variant() -> None:
    assert set(KINDS) == set(VARIANTS)
    config = TokenizerConfig()
    for name in ("bpe:gpt2", "sentencepiece:unigram", "tiktoken:o200k_base", "bytes", "file:some/tokenizer.json"):
        assert config.variant(name).name == name


@pytest.mark.parametrize(
    ("change", "field", "says"),
    [
        ({"encoding": "gpt-2"}, "encoding", "did you mean 'gpt2'"),
        ({"encoding": "cl100k"}, "encoding", "did you mean 'cl100k_base'"),
        ({"encoding": "zzz"}, "encoding", "there are gpt2, r50k_base"),
        ({"kind": "file"}, "path", "name a tokenizer.json"),
        ({"kind": "sentencepiece", "vocab_size": 257}, "vocab_size", "use 258 or more"),
        ({"compare": ("wordpiece",)}, "compare", "'wordpiece' names no kind of tokenizer; there are bpe"),
        ({"compare": ("bytes:utf8",)}, "compare", "bytes takes nothing"),
        ({"compare": ("sentencepiece:word",)}, "compare", "sentencepiece takes one of bpe, unigram"),
        ({"compare": ("tiktoken:gpt3",)}, "compare", "tiktoken takes one of gpt2"),
        ({"compare": ("file",)}, "compare", "'file': path: empty"),
        ({"kind": "bytes", "vocab_size": 9, "compare": ("bpe",)}, "compare", "'bpe': vocab_size: 9 has no room"),
        (
            {"reserve_rest": True, "special_tokens": ("<|endoftext|>", "<|reserved_0|>")},
            "special_tokens",
            "use other names",
        ),
    ],
)
def test_wrong_settings(change: dict[str, object], field: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        TokenizerConfig(**change)  # type: ignore[arg-type]
    assert caught.value.field == field
    assert says in caught.value.problem
    assert "\n" not in str(caught.value)


def test_a_sample_is_what_sentencepiece_is_trained_on() -> None:
    texts = [f"document {number} about the mill and the wheel\n" for number in range(2000)]
    config = TokenizerConfig("sentencepiece", vocab_size=300, max_train_bytes=20_000)
    made = make(config, lambda: texts)
    assert 15_000 < made.source["bytes"] <= 20_000
