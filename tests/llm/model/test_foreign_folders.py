"""Model folders from elsewhere: Qwen2 and Mistral give their logits; absurd and damaged ones are refused at once."""

import json
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from llm.errors import WordmillError
from llm.model import folder
from llm.model.weight_files import SUMS, write_sums
from llm.tokenizer.byte_bpe import ByteBPE
from llm.tokenizer.patterns import GPT2

SHAPE: dict[str, Any] = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 32}
SHAPE |= {"intermediate_size": 48, "vocab_size": 64, "max_position_embeddings": 32}
IDS = torch.randint(0, 64, (3, 32), generator=torch.Generator().manual_seed(0))
KINDS = {
    "qwen2": (Qwen2ForCausalLM, Qwen2Config(**SHAPE, tie_word_embeddings=True)),
    "mistral": (MistralForCausalLM, MistralConfig(**SHAPE, sliding_window=None)),
    "mistral-whole-window": (MistralForCausalLM, MistralConfig(**SHAPE, sliding_window=32)),
    "llama": (LlamaForCausalLM, LlamaConfig(**SHAPE)),
}


def saved(name: str, at: Path, **changes: Any) -> Any:
    """A model of `transformers`, every weight of which matters, in a folder whose config.json is changed."""
    torch.manual_seed(2)
    kind, config = KINDS[name]
    model = kind(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.1 * torch.randn_like(weight)
    model.save_pretrained(at)
    content = json.loads((at / "config.json").read_text()) | changes
    (at / "config.json").write_text(json.dumps(content))
    return model


@pytest.mark.parametrize("name", ["qwen2", "mistral", "mistral-whole-window"])
def test_logits_are_those_of_transformers_also_after_saving(tmp_path: Path, name: str) -> None:
    theirs = saved(name, tmp_path / "given")
    ours = folder.load(tmp_path / "given").eval()
    ByteBPE.from_merges([], GPT2, ["<|endoftext|>"]).save(tmp_path / "tokenizer")
    folder.save(ours, tmp_path / "again", tmp_path / "tokenizer", 0)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    with torch.no_grad():
        expected = theirs(IDS).logits
        assert (expected - ours(IDS)).abs().max() < 1e-4
        assert (expected - again(IDS).logits).abs().max() < 1e-4
    if name == "qwen2":
        biases = {key: weight for key, weight in ours.named_parameters() if key.endswith("bias")}
        assert all(bool(weight.any()) == ("qkv" in key) for key, weight in biases.items())


def test_a_padded_vocabulary_is_cut_and_logits_stay(tmp_path: Path) -> None:
    theirs = saved("qwen2", tmp_path)
    ours = folder.load(tmp_path, vocab_size=50)
    assert ours.vocab_size == 50
    ids = IDS % 50
    with torch.no_grad():
        assert (theirs(ids).logits[..., :50] - ours(ids)).abs().max() < 1e-4
    with pytest.raises(WordmillError, match="the model has 64 tokens, its tokenizer 65"):
        folder.load(tmp_path, vocab_size=65)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"vocab_size": 10**12}, "vocab_size"),
        ({"vocab_size": -1}, "vocab_size"),
        ({"vocab_size": True}, "vocab_size"),
        ({"vocab_size": 1 << 20}, r"model\.embed_tokens\.weight has the shape"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"num_hidden_layers": 9_999}, "too few for the 9999 layers"),
        ({"hidden_size": 1 << 20, "head_dim": None}, "has the shape"),
        ({"intermediate_size": 2**63}, "intermediate_size"),
        ({"max_position_embeddings": 10**12}, "max_position_embeddings"),
        ({"max_position_embeddings": 1 << 20, "hidden_size": 1 << 18, "head_dim": None}, "too long for heads"),
        ({"layer_types": 5}, "layer_types"),
        ({"layer_types": ["full_attention"]}, "has 1 for 2 layers"),
        ({"rope_parameters": "x"}, "rope_parameters"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1.0}}}, "rope_parameters.full_attention"),
        ({"rope_theta": -1.0, "rope_parameters": None}, "rope_theta"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"model_type": []}, "model_type"),
        ({"model_type": {"a": 1}}, "model_type"),
        ({"rms_norm_eps": 0}, "rms_norm_eps"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
    ],
    ids=str,
)
def test_absurd_settings_are_refused_before_memory_is_taken(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    saved("llama", tmp_path, **change)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(WordmillError, match=says) as caught:
        folder.load(tmp_path)
    assert str(caught.value).isprintable()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


@pytest.mark.parametrize("window", [16, 0, "x", [32]])
def test_a_window_shorter_than_the_context_is_refused(tmp_path: Path, window: Any) -> None:
    saved("mistral", tmp_path, sliding_window=window)
    with pytest.raises(
        WordmillError, match=r"sliding_window: .* is not supported, only null or the whole context of 32"
    ):
        folder.load(tmp_path)


def test_mistral_without_the_key_has_the_window_of_transformers(tmp_path: Path) -> None:
    saved("mistral", tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    del content["sliding_window"]
    (tmp_path / "config.json").write_text(json.dumps(content))
    folder.load(tmp_path)  # 4096, which is longer than its context
    (tmp_path / "config.json").write_text(json.dumps(content | {"max_position_embeddings": 8192}))
    with pytest.raises(WordmillError, match="sliding_window: 4096 is not supported"):
        folder.load(tmp_path)


@pytest.mark.parametrize(
    ("index", "says"),
    [
        ({}, "weight_map: missing"),
        ({"weight_map": 5}, "weight_map"),
        ({"weight_map": {"model.norm.weight": 5}}, "weight_map.model.norm.weight"),
        ({"weight_map": {"model.norm.weight": "../x.safetensors"}}, "is not a file beside it"),
        ({"weight_map": {"model.norm.weight": "x" * 300}}, "is not a file beside it"),
        ({"weight_map": {"no.such": "part.safetensors"}}, "does not say that"),
        ([], "index.json"),
    ],
    ids=str,
)
def test_an_index_is_checked(tmp_path: Path, index: Any, says: str) -> None:
    saved("llama", tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "part.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(WordmillError, match=says):
        folder.load(tmp_path)


def test_a_zeroed_tail_is_found_by_the_checksum(tmp_path: Path) -> None:
    saved("llama", tmp_path)
    write_sums(tmp_path, ["model.safetensors"])
    folder.load(tmp_path)
    content = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(content[:-1000] + bytes(1000))
    with pytest.raises(WordmillError, match="not the bytes that were written"):
        folder.load(tmp_path)
    (tmp_path / SUMS).write_text("rubbish\n")
    with pytest.raises(WordmillError, match=SUMS):
        folder.load(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(tmp_path: Path, value: float) -> None:
    saved("llama", tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["model.norm.weight"][3] = value
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(WordmillError, match=r"'model\.norm\.weight' holds NaN or infinity"):
        folder.load(tmp_path)
