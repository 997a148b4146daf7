"""Shards: what goes in comes out, across borders too; every kind of damage is refused with the file's name."""

import json
import os
import resource
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llm.batches import Batches
from llm.errors import ConfigError, WordmillError
from llm.shards import HEADER_BYTES, ShardsConfig, ShardSet, write_index, write_shards
from llm.tokenizer.bulk import encode_batches
from llm.tokenizer.byte_bpe import ByteBPE
from llm.tokenizer.config import END_OF_TEXT, PATTERNS
from llm.tokenizer.tokenizer import Encoded, Tokenizer
from llm.tokenizer.words import joined

ROOT = Path(__file__).parents[2]
TEXTS = ["The mill turns.", "", "Ann has 12 keys; " * 9, "Grüße 🌾", "x", "a longer story, told twice. " * 4]


def encoded(texts: Iterable[str], tokenizer: Tokenizer) -> Iterator[Encoded]:
    return encode_batches(joined(texts), tokenizer, compiled=True)


def make_tokenizer(*specials: str) -> Tokenizer:
    return ByteBPE.from_merges([(104, 101), (116, 256), (32, 257)], PATTERNS["cl100k"], (END_OF_TEXT, *specials))


def write(folder: Path, tokenizer: Tokenizer, texts: list[str], tokens_per_shard: int = 100) -> ShardSet:
    infos = write_shards(encoded(texts, tokenizer), tokenizer, folder, "part-00000", tokens_per_shard)
    write_index(folder, infos, tokenizer)
    return ShardSet.open(folder, tokenizer.fingerprint)


@pytest.fixture
def tokenizer() -> Tokenizer:
    return make_tokenizer()


@pytest.fixture
def folder(tmp_path: Path, tokenizer: Tokenizer) -> Path:
    write(tmp_path, tokenizer, TEXTS)
    return tmp_path


def expected(tokenizer: Tokenizer, texts: list[str]) -> list[int]:
    return [number for text in texts for number in [*tokenizer.encode(text), tokenizer.end_of_text]]


@given(texts=st.lists(st.text(max_size=30), max_size=12), tokens_per_shard=st.integers(1, 60), data=st.data())
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_round_trip(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], tokens_per_shard: int, data: st.DataObject
) -> None:
    tokenizer = make_tokenizer()
    shards = write(tmp_path_factory.mktemp("shards"), tokenizer, texts, tokens_per_shard)
    stream = expected(tokenizer, texts)
    assert shards.tokens == len(stream)
    assert shards.text_bytes == sum(len(text.encode()) for text in texts)
    assert len(shards.documents) == len(texts)
    assert [tokenizer.decode(shards.document(i)[:-1].tolist()) for i in range(len(texts))] == texts
    start = data.draw(st.integers(0, len(stream)))
    length = data.draw(st.integers(0, len(stream) - start))
    assert shards.window(start, length).tolist() == stream[start : start + length]
    assert shards.token_counts().tolist() == np.bincount(stream, minlength=tokenizer.vocab_size).tolist()


def test_a_shard_ends_with_the_document_that_fills_it(tmp_path: Path, tokenizer: Tokenizer) -> None:
    infos = write_shards(encoded(["abc"] * 7, tokenizer), tokenizer, tmp_path, "part-00003", tokens_per_shard=8)
    assert [info.name for info in infos] == [f"part-00003-{i:05d}.bin" for i in range(4)]
    assert [info.tokens for info in infos] == [8, 8, 8, 4]
    assert sorted(path.name for path in tmp_path.iterdir()) == [info.name for info in infos]


def test_bytes_are_those_of_the_documented_format(tmp_path: Path) -> None:
    tokenizer = ByteBPE.from_merges([], PATTERNS["gpt2"], (END_OF_TEXT,))
    write(tmp_path, tokenizer, ["ab", "c"])
    data = (tmp_path / "part-00000-00000.bin").read_bytes()
    magic, version, width, tokens, documents, text_bytes = struct.unpack_from("<8sIIQQQ", data)
    assert (magic, version, width, tokens, documents, text_bytes) == (b"WMSHARD\0", 1, 2, 5, 2, 3)
    assert data[40:72].hex() == tokenizer.fingerprint
    assert data[104:256] == bytes(152)
    assert data[256:] == struct.pack("<5H6xQQ", 97, 98, 256, 99, 256, 0, 3)


