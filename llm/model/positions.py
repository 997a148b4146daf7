"""How a model knows where a token stands, by name.

Each kind is a module that takes embeddings (B, T, D) and the positions of their tokens, and gives the embeddings back,
with something added or not, and what queries and keys are turned by, if they are.

- `rope`: nothing is added; queries and keys are turned (Su et al. 2021, arXiv:2104.09864), so that their product
  depends on the distance. In two halves, as Hugging Face's Llama has them.
- `learned`: a vector for each position, trained like an embedding (GPT-2).
- `sinusoidal`: fixed sines and cosines (Vaswani et al. 2017, arXiv:1706.03762). The paper multiplies embeddings by √D
  before it adds them; here, which is the same up to the norm that follows, they are divided by √D instead.
- `none`: the causal mask alone tells positions apart (Haviv et al. 2022, arXiv:2203.16634).
"""

import math

import torch
from torch import Tensor, nn

from llm.model.config import ModelConfig

Rotation = tuple[Tensor, Tensor]  # cosines and sines, (T, E) or (B, 1, T, E)
Placed = tuple[Tensor, Rotation | None]


class Rope(nn.Module):
    cos: Tensor  # (block_size, E), as `rotary_table` makes it
    sin: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        cos, sin = rotary_table(config.block_size, config.d_head, config.rope_theta)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, x: Tensor, places: Tensor | None) -> Placed:
        if places is None:
            T = x.shape[1]
            return x, (self.cos[:T], self.sin[:T])  # (T, E)
        return x, (self.cos[places][:, None], self.sin[places][:, None])  # (B, 1, T, E)


class Learned(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(config.block_size, config.d_model))

    def forward(self, x: Tensor, places: Tensor | None) -> Placed:
        return x + (self.weight[: x.shape[1]] if places is None else self.weight[places]), None


class Sinusoidal(nn.Module):
    weight: Tensor  # (block_size, D)

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.register_buffer("weight", sinusoidal_table(config.block_size, config.d_model), persistent=False)

    def forward(self, x: Tensor, places: Tensor | None) -> Placed:
        return x + (self.weight[: x.shape[1]] if places is None else self.weight[places]), None


class Unplaced(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()

    def forward(self, x: Tensor, places: Tensor | None) -> Placed:
        return x, None


POSITIONS: dict[str, type[Rope] | type[Learned] | type[Sinusoidal] | type[Unplaced]] = {
    "rope": Rope,
    "learned": Learned,
    "sinusoidal": Sinusoidal,
    "none": Unplaced,
}


def rotary_table(length: int, d_head: int, theta: float) -> Rotation:
    """Cosines and sines (length, E) of RoPE, the E/2 frequencies repeated for both halves."""
    frequencies = theta ** (-_numbers(0, d_head, 2) / d_head)
    angles = torch.outer(_numbers(0, length, 1), frequencies).repeat(1, 2)
    return angles.cos().float(), angles.sin().float()


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Turn each pair (x[i], x[i + E/2]) by its position's angle."""
    cos, sin = (table.to(x.dtype) for table in rotation)
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def sinusoidal_table(length: int, d_model: int) -> Tensor:
    """(length, D): sines in the even columns, cosines in the odd ones, wavelengths from 2π to 20,000π, over √D."""
    frequencies = 10_000 ** (-_numbers(0, d_model, 2) / d_model)
    angles = torch.outer(_numbers(0, length, 1), frequencies)
    return (torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1) / math.sqrt(d_model)).float()


def _numbers(start: int, end: int, step: int) -> Tensor:
    """Float64, on the CPU whatever the default device: `meta` would import torch's compiler, for two seconds."""
    return torch.arange(start, end, step, dtype=torch.float64, device="cpu")
