"""Reductions over axes: Sum Mean Max Min Var Std."""

from __future__ import annotations

from math import prod

import numpy as np

from .. import memory
from ..blas import gemm
from ..dtypes import FLOATS, WIDE_FLOATS, Array, float32, float64, int64
from ..operation import Gradients, Operation, Sample
from ._kernels import Axis, as_rows, normalize_axes, sum_rows

_SAMPLES = (
    Sample((3, 4)),
    Sample((2, 3, 4), kwargs={"axis": 1}),
    Sample((2, 3, 4), kwargs={"axis": (0, -1), "keepdims": True}),
    Sample(()),
)


class _Reduction(Operation, abstract=True):
    """A function over some axes.

    Args:
        axis: an axis, several, or None for all.
        keepdims: keep the reduced axes, with length 1.
    """

    def __init__(self, axis: Axis = None, keepdims: bool = False) -> None:
        self.axis = axis
        self.keepdims = keepdims
        self.axes: tuple[int, ...] = ()
        self.shape: tuple[int, ...] = ()

    def _begin(self, x: Array) -> None:
        self.axes = normalize_axes(self.axis, x.ndim)
        self.shape = x.shape

    def _reduced(self, kept: Array) -> Array:
        """A result whose reduced axes have length 1, without them unless they are to stay."""
        return kept if self.keepdims else np.asarray(kept.squeeze(self.axes))

    def _kept(self, reduced: Array) -> Array:
        """What was reduced, its axes kept with length 1."""
        return reduced.reshape([1 if a in self.axes else n for a, n in enumerate(self.shape)])

    def _spread(self, reduced: Array) -> Array:
        """What was reduced, as a read-only view in the input's shape."""
        return np.broadcast_to(self._kept(reduced), self.shape)


#: Elements from which sums are products with ones, which read memory at its own speed.
_PRODUCTS_FROM = 1 << 16
#: Elements of a sum that is made in the dtype itself, before sums are added in float64.
_PART = 1 << 12


def _sum(x: Array, axes: tuple[int, ...]) -> Array:
    """The sum of floats over axes, which are kept with length 1."""
    kept = tuple(1 if axis in axes else length for axis, length in enumerate(x.shape))
    if x.size >= _PRODUCTS_FROM and x.dtype in WIDE_FLOATS and x.flags.c_contiguous:
        count = len(axes)
        if count == x.ndim:
            return np.asarray(_total(x.reshape(-1)), x.dtype).reshape(kept)
        if axes == tuple(range(x.ndim - count, x.ndim)):
            rows = as_rows(x, count)
            ones = np.ones((rows.shape[1], 1), x.dtype)
            return gemm(rows, ones, memory.empty((len(rows), 1), x.dtype)).reshape(kept)
        if axes == tuple(range(count)):
            return sum_rows(as_rows(x, x.ndim - count)).reshape(kept)
    return np.asarray(x.sum(axis=axes, keepdims=True))


def _total(flat: Array) -> float:
    """The sum of a long vector."""
    whole = flat.size // _PART
    rows = flat[: whole * _PART].reshape(whole, _PART)
    sums = gemm(rows, np.ones((_PART, 1), flat.dtype), np.empty((whole, 1), flat.dtype))
    return float(sums.sum(dtype=float64) + flat[whole * _PART :].sum(dtype=float64))


class Sum(_Reduction):
    """The sum; integers and bool are summed in int64."""

    samples = _SAMPLES

    def forward(self, x: Array) -> Array:
        """The sum over the axes."""
        self._begin(x)
        if x.dtype in FLOATS:
            return self._reduced(_sum(x, self.axes))
        return np.asarray(x.sum(axis=self.axes, keepdims=self.keepdims, dtype=int64))

    def backward(self, grad: Array) -> Gradients:
        """Every summand gets the sum's gradient."""
        return (self._spread(grad),)


class Mean(_Reduction):
    """The arithmetic mean, NaN over no elements."""

    samples = _SAMPLES

    def forward(self, x: Array) -> Array:
        """The mean over the axes; of integers, in float32."""
        self._begin(x)
        x = x if x.dtype in FLOATS else x.astype(float32)
        count = prod(x.shape[a] for a in self.axes)
        return self._reduced(_sum(x, self.axes) / x.dtype.type(count))

    def backward(self, grad: Array) -> Gradients:
        """An equal share each."""
        count = prod(self.shape[a] for a in self.axes)
        return (self._spread(grad / grad.dtype.type(max(count, 1))),)