def test_large_vocabularies_take_four_bytes(tmp_path: Path) -> None:
    tokenizer = ByteBPE.from_merges([], PATTERNS["gpt2"], (END_OF_TEXT, *(f"<{i}>" for i in range(65_279))))
    assert write(tmp_path / "two", tokenizer, ["ab"]).window(0, 2).dtype == np.uint16
    tokenizer = ByteBPE.from_merges([], PATTERNS["gpt2"], (*(f"<{i}>" for i in range(65_280)), END_OF_TEXT))
    shards = write(tmp_path / "four", tokenizer, ["ab"])
    assert shards.window(0, 3).tolist() == [97, 98, 65_536]


def test_same_texts_same_bytes(tmp_path: Path, tokenizer: Tokenizer) -> None:
    one = write(tmp_path / "one", tokenizer, TEXTS)
    two = write(tmp_path / "two", tokenizer, TEXTS)
    assert one.digest == two.digest
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_reading_does_not_copy(folder: Path) -> None:
    window = ShardSet.open(folder).window(1, 5)
    assert not window.flags.owndata
    assert not window.flags.writeable


def test_outside_is_an_error(folder: Path) -> None:
    shards = ShardSet.open(folder)
    for start, length in ((-1, 2), (0, shards.tokens + 1), (shards.tokens, 1)):
        with pytest.raises(IndexError):
            shards.window(start, length)
    with pytest.raises(IndexError):
        shards.document(len(TEXTS))


def refused(folder: Path, name: str, trouble: str = ".", verify: bool = True) -> None:
    with pytest.raises(WordmillError, match=trouble) as error:
        ShardSet.open(folder, verify=verify)
    assert name in str(error.value)
    assert "\n" not in str(error.value)


def first(folder: Path) -> Path:
    return folder / "part-00000-00000.bin"


def test_every_flipped_bit_is_noticed(folder: Path) -> None:
    path = first(folder)
    whole = path.read_bytes()
    header_in_use = 104
    for at in [*range(header_in_use), *range(HEADER_BYTES, len(whole), 7)]:
        damaged = bytearray(whole)
        damaged[at] ^= 1 << (at % 8)
        path.write_bytes(damaged)
        refused(folder, path.name)
        if at < header_in_use:  # the header is checked even when the content is not
            refused(folder, path.name, verify=False)
    path.write_bytes(whole)
    ShardSet.open(folder)


@pytest.mark.parametrize("keep", [0, 1, 100, HEADER_BYTES, HEADER_BYTES + 10, -1])
def test_truncated(folder: Path, keep: int) -> None:
    path = first(folder)
    path.write_bytes(path.read_bytes()[:keep])
    refused(folder, path.name, "truncated|not a token shard|cannot be mapped")


def test_too_long(folder: Path) -> None:
    path = first(folder)
    path.write_bytes(path.read_bytes() + b"\0")
    refused(folder, path.name, "too long")


def test_foreign_file(folder: Path) -> None:
    path = first(folder)
    path.write_bytes(b"PAR1" * 200)
    refused(folder, path.name, "not a token shard")


def test_newer_version(folder: Path) -> None:
    path = first(folder)
    data = bytearray(path.read_bytes())
    data[8] = 2
    path.write_bytes(data)
    refused(folder, path.name, "format version 2; this program reads version 1")


def test_missing_shard(folder: Path) -> None:
    first(folder).unlink()
    refused(folder, first(folder).name, "not found")


def test_shards_in_each_others_place(folder: Path) -> None:
    one, two = first(folder), folder / "part-00000-00001.bin"
    data = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(data)
    refused(folder, one.name, "header and index.json do not agree", verify=False)


