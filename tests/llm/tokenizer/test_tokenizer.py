"""Text to ids and back, the ids of Hugging Face, files that repeat to the byte, and text that tries to break it."""

import json
import time
from pathlib import Path

import pytest
import regex
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.errors import ConfigError, WordmillError
from llm.tokenizer import reference
from llm.tokenizer.byte_bpe import ByteBPE
from llm.tokenizer.config import PATTERNS, TokenizerConfig
from llm.tokenizer.huggingface import tokenizer_json
from llm.tokenizer.tokenizer import END_OF_TEXT, Tokenizer
from llm.tokenizer.train import make as make_kind

CORPUS = [
    "The miller's daughter wouldn't wait. She'd carried 120 sacks, and 3,456 more stood by the wheel!\n",
    "\tdef turn(wheel):\n\t\treturn wheel + 1  # once\n\n" * 3,
    "Der Müller mahlt; мельник мелет, 粉屋は粉をひく。 🌾🌾🌾 naïve café Ελληνικά हिन्दी العربية\r\n" * 3,
    "Aaaaaaaaaah      said the mill,   and the mill said      aaaaaah again, again and again.\n" * 3,
]
NASTY = [
    "",
    " ",
    "\x00\x01\x1c\x1d\x1e\x1f\x7f\x85\xa0\u2028\u2029\ufeff\u200b",
    "don'T I'LL we'Ve 'ſ ’s",
    "1234567890 ²³½ ①②③ ٣٤٥ 𝟘𝟙𝟚",
    "e\u0301 \u0345\u0301 नि কো 각 ᄀ\u1161\u11a8",
    "👩‍👩‍👧‍👦🏽 🇩🇪🇫🇷",
    "\U00010000\U0001f600\U000e0041\U000f0000\U0010ffff\ud7ff\ue000\ufffd\uffff",
    "a\r\n\r\n  b \t \r c\n ",
    "<|endoftext|> <|endoftext", "<s></s>[UNK]<pad>",
    "".join(map(chr, range(0x250))),
    "trailing   ",
    "\n\n\n   x",
]  # fmt: skip


def make(pattern: str = "cl100k", vocab_size: int = 400, special_tokens: tuple[str, ...] = (END_OF_TEXT,)) -> Tokenizer:
    config = TokenizerConfig(vocab_size=vocab_size, pattern=pattern, special_tokens=special_tokens, min_count=1)  # type: ignore[arg-type]
    return make_kind(config, lambda: CORPUS).tokenizer


_parsed: dict[str, tokenizers.Tokenizer] = {}


@pytest.fixture(scope="module", params=sorted(PATTERNS))
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return make(request.param)


