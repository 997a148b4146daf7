"""GPT-2's tokenizer: known ids, and those of tiktoken and Hugging Face's libraries on text that tries to break it."""

import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import tiktoken
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.errors import WordmillError
from llm.tokenizer import encodings
from llm.tokenizer.config import TokenizerConfig
from llm.tokenizer.foreign import read_file
from llm.tokenizer.tokenizer import Tokenizer
from llm.tokenizer.train import make

# Published with the model, or worked out with its own code, by many.
KNOWN = {
    "Hello world": [15496, 995],
    "Hello, world!": [15496, 11, 995, 0],
    " ": [220],
    "\n": [198],
    "\n\n": [628],
    "The quick brown fox jumps over the lazy dog.": [464, 2068, 7586, 21831, 18045, 625, 262, 16931, 3290, 13],
    "<|endoftext|>": [27, 91, 437, 1659, 5239, 91, 29],
}

_loaded: dict[Path, tuple[Tokenizer, tiktoken.Encoding]] = {}


@pytest.fixture
def both(
    shared_data: Path, gpt2_cache: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch
) -> tuple[Tokenizer, tiktoken.Encoding]:
    """Ours, by `kind: tiktoken`, and tiktoken's own."""
    files = shared_data / "gpt2"
    if files not in _loaded:
        monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(gpt2_cache(files)))
        ours = make(TokenizerConfig("tiktoken", encoding="gpt2"), lambda: []).tokenizer
        _loaded[files] = ours, tiktoken.get_encoding("gpt2")
    return _loaded[files]


def test_known_ids(both: tuple[Tokenizer, tiktoken.Encoding]) -> None:
    ours, _ = both
    assert {text: ours.encode(text) for text in KNOWN} == KNOWN
    assert ours.end_of_text == 50256
    assert ours.vocab_size == 50257
    assert ours.decode([50256]) == "<|endoftext|>"


def test_ids_are_tiktokens(both: tuple[Tokenizer, tiktoken.Encoding], nasty: list[str], shared_data: Path) -> None:
    ours, theirs = both
    for text in [*nasty, (shared_data / "shakespeare" / "input.txt").read_text()[:300_000]]:
        assert ours.encode(text) == theirs.encode_ordinary(text)
        assert ours.decode(ours.encode(text)) == text


def test_ids_are_tiktokens_on_any_text(both: tuple[Tokenizer, tiktoken.Encoding]) -> None:
    ours, theirs = both

    @given(text=st.text())
    @settings(deadline=None, max_examples=300)
    def holds(text: str) -> None:
        assert ours.encode(text) == theirs.encode_ordinary(text)

    holds()


@pytest.mark.parametrize("unit", ["a", " ", "\n", "=", "\0", "😀", "粉", "\t "])
def test_a_million_of_the_same(both: tuple[Tokenizer, tiktoken.Encoding], unit: str) -> None:
    ours, _ = both
    text = unit * (1_000_000 // len(unit.encode()))
    began = time.process_time()
    ids = ours.encode(text)
    assert time.process_time() - began < 5
    assert ours.decode(ids) == text


def test_lone_surrogates_are_refused(both: tuple[Tokenizer, tiktoken.Encoding]) -> None:
    with pytest.raises(WordmillError, match=r"U\+DFFF at character 2"):
        both[0].encode("ab\udfff")


def test_the_files_give_the_same(
    both: tuple[Tokenizer, tiktoken.Encoding], shared_data: Path, tmp_path: Path, nasty: list[str]
) -> None:
    ours, _ = both
    path = shared_data / "gpt2" / "vocab.bpe"
    made = make(TokenizerConfig("file", path=str(path)), lambda: [])
    assert made.tokenizer.fingerprint == ours.fingerprint
    assert made.source["sha256"]["vocab.bpe"].startswith("1ce1664773c50f3e")
    assert read_file(path.parent).fingerprint == ours.fingerprint

    ours.save(tmp_path)
    assert Tokenizer.load(tmp_path).fingerprint == ours.fingerprint
    # What we write, and what `tokenizers` itself makes of OpenAI's files.
    written = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    model = tokenizers.models.BPE.from_file(str(shared_data / "gpt2/encoder.json"), str(path))
    direct = tokenizers.Tokenizer(model)
    direct.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    written.encode_special_tokens = True
    for text in nasty:
        assert written.encode(text).ids == direct.encode(text).ids == ours.encode(text)


def test_transformers_gives_the_same(
    both: tuple[Tokenizer, tiktoken.Encoding], shared_data: Path, tmp_path: Path, nasty: list[str]
) -> None:
    from transformers import AutoTokenizer

    ours, _ = both
    ours.save(tmp_path)
    opened = AutoTokenizer.from_pretrained(tmp_path)
    assert (opened.eos_token_id, len(opened)) == (50256, 50257)
    for text in nasty:
        assert opened.encode(text, split_special_tokens=True) == ours.encode(text)


def test_without_file_and_network_one_line_within_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(encodings, "PATIENCE", 0.5)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections and never answers
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{silent.getsockname()[1]}")
        began = time.monotonic()
        with pytest.raises(WordmillError, match=r"o200k_base is not on this machine .* TIKTOKEN_CACHE_DIR") as caught:
            make(TokenizerConfig("tiktoken", encoding="o200k_base"), lambda: [])
        assert time.monotonic() - began < 100  # the library alone would wait for ever
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_damaged_file_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    for path in encodings.ENCODINGS["cl100k_base"].files:
        encodings.cache_file(encodings.ADDRESS + path).write_bytes(b"IQ== 0\n")
    with pytest.raises(WordmillError, match="cl100k_base is not on this machine"):
        encodings.public("cl100k_base")
