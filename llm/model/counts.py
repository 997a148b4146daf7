"""How many parameters a model has, row by row, and how many operations a token costs."""

from llm.model.config import ModelConfig


def parameters(config: ModelConfig, vocab_size: int) -> dict[str, int]:
    """Parameters by part; the values add up to the model's total."""
    layer = _layer(config)
    return {
        "embedding": vocab_size * config.d_model,
        "positions": config.block_size * config.d_model if config.position == "learned" else 0,
        "attention": config.n_layer * layer["attention"],
        "feed_forward": config.n_layer * layer["feed_forward"],
        "norms": config.n_layer * layer["norms"] + _norm(config, config.d_model),
        "head": 0 if config.tie_head else vocab_size * config.d_model,
    }


def parameter_table(config: ModelConfig, vocab_size: int) -> str:
    """The same as text: the parts of one layer, of all layers, of the whole model, with their shares of the total."""
    whole, layer = parameters(config, vocab_size), _layer(config)
    total, of_layer = sum(whole.values()), sum(layer.values())
    rows = [("embedding", whole["embedding"])]
    if whole["positions"]:
        rows.append(("positions", whole["positions"]))
    rows += [
        ("one layer", of_layer),
        *((f"  {part.replace('_', '-')}", count) for part, count in layer.items()),
        (f"all {config.n_layer} layers", config.n_layer * of_layer),
        ("final norm", _norm(config, config.d_model)),
        ("head (the embedding)" if config.tie_head else "head", whole["head"]),
        ("total", total),
    ]
    wide, digits = max(len(name) for name, _ in rows), len(f"{total:,}")
    return "\n".join(f"{name:<{wide}}  {count:>{digits},}  {count / total:6.1%}" for name, count in rows)


def _layer(config: ModelConfig) -> dict[str, int]:
    D, F, E = config.d_model, config.d_ff, config.d_head
    qkv = D + 2 * config.n_kv_head * E  # outputs of the fused product
    inner = 2 * F if config.feed_forward == "swiglu" else F
    return {
        "attention": D * qkv + D * D + config.bias * (qkv + D),
        "feed_forward": D * inner + F * D + config.bias * (inner + D),
        "norms": 2 * _norm(config, D) + (2 * _norm(config, E) if config.qk_norm else 0),
    }


def _norm(config: ModelConfig, width: int) -> int:
    """A gain, and a bias if there is one."""
    return width * (2 if config.norm == "layernorm" and config.bias else 1)


def palm_flops_per_token(multiplied: int, n_layer: int, n_head: int, d_head: int, length: int) -> int:
    """Training operations a token, forward and backward (Chowdhery et al. 2022, arXiv:2204.02311, appendix B).

    6 N + 12 · layers · heads · head width · length, with N = `multiplied` the parameters that take part in a matrix
    product. Attention is counted in full, though a causal kernel skips half of it.
    """
    return 6 * multiplied + 12 * n_layer * n_head * d_head * length


def flops_per_token(config: ModelConfig, vocab_size: int) -> int:
    """PaLM's count at the full context. A tied embedding counts once, as the head; what is only looked up does not."""
    rows = parameters(config, vocab_size)
    looked_up = rows["positions"] + (0 if config.tie_head else rows["embedding"])
    multiplied = sum(rows.values()) - looked_up
    return palm_flops_per_token(multiplied, config.n_layer, config.n_head, config.d_head, config.block_size)
