"""The transformer as a whole: what it cannot see, and which shapes it cannot have."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from llm.errors import ConfigError
from llm.model.config import ModelConfig
from llm.model.transformer import Transformer


def test_no_position_sees_a_later_one(tiny_model: Transformer) -> None:
    ids = torch.arange(20)[None]
    changed = ids.clone()
    changed[0, 12:] = 63
    before, after = tiny_model(ids), tiny_model(changed)
    assert (before[:, :12] == after[:, :12]).all()
    assert not torch.allclose(before[:, 12:], after[:, 12:])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_head": 5}, "n_head: 5 does not divide d_model 32; use 4 or 8"),
        ({"n_kv_head": 3}, "n_kv_head: 3 does not divide n_head 4"),
        ({"d_model": 0}, "d_model: 0 is not positive"),
        ({"d_model": 12}, "odd; RoPE turns pairs"),
        ({"head_dim": 7}, "head_dim: 7 is odd; RoPE turns pairs"),
        ({"head_dim": -8}, "head_dim: -8 is not between"),
        ({"d_model": 33, "n_head": 3, "n_kv_head": 3, "position": "sinusoidal"}, "33 is odd; sinusoidal"),
        ({"dropout": 1.0}, r"dropout: 1.0 is not in \[0, 1\)"),
        ({"dropout": -0.1}, "dropout: -0.1 is not in"),
    ],
)
def test_impossible_shapes_are_refused(tiny_config: ModelConfig, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(tiny_config, **change)
