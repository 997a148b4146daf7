"""The shape of a model and the names of its parts. The vocabulary's size is not here: it comes from the tokenizer."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from llm.errors import ConfigError
from llm.limits import check_limits, divisors, nearest

WIDEST_FLASH_HEAD = 128  # wider ones need smaller tiles than `llm.model.flash` has
AttentionKind = Literal["reference", "fused", "flash", "flex"]
# Far above every model that was ever trained; they stop a slip of the finger before it fills the memory.
LIMITS = {
    "n_layer": (1, 10_000),
    "n_head": (1, 65_536),
    "n_kv_head": (1, 65_536),
    "d_model": (1, 1_048_576),
    "d_ff": (1, 8_388_608),
    "block_size": (1, 16_777_216),
    "rope_theta": (1e-3, 1e15),
    "norm_eps": (1e-30, 1.0),
    "head_dim": (0, 65_536),
}


@dataclass(frozen=True)
class ModelConfig:
    """A pre-norm decoder; the parts that have names are tables in `llm.model`. Raises ConfigError."""

    n_layer: int  # blocks
    n_head: int  # query heads
    n_kv_head: int  # key and value heads, each shared by n_head / n_kv_head query heads
    d_model: int  # width of the residual stream
    d_ff: int  # hidden width of the feed-forward
    block_size: int  # tokens of context
    attention: AttentionKind  # how it is computed; the result is the same
    position: Literal["rope", "learned", "sinusoidal", "none"]
    rope_theta: float  # rope: base of the rotary wavelengths
    norm: Literal["rmsnorm", "layernorm"]
    norm_eps: float
    qk_norm: bool  # queries and keys are normed too, head by head
    feed_forward: Literal["swiglu", "gelu", "relu", "relu2"]
    bias: bool  # matrices and LayerNorm have biases; the head never has
    dropout: float  # share of what is embedded, and of what sub-layers add, that is zeroed in training
    tie_head: bool  # the output head is the embedding, transposed
    head_dim: int = 0  # width of one head, as in Qwen3's config.json; 0: d_model / n_head

    def __post_init__(self) -> None:
        for name in ("n_layer", "n_head", "n_kv_head", "d_model", "d_ff", "block_size", "rope_theta", "norm_eps"):
            if getattr(self, name) <= 0:
                raise ConfigError(name, f"{getattr(self, name)} is not positive")
        check_limits(self, LIMITS)
        if not 0 <= self.dropout < 1:
            raise ConfigError("dropout", f"{self.dropout} is not in [0, 1); 0 is none, 0.1 is usual")
        pairs = self.position == "rope"  # a head's width must be even
        if self.head_dim == 0 and self.d_model % self.n_head:
            near = nearest(self.n_head, (n for n in divisors(self.d_model) if self.d_model // n % (1 + pairs) == 0))
            advice = " or ".join(map(str, near)) if near else "an even d_model"
            raise ConfigError("n_head", f"{self.n_head} does not divide d_model {self.d_model}; use {advice}")
        if self.n_head % self.n_kv_head:
            raise ConfigError(
                "n_kv_head",
                f"{self.n_kv_head} does not divide n_head {self.n_head}; use one of {divisors(self.n_head)}",
            )
        if self.head_dim * self.n_head == self.d_model:
            object.__setattr__(self, "head_dim", 0)  # one shape has one configuration
        if pairs and self.head_dim % 2:
            raise ConfigError("head_dim", f"{self.head_dim} is odd; RoPE turns pairs, so use an even one")
        if pairs and self.d_head % 2:
            raise ConfigError("d_model", f"a head of d_model / n_head = {self.d_head} is odd; RoPE turns pairs")
        if self.position == "sinusoidal" and self.d_model % 2:
            raise ConfigError("d_model", f"{self.d_model} is odd; sinusoidal positions are pairs of sine and cosine")

    @property
    def d_head(self) -> int:
        """Width of one head."""
        return self.head_dim or self.d_model // self.n_head

    def as_dict(self) -> dict[str, Any]:
        """All fields by name. A head_dim of 0 is left out: model folders from before it do not have it."""
        return {name: value for name, value in asdict(self).items() if name != "head_dim" or value}
