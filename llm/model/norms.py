"""Norms by name. Both bring each vector to a mean square of one and multiply it by a learned gain.

- `rmsnorm`: nothing more (Zhang and Sennrich 2019, arXiv:1910.07467).
- `layernorm`: the mean is taken off first (Ba et al. 2016, arXiv:1607.06450), and a bias is added if the model has any.
"""

from collections.abc import Callable

from torch import nn

from llm.model.config import ModelConfig


def rmsnorm(config: ModelConfig, width: int) -> nn.Module:
    """Over the last dimension, of `width`."""
    return nn.RMSNorm(width, config.norm_eps)


def layernorm(config: ModelConfig, width: int) -> nn.Module:
    """Over the last dimension, of `width`."""
    return nn.LayerNorm(width, config.norm_eps, bias=config.bias)


NORMS: dict[str, Callable[[ModelConfig, int], nn.Module]] = {"rmsnorm": rmsnorm, "layernorm": layernorm}
