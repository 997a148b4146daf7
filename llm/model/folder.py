"""Models on disk in Hugging Face's Llama layout: `config.json`, `model.safetensors`, and the tokenizer's files.

`transformers` opens such a folder and gives the same logits. Fused matrices are stored as the parts that the layout
names; the rotary halves are already in its order. The safetensors file carries one metadata key only, because the
library writes several in a random order (huggingface/safetensors #584) and rebuilt files must not differ.
"""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from llm.errors import WordmillError
from llm.model.config import ModelConfig
from llm.model.transformer import Block, Transformer
from llm.tokenizer.tokenizer import files


def save(model: Transformer, folder: Path, tokenizer: Path, end_of_text: int) -> None:
    """Write the model and a copy of the tokenizer's files; `end_of_text` is the id between documents."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in files(tokenizer):
        shutil.copyfile(tokenizer / name, folder / name)
    config = _to_hugging_face(model.config, model.vocab_size, end_of_text)
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    save_file(_split(model), folder / "model.safetensors", metadata={"format": "pt"})


def load(folder: Path) -> Transformer:
    """The model in `folder`, fp32 on the CPU. Raises WordmillError for a missing or foreign folder."""
    try:
        settings = json.loads((folder / "config.json").read_text())
        tensors = load_file(folder / "model.safetensors")
    except FileNotFoundError as error:
        raise WordmillError(f"{folder}: no model there ({Path(str(error.filename)).name} is missing)") from None
    except (json.JSONDecodeError, SafetensorError) as error:
        raise WordmillError(f"{folder}: damaged ({error}); `dvc checkout` brings it back") from None
    if settings.get("model_type") != "llama":
        raise WordmillError(f"{folder}/config.json: model_type {settings.get('model_type')!r} is not llama")
    model = Transformer(_from_hugging_face(settings), settings["vocab_size"])
    with torch.no_grad():
        for name, weight in _split(model).items():
            if name not in tensors or tensors[name].shape != weight.shape:
                raise WordmillError(f"{folder}/model.safetensors: {name} is missing or has another shape")
            weight.copy_(tensors[name])
    return model


def fingerprint(model: Transformer) -> str:
    """SHA-256 over all weights: equal exactly when every bit is."""
    whole = hashlib.sha256()
    for name, weight in sorted(_split(model).items()):
        whole.update(name.encode() + weight.detach().cpu().contiguous().numpy().tobytes())
    return whole.hexdigest()


def _split(model: Transformer) -> dict[str, Tensor]:
    """Hugging Face's names with views into our weights, so the same table saves and loads."""
    views = {"model.embed_tokens.weight": model.embedding.weight.data, "model.norm.weight": model.norm.weight.data}
    if not model.config.tie_head:
        views["lm_head.weight"] = model.head.weight.data
    for index, block in enumerate(model.blocks):
        assert isinstance(block, Block)  # a ModuleList does not tell the type checker
        at = f"model.layers.{index}"
        q, k, v = block.attention.qkv.weight.data.split(block.attention.widths)
        gate, up = block.feed_forward.gate_up.weight.data.chunk(2)
        views |= {
            f"{at}.input_layernorm.weight": block.attention_norm.weight.data,
            f"{at}.self_attn.q_proj.weight": q,
            f"{at}.self_attn.k_proj.weight": k,
            f"{at}.self_attn.v_proj.weight": v,
            f"{at}.self_attn.o_proj.weight": block.attention.out.weight.data,
            f"{at}.post_attention_layernorm.weight": block.feed_forward_norm.weight.data,
            f"{at}.mlp.gate_proj.weight": gate,
            f"{at}.mlp.up_proj.weight": up,
            f"{at}.mlp.down_proj.weight": block.feed_forward.down.weight.data,
        }
    return views


def _to_hugging_face(config: ModelConfig, vocab_size: int, end_of_text: int) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocab_size,
        "hidden_size": config.d_model,
        "intermediate_size": config.d_ff,
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.n_kv_head,
        "head_dim": config.d_head,
        "max_position_embeddings": config.block_size,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_theta": config.rope_theta, "rope_type": "default"},
        "tie_word_embeddings": config.tie_head,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        "dtype": "float32",
    }


def _from_hugging_face(settings: dict[str, Any]) -> ModelConfig:
    return ModelConfig(
        n_layer=settings["num_hidden_layers"],
        n_head=settings["num_attention_heads"],
        n_kv_head=settings["num_key_value_heads"],
        d_model=settings["hidden_size"],
        d_ff=settings["intermediate_size"],
        block_size=settings["max_position_embeddings"],
        rope_theta=settings["rope_parameters"]["rope_theta"],
        norm_eps=settings["rms_norm_eps"],
        tie_head=settings["tie_word_embeddings"],
    )
