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
    """All heads in one of torch's kernels, which never stores the (T, T) scores."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=k.shape[1] != q.shape[1])


ATTENTIONS: dict[str, Attend] = {"reference": reference, "fused": fused}
