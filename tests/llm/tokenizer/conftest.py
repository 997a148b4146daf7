"""One small tokenizer of every kind, and text that tries to break them."""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from llm.tokenizer.config import TokenizerConfig
from llm.tokenizer.encodings import ADDRESS, ENCODINGS
from llm.tokenizer.tokenizer import Tokenizer
from llm.tokenizer.train import make

TEXTS = [
    "The miller's daughter wouldn't wait. She'd carried 120 sacks, and 3,456 more stood by the wheel!\n",
    "\tdef turn(wheel):\n\t\treturn wheel + 1  # once\r\n\n",
    "Der Müller mahlt; мельник мелет, 粉屋は粉をひく。 🌾🌾🌾 naïve café Ελληνικά\n",
    "Aaaaaaaaaah      said the mill,   and the mill said      aaaaaah again, again and again.\n",
    "When the river froze, nobody could grind corn; bread grew dear, and children went to bed hungry.\n",
    "So Hanna, who was seven years old, climbed the hill at night and asked the wind to turn the wheel.\n",
    "'Gladly,' whispered the wind, 'if somebody sings for me.' And Hanna sang until the morning star.\n",
] * 5
# Every plane that has characters and every plane that has none, at its beginning, in the middle and at its end.
PLANES = "".join(chr((plane << 16) + at) for plane in range(17) for at in (0x20, 0x1234, 0x6C34, 0xFFFD, 0xFFFF))


@pytest.fixture(scope="session")
def nasty() -> list[str]:
    return [
        "",
        " ",
        "\n",
        "  two   three\t\ttabs \r\n\r\n end  ",
        "".join(map(chr, range(0x300))),
        "a\x00b\x00\x00\x7f\x80\x85\x9f\xad",
        PLANES,
        " ".join(PLANES),
        "\ud7ff\ue000\ufdd0\ufeff\ufffc\ufffd\u2028\u2029\u200b\u202e\u2060",
        "\u2581 \u2581\u2581a\u2581\n\u2581",  # SentencePiece's own sign for a space
        "\u2585 \u2047 <unk> <s> </s> <pad> <0x41> <|endoftext|> <|im_start|>",
        "e\u0301 \ufb01\u2460\u00bd \u1e9b\u0323 \uac01 \u1100\u1161\u11a8 ﷺ",  # what normalisation would change
        "👩‍👩‍👧‍👦🏽 🇩🇪 don'T I'LL 1234567 ²³ ①",
        *TEXTS[:7],
    ]


@pytest.fixture(scope="session")
def gpt2_cache(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """A folder as tiktoken keeps it, with GPT-2's files out of the given folder."""

    def fill(files: Path) -> Path:
        folder = tmp_path_factory.mktemp("tiktoken")
        for path in ENCODINGS["gpt2"].files:
            source = files / Path(path).name
            shutil.copyfile(source, folder / hashlib.sha1((ADDRESS + path).encode()).hexdigest())
        return folder

    return fill


@pytest.fixture(scope="session")
def small_kinds() -> dict[str, Tokenizer]:
    settings = TokenizerConfig(vocab_size=390, min_count=1, special_tokens=("<|endoftext|>", "<|im_start|>"))
    kinds = ("bpe", "bpe:gpt2", "sentencepiece:bpe", "sentencepiece:unigram", "bytes")
    return {name: make(settings.variant(name), lambda: TEXTS).tokenizer for name in kinds}


@pytest.fixture(params=["bpe", "bpe:gpt2", "sentencepiece:bpe", "sentencepiece:unigram", "bytes"])
def kind(request: pytest.FixtureRequest, small_kinds: dict[str, Tokenizer]) -> Tokenizer:
    """Each of `small_kinds` in turn."""
    return small_kinds[request.param]
