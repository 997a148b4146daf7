"""FlashAttention-2 as an attention kind: what calls the Triton kernels of `flash_kernels.py`, which explain themselves.

- One operator of torch's (`torch.library.custom_op`) for each direction, tied together for autograd: eager mode,
  activation checkpointing and `torch.compile` (without a graph break) all see the same thing.
- Kept for backward: the inputs, the output and one number a row. Memory grows with T, not with T².
- fp32 is multiplied in fp32, never in TF32, whatever torch's own setting: equal to `reference` to 1e-5, and slow. bf16
  and fp16 are multiplied on tensor cores and summed in fp32.
- The tile sizes come from a table, not from measuring at run time, which could choose differently, and so round
  differently, from run to run. Deterministic: twice the same inputs on the same device give the same bits.
- Results lie in memory as (B, T, H, E), so that putting the heads side by side again copies nothing.
- Without a GPU it runs only in Triton's interpreter, thousands of times slower: set TRITON_INTERPRET=1 before Python
  starts. The interpreter of Triton 3.7 multiplies bf16 as if it were integers, so there bf16 goes through fp32.
"""

import math
import os
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from llm.errors import WordmillError
from llm.model.config import WIDEST_FLASH_HEAD

_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


@dataclass(frozen=True)
class Tile:
    """How one kernel cuts its work."""

    rows: int  # queries
    columns: int  # keys
    warps: int  # of 32 threads, that share a tile
    stages: int  # tiles in flight from memory


@dataclass(frozen=True)
class Tiles:
    """A tile for each kernel. In `keys` columns are a multiple of rows, elsewhere rows of columns."""

    forward: Tile
    queries: Tile
    keys: Tile


_INTERPRETED = Tiles(Tile(32, 16, 1, 1), Tile(32, 16, 1, 1), Tile(16, 32, 1, 1))
# Chosen by compiling for 8.0, 8.6, 9.0 and 10.0: none needs more shared memory than there is, and few registers spill.
_SINGLE = {  # fp32, by head width: no tensor cores, so every number of a tile is in some thread's registers
    64: Tiles(Tile(64, 32, 8, 2), Tile(32, 32, 8, 2), Tile(32, 32, 8, 2)),
    128: Tiles(Tile(32, 16, 8, 2), Tile(32, 16, 8, 2), Tile(16, 32, 8, 2)),
}
_HALF = {  # bf16 and fp16, by head width and whether a multiprocessor has 164 KiB of shared memory or more, or 100
    (64, True): Tiles(Tile(128, 64, 4, 3), Tile(128, 64, 8, 2), Tile(64, 128, 8, 2)),
    (64, False): Tiles(Tile(128, 64, 4, 3), Tile(64, 32, 4, 2), Tile(32, 64, 4, 2)),
    (128, True): Tiles(Tile(128, 64, 8, 2), Tile(128, 64, 8, 2), Tile(32, 128, 8, 2)),
    (128, False): Tiles(Tile(128, 32, 8, 2), Tile(64, 32, 4, 2), Tile(32, 64, 8, 2)),
}


def flash(q: Tensor, k: Tensor, v: Tensor, documents: Tensor | None = None) -> Tensor:
    """Causal attention, q (B, H, T, E), k and v (B, K, T, E) -> (B, H, T, E), differentiable once.

    K divides H, E is at most 128, all are bf16, fp16 or fp32. `documents` (B, T), int: a position sees only positions
    of an equal value. Raises WordmillError without a GPU (or the interpreter), without triton, and for wider heads.
    """
    if torch.is_autocast_enabled(q.device.type):  # as torch's own attention does: norms and positions may give fp32
        q, k, v = (x.to(torch.get_autocast_dtype(q.device.type)) for x in (q, k, v))
    _require_width(q.shape[3])
    if q.dtype not in _DTYPES:
        raise WordmillError(f"model.attention: flash takes bf16, fp16 and fp32, not {q.dtype}; use fused")
    if not q.dtype == k.dtype == v.dtype:
        raise ValueError(f"q, k and v differ in type: {q.dtype}, {k.dtype}, {v.dtype}")
    if k.shape != v.shape or q.shape[::2] != k.shape[::2] or q.shape[3] != k.shape[3] or q.shape[1] % k.shape[1]:
        raise ValueError(f"shapes do not fit: q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}")
    if documents is not None:
        if documents.shape != (q.shape[0], q.shape[2]):
            raise ValueError(f"documents {tuple(documents.shape)} do not fit q {tuple(q.shape)}")
        documents = documents.to(device=q.device, dtype=torch.int32).contiguous()
    dtype = q.dtype
    if _interpreted() and dtype == torch.bfloat16:
        q, k, v = q.float(), k.float(), v.float()
    out: Tensor = _forward(q, k, v, documents)[0]
    return out.to(dtype)


def tiles(d_head: int, dtype: torch.dtype, shared_memory: int) -> Tiles:
    """The tile sizes for a head width, a type, and the bytes of shared memory in a multiprocessor."""
    width = 64 if d_head <= 64 else 128
    return _SINGLE[width] if dtype == torch.float32 else _HALF[width, shared_memory >= 164 * 1024]


