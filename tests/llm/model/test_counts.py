"""Parameter and operation counts against published figures and against the model itself."""

import json
import subprocess
import sys
from dataclasses import asdict, replace
from typing import Any

import pytest

from llm.model.config import ModelConfig
from llm.model.counts import flops_per_token, palm_flops_per_token, parameter_table, parameters
from llm.model.transformer import Transformer


@pytest.fixture
def smollm2(tiny_config: ModelConfig) -> ModelConfig:
    """SmolLM2-135M's shape."""
    return replace(tiny_config, n_layer=30, n_head=9, n_kv_head=3, d_model=576, d_ff=1536, block_size=1024)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"tie_head": False},
        {"head_dim": 16},
        {"position": "learned", "norm": "layernorm", "feed_forward": "gelu", "bias": True, "n_kv_head": 4},
        {"position": "sinusoidal", "norm": "layernorm", "feed_forward": "relu2", "qk_norm": True},
        {"norm": "layernorm", "qk_norm": True, "bias": True},
        {"position": "none", "feed_forward": "relu", "bias": True, "qk_norm": True},
    ],
)
def test_parameter_rows_are_the_model(tiny_config: ModelConfig, change: dict[str, Any]) -> None:
    config = replace(tiny_config, **change)
    model = Transformer(config, 64)
    rows = parameters(config, 64)
    assert sum(rows.values()) == sum(weight.numel() for weight in model.parameters())
    for row, name in (("attention", ".attention."), ("feed_forward", ".feed_forward."), ("positions", "position.")):
        found = sum(
            w.numel()
            for n, w in model.named_parameters()
            if name in f".{n}" and "q_norm" not in n and "k_norm" not in n
        )
        assert rows[row] == found


def test_smollm2_has_its_published_size_row_by_row(smollm2: ModelConfig) -> None:
    assert sum(parameters(smollm2, 49_152).values()) == 134_515_008
    rows = {
        line.rsplit(maxsplit=2)[0].strip(): line.split()[-2] for line in parameter_table(smollm2, 49_152).splitlines()
    }
    assert rows == {
        "embedding": "28,311,552",
        "one layer": "3,540,096",
        "attention": "884,736",
        "feed-forward": "2,654,208",
        "norms": "1,152",
        "all 30 layers": "106,202,880",
        "final norm": "576",
        "head (the embedding)": "0",
        "total": "134,515,008",
    }


def test_gpt2_has_its_published_size(tiny_config: ModelConfig) -> None:
    config = replace(
        tiny_config,
        n_layer=12,
        n_head=12,
        n_kv_head=12,
        d_model=768,
        d_ff=3072,
        block_size=1024,
        position="learned",
        norm="layernorm",
        feed_forward="gelu",
        bias=True,
    )
    assert sum(parameters(config, 50_257).values()) == 124_439_808


def test_flops_follow_palms_formula(smollm2: ModelConfig) -> None:
    """6 N + 12 L H Q T a token; the figure that SmolLM2's reproduction quotes uses N = 135 million, T = 256."""
    assert palm_flops_per_token(135_000_000, 30, 9, 64, 256) * 256 == 220_949_544_960
    short = replace(smollm2, block_size=256)
    assert flops_per_token(short, 49_152) == palm_flops_per_token(134_515_008, 30, 9, 64, 256)
    assert flops_per_token(replace(short, tie_head=False), 49_152) == flops_per_token(short, 49_152)


COUNTING = """
import json, sys
from llm.model.config import ModelConfig
from llm.model.counts import parameters
parameters(ModelConfig(**json.loads(sys.argv[1])), 64)
print("torch._dynamo" in sys.modules)
"""


@pytest.mark.parametrize("position", ["rope", "learned", "sinusoidal", "none"])
def test_a_model_without_numbers_needs_no_compiler(tiny_config: ModelConfig, position: str) -> None:
    """Its import takes two seconds of every stage that opens a model's folder."""
    shape = json.dumps(asdict(tiny_config) | {"position": position, "norm": "layernorm", "bias": True})
    command = [sys.executable, "-c", COUNTING, shape]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "False\n"
