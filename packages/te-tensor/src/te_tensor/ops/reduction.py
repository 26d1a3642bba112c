"""Reductions over axes: Sum Mean Max."""

from __future__ import annotations

from math import prod

import numpy as np

from ..dtypes import FLOATS, Array, float32, int64
from ..operation import Gradients, Operation, Sample
from ._kernels import Axis, normalize_axes

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

    def _spread(self, reduced: Array) -> Array:
        """What was reduced, as a read-only view in the input's shape."""
        kept = tuple(1 if a in self.axes else n for a, n in enumerate(self.shape))
        return np.broadcast_to(reduced.reshape(kept), self.shape)


class Sum(_Reduction):
    """The sum; integers and bool are summed in int64."""

    samples = _SAMPLES

    def forward(self, x: Array) -> Array:
        """The sum over the axes."""
        self._begin(x)
        dtype = x.dtype if x.dtype in FLOATS else int64
        return np.asarray(x.sum(axis=self.axes, keepdims=self.keepdims, dtype=dtype))

    def backward(self, grad: Array) -> Gradients:
        """Every summand gets the sum's gradient."""
        return (self._spread(grad),)


class Mean(_Reduction):
    """The arithmetic mean, NaN over no elements."""

    samples = _SAMPLES

    def forward(self, x: Array) -> Array:
        """The mean over the axes; of integers, in float32."""
        self._begin(x)
        dtype = x.dtype if x.dtype in FLOATS else float32
        count = prod(x.shape[a] for a in self.axes)
        if not count:
            return np.full(x.sum(axis=self.axes, keepdims=self.keepdims).shape, np.nan, dtype)
        return np.asarray(x.mean(axis=self.axes, keepdims=self.keepdims, dtype=dtype))

    def backward(self, grad: Array) -> Gradients:
        """An equal share each."""
        count = prod(self.shape[a] for a in self.axes)
        return (self._spread(grad / grad.dtype.type(max(count, 1))),)


class Max(_Reduction):
    """The greatest element; equal greatest ones share the gradient, as PyTorch's amax has it."""

    samples = _SAMPLES

    def forward(self, x: Array) -> Array:
        """The maximum over the axes."""
        self._begin(x)
        if any(x.shape[a] == 0 for a in self.axes):
            raise ValueError(f"max over axes {self.axes} of shape {x.shape}: there is no element")
        result = np.asarray(x.max(axis=self.axes, keepdims=self.keepdims))
        self.save(x, result)
        return result

    def backward(self, grad: Array) -> Gradients:
        """The gradient, shared among the greatest."""
        x, result = self.saved
        greatest = self._spread(result)
        is_greatest = (x == greatest) | ((x != x) & (greatest != greatest))  # NaN is the greatest
        count = is_greatest.sum(axis=self.axes, keepdims=True).astype(grad.dtype)
        return (self._spread(grad) * is_greatest / np.maximum(count, 1),)
