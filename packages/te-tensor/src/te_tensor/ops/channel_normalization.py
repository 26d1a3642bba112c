"""Normalization of channels, on axis 1: BatchNorm GroupNorm, and BatchNorm by given statistics.

With x as rows, one for each sample and channel, all of them are one affine map a row; they differ
in which rows share their statistics.
"""

from __future__ import annotations

from math import prod
from typing import ClassVar

import numpy as np

from .. import memory, parallel
from ..blas import gemm
from ..dtypes import Array, float64
from ..machine import LANES, Column, Matrix, Scalar, kernel, runs, times_plus
from ..operation import Gradients, Operation, Sample
from ._windows import lies_in_lanes


@kernel
def _moments(rows: Matrix, mean: Column, rest: Column, squares: Column, share: Scalar) -> None:
    """A row's mean, which is rounded, and the sums of what is left and of its squares."""
    elements = rows.load()
    of_row = elements.sum() * share.load()
    centred = elements - of_row
    mean.store(of_row)
    rest.store(centred.sum())
    squares.store((centred * centred).sum())


@kernel
def _affine_kernel(out: Matrix, x: Matrix, mean: Column, factor: Column, shift: Column) -> None:
    out.store(times_plus(x.load() - mean.load(), factor.load(), shift.load()))


@kernel
def _row_sums_kernel(x: Matrix, grad: Matrix, mean: Column, sums: Column, products: Column) -> None:
    upstream = grad.load()
    sums.store(upstream.sum())
    products.store((upstream * (x.load() - mean.load())).sum())


@kernel
def _combine_kernel(
    out: Matrix,
    x: Matrix,
    grad: Matrix,
    mean: Column,
    factor: Column,
    linear: Column,
    constant: Column,
) -> None:
    by_grad = times_plus(grad.load(), factor.load(), constant.load())
    out.store(times_plus(x.load() - mean.load(), linear.load(), by_grad))


def _suits_kernels(*rows: Array) -> bool:
    """Whether kernels can go over rows, which are long enough for them."""
    return rows[0].shape[1] >= LANES and runs(*rows)


