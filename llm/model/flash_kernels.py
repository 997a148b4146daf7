"""The three Triton kernels of FlashAttention-2 (Dao 2023, arXiv:2307.08691), to be read in one sitting.

Attention is softmax(Q Kᵀ / √E) V. The (T, T) scores never reach memory: a program holds one tile of queries, walks over
the tiles of keys and values that they may see, and keeps three things for each query row:

    highest    the largest score so far
    weight     the sum of exp(score - highest) so far
    mix        the sum of exp(score - highest) · value so far

When a tile brings a larger score, what was summed is off by the factor exp(old highest - new highest), the same for
every term, so multiplying both sums by it puts them right: softmax *online*. At the end mix / weight is the output, and
lse = highest + log(weight), the logarithm of the softmax's denominator, is all that the backward pass needs to make any
weight again: exp(score - lse).

Backward, with P the weights, S the scores and dO the gradient of the output:

    dV = Pᵀ dO      dP = dO Vᵀ      dS = P ∘ (dP - delta), delta = rowsum(dO ∘ O)      dQ = dS K / √E      dK = dSᵀ Q / √E

One kernel walks along the keys for a tile of queries (dQ, and delta on its way), one along the queries for a tile of
keys (dK, dV). Each gradient is written by one program in one order: no atomic additions, the same bits in every run.

- Exponents are to base 2, the GPU's own: `scale` is log₂(e)/√E, and `lse` is a logarithm to base 2.
- The scores are scaled after the product, in fp32; weights are rounded to the inputs' type before they meet V.
- Grouped queries: query head h reads key head h // GROUP in place. In the dK, dV kernel a program goes through all
  query heads of its group, so nothing is repeated in memory, and nothing is summed afterwards.
- Only tiles on the diagonal are compared with it; those before it are seen whole, those after it are never read.
- `documents` (B, T) or None: positions see only positions of an equal value. Tiles outside the range of positions whose
  value could match are not read either, so packed documents cost what they would cost alone, about.
- Any T and any E: what lies outside is read as zero and not written. A zero row of dO adds nothing to any gradient.
- `highest` starts at a finite number, so that a row whose first tiles are all masked never meets inf - inf.
- Offsets that grow with T or B are 64 bits wide.

This module needs triton, so only `flash.py` imports it, when it is first used. Shapes: B batch, T time, H query heads,
K key-value heads, E head width, WIDTH the next power of two.
"""

import triton
import triton.language as tl

_BELOW_ALL: tl.constexpr = tl.constexpr(-1e30)  # lower than any score, higher than -inf
_LN_2: tl.constexpr = tl.constexpr(0.6931471805599453)  # takes log₂(e) out of `scale` again
_SCAN: tl.constexpr = tl.constexpr(1024)  # documents read at once when looking for a tile's range


