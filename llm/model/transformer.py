"""The transformer, to be read in one sitting: a pre-norm LLaMA decoder (Touvron et al. 2023, arXiv:2302.13971).

- RMSNorm before each sub-layer and before the head; no biases anywhere.
- Rotary positions in two halves, as Hugging Face's Llama has them, so saved folders need no reordering.
- Grouped queries: n_kv_head key and value heads serve n_head query heads (Ainslie et al. 2023).
- SwiGLU: down(silu(gate(x)) · up(x)).
- Query, key and value are one matrix product, gate and up another: fewer, larger products are faster.
- A matrix starts normal with standard deviation 1/√(its inputs), so that every width starts with signals of size one;
  the two that write into the residual stream are scaled down by √(2 n_layer), so that its variance does not grow with
  depth (GPT-2). The embedding, which is also the head, starts at 0.5/√D: first logits of size one half.

Shapes: B batch, T time, D d_model, H query heads, K key-value heads, E head width, V vocabulary.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llm.model.attention import ATTENTIONS, Attend
from llm.model.config import ModelConfig


class Cache:
    """Keys and values of what a batch has read so far: per layer two tensors (B, K, T_max, E).

    `lengths` (B,) counts the valid positions of each row, so prompts of different lengths share a batch unpadded.
    """

    def __init__(self, config: ModelConfig, batch: int, length: int, like: Tensor) -> None:
        shape = (config.n_layer, batch, config.n_kv_head, length, config.d_head)
        self.keys = torch.zeros(shape, dtype=like.dtype, device=like.device)
        self.values = torch.zeros(shape, dtype=like.dtype, device=like.device)
        self.lengths = torch.zeros(batch, dtype=torch.long, device=like.device)

    def keep(self, rows: Tensor) -> None:
        """Forget all rows but these."""
        self.keys, self.values, self.lengths = self.keys[:, rows], self.values[:, rows], self.lengths[rows]


class Attention(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        kv_width = config.n_kv_head * config.d_head
        self.widths = (config.d_model, kv_width, kv_width)
        self.qkv = nn.Linear(config.d_model, sum(self.widths), bias=False)
        self.out = nn.Linear(config.d_model, config.d_model, bias=False)

    def forward(
        self, x: Tensor, rotation: tuple[Tensor, Tensor], attend: Attend, cache: tuple[Cache, int, Tensor] | None
    ) -> Tensor:
        B, T, D = x.shape
        E = self.config.d_head
        q, k, v = (part.view(B, T, -1, E).transpose(1, 2) for part in self.qkv(x).split(self.widths, dim=-1))
        q, k = rotate(q, rotation), rotate(k, rotation)  # (B, H, T, E), (B, K, T, E)
        if cache is None:
            y = attend(q, k, v)
        else:
            memory, layer, places = cache
            rows = torch.arange(B, device=x.device)[:, None]
            memory.keys[layer][rows, :, places] = k.transpose(1, 2).to(memory.keys.dtype)
            memory.values[layer][rows, :, places] = v.transpose(1, 2).to(memory.values.dtype)
            seen = torch.arange(memory.keys.shape[3], device=x.device) <= places[:, :, None]  # (B, T, T_max)
            y = F.scaled_dot_product_attention(
                q,
                memory.keys[layer].to(q.dtype),
                memory.values[layer].to(q.dtype),
                attn_mask=seen[:, None],
                enable_gqa=self.config.n_kv_head != self.config.n_head,
            )
        return self.out(y.transpose(1, 2).reshape(B, T, D))


class FeedForward(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_up = nn.Linear(config.d_model, 2 * config.d_ff, bias=False)
        self.down = nn.Linear(config.d_ff, config.d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class Block(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.d_model, config.norm_eps)
        self.attention = Attention(config)
        self.feed_forward_norm = nn.RMSNorm(config.d_model, config.norm_eps)
        self.feed_forward = FeedForward(config)

    def forward(
        self, x: Tensor, rotation: tuple[Tensor, Tensor], attend: Attend, cache: tuple[Cache, int, Tensor] | None
    ) -> Tensor:
        x = x + self.attention(self.attention_norm(x), rotation, attend, cache)
        return x + self.feed_forward(self.feed_forward_norm(x))


class Transformer(nn.Module):
    """Token ids (B, T) in, hidden states (B, T, D) or logits (B, T, V) out.

    `vocab_size` is the tokenizer's; `attention` names an entry of `ATTENTIONS`.
    """

    cos: Tensor  # (block_size, E), as `rotary_table` makes it
    sin: Tensor

    def __init__(self, config: ModelConfig, vocab_size: int, attention: str = "fused") -> None:
        super().__init__()
        self.config = config
        self.vocab_size = vocab_size
        self.attend = ATTENTIONS[attention]
        self.embedding = nn.Embedding(vocab_size, config.d_model)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = nn.RMSNorm(config.d_model, config.norm_eps)
        self.head = nn.Linear(config.d_model, vocab_size, bias=False)
        if config.tie_head:
            self.head.weight = self.embedding.weight
        cos, sin = rotary_table(config.block_size, config.d_head, config.rope_theta)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def initialise(self, seed: int) -> None:
        """Draw the starting weights on the CPU, whatever the device: a function of `seed` and the shape alone."""
        generator = torch.Generator().manual_seed(seed)
        for name, weight in self.named_parameters():
            if weight.ndim == 1:
                nn.init.ones_(weight)
                continue
            std = 1 / math.sqrt(weight.shape[1])
            if name.endswith(("attention.out.weight", "feed_forward.down.weight")):
                std /= math.sqrt(2 * self.config.n_layer)
            elif name in ("embedding.weight", "head.weight"):
                std *= 0.5
            weight.data.copy_(torch.randn(weight.shape, generator=generator) * std)

    def hidden(self, ids: Tensor, cache: Cache | None = None) -> Tensor:
        """The states after the last norm, (B, T) -> (B, T, D). With a cache, `ids` continue what it holds.

        Rows advance by T positions; the caller corrects `cache.lengths` for rows that were padded on the right.
        """
        x = self.embedding(ids)
        if cache is None:
            T = ids.shape[1]
            rotation = self.cos[:T], self.sin[:T]  # (T, E)
            places = None
        else:
            places = cache.lengths[:, None] + torch.arange(ids.shape[1], device=ids.device)  # (B, T)
            rotation = self.cos[places][:, None], self.sin[places][:, None]  # (B, 1, T, E)
        for layer, block in enumerate(self.blocks):
            x = block(x, rotation, self.attend, None if cache is None else (cache, layer, places))
        if cache is not None:
            cache.lengths += ids.shape[1]
        return self.norm(x)

    def forward(self, ids: Tensor, cache: Cache | None = None) -> Tensor:
        """Next-token logits, (B, T) -> (B, T, V)."""
        return self.head(self.hidden(ids, cache))


def rotary_table(length: int, d_head: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines (length, E) of RoPE (Su et al. 2021), the E/2 frequencies repeated for both halves."""
    frequencies = theta ** (-torch.arange(0, d_head, 2, dtype=torch.float64) / d_head)
    angles = torch.outer(torch.arange(length, dtype=torch.float64), frequencies).repeat(1, 2)
    return angles.cos().float(), angles.sin().float()


def rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Turn each pair (x[i], x[i + E/2]) by its position's angle."""
    cos, sin = (table.to(x.dtype) for table in rotation)
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin
