"""Eight bytes of an array as one number, for compiled code: what numba has no words for.

Both are LLVM instructions, given to numba as intrinsics: a call of a function that takes an array would count
references.
"""

from collections.abc import Callable
from typing import Any, cast

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

HIGH_BITS = np.uint64(0x8080808080808080)  # of eight bytes
WORD = ir.IntType(64)


def _eight_bytes(typing_context: Any, array: Any, at: Any) -> Any:
    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = cgutils.create_struct_proxy(signature.args[0])(context, builder, arguments[0]).data
        place = builder.bitcast(builder.gep(data, [arguments[1]]), WORD.as_pointer())
        return builder.load(place, align=1)  # processors that numba compiles for store the lowest byte first

    return types.uint64(array, types.int64), code


def _trailing_zeros(typing_context: Any, number: Any) -> Any:
    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 0))

    return types.int64(types.uint64), code


# array[at : at + 8] of a uint8 array as one number, the first byte lowest. Bounds are the caller's to check.
eight_bytes: Callable[[np.ndarray, int], np.uint64] = cast(Any, intrinsic(_eight_bytes))
# How many of the lowest bits are zero, as an int64; 64 for zero.
trailing_zeros: Callable[[np.uint64], int] = cast(Any, intrinsic(_trailing_zeros))