@triton.jit(do_not_specialize=["T"])  # any length, one binary
def forward(
    q: tl.tensor,  # (B, H, T, E) with strides q_b, q_h, q_t, 1, as all below
    k: tl.tensor,
    v: tl.tensor,
    documents: tl.tensor,  # (B, T) contiguous, or None
    out: tl.tensor,
    lse: tl.tensor,  # (B, H, T) contiguous, fp32
    scale: tl.tensor,
    T: tl.tensor,
    q_b: tl.tensor,
    q_h: tl.tensor,
    q_t: tl.tensor,
    k_b: tl.tensor,
    k_h: tl.tensor,
    k_t: tl.tensor,
    v_b: tl.tensor,
    v_h: tl.tensor,
    v_t: tl.tensor,
    out_b: tl.tensor,
    out_h: tl.tensor,
    out_t: tl.tensor,
    H: tl.constexpr,
    GROUP: tl.constexpr,
    E: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,  # queries in a tile, a multiple of COLUMNS
    COLUMNS: tl.constexpr,  # keys in a tile
) -> None:
    """One tile of queries of one head: `out` and `lse`."""
    b, h, first_row = _longest_first(T, H, ROWS)
    q += b * q_b + h * q_h
    k += b * k_b + h // GROUP * k_h
    v += b * v_b + h // GROUP * v_h
    out += b * out_b + h * out_h
    q_tile = _load(q, first_row, q_t, T, E, WIDTH, ROWS, False)
    first = 0
    mine = None
    if documents is not None:
        documents += b * T
        mine = _document(documents, first_row, T, ROWS)
        first, _ = _range(documents, mine, 0, first_row)

    highest = tl.full([ROWS], _BELOW_ALL, tl.float32)
    weight = tl.zeros([ROWS], tl.float32)
    mix = tl.zeros([ROWS, WIDTH], tl.float32)
    # fmt: off
    mix, highest, weight = _gather(mix, highest, weight, q_tile, k, v, documents, mine, first_row, first // COLUMNS * COLUMNS, first_row,
                        scale, T, k_t, v_t, E, WIDTH, ROWS, COLUMNS, False)
    mix, highest, weight = _gather(mix, highest, weight, q_tile, k, v, documents, mine, first_row, first_row, tl.minimum(first_row + ROWS, T),
                        scale, T, k_t, v_t, E, WIDTH, ROWS, COLUMNS, True)
    # fmt: on
    _store(out, mix / weight[:, None], first_row, out_t, T, E, WIDTH, ROWS)
    rows = first_row + tl.arange(0, ROWS)
    tl.store(lse + (b * H + h) * T + rows, highest + tl.log2(weight), mask=rows < T)


@triton.jit
def _gather(  # type: ignore[no-untyped-def]
    mix, highest, weight, q_tile, k, v, documents, mine, first_row, start, stop, scale, T, k_t, v_t,
    E: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DIAGONAL: tl.constexpr,
):  # fmt: skip
    """The online softmax over the keys from `start` to `stop`."""
    for column in range(start, stop, COLUMNS):
        k_tile = _load(k, column, k_t, T, E, WIDTH, COLUMNS, not DIAGONAL)
        scores = tl.dot(q_tile, tl.trans(k_tile), input_precision="ieee") * scale
        if DIAGONAL:
            scores = tl.where(_causal(first_row, column, ROWS, COLUMNS), scores, float("-inf"))
        if documents is not None:
            theirs = _document(documents, column, T, COLUMNS)
            scores = tl.where(mine[:, None] == theirs[None, :], scores, float("-inf"))
        top = tl.maximum(highest, tl.max(scores, 1))
        weights = tl.exp2(scores - top[:, None])
        shrink = tl.exp2(highest - top)
        weight = weight * shrink + tl.sum(weights, 1)
        v_tile = _load(v, column, v_t, T, E, WIDTH, COLUMNS, not DIAGONAL)
        mix = tl.dot(weights.to(v_tile.dtype), v_tile, mix * shrink[:, None], input_precision="ieee")
        highest = top
    return mix, highest, weight


