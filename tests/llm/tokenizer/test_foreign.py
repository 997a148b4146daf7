"""tokenizer.json files from elsewhere: the ids of Hugging Face's library, or one line on what is not supported."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers

from llm.errors import WordmillError
from llm.tokenizer.byte_bpe import ByteBPE
from llm.tokenizer.config import TokenizerConfig
from llm.tokenizer.foreign import HuggingFaceBPE, read_file
from llm.tokenizer.patterns import CL100K
from llm.tokenizer.tokenizer import Tokenizer
from llm.tokenizer.train import make

TEXTS = [
    "The 120 wheels turned 34,567 times; don't  ask\twhy.\r\n\n",
    "Müller, мельник 粉屋 🌾🌾 again and again\n",
] * 9


def trained(pre_tokenizer: Any, specials: list[str] | None = None) -> tokenizers.Tokenizer:
    """A byte-level BPE by Hugging Face's own trainer; special tokens come first, as in SmolLM2's."""
    theirs = tokenizers.Tokenizer(models.BPE())
    theirs.pre_tokenizer = pre_tokenizer
    theirs.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=310,
        show_progress=False,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"] if specials is None else specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    theirs.train_from_iterator(TEXTS, trainer)
    return theirs


def smollm2() -> tokenizers.Tokenizer:
    """Single digits, then GPT-2's words."""
    steps = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    return trained(pre_tokenizers.Sequence(steps))


def llama3() -> tokenizers.Tokenizer:
    """GPT-4's words, a token put in front by a post-processor, another name for the end of text."""
    split = pre_tokenizers.Split(tokenizers.Regex(CL100K), "isolated")
    steps = [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    theirs = trained(pre_tokenizers.Sequence(steps), ["<|begin_of_text|>", "<|end_of_text|>"])
    theirs.post_processor = processors.TemplateProcessing(
        "<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", 0)]
    )
    return theirs


def test_single_digits_as_in_smollm2(tmp_path: Path, nasty: list[str]) -> None:
    theirs = smollm2()
    theirs.save(str(tmp_path / "tokenizer.json"))
    ours = make(TokenizerConfig("file", path=str(tmp_path / "tokenizer.json")), lambda: []).tokenizer
    assert isinstance(ours, HuggingFaceBPE)  # no single pattern of ours cuts like that
    assert (ours.end_of_text, ours.vocab_size) == (0, 310)
    theirs.encode_special_tokens = True
    for text in [*nasty, *TEXTS]:
        assert ours.encode(text) == theirs.encode(text).ids
        assert ours.decode(ours.encode(text)) == text
        assert not set(ours.encode(text)) & {0, 1, 2}
    digits = [ours.tokens[number] for number in ours.encode("1234")]
    assert digits == [b"1", b"2", b"3", b"4"]

    ours.save(tmp_path / "one")
    again = Tokenizer.load(tmp_path / "one")
    again.save(tmp_path / "two")
    assert (again.fingerprint, again.end_of_text) == (ours.fingerprint, 0)
    assert (tmp_path / "one/tokenizer.json").read_bytes() == (tmp_path / "two/tokenizer.json").read_bytes()


@given(text=st.text())
@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_comes_back(smollm2_like: Tokenizer, text: str) -> None:
    assert smollm2_like.decode(smollm2_like.encode(text)) == text


