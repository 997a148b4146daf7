"""What model folders say: Hugging Face's names for our weights, and its `config.json` for our configuration.

- `llama`: rope, rmsnorm, swiglu, with biases everywhere or nowhere. `transformers` opens it as LlamaForCausalLM, which
  asks that the number of heads divide d_model, also where the heads have a width of their own.
- `qwen3`: the same without biases, with normed queries and keys. Qwen3ForCausalLM.
- `gpt2`: learned or sinusoidal positions, layernorm, gelu, relu or relu2, biases, as many key-value heads as query
  heads, no head_dim of its own. GPT2LMHeadModel. Matrices are transposed there, (in, out), and sinusoids take the place
  of learned positions.
- `wordmill`: any other mixture, under our own names. `transformers` has no class for it. So is a model of which a part
  is not exactly what its name stands for (`llm.model.exact`), and one whose attention has another formula: its name is
  then in the folder, too.

Mistral's and Qwen2's folders are read as Llama's, and saved as such. Of Qwen2 the biases that it lacks are zero.

A layout names the weights, as views into ours (fused matrices in their parts), so it serves saving and loading alike.
It also writes the configuration. `llm.model.hf_configs` reads it.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

from llm.model.config import AttentionKind, ModelConfig
from llm.model.hf_configs import GPT2_ACTIVATIONS, NOT_OF_THE_MODEL, Settings

if TYPE_CHECKING:  # a check of params.yaml asks for a layout's name, without the seconds that torch takes to import
    from torch import Tensor

    from llm.model.transformer import Transformer


@dataclass(frozen=True)
class Layout:
    fits: Callable[[ModelConfig], bool]
    views: "Callable[[Transformer], dict[str, Tensor]]"  # names to views into the model's weights
    settings: Callable[[ModelConfig], Settings]
    prefix: str = ""  # what a name may lack in a folder that was saved without the head
    ignored: tuple[str, ...] = ()  # ends of names of tensors that hold no weights


def layout_of(config: ModelConfig) -> str:
    """The name of the first layout that can express `config`, if each part is what its name stands for."""
    if not same_formula(config.attention):
        return "wordmill"
    return next(name for name, layout in LAYOUTS.items() if layout.fits(config))


def layout_for(model: "Transformer") -> str:
    """The name of the first layout that can express `model`."""
    from llm.model.exact import unknown_part

    return layout_of(model.config) if unknown_part(model) is None else "wordmill"


def same_formula(attention: str) -> bool:
    """As `llm.model.exact` says it. Where nothing has imported the table of attentions, nobody has changed it."""
    if "llm.model.attention" not in sys.modules:
        return attention in get_args(AttentionKind)
    from llm.model import exact

    return exact.same_formula(attention)


def _own_views(model: "Transformer") -> "dict[str, Tensor]":
    return {name: weight.data for name, weight in model.named_parameters()}


def _own_settings(config: ModelConfig) -> Settings:
    left_out = NOT_OF_THE_MODEL if same_formula(config.attention) else ("dropout",)
    return {key: value for key, value in config.as_dict().items() if key not in left_out}


def _llama_views(model: "Transformer") -> "dict[str, Tensor]":
    ours = _own_views(model)
    views = {"model.embed_tokens.weight": ours["embedding.weight"], "model.norm.weight": ours["norm.weight"]}
    if not model.config.tie_head:
        views["lm_head.weight"] = ours["head.weight"]
    for layer in range(model.config.n_layer):
        block, at = f"blocks.{layer}", f"model.layers.{layer}"
        views[f"{at}.input_layernorm.weight"] = ours[f"{block}.attention_norm.weight"]
        views[f"{at}.post_attention_layernorm.weight"] = ours[f"{block}.feed_forward_norm.weight"]
        if model.config.qk_norm:
            views[f"{at}.self_attn.q_norm.weight"] = ours[f"{block}.attention.q_norm.weight"]
            views[f"{at}.self_attn.k_norm.weight"] = ours[f"{block}.attention.k_norm.weight"]
        for kind in ("weight", "bias")[: 1 + model.config.bias]:
            q, k, v = ours[f"{block}.attention.qkv.{kind}"].split(_widths(model.config))
            gate, up = ours[f"{block}.feed_forward.gate_up.{kind}"].chunk(2)
            views |= {
                f"{at}.self_attn.q_proj.{kind}": q,
                f"{at}.self_attn.k_proj.{kind}": k,
                f"{at}.self_attn.v_proj.{kind}": v,
                f"{at}.self_attn.o_proj.{kind}": ours[f"{block}.attention.out.{kind}"],
                f"{at}.mlp.gate_proj.{kind}": gate,
                f"{at}.mlp.up_proj.{kind}": up,
                f"{at}.mlp.down_proj.{kind}": ours[f"{block}.feed_forward.down.{kind}"],
            }
    return views


def _llama_settings(config: ModelConfig) -> Settings:
    settings = {
        "architectures": ["Qwen3ForCausalLM" if config.qk_norm else "LlamaForCausalLM"],
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
        "attention_bias": config.bias,
    }
    return settings if config.qk_norm else settings | {"mlp_bias": config.bias}


def _fits_gpt2(config: ModelConfig) -> bool:
    return (
        config.position in ("learned", "sinusoidal")
        and config.norm == "layernorm"
        and config.feed_forward in GPT2_ACTIVATIONS.values()
        and config.bias
        and not config.qk_norm
        and config.n_kv_head == config.n_head
        and config.head_dim == 0
    )


def _gpt2_views(model: "Transformer") -> "dict[str, Tensor]":

    ours = _own_views(model)
    positions: Any = model.position.weight  # a parameter or a buffer
    views = {"transformer.wte.weight": ours["embedding.weight"], "transformer.wpe.weight": positions.data}
    if not model.config.tie_head:
        views["lm_head.weight"] = ours["head.weight"]
    for kind in ("weight", "bias"):
        views[f"transformer.ln_f.{kind}"] = ours[f"norm.{kind}"]
        for layer in range(model.config.n_layer):
            block, at = f"blocks.{layer}", f"transformer.h.{layer}"
            views |= {
                f"{at}.ln_1.{kind}": ours[f"{block}.attention_norm.{kind}"],
                f"{at}.attn.c_attn.{kind}": ours[f"{block}.attention.qkv.{kind}"].t(),
                f"{at}.attn.c_proj.{kind}": ours[f"{block}.attention.out.{kind}"].t(),
                f"{at}.ln_2.{kind}": ours[f"{block}.feed_forward_norm.{kind}"],
                f"{at}.mlp.c_fc.{kind}": ours[f"{block}.feed_forward.up.{kind}"].t(),
                f"{at}.mlp.c_proj.{kind}": ours[f"{block}.feed_forward.down.{kind}"].t(),
            }
    return views


def _gpt2_settings(config: ModelConfig) -> Settings:
    names = {"gelu": "gelu_new", "relu": "relu", "relu2": "relu2"}
    return {
        "architectures": ["GPT2LMHeadModel"],
        "n_embd": config.d_model,
        "n_inner": config.d_ff,
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_positions": config.block_size,
        "activation_function": names[config.feed_forward],
        "layer_norm_epsilon": config.norm_eps,
        "tie_word_embeddings": config.tie_head,
        "embd_pdrop": config.dropout,
        "resid_pdrop": config.dropout,
        "attn_pdrop": 0.0,
        "position": config.position,  # ours: `transformers` keeps it and does not read it
    }


def _fits_llama(config: ModelConfig) -> bool:
    return config.position == "rope" and config.norm == "rmsnorm" and config.feed_forward == "swiglu"


LAYOUTS: dict[str, Layout] = {
    "llama": Layout(
        fits=lambda config: _fits_llama(config) and not config.qk_norm and config.d_model % config.n_head == 0,
        views=_llama_views,
        settings=_llama_settings,
        prefix="model.",
        ignored=(".rotary_emb.inv_freq",),
    ),
    "qwen3": Layout(
        fits=lambda config: _fits_llama(config) and config.qk_norm and not config.bias,
        views=_llama_views,
        settings=_llama_settings,
        prefix="model.",
    ),
    "gpt2": Layout(
        fits=_fits_gpt2,
        views=_gpt2_views,
        settings=_gpt2_settings,
        prefix="transformer.",
        ignored=(".attn.bias", ".attn.masked_bias"),
    ),
    "wordmill": Layout(fits=lambda _: True, views=_own_views, settings=_own_settings),
}


# The layout of each model_type that is read, and the ends of names of tensors that may be absent: they are zero then.
READ_AS: dict[str, str] = {**{name: name for name in LAYOUTS}, "mistral": "llama", "qwen2": "llama"}
ABSENT: dict[str, tuple[str, ...]] = {
    "qwen2": (".o_proj.bias", ".gate_proj.bias", ".up_proj.bias", ".down_proj.bias"),
}


def _widths(config: ModelConfig) -> tuple[int, int, int]:
    """Of queries, keys and values in their fused matrix."""
    kv_width = config.n_kv_head * config.d_head
    return config.n_head * config.d_head, kv_width, kv_width
