"""The transformer, to be read in one sitting: a pre-norm decoder whose parts are chosen by name.

LLaMA (Touvron et al. 2023, arXiv:2302.13971) is rope, rmsnorm, swiglu without biases; GPT-2 (Radford et al. 2019) is
learned, layernorm, gelu with them.

- A norm before each sub-layer and before the head: `llm.model.norms`. Optionally one for queries and keys, per head,
  which keeps their products small (Henry et al. 2020, arXiv:2010.04245), before they are turned, as Qwen3 has it.
- Positions: `llm.model.positions`. Feed-forwards: `llm.model.feed_forward`. Attention: `llm.model.attention`.
- Grouped queries: n_kv_head key and value heads serve n_head query heads (Ainslie et al. 2023, arXiv:2305.13245).
- Query, key and value are one matrix product: fewer, larger products are faster.
- Dropout acts on what is embedded and on what each sub-layer adds to the residual stream, not on attention's weights,
  which the fast kinds never hold. It draws from torch's global generator, in training mode only and only where it is
  not 0: a loop that is to be resumed exactly seeds that generator before each forward pass.
- With `recompute` set, training keeps of each block its input alone, and computes the rest again on the way back (Chen
  et al. 2016, arXiv:1604.06174): the same gradients, for less memory and the time of another forward pass.
- A matrix starts normal with standard deviation 1/√(its inputs), so that every width starts with signals of size one;
  the two that write into the residual stream are scaled down by √(2 n_layer), so that its variance does not grow with
  depth (GPT-2). The embedding, which is also the head, starts at 0.5/√D: first logits of size one half; so do learned
  positions. Gains start at one, biases at zero.

Shapes: B batch, T time, D d_model, H query heads, K key-value heads, E head width, V vocabulary. H·E need not be D.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from llm.devices import LENGTHS, rounded_up
from llm.errors import WordmillError
from llm.model.attention import ATTENTIONS, SAME_FORMULA, Visible, visible
from llm.model.config import ModelConfig
from llm.model.feed_forward import FEED_FORWARDS
from llm.model.norms import NORMS
from llm.model.packing import Packing
from llm.model.positions import POSITIONS, Rotation, rotate


class Cache:
    """Keys and values of what a batch has read so far: per layer two tensors (B, K, T_max, E).

    `lengths` (B,) counts the valid positions of each row, so prompts of different lengths share a batch unpadded.
    """

    def __init__(self, config: ModelConfig, batch: int, length: int, like: Tensor) -> None:
        shape = (config.n_layer, batch, config.n_kv_head, length, config.d_head)
        self.keys = torch.zeros(shape, dtype=like.dtype, device=like.device)
        self.values = torch.zeros(shape, dtype=like.dtype, device=like.device)
        self.lengths = torch.zeros(batch, dtype=torch.long, device=like.device)
        self.room = 0  # positions that attention looks at: those that the longest row fills, or some more on a GPU

    def keep(self, rows: Tensor) -> None:
        """Forget all rows but these."""
        self.keys, self.values, self.lengths = self.keys[:, rows], self.values[:, rows], self.lengths[rows]


class Attention(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        kv_width = config.n_kv_head * config.d_head
        width = config.n_head * config.d_head
        self.widths = (width, kv_width, kv_width)
        self.qkv = nn.Linear(config.d_model, sum(self.widths), bias=config.bias)
        self.out = nn.Linear(width, config.d_model, bias=config.bias)
        if config.qk_norm:
            self.q_norm = NORMS[config.norm](config, config.d_head)
            self.k_norm = NORMS[config.norm](config, config.d_head)

    def forward(
        self,
        x: Tensor,
        rotation: Rotation | None,
        documents: Visible | None,
        cache: tuple[Cache, int, Tensor] | None,
        packing: Packing | None,
    ) -> Tensor:
        B, T, _ = x.shape
        E = self.config.d_head
        q, k, v = (part.view(B, T, -1, E).transpose(1, 2) for part in self.qkv(x).split(self.widths, dim=-1))
        if self.config.qk_norm:  # in the gains' format, as the other norms, which autocast leaves alone
            q, k = (part.to(self.q_norm.weight.dtype) for part in (q, k))
            q, k = self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype)
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)  # (B, H, T, E), (B, K, T, E)
        if packing is not None:
            q, k, v = packing.lay_out(q), packing.lay_out(k), packing.lay_out(v)
            return self.out(packing.read_back(ATTENTIONS[self.config.attention](q, k, v)))
        if cache is None:
            y = ATTENTIONS[self.config.attention](q, k, v, documents)
        else:
            y = self._remembered(q, k, v, *cache)
        return self.out(y.transpose(1, 2).reshape(B, T, -1))

    def _remembered(self, q: Tensor, k: Tensor, v: Tensor, memory: Cache, layer: int, places: Tensor) -> Tensor:
        """Attention of q (B, H, T, E) to all that the cache holds once k and v (B, K, T, E) are at `places` (B, T).

        It is the formula of all kinds of attention here. Raises WordmillError for a kind that may have another one.
        """
        if ATTENTIONS[self.config.attention] not in SAME_FORMULA:
            raise WordmillError(f"model.attention: the cache of generation does not know {self.config.attention}")
        B, H, T, E = q.shape
        K, room = k.shape[1], memory.room
        rows = torch.arange(B, device=q.device)[:, None]
        memory.keys[layer][rows, :, places] = k.transpose(1, 2).to(memory.keys.dtype)
        memory.values[layer][rows, :, places] = v.transpose(1, 2).to(memory.values.dtype)
        seen = torch.arange(room, device=q.device) <= places[:, :, None]  # (B, T, room)
        # The H / K heads that share keys stand as more queries to them, so that no key is copied for each.
        shared = q.view(B, K, H // K, T, E).transpose(2, 3).reshape(B, K, -1, E)
        y = F.scaled_dot_product_attention(
            shared,
            memory.keys[layer, :, :, :room].to(q.dtype),
            memory.values[layer, :, :, :room].to(q.dtype),
            attn_mask=seen.repeat_interleave(H // K, dim=1)[:, None],
        )
        return y.view(B, K, T, H // K, E).transpose(2, 3).reshape(B, H, T, E)


class Block(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention_norm = NORMS[config.norm](config, config.d_model)
        self.attention = Attention(config)
        self.feed_forward_norm = NORMS[config.norm](config, config.d_model)
        self.feed_forward = FEED_FORWARDS[config.feed_forward](config)
        self.dropout = nn.Dropout(config.dropout) if config.dropout else nn.Identity()

    def forward(
        self,
        x: Tensor,
        rotation: Rotation | None,
        documents: Visible | None,
        cache: tuple[Cache, int, Tensor] | None,
        packing: Packing | None,
    ) -> Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x), rotation, documents, cache, packing))
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))


class Transformer(nn.Module):
    """Token ids (B, T) in, hidden states (B, T, D) or logits (B, T, V) out. `vocab_size` is the tokenizer's."""

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        self.config = config
        self.vocab_size = vocab_size
        # `nn.Embedding(…)` would draw numbers, which on the device `meta` imports torch's compiler, for two seconds.
        self.embedding = nn.Embedding.from_pretrained(torch.zeros(vocab_size, config.d_model), freeze=False)
        self.position = POSITIONS[config.position](config)
        self.dropout = nn.Dropout(config.dropout) if config.dropout else nn.Identity()
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = NORMS[config.norm](config, config.d_model)
        self.head = nn.Linear(config.d_model, vocab_size, bias=False)
        if config.tie_head:
            self.head.weight = self.embedding.weight
        self.recompute = False

    def initialise(self, seed: int) -> None:
        """Draw the starting weights on the CPU, whatever the device: a function of `seed` and the shape alone."""
        generator = torch.Generator().manual_seed(seed)
        for name, weight in self.named_parameters():
            if weight.ndim < 2:
                nn.init.constant_(weight, 0 if name.endswith("bias") else 1)
                continue
            std = 1 / math.sqrt(weight.shape[1])
            if name.endswith(("attention.out.weight", "feed_forward.down.weight")):
                std /= math.sqrt(2 * self.config.n_layer)
            elif name in ("embedding.weight", "position.weight", "head.weight"):
                std *= 0.5
            weight.data.copy_(torch.randn(weight.shape, generator=generator) * std)

    def hidden(
        self,
        ids: Tensor,
        cache: Cache | None = None,
        documents: Tensor | None = None,
        packing: Packing | None = None,
        places: Tensor | None = None,
    ) -> Tensor:
        """The states after the last norm, (B, T) -> (B, T, D). With a cache, `ids` continue what it holds.

        Rows advance by T positions; the caller corrects `cache.lengths` for rows that were padded on the right.
        `documents` (B, T) int, for training without a cache: a position sees only those of equal number. With them
        `places` (B, T) int says where each token stands in its document; without it, where it stands in its row counts.
        `packing`, without either, says that `ids` are its row of tokens.
        """
        assert sum(given is not None for given in (cache, documents, packing)) <= 1
        if cache is not None:
            places = cache.lengths[:, None] + torch.arange(ids.shape[1], device=ids.device)  # (B, T)
            cache.room = rounded_up(int(places.max()) + 1, LENGTHS, ids.device, cache.keys.shape[3])
        elif packing is not None:
            places = packing.positions
        x, rotation = self.position(self.embedding(ids), places)
        x = self.dropout(x)
        mask = None if documents is None else visible(self.config.attention, documents, self._scores_dtype(ids.device))
        for layer, block in enumerate(self.blocks):
            if self.recompute and torch.is_grad_enabled():
                again = self.config.dropout > 0  # what was dropped is dropped again
                x = checkpoint(block, x, rotation, mask, None, packing, use_reentrant=False, preserve_rng_state=again)
            else:
                x = block(x, rotation, mask, None if cache is None else (cache, layer, places), packing)
        if cache is not None:
            cache.lengths += ids.shape[1]
        return self.norm(x)

    def _scores_dtype(self, device: torch.device) -> torch.dtype:
        """The format in which attention's products run."""
        if torch.is_autocast_enabled(device.type):
            return torch.get_autocast_dtype(device.type)
        return self.embedding.weight.dtype

    def forward(self, ids: Tensor, cache: Cache | None = None, documents: Tensor | None = None) -> Tensor:
        """Next-token logits, (B, T) -> (B, T, V)."""
        return self.head(self.hidden(ids, cache, documents))