@triton.jit(do_not_specialize=["T"])  # any length, one binary
def backward_queries(
    q: tl.tensor,
    k: tl.tensor,
    v: tl.tensor,
    documents: tl.tensor,
    out: tl.tensor,
    lse: tl.tensor,
    dout: tl.tensor,
    dq: tl.tensor,
    delta: tl.tensor,  # (B, H, T) contiguous, fp32
    scale: tl.tensor,
    T: tl.tensor,
    q_b: tl.tensor,
    q_h: tl.tensor,
    q_t: tl.tensor,
    k_b: tl.tensor,
    k_h: tl.tensor,
    k_t: tl.tensor,
    v_b: tl.tensor,
    v_h: tl.tensor,
    v_t: tl.tensor,
    out_b: tl.tensor,
    out_h: tl.tensor,
    out_t: tl.tensor,
    dout_b: tl.tensor,
    dout_h: tl.tensor,
    dout_t: tl.tensor,
    dq_b: tl.tensor,
    dq_h: tl.tensor,
    dq_t: tl.tensor,
    H: tl.constexpr,
    GROUP: tl.constexpr,
    E: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,  # a multiple of COLUMNS
    COLUMNS: tl.constexpr,
) -> None:
    """One tile of queries of one head: `dq`, and `delta` for the other kernel."""
    b, h, first_row = _longest_first(T, H, ROWS)
    q += b * q_b + h * q_h
    k += b * k_b + h // GROUP * k_h
    v += b * v_b + h // GROUP * v_h
    out += b * out_b + h * out_h
    dq += b * dq_b + h * dq_h
    dout += b * dout_b + h * dout_h
    rows = first_row + tl.arange(0, ROWS)
    of_rows = (b * H + h) * T + rows
    q_tile = _load(q, first_row, q_t, T, E, WIDTH, ROWS, False)
    dout_tile = _load(dout, first_row, dout_t, T, E, WIDTH, ROWS, False)
    out_tile = _load(out, first_row, out_t, T, E, WIDTH, ROWS, False)
    delta_rows = tl.sum(dout_tile.to(tl.float32) * out_tile.to(tl.float32), 1)
    tl.store(delta + of_rows, delta_rows, mask=rows < T)
    lse_rows = tl.load(lse + of_rows, mask=rows < T, other=0.0)
    first = 0
    mine = None
    if documents is not None:
        documents += b * T
        mine = _document(documents, first_row, T, ROWS)
        first, _ = _range(documents, mine, 0, first_row)

    gathered = tl.zeros([ROWS, WIDTH], tl.float32)
    # fmt: off
    gathered = _gather_dq(gathered, q_tile, dout_tile, lse_rows, delta_rows, k, v, documents, mine, first_row,
                     first // COLUMNS * COLUMNS, first_row, scale, T, k_t, v_t, E, WIDTH, ROWS, COLUMNS, False)
    gathered = _gather_dq(gathered, q_tile, dout_tile, lse_rows, delta_rows, k, v, documents, mine, first_row,
                     first_row, tl.minimum(first_row + ROWS, T), scale, T, k_t, v_t, E, WIDTH, ROWS, COLUMNS, True)
    # fmt: on
    _store(dq, gathered * (scale * _LN_2), first_row, dq_t, T, E, WIDTH, ROWS)


@triton.jit
def _gather_dq(  # type: ignore[no-untyped-def]
    gathered, q_tile, dout_tile, lse_rows, delta_rows, k, v, documents, mine, first_row, start, stop, scale, T, k_t, v_t,
    E: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DIAGONAL: tl.constexpr,
):  # fmt: skip
    """dS K over the keys from `start` to `stop`."""
    for column in range(start, stop, COLUMNS):
        k_tile = _load(k, column, k_t, T, E, WIDTH, COLUMNS, not DIAGONAL)
        v_tile = _load(v, column, v_t, T, E, WIDTH, COLUMNS, not DIAGONAL)
        scores = tl.dot(q_tile, tl.trans(k_tile), input_precision="ieee") * scale
        weights = tl.exp2(scores - lse_rows[:, None])
        if DIAGONAL:
            weights = tl.where(_causal(first_row, column, ROWS, COLUMNS), weights, 0.0)
        if documents is not None:
            theirs = _document(documents, column, T, COLUMNS)
            weights = tl.where(mine[:, None] == theirs[None, :], weights, 0.0)
        dweights = tl.dot(dout_tile, tl.trans(v_tile), input_precision="ieee")
        dscores = weights * (dweights - delta_rows[:, None])
        gathered = tl.dot(dscores.to(k_tile.dtype), k_tile, gathered, input_precision="ieee")
    return gathered


@triton.jit(do_not_specialize=["T"])  # any length, one binary
def backward_keys(
    q: tl.tensor,
    k: tl.tensor,
    v: tl.tensor,
    documents: tl.tensor,
    lse: tl.tensor,
    dout: tl.tensor,
    delta: tl.tensor,
    dk: tl.tensor,
    dv: tl.tensor,
    scale: tl.tensor,
    T: tl.tensor,
    q_b: tl.tensor,
    q_h: tl.tensor,
    q_t: tl.tensor,
    k_b: tl.tensor,
    k_h: tl.tensor,
    k_t: tl.tensor,
    v_b: tl.tensor,
    v_h: tl.tensor,
    v_t: tl.tensor,
    dout_b: tl.tensor,
    dout_h: tl.tensor,
    dout_t: tl.tensor,
    dk_b: tl.tensor,  # also dv's
    dk_h: tl.tensor,
    dk_t: tl.tensor,
    H: tl.constexpr,
    GROUP: tl.constexpr,
    E: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,  # a multiple of ROWS
) -> None:
    """One tile of keys and values of one key-value head: `dk` and `dv`, summed over the group's query heads."""
    tiles = tl.cdiv(T, COLUMNS)
    head = (tl.program_id(0) // tiles).to(tl.int64)
    b = head // (H // GROUP)
    kv_head = head % (H // GROUP)
    first_column = tl.program_id(0) % tiles * COLUMNS  # the first keys are seen by most queries
    k += b * k_b + kv_head * k_h
    v += b * v_b + kv_head * v_h
    dk += b * dk_b + kv_head * dk_h
    dv += b * dk_b + kv_head * dk_h
    k_tile = _load(k, first_column, k_t, T, E, WIDTH, COLUMNS, False)
    v_tile = _load(v, first_column, v_t, T, E, WIDTH, COLUMNS, False)
    diagonal_stop = tl.minimum(first_column + COLUMNS, T)
    stop = T
    mine = None
    if documents is not None:
        documents += b * T
        mine = _document(documents, first_column, T, COLUMNS)
        _, stop = _range(documents, mine, diagonal_stop, T)

    dk_sum = tl.zeros([COLUMNS, WIDTH], tl.float32)
    dv_sum = tl.zeros([COLUMNS, WIDTH], tl.float32)
    for member in range(GROUP):
        h = kv_head * GROUP + member
        q_head = q + (b * q_b + h * q_h)
        dout_head = dout + (b * dout_b + h * dout_h)
        lse_head = lse + (b * H + h) * T
        delta_head = delta + (b * H + h) * T
        # fmt: off
        dk_sum, dv_sum = _gather_dkv(dk_sum, dv_sum, k_tile, v_tile, q_head, dout_head, lse_head, delta_head, documents,
                                     mine, first_column, first_column, diagonal_stop, scale, T, q_t, dout_t,
                                     E, WIDTH, ROWS, COLUMNS, True)
        dk_sum, dv_sum = _gather_dkv(dk_sum, dv_sum, k_tile, v_tile, q_head, dout_head, lse_head, delta_head, documents,
                                     mine, first_column, first_column + COLUMNS, stop, scale, T, q_t, dout_t,
                                     E, WIDTH, ROWS, COLUMNS, False)
        # fmt: on
    _store(dk, dk_sum * (scale * _LN_2), first_column, dk_t, T, E, WIDTH, COLUMNS)
    _store(dv, dv_sum, first_column, dk_t, T, E, WIDTH, COLUMNS)


@triton.jit
def _gather_dkv(  # type: ignore[no-untyped-def]
    dk_sum, dv_sum, k_tile, v_tile, q, dout, lse, delta, documents, mine, first_column, start, stop, scale, T, q_t,
    dout_t,
    E: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DIAGONAL: tl.constexpr,
):  # fmt: skip
    """dSᵀ Q and Pᵀ dO over the queries from `start` to `stop`; scores and weights lie transposed, (COLUMNS, ROWS)."""
    for row in range(start, stop, ROWS):
        q_tile = _load(q, row, q_t, T, E, WIDTH, ROWS, False)
        dout_tile = _load(dout, row, dout_t, T, E, WIDTH, ROWS, False)
        rows = row + tl.arange(0, ROWS)
        lse_rows = tl.load(lse + rows, mask=rows < T, other=0.0)
        delta_rows = tl.load(delta + rows, mask=rows < T, other=0.0)
        scores = tl.dot(k_tile, tl.trans(q_tile), input_precision="ieee") * scale
        weights = tl.exp2(scores - lse_rows[None, :])
        if DIAGONAL:
            weights = tl.where(tl.trans(_causal(row, first_column, ROWS, COLUMNS)), weights, 0.0)
        if documents is not None:
            theirs = _document(documents, row, T, ROWS)
            weights = tl.where(mine[:, None] == theirs[None, :], weights, 0.0)
        dv_sum = tl.dot(weights.to(dout_tile.dtype), dout_tile, dv_sum, input_precision="ieee")
        dweights = tl.dot(v_tile, tl.trans(dout_tile), input_precision="ieee")
        dscores = weights * (dweights - delta_rows[None, :])
        dk_sum = tl.dot(dscores.to(q_tile.dtype), q_tile, dk_sum, input_precision="ieee")
    return dk_sum, dv_sum


@triton.jit
def _longest_first(T, H: tl.constexpr, ROWS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Batch row, head and first query of this program. The last tiles see most keys: they start first."""
    tiles = tl.cdiv(T, ROWS)
    head = (tl.program_id(0) // tiles).to(tl.int64)
    return head // H, head % H, (tiles - 1 - tl.program_id(0) % tiles) * ROWS


@triton.jit
def _causal(first_row, first_column, ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # type: ignore[no-untyped-def]
    """(ROWS, COLUMNS): which keys lie at or before which queries."""
    return (first_row + tl.arange(0, ROWS))[:, None] >= (first_column + tl.arange(0, COLUMNS))[None, :]


@triton.jit
def _document(documents, first, T, LENGTH: tl.constexpr):  # type: ignore[no-untyped-def]
    """The documents of LENGTH positions; those past the end belong to the last one."""
    return tl.load(documents + tl.minimum(first + tl.arange(0, LENGTH), T - 1))


@triton.jit
def _range(documents, mine, start, stop):  # type: ignore[no-untyped-def]
    """First and one past the last position in [start, stop) whose document is within the range of `mine`.

    `stop` and `start` where there is none: an empty range.
    """
    lowest, highest = tl.min(mine, 0), tl.max(mine, 0)
    first, end = stop, start
    for at in range(start, stop, _SCAN):
        places = at + tl.arange(0, _SCAN)
        theirs = tl.load(documents + places, mask=places < stop, other=0)
        near = (places < stop) & (theirs >= lowest) & (theirs <= highest)
        first = tl.minimum(first, tl.min(tl.where(near, places, stop), 0))
        end = tl.maximum(end, tl.max(tl.where(near, places + 1, start), 0))
    return first, end


@triton.jit
def _load(  # type: ignore[no-untyped-def]
    head, first, stride, T, E: tl.constexpr, WIDTH: tl.constexpr, LENGTH: tl.constexpr, INSIDE: tl.constexpr
):
    """(LENGTH, WIDTH) of one head from position `first` on, zero outside of (T, E). INSIDE: all lie before T."""
    places, e = tl.arange(0, LENGTH), tl.arange(0, WIDTH)
    tile = head + tl.cast(first, tl.int64) * stride + places[:, None] * stride + e[None, :]
    if INSIDE and E == WIDTH:
        return tl.load(tile)
    elif INSIDE:
        return tl.load(tile, mask=(e < E)[None, :], other=0.0)
    elif E == WIDTH:
        return tl.load(tile, mask=(first + places < T)[:, None], other=0.0)
    else:
        return tl.load(tile, mask=(first + places < T)[:, None] & (e < E)[None, :], other=0.0)


@triton.jit
def _store(  # type: ignore[no-untyped-def]
    head, values, first, stride, T, E: tl.constexpr, WIDTH: tl.constexpr, LENGTH: tl.constexpr
):
    """The counterpart of `_load`, rounded to the type of what `head` points to."""
    places, e = tl.arange(0, LENGTH), tl.arange(0, WIDTH)
    tile = head + tl.cast(first, tl.int64) * stride + places[:, None] * stride + e[None, :]
    tl.store(tile, values.to(head.dtype.element_ty), mask=(first + places < T)[:, None] & (e < E)[None, :])