@pytest.fixture(scope="module")
def smollm2_like(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("smollm2") / "tokenizer.json"
    smollm2().save(str(path))
    return read_file(path)


@pytest.mark.parametrize("unit", ["a", " ", "7"])
def test_a_million_of_the_same(smollm2_like: Tokenizer, unit: str) -> None:
    text = unit * 1_000_000
    assert smollm2_like.decode(smollm2_like.encode(text)) == text
    with pytest.raises(WordmillError, match="lone surrogate"):
        smollm2_like.encode("\udc00")


def test_gpt4s_words_are_encoded_by_tiktoken(tmp_path: Path, nasty: list[str]) -> None:
    theirs = llama3()
    theirs.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(WordmillError, match=r"no special token <\|endoftext\|>.*\(<\|begin_of_text\|>, <\|end_of"):
        read_file(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<|end_of_text|>"}}))
    ours = read_file(tmp_path)
    assert isinstance(ours, ByteBPE)
    assert ours.end_of_text == 1
    theirs.encode_special_tokens = True
    for text in [*nasty, *TEXTS]:
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False).ids
    ours.save(tmp_path / "saved")
    again = Tokenizer.load(tmp_path / "saved")
    assert (again.fingerprint, again.end_of_text) == (ours.fingerprint, 1)


def test_merges_in_another_order_are_left_to_the_library(tmp_path: Path) -> None:
    content = json.loads(llama3().to_str())
    content["model"]["merges"].reverse()
    content["added_tokens"][0]["content"] = "<|endoftext|>"
    content["model"]["vocab"]["<|endoftext|>"] = content["model"]["vocab"].pop("<|begin_of_text|>")
    content["post_processor"] = None
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    ours = read_file(tmp_path)
    assert isinstance(ours, HuggingFaceBPE)
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert ours.encode(TEXTS[0]) == theirs.encode(TEXTS[0]).ids


def test_added_tokens_that_are_text_stay_text(tmp_path: Path) -> None:
    theirs = smollm2()
    theirs.add_tokens([AddedToken("wheels turned", normalized=False)])
    theirs.save(str(tmp_path / "tokenizer.json"))
    ours = read_file(tmp_path)
    ids = ours.encode("The wheels turned")
    assert ids[-1] == 310
    assert ours.tokens[310] == b"wheels turned"
    assert ours.decode(ids) == "The wheels turned"


def edited(change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(smollm2().to_str())
    change(content)
    return content


def named(kind: Any) -> dict[str, Any]:
    return json.loads(kind.__getstate__())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda c: c["model"].update(type="Unigram"), "a model of type 'Unigram' is not supported"),
        (lambda c: c["model"].update(dropout=0.1), "model.dropout 0.1 is not supported"),
        (lambda c: c["model"].update(byte_fallback=True), "model.byte_fallback True is not supported"),
        (lambda c: c["model"].update(end_of_word_suffix="</w>"), "model.end_of_word_suffix '</w>' is not supported"),
        (lambda c: c.update(normalizer=named(normalizers.NFKC())), "the normalizer 'NFKC' is not supported"),
        (lambda c: c.update(pre_tokenizer=named(pre_tokenizers.Metaspace())), "the pre-tokenizer 'Metaspace' is not"),
        (lambda c: c.update(pre_tokenizer=named(pre_tokenizers.Whitespace())), "the pre-tokenizer 'Whitespace' is not"),
        (lambda c: c.update(pre_tokenizer=None), "turns nothing into bytes"),
        (lambda c: c.update(pre_tokenizer=named(pre_tokenizers.ByteLevel())), "add_prefix_space is not supported"),
        (lambda c: c.update(pre_tokenizer=named(pre_tokenizers.Digits())), "turns nothing into bytes"),
        (lambda c: c["model"]["vocab"].pop("Ġ"), "not byte-level: 1 of the 256 bytes are no tokens"),
        (lambda c: c["model"]["vocab"].update({"粉": 310}), "not byte-level: the token '粉' is not written in bytes"),
        (lambda c: c["added_tokens"][1].update(special=False, lstrip=True), "'<|im_start|>' swallows the spaces"),
        (lambda c: c["added_tokens"].pop(0), "no special token <|endoftext|>, and no tokenizer_config.json"),
        (lambda c: c["model"]["merges"].append(["zz", "qq"]), "does not take it: Token `zz` out of vocabulary"),
        (lambda c: c.pop("model"), "it names no model"),
    ],
)
def test_what_is_not_supported_is_named(change: Callable[[dict[str, Any]], object], says: str, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(edited(change)))
    with pytest.raises(WordmillError) as caught:
        make(TokenizerConfig("file", path=str(path)), lambda: [])
    assert str(caught.value).startswith(f"tokenizer.path: {path}: ")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("names", "asked", "says"),
    [
        ([], "nothing/tokenizer.json", "nothing/tokenizer.json: no such file"),
        ([], "", "holds no tokenizer.json, nor vocab.bpe nor merges.txt"),
        (["vocab.bpe"], "vocab.bpe", "encoder.json: no such file; it belongs beside vocab.bpe"),
        (["merges.txt"], "", "vocab.json: no such file; it belongs beside merges.txt"),
        (["spm.model"], "spm.model", "neither a tokenizer.json nor one of vocab.bpe, merges.txt"),
        (["vocab.bpe", "encoder.json"], "", "not a byte-level BPE as GPT-2's is"),
    ],
)
def test_missing_and_odd_files(names: list[str], asked: str, says: str, tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).write_text("{}")
    with pytest.raises(WordmillError) as caught:
        make(TokenizerConfig("file", path=str(tmp_path / asked)), lambda: [])
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_merge_lists_and_ids_must_agree(tmp_path: Path) -> None:
    content = json.loads(trained(pre_tokenizers.ByteLevel(add_prefix_space=False)).to_str())["model"]
    vocab = {name: number for name, number in content["vocab"].items() if not name.startswith("<|im")}
    merges = [" ".join(pair) for pair in content["merges"]]
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    assert read_file(tmp_path).decode(read_file(tmp_path).encode("The wheels")) == "The wheels"
    (tmp_path / "merges.txt").write_text("\n".join(merges[1:]))
    with pytest.raises(WordmillError, match="the merges do not make the tokens"):
        read_file(tmp_path)