@torch.library.custom_op("wordmill::flash_forward", mutates_args=())
def _forward(q: Tensor, k: Tensor, v: Tensor, documents: Tensor | None) -> tuple[Tensor, Tensor]:
    """The output, and the logarithm to base 2 of each row's softmax denominator, (B, H, T) in fp32."""
    kernels, tile = _ready(q)
    q, k, v = _rows(q), _rows(k), _rows(v)
    out = _empty(q)
    lse = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
    work = (q, k, v, documents, out, lse)
    _launch(kernels.forward, tile.forward, q.shape[1], tile.forward.rows, work, (q, k, v, out))
    return out, lse


@torch.library.custom_op("wordmill::flash_backward", mutates_args=())
def _backward(
    q: Tensor, k: Tensor, v: Tensor, documents: Tensor | None, out: Tensor, lse: Tensor, dout: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    kernels, tile = _ready(q)
    q, k, v, out, dout = _rows(q), _rows(k), _rows(v), _rows(out), _rows(dout)
    dq, dk, dv, delta = _empty(q), _empty(k), _empty(v), torch.empty_like(lse)
    work = (q, k, v, documents, out, lse, dout, dq, delta)
    _launch(kernels.backward_queries, tile.queries, q.shape[1], tile.queries.rows, work, (q, k, v, out, dout, dq))
    work = (q, k, v, documents, lse, dout, delta, dk, dv)
    _launch(kernels.backward_keys, tile.keys, k.shape[1], tile.keys.columns, work, (q, k, v, dout, dk, dv))
    return dq, dk, dv


@_forward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, documents: Tensor | None) -> tuple[Tensor, Tensor]:
    return _empty(q), q.new_empty(q.shape[:3], dtype=torch.float32)


@_backward.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, documents: Tensor | None, out: Tensor, lse: Tensor, dout: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return _empty(q), _empty(k), _empty(v)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output)


def _differentiate(ctx: Any, dout: Tensor, dlse: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
    q, k, v, documents, out, lse = ctx.saved_tensors
    return *_backward(q, k, v, documents, out, lse, dout), None


_forward.register_autograd(_differentiate, setup_context=_keep)


def _require_width(d_head: int) -> None:
    if d_head > WIDEST_FLASH_HEAD:
        raise WordmillError(
            f"model.attention: flash takes heads up to {WIDEST_FLASH_HEAD} wide, not {d_head}; use more heads or fused"
        )


def require_flash(device: torch.device, d_head: int) -> None:
    """Raises WordmillError where flash cannot run on `device` with heads of that width."""
    _require_width(d_head)
    if find_spec("triton") is None:
        raise WordmillError(
            "model.attention: flash needs the package triton (pip install triton, on Linux); or use fused"
        )
    if _interpreted():
        return
    if device.type != "cuda":
        raise WordmillError(
            f"model.attention: flash needs a CUDA GPU and is to run on {device.type}; use fused, or try it slowly "
            "with TRITON_INTERPRET=1 in the environment"
        )
    gpu = torch.cuda.get_device_properties(device)
    if gpu.major < 8:
        raise WordmillError(
            f"model.attention: flash needs a GPU of compute capability 8.0, {gpu.name} has {gpu.major}."
            f"{gpu.minor}; use fused"
        )


def _ready(q: Tensor) -> tuple[ModuleType, Tiles]:
    """The kernels and the tiles for q's device, or the reason why not."""
    require_flash(q.device, q.shape[3])
    from llm.model import flash_kernels  # only here: triton is not on every machine, and takes a second to import

    if _interpreted():
        return flash_kernels, _INTERPRETED
    gpu = torch.cuda.get_device_properties(q.device)
    return flash_kernels, tiles(q.shape[3], q.dtype, gpu.shared_memory_per_multiprocessor)


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def _launch(
    kernel: Any, tile: Tile, heads: int, length: int, work: tuple[Tensor | None, ...], strided: tuple[Tensor, ...]
) -> None:
    """One program for every `length` positions of each of `heads` in each row of the batch."""
    q, k = strided[:2]
    B, H, T, E = q.shape
    with torch.cuda.device(q.device) if q.device.type == "cuda" else nullcontext():
        kernel[(B * heads * -(-T // length),)](
            *work,
            math.log2(math.e) / math.sqrt(E),
            T,
            *(stride for tensor in strided for stride in tensor.stride()[:3]),
            H=H,
            GROUP=H // k.shape[1],
            E=E,
            WIDTH=max(16, 1 << (E - 1).bit_length()),  # a matrix product on tensor cores is 16 wide at least
            ROWS=tile.rows,
            COLUMNS=tile.columns,
            num_warps=tile.warps,
            num_stages=tile.stages,
        )


def _rows(x: Tensor) -> Tensor:
    """x, or a copy of it, whose last axis is dense."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _empty(x: Tensor) -> Tensor:
    """Room for a result of x's shape (B, H, T, E) that lies in memory as (B, T, H, E)."""
    B, H, T, E = x.shape
    return x.new_empty(B, T, H, E).transpose(1, 2)
