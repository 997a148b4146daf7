"""The models of benchmarks and tests: Llama's parts, so that `transformers`, TRL and others have the same."""

from llm.model.config import ModelConfig


def llama(n_layer: int, n_head: int, n_kv_head: int, d_model: int, d_ff: int, block_size: int) -> ModelConfig:
    """A Llama of this shape, its head tied to the embedding."""
    return ModelConfig(
        n_layer=n_layer,
        n_head=n_head,
        n_kv_head=n_kv_head,
        d_model=d_model,
        d_ff=d_ff,
        block_size=block_size,
        attention="fused",
        position="rope",
        rope_theta=10_000.0,
        norm="rmsnorm",
        norm_eps=1e-5,
        qk_norm=False,
        feed_forward="swiglu",
        bias=False,
        dropout=0.0,
        tie_head=True,
    )


def smollm2_135m(block_size: int) -> ModelConfig:
    """SmolLM2-135M's shape; its vocabulary is `SMOLLM2_VOCABULARY`."""
    return llama(30, 9, 3, 576, 1536, block_size)


SMOLLM2_VOCABULARY = 49_152
