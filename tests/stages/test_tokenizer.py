"""The stage `tokenizer` on a small corpus: what it writes, twice the same, and its one-line errors."""

import json
from pathlib import Path
from typing import Any

import pytest

from llm.corpus.build import build
from llm.corpus.config import CorpusConfig
from llm.errors import WordmillError
from llm.tokenizer.config import TokenizerConfig
from llm.tokenizer.tokenizer import Tokenizer
from stages import tokenizer as stage_module


class Told:
    """Stands for the stage: keeps what MLflow would be told."""

    def __init__(self) -> None:
        self.figures: dict[str, float] = {}
        self.artifacts: list[Path] = []

    def metrics(self, values: dict[str, float]) -> None:
        self.figures |= values

    def artifact(self, path: Path, folder: str = "") -> None:
        self.artifacts.append(path)


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    text = "\n".join(f"Ann gave {i} keys to Tom, who hid them under the old mill's {i}th stone." for i in range(400))
    Path("raw.txt").write_text(text)
    config = CorpusConfig(source="files", paths=("raw.txt",), split_text="line", documents=0)
    build(config, Path("data/corpus"), Path("scratch"))
    return Path("data/corpus")


def run(**settings: Any) -> Told:
    told = Told()
    params = stage_module.Params(TokenizerConfig(**{"vocab_size": 300} | settings))
    stage_module.run(params, told)  # type: ignore[arg-type]
    return told


def written() -> dict[str, bytes]:
    paths = [*Path("data/tokenizer").iterdir(), Path("reports/tokenizer.json")]
    return {path.as_posix(): path.read_bytes() for path in paths}


