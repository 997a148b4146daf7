"""Causal attention by name: one kind to read, the others to train with; a test holds them equal.

Every kind takes queries (B, H, T, E), keys and values (B, K, T, E) with K dividing H, and returns (B, H, T, E). K = H
is plain multi-head attention, K = 1 multi-query, anything between grouped-query. `documents` (B, T) int, where given,
numbers the documents that a sequence is packed from; a position then sees only positions of its own document.

- `reference` is the formula, one head at a time.
- `fused` runs all heads at once, on any device: the default.
- `flex` is torch's FlexAttention, compiled for a GPU; it skips whole blocks that the mask hides.
"""

import math
from collections.abc import Callable
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from llm.errors import WordmillError


class Attend(Protocol):
    """What an entry of `ATTENTIONS` is."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, documents: Tensor | None = None) -> Tensor: ...


def reference(q: Tensor, k: Tensor, v: Tensor, documents: Tensor | None = None) -> Tensor:
    """One head at a time: softmax(Q Kᵀ / √E) V, where no position sees a later one, nor another document's."""
    B, H, T, E = q.shape
    queries_per_key = H // k.shape[1]
    unseen = torch.ones(T, T, dtype=torch.bool, device=q.device).triu(1).expand(B, T, T)  # row: query, column: key
    if documents is not None:
        unseen = unseen | (documents[:, :, None] != documents[:, None, :])
    heads = []
    for h in range(H):
        scores = q[:, h] @ k[:, h // queries_per_key].transpose(-2, -1) / math.sqrt(E)  # (B, T, T)
        weights = scores.masked_fill(unseen, float("-inf")).softmax(dim=-1)
        heads.append(weights @ v[:, h // queries_per_key])  # (B, T, E)
    return torch.stack(heads, dim=1)


def fused(q: Tensor, k: Tensor, v: Tensor, documents: Tensor | None = None) -> Tensor:
    """All heads at once.

    On a GPU, and for long contexts, in one of torch's kernels, which never stores the (T, T) scores. On a CPU two
    batched products are twice as fast in bf16 up to about a thousand tokens (docs/LOG.md, 2026-11-21).
    """
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and q.shape[2] <= 1024:
        return _batched(q, k, v, documents)
    grouped = k.shape[1] != q.shape[1]
    if documents is None:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
    seen = (documents[:, :, None] == documents[:, None, :]).tril()[:, None]  # (B, 1, T, T)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=grouped)


def _batched(q: Tensor, k: Tensor, v: Tensor, documents: Tensor | None) -> Tensor:
    B, H, T, E = q.shape
    groups = H // k.shape[1]
    k, v = k.repeat_interleave(groups, dim=1).flatten(0, 1), v.repeat_interleave(groups, dim=1).flatten(0, 1)
    later = torch.full((T, T), float("-inf"), dtype=q.dtype, device=q.device).triu(1)
    scores = torch.baddbmm(later, q.flatten(0, 1), k.transpose(1, 2), alpha=1 / math.sqrt(E))  # (B·H, T, T)
    if documents is not None:
        foreign = documents[:, None, :, None] != documents[:, None, None, :]  # (B, 1, T, T)
        scores = scores.view(B, H, T, T).masked_fill(foreign, float("-inf")).view(B * H, T, T)
    return torch.bmm(scores.softmax(dim=-1).to(v.dtype), v).view(B, H, T, E)


def flex(q: Tensor, k: Tensor, v: Tensor, documents: Tensor | None = None) -> Tensor:
    """FlexAttention (Dong et al. 2024, arXiv:2412.05496). Raises WordmillError where torch cannot train with it."""
    if q.device.type != "cuda":
        raise WordmillError(
            f"model.attention: flex needs a CUDA GPU, since torch has no backward pass for it on {q.device.type}; "
            "use fused"
        )
    return _compiled_flex()(q, k, v, block_mask=flex_mask(q, documents), enable_gqa=k.shape[1] != q.shape[1])


def flex_mask(q: Tensor, documents: Tensor | None) -> BlockMask:
    """Which blocks of keys each block of queries (B, H, T, E) looks at."""
    B, T = q.shape[0], q.shape[2]
    if documents is None:
        return _causal_mask(T, q.device)

    def seen(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query >= key) & (documents[b, query] == documents[b, key])

    return create_block_mask(seen, B, None, T, T, device=str(q.device))


@cache
def _causal_mask(T: int, device: torch.device) -> BlockMask:
    return create_block_mask(lambda b, h, query, key: query >= key, None, None, T, T, device=str(device))


@cache
def _compiled_flex() -> Callable[..., Any]:
    return torch.compile(flex_attention)


ATTENTIONS: dict[str, Attend] = {"reference": reference, "fused": fused, "flex": flex}
