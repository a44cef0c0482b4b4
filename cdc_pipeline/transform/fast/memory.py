"""Operations on bytes of arrays that Numba lacks, or has only slow versions of.

Numba checks each index for negative values. These operations do not, and they process eight bytes
at a time, which halves the total time of this package.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from cdc_pipeline.transform.fast.compiler import compiled

NONE = 255


def byte_table(values: dict[int, int]) -> np.ndarray[Any, Any]:
    """Build a table of numbers by byte, `NONE` for the others."""
    return np.array([values.get(byte, NONE) for byte in range(256)], np.uint8)


def as_word(text: bytes) -> np.uint64:
    """Convert up to eight bytes to the word that `eight_at` reads."""
    return np.uint64(int.from_bytes(text, "little"))


def _place(context: Any, builder: Any, kind: Any, array: Any, index: Any, bits: int) -> Any:
    data = context.make_array(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), ir.IntType(bits).as_pointer())


def _operation(function: Callable[..., Any]) -> Any:
    """Declare an intrinsic; Numba calls it without its first parameter."""
    return intrinsic(function)


@_operation
def byte_at(_typing, array, index):
    """Read the byte at `index` as a signed integer."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = _place(context, builder, signature.args[0], args[0], args[1], 8)
        return builder.zext(builder.load(place), ir.IntType(64))

    return types.int64(array, types.int64), generate


@_operation
def put_byte(_typing, array, index, byte):
    """Write a byte."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = _place(context, builder, signature.args[0], args[0], args[1], 8)
        builder.store(builder.trunc(args[2], ir.IntType(8)), place)
        return context.get_dummy_value()

    return types.void(array, types.int64, types.int64), generate


@_operation
def eight_at(_typing, array, index):
    """Read eight bytes from `index` on, the first one lowest."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = _place(context, builder, signature.args[0], args[0], args[1], 64)
        loaded = builder.load(place)
        loaded.align = 1
        return loaded

    return types.uint64(array, types.int64), generate


@_operation
def put_eight(_typing, array, index, word):
    """Write eight bytes."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = _place(context, builder, signature.args[0], args[0], args[1], 64)
        builder.store(args[2], place).align = 1
        return context.get_dummy_value()

    return types.void(array, types.int64, types.uint64), generate


@_operation
def first_byte(_typing, word):
    """Return the index (0 to 7) of the lowest byte with a bit set; the word is not zero."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        zeros = builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))
        return builder.lshr(zeros, ir.Constant(ir.IntType(64), 3))

    return types.int64(types.uint64), generate


@compiled
def copy_bytes(data, i, end, out, o):
    """Copy `data[i:end]` (and up to 7 bytes more) to `out`; returns its end in `out`."""
    size = end - i
    k = 0
    while k < size:
        put_eight(out, o + k, eight_at(data, i + k))
        k += 8
    return o + size


@compiled
def compare_bytes(out, a, a_end, b, b_end):
    """Return less than 0 if `out[a:a_end]` sorts before `out[b:b_end]`, 0 if equal."""
    size = min(a_end - a, b_end - b)
    k = 0
    while k < size:
        differing = eight_at(out, a + k) ^ eight_at(out, b + k)
        if differing != 0:
            k += first_byte(differing)
            if k < size:
                return -1 if byte_at(out, a + k) < byte_at(out, b + k) else 1
        k += 8
    return (a_end - a) - (b_end - b)
