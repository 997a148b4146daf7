"""The stage `shards` on a small corpus: every document of every split comes back, twice the same."""

import json
from pathlib import Path

import pytest

from llm.corpus.build import build
from llm.corpus.config import CorpusConfig
from llm.corpus.documents import documents, parts, read_part
from llm.errors import WordmillError
from llm.shards import ShardsConfig, ShardSet
from llm.tokenizer.byte_bpe import ByteBPE
from llm.tokenizer.config import END_OF_TEXT, PATTERNS
from llm.tokenizer.tokenizer import Tokenizer
from stages import shards as stage_module

SPLITS = ("train", "val", "test")


class Told:
    """Stands for the stage: keeps what MLflow would be told."""

    def __init__(self) -> None:
        self.scratch = Path("runs/shards/0")
        self.figures: dict[str, float] = {}
        self.datasets: dict[str, dict[str, int]] = {}

    def metrics(self, values: dict[str, float]) -> None:
        self.figures |= values

    def artifact(self, path: Path, folder: str = "") -> None:
        assert path.exists()

    def dataset(self, name: str, source: str, digest: str, counts: dict[str, int]) -> None:
        self.datasets[name] = counts


@pytest.fixture
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tokenizer:
    monkeypatch.chdir(tmp_path)
    Path("raw.txt").write_text("\n".join(f"Ann gave {i} keys to Tom; größer 🌾 war keiner." for i in range(300)))
    config = CorpusConfig(source="files", paths=("raw.txt",), split_text="line", documents=0)
    build(config, Path("data/corpus"), Path("scratch"))
    tokenizer = ByteBPE.from_merges([(32, 107), (101, 121)], PATTERNS["cl100k"], (END_OF_TEXT,))
    tokenizer.save(Path("data/tokenizer"))
    return tokenizer


def run() -> Told:
    told = Told()
    stage_module.run(stage_module.Params(ShardsConfig(tokens_per_shard=2000)), told)  # type: ignore[arg-type]
    return told


def test_every_document_comes_back(inputs: Tokenizer, capsys: pytest.CaptureFixture[str]) -> None:
    told = run()
    report = json.loads(Path("reports/shards/splits.json").read_text())
    metrics = json.loads(Path("reports/shards.json").read_text())
    assert metrics == {name: report["train"][name] for name in ("tokens", "bytes_per_token")}
    for split in SPLITS:
        shards = ShardSet.open(Path("data/shards") / split, inputs.fingerprint)
        texts = list(documents(Path("data/corpus") / split))
        assert [inputs.decode(shards.document(i)[:-1].tolist()) for i in range(len(texts))] == texts
        figures = report[split]
        assert figures["documents"] == len(texts)
        assert figures["characters"] == sum(map(len, texts))
        assert figures["bytes"] == shards.text_bytes == sum(len(text.encode()) for text in texts)
        assert figures["tokens"] == shards.tokens == told.datasets[split]["tokens"]
        assert figures["bytes_per_token"] == figures["bytes"] / sum(len(inputs.encode(text)) for text in texts)
        used = {number for text in texts for number in [*inputs.encode(text), inputs.end_of_text]}
        assert figures["unique_tokens"] == told.figures[f"{split}_unique_tokens"] == len(used)
        assert texts[0].startswith(figures["first_characters"])
        assert f"{split}: {len(texts):,} documents" in capsys.readouterr().out or split != "train"
    assert len(list(Path("data/shards/train").glob("*.bin"))) > 1
    tokens = report["tokens"]
    lengths = tokens["by_length"]["text"]  # every byte of the text is in one token
    assert sum(length * amount for length, amount in enumerate(lengths, start=1)) == report["train"]["bytes"]
    text = "".join(documents(Path("data/corpus/train")))
    assert tokens["rarest_tokens"]
    assert all(token in text for token in tokens["rarest_tokens"] if "\ufffd" not in token)


def test_twice_the_same_bytes(inputs: Tokenizer) -> None:
    def written() -> dict[str, bytes]:
        paths = [*Path("data/shards").rglob("*.*"), *Path("reports").rglob("*.json")]
        return {path.as_posix(): path.read_bytes() for path in paths}

    run()
    once = written()
    run()
    assert written() == once
    assert not list(Path("data").rglob("*.half"))
    assert {path.suffix for path in Path("data/shards/train").iterdir()} == {".bin", ".json"}
    assert not list(Path("data/shards").rglob("part-*.json"))


def test_sources_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, word in (("english", "key"), ("german", "größer")):
        Path(f"{name}.txt").write_text("\n".join(f"{word} {i}" for i in range(100)))
    config = CorpusConfig(source="files", paths=("*.txt",), split_text="line", documents=0)
    build(config, Path("data/corpus"), Path("scratch"))
    tokenizer = ByteBPE.from_merges([(ord("k"), ord("e"))], PATTERNS["gpt2"], (END_OF_TEXT,))
    tokenizer.save(Path("data/tokenizer"))
    run()
    train = json.loads(Path("reports/shards/splits.json").read_text())["train"]
    assert set(train["sources"]) == {"german.txt", "english.txt"}
    for name, figures in train["sources"].items():
        rows = [row for part in parts(Path("data/corpus/train")) for row in read_part(part) if row.source == name]
        tokens = sum(len(tokenizer.encode(row.text.decode())) for row in rows)
        assert figures["documents"] == len(rows)
        assert figures["text_bytes"] == sum(len(row.text) for row in rows)
        assert figures["tokens"] == tokens
        assert figures["bytes_per_token"] == figures["text_bytes"] / tokens


def test_missing_tokenizer(inputs: Tokenizer) -> None:
    Path("data/tokenizer/tokenizer.json").unlink()
    with pytest.raises(WordmillError, match="the stage `tokenizer` makes it"):
        run()