class _Extreme(_Reduction, abstract=True):
    """The greatest or the least; equal ones share the gradient, as PyTorch's amax has it."""

    _reduce: np.ufunc

    def forward(self, x: Array) -> Array:
        """The extreme over the axes; NaN where there is one."""
        self._begin(x)
        if any(x.shape[a] == 0 for a in self.axes):
            name = type(self).__name__.lower()
            raise ValueError(
                f"{name} over axes {self.axes} of shape {x.shape}: there is no element"
            )
        result = np.asarray(self._reduce.reduce(x, axis=self.axes, keepdims=self.keepdims))
        self.save(x, result)
        return result

    def backward(self, grad: Array) -> Gradients:
        """The gradient, shared among the equal ones."""
        x, result = self.saved
        extreme = self._spread(result)
        chosen = (x == extreme) | ((x != x) & (extreme != extreme))  # NaN is every extreme
        count = chosen.sum(axis=self.axes, keepdims=True).astype(grad.dtype)
        share = self._kept(grad) / np.maximum(count, 1)
        return (np.where(chosen, share, np.zeros((), grad.dtype)),)


class Max(_Extreme):
    """The greatest element."""

    samples = _SAMPLES
    _reduce = np.maximum


class Min(_Extreme):
    """The least element."""

    samples = _SAMPLES
    _reduce = np.minimum


class Var(_Reduction):
    """The mean squared distance from the mean: Σ (x - mean)² / (n - correction).

    Args:
        axis: an axis, several, or None for all.
        keepdims: keep the reduced axes, with length 1.
        correction: taken off the number of elements; 1 for the unbiased estimate from a sample.
    """

    samples = (
        Sample((3, 4)),
        Sample((2, 3, 4), kwargs={"axis": 1, "correction": 1}),
        Sample((2, 3, 4), kwargs={"axis": (0, -1), "correction": 0.5, "keepdims": True}),
    )

    def __init__(self, axis: Axis = None, keepdims: bool = False, correction: float = 0.0) -> None:
        super().__init__(axis, keepdims)
        if not isinstance(correction, (int, float, np.number)):
            raise TypeError(f"correction is {correction!r}: expected a number")
        self.correction = correction
        self.divisor = 0.0

    def forward(self, x: Array) -> Array:
        """The variance; NaN or inf where no element is left to divide by."""
        centred = self._centred(x)
        self.save(centred)
        return self._mean_square(centred)

    def _centred(self, x: Array) -> Array:
        """x - mean."""
        self._begin(x)
        count = prod(x.shape[a] for a in self.axes)
        self.divisor = x.dtype.type(max(count - self.correction, 0.0))
        share = np.divide(1, x.dtype.type(count))
        centred: Array = x - _sum(x * share, self.axes)
        # The mean is rounded; what is left of it matters far from zero.
        centred -= _sum(centred * share, self.axes)
        return centred

    def _mean_square(self, centred: Array) -> Array:
        return self._reduced(_sum(np.square(centred), self.axes) / self.divisor)

    def backward(self, grad: Array) -> Gradients:
        """2·(x - mean)·g / (n - correction)."""
        (centred,) = self.saved
        return (centred * self._kept(grad * grad.dtype.type(2) / self.divisor),)


class Std(Var):
    """The square root of the variance, with gradient 0 where it is 0."""

    samples = Var.samples

    def forward(self, x: Array) -> Array:
        """The standard deviation."""
        centred = self._centred(x)
        result = np.sqrt(variance := self._mean_square(centred))
        if not ((variance > np.finfo(x.dtype).tiny) & np.isfinite(variance)).all():
            # The squares left the range of the dtype, where the root may not.
            result = np.sqrt(self._mean_square(centred.astype(float64))).astype(x.dtype)
        self.save(centred, result)
        return result

    def backward(self, grad: Array) -> Gradients:
        """(x - mean)·g / ((n - correction)·std)."""
        centred, result = self.saved
        factor = np.where(result == 0, np.zeros((), grad.dtype), grad / result / self.divisor)
        return (centred * self._kept(factor),)
