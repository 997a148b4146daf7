"""Which models a second implementation may compute: those whose every part is exactly the one it was written for.

The compiled decoder, the cache of generation, pairs packed in one row, and the layouts of other programs all write
parts of `llm.model` down a second time. What they do not know would be computed by another formula, without a sign. So
they ask here first, and fall back to the model itself, or refuse, for any other class: one from a table that has grown,
a subclass, or one that stands under an old name.
"""

from collections.abc import Iterator
from typing import Any

from torch import nn

from llm.model.attention import ATTENTIONS, SAME_FORMULA
from llm.model.feed_forward import GELU, Plain, ReLU, ReLU2, SwiGLU
from llm.model.positions import Learned, Rope, Sinusoidal, Unplaced
from llm.model.transformer import Attention, Block, Transformer

# What the names of a configuration stand for. The tables that models are made from may hold more, or something else.
FEED_FORWARDS: dict[str, type[nn.Module]] = {"swiglu": SwiGLU, "gelu": GELU, "relu": ReLU, "relu2": ReLU2}
NORMS: dict[str, type[nn.Module]] = {"rmsnorm": nn.RMSNorm, "layernorm": nn.LayerNorm}
POSITIONS: dict[str, type[nn.Module]] = {
    "rope": Rope,
    "learned": Learned,
    "sinusoidal": Sinusoidal,
    "none": Unplaced,
}


def unknown_part(model: nn.Module) -> str | None:
    """The first part that is not exactly what its name stands for, for messages; None if all are."""
    return next(_unknown(model), None)


def unknown_mixer(model: nn.Module) -> str | None:
    """The first unknown part that may let a token see others in another way than causal attention; None if none may.

    A feed-forward that only has another activation is no such part.
    """
    feed_forwards = {
        f"blocks.{number}.feed_forward"
        for number, block in enumerate(getattr(model, "blocks", ()))
        if type(getattr(block, "feed_forward", None)).forward is Plain.forward  # type: ignore[union-attr]
    }
    return next((part for part in _unknown(model) if part.partition(" ")[0] not in feed_forwards), None)


def same_formula(attention: str) -> bool:
    """Whether this entry of the table computes causal softmax attention, as all of ours do."""
    return ATTENTIONS[attention] in SAME_FORMULA


def _unknown(model: nn.Module) -> Iterator[str]:
    if type(model) is not Transformer:
        yield f"the model ({type(model).__name__})"
        return
    config = model.config
    if not same_formula(config.attention):
        yield f"model.attention ({config.attention})"
    for name, part, known in _slots(model):
        right_norm = not isinstance(part, nn.RMSNorm | nn.LayerNorm) or part.eps == config.norm_eps
        if type(part) is not known or not right_norm:
            yield f"{name} ({type(part).__name__})"


def _slots(model: Transformer) -> Iterator[tuple[str, Any, type[nn.Module] | None]]:
    """Each part's name, the part, and the class that it should have."""
    config = model.config
    norm, feed_forward = NORMS.get(config.norm), FEED_FORWARDS.get(config.feed_forward)
    yield "embedding", model.embedding, nn.Embedding
    yield "position", model.position, POSITIONS.get(config.position)
    yield "norm", model.norm, norm
    yield "head", model.head, nn.Linear
    for number, block in enumerate(model.blocks):
        at = f"blocks.{number}"
        yield at, block, Block
        if type(block) is not Block:
            continue
        yield f"{at}.attention_norm", block.attention_norm, norm
        yield f"{at}.feed_forward_norm", block.feed_forward_norm, norm
        yield f"{at}.feed_forward", block.feed_forward, feed_forward
        yield f"{at}.attention", block.attention, Attention
        if type(block.attention) is not Attention:
            continue
        yield f"{at}.attention.qkv", block.attention.qkv, nn.Linear
        yield f"{at}.attention.out", block.attention.out, nn.Linear
        if config.qk_norm:
            yield f"{at}.attention.q_norm", block.attention.q_norm, norm
            yield f"{at}.attention.k_norm", block.attention.k_norm, norm
