"""A step of the transformer for one token a row, compiled by numba: `llm.model.transformer` with T = 1, written out.

- A matrix is read once a step for all rows (`dot_products.py`), and its products are spread over the threads, some
  outputs at a time. A row's figures depend neither on the batch nor on the threads.
- Weights are fp32, or bf16 as uint16, whose bits are the upper half of an fp32 number's; sums and states are fp32.
- What follows a product element by element (bias, activation, residual) happens where the product is made.
- Arrays are indexed, not sliced, in inner loops: numba would count references for each slice.

numba keeps the machine code in `__pycache__`; compiling it anew takes some seconds, once for each format.

Shapes: B rows, D d_model, H query heads, K key-value heads, E head width, F d_ff, V vocabulary, L layers, S slots.
"""

import numpy as np
from numba import njit, prange

from llm.dot_products import products

SWIGLU, GELU, RELU, RELU2 = range(4)
BLOCK = 16  # outputs that a thread makes before it looks after what follows them
# Sums may be taken in another order than written, which vectors need; infinities keep their meaning.
FAST = {"reassoc", "contract", "nsz", "arcp"}


@njit(cache=True, nogil=True, parallel=True, fastmath=FAST)
def _linear(weight: np.ndarray, bias: np.ndarray, x: np.ndarray, made: np.ndarray, y: np.ndarray, add: bool) -> None:
    """y (B, O) = x (B, I) · weight (O, I) + bias, or that added to y. The products go through `made` (B, O)."""
    outputs = weight.shape[0]
    for block in prange((outputs + BLOCK - 1) // BLOCK):
        begin, end = block * BLOCK, min(block * BLOCK + BLOCK, outputs)
        for o in range(begin, end):
            products(weight, o, x, made, o)
        for b in range(x.shape[0]):
            for o in range(begin, end):
                total = made[b, o] + bias[o]
                y[b, o] = y[b, o] + total if add else total


@njit(cache=True, nogil=True, parallel=True, fastmath=FAST)
def _expand(weight: np.ndarray, bias: np.ndarray, x: np.ndarray, ups: np.ndarray, y: np.ndarray, kind: int) -> None:
    """y (B, F): the feed-forward's hidden values. SWIGLU's gates are the first F rows of its weight (2F, D)."""
    F = y.shape[1]
    for block in prange((F + BLOCK - 1) // BLOCK):
        begin, end = block * BLOCK, min(block * BLOCK + BLOCK, F)
        for o in range(begin, end):
            products(weight, o, x, y, o)
        if kind == SWIGLU:
            for o in range(begin, end):
                products(weight, F + o, x, ups, o)
        for b in range(x.shape[0]):
            for o in range(begin, end):
                total = y[b, o] + bias[o]
                if kind == SWIGLU:
                    y[b, o] = total / (np.float32(1) + np.exp(-total)) * (ups[b, o] + bias[F + o])
                elif kind == GELU:
                    inner = np.float32(0.7978845608) * (total + np.float32(0.044715) * total * total * total)
                    y[b, o] = np.float32(0.5) * total * (np.float32(1) + np.tanh(inner))
                else:
                    total = max(total, np.float32(0))
                    y[b, o] = total * total if kind == RELU2 else total


@njit(cache=True, nogil=True, fastmath=FAST)
def _norm(
    x: np.ndarray, b: int, at: int, width: int, gain: np.ndarray, bias: np.ndarray, eps: float, y: np.ndarray, to: int
) -> None:
    """y[b, to:to+width]: x[b, at:at+width] normed; `bias` (0,) for an RMSNorm, (width,) for a LayerNorm."""
    mean = np.float32(0)
    if len(bias):
        for i in range(width):
            mean += x[b, at + i]
        mean /= np.float32(width)
    square = np.float32(0)
    for i in range(width):
        square += (x[b, at + i] - mean) * (x[b, at + i] - mean)
    scale = np.float32(1) / np.sqrt(square / np.float32(width) + np.float32(eps))
    for i in range(width):
        y[b, to + i] = (x[b, at + i] - mean) * scale * gain[i]
    if len(bias):
        for i in range(width):
            y[b, to + i] += bias[i]


@njit(cache=True, nogil=True, fastmath=FAST)
def _turn(x: np.ndarray, b: int, at: int, width: int, cos: np.ndarray, sin: np.ndarray, place: int) -> None:
    """Turn x[b, at:at+width] by the angles of `place`; the tables (T, E/2) are empty where nothing is turned."""
    half = cos.shape[1]
    for i in range(half):
        first, second = x[b, at + i], x[b, at + half + i]
        x[b, at + i] = first * cos[place, i] - second * sin[place, i]
        x[b, at + half + i] = second * cos[place, i] + first * sin[place, i]


@njit(cache=True, nogil=True, parallel=True, fastmath=FAST)
def _attend(
    qkv: np.ndarray, keys: np.ndarray, values: np.ndarray, slots: np.ndarray, places: np.ndarray, y: np.ndarray,
    n_head: int, scores: np.ndarray,
) -> None:  # fmt: skip
    """y (B, H·E) of the queries in qkv to positions 0 to places[b] of keys (S, K, E, T) and values (S, K, T, E)."""
    K, E = keys.shape[1], keys.shape[2]
    scale = np.float32(1 / np.sqrt(E))
    for task in prange(qkv.shape[0] * n_head):
        b, h = task // n_head, task % n_head
        slot, g, count = slots[b], h // (n_head // K), places[b] + 1
        for t in range(count):
            scores[task, t] = 0
        for e in range(E):  # positions side by side, so that no sum runs across a vector
            query = qkv[b, h * E + e] * scale
            for t in range(count):
                scores[task, t] += query * keys[slot, g, e, t]
        top = np.float32(-np.inf)
        for t in range(count):
            top = max(top, scores[task, t])
        whole = np.float32(0)
        for e in range(E):
            y[b, h * E + e] = 0
        for t in range(count):
            share = np.exp(scores[task, t] - top)
            whole += share
            for e in range(E):
                y[b, h * E + e] += share * values[slot, g, t, e]
        for e in range(E):
            y[b, h * E + e] /= whole


@njit(cache=True, nogil=True)
def step(
    x: np.ndarray, slots: np.ndarray, places: np.ndarray, keys: np.ndarray, values: np.ndarray, scores: np.ndarray,
    n_head: int, kind: int, eps: float, cos: np.ndarray, sin: np.ndarray,
    norms: tuple[np.ndarray, ...], biases: tuple[np.ndarray, ...], weights: tuple[np.ndarray, ...], logits: np.ndarray,
) -> None:  # fmt: skip
    """Logits (B, V) from embeddings x (B, D) of tokens at `places` (B,), whose keys and values go into the cache.

    x is overwritten. The cache: keys (L, S, K, E, T) and values (L, S, K, T, E), row b in slot slots[b].
    scores: (B·H, T), used here. norms: gain and bias of the norms before attention and feed-forward (L, D), of queries
    and keys (L, E or 0), of the last norm (1, D); a bias of width 0 means RMSNorm. biases and weights: qkv, out,
    expand, down, each by layer. weights[4]: the head (V, D).
    """
    B, D = x.shape
    K, E = keys.shape[2], keys.shape[3]
    first, first_bias, second, second_bias, of_q, of_q_bias, of_k, of_k_bias, last, last_bias = norms
    qkv_bias, out_bias, expand_bias, down_bias, head_bias = biases
    qkv_weight, out_weight, expand_weight, down_weight, head = weights
    normed = np.empty((B, D), np.float32)
    qkv = np.empty((B, qkv_weight.shape[1]), np.float32)
    attended = np.empty((B, n_head * E), np.float32)
    hidden = np.empty((B, down_weight.shape[2]), np.float32)
    ups = np.empty_like(hidden)
    made = np.empty_like(x)
    for layer in range(len(qkv_weight)):
        for b in range(B):
            _norm(x, b, 0, D, first[layer], first_bias[layer], eps, normed, 0)
        _linear(qkv_weight[layer], qkv_bias[layer], normed, qkv, qkv, False)
        for b in range(B):
            slot, place = slots[b], places[b]
            for h in range(n_head + K):
                if of_q.shape[1]:
                    gain = of_q[layer] if h < n_head else of_k[layer]
                    bias = of_q_bias[layer] if h < n_head else of_k_bias[layer]
                    _norm(qkv, b, h * E, E, gain, bias, eps, qkv, h * E)
                _turn(qkv, b, h * E, E, cos, sin, place)
            for g in range(K):
                for e in range(E):
                    keys[layer, slot, g, e, place] = qkv[b, (n_head + g) * E + e]
                    values[layer, slot, g, place, e] = qkv[b, (n_head + K + g) * E + e]
        _attend(qkv, keys[layer], values[layer], slots, places, attended, n_head, scores)
        _linear(out_weight[layer], out_bias[layer], attended, made, x, True)
        for b in range(B):
            _norm(x, b, 0, D, second[layer], second_bias[layer], eps, normed, 0)
        _expand(expand_weight[layer], expand_bias[layer], normed, ups, hidden, kind)
        _linear(down_weight[layer], down_bias[layer], hidden, made, x, True)
    for b in range(B):
        _norm(x, b, 0, D, last[0], last_bias[0], eps, normed, 0)
    _linear(head, head_bias[0], normed, logits, logits, False)