class _ChannelNorm(Operation, abstract=True):
    """(x - mean) / √(var + eps) · weight + bias, with statistics that several rows share.

    Inputs: x (N, C, …), and optionally weight, or weight and bias, of shape (C,).

    Args:
        eps: added to the variance.
    """

    one_dtype: ClassVar[tuple[str, ...]] = ("x", "weight", "bias")
    #: Elements of a row.
    elements: int

    def __init__(self, eps: float = 1e-5) -> None:
        self.eps = eps

    def _shared(self, sums: Array) -> Array:
        """Sums of rows, (N, C), as means over the elements of all rows that share statistics."""
        raise NotImplementedError

    #: Whether the batch lies innermost in memory.
    in_lanes = False

    def _as_it_lies(self, x: Array) -> Array:
        """Where samples share their statistics: those that lie in lanes as one sample."""
        return x.transpose(*range(1, x.ndim), 0)[None] if self.in_lanes else x

    def _as_given(self, x: Array) -> Array:
        return x[0].transpose(x.ndim - 2, *range(x.ndim - 2)) if self.in_lanes else x

    def _normalize(self, x: Array, *affine: Array) -> tuple[Array, Array, Array]:
        """The result, and the mean and the variance of each row, (N, C)."""
        rows = _as_rows(x)
        statistics = self._by_kernel if _suits_kernels(rows) else self._by_chain
        mean, variance = statistics(rows, x.shape[:2])
        out = _affine(x, mean, *self._factors(variance, affine))
        self.save(x, mean, variance, *affine[:1])
        return out, mean, variance

    def _by_kernel(self, rows: Array, shape: tuple[int, ...]) -> tuple[Array, Array]:
        """The mean and the variance of each row, from those that each has by itself."""
        count = rows.shape[1]
        columns = [np.empty((len(rows), 1), rows.dtype) for _ in range(3)]
        _moments.rows(rows, *columns, 1 / count)
        own, rest, squares = (column.reshape(shape).astype(float64) for column in columns)
        own += rest / count
        mean = self._shared(own * count)
        spread = squares - rest * rest / count + count * (own - mean) ** 2
        variance = self._shared(spread)
        return mean.astype(rows.dtype), variance.astype(rows.dtype)

    def _by_chain(self, rows: Array, shape: tuple[int, ...]) -> tuple[Array, Array]:
        ones = np.ones((rows.shape[1], 1), rows.dtype)
        sums, squares = (np.empty((len(rows), 1), rows.dtype) for _ in range(2))

        def total(rows: Array, sums: Array) -> None:
            gemm(rows, ones, sums)

        def spread(rows: Array, mean: Array, sums: Array, squares: Array) -> None:
            (centered,) = memory.scratch(1, rows.shape, rows.dtype)
            np.subtract(rows, mean, out=centered)
            gemm(centered, ones, sums)
            np.einsum("ij,ij->i", centered, centered, out=squares[:, 0])

        parallel.rowwise(total, rows, sums)
        mean = self._shared(sums.reshape(shape))
        parallel.rowwise(spread, rows, _column(mean), sums, squares)
        # Far from zero the mean is rounded: what is left of it goes as well.
        rest = self._shared(sums.reshape(shape))
        variance = self._shared(squares.reshape(shape)) - rest * rest
        mean += rest
        return mean, variance

    def _factors(self, variance: Array, affine: tuple[Array, ...]) -> tuple[Array, Array | None]:
        """What a row is multiplied with, and what is added."""
        factor = 1 / np.sqrt(variance + self.eps)
        if affine:
            factor = factor * affine[0]
        shift = np.broadcast_to(affine[1], factor.shape) if len(affine) > 1 else None
        return factor, shift

    def _gradients(self, grad: Array, of_mean: Array, of_variance: Array) -> Gradients:
        """Gradients of x, weight and bias.

        Args:
            grad: the gradient of the result.
            of_mean: what is added for each row, of the elements' own count: of the mean.
            of_variance: likewise, times (x - mean).
        """
        x, mean, variance, *weight = self.saved
        inverse = 1 / np.sqrt(variance + self.eps)
        sums, products = _row_sums(x, grad, mean)
        factor = inverse * weight[0] if weight else inverse
        weighted = (weight[0] if weight else 1) * np.stack([sums, products])
        # x moves its own result, the mean and the variance.
        constant = of_mean - inverse * self._shared(weighted[0])
        linear = of_variance - inverse**3 * self._shared(weighted[1])
        grads: list[Array | None] = [None] * len(self.needs_grad)
        if self.needs_grad[0]:
            grads[0] = _combine(x, grad, mean, factor, linear, constant)
        of_affine = ((products * inverse).sum(axis=0), sums.sum(axis=0))
        grads[1:] = of_affine[: len(grads) - 1]
        return grads


class BatchNorm(_ChannelNorm):
    """Each channel by its own mean and variance over the batch (arXiv:1502.03167).

    Outputs: the result, and the mean and the variance of each channel, (C,).

    Args:
        eps: added to the variance.
    """

    samples = (
        Sample((4, 3), (3,), (3,)),
        Sample((2, 3, 4), (3,), kwargs={"eps": 0.1}),
        Sample((2, 3, 2, 2)),
    )

    def _shared(self, sums: Array) -> Array:
        count = len(sums) * self.elements
        mean = sums.sum(axis=0, dtype=np.float64) / max(count, 1)
        return np.repeat(mean.astype(sums.dtype)[None], len(sums), axis=0)

    def forward(self, x: Array, *affine: Array) -> tuple[Array, ...]:
        _check("batch_norm", x, *affine)
        if parallel.in_parallel():
            raise RuntimeError(
                "batch_norm in training inside shard: it couples the batch, and each part would "
                "have statistics of its own; call it outside, or use running statistics"
            )
        self.elements = prod(x.shape[2:])
        if len(x) * self.elements < 2:
            raise ValueError(
                f"batch_norm in training of shape {x.shape}: expected more than one value a channel"
            )
        self.in_lanes = lies_in_lanes(x)
        x = self._as_it_lies(x)
        self.elements = prod(x.shape[2:])
        out, mean, variance = self._normalize(x, *affine)
        return self._as_given(out), mean[0].copy(), variance[0].copy()

    def backward(
        self, grad: Array | None, of_mean: Array | None, of_variance: Array | None
    ) -> Gradients:
        x = self.saved[0]
        count = len(x) * self.elements
        zero = np.zeros(x.shape[1], x.dtype)
        grad = np.broadcast_to(zero[0], x.shape) if grad is None else self._as_it_lies(grad)
        of_mean = zero if of_mean is None else of_mean / count
        of_variance = zero if of_variance is None else of_variance * (2 / count)
        moments = of_mean.astype(x.dtype), of_variance.astype(x.dtype)
        of_x, *others = self._gradients(grad, *moments)
        return None if of_x is None else self._as_given(of_x), *others


