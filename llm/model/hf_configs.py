"""`config.json` of model folders, as schemas: what our models can be, and what is refused by name.

A schema holds the keys that decide a model's logits. A key that is absent has the default of `transformers`. A feature
that our models lack is refused, since logits would be wrong without it. Other keys (of sampling, of training) are not
read. Sizes have limits, so that no file makes a reader build a model that no machine holds.

| model_type | what differs |
| --- | --- |
| llama | biases everywhere or nowhere |
| mistral | Llama without biases; a sliding window must be as long as the context |
| qwen2 | Llama with biases of queries, keys and values; ours has all biases, the others are zero |
| qwen3 | Llama without biases, with normed queries and keys |
| gpt2 | learned or sinusoidal positions, LayerNorm, biases |
| wordmill | our own names, for mixtures of parts that have no class in `transformers` |
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, create_model

from llm.errors import ConfigError, WordmillError
from llm.model.config import AttentionKind, ModelConfig
from llm.strict_json import first_problem, quoted, read_json

Settings = dict[str, Any]  # of config.json
NOT_OF_THE_MODEL = ("attention", "dropout")  # how it is computed and trained, not what it is
REMEDY = "`dvc checkout` brings back what DVC made; fetch a folder from elsewhere again"
READ = ("llama", "qwen3", "gpt2", "wordmill", "mistral", "qwen2")  # model types
ROTATIONS = 1 << 25  # context times width of a head: RoPE's tables are made before training


def _plain_dict(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: part for key, part in value.items() if part is not None}
    return value


Count = Annotated[int, Field(ge=1, le=1 << 20)]
HeadWidth = Annotated[int, Field(ge=0, le=1 << 16)]  # 0: d_model by heads
Layers = Annotated[int, Field(ge=1, le=10_000)]
Vocabulary = Annotated[int, Field(ge=1, le=1 << 24)]
Epsilon = Annotated[float, Field(gt=0, lt=1)]
Theta = Annotated[float, Field(gt=0, le=1e12)]
NOT_QUANTISED = "quantised weights are not read; give a bf16 or fp32 copy"


def _unquantised(value: Any) -> Any:
    if value:
        raise ValueError(NOT_QUANTISED)
    return value


class Schema(BaseModel):
    """Strict: no value is converted. A key that is null counts as absent."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False, protected_namespaces=())

    vocab_size: Vocabulary
    quantization_config: Annotated[Any, AfterValidator(_unquantised)] = None


