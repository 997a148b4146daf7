"""What model folders say: Hugging Face's names for our weights, and its `config.json` for our configuration.

- `llama`: rope, rmsnorm, swiglu, with biases everywhere or nowhere. `transformers` opens it as LlamaForCausalLM.
- `qwen3`: the same without biases, with normed queries and keys. Qwen3ForCausalLM.
- `gpt2`: learned or sinusoidal positions, layernorm, gelu, relu or relu2, biases, as many key-value heads as query
  heads. GPT2LMHeadModel. Matrices are transposed there, (in, out), and sinusoids take the place of learned positions.
- `wordmill`: any other mixture, under our own names. `transformers` has no class for it. So is a model of which a part
  is not exactly what its name stands for (`llm.model.exact`), and one whose attention has another formula: its name is
  then in the folder, too.

A layout is two tables. One names the weights, as views into ours (fused matrices in their parts), so it serves saving
and loading alike. The other translates the configuration; from a foreign folder it takes what it understands and
refuses the rest by name, since a feature passed over would change the logits.
"""

import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args, get_type_hints

from llm.errors import ConfigError
from llm.model.config import AttentionKind, ModelConfig

if TYPE_CHECKING:  # a check of params.yaml asks for a layout's name, without the seconds that torch takes to import
    from torch import Tensor

    from llm.model.transformer import Transformer

Settings = dict[str, Any]  # of config.json
NOT_OF_THE_MODEL = ("attention", "dropout")  # how it is computed and trained, not what it is


@dataclass(frozen=True)
class Layout:
    fits: Callable[[ModelConfig], bool]
    views: "Callable[[Transformer], dict[str, Tensor]]"  # names to views into the model's weights
    settings: Callable[[ModelConfig], Settings]
    config: Callable[[Settings, AttentionKind], ModelConfig]  # raises ConfigError
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
    return {key: value for key, value in asdict(config).items() if key not in left_out}


def _own_config(settings: Settings, attention: AttentionKind) -> ModelConfig:
    values = {}
    for name, kind in get_type_hints(ModelConfig).items():
        if name not in NOT_OF_THE_MODEL:
            values[name] = _read(settings, name, str if get_args(kind) else kind)
            if get_args(kind):
                _only(settings, name, *get_args(kind), default=None)
    from llm.model.attention import ATTENTIONS

    if "attention" in settings:  # of another formula than the others, so that none may take its place
        _only(settings, "attention", *ATTENTIONS, default=None)
        attention = settings["attention"]
    return ModelConfig(**values, attention=attention, dropout=0.0)


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


