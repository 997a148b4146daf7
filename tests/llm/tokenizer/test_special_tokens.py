"""Special tokens and tokens of text never share a name or an id; one that begins documents is kept apart."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import normalizers

from llm.corpus.stories.source import tell
from llm.errors import ConfigError, WordmillError
from llm.evaluate import bracketed
from llm.tokenizer.bulk import BulkEncoder, encode_batches
from llm.tokenizer.config import TokenizerConfig
from llm.tokenizer.foreign import read_file
from llm.tokenizer.tokenizer import END_OF_TEXT, Tokenizer
from llm.tokenizer.train import make
from llm.tokenizer.word_table import batch as in_memory

from .test_foreign import llama3, smollm2

CHAT = ["user: how are you?\nassistant: the user asks the assistant\n # \u00e9 user user assistant\n" * 3] * 20
CHAT += [tell(1, index).text for index in range(20)]
NASTY = [
    "user",
    "assistant",
    "#",
    "\u00e9",
    "\u0120",
    "\u0120user",
    "\u2581",
    "\u2581user",
    "<unk>",
    "<0x41>",
    "\\",
    '"',
]
NASTY += ["<s>", "a b", "\u00c3\u00a9", "<|reserved_0|>", "\U0001f600", "\x00", "\x1b[2J", "%", "e\u0301", "x" * 300]
TEXT = "user asks, assistant says # \u00e9\u2581 \u0120 <unk><0x41> a b \U0001f600\n"


def check_apart(kind: str, special_tokens: list[str], at: Path) -> None:
    """Either the settings are refused in one line, or text stays text and the saved tokenizer is the same one."""
    try:
        config = TokenizerConfig(kind, vocab_size=330, special_tokens=tuple(special_tokens))  # type: ignore[arg-type]
        ours = make(config, lambda: CHAT).tokenizer
    except WordmillError:
        return
    ours.save(at)
    again = Tokenizer.load(at)
    assert again.fingerprint == ours.fingerprint
    assert again.special_tokens == ours.special_tokens
    for tokenizer in (ours, again):
        for text in (TEXT, *special_tokens, "".join(special_tokens)):
            ids = tokenizer.encode(text)
            assert tokenizer.decode(ids) == text
            assert not set(ids) & set(tokenizer.special_tokens.values())
        for name, number in tokenizer.special_tokens.items():
            assert tokenizer.decode([number]) == name


@pytest.mark.parametrize("kind", ["bpe", "bytes", "sentencepiece"])
@pytest.mark.parametrize("name", NASTY)
def test_a_name_is_refused_or_kept_apart(kind: str, name: str, tmp_path: Path) -> None:
    check_apart(kind, [END_OF_TEXT, name], tmp_path)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.lists(st.sampled_from(NASTY) | st.text(min_size=1, max_size=6), unique=True, max_size=4))
def test_any_names_are_refused_or_kept_apart(names: list[str], tmp_path: Path) -> None:
    for kind in ("bpe", "bytes"):
        check_apart(kind, [END_OF_TEXT, *names], tmp_path / kind)


@pytest.mark.parametrize("name", ["user", "assistant"])
def test_a_token_that_text_teaches_is_refused_by_the_stage(name: str) -> None:
    config = TokenizerConfig("bpe", vocab_size=330, special_tokens=(END_OF_TEXT, name))
    with pytest.raises(WordmillError, match=rf"special_tokens: '{name}' is also a token .*such as <\|{name}\|>"):
        make(config, lambda: CHAT)


@pytest.mark.parametrize("name", ["#", "\u00e9", "\u0120"])
def test_a_name_of_a_byte_is_refused_by_the_settings(name: str) -> None:
    for kind in ("bpe", "bytes"):
        with pytest.raises(ConfigError, match=r"special_tokens: .* stands for a byte in tokenizer\.json"):
            TokenizerConfig(kind, special_tokens=(END_OF_TEXT, name))  # type: ignore[arg-type]


def edited(**change: Any) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(smollm2().to_str())
    content["added_tokens"][1].update(change)
    return content


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"id": 100}, "the id 100 belongs to"),
        ({"id": 10**8}, "has the ids 1 and 100000000"),
        ({"content": "<|new|>", "id": 10**8}, "ids reach to 100000000, though there are only"),
        ({"content": "<|new|>", "id": 2**40}, "added_tokens.1.id"),
        ({"content": "<|new|>", "id": -1}, "added_tokens.1.id"),
        ({"content": "<|new|>", "id": True}, "added_tokens.1.id"),
        ({"content": ""}, "added_tokens.1.content"),
        ({"content": "\u0120a", "id": None}, "is also what a merge makes of text"),
    ],
    ids=str,
)
def test_a_special_token_with_an_id_or_a_name_of_text_is_refused(
    change: dict[str, Any], says: str, tmp_path: Path
) -> None:
    content = edited(**change)
    if change.get("id", 0) is None:
        content["added_tokens"][1]["id"] = content["model"]["vocab"][change["content"]]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(WordmillError, match=says):
        read_file(tmp_path)


@pytest.mark.parametrize("sequence", [False, True])
def test_nfc_is_left_out_and_ids_of_nfc_text_are_theirs(sequence: bool, tmp_path: Path) -> None:
    theirs = smollm2()
    theirs.normalizer = normalizers.Sequence([normalizers.NFC()]) if sequence else normalizers.NFC()
    theirs.save(str(tmp_path / "tokenizer.json"))
    ours = read_file(tmp_path)
    theirs.encode_special_tokens = True
    for text in ("\u00e9t\u00e9 123 \u1e9b\u0323", "\uac00\u1100\uff21 \u0958", TEXT):
        normal = tokenizers.normalizers.NFC().normalize_str(text)
        assert ours.encode(normal) == theirs.encode(normal).ids
    assert ours.decode(ours.encode("e\u0301")) == "e\u0301"  # and other text still comes back


def test_llama_3_begins_documents_with_one_token_and_ends_them_with_another(tmp_path: Path) -> None:
    llama3().save(str(tmp_path / "tokenizer.json"))
    config = {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    ours = read_file(tmp_path)
    begin, end = (ours.special_tokens[name] for name in config.values())
    assert (ours.begin_of_text, ours.end_of_text) == (begin, end)
    assert bracketed(ours, "a").tolist() == [begin, *ours.encode("a"), end]
    documents = [b"one document", "zwei \u00fc".encode()]
    assert not BulkEncoder.can_encode(ours)
    (encoded,) = encode_batches([in_memory(documents)], ours, compiled=False)
    ids = [encoded.ids[start:stop].tolist() for start, stop in pairwise(encoded.ends)]
    assert ids == [[begin, *ours.encode(text.decode()), end] for text in documents]
    ours.save(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved/tokenizer_config.json").read_text())
    assert (saved["bos_token"], saved["eos_token"]) == ("<|begin_of_text|>", "<|end_of_text|>")
    again = Tokenizer.load(tmp_path / "saved")
    assert (again.fingerprint, again.begin_of_text, again.end_of_text) == (ours.fingerprint, begin, end)
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "saved/tokenizer.json"))
    assert library.encode("a b").ids == [begin, *ours.encode("a b")]
    assert np.array_equal(again.encode_array("x y"), ours.encode_array("x y"))
