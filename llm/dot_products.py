"""A row of a matrix times the states of a batch, for compiled code: the loop that generation spends its time in.

It is written as vector instructions for LLVM, since two things count that a compiler else decides for itself:

- **The order of the sums** is the same for every row, whatever the batch. Products are summed in 32 lanes, i in lane
  i mod 32, then the lanes by halves; those left over where 32 does not divide the width come last, one by one. So a
  row's figures are its own, to the bit.
- **A weight that was read serves eight rows** from registers, turned from bf16 to fp32 once for all of them.

numba keeps the machine code of the callers; it does not see that this file has changed: delete `__pycache__` then.

Shapes: O outputs, I inputs, B rows.
"""

from collections.abc import Callable
from typing import Any, cast

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, overload

LANES = 16  # of a vector; where registers are narrower, LLVM takes several for one
STRIDE = 2 * LANES  # two vectors of sums a row, since one would wait for its own last addition
TOGETHER = 8  # rows whose sums fit the registers
FLOAT = ir.FloatType()
FLOATS = ir.VectorType(FLOAT, LANES)
WORDS = ir.VectorType(ir.IntType(32), LANES)

Dots = Callable[[np.ndarray, int, np.ndarray, int], tuple[np.float32, ...]]


def _dots(rows: int) -> Dots:
    """Compiled code's (weight (O, I), o, x (B, I), b) -> weight[o] · each of x[b : b + rows], where STRIDE reaches."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        weight, x = (cgutils.create_struct_proxy(signature.args[at])(context, builder, arguments[at]) for at in (0, 2))
        width = builder.extract_value(weight.shape, 1)
        number = width.type
        add_product = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(FLOATS, [FLOATS] * 3), f"llvm.fmuladd.v{LANES}f32"
        )

        def vector(data: Any, at: Any) -> Any:
            """LANES fp32 numbers from `at` on, bf16's bits being the upper half of theirs."""
            element = data.type.pointee
            place = builder.bitcast(builder.gep(data, [at]), ir.VectorType(element, LANES).as_pointer())
            found = builder.load(place, align=2)
            if element == FLOAT:
                return found
            return builder.bitcast(builder.shl(builder.zext(found, WORDS), ir.Constant(WORDS, [16] * LANES)), FLOATS)

        begins = [builder.mul(builder.add(arguments[3], number(row)), width) for row in range(rows)]
        begin = builder.mul(arguments[1], width)
        zeros = ir.Constant(FLOATS, [0.0] * LANES)
        sums = [[cgutils.alloca_once_value(builder, zeros) for _ in range(2)] for _ in range(rows)]
        with cgutils.for_range(builder, builder.sdiv(width, number(STRIDE))) as loop:
            for half in range(2):
                at = builder.add(builder.mul(loop.index, number(STRIDE)), number(half * LANES))
                factor = vector(weight.data, builder.add(begin, at))
                for row in range(rows):
                    state = vector(x.data, builder.add(begins[row], at))
                    more = builder.call(add_product, [factor, state, builder.load(sums[row][half])])
                    builder.store(more, sums[row][half])
        halves = [builder.fadd(builder.load(first), builder.load(second)) for first, second in sums]
        return context.make_tuple(builder, signature.return_type, [_folded(builder, lanes) for lanes in halves])

    def typed(typing_context: Any, weight: Any, o: Any, x: Any, b: Any) -> Any:
        if (weight.layout, x.layout) != ("C", "C"):
            return None
        return types.UniTuple(types.float32, rows)(weight, types.intp, x, types.intp), code

    return cast(Dots, intrinsic(typed))


def _folded(builder: Any, lanes: Any) -> Any:
    """The sum of a vector's lanes, half on half."""
    count = LANES
    while count > 1:
        count //= 2
        low, high = (
            builder.shuffle_vector(lanes, lanes, ir.Constant(ir.VectorType(ir.IntType(32), count), list(places)))
            for places in (range(count), range(count, 2 * count))
        )
        lanes = builder.fadd(low, high)
    return builder.extract_element(lanes, ir.IntType(32)(0))


_one, _together = _dots(1), _dots(TOGETHER)


def _wide(weight: Any) -> Any:
    """A weight as fp32, from bf16's bits or as it is. Compiled code takes the form of it below that fits its type."""
    return np.uint32(int(weight) << 16).view(np.float32) if isinstance(weight, np.integer) else weight


@overload(_wide, inline="always")
def _choose(weight: Any) -> Any:
    def from_bits(weight: Any) -> Any:
        return np.uint32(np.uint32(weight) << np.uint32(16)).view(np.float32)

    def as_it_is(weight: Any) -> Any:
        return weight

    return from_bits if isinstance(weight, types.Integer) else as_it_is


@njit(cache=True, nogil=True, inline="always")
def products(weight: np.ndarray, o: int, x: np.ndarray, y: np.ndarray, to: int) -> None:
    """y[b, to] = weight[o] · x[b] for all rows b of x (B, I); weight (O, I) is fp32 or bf16's bits as uint16."""
    B, I = x.shape  # noqa: E741
    whole = B - B % TOGETHER
    for first in range(0, whole, TOGETHER):
        found = _together(weight, o, x, first)
        for row in range(TOGETHER):
            y[first + row, to] = found[row]
    for b in range(whole, B):
        y[b, to] = _one(weight, o, x, b)[0]
    for i in range(I - I % STRIDE, I):
        for b in range(B):
            y[b, to] += _wide(weight[o, i]) * x[b, i]
