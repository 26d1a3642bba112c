"""What several families share: kernels without branches, and the sums that NumPy is slow at."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from math import log, prod
from typing import Any

import numpy as np
from numpy.lib import introspect

from .. import memory, parallel
from ..blas import gemm
from ..checks import broadcast_shape
from ..dtypes import WIDE_FLOATS, Array, DType, float32, float64
from ..machine import Column, Kernel, Matrix, fill_kernel, kernel, runs, times_plus
from ..recorder import Backward, Into, Recorder

#: Elements below which NumPy's own sum over rows is quicker than a product.
_SMALL_SUM = 1 << 13

#: Integers as wide as an element, for what is done to bits.
_BITS = {size: np.dtype(f"i{size}") for size in (1, 2, 4, 8)}
#: Elements from which `select` works on bits: below, more calls cost more than branches.
_BITS_FROM = 1 << 12


def _quick_exponential() -> tuple[np.ufunc, float]:
    """NumPy's quicker one of exp and exp2 for float32, and the exponent with which it gives e.

    On processors with AVX-512, exp2 takes half the time of exp; on others it has no loop that
    takes several elements at once, and three times as long.
    """
    loops = introspect.opt_func_info(func_name="^exp2$")
    current = loops.get("exp2", {}).get("ff", {}).get("current", "baseline")
    return (np.exp, 1.0) if current.startswith("baseline") else (np.exp2, 1 / log(2))


EXPONENTIAL, EXPONENT_OF_E = _quick_exponential()


@cache
def number(value: float, dtype: DType) -> Array:
    """A number as an array without axes, not to be written to: ufuncs are slower with scalars."""
    array = np.asarray(value, dtype)
    array.flags.writeable = False
    return array


def by_kernel(function: Kernel, like: Array, *inputs: Array | float) -> Array | None:
    """What a kernel makes of arrays that lie alike in memory; None where it can't run.

    Args:
        function: the kernel; it writes to its first operand.
        like: an input, and the example for the result.
        inputs: the others, scalars last.
    """
    order = None if like.flags.c_contiguous else memory.order_of(like)
    views = [like, *(a for a in inputs if isinstance(a, np.ndarray))]
    if order:
        views = [a.transpose(order) for a in views]
    if not runs(*views):
        return None
    out = memory.empty(views[0].shape, like.dtype)
    function.flat(out, *views, *inputs[len(views) - 1 :])
    return out.transpose([order.index(axis) for axis in range(like.ndim)]) if order else out


def bits_of(array: Array) -> Array:
    """The same memory as integers."""
    return array.view(_BITS[array.dtype.itemsize])


def select(mask: Array, a: Array, b: Array) -> Array:
    """`a` where the mask holds and `b` elsewhere, broadcast; all of one dtype.

    np.where and np.copyto branch on each element, and where the mask follows no pattern each
    guess of the processor is as often wrong as right: then they take 40 times as long.

    Args:
        mask: bool.
        a: of any dtype.
        b: of the same dtype.
    """
    if mask.size < _BITS_FROM and a.size < _BITS_FROM and b.size < _BITS_FROM:
        return np.where(mask, a, b)
    shape = broadcast_shape(mask.shape, a.shape, b.shape)

    def block(out: Array, mask: Array, a: Array, b: Array) -> None:
        bits = bits_of(out)
        (difference,) = memory.scratch(1, out.shape, bits.dtype)
        np.bitwise_xor(bits_of(a), bits_of(b), out=difference)
        np.copyto(bits, np.negative(mask.view(np.int8)))  # all bits, or none
        np.bitwise_and(bits, difference, out=bits)
        np.bitwise_xor(bits, bits_of(b), out=bits)

    out = memory.empty(shape, a.dtype)
    parallel.elementwise(block, out, mask, a, b)
    return out


def masked(mask: Array, values: Array) -> Array:
    """The values where the mask holds, 0 elsewhere, also in place of inf and NaN; broadcast."""
    if mask.size < _BITS_FROM and values.size < _BITS_FROM:
        return np.where(mask, values, number(0, values.dtype))
    shape = broadcast_shape(mask.shape, values.shape)

    def block(out: Array, mask: Array, values: Array) -> None:
        bits = bits_of(out)
        np.copyto(bits, np.negative(mask.view(np.int8)))  # all bits, or none
        np.bitwise_and(bits, bits_of(values), out=bits)

    out = memory.empty_like(values) if values.shape == shape else memory.empty(shape, values.dtype)
    parallel.elementwise(block, out, mask, values)
    return out


def limited(x: Array, low: Any = None, high: Any = None) -> Array:
    """x limited to numbers; NaN stays, and a NaN limit gives NaN.

    One pass of np.clip: np.maximum and np.minimum take four times as long beside a number.
    """
    if x.dtype not in WIDE_FLOATS:
        return np.asarray(np.clip(x, low, high))
    low = -np.inf if low is None else low
    high = np.inf if high is None else high
    out = memory.empty_like(x)
    parallel.elementwise(lambda out, x: x.clip(low, high, out=out), out, x)
    return out


def sum_rows(matrix: Array) -> Array:
    """Sum of a matrix over its rows, shape (columns,): a product with ones, where it is large."""
    if matrix.size < _SMALL_SUM or matrix.dtype not in WIDE_FLOATS:
        return np.asarray(np.add.reduce(matrix, axis=0))
    ones = np.ones((1, matrix.shape[0]), matrix.dtype)
    total = gemm(ones, matrix, np.empty((1, matrix.shape[1]), matrix.dtype))
    return total.reshape(-1)


def as_rows(array: Array, axes: int = 1) -> Array:
    """A matrix whose rows run over the last `axes` axes."""
    lead = array.shape[: array.ndim - axes]
    return array.reshape(prod(lead), prod(array.shape[array.ndim - axes :]))


#: Elements from which sums are products with ones, which read memory at its own speed.
_PRODUCTS_FROM = 1 << 16
#: Elements of a sum that is made in the dtype itself; such sums are then added in float64.
_PART = 1 << 9


def sum_over(x: Array, axes: tuple[int, ...]) -> Array:
    """The sum of floats over axes, which are kept with length 1."""
    kept = tuple(1 if axis in axes else length for axis, length in enumerate(x.shape))
    count = len(axes)
    if x.size >= _PRODUCTS_FROM and x.dtype in WIDE_FLOATS and x.flags.c_contiguous:
        if count == x.ndim:
            return np.asarray(total(x.reshape(-1)), x.dtype).reshape(kept)
        if axes == tuple(range(x.ndim - count, x.ndim)):
            return _row_sums(as_rows(x, count)).reshape(kept)
        if axes == tuple(range(count)):
            return sum_rows(as_rows(x, x.ndim - count)).reshape(kept)
    return np.asarray(x.sum(axis=axes, keepdims=True))


def total(flat: Array) -> float:
    """The sum of a vector of floats."""
    if flat.size < _PRODUCTS_FROM or flat.dtype not in WIDE_FLOATS:
        return float(flat.sum())
    whole = flat.size - flat.size % (4 * _PART)
    quarters = flat[:whole].reshape(4, -1, _PART)
    if runs(quarters):
        sums = np.empty((quarters.shape[1], 1), flat.dtype)
        _sum_of_four.rows(*quarters, sums)
    else:
        sums = _row_sums(quarters.reshape(-1, _PART))
    return float(sums.sum(dtype=float64) + flat[whole:].sum(dtype=float64))


@kernel
def _sum(rows: Matrix, sums: Column) -> None:
    sums.store(rows.load().sum())


@kernel
def _sum_of_four(a: Matrix, b: Matrix, c: Matrix, d: Matrix, sums: Column) -> None:
    # Read in four places at once, memory gives half as much again as in one.
    sums.store(((a.load() + b.load()) + (c.load() + d.load())).sum())


def _row_sums(rows: Array) -> Array:
    """The sums of contiguous rows."""
    count, columns = rows.shape
    if columns > _PART and columns % _PART:
        return np.asarray(rows.sum(axis=1))
    part = min(columns, _PART)
    parts = rows.reshape(-1, part)
    sums = np.empty((len(parts), 1), rows.dtype)
    if runs(parts):
        _sum.rows(parts, sums)
    else:
        gemm(parts, np.ones((part, 1), rows.dtype), sums)
    if part == columns:
        return sums
    return np.asarray(sums.reshape(count, -1).sum(axis=1, dtype=float64), rows.dtype)


#: Elements from which a kernel fills memory: below, NumPy's call is as quick.
_FILL_FROM = 1 << 14


def copied(array: Array) -> Array:
    """A copy in C order; one number that stands for many, as sums send back, is filled in."""
    if array.size < _FILL_FROM or any(array.strides) or array.dtype is not float32 or not runs():
        return parallel.copy(array)
    out = memory.empty(array.shape, array.dtype)
    fill_kernel.flat(out, array.item(0))
    return out


@kernel
def _multiply(out: Matrix, slope: Matrix, grad: Matrix) -> None:
    out.store(slope.load() * grad.load())


@kernel
def _multiply_more(out: Matrix, slope: Matrix, grad: Matrix, start: Matrix) -> None:
    out.store(times_plus(slope.load(), grad.load(), start.load()))


def rows_of(recorder: Recorder, *arrays: Array) -> list[Array]:
    """The memory of arrays of a recording that lie alike, as matrices."""
    found = [recorder.memory_of(array) for array in arrays]
    # Of images in lanes a row is all that a channel has.
    return [as_rows(m, 1 if m is x else m.ndim - 1) for x, m in zip(arrays, found, strict=True)]


def record_slope(
    recorder: Recorder, plain: Kernel, with_slope: Kernel, x: Array
) -> tuple[Array, Backward, int | None]:
    """A function of each element in a recording.

    Args:
        recorder: where it is written down.
        plain: a kernel of the result and x.
        with_slope: a kernel of the result, the derivative and x.
        x: the input.
    """
    out = recorder.kept_like(x)
    slope = None
    if recorder.needs_grad(x):  # written after x was read
        slope = x if recorder.may_overwrite(x) else recorder.kept_like(x)
    if slope is None:
        recorder.forward.rows(plain, *rows_of(recorder, out, x))
    else:
        recorder.forward.rows(with_slope, *rows_of(recorder, out, slope, x))

    def back(grad: Array, outs: Sequence[Into | None]) -> None:
        (to_x,) = outs
        assert to_x is not None and slope is not None
        arrays = rows_of(recorder, to_x.out, slope, grad)
        if to_x.start is None:
            recorder.backward.rows(_multiply, *arrays)
        else:
            recorder.backward.rows(_multiply_more, *arrays, *rows_of(recorder, to_x.start))

    return out, back, None


def random_stream(key: tuple[int, ...]) -> np.random.Generator:
    """Random numbers that depend on nothing but the key."""
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence(key)))


def keep_factors(key: tuple[int, ...], p: float, out: Array) -> Array:
    """Fill `out` with dropout's factors: 0 with probability p, else 1/(1-p)."""
    draws = random_stream(key).random(out.shape, np.float32)
    np.multiply(draws >= p, out.dtype.type(1 / (1 - p) if p < 1 else 0), out=out)
    return out