class Rope(BaseModel):
    """Plain RoPE. Other keys belong to kinds of scaling."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    rope_type: Literal["default"] = "default"
    type: Literal["default"] = "default"  # its older name
    rope_theta: Theta | None = None
    partial_rotary_factor: Annotated[float, Field(ge=1, le=1)] = 1.0


class Llama(Schema):
    """Of Llama, Mistral, Qwen2 and Qwen3."""

    model_type: Literal["llama", "mistral", "qwen2", "qwen3"]
    num_hidden_layers: Layers
    num_attention_heads: Count
    num_key_value_heads: Count | None = None
    hidden_size: Count
    intermediate_size: Count
    head_dim: Annotated[int, Field(ge=1, le=1 << 16)] | None = None
    max_position_embeddings: Count
    hidden_act: Literal["silu"] = "silu"
    rms_norm_eps: Epsilon = 1e-6
    tie_word_embeddings: bool = False
    rope_theta: Theta = 10_000.0
    rope_parameters: Annotated[Rope | None, BeforeValidator(_plain_dict)] = None  # transformers 5
    rope_scaling: Annotated[Rope | None, BeforeValidator(_plain_dict)] = None  # before it, beside rope_theta
    partial_rotary_factor: Annotated[float, Field(ge=1, le=1)] = 1.0
    attention_bias: bool = False
    mlp_bias: bool = False
    use_sliding_window: Literal[False] = False
    sliding_window: Any = None  # read for Mistral, which has no switch for it
    layer_types: list[Literal["full_attention"]] = []

    def to_model(self, attention: AttentionKind) -> ModelConfig:
        if self.mlp_bias != self.attention_bias:
            raise ConfigError("mlp_bias", f"{self.mlp_bias} is not supported, only {self.attention_bias} beside it")
        if self.attention_bias and self.model_type in ("qwen3", "mistral"):
            raise ConfigError("attention_bias", f"True is not supported in a {self.model_type} model, only False")
        if self.model_type == "mistral":
            self._check_window()
        if self.layer_types and len(self.layer_types) != self.num_hidden_layers:
            raise ConfigError("layer_types", f"has {len(self.layer_types)} for {self.num_hidden_layers} layers")
        return self._checked(attention)

    def _check_window(self) -> None:
        window, context = self.sliding_window, self.max_position_embeddings
        if window is not None and (type(window) is not int or window < context):
            raise ConfigError(
                "sliding_window",
                f"{quoted(window)} is not supported, only null or the whole context of {context}; where texts are no "
                "longer than the window, lower max_position_embeddings to it",
            )

    def _checked(self, attention: AttentionKind) -> ModelConfig:
        n_head, d_model = self.num_attention_heads, self.hidden_size
        if self.head_dim is None and d_model % n_head:
            raise ConfigError("num_attention_heads", f"{n_head} does not divide hidden_size {d_model}")
        head = self.head_dim or d_model // n_head
        if head % 2:
            raise ConfigError("head_dim", f"{head} is not supported, only even widths, since RoPE turns pairs")
        if head * self.max_position_embeddings > ROTATIONS:
            raise ConfigError(
                "max_position_embeddings",
                f"{self.max_position_embeddings} is too long for heads of {head}; lower it to {ROTATIONS // head}",
            )
        rope = self.rope_parameters or self.rope_scaling or Rope()
        return ModelConfig(
            n_layer=self.num_hidden_layers,
            n_head=n_head,
            n_kv_head=self.num_key_value_heads or n_head,
            d_model=d_model,
            d_ff=self.intermediate_size,
            block_size=self.max_position_embeddings,
            attention=attention,
            position="rope",
            rope_theta=rope.rope_theta or self.rope_theta,
            norm="rmsnorm",
            norm_eps=self.rms_norm_eps,
            qk_norm=self.model_type == "qwen3",
            feed_forward="swiglu",
            bias=self.attention_bias or self.model_type == "qwen2",
            dropout=0.0,
            tie_head=self.tie_word_embeddings,
            head_dim=self.head_dim or 0,
        )


# What `transformers` takes for a key that is absent, where that is not what it takes for null.
DEFAULTS: dict[str, Settings] = {
    "mistral": {"num_key_value_heads": 8, "sliding_window": 4096},
    "qwen2": {"num_key_value_heads": 32},
    "qwen3": {"num_key_value_heads": 32, "head_dim": 128},
}

GPT2_ACTIVATIONS: dict[str, Literal["gelu", "relu", "relu2"]] = {
    "gelu_new": "gelu",
    "gelu_pytorch_tanh": "gelu",
    "relu": "relu",
    "relu2": "relu2",
}


class GPT2(Schema):
    n_layer: Layers
    n_head: Count
    n_embd: Count
    n_inner: Count | None = None
    n_positions: Count
    activation_function: Literal["gelu_new", "gelu_pytorch_tanh", "relu", "relu2"] = "gelu_new"
    layer_norm_epsilon: Epsilon = 1e-5
    tie_word_embeddings: bool = True
    scale_attn_weights: Literal[True] = True
    scale_attn_by_inverse_layer_idx: Literal[False] = False
    add_cross_attention: Literal[False] = False
    position: Literal["learned", "sinusoidal"] = "learned"  # ours: `transformers` keeps it and does not read it

    def to_model(self, attention: AttentionKind) -> ModelConfig:
        return ModelConfig(
            n_layer=self.n_layer,
            n_head=self.n_head,
            n_kv_head=self.n_head,
            d_model=self.n_embd,
            d_ff=self.n_inner or 4 * self.n_embd,
            block_size=self.n_positions,
            attention=attention,
            position=self.position,
            rope_theta=10_000.0,
            norm="layernorm",
            norm_eps=self.layer_norm_epsilon,
            qk_norm=False,
            feed_forward=GPT2_ACTIVATIONS[self.activation_function],
            bias=True,
            dropout=0.0,
            tie_head=self.tie_word_embeddings,
        )


def _own_field(name: str, hint: Any) -> Any:
    special = {"n_layer": Layers, "norm_eps": Epsilon, "rope_theta": Theta, "head_dim": HeadWidth}
    return special.get(name, Count if hint is int else hint)


_HINTS = get_type_hints(ModelConfig)
_FIELDS: dict[str, Any] = {
    name: (_own_field(name, hint), 0 if name == "head_dim" else ...)
    for name, hint in _HINTS.items()
    if name not in NOT_OF_THE_MODEL
}
Own = create_model("Own", __base__=Schema, **_FIELDS)


def described(folder: Path, attention: AttentionKind) -> tuple[Settings, ModelConfig, int]:
    """What config.json of a model folder says: itself, the model's configuration, and its rows for tokens.

    Raises WordmillError.
    """
    settings = read_config(folder)
    try:
        return settings, model_config(settings, attention), settings["vocab_size"]
    except ValidationError as error:
        raise WordmillError(f"{folder}/config.json: {first_problem(error)}") from None
    except ConfigError as error:
        raise WordmillError(f"{folder}/config.json: {error}") from None


def read_config(folder: Path) -> Settings:
    """The settings of config.json, of a model_type that is known. Raises WordmillError."""
    try:
        settings = read_json(folder / "config.json", f"; {REMEDY}")
    except FileNotFoundError:
        raise WordmillError(f"{folder}: no model there (config.json is missing)") from None
    kind = settings.get("model_type") if isinstance(settings, dict) else None
    if not isinstance(kind, str) or kind not in READ:
        raise WordmillError(
            f"{folder}/config.json: model_type: {quoted(kind)} is not supported; known are {', '.join(READ)}"
        )
    found: Settings = settings
    return found


def model_config(settings: Settings, attention: AttentionKind) -> ModelConfig:
    """The configuration that settings of a known `model_type` describe. Raises ConfigError and ValidationError."""
    kind = settings["model_type"]
    given = DEFAULTS.get(kind, {}) | settings
    present = {key: value for key, value in given.items() if value is not None}
    if kind == "gpt2":
        return GPT2.model_validate(present).to_model(attention)
    if kind != "wordmill":
        return Llama.model_validate(present).to_model(attention)
    from llm.model.attention import ATTENTIONS  # only here: torch takes seconds to import

    own = Own.model_validate(present).model_dump(include=set(_HINTS))
    head = own["head_dim"] or own["d_model"] // own["n_head"]
    if own["position"] == "rope" and own["block_size"] * head > ROTATIONS:
        raise ConfigError("block_size", f"{own['block_size']} is too long for a table of rotations; lower it")
    named: Any = present.get("attention")  # of another formula than the others, so that none may take its place
    if named is not None and not (isinstance(named, str) and named in ATTENTIONS):
        raise ConfigError("attention", f"{quoted(named)} is not supported, only {', '.join(map(repr, ATTENTIONS))}")
    return ModelConfig(**{**own, "attention": named or attention, "dropout": 0.0})
