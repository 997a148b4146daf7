"""Causal attention by name: one kind to read, the others to train with; a test holds them equal.

Every kind takes queries (B, H, T, E), keys and values (B, K, T, E) with K dividing H, and returns (B, H, T, E). K = H
is plain multi-head attention, K = 1 multi-query, anything between grouped-query. `documents` (B, T) int, where given,
numbers the documents that a sequence is packed from; a position then sees only positions of its own document. A
model has `visible` make a mask of them once for all its layers, and passes that.

- `reference` is the formula, one head at a time.
- `fused` runs all heads at once, on any device: the default.
- `flash` is FlashAttention-2, written here: `llm.model.flash`. For an NVIDIA GPU.
- `flex` is torch's FlexAttention, compiled for a GPU; it skips whole blocks that the mask hides.
"""

import math
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from llm.errors import WordmillError
from llm.model.config import ModelConfig
from llm.model.flash import flash, require_flash

Visible = Tensor | BlockMask  # documents (B, T), or what `visible` makes of them


class Attend(Protocol):
    """What an entry of `ATTENTIONS` is."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, documents: Any = None) -> Tensor: ...


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

    With a mask no GPU kernel takes grouped heads, and without a kernel all scores would be stored in fp32 (pytorch
    #191085). So there keys and values are repeated for their query heads.
    """
    mask = fused_mask(documents, q.dtype) if documents is not None and documents.ndim == 2 else documents
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and q.shape[2] <= 1024:
        return _batched(q, k, v, mask)
    groups = q.shape[1] // k.shape[1]
    if mask is None:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=groups > 1)
    if q.device.type != "cpu" and groups > 1:
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=k.shape[1] != q.shape[1])


def fused_mask(documents: Tensor, dtype: torch.dtype) -> Tensor:
    """For `fused`, of documents (B, T): what each position sees, (B, 1, T, T).

    On CUDA what is added to the scores, in their `dtype`, which torch would else make in each layer; elsewhere bool.
    """
    seen = (documents[:, :, None] == documents[:, None, :]).tril()[:, None]
    if documents.device.type != "cuda":
        return seen
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(seen.logical_not(), float("-inf"))


def _batched(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None) -> Tensor:
    B, H, T, E = q.shape
    groups = H // k.shape[1]
    k, v = k.repeat_interleave(groups, dim=1).flatten(0, 1), v.repeat_interleave(groups, dim=1).flatten(0, 1)
    hidden = torch.full((T, T), float("-inf"), dtype=q.dtype, device=q.device).triu(1)  # what is added to the scores
    if seen is not None:  # (B, 1, T, T)
        hidden = hidden.masked_fill(seen.logical_not(), float("-inf")).expand(B, H, T, T).flatten(0, 1)
    scores = torch.baddbmm(hidden, q.flatten(0, 1), k.transpose(1, 2), alpha=1 / math.sqrt(E))  # (B·H, T, T)
    return torch.bmm(scores.softmax(dim=-1).to(v.dtype), v).view(B, H, T, E)


def flex(q: Tensor, k: Tensor, v: Tensor, documents: Visible | None = None) -> Tensor:
    """FlexAttention (Dong et al. 2024, arXiv:2412.05496). Raises WordmillError where torch cannot train with it."""
    _require_flex(q.device)
    # a model that is being compiled brings it along
    attend: Any = flex_attention if torch.compiler.is_compiling() else _compiled_flex()
    mask = documents if isinstance(documents, BlockMask) else flex_mask(q, documents)
    return attend(q, k, v, block_mask=mask, enable_gqa=k.shape[1] != q.shape[1])


def _require_flex(device: torch.device) -> None:
    if device.type != "cuda":
        raise WordmillError(
            f"model.attention: flex needs a CUDA GPU, since torch has no backward pass for it on {device.type}; "
            "use fused"
        )


def flex_mask(q: Tensor, documents: Tensor | None) -> BlockMask:
    """Which blocks of keys each block of queries (B, H, T, E) looks at."""
    return _causal_mask(q.shape[2], q.device) if documents is None else _document_blocks(documents)


def _document_blocks(documents: Tensor) -> BlockMask:
    B, T = documents.shape

    def seen(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query >= key) & (documents[b, query] == documents[b, key])

    compiles = documents.device.type == "cuda" and not torch.compiler.is_compiling()
    create: Any = _compiled_block_mask() if compiles else create_block_mask
    return create(seen, B, None, T, T, device=str(documents.device))


@lru_cache(maxsize=16)  # training has one length; scoring has a few, rounded up
def _causal_mask(T: int, device: torch.device) -> BlockMask:
    return create_block_mask(lambda b, h, query, key: query >= key, None, None, T, T, device=str(device))


@cache
def _compiled_flex() -> Callable[..., Any]:
    return torch.compile(flex_attention)


@cache
def _compiled_block_mask() -> Callable[..., Any]:
    return torch.compile(create_block_mask)


def visible(attention: str, documents: Tensor, dtype: torch.dtype) -> Visible:
    """What the entry `attention` computes from documents (B, T), for scores in `dtype`: once for all layers."""
    attend = ATTENTIONS[attention]
    if attend is fused:
        return fused_mask(documents, dtype)
    return _document_blocks(documents) if attend is flex else documents


def check_attention(config: ModelConfig, device: torch.device) -> None:
    """Raises WordmillError where `config.attention` cannot run on `device`."""
    attend = ATTENTIONS[config.attention]
    if attend is flex:
        _require_flex(device)
    elif attend is flash:
        require_flash(device, config.d_head)


def cudnn_is_right(config: ModelConfig, masked: bool, device: torch.device) -> bool:
    """Whether cuDNN's attention is known to be right for training at the full context.

    It is not with a mask where T mod 128 is 64 (NaN in the gradients, pytorch #196678), nor on Blackwell with fewer
    than 8 key-value heads (pytorch #193893).
    """
    if masked and config.block_size % 128 == 64:
        return False
    kv_heads = config.n_head if masked else config.n_kv_head  # with a mask `fused` repeats them
    return kv_heads >= 8 or torch.cuda.get_device_capability(device)[0] < 10


ATTENTIONS: dict[str, Attend] = {"reference": reference, "fused": fused, "flash": flash, "flex": flex}
# These compute the same function of queries, keys and values; what else may be in the table is another model.
SAME_FORMULA: frozenset[Attend] = frozenset(ATTENTIONS.values())
