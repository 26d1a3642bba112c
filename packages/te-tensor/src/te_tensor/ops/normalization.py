"""Normalization over the last axes: LayerNorm RMSNorm."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, prod
from typing import NamedTuple

import numpy as np

from .. import memory, parallel
from ..blas import gemm
from ..dtypes import Array
from ..machine import (
    Column,
    Matrix,
    Scalar,
    Value,
    kernel,
    maximum,
    minus_times,
    runs,
    square_root,
    times_plus,
)
from ..operation import Gradients, Operation, Sample
from ..plan import Plan
from ..recorder import Backward, Into, Recorder
from ._kernels import as_rows, sum_rows

#: Elements up to which calls cost more than passes: small inputs take the fewest, in float64.
_SMALL = 1 << 13
#: Rows of a block in backward: as many numbers are added one by one in each column.
_ROWS = 1 << 12


def _normalized(rows: Array, eps: float) -> tuple[Array, Array]:
    """(x - mean) / √(var + eps) of the rows, and 1 / √(var + eps) in a column."""
    share = 1 / rows.shape[1]
    wide = rows.astype(np.float64)
    wide -= np.add.reduce(wide, axis=1, keepdims=True) * share
    inverse = 1 / np.sqrt(np.vecdot(wide, wide)[:, None] * share + eps)
    wide *= inverse
    return wide.astype(rows.dtype), inverse.astype(rows.dtype)


class _Statistics(NamedTuple):
    """What layer norm knows of a row; far from zero the mean is rounded, and a rest is left."""

    mean: Value
    rest: Value
    inverse: Value

    def normal(self, x: Value) -> Value:
        """The normalized elements."""
        return (x - self.mean - self.rest) * self.inverse


def _statistics(x: Value, eps: Scalar, share: Scalar) -> _Statistics:
    mean = x.sum() * share.load()
    centred = x - mean
    rest = centred.sum() * share.load()
    variance = minus_times((centred * centred).sum() * share.load(), rest, rest)
    return _Statistics(mean, rest, 1.0 / square_root(maximum(0.0, variance) + eps.load()))


@kernel
def _layer_norm(
    out: Matrix, x: Matrix, weight: Matrix, bias: Matrix, eps: Scalar, share: Scalar
) -> None:
    elements = x.load()
    normal = _statistics(elements, eps, share).normal(elements)
    out.store(times_plus(normal, weight.load(), bias.load()))


@kernel
def _layer_norm_kept(
    out: Matrix,
    x: Matrix,
    mean: Column,
    rest: Column,
    inverse: Column,
    weight: Matrix,
    bias: Matrix,
    eps: Scalar,
    share: Scalar,
) -> None:
    elements = x.load()
    found = _statistics(elements, eps, share)
    for column, value in zip((mean, rest, inverse), found, strict=True):
        column.store(value)
    out.store(times_plus(found.normal(elements), weight.load(), bias.load()))


def _gradient(
    grad: Matrix,
    x: Matrix,
    statistics: tuple[Column, Column, Column],
    weight: Matrix,
    sums: tuple[Matrix, Matrix],
    share: Scalar,
) -> Value:
    found = _Statistics(*[column.load() for column in statistics])
    upstream, normal = grad.load(), found.normal(x.load())
    scaled, product = upstream * weight.load(), upstream * normal
    for total, value in zip(sums, (product, upstream), strict=True):
        total.add(value)
    of_mean = scaled.sum() * share.load()
    correlation = (product * weight.load()).sum() * share.load()
    return minus_times(scaled - of_mean, normal, correlation) * found.inverse


@kernel
def _layer_norm_gradient(
    out: Matrix,
    grad: Matrix,
    x: Matrix,
    mean: Column,
    rest: Column,
    inverse: Column,
    weight: Matrix,
    to_weight: Matrix,
    to_bias: Matrix,
    share: Scalar,
) -> None:
    statistics, sums = (mean, rest, inverse), (to_weight, to_bias)
    out.store(_gradient(grad, x, statistics, weight, sums, share))


@kernel
def _layer_norm_gradient_more(
    out: Matrix,
    grad: Matrix,
    x: Matrix,
    mean: Column,
    rest: Column,
    inverse: Column,
    weight: Matrix,
    to_weight: Matrix,
    to_bias: Matrix,
    start: Matrix,
    share: Scalar,
) -> None:
    statistics, sums = (mean, rest, inverse), (to_weight, to_bias)
    out.store(start.load() + _gradient(grad, x, statistics, weight, sums, share))


def _blocks(rows: Array, *, by_kernel: bool) -> list[slice]:
    """Rows that are worked on together, always the same ones; a kernel needs few blocks."""
    count = ceil(rows.size / parallel.BLOCK)
    if by_kernel and not parallel.in_parallel():
        count = min(count, parallel.get_num_threads())
    return parallel.split(len(rows), max(count, ceil(len(rows) / _ROWS)))


class LayerNorm(Operation):
    """(x - mean) / √(var + eps), over the last axes (Ba, Kiros and Hinton, arXiv:1607.06450).

    Inputs: x, and optionally weight, or weight and bias, in the shape of the last axes.

    Args:
        axes: how many last axes are normalized together.
        eps: added to the variance.
    """

    one_dtype = ("x", "weight", "bias")
    samples = (
        Sample((3, 4), (4,), (4,)),
        Sample((2, 3, 4), (3, 4), kwargs={"axes": 2, "eps": 0.1}),
        Sample((5, 3)),
    )

    def __init__(self, axes: int = 1, eps: float = 1e-5) -> None:
        self.axes = axes
        self.eps = eps

    def forward(self, x: Array, *affine: Array) -> Array:
        """The normalized x, times weight, plus bias."""
        shape = self._check(x, *affine)
        rows = as_rows(x, self.axes)
        scale_and_shift = [a.reshape(-1) for a in affine]
        if runs(rows, *scale_and_shift):
            return self._by_kernel(rows, *scale_and_shift).reshape(x.shape)
        if 0 < rows.size <= _SMALL:
            normal, inverse = _normalized(rows, self.eps)
            self.save(normal, inverse, *scale_and_shift[:1])
            out = normal
            for value, step in zip(scale_and_shift, (np.multiply, np.add), strict=False):
                out = step(out, value)
            return out.reshape(x.shape)
        out = memory.empty(rows.shape, x.dtype)
        keep = True in self.needs_grad
        normal = memory.empty(rows.shape, x.dtype) if keep else out
        inverse = memory.empty((len(rows), 1), x.dtype)
        share = np.full((prod(shape), 1), 1 / max(prod(shape), 1), x.dtype)

        def block(out: Array, normal: Array, rows: Array, inverse: Array) -> None:
            # A product with a column of shares is the fastest mean of rows.
            np.subtract(rows, gemm(rows, share, np.empty_like(inverse)), out=normal)
            variance = np.einsum("ij,ij->i", normal, normal) * share[0]
            # Far from zero the mean is rounded: what is left of it goes as well.
            rest = gemm(normal, share, np.empty_like(inverse))
            if (rest[:, 0] ** 2 > 1e-10 * (variance + self.eps)).any():
                np.subtract(normal, rest, out=normal)
                variance = np.einsum("ij,ij->i", normal, normal) * share[0]
            np.divide(1, np.sqrt(variance + self.eps), out=inverse[:, 0])
            np.multiply(normal, inverse, out=normal)
            for source, value, step in zip(
                (normal, out), scale_and_shift, (np.multiply, np.add), strict=False
            ):
                step(source, value, out=out)
            if not scale_and_shift and out is not normal:
                out[...] = normal

        if rows.size:
            parallel.rowwise(block, out, normal, rows, inverse)
        self.save(normal, inverse, *scale_and_shift[:1])
        return out.reshape(x.shape)

    def _check(self, x: Array, *affine: Array) -> tuple[int, ...]:
        """The shape of what is normalized together."""
        shape: tuple[int, ...] = x.shape[x.ndim - self.axes :]
        if self.axes < 1 or x.ndim < self.axes or [True for a in affine if a.shape != shape]:
            given = ", ".join(str(a.shape) for a in affine) or "none"
            raise ValueError(
                f"layer_norm over the last {self.axes} axes of {x.shape} got weights of shape "
                f"{given}: expected {shape}"
            )
        return shape

    def _by_kernel(self, rows: Array, *affine: Array) -> Array:
        weight, bias = self._affine(rows, *affine)
        scalars = self.eps, 1 / max(rows.shape[1], 1)
        out = memory.empty(rows.shape, rows.dtype)
        function, arrays = _layer_norm, [out, rows]
        if True in self.needs_grad:
            statistics = [np.empty((len(rows), 1), rows.dtype) for _ in _Statistics._fields]
            self.save(rows, statistics, *affine[:1])
            function, arrays = _layer_norm_kept, [out, rows, *statistics]
        function.rows(*arrays, weight, bias, *scalars)
        return out

    def prepare(self, plan: Plan, x: Array, *affine: Array) -> Array:
        """The same, in a plan."""
        rows, out = as_rows(x, self.axes), np.empty(x.shape, x.dtype)
        weight, bias = self._affine(rows, *(a.reshape(-1) for a in affine))
        scalars = self.eps, 1 / max(rows.shape[1], 1)
        plan.rows(_layer_norm, as_rows(out, self.axes), rows, weight, bias, *scalars)
        return out

    def record(
        self, recorder: Recorder, x: Array, *affine: Array
    ) -> tuple[Array, Backward, int | None]:
        """Both directions, in a recording."""
        self._check(x, *affine)
        rows, out = as_rows(x, self.axes), recorder.kept(*x.shape)
        weight, bias = self._affine(rows, *(a.reshape(-1) for a in affine))
        share = 1 / rows.shape[1]
        statistics: list[Array] = []
        if any(map(recorder.needs_grad, (x, *affine))):
            statistics += [recorder.kept(len(rows), 1) for _ in _Statistics._fields]
        arrays = (as_rows(out, self.axes), rows, *statistics, weight, bias)
        function = _layer_norm_kept if statistics else _layer_norm
        recorder.forward.rows(function, *arrays, self.eps, share)

        def back(grad: Array, outs: Sequence[Into | None]) -> None:
            steps = recorder.backward
            # What nobody wants goes where it is overwritten.
            to_x = outs[0] or Into(recorder.passing(*x.shape), None)
            # As in `_blocks`, no more than so many rows are summed one after the other.
            blocks = ceil(len(rows) / _ROWS)
            sums = recorder.passing(2, steps.threads, blocks, rows.shape[1])
            recorder.zeros(sums)

            def write(piece: slice, number: int) -> None:
                for block, own in enumerate(parallel.split(piece.stop - piece.start, blocks)):
                    first = piece.start
                    write_block(slice(first + own.start, first + own.stop), sums[:, number, block])

            def write_block(piece: slice, own: Array) -> None:
                given = (to_x.out, grad, x)
                matrices = [as_rows(a, self.axes)[piece] for a in given]
                columns = [column[piece] for column in statistics]
                operands = [*matrices, *columns, weight, *own]
                if to_x.start is None:
                    steps.kernel(_layer_norm_gradient, *operands, share)
                else:
                    start = as_rows(to_x.start, self.axes)[piece]
                    steps.kernel(_layer_norm_gradient_more, *operands, start, share)

            count = steps.share(write, len(rows), rows.size)
            for parts, into in zip(sums, outs[1:], strict=False):
                if into is not None:
                    recorder.add_up(parts[:count].reshape(count * blocks, -1), into)
            recorder.release(sums)

        return out, back, None

    @staticmethod
    def _affine(rows: Array, *given: Array) -> tuple[Array, Array]:
        """Weight and bias, or what changes nothing."""
        columns = rows.shape[1]
        weight = given[0] if given else np.ones(columns, rows.dtype)
        return weight, given[1] if len(given) == 2 else np.zeros(columns, rows.dtype)

    def backward(self, grad: Array) -> Gradients:
        """Of the normalized values n: (g' - mean g' - n·mean(g'·n)) / std, with g' = g·weight."""
        rows, statistics, *weight = self.saved
        needs_weight, needs_bias = (*self.needs_grad[1:], False, False)[:2]
        out = memory.empty(grad.shape, rows.dtype)
        by_kernel = isinstance(statistics, list)
        blocks = _blocks(rows, by_kernel=by_kernel)
        sums = np.zeros((2, len(blocks), rows.shape[1]), rows.dtype)
        if out.size:
            run = self._by_kernel_back if by_kernel else self._by_chain_back
            factors, _ = self._affine(rows, *weight)
            as_given = as_rows(out, self.axes), as_rows(grad, self.axes), rows
            run(blocks, *as_given, statistics, factors, sums)
        last = grad.shape[grad.ndim - self.axes :]
        to_weight, to_bias = (total.sum(axis=0).reshape(last) for total in sums)
        grads = (
            out,
            to_weight if needs_weight else None,
            to_bias if needs_bias else None,
        )
        return grads[: len(self.needs_grad)]

    @staticmethod
    def _by_kernel_back(
        blocks: list[slice],
        out: Array,
        grad: Array,
        rows: Array,
        statistics: list[Array],
        weight: Array,
        sums: Array,
    ) -> None:
        share = 1 / rows.shape[1]
        grad = np.ascontiguousarray(grad)

        def run(index: int) -> None:
            arrays = [a[blocks[index]] for a in (out, grad, rows, *statistics)]
            _layer_norm_gradient.rows(*arrays, weight, *sums[:, index], share)

        parallel.parallel_for(run, len(blocks))

    @staticmethod
    def _by_chain_back(
        blocks: list[slice],
        out: Array,
        grad: Array,
        normal: Array,
        inverse: Array,
        weight: Array,
        sums: Array,
    ) -> None:
        share = normal.dtype.type(1 / normal.shape[1])
        # Sums over rows and over columns are products with vectors, NumPy's fastest.
        shares = (weight * share)[:, None]

        def run(index: int) -> None:
            result, g, n, scale = (a[blocks[index]] for a in (out, grad, normal, inverse))
            ones = np.ones((1, len(g)), g.dtype)
            (products,) = memory.scratch(1, g.shape, g.dtype)
            np.multiply(g, n, out=products)
            correlation = gemm(products, shares, np.empty_like(scale))
            mean = gemm(g, shares, np.empty_like(scale))
            gemm(ones, products, sums[0, index : index + 1])
            gemm(ones, g, sums[1, index : index + 1])
            np.multiply(n, correlation, out=result)
            np.subtract(np.multiply(g, weight, out=products), result, out=result)
            np.subtract(result, mean, out=result)
            np.multiply(result, scale, out=result)

        parallel.parallel_for(run, len(blocks))


@kernel
def _rms_norm(
    out: Matrix, rows: Matrix, inverse: Column, weight: Matrix, eps: Scalar, share: Scalar
) -> None:
    elements = rows.load()
    of_row = 1.0 / square_root((elements * elements).sum() * share.load() + eps.load())
    inverse.store(of_row)
    out.store(elements * of_row * weight.load())


@kernel
def _rms_norm_gradient(
    out: Matrix,
    grad: Matrix,
    rows: Matrix,
    inverse: Column,
    weight: Matrix,
    to_weight: Matrix,
    share: Scalar,
) -> None:
    upstream, of_row = grad.load(), inverse.load()
    normal, scaled = rows.load() * of_row, upstream * weight.load()
    to_weight.add(upstream * normal)
    correlation = (scaled * normal).sum() * share.load()
    out.store(minus_times(scaled, normal, correlation) * of_row)


class RMSNorm(Operation):
    """x / √(mean(x²) + eps), over the last axes (Zhang and Sennrich, arXiv:1910.07467).

    Inputs: x, and optionally weight in the shape of the last axes.

    Args:
        axes: how many last axes are normalized together.
        eps: added to the mean of the squares.
    """

    one_dtype = ("x", "weight")
    samples = (
        Sample((3, 4), (4,)),
        Sample((2, 3, 4), (3, 4), kwargs={"axes": 2, "eps": 0.1}),
        Sample((5, 3)),
    )

    def __init__(self, axes: int = 1, eps: float = 1e-5) -> None:
        self.axes = axes
        self.eps = eps

    def forward(self, x: Array, *weight: Array) -> Array:
        """The normalized x, times weight."""
        shape = x.shape[x.ndim - self.axes :]
        if self.axes < 1 or x.ndim < self.axes or any(w.shape != shape for w in weight):
            given = ", ".join(str(w.shape) for w in weight) or "none"
            raise ValueError(
                f"rms_norm over the last {self.axes} axes of {x.shape} got a weight of shape "
                f"{given}: expected {shape}"
            )
        rows = as_rows(x, self.axes)
        flat = [w.reshape(-1) for w in weight]
        out = memory.empty(rows.shape, x.dtype)
        inverse = np.empty((len(rows), 1), x.dtype)
        share = x.dtype.type(1 / max(rows.shape[1], 1))

        def block(out: Array, rows: Array, inverse: Array) -> None:
            np.einsum("ij,ij->i", rows, rows, out=inverse[:, 0])
            np.divide(1, np.sqrt(inverse * share + self.eps), out=inverse)
            np.multiply(rows, inverse, out=out)
            if flat:
                np.multiply(out, flat[0], out=out)

        if runs(rows, *flat):
            factors = flat[0] if flat else np.ones(rows.shape[1], x.dtype)
            _rms_norm.rows(out, rows, inverse, factors, self.eps, share)
        elif rows.size:
            parallel.rowwise(block, out, rows, inverse)
        self.save(rows, inverse, *flat)
        return out.reshape(x.shape)

    def backward(self, grad: Array) -> Gradients:
        """Of the normalized values n: (g' - n·mean(g'·n)) / rms, with g' = g·weight."""
        rows, inverse, *weight = self.saved
        result = memory.empty(grad.shape, rows.dtype)
        last = grad.shape[grad.ndim - self.axes :]
        grad, out = as_rows(grad, self.axes), as_rows(result, self.axes)
        share = rows.dtype.type(1 / max(rows.shape[1], 1))
        needs_weight = len(self.needs_grad) > 1 and self.needs_grad[1]
        quick = runs(grad, rows, *weight)
        blocks = _blocks(rows, by_kernel=quick)
        sums = np.zeros((len(blocks), rows.shape[1]), rows.dtype)
        factors = weight[0] if weight else np.ones(rows.shape[1], rows.dtype)

        def run(index: int) -> None:
            block = blocks[index]
            g, x, scale, target = grad[block], rows[block], inverse[block], out[block]
            if quick:
                _rms_norm_gradient.rows(target, g, x, scale, factors, sums[index], share)
                return
            (scaled,) = memory.scratch(1, g.shape, g.dtype)
            np.multiply(x, scale, out=target)
            if needs_weight:
                np.multiply(g, target, out=scaled)
                sums[index] = sum_rows(scaled)
            np.multiply(g, factors, out=scaled)
            correlation = np.einsum("ij,ij->i", scaled, target)[:, None] * share
            np.multiply(target, correlation, out=target)
            np.subtract(scaled, target, out=target)
            np.multiply(target, scale, out=target)

        if out.size:
            parallel.parallel_for(run, len(blocks))
        of_weight = sums.sum(axis=0).reshape(last)
        return (result, of_weight if needs_weight else None)[: len(self.needs_grad)]
