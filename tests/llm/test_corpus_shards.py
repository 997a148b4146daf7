"""Parts of the corpus to shards: finished ones are taken as they are, and a kill leaves nothing half done."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from llm.corpus.documents import Row, write_part
from llm.corpus_shards import encode_part
from llm.shards import ShardsConfig, ShardSet, write_index
from llm.tokenizer.byte_bpe import ByteBPE
from llm.tokenizer.config import END_OF_TEXT, PATTERNS

CONFIG = ShardsConfig(tokens_per_shard=100_000)
KILLED = """
import os, signal, sys
from pathlib import Path
from llm.corpus_shards import encode_part
from llm.shards import ShardsConfig
from llm.tokenizer.tokenizer import Tokenizer

seen = 0
def told(text_bytes):
    global seen
    seen += text_bytes
    if seen > 8_000_000:
        os.kill(os.getpid(), signal.SIGKILL)

encode_part(Path("part-00000.parquet"), Tokenizer.load(Path("tokenizer")), Path("shards"), ShardsConfig(100_000), told)
"""


@pytest.fixture
def tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ByteBPE:
    monkeypatch.chdir(tmp_path)
    rows = [Row(f"{i:x}", f"Ann gave Tom {i} keys. ".encode() * 40, "all") for i in range(13_000)]
    write_part(Path("part-00000.parquet"), rows)
    write_part(Path("part-00001.parquet"), rows[:50])
    tokenizer = ByteBPE.from_merges([(32, 107), (101, 121)], PATTERNS["gpt2"], (END_OF_TEXT,))
    tokenizer.save(Path("tokenizer"))
    return tokenizer


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_killed_run_leaves_whole_shards_and_ends_with_the_same_bytes(tokenizer: ByteBPE) -> None:
    died = subprocess.run([sys.executable, "-c", KILLED])
    assert died.returncode == -signal.SIGKILL
    left = [path for path in Path("shards").iterdir() if path.suffix == ".bin"]
    assert left
    assert not list(Path("shards").glob("*.json"))
    whole = encode_part(Path("part-00000.parquet"), tokenizer, Path("whole"), CONFIG)
    for path in left:  # those that have their final name are final
        assert path.read_bytes() == (Path("whole") / path.name).read_bytes()
    assert encode_part(Path("part-00000.parquet"), tokenizer, Path("shards"), CONFIG) == whole
    assert content(Path("shards")) == content(Path("whole"))
    write_index(Path("shards"), whole.shards, tokenizer)
    assert ShardSet.open(Path("shards")).text_bytes == whole.text_bytes


def test_a_finished_part_is_not_encoded_again_unless_a_byte_has_changed(tokenizer: ByteBPE) -> None:
    part, folder, said = Path("part-00001.parquet"), Path("shards"), []
    first = encode_part(part, tokenizer, folder, CONFIG)
    before = content(folder)
    part.rename("away.parquet")
    assert encode_part(part, tokenizer, folder, CONFIG, said.append) == first  # nothing of the part is read
    assert said == [first.text_bytes]
    Path("away.parquet").rename(part)
    shard = folder / first.shards[0].name
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    assert encode_part(part, tokenizer, folder, CONFIG) == first
    assert content(folder) == before