def test_what_it_writes(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = run()
    assert sorted(path.name for path in Path("data/tokenizer").iterdir()) == [
        *("manifest.json", "tokenizer.json", "tokenizer_config.json")
    ]
    tokenizer = Tokenizer.load(Path("data/tokenizer"))
    assert tokenizer.vocab_size == 300
    manifest = json.loads(Path("data/tokenizer/manifest.json").read_text())
    made_from = json.loads((corpus / "manifest.json").read_text())
    assert manifest["tokenizer"] == tokenizer.fingerprint
    assert manifest["trained_on"]["corpus"] == made_from["digest"]
    assert manifest["trained_on"]["bytes"] == made_from["splits"]["train"]["bytes"]
    report = json.loads(Path("reports/tokenizer.json").read_text())
    assert report["vocab_size"] == told.figures["vocab_size"] == 300
    assert 2 < report["val_bytes_per_token"] < 10
    assert len(report["longest_tokens"][0].encode()) == report["longest_token_bytes"]
    assert "300 tokens" in capsys.readouterr().out
    assert all(path.exists() for path in told.artifacts)


def test_twice_the_same_bytes(corpus: Path) -> None:
    run()
    once = written()
    run()
    assert written() == once


def test_a_sample_is_recorded(corpus: Path) -> None:
    run(max_train_bytes=5000)
    made = json.loads(Path("data/tokenizer/manifest.json").read_text())["trained_on"]
    assert 4000 < made["bytes"] <= 5000 < made["split_bytes"]


def test_vocabulary_beyond_the_corpus(corpus: Path) -> None:
    with pytest.raises(WordmillError, match="vocab_size: 50000 asked"):
        run(vocab_size=50_000)


@pytest.mark.parametrize(
    ("settings", "files"),
    [
        ({"kind": "sentencepiece", "algorithm": "bpe"}, ["tokenizer.model", "tokenizer_config.json"]),
        (
            {"kind": "sentencepiece", "algorithm": "unigram"},
            ["tokenizer.json", "tokenizer.model", "tokenizer_config.json"],
        ),
        ({"kind": "bytes"}, ["tokenizer.json", "tokenizer_config.json"]),
    ],
)
def test_other_kinds(corpus: Path, settings: dict[str, Any], files: list[str]) -> None:
    told = run(**{"vocab_size": 330} | settings)
    once = written()
    assert sorted(path.name for path in Path("data/tokenizer").iterdir()) == ["manifest.json", *files]
    assert {path.name for path in told.artifacts} == {"manifest.json", *files}
    tokenizer = Tokenizer.load(Path("data/tokenizer"))
    manifest = json.loads(Path("data/tokenizer/manifest.json").read_text())
    assert manifest["tokenizer"] == tokenizer.fingerprint
    report = json.loads(Path("reports/tokenizer.json").read_text())
    assert report["vocab_size"] == tokenizer.vocab_size == (257 if settings["kind"] == "bytes" else 330)
    if settings["kind"] == "bytes":
        assert (report["val_bytes_per_token"], report["longest_token_bytes"]) == (1.0, 1)
        assert manifest["loaded_from"] == {}
    else:
        size = json.loads((corpus / "manifest.json").read_text())["splits"]["train"]["bytes"]
        assert manifest["trained_on"]["bytes"] == report["trained_bytes"] == size
    run(**{"vocab_size": 330} | settings)
    assert written() == once


def test_ids_kept_in_reserve(corpus: Path) -> None:
    with pytest.raises(WordmillError, match=r"or set tokenizer\.reserve_rest: true"):
        run(vocab_size=5000)
    run(vocab_size=5000, reserve_rest=True)
    tokenizer = Tokenizer.load(Path("data/tokenizer"))
    trained = json.loads(Path("data/tokenizer/manifest.json").read_text())["trained_on"]
    reserved = {name for name in tokenizer.special_tokens if name.startswith("<|reserved_")}
    assert tokenizer.vocab_size == 5000
    assert len(reserved) == trained["reserved_tokens"] > 0
    # Its other tokens are those of the largest vocabulary that the text gives, and no text becomes a reserved one.
    run(vocab_size=5000 - len(reserved))
    largest = Tokenizer.load(Path("data/tokenizer"))
    assert tokenizer.tokens == largest.tokens
    assert tokenizer.end_of_text == largest.end_of_text == largest.vocab_size - 1
    assert "reserved_tokens" not in json.loads(Path("data/tokenizer/manifest.json").read_text())["trained_on"]
    text = "Tom hid 3 keys <|reserved_0|>"
    assert tokenizer.encode(text) == largest.encode(text)


def test_gpt2_by_file(corpus: Path, shared_data: Path) -> None:
    run(kind="file", path=str(shared_data / "gpt2"))
    tokenizer = Tokenizer.load(Path("data/tokenizer"))
    assert (tokenizer.vocab_size, tokenizer.end_of_text) == (50257, 50256)
    source = json.loads(Path("data/tokenizer/manifest.json").read_text())["loaded_from"]
    assert sorted(source["sha256"]) == ["encoder.json", "vocab.bpe"]


def test_comparison(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = run(vocab_size=330, compare=("sentencepiece:bpe", "bpe:gpt2", "bytes"))
    report = json.loads(Path("reports/tokenizer.json").read_text())
    names = ["bpe:cl100k", "sentencepiece:bpe", "bpe:gpt2", "bytes"]
    assert sorted(report["compare"]) == sorted(names)
    for figures in report["compare"].values():
        assert (figures["unknown"], figures["lossy"]) == (0, 0)
    assert report["compare"]["bytes"]["bytes_per_token"] == 1.0
    assert report["compare"]["bpe:cl100k"]["bytes_per_token"] == report["val_bytes_per_token"]
    assert not [name for figures in report["compare"].values() for name in figures if "second" in name]
    assert told.figures["encode_mb_per_second"] > 0
    assert told.figures["encode_mb_per_second/sentencepiece_bpe"] > 0
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed[-4:]] == names
    once = written()
    run(vocab_size=330, compare=("sentencepiece:bpe", "bpe:gpt2", "bytes"))
    assert written() == once
    run(vocab_size=330)
    assert "compare" not in json.loads(Path("reports/tokenizer.json").read_text())


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"kind": "sentencepiece", "vocab_size": 30_000}, "tokenizer.vocab_size: 30000 asked, but the training text"),
        ({"kind": "file", "path": "none.json"}, "tokenizer.path: none.json: no such file"),
        ({"compare": ("file:none.json",)}, "tokenizer.path: none.json: no such file"),
        ({"kind": "tiktoken", "encoding": "r50k_base"}, "tokenizer.encoding: r50k_base is not on this machine"),
    ],
)
def test_one_line_for_each_mistake(
    corpus: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], line: str
) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "nothing-here")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with pytest.raises(WordmillError) as caught:
        run(**settings)
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


def test_missing_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WordmillError, match="the stage `download` makes"):
        run()
