"""The shape of a model. The vocabulary's size is not here: it comes from the tokenizer."""

from dataclasses import dataclass

from llm.errors import ConfigError


@dataclass(frozen=True)
class ModelConfig:
    """A LLaMA-style decoder: RoPE, RMSNorm, SwiGLU, grouped-query attention. Raises ConfigError."""

    n_layer: int  # blocks
    n_head: int  # query heads
    n_kv_head: int  # key and value heads, each shared by n_head / n_kv_head query heads
    d_model: int  # width of the residual stream
    d_ff: int  # hidden width of the feed-forward
    block_size: int  # tokens of context
    rope_theta: float  # base of the rotary wavelengths
    norm_eps: float
    tie_head: bool  # the output head is the embedding, transposed

    def __post_init__(self) -> None:
        for name in ("n_layer", "n_head", "n_kv_head", "d_model", "d_ff", "block_size", "rope_theta", "norm_eps"):
            if getattr(self, name) <= 0:
                raise ConfigError(name, f"{getattr(self, name)} is not positive")
        if self.d_model % self.n_head:
            fitting = [n for n in range(1, self.d_model + 1) if self.d_model % (2 * n) == 0]
            near = [n for n in fitting if n < self.n_head][-1:] + [n for n in fitting if n > self.n_head][:1]
            advice = " or ".join(map(str, near)) if near else "an even d_model"
            raise ConfigError("n_head", f"{self.n_head} does not divide d_model {self.d_model}; use {advice}")
        if self.n_head % self.n_kv_head:
            fitting = [n for n in range(1, self.n_head + 1) if self.n_head % n == 0]
            raise ConfigError(
                "n_kv_head", f"{self.n_kv_head} does not divide n_head {self.n_head}; use one of {fitting}"
            )
        if self.d_head % 2:
            raise ConfigError("d_model", f"a head of d_model / n_head = {self.d_head} is odd; RoPE turns pairs")

    @property
    def d_head(self) -> int:
        """Width of one head."""
        return self.d_model // self.n_head
