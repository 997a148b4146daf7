"""Models of each exported layout, in folders as the stages leave them, over a tokenizer trained on stories."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from llm.corpus.stories.source import tell
from llm.export.formats import Source
from llm.model import folder
from llm.model.config import ModelConfig
from llm.model.transformer import Transformer
from llm.tokenizer import bpe
from llm.tokenizer.byte_bpe import ByteBPE
from llm.tokenizer.config import PATTERNS
from llm.tokenizer.words import count_words

GPT2 = {"position": "learned", "norm": "layernorm", "feed_forward": "gelu", "bias": True, "n_kv_head": 4}
CHANGES: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama, biases, head": {"bias": True, "tie_head": False, "rope_theta": 500.0},
    "qwen3": {"qk_norm": True},
    "llama, head width": {"head_dim": 32},
    "qwen3, head width": {"qk_norm": True, "head_dim": 8, "n_head": 6},
    "gpt2": GPT2,
}


@pytest.fixture(params=PATTERNS, scope="session")
def tokenizer_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pattern = request.param
    merges = bpe.train(count_words((tell(1, i).text for i in range(60)), pattern), 200)
    at = tmp_path_factory.mktemp(pattern)
    ByteBPE.from_merges(merges, PATTERNS[pattern], ["<|endoftext|>", "<|reserved|>"]).save(at)
    return at


@pytest.fixture
def make_source(tiny_config: ModelConfig, tokenizer_folder: Path, tmp_path: Path) -> Callable[[str], Source]:
    """A model by its name in `CHANGES`, with weights of which each matters, biases and gains included."""

    def make(name: str) -> Source:
        config = replace(tiny_config, d_model=64, d_ff=96, block_size=128, **CHANGES[name])
        model = Transformer(config, vocab_size=458)
        model.initialise(1)
        with torch.no_grad():
            for weight in model.parameters():
                weight += 0.03 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel()))
        folder.save(model, tmp_path / "model", tokenizer_folder, end_of_text=456)
        return Source.load(tmp_path / "model", "wordmill-test")

    return make
