"""Model folders against `transformers`: ours are opened there, theirs here, and the logits are the same."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Model,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from llm.errors import WordmillError
from llm.model import folder
from llm.model.config import ModelConfig
from llm.model.layouts import layout_of
from llm.model.transformer import Transformer

GPT2 = {"position": "learned", "norm": "layernorm", "feed_forward": "gelu", "bias": True, "n_kv_head": 4}
SMALL = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 32}
GPT2_SMALL = {"vocab_size": 64, "n_positions": 32, "n_embd": 32, "n_layer": 2, "n_head": 4} | {
    "bos_token_id": 0,
    "eos_token_id": 0,
}
LLAMA = SMALL | {"intermediate_size": 48, "vocab_size": 64, "max_position_embeddings": 32}
IDS = torch.randint(0, 64, (3, 32), generator=torch.Generator().manual_seed(0))


def started(config: ModelConfig) -> Transformer:
    """A model whose every parameter matters, biases and gains included."""
    model = Transformer(config, vocab_size=64)
    model.initialise(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel()))
    return model.eval()


def saved(model: Transformer, at: Path) -> Path:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (at / name).write_text("{}")
    folder.save(model, at / "model", at, end_of_text=0)
    return at / "model"


def changed(path: Path, **changes: Any) -> None:
    """Set keys of a JSON file; None takes a key out."""
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


@pytest.mark.parametrize(
    ("layout", "change"),
    [
        ("llama", {}),
        ("llama", {"tie_head": False, "n_kv_head": 1}),
        ("llama", {"bias": True, "rope_theta": 500.0, "norm_eps": 1e-3}),
        ("qwen3", {"qk_norm": True, "tie_head": False}),
        ("llama", {"head_dim": 16, "tie_head": False}),
        ("qwen3", {"qk_norm": True, "head_dim": 4, "n_head": 6}),
        ("gpt2", GPT2 | {"dropout": 0.1}),
        ("gpt2", GPT2 | {"feed_forward": "relu", "position": "sinusoidal"}),
        ("gpt2", GPT2 | {"feed_forward": "relu2", "tie_head": False}),
    ],
    ids=str,
)
def test_saved_folder_gives_equal_logits_in_transformers(
    tiny_config: ModelConfig, tmp_path: Path, layout: str, change: dict[str, Any]
) -> None:
    model = started(replace(tiny_config, **change))
    assert layout_of(model.config) == layout
    at = saved(model, tmp_path)
    theirs, report = AutoModelForCausalLM.from_pretrained(at, output_loading_info=True)
    assert not any(report.values()), report
    with torch.no_grad():
        assert (theirs.eval()(IDS).logits - model(IDS)).abs().max() < 1e-5
    again = folder.load(at)
    assert again.config == replace(model.config, dropout=0.0)
    assert (again(IDS) == model(IDS)).all()
    assert folder.fingerprint(again) == folder.fingerprint(model)


@pytest.mark.parametrize(
    "change",
    [
        {"position": "none"},
        {"feed_forward": "relu2", "norm": "layernorm"},
        {"qk_norm": True, "bias": True},
        GPT2 | {"bias": False, "n_kv_head": 2},
        GPT2 | {"head_dim": 16},
    ],
    ids=str,
)
def test_other_mixtures_keep_their_own_layout(tiny_config: ModelConfig, tmp_path: Path, change: dict[str, Any]) -> None:
    model = started(replace(tiny_config, **change))
    assert layout_of(model.config) == "wordmill"
    again = folder.load(saved(model, tmp_path))
    assert again.config == model.config
    assert (again(IDS) == model(IDS)).all()
    changed(tmp_path / "model" / "config.json", norm="batchnorm")
    with pytest.raises(WordmillError, match="norm: 'batchnorm' is not supported, only 'rmsnorm' or 'layernorm'"):
        folder.load(tmp_path / "model")


@pytest.mark.parametrize("change", [{}, GPT2, {"position": "none"}], ids=str)
def test_saving_twice_gives_the_same_bytes(tiny_config: ModelConfig, tmp_path: Path, change: dict[str, Any]) -> None:
    files = []
    for attempt in "ab":
        (tmp_path / attempt).mkdir()
        at = saved(started(replace(tiny_config, **change)), tmp_path / attempt)
        files.append({path.name: path.read_bytes() for path in at.iterdir()})
    assert files[0] == files[1]


FOREIGN = {
    "llama": (LlamaForCausalLM, LlamaConfig(**LLAMA, tie_word_embeddings=True, rms_norm_eps=1e-5)),
    "llama-untied": (
        LlamaForCausalLM,
        LlamaConfig(**LLAMA, rope_parameters={"rope_type": "default", "rope_theta": 5e5}),
    ),
    "llama-biases": (LlamaForCausalLM, LlamaConfig(**LLAMA, attention_bias=True, mlp_bias=True)),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config(**LLAMA, head_dim=8)),
    "gpt2": (GPT2LMHeadModel, GPT2Config(**GPT2_SMALL)),
    "gpt2-relu": (GPT2LMHeadModel, GPT2Config(**GPT2_SMALL, n_inner=40, activation_function="relu")),
    "gpt2-untied": (GPT2LMHeadModel, GPT2Config(**GPT2_SMALL, tie_word_embeddings=False)),
}


def foreign(name: str) -> Any:
    torch.manual_seed(2)
    kind, config = FOREIGN[name]
    model = kind(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.1 * torch.randn_like(weight)
    return model


@pytest.mark.parametrize("name", sorted(FOREIGN))
@pytest.mark.parametrize("sharded", [False, True])
def test_folders_from_elsewhere_give_their_logits(tmp_path: Path, name: str, sharded: bool) -> None:
    theirs = foreign(name)
    theirs.save_pretrained(tmp_path, max_shard_size="20KB" if sharded else "1GB")
    assert (tmp_path / "model.safetensors.index.json").exists() == sharded
    ours = folder.load(tmp_path, attention="reference").eval()
    assert ours.config.attention == "reference"
    with torch.no_grad():
        assert (theirs(IDS).logits - ours(IDS)).abs().max() < 1e-4
    for path in tmp_path.iterdir():
        path.unlink()
    back = AutoModelForCausalLM.from_pretrained(saved(ours, tmp_path))
    with torch.no_grad():
        assert (theirs(IDS).logits - back(IDS).logits).abs().max() < 1e-4


def test_bf16_weights_are_read_exactly(tmp_path: Path) -> None:
    foreign("llama").to(torch.bfloat16).save_pretrained(tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    ours = folder.load(tmp_path)
    with torch.no_grad():
        assert (theirs(IDS).logits - ours(IDS)).abs().max() < 1e-4


def test_older_configurations_are_understood(tmp_path: Path) -> None:
    """As before transformers 5: `rope_theta`, `torch_dtype`, no `head_dim`; rotations among the weights."""
    theirs = foreign("llama-untied")
    theirs.save_pretrained(tmp_path)
    changed(tmp_path / "config.json", rope_parameters=None, rope_theta=5e5, head_dim=None, dtype=None)
    changed(tmp_path / "config.json", torch_dtype="float32", rope_scaling=None, tie_word_embeddings=None)
    weights = load_file(tmp_path / "model.safetensors")
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(weights, tmp_path / "model.safetensors")
    with torch.no_grad():
        assert (theirs(IDS).logits - folder.load(tmp_path)(IDS)).abs().max() < 1e-4


def test_gpt2_without_its_head_and_with_its_masks(tmp_path: Path) -> None:
    """As the first GPT-2 files are: names without a prefix, and the causal mask among the weights."""
    theirs = foreign("gpt2")
    body = GPT2Model(theirs.config)
    body.load_state_dict(theirs.transformer.state_dict())
    body.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    assert "wte.weight" in weights
    weights["h.0.attn.bias"] = torch.ones(1, 1, 32, 32)
    save_file(weights, tmp_path / "model.safetensors")
    with torch.no_grad():
        assert (theirs(IDS).logits - folder.load(tmp_path)(IDS)).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "llama",
            {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8}},
            "rope_parameters.rope_type: 'llama3' is not supported, only 'default'",
        ),
        (
            "llama",
            {"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2}},
            "rope_scaling.type: 'linear'",
        ),
        ("llama", {"attention_bias": True}, "mlp_bias: False is not supported, only True"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act: 'gelu' is not supported, only 'silu'"),
        ("llama", {"head_dim": 7}, "head_dim: 7 is not supported, only even widths"),
        ("llama", {"head_dim": 1 << 17}, "head_dim: "),
        ("llama", {"head_dim": 0}, "head_dim: "),
        ("llama", {"hidden_size": 30, "head_dim": None}, "num_attention_heads: 4 does not divide hidden_size 30"),
        ("llama", {"hidden_size": None}, "hidden_size: missing"),
        ("llama", {"num_attention_heads": 5}, "head"),
        ("llama", {"model_type": "gemma"}, "model_type: 'gemma' is not supported; known are llama, qwen3, gpt2"),
        ("llama", {"num_hidden_layers": "2"}, "num_hidden_layers: '2' is not what belongs there"),
        ("llama", {"rms_norm_eps": True}, "rms_norm_eps: True is not what belongs there"),
        ("llama", {"vocab_size": None}, "vocab_size: missing"),
        ("llama", {"quantization_config": {"bits": 4}}, "quantization_config: quantised weights are not read"),
        ("qwen3", {"use_sliding_window": True}, "use_sliding_window: True is not supported"),
        (
            "qwen3",
            {"layer_types": ["full_attention", "sliding_attention"]},
            "layer_types.1: 'sliding_attention' is not supported",
        ),
        ("gpt2", {"activation_function": "gelu"}, "activation_function: 'gelu' is not supported, only 'gelu_new'"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx: True is not"),
    ],
)
def test_what_ours_cannot_have_is_refused_by_name(
    tmp_path: Path, name: str, change: dict[str, Any], message: str
) -> None:
    foreign(name).save_pretrained(tmp_path)
    changed(tmp_path / "config.json", **change)
    with pytest.raises(WordmillError, match=r"config\.json: ") as error:
        folder.load(tmp_path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_and_damaged_folders_are_named(tmp_path: Path, tiny_model: Transformer) -> None:
    with pytest.raises(WordmillError, match=r"no model there \(config\.json is missing\)"):
        folder.load(tmp_path)
    at = saved(tiny_model, tmp_path)
    (at / "model.safetensors").write_bytes((at / "model.safetensors").read_bytes()[:-100])
    with pytest.raises(WordmillError, match="damaged"):
        folder.load(at)
    (at / "model.safetensors").unlink()
    with pytest.raises(WordmillError, match=r"no model there \(model\.safetensors is missing\)"):
        folder.load(at)
    (at / "config.json").write_text("[]")
    with pytest.raises(WordmillError, match="model_type"):
        folder.load(at)


def test_pickled_weights_are_never_opened(tmp_path: Path) -> None:
    foreign("gpt2").save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(WordmillError, match=r"pytorch_model\.bin is pickled.*safetensors"):
        folder.load(tmp_path)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    foreign("llama").save_pretrained(tmp_path, max_shard_size="20KB")
    shard = min(tmp_path.glob("model-*.safetensors"))
    shard.unlink()
    with pytest.raises(WordmillError, match=f"no model there \\({shard.name} is missing"):
        folder.load(tmp_path)


@pytest.mark.parametrize("name", ["../model.safetensors", "/model.safetensors"])
def test_an_index_cannot_point_elsewhere(tmp_path: Path, name: str) -> None:
    foreign("llama").save_pretrained(tmp_path, max_shard_size="20KB")
    changed(tmp_path / "model.safetensors.index.json", weight_map={"model.norm.weight": name})
    with pytest.raises(WordmillError, match="is not a file beside it"):
        folder.load(tmp_path)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda weights: weights.pop("model.norm.weight"), "model.norm.weight is missing"),
        (
            lambda weights: weights.update({"model.norm.weight": torch.ones(31)}),
            r"model.norm.weight has the shape \[31\]; config.json says \[32\]",
        ),
        (
            lambda weights: weights.update({"score.weight": torch.ones(2)}),
            "'score.weight' has no place in a llama model",
        ),
        (lambda weights: weights.update({"model.norm.weight": torch.ones(32, dtype=torch.int8)}), "is quantised"),
        (
            lambda weights: weights.update({"model.layers.1.self_attn.o_proj.weight": torch.ones(32, 64)}),
            r"o_proj.weight has the shape \[32, 64\]; config.json says \[32, 32\]",
        ),
    ],
)
def test_weights_that_do_not_fit_are_named(tmp_path: Path, spoil: Any, message: str) -> None:
    foreign("llama").save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    spoil(weights)
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(WordmillError, match=message):
        folder.load(tmp_path)
