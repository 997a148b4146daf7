"""`wordmill serve` as its user starts it, with two small models; one process for the session."""

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from llm.model import folder
from llm.model.config import ModelConfig
from llm.model.transformer import Transformer
from llm.tokenizer.byte_bpe import ByteBPE
from llm.tokenizer.patterns import GPT2
from llm.tokenizer.tokenizer import Tokenizer

REPO = Path(__file__).parents[3]
BLOCK_SIZE = 512
CONFIG = ModelConfig(
    n_layer=2, n_head=2, n_kv_head=1, d_model=32, d_ff=48, block_size=BLOCK_SIZE, attention="fused", position="rope",
    rope_theta=10_000.0, norm="rmsnorm", norm_eps=1e-5, qk_norm=False, feed_forward="swiglu", bias=False, dropout=0.0,
    tie_head=False,
)  # fmt: skip


@dataclass(frozen=True)
class Server:
    address: str
    process: psutil.Process
    log: Path
    models: dict[str, Transformer]
    tokenizer: Tokenizer

    @property
    def port(self) -> int:
        return int(self.address.rsplit(":", 1)[1])


@pytest.fixture(scope="session")
def tokenizer() -> ByteBPE:
    """Single bytes: text of a model that has learned nothing is full of half characters."""
    return ByteBPE.from_merges([], GPT2, ["<|endoftext|>"])


@pytest.fixture(scope="session")
def models(tokenizer: ByteBPE, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    at = tmp_path_factory.mktemp("served")
    tokenizer.save(at / "tokenizer")
    for seed, name in enumerate(("base", "dpo")):
        model = Transformer(CONFIG, tokenizer.vocab_size)
        model.initialise(seed)
        folder.save(model, at / name, at / "tokenizer", tokenizer.end_of_text)
    return {name: at / name for name in ("base", "dpo")}


@pytest.fixture(scope="session")
def server(models: dict[str, Path], tokenizer: ByteBPE, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    program = [
        sys.executable,
        "-m",
        "pipeline.cli",
        "serve",
        *map(str, models.values()),
        "--port",
        "0",
        "--precision",
        "fp32",
        "--threads",
        "1",
    ]
    log = tmp_path_factory.mktemp("log") / "serve.log"
    with log.open("w") as errors:
        process = subprocess.Popen(program, cwd=REPO, stdout=subprocess.PIPE, stderr=errors, text=True)
    try:
        assert process.stdout
        line = process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:\d+", line)
        assert found, line
        loaded = {name: folder.load(path).eval() for name, path in models.items()}
        yield Server(found[0], psutil.Process(process.pid), log, loaded, tokenizer)
        assert process.poll() is None, "it crashed"
        assert "Traceback" not in log.read_text()
    finally:
        process.terminate()
        assert process.wait(30) == -signal.SIGTERM  # uvicorn ends well, and then by the signal