def test_another_tokenizer(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = make_tokenizer("<|user|>")
    with pytest.raises(WordmillError, match="these shards were made by tokenizer"):
        ShardSet.open(folder, other.fingerprint)
    elsewhere = tmp_path_factory.mktemp("other")
    write(elsewhere, other, TEXTS)
    first(folder).write_bytes(first(elsewhere).read_bytes())
    refused(folder, first(folder).name, "another tokenizer")


def test_bad_index(folder: Path) -> None:
    path = folder / "index.json"
    content = json.loads(path.read_text())
    for change in ({"tokens": 1}, {"format": "x"}, {"version": 2}, {"shards": [{}]}, {"shards": None}):
        path.write_text(json.dumps(content | change))
        refused(folder, "index.json")
    path.write_text("{")
    refused(folder, "index.json", "not valid JSON")
    path.unlink()
    refused(folder, "index.json", "not found")


def test_lone_surrogate_leaves_no_half_shard(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(WordmillError, match="surrogate"):
        write_shards(encoded(["fine", "\ud800"], tokenizer), tokenizer, tmp_path, "part-00000", 100)
    assert list(tmp_path.iterdir()) == []


KILLED = """
import sys
from pathlib import Path
from llm.shards import write_shards
from llm.tokenizer.bulk import encode_batches
from llm.tokenizer.tokenizer import Tokenizer
from llm.tokenizer.words import joined
folder = Path(sys.argv[1])
texts = (f"story {i} of the mill. " * 20 for i in range(10**9))
tokenizer = Tokenizer.load(folder)
write_shards(encode_batches(joined(texts), tokenizer, True), tokenizer, folder, "part-00000", 20_000)
"""


def test_killed_while_writing(tmp_path: Path, tokenizer: Tokenizer) -> None:
    tokenizer.save(tmp_path)
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)], env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    while len(list(tmp_path.glob("*.bin"))) < 5 and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    whole = sorted(path.name for path in tmp_path.glob("*.bin"))
    assert len(whole) >= 5
    again = tmp_path / "again"
    texts = (f"story {i} of the mill. " * 20 for i in range(10**9))
    enough = [next(texts) for _ in range(200 * len(whole))]
    infos = write_shards(encoded(enough, tokenizer), tokenizer, again, "part-00000", 20_000)
    for name in whole:  # nothing under a final name differs from an undisturbed run's
        assert (tmp_path / name).read_bytes() == (again / name).read_bytes()
    assert len(infos) >= len(whole)


def test_a_thousand_shards_open_fast(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (info,) = write_shards(encoded(["ab"], tokenizer), tokenizer, tmp_path, "part-00000", 1)
    infos = [replace(info, name=f"{i}.bin") for i in range(1000)]
    for link in infos:
        (tmp_path / link.name).hardlink_to(tmp_path / info.name)
    write_index(tmp_path, infos, tokenizer)
    began = time.process_time()
    shards = ShardSet.open(tmp_path)
    assert time.process_time() - began < 1
    assert shards.tokens == 3000
    assert shards.window(0, 3000).tolist() == [97, 98, tokenizer.end_of_text] * 1000


def test_settings() -> None:
    with pytest.raises(ConfigError, match="tokens_per_shard"):
        ShardsConfig(tokens_per_shard=0)


def test_thousands_of_shards_need_no_descriptors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm.shards.os.fsync", lambda descriptor: None)
    tokenizer = make_tokenizer()
    texts = [f"text {number}" for number in range(1500)]
    write_index(tmp_path, write_shards(encoded(texts, tokenizer), tokenizer, tmp_path, "part", 1), tokenizer)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
    try:
        shards = ShardSet.open(tmp_path)
        kept = [shards.document(number) for number in range(len(texts))]  # views, which keep their files mapped
        assert [tokenizer.decode(ids[:-1].tolist()) for ids in kept] == texts
        assert len(Batches(shards, 8, 4, 1).batch(0)[0]) == 4
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


BAD_INDEX: dict[str, Any] = {
    "list": [],
    "number": 3,
    "shards 5": {"shards": 5},
    "shards null": {"shards": None},
    "shard 3": {"shards": [3]},
    "vocabulary 1e12": {"vocab_size": 10**12},
    "vocabulary -1": {"vocab_size": -1},
    "vocabulary true": {"vocab_size": True},
    "vocabulary NaN": {"vocab_size": float("nan")},
    "end": {"end_of_text": 10**6},
    "tokenizer": {"tokenizer": 5},
    "more": {"more": 1},
    "tokens": {"tokens": -1},
}


@pytest.mark.parametrize("case", BAD_INDEX)
def test_bad_indexes_are_one_line(case: str, folder: Path) -> None:
    path, change = folder / "index.json", BAD_INDEX[case]
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, **change} if isinstance(change, dict) else change))
    refused(folder, "index.json")


@pytest.mark.parametrize(
    "change",
    [{"name": "../a.bin"}, {"name": "a\x1b.bin"}, {"name": None}, {"tokens": 1e3}, {"sha256": "x"}, {"more": 1}],
)
def test_bad_entries_of_the_index_are_one_line(change: dict[str, Any], folder: Path) -> None:
    path = folder / "index.json"
    content = json.loads(path.read_text())
    content["shards"][0] |= change
    path.write_text(json.dumps(content))
    refused(folder, "index.json", "run the stage `shards` again")


@pytest.mark.parametrize("text", ["", "[" * 100_000, "{", '{"format": ' + "9" * 5000 + "}", "\x00", "é"])
def test_indexes_that_are_no_json_are_one_line(text: str, folder: Path) -> None:
    (folder / "index.json").write_bytes(text.encode("latin-1"))
    refused(folder, "index.json")
