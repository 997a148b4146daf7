"""Heads that are not d_model / n_head wide, as in all of Qwen3's and in Mistral-Nemo's folders."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader
from transformers import AutoConfig, AutoModelForCausalLM

from llm.compiled_decoder import CompiledDecoder
from llm.compute import Compute
from llm.decoder import TorchDecoder
from llm.export import gguf
from llm.model import folder
from llm.model.config import ModelConfig
from llm.model.counts import flops_per_token
from llm.model.transformer import Transformer
from llm.tokenizer.byte_bpe import ByteBPE
from llm.tokenizer.patterns import GPT2

IDS = torch.randint(0, 64, (2, 16), generator=torch.Generator().manual_seed(0))
UNEVEN = "heads do not divide hidden_size"
SHAPES: dict[str, dict[str, int]] = {
    "wider": {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16},
    "narrower": {"num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 4},
    UNEVEN: {"num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 8},
}


def foreign(kind: str, shape: str) -> Any:
    """A small model of `transformers` whose every weight matters."""
    config = AutoConfig.for_model(
        kind, hidden_size=32, intermediate_size=48, vocab_size=64, max_position_embeddings=32, num_hidden_layers=2,
        **SHAPES[shape], **({"sliding_window": None} if kind == "mistral" else {}),
    )  # fmt: skip
    torch.manual_seed(2)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.1 * torch.randn_like(weight)
    return model


MADE = [(kind, shape) for kind in ("qwen3", "llama", "mistral", "qwen2") for shape in SHAPES]
MADE.remove(("llama", UNEVEN))  # `transformers` does not make it


@pytest.mark.parametrize(("kind", "shape"), MADE)
def test_logits_are_those_of_transformers_however_they_are_computed(
    tmp_path: Path, compute: Compute, kind: str, shape: str
) -> None:
    theirs = foreign(kind, shape)
    theirs.save_pretrained(tmp_path / "given")
    ours = folder.load(tmp_path / "given").eval()
    ByteBPE.from_merges([], GPT2, ["<|endoftext|>"]).save(tmp_path / "tokenizer")
    folder.save(ours, tmp_path / "again", tmp_path / "tokenizer", 0)
    with torch.no_grad():
        expected = theirs(IDS).logits
        torch.testing.assert_close(ours(IDS), expected, atol=1e-4, rtol=0)
        if kind == "qwen3" or shape != UNEVEN:  # else it is saved as ours, which `transformers` does not open
            again = AutoModelForCausalLM.from_pretrained(tmp_path / "again").eval()
            torch.testing.assert_close(again(IDS).logits, expected, atol=1e-4, rtol=0)
    assert folder.fingerprint(folder.load(tmp_path / "again")) == folder.fingerprint(ours)
    assert folder.load(tmp_path / "again").config == ours.config
    for decoder in (TorchDecoder(ours, compute), CompiledDecoder(ours, compute)):
        reading = decoder.read(IDS[:, :6].tolist(), 16)
        for place in range(6, 16):
            torch.testing.assert_close(reading.logits, expected[:, place - 1], atol=1e-4, rtol=0)
            reading.step(IDS[:, place])


@pytest.mark.parametrize("kind", ["qwen3", "llama"])
def test_gguf_gives_the_same_logits_in_transformers(tmp_path: Path, kind: str) -> None:
    foreign(kind, "wider").save_pretrained(tmp_path / "given")
    config = folder.load(tmp_path / "given").config
    tokenizer = ByteBPE.from_merges([(32, 32)], GPT2, ["<|endoftext|>"])
    model = Transformer(config, tokenizer.vocab_size)
    model.initialise(1)
    gguf.write(model.eval(), tokenizer, tmp_path / "model.gguf", "f32", "wordmill-test")
    fields = GGUFReader(tmp_path / "model.gguf").fields
    for name in ("attention.key_length", "attention.value_length", "rope.dimension_count"):
        assert fields[f"{kind}.{name}"].contents() == 16
    # Of Qwen3's files `transformers` does not read the width of heads, so it is told.
    given = {"config": AutoConfig.from_pretrained(tmp_path / "given", vocab_size=258)} if kind == "qwen3" else {}
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", **given)
    assert theirs.config.head_dim == 16
    with torch.no_grad():
        torch.testing.assert_close(theirs(IDS).logits, model(IDS), atol=1e-4, rtol=0)


def test_one_shape_has_one_configuration(tiny_config: ModelConfig) -> None:
    """A head_dim that says d_model / n_head is no other model, and a file without the key is read as before."""
    assert replace(tiny_config, head_dim=8) == tiny_config
    assert "head_dim" not in tiny_config.as_dict()
    assert ModelConfig(**tiny_config.as_dict()) == tiny_config
    wide = replace(tiny_config, head_dim=16)
    assert ModelConfig(**wide.as_dict()) == wide != tiny_config


def test_operations_count_the_heads_own_width(tiny_config: ModelConfig) -> None:
    """Doubled heads double what attention costs: its matrices and its products over the context."""
    c = tiny_config
    matrices = c.n_layer * (2 * c.n_head + 2 * c.n_kv_head) * 8 * c.d_model
    products = 12 * c.n_layer * c.n_head * 8 * c.block_size
    assert flops_per_token(replace(c, head_dim=16), 64) - flops_per_token(c, 64) == 6 * matrices + products
