"""Reductions over axes: Sum Mean Max Min Var Std."""

from __future__ import annotations

from math import prod

import numpy as np

from .. import parallel
from ..checks import Axis, check_keepdims, check_number, normalize_axes
from ..dtypes import FLOATS, Array, bool_, float32, float64, int64
from ..operation import Gradients, Operation, Sample
from ._kernels import masked, sum_over

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
        self.keepdims = check_keepdims(keepdims)
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


class Sum(_Reduction):
    """The sum; integers and bool are summed in int64."""

    samples = _SAMPLES

    def forward(self, x: Array) -> Array:
        """The sum over the axes."""
        self._begin(x)
        if x.dtype in FLOATS:
            return self._reduced(sum_over(x, self.axes))
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
        return self._reduced(sum_over(x, self.axes) / x.dtype.type(count))

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
        result = self._reduced(self._over_axes(x))
        self.save(x, result)
        return result

    def _over_axes(self, x: Array) -> Array:
        """The extremes, axes kept."""
        out = np.empty([1 if a in self.axes else n for a, n in enumerate(x.shape)], x.dtype)

        def block(x: Array, out: Array) -> None:
            # Not with out=: before NumPy 2.2 that went wrong on negative strides.
            out[...] = self._reduce.reduce(x, axis=self.axes, keepdims=True)

        if 0 in self.axes or not x.ndim:
            block(x, out)
        else:  # each row gives something of its own
            parallel.rowwise(block, x, out)
        return out

    def backward(self, grad: Array) -> Gradients:
        """The gradient, shared among the equal ones."""
        x, result = self.saved
        extreme = self._kept(result)
        chosen = parallel.ufunc(np.equal, x, extreme, dtype=bool_)
        if np.isnan(result).any():
            chosen |= np.isnan(x)  # NaN is every extreme
        count = chosen.sum(axis=self.axes, keepdims=True).astype(grad.dtype)
        return (masked(chosen, self._kept(grad) / np.maximum(count, 1)),)


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
        self.correction = check_number("correction", correction)
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
        centred: Array = x - sum_over(x * share, self.axes)
        # The mean is rounded; what is left of it matters far from zero.
        centred -= sum_over(centred * share, self.axes)
        return centred

    def _mean_square(self, centred: Array) -> Array:
        return self._reduced(sum_over(np.square(centred), self.axes) / self.divisor)

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
