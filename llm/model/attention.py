"""Causal attention by name: one kind to read, one to train with; a test holds them equal.

Every kind takes queries (B, H, T, E), keys and values (B, K, T, E) with K dividing H, and returns (B, H, T, E).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def reference(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One head at a time: softmax(Q Kᵀ / √E) V, where no position sees a later one."""
    H, T, E = q.shape[1:]
    queries_per_key = H // k.shape[1]
    later = torch.ones(T, T, dtype=torch.bool, device=q.device).triu(1)
    heads = []
    for h in range(H):
        scores = q[:, h] @ k[:, h // queries_per_key].transpose(-2, -1) / math.sqrt(E)  # (B, T, T)
        weights = scores.masked_fill(later, float("-inf")).softmax(dim=-1)
        heads.append(weights @ v[:, h // queries_per_key])  # (B, T, E)
    return torch.stack(heads, dim=1)


def fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """All heads at once.

    On a GPU, and for long contexts, in one of torch's kernels, which never stores the (T, T) scores. On a CPU two
    batched products are twice as fast in bf16 up to about a thousand tokens (docs/LOG.md, 2026-11-21).
    """
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and q.shape[2] <= 1024:
        return _batched(q, k, v)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=k.shape[1] != q.shape[1])


def _batched(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    B, H, T, E = q.shape
    groups = H // k.shape[1]
    k, v = k.repeat_interleave(groups, dim=1).flatten(0, 1), v.repeat_interleave(groups, dim=1).flatten(0, 1)
    later = torch.full((T, T), float("-inf"), dtype=q.dtype, device=q.device).triu(1)
    scores = torch.baddbmm(later, q.flatten(0, 1), k.transpose(1, 2), alpha=1 / math.sqrt(E))  # (B·H, T, T)
    return torch.bmm(scores.softmax(dim=-1).to(v.dtype), v).view(B, H, T, E)


ATTENTIONS: dict[str, Attend] = {"reference": reference, "fused": fused}
