"""Feed-forwards by name: what each position does by itself, (B, T, D) -> (B, T, D) over a hidden width d_ff.

- `swiglu`: down(silu(gate(x)) · up(x)), three matrices (Shazeer 2020, arXiv:2002.05202). Gate and up are one product.
- `gelu`, `relu`, `relu2`: down(f(up(x))), two matrices; for equal parameters d_ff is half as large again. GELU is the
  tanh form that GPT-2 was trained with; ReLU² is So et al. 2021 (arXiv:2109.08668).
"""

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from llm.model.config import ModelConfig


class SwiGLU(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_up = nn.Linear(config.d_model, 2 * config.d_ff, bias=config.bias)
        self.down = nn.Linear(config.d_ff, config.d_model, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class Plain(nn.Module):
    activation: Callable[[Tensor], Tensor]

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.d_model, config.d_ff, bias=config.bias)
        self.down = nn.Linear(config.d_ff, config.d_model, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(type(self).activation(self.up(x)))


class GELU(Plain):
    @staticmethod
    def activation(x: Tensor) -> Tensor:
        return F.gelu(x, approximate="tanh")


class ReLU(Plain):
    activation = staticmethod(F.relu)


class ReLU2(Plain):
    @staticmethod
    def activation(x: Tensor) -> Tensor:
        return F.relu(x).square()


FEED_FORWARDS: dict[str, type[SwiGLU] | type[Plain]] = {"swiglu": SwiGLU, "gelu": GELU, "relu": ReLU, "relu2": ReLU2}
