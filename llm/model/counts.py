"""How many parameters a model has, row by row, and how many operations a token costs.

Parameters are counted on a model without memory (torch's `meta` device), so they are right for any part of any table.
"""

from dataclasses import replace
from functools import lru_cache

import torch
from torch import nn

from llm.model.config import ModelConfig
from llm.model.transformer import Block, Transformer


def parameters(config: ModelConfig, vocab_size: int) -> dict[str, int]:
    """Parameters by part; the values add up to the model's total."""
    layer, around = _counted(config, vocab_size)
    return {
        "embedding": around["embedding"],
        "positions": around["position"],
        "attention": config.n_layer * layer["attention"],
        "feed_forward": config.n_layer * layer["feed_forward"],
        "norms": config.n_layer * layer["norms"] + around["norm"],
        "head": 0 if config.tie_head else around["head"],
    }


def parameter_table(config: ModelConfig, vocab_size: int) -> str:
    """The same as text: the parts of one layer, of all layers, of the whole model, with their shares of the total."""
    whole, (layer, around) = parameters(config, vocab_size), _counted(config, vocab_size)
    total, of_layer = sum(whole.values()), sum(layer.values())
    rows = [("embedding", whole["embedding"])]
    if whole["positions"]:
        rows.append(("positions", whole["positions"]))
    rows += [
        ("one layer", of_layer),
        *((f"  {part.replace('_', '-')}", count) for part, count in layer.items()),
        (f"all {config.n_layer} layers", config.n_layer * of_layer),
        ("final norm", around["norm"]),
        ("head (the embedding)" if config.tie_head else "head", whole["head"]),
        ("total", total),
    ]
    wide, digits = max(len(name) for name, _ in rows), len(f"{total:,}")
    return "\n".join(f"{name:<{wide}}  {count:>{digits},}  {count / total:6.1%}" for name, count in rows)


@lru_cache
def _counted(config: ModelConfig, vocab_size: int) -> tuple[dict[str, int], dict[str, int]]:
    """Parameters of one layer by part, and of what stands around the layers."""
    with torch.device("meta"):
        model = Transformer(replace(config, n_layer=1), vocab_size)
    (block,) = model.blocks
    assert isinstance(block, Block)
    of_heads = sum(_size(norm) for norm in (block.attention.q_norm, block.attention.k_norm)) if config.qk_norm else 0
    layer = {
        "attention": _size(block.attention) - of_heads,
        "feed_forward": _size(block.feed_forward),
        "norms": _size(block.attention_norm) + _size(block.feed_forward_norm) + of_heads,
    }
    return layer, {name: _size(model.get_submodule(name)) for name in ("embedding", "position", "norm", "head")}


def _size(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


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
