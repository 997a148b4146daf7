"""The transformer against Hugging Face's Llama, against its readable attention, and against its own cache."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from llm.errors import ConfigError, WordmillError
from llm.model import folder
from llm.model.attention import ATTENTIONS, reference
from llm.model.config import ModelConfig
from llm.model.counts import flops_per_token, parameters
from llm.model.transformer import Cache, Transformer

SMOLLM2_135M = ModelConfig(30, 9, 3, 576, 1536, 1024, 10_000.0, 1e-5, True)


@pytest.mark.parametrize("tie_head", [True, False])
def test_saved_folder_gives_equal_logits_in_transformers(
    tiny_config: ModelConfig, tmp_path: Path, tie_head: bool
) -> None:
    model = Transformer(replace(tiny_config, tie_head=tie_head), vocab_size=64).eval()
    model.initialise(1)
    (tmp_path / "tokenizer.json").write_text("{}")
    folder.save(model, tmp_path / "model", tmp_path, end_of_text=0)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    ids = torch.randint(0, 64, (3, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert (theirs(ids).logits - model(ids)).abs().max() < 1e-5
        assert (folder.load(tmp_path / "model")(ids) == model(ids)).all()


def test_saving_twice_gives_the_same_bytes(tiny_model: Transformer, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    for attempt in "ab":
        folder.save(tiny_model, tmp_path / attempt, tmp_path, end_of_text=0)
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_missing_and_foreign_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(WordmillError, match=r"no model there \(config\.json is missing\)"):
        folder.load(tmp_path)


@pytest.mark.parametrize("kind", sorted(ATTENTIONS.keys() - {"reference"}))
@pytest.mark.parametrize(("heads", "kv_heads", "length"), [(4, 4, 1), (4, 2, 7), (6, 1, 33), (8, 2, 64)])
def test_attention_kinds_agree_with_the_reference(kind: str, heads: int, kv_heads: int, length: int) -> None:
    torch.manual_seed(length)
    inputs = [torch.randn(2, h, length, 8, requires_grad=True) for h in (heads, kv_heads, kv_heads)]
    outputs, gradients = [], []
    for attend in (reference, ATTENTIONS[kind]):
        y = attend(*inputs)
        outputs.append(y)
        gradients.append(torch.autograd.grad((y * torch.linspace(-1, 1, 8)).sum(), inputs))
    torch.testing.assert_close(outputs[0], outputs[1], atol=1e-5, rtol=0)
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def test_no_position_sees_a_later_one(tiny_model: Transformer) -> None:
    ids = torch.arange(20)[None]
    changed = ids.clone()
    changed[0, 12:] = 63
    before, after = tiny_model(ids), tiny_model(changed)
    assert (before[:, :12] == after[:, :12]).all()
    assert not torch.allclose(before[:, 12:], after[:, 12:])


def test_cache_gives_the_logits_of_the_whole_sequence(tiny_model: Transformer) -> None:
    ids = torch.randint(0, 64, (3, 24), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        whole = tiny_model(ids)
        cache = Cache(tiny_model.config, 3, 24, torch.empty(0))
        pieces = [tiny_model(part, cache) for part in ids.split([9, 1, 1, 13], dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("tie_head", [True, False])
def test_parameter_table_is_the_model(tiny_config: ModelConfig, tie_head: bool) -> None:
    config = replace(tiny_config, tie_head=tie_head)
    actual = sum(weight.numel() for weight in Transformer(config, 64).parameters())
    assert sum(parameters(config, 64).values()) == actual


def test_smollm2_has_its_published_size() -> None:
    assert sum(parameters(SMOLLM2_135M, 49_152).values()) == 134_515_008


def test_flops_follow_palms_formula() -> None:
    """6 N + 12 L H Q T a token; the figure that SmolLM2's reproduction quotes uses N = 135 million, T = 256."""
    config = replace(SMOLLM2_135M, block_size=256)
    exact = flops_per_token(config, 49_152) + 6 * (135_000_000 - 134_515_008)
    assert exact * 256 == 220_949_544_960


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_head": 5}, "n_head: 5 does not divide d_model 32; use 4 or 8"),
        ({"n_kv_head": 3}, "n_kv_head: 3 does not divide n_head 4"),
        ({"d_model": 0}, "d_model: 0 is not positive"),
        ({"d_model": 12}, "odd"),
    ],
)
def test_impossible_shapes_are_refused(tiny_config: ModelConfig, change: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(tiny_config, **change)