class GroupNorm(_ChannelNorm):
    """Groups of a sample's channels by their own mean and variance (arXiv:1803.08494).

    Args:
        groups: how many groups the channels are cut into.
        eps: added to the variance.
    """

    samples = (
        Sample((2, 6, 3), (6,), (6,), args=(3,)),
        Sample((2, 4), (4,), args=(2, 0.1)),
        Sample((1, 2, 2, 2), args=(1,)),
    )

    def __init__(self, groups: int, eps: float = 1e-5) -> None:
        super().__init__(eps)
        self.groups = groups

    def _shared(self, sums: Array) -> Array:
        grouped = sums.reshape(len(sums), self.groups, sums.shape[1] // self.groups)
        count = grouped.shape[2] * self.elements
        mean = grouped.sum(axis=2, dtype=np.float64) / max(count, 1)
        return np.repeat(mean.astype(sums.dtype), grouped.shape[2], axis=1)

    def forward(self, x: Array, *affine: Array) -> Array:
        _check("group_norm", x, *affine)
        if self.groups < 1 or x.shape[1] % self.groups:
            raise ValueError(
                f"group_norm of shape {x.shape} in {self.groups} groups: expected a number that "
                "divides the channels"
            )
        self.elements = prod(x.shape[2:])
        return self._normalize(x, *affine)[0]

    def backward(self, grad: Array) -> Gradients:
        zero = np.zeros((), grad.dtype)
        return self._gradients(grad, zero, zero)


class RunningNorm(_ChannelNorm):
    """Each channel by a mean and a variance that are given: batch norm in evaluation.

    Inputs: x (N, C, …), mean and variance (C,), which have no gradient, and optionally weight, or
    weight and bias.

    Args:
        eps: added to the variance.
    """

    one_dtype = ("x", "mean", "variance", "weight", "bias")
    samples = (
        Sample((4, 3), (3,), (3,), (3,), (3,), low=0.1, nondiff=(1, 2)),
        Sample((2, 3, 4), (3,), (3,), kwargs={"eps": 0.1}, low=0.1, nondiff=(1, 2)),
    )

    def forward(self, x: Array, mean: Array, variance: Array, *affine: Array) -> Array:
        _check("batch_norm", x, *affine, mean=mean, variance=variance)
        self.in_lanes = lies_in_lanes(x)
        x = self._as_it_lies(x)
        mean, variance = (np.broadcast_to(v, x.shape[:2]) for v in (mean, variance))
        self.save(x, mean, variance, *affine[:1])
        return self._as_given(_affine(x, mean, *self._factors(variance, affine)))

    def backward(self, grad: Array) -> Gradients:
        x, mean, variance, *weight = self.saved
        grad = self._as_it_lies(grad)
        inverse = 1 / np.sqrt(variance + self.eps)
        grads: list[Array | None] = [None] * len(self.needs_grad)
        if self.needs_grad[0]:
            factor = inverse * weight[0] if weight else inverse
            grads[0] = self._as_given(_affine(grad, np.zeros_like(mean), factor, None))
        if any(self.needs_grad[3:]):
            sums, products = _row_sums(x, grad, mean)
            of_affine = ((products * inverse).sum(axis=0), sums.sum(axis=0))
            grads[3:] = of_affine[: len(grads) - 3]
        return grads


def _as_rows(x: Array) -> Array:
    """(N·C, L): a row for each sample and channel."""
    return x.reshape(x.shape[0] * x.shape[1], prod(x.shape[2:]))


def _column(of_rows: Array) -> Array:
    """One number a row, (N, C), as (N·C, 1)."""
    return of_rows.reshape(-1, 1)


def _affine(x: Array, mean: Array, factor: Array, shift: Array | None) -> Array:
    """(x - mean)·factor + shift, each of shape (N, C)."""
    out = memory.empty(x.shape, x.dtype)

    def block(out: Array, rows: Array, mean: Array, factor: Array, *shift: Array) -> None:
        np.subtract(rows, mean, out=out)
        np.multiply(out, factor, out=out)
        if shift:
            np.add(out, shift[0], out=out)

    rows, filled = _as_rows(x), _as_rows(out)
    if _suits_kernels(rows):
        shift = np.zeros_like(factor) if shift is None else shift
        _affine_kernel.rows(filled, rows, *map(_column, (mean, factor, shift)))
        return out
    of_rows = [_column(v) for v in (mean, factor, shift) if v is not None]
    parallel.rowwise(block, filled, rows, *of_rows)
    return out


def _row_sums(x: Array, grad: Array, mean: Array) -> tuple[Array, Array]:
    """Σ g and Σ g·(x - mean) of each row, (N, C)."""
    rows, of_rows = _as_rows(x), _as_rows(grad)
    sums, products = (np.empty((len(rows), 1), x.dtype) for _ in range(2))
    if _suits_kernels(rows, of_rows):
        _row_sums_kernel.rows(rows, of_rows, _column(mean), sums, products)
        return sums.reshape(mean.shape), products.reshape(mean.shape)
    ones = np.ones((rows.shape[1], 1), x.dtype)

    def block(rows: Array, grad: Array, mean: Array, sums: Array, products: Array) -> None:
        (centered,) = memory.scratch(1, rows.shape, rows.dtype)
        np.subtract(rows, mean, out=centered)
        gemm(grad, ones, sums)
        np.einsum("ij,ij->i", grad, centered, out=products[:, 0])

    parallel.rowwise(block, rows, of_rows, _column(mean), sums, products)
    return sums.reshape(mean.shape), products.reshape(mean.shape)


def _combine(
    x: Array, grad: Array, mean: Array, factor: Array, linear: Array, constant: Array
) -> Array:
    """g·factor + (x - mean)·linear + constant, the last four of shape (N, C)."""
    out = memory.empty(x.shape, x.dtype)

    def block(
        out: Array, rows: Array, grad: Array, mean: Array, factor: Array, linear: Array, rest: Array
    ) -> None:
        (scaled,) = memory.scratch(1, rows.shape, rows.dtype)
        np.subtract(rows, mean, out=out)
        np.multiply(out, linear, out=out)
        np.multiply(grad, factor, out=scaled)
        np.add(out, scaled, out=out)
        np.add(out, rest, out=out)

    of_rows = [_column(np.broadcast_to(v, mean.shape)) for v in (mean, factor, linear, constant)]
    arrays = [_as_rows(a) for a in (out, x, grad)]
    if _suits_kernels(*arrays):
        _combine_kernel.rows(*arrays, *of_rows)
    else:
        parallel.rowwise(block, *arrays, *of_rows)
    return out


def _check(name: str, x: Array, *affine: Array, **statistics: Array) -> None:
    channels = x.shape[1:2]
    vectors = {**statistics, **dict(zip(("weight", "bias"), affine, strict=False))}
    if x.ndim < 2 or any(v.shape != channels for v in vectors.values()):
        given = ", ".join(f"{key} {v.shape}" for key, v in {"x": x, **vectors}.items())
        raise ValueError(f"{name} got {given}: expected x (N, C, …), and the others (C,)")
