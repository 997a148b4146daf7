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

    dP = dO Vᵀ        dS = P ∘ (dP - delta), where delta = rowsum(dO ∘ O)
    dV = Pᵀ dO        dQ = dS K / √E        dK = dSᵀ Q / √E

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

This module needs triton, so only `flash.py` imports it, when it is first used.

Shapes: B batch, T time, H query heads, K key-value heads, GROUP = H / K, E head width, WIDTH the next power of two; a
tile has ROWS queries and COLUMNS keys. q, out, dout and dq are (B, H, T, E), k, v, dk and dv (B, K, T, E); x_b, x_h,
x_t are the strides of x, its last axis is dense. lse and delta are (B, H, T), contiguous, fp32. In capitals after the
strides: constants that are compiled in.
"""

import triton
import triton.language as tl

_BELOW_ALL: tl.constexpr = tl.constexpr(-1e30)  # lower than any score, higher than -inf
_LN_2: tl.constexpr = tl.constexpr(0.6931471805599453)  # takes log₂(e) out of `scale` again
_SCAN: tl.constexpr = tl.constexpr(1024)  # documents read at once when looking for a tile's range


@triton.jit(do_not_specialize=["T"])  # any length, one binary
def forward(
    q, k, v, documents, out, lse, scale, T,
    q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, out_b, out_h, out_t,
    H: tl.constexpr, GROUP: tl.constexpr, E: tl.constexpr, WIDTH: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """`out` and `lse` for one tile of queries of one head. ROWS is a multiple of COLUMNS."""
    b, h, first_row = _longest_first(T, H, ROWS)
    q += b * q_b + h * q_h
    k += b * k_b + h // GROUP * k_h
    v += b * v_b + h // GROUP * v_h
    out += b * out_b + h * out_h
    rows = first_row + tl.arange(0, ROWS)
    q_tile = _load(q, first_row, q_t, T, E, WIDTH, ROWS, False)
    first_column = 0
    if documents is not None:
        documents += b * T
        mine = _document(documents, rows, T)
        first_column, _ = _range(documents, mine, 0, first_row)

    highest = tl.full([ROWS], _BELOW_ALL, tl.float32)
    weight = tl.zeros([ROWS], tl.float32)
    mix = tl.zeros([ROWS, WIDTH], tl.float32)
    for DIAGONAL in tl.static_range(2):  # first the keys before the tile's first query, then those beside it
        start = first_row if DIAGONAL else first_column // COLUMNS * COLUMNS
        stop = tl.minimum(first_row + ROWS, T) if DIAGONAL else first_row
        for column in range(start, stop, COLUMNS):
            columns = column + tl.arange(0, COLUMNS)
            k_tile = _load(k, column, k_t, T, E, WIDTH, COLUMNS, not DIAGONAL)
            scores = tl.dot(q_tile, tl.trans(k_tile), input_precision="ieee") * scale  # (ROWS, COLUMNS)
            if DIAGONAL:
                scores = tl.where(rows[:, None] >= columns[None, :], scores, float("-inf"))
            if documents is not None:
                scores = tl.where(mine[:, None] == _document(documents, columns, T)[None, :], scores, float("-inf"))
            higher = tl.maximum(highest, tl.max(scores, 1))
            weights = tl.exp2(scores - higher[:, None])
            shrink = tl.exp2(highest - higher)
            weight = weight * shrink + tl.sum(weights, 1)
            v_tile = _load(v, column, v_t, T, E, WIDTH, COLUMNS, not DIAGONAL)
            mix = tl.dot(weights.to(v_tile.dtype), v_tile, mix * shrink[:, None], input_precision="ieee")
            highest = higher
    _store(out, mix / weight[:, None], first_row, out_t, T, E, WIDTH, ROWS)
    tl.store(lse + (b * H + h) * T + rows, highest + tl.log2(weight), mask=rows < T)


@triton.jit(do_not_specialize=["T"])
def backward_queries(
    q, k, v, documents, out, lse, dout, dq, delta, scale, T,
    q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, out_b, out_h, out_t, dout_b, dout_h, dout_t, dq_b, dq_h, dq_t,
    H: tl.constexpr, GROUP: tl.constexpr, E: tl.constexpr, WIDTH: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """`dq`, and `delta` for the other kernel, of one tile of queries of one head. ROWS is a multiple of COLUMNS."""
    b, h, first_row = _longest_first(T, H, ROWS)
    q += b * q_b + h * q_h
    k += b * k_b + h // GROUP * k_h
    v += b * v_b + h // GROUP * v_h
    out += b * out_b + h * out_h
    dout += b * dout_b + h * dout_h
    dq += b * dq_b + h * dq_h
    rows = first_row + tl.arange(0, ROWS)
    of_rows = (b * H + h) * T + rows
    q_tile = _load(q, first_row, q_t, T, E, WIDTH, ROWS, False)
    dout_tile = _load(dout, first_row, dout_t, T, E, WIDTH, ROWS, False)
    out_tile = _load(out, first_row, out_t, T, E, WIDTH, ROWS, False)
    delta_rows = tl.sum(dout_tile.to(tl.float32) * out_tile.to(tl.float32), 1)
    tl.store(delta + of_rows, delta_rows, mask=rows < T)
    lse_rows = tl.load(lse + of_rows, mask=rows < T, other=0.0)
    first_column = 0
    if documents is not None:
        documents += b * T
        mine = _document(documents, rows, T)
        first_column, _ = _range(documents, mine, 0, first_row)

    dq_sum = tl.zeros([ROWS, WIDTH], tl.float32)
    for DIAGONAL in tl.static_range(2):
        start = first_row if DIAGONAL else first_column // COLUMNS * COLUMNS
        stop = tl.minimum(first_row + ROWS, T) if DIAGONAL else first_row
        for column in range(start, stop, COLUMNS):
            columns = column + tl.arange(0, COLUMNS)
            k_tile = _load(k, column, k_t, T, E, WIDTH, COLUMNS, not DIAGONAL)
            v_tile = _load(v, column, v_t, T, E, WIDTH, COLUMNS, not DIAGONAL)
            scores = tl.dot(q_tile, tl.trans(k_tile), input_precision="ieee") * scale  # (ROWS, COLUMNS)
            weights = tl.exp2(scores - lse_rows[:, None])
            if DIAGONAL:
                weights = tl.where(rows[:, None] >= columns[None, :], weights, 0.0)
            if documents is not None:
                weights = tl.where(mine[:, None] == _document(documents, columns, T)[None, :], weights, 0.0)
            dweights = tl.dot(dout_tile, tl.trans(v_tile), input_precision="ieee")
            dscores = weights * (dweights - delta_rows[:, None])
            dq_sum = tl.dot(dscores.to(k_tile.dtype), k_tile, dq_sum, input_precision="ieee")
    _store(dq, dq_sum * (scale * _LN_2), first_row, dq_t, T, E, WIDTH, ROWS)


@triton.jit(do_not_specialize=["T"])
def backward_keys(
    q, k, v, documents, lse, dout, delta, dk, dv, scale, T,
    q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t, dout_b, dout_h, dout_t, dk_b, dk_h, dk_t, dv_b, dv_h, dv_t,
    H: tl.constexpr, GROUP: tl.constexpr, E: tl.constexpr, WIDTH: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """`dk` and `dv` of one tile of keys of one key-value head. COLUMNS is a multiple of ROWS."""
    tiles = tl.cdiv(T, COLUMNS)
    head = (tl.program_id(0) // tiles).to(tl.int64)
    b, kv_head = head // (H // GROUP), head % (H // GROUP)
    first_column = tl.program_id(0) % tiles * COLUMNS  # the first keys are seen by most queries: they start first
    k += b * k_b + kv_head * k_h
    v += b * v_b + kv_head * v_h
    dk += b * dk_b + kv_head * dk_h
    dv += b * dv_b + kv_head * dv_h
    columns = first_column + tl.arange(0, COLUMNS)
    beside = tl.minimum(first_column + COLUMNS, T)  # up to here queries are compared with the diagonal
    k_tile = _load(k, first_column, k_t, T, E, WIDTH, COLUMNS, False)
    v_tile = _load(v, first_column, v_t, T, E, WIDTH, COLUMNS, False)
    last = T
    if documents is not None:
        documents += b * T
        mine = _document(documents, columns, T)
        _, last = _range(documents, mine, beside, T)

    dk_sum = tl.zeros([COLUMNS, WIDTH], tl.float32)
    dv_sum = tl.zeros([COLUMNS, WIDTH], tl.float32)
    for member in range(GROUP):
        h = kv_head * GROUP + member
        q_head = q + (b * q_b + h * q_h)
        dout_head = dout + (b * dout_b + h * dout_h)
        for DIAGONAL in tl.static_range(2):
            start = first_column if DIAGONAL else first_column + COLUMNS
            stop = beside if DIAGONAL else last
            for row in range(start, stop, ROWS):
                rows = row + tl.arange(0, ROWS)
                of_rows = (b * H + h) * T + rows
                q_tile = _load(q_head, row, q_t, T, E, WIDTH, ROWS, False)
                dout_tile = _load(dout_head, row, dout_t, T, E, WIDTH, ROWS, False)
                lse_rows = tl.load(lse + of_rows, mask=rows < T, other=0.0)
                delta_rows = tl.load(delta + of_rows, mask=rows < T, other=0.0)
                scores = tl.dot(k_tile, tl.trans(q_tile), input_precision="ieee") * scale  # (COLUMNS, ROWS): transposed
                weights = tl.exp2(scores - lse_rows[None, :])
                if DIAGONAL:
                    weights = tl.where(rows[None, :] >= columns[:, None], weights, 0.0)
                if documents is not None:
                    weights = tl.where(_document(documents, rows, T)[None, :] == mine[:, None], weights, 0.0)
                dv_sum = tl.dot(weights.to(dout_tile.dtype), dout_tile, dv_sum, input_precision="ieee")
                dweights = tl.dot(v_tile, tl.trans(dout_tile), input_precision="ieee")
                dscores = weights * (dweights - delta_rows[None, :])
                dk_sum = tl.dot(dscores.to(q_tile.dtype), q_tile, dk_sum, input_precision="ieee")
    _store(dk, dk_sum * (scale * _LN_2), first_column, dk_t, T, E, WIDTH, COLUMNS)
    _store(dv, dv_sum, first_column, dv_t, T, E, WIDTH, COLUMNS)


@triton.jit
def _longest_first(T, H: tl.constexpr, ROWS: tl.constexpr):
    """Batch row, head and first query of this program. The last tiles see most keys: they start first."""
    tiles = tl.cdiv(T, ROWS)
    head = (tl.program_id(0) // tiles).to(tl.int64)
    return head // H, head % H, (tiles - 1 - tl.program_id(0) % tiles) * ROWS


@triton.jit
def _document(documents, places, T):
    """The documents of some positions; those past the end belong to the last one."""
    return tl.load(documents + tl.minimum(places, T - 1))


@triton.jit
def _range(documents, mine, start, stop):
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
def _load(head, first, stride, T, E: tl.constexpr, WIDTH: tl.constexpr, LENGTH: tl.constexpr, INSIDE: tl.constexpr):
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
def _store(head, values, first, stride, T, E: tl.constexpr, WIDTH: tl.constexpr, LENGTH: tl.constexpr):
    """The counterpart of `_load`, rounded to the type of what `head` points to."""
    places, e = tl.arange(0, LENGTH), tl.arange(0, WIDTH)
    tile = head + tl.cast(first, tl.int64) * stride + places[:, None] * stride + e[None, :]
    tl.store(tile, values.to(head.dtype.element_ty), mask=(first + places < T)[:, None] & (e < E)[None, :])