def _llama_config(settings: Settings, attention: AttentionKind) -> ModelConfig:
    """Of Llama and of Qwen3, whose configurations differ in the latter's windows. Defaults are `transformers`'."""
    qwen3 = settings["model_type"] == "qwen3"
    bias = _read(settings, "attention_bias", bool, False)
    _only(settings, "mlp_bias", bias, default=False)
    if qwen3:
        _only(settings, "attention_bias", False, default=False)
    _only(settings, "hidden_act", "silu", default="silu")
    _only(settings, "use_sliding_window", False, default=False)
    for kind in settings.get("layer_types") or ():
        if kind != "full_attention":
            raise ConfigError("layer_types", f"{kind!r} is not supported, only 'full_attention'")
    n_head, d_model = _read(settings, "num_attention_heads", int), _read(settings, "hidden_size", int)
    _only(settings, "head_dim", d_model // n_head, None, default=128 if qwen3 else None)
    return ModelConfig(
        n_layer=_read(settings, "num_hidden_layers", int),
        n_head=n_head,
        n_kv_head=_read(settings, "num_key_value_heads", int, n_head),
        d_model=d_model,
        d_ff=_read(settings, "intermediate_size", int),
        block_size=_read(settings, "max_position_embeddings", int),
        attention=attention,
        position="rope",
        rope_theta=_rope_theta(settings),
        norm="rmsnorm",
        norm_eps=_read(settings, "rms_norm_eps", float, 1e-6),
        qk_norm=qwen3,
        feed_forward="swiglu",
        bias=bias,
        dropout=0.0,
        tie_head=_read(settings, "tie_word_embeddings", bool, False),
    )


def _rope_theta(settings: Settings) -> float:
    """From `rope_parameters` (transformers 5), or from `rope_theta` beside an optional `rope_scaling` (before it)."""
    for key in ("rope_parameters", "rope_scaling"):
        rope = settings.get(key) or {}
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind != "default" or rope.get("partial_rotary_factor", 1) != 1:
            raise ConfigError(key, f"{kind!r} is not supported, only plain RoPE over the whole head")
    rope = settings.get("rope_parameters") or settings
    return float(_read(rope, "rope_theta", float, _read(settings, "rope_theta", float, 10_000.0)))


GPT2_ACTIVATIONS: dict[str, Literal["gelu", "relu", "relu2"]] = {
    "gelu_new": "gelu",
    "gelu_pytorch_tanh": "gelu",
    "relu": "relu",
    "relu2": "relu2",
}


def _fits_gpt2(config: ModelConfig) -> bool:
    return (
        config.position in ("learned", "sinusoidal")
        and config.norm == "layernorm"
        and config.feed_forward in GPT2_ACTIVATIONS.values()
        and config.bias
        and not config.qk_norm
        and config.n_kv_head == config.n_head
    )


def _gpt2_views(model: "Transformer") -> "dict[str, Tensor]":
    from torch import Tensor

    ours = _own_views(model)
    positions = model.position.weight
    assert isinstance(positions, Tensor)  # a parameter or a buffer
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


def _gpt2_config(settings: Settings, attention: AttentionKind) -> ModelConfig:
    activation = settings.get("activation_function", "gelu_new")
    _only(settings, "activation_function", *GPT2_ACTIVATIONS, default="gelu_new")
    _only(settings, "scale_attn_weights", True, default=True)
    _only(settings, "scale_attn_by_inverse_layer_idx", False, default=False)
    _only(settings, "add_cross_attention", False, default=False)
    _only(settings, "position", "learned", "sinusoidal", default="learned")
    n_head, d_model = _read(settings, "n_head", int), _read(settings, "n_embd", int)
    return ModelConfig(
        n_layer=_read(settings, "n_layer", int),
        n_head=n_head,
        n_kv_head=n_head,
        d_model=d_model,
        d_ff=_read(settings, "n_inner", int, 4 * d_model),
        block_size=_read(settings, "n_positions", int),
        attention=attention,
        position=settings.get("position", "learned"),
        rope_theta=10_000.0,
        norm="layernorm",
        norm_eps=_read(settings, "layer_norm_epsilon", float, 1e-5),
        qk_norm=False,
        feed_forward=GPT2_ACTIVATIONS[activation],
        bias=True,
        dropout=0.0,
        tie_head=_read(settings, "tie_word_embeddings", bool, True),
    )


def _fits_llama(config: ModelConfig) -> bool:
    return config.position == "rope" and config.norm == "rmsnorm" and config.feed_forward == "swiglu"


LAYOUTS: dict[str, Layout] = {
    "llama": Layout(
        fits=lambda config: _fits_llama(config) and not config.qk_norm,
        views=_llama_views,
        settings=_llama_settings,
        config=_llama_config,
        prefix="model.",
        ignored=(".rotary_emb.inv_freq",),
    ),
    "qwen3": Layout(
        fits=lambda config: _fits_llama(config) and config.qk_norm and not config.bias,
        views=_llama_views,
        settings=_llama_settings,
        config=_llama_config,
        prefix="model.",
    ),
    "gpt2": Layout(
        fits=_fits_gpt2,
        views=_gpt2_views,
        settings=_gpt2_settings,
        config=_gpt2_config,
        prefix="transformer.",
        ignored=(".attn.bias", ".attn.masked_bias"),
    ),
    "wordmill": Layout(fits=lambda _: True, views=_own_views, settings=_own_settings, config=_own_config),
}


def _widths(config: ModelConfig) -> tuple[int, int, int]:
    """Of queries, keys and values in their fused matrix."""
    kv_width = config.n_kv_head * config.d_head
    return config.d_model, kv_width, kv_width


def _read(settings: Settings, key: str, kind: type, default: Any = None) -> Any:
    """The value of a key; `default` if it is not there or null. Raises ConfigError where there is none either."""
    value = settings.get(key)
    if value is None:
        value = default
    if value is None:
        raise ConfigError(key, "missing")
    if not isinstance(value, (int, float) if kind is float else kind) or (kind is not bool and isinstance(value, bool)):
        raise ConfigError(key, f"{value!r} is not what belongs there")
    return value


def _only(settings: Settings, key: str, *supported: Any, default: Any) -> None:
    value = settings.get(key, default)
    if value not in supported:
        raise ConfigError(key, f"{value!r} is not supported, only {' or '.join(map(repr, supported))}")