@given(text=st.text())
@settings(deadline=None)
def test_round_trip(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.end_of_text not in ids
    assert tokenizer.encode_array(text).tolist() == ids


@given(data=st.binary())
def test_any_bytes_have_a_text(tokenizer: Tokenizer, data: bytes) -> None:
    ids = list(data)  # ids 0 to 255 are the bytes
    assert tokenizer.decode_bytes(ids) == data
    assert tokenizer.decode(ids) == data.decode(errors="replace")


@pytest.mark.parametrize("text", NASTY + CORPUS)
def test_ids_are_those_of_the_reference(tokenizer: Tokenizer, text: str) -> None:
    merges = list(tokenizer.definition.merges)
    words = [word.encode() for word in regex.findall(tokenizer.definition.pattern, text)]
    assert tokenizer.encode(text) == [number for word in words for number in reference.encode(word, merges)]


def test_hugging_face_gives_the_same_ids(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    theirs.encode_special_tokens = True  # as text, not as special tokens
    for text in NASTY + CORPUS:
        ids = theirs.encode(text).ids
        assert ids == tokenizer.encode(text), text
        assert theirs.decode(ids) == text
    assert theirs.get_vocab_size() == tokenizer.vocab_size
    assert theirs.token_to_id(END_OF_TEXT) == tokenizer.end_of_text


@given(text=st.text())
@settings(deadline=None, max_examples=200)
def test_hugging_face_gives_the_same_ids_for_any_text(tokenizer: Tokenizer, text: str) -> None:
    theirs = _parsed.setdefault(
        tokenizer.fingerprint, tokenizers.Tokenizer.from_str(tokenizer_json(tokenizer.definition))
    )
    theirs.encode_special_tokens = True
    assert theirs.encode(text).ids == tokenizer.encode(text)


def test_transformers_opens_the_folder(tokenizer: Tokenizer, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(str(tmp_path))
    text = " Hello,  the mill's 1234 wheels .\n don't , you ? "
    assert theirs.encode(text) == tokenizer.encode(text)
    assert theirs.decode(theirs.encode(text)) == text
    assert theirs.eos_token_id == tokenizer.end_of_text
    assert len(theirs) == tokenizer.vocab_size


def test_special_tokens_never_come_from_text() -> None:
    tokenizer = make(special_tokens=("<|user|>", END_OF_TEXT, "<|assistant|>"))
    assert tokenizer.special_tokens == {"<|user|>": 397, END_OF_TEXT: 398, "<|assistant|>": 399}
    text = "<|user|>hello<|endoftext|><|assistant|>"
    ids = tokenizer.encode(text)
    assert max(ids) < 397
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode([*tokenizer.encode("a"), tokenizer.end_of_text]) == "a<|endoftext|>"


def test_saving_repeats_to_the_byte(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "one")
    again = Tokenizer.load(tmp_path / "one")
    again.save(tmp_path / "two")
    assert again.fingerprint == tokenizer.fingerprint
    assert again.vocab_size == tokenizer.vocab_size == 400
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert [again.encode(text) for text in NASTY] == tokenizer.encode_batch(NASTY)


def test_fingerprint_tells_tokenizers_apart() -> None:
    specials = (END_OF_TEXT,)
    base = ByteBPE.from_merges([(97, 98)], PATTERNS["gpt2"], specials)
    others = [
        ByteBPE.from_merges([(97, 99)], PATTERNS["gpt2"], specials),
        ByteBPE.from_merges([(97, 98)], PATTERNS["cl100k"], specials),
        ByteBPE.from_merges([(97, 98)], PATTERNS["gpt2"], (END_OF_TEXT, "<|user|>")),
    ]
    assert len({base.fingerprint, *(other.fingerprint for other in others)}) == 4


@pytest.mark.parametrize("unit", ["a", " ", "\n", "=", "1", "\t ", " \n", "ab", "😀", "'", "\r "])
def test_a_million_of_the_same(tokenizer: Tokenizer, unit: str) -> None:
    text = unit * (1_000_000 // len(unit)) + "x"
    began = time.process_time()
    ids = tokenizer.encode(text)
    assert time.process_time() - began < 5
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("length", [99_999, 100_000, 100_001])
def test_long_white_space_is_cut_as_short_is(tokenizer: Tokenizer, length: int, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    text = "wheel!\n" + " " * length + "mill \n" + "\n" * 5 + " 12"
    assert tokenizer.encode(text) == theirs.encode(text).ids


def test_training_survives_one_long_word() -> None:
    config = TokenizerConfig(vocab_size=265)
    tokenizer = make_kind(config, lambda: ["a" * 300_000, " " * 300_000]).tokenizer
    assert tokenizer.decode(tokenizer.encode("aaaaa   ")) == "aaaaa   "


def test_lone_surrogate_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(WordmillError, match=r"lone surrogate U\+DC80 at character 3"):
        tokenizer.encode("abc\udc80")


def test_unknown_id_is_an_error(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="no token has id 400"):
        tokenizer.decode([1, 400])


def test_vocabulary_beyond_the_corpus() -> None:
    with pytest.raises(WordmillError, match="vocab_size: 100000 asked, but the training text gives") as e:
        make_kind(TokenizerConfig(vocab_size=100_000), lambda: CORPUS)
    reachable = int(str(e.value).split("gives ")[1].split()[0])
    assert make_kind(TokenizerConfig(vocab_size=reachable), lambda: CORPUS).tokenizer.vocab_size == reachable


def test_training_reports_what_it_read() -> None:
    trained = make_kind(TokenizerConfig(vocab_size=300), lambda: CORPUS)
    assert trained.source["bytes"] == sum(len(text.encode()) for text in CORPUS)
    assert trained.source["words"] >= trained.source["distinct_words"] > 40


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"vocab_size": 256}, "vocab_size"),
        ({"special_tokens": ()}, "special_tokens"),
        ({"special_tokens": (END_OF_TEXT, END_OF_TEXT)}, "special_tokens"),
        ({"special_tokens": (END_OF_TEXT, " ")}, "special_tokens"),
        ({"min_count": 0}, "min_count"),
        ({"max_train_bytes": -1}, "max_train_bytes"),
    ],
)
def test_settings_outside_their_limits(settings: dict[str, object], field: str) -> None:
    with pytest.raises(ConfigError) as error:
        TokenizerConfig(**settings)  # type: ignore[arg-type]
    assert error.value.field == field


def test_missing_damaged_and_foreign_folders(tmp_path: Path) -> None:
    with pytest.raises(WordmillError, match="not found"):
        Tokenizer.load(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text("{")
    with pytest.raises(WordmillError, match="not valid JSON"):
        Tokenizer.load(tmp_path)
    make().save(tmp_path)
    content = json.loads(path.read_text())
    del content["model"]["vocab"]
    path.write_text(json.dumps(content))
    with pytest.raises(WordmillError, match=r"model\.vocab: missing"):
        Tokenizer.load(tmp_path)
    path.write_text(tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, "a")).to_str())
    with pytest.raises(WordmillError, match="a model of type 'WordLevel' is not supported"):
        Tokenizer.load(tmp_path)
