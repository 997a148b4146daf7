"""SentencePiece: the library's own ids, the same file each time, and one line for what it cannot give."""

import io
from pathlib import Path
from typing import Literal

import pytest
import sentencepiece as library

from llm.errors import WordmillError
from llm.tokenizer.sentencepiece import SentencePiece, train
from llm.tokenizer.tokenizer import Tokenizer

TEXTS = [
    f"The miller number {number} said: grind {number * 7} sacks, or none at all!\n\tAnd so on.\n"
    for number in range(300)
]
ALGORITHMS: list[Literal["bpe", "unigram"]] = ["bpe", "unigram"]
SPECIALS = ["<|endoftext|>", "<|user, or so|>"]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_ids_are_the_librarys(algorithm: Literal["bpe", "unigram"], nasty: list[str], tmp_path: Path) -> None:
    ours = train(TEXTS, algorithm, 330, SPECIALS)
    assert ours.vocab_size == 330
    assert ours.special_tokens == {"<unk>": 0, "<|endoftext|>": 1, "<|user, or so|>": 2}
    ours.save(tmp_path)
    theirs = library.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    for text in [*nasty, *TEXTS[:9]]:
        if "\u2581" not in text:
            assert ours.encode(text) == theirs.encode(text)
            assert ours.decode(ours.encode(text)) == theirs.decode(theirs.encode(text)) == text
    assert theirs.decode(theirs.encode("a\u2581b")) == "a b"  # the hole that we mend
    assert ours.decode(ours.encode("a\u2581b")) == "a\u2581b"


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_training_repeats_to_the_byte(algorithm: Literal["bpe", "unigram"]) -> None:
    first, second = (train(iter(TEXTS), algorithm, 320, SPECIALS) for _ in range(2))
    assert first.model == second.model
    assert first.fingerprint != train(TEXTS, algorithm, 321, SPECIALS).fingerprint


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_training_takes_any_text(algorithm: Literal["bpe", "unigram"], nasty: list[str]) -> None:
    ours = train([*TEXTS, *(text for text in nasty if len(text) < 80), "long" * 50_000], algorithm, 450, SPECIALS)
    for text in nasty:
        assert ours.decode(ours.encode(text)) == text
    with pytest.raises(WordmillError, match="lone surrogate"):
        train(["\ud800"], algorithm, 450, SPECIALS)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_vocabularies_that_the_text_cannot_give(algorithm: Literal["bpe", "unigram"]) -> None:
    with pytest.raises(WordmillError, match=r"vocab_size: 9000 asked, but the training text gives (\d+)") as caught:
        train(TEXTS, algorithm, 9000, SPECIALS)
    most = int(str(caught.value).split("gives ")[1].split()[0])
    assert train(TEXTS, algorithm, most, SPECIALS).vocab_size == most
    with pytest.raises(WordmillError, match=r"vocab_size: 262 has no room .* use more than \d+$"):
        train(TEXTS, algorithm, 262, SPECIALS)
    with pytest.raises(WordmillError, match="SentencePiece cannot be trained") as caught:
        train([], algorithm, 300, SPECIALS)
    assert "\n" not in str(caught.value)


def test_models_that_change_text_are_refused(tmp_path: Path) -> None:
    def written(**settings: object) -> None:
        out = io.BytesIO()
        library.SentencePieceTrainer.train(
            sentence_iterator=iter(TEXTS), model_writer=out, vocab_size=330, minloglevel=2, **settings
        )
        (tmp_path / "tokenizer.model").write_bytes(out.getvalue())

    written(byte_fallback=True, control_symbols=["<|endoftext|>"])  # the library's defaults: NFKC, a space in front
    with pytest.raises(WordmillError, match=r"tokenizer.model: text does not come back as it was: 'a' becomes ' a'"):
        Tokenizer.load(tmp_path)
    written(byte_fallback=True)
    with pytest.raises(WordmillError, match=r"tokenizer.model: it has no control symbol <\|endoftext\|>"):
        Tokenizer.load(tmp_path)


def test_predicted_unknown_has_a_text() -> None:
    ours = train(TEXTS, "bpe", 320, SPECIALS)
    assert isinstance(ours, SentencePiece)
    assert ours.decode([0, 1, *ours.encode("a")]) == "<unk><|endoftext|>a"
    with pytest.raises(ValueError, match="no token has id 320"):
        ours.decode([320])
