"""How many parameters a model has, row by row, and how many operations a token costs."""

from llm.model.config import ModelConfig


def parameters(config: ModelConfig, vocab_size: int) -> dict[str, int]:
    """Parameters by part; the values add up to the model's total."""
    D, F, L = config.d_model, config.d_ff, config.n_layer
    kv_width = config.n_kv_head * config.d_head
    return {
        "embedding": vocab_size * D,
        "attention": L * (D * D + 2 * D * kv_width + D * D),
        "feed_forward": L * 3 * D * F,
        "norms": (2 * L + 1) * D,
        "head": 0 if config.tie_head else vocab_size * D,
    }


def flops_per_token(config: ModelConfig, vocab_size: int) -> int:
    """Training operations a token, forward and backward, as PaLM counts them (Chowdhery et al. 2022, appendix B).

    6 N + 12 · layers · heads · head width · T, with N all parameters that take part in a matrix product: a tied
    embedding counts once, as the head. Attention is counted in full, though a causal kernel skips half of it.
    """
    rows = parameters(config, vocab_size)
    multiplied = sum(rows.values()) - (0 if config.tie_head else rows["embedding"])
    return 6 * multiplied + 12 * config.n_layer * config.n_head * config.d_head * config.block_size
