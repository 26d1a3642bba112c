"""Shares along an axis: Softmax LogSoftmax."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .. import memory, parallel
from ..dtypes import Array
from ..operation import Gradients, Operation, Sample
from ._kernels import normalize_axis


class _AlongAxis(Operation, abstract=True):
    """A function of whole lines along one axis.

    Args:
        axis: the axis the lines run along.
    """

    def __init__(self, axis: int = -1) -> None:
        self.axis = axis

    def _by_rows(self, kernel: Callable[..., None], *inputs: Array) -> Array:
        """Run the kernel on blocks of rows, the axis being last, and put it back."""
        x = inputs[0]
        if x.ndim == 0:  # a single element is a line of its own
            return self._by_rows(kernel, *(a.reshape(1) for a in inputs)).reshape(())
        axis = normalize_axis(self.axis, x.ndim)
        moved = [np.ascontiguousarray(np.moveaxis(a, axis, -1)) for a in inputs]
        out = memory.empty(moved[0].shape, x.dtype)
        if out.size:
            length = x.shape[axis]
            parallel.rowwise(kernel, *(a.reshape(-1, length) for a in (out, *moved)))
        return np.moveaxis(out, -1, axis)


_AXIS_SAMPLES = (Sample((3, 4)), Sample((2, 3, 4), kwargs={"axis": 1}), Sample(()))


def _shifted(out: Array, x: Array) -> None:
    """X minus its row's maximum; a row of -inf stays as it is instead of turning NaN."""
    top = x.max(axis=1, keepdims=True)
    np.copyto(top, 0, where=np.isinf(top) & (top < 0))
    np.subtract(x, top, out=out)


class Softmax(_AlongAxis):
    """e^x / Σ e^x along an axis."""

    samples = _AXIS_SAMPLES

    def forward(self, x: Array) -> Array:
        """Shares that sum to 1."""

        def block(out: Array, x: Array) -> None:
            _shifted(out, x)
            np.exp(out, out=out)
            np.divide(out, out.sum(axis=1, keepdims=True), out=out)

        result = self._by_rows(block, x)
        self.save(result)
        return result

    def backward(self, grad: Array) -> Gradients:
        """p·(g - Σ g·p)."""
        (result,) = self.saved

        def block(out: Array, p: Array, grad: Array) -> None:
            np.subtract(grad, np.einsum("ij,ij->i", grad, p)[:, None], out=out)
            np.multiply(out, p, out=out)

        return (self._by_rows(block, result, grad),)


class LogSoftmax(_AlongAxis):
    """x - ln Σ e^x along an axis."""

    samples = _AXIS_SAMPLES

    def forward(self, x: Array) -> Array:
        """The logarithms of softmax, exact where softmax rounds to 0."""

        def block(out: Array, x: Array) -> None:
            _shifted(out, x)
            np.subtract(out, np.log(np.exp(out).sum(axis=1, keepdims=True)), out=out)

        result = self._by_rows(block, x)
        self.save(result)
        return result

    def backward(self, grad: Array) -> Gradients:
        """g - e^y·Σ g."""
        (result,) = self.saved

        def block(out: Array, y: Array, grad: Array) -> None:
            np.exp(y, out=out)
            np.multiply(out, grad.sum(axis=1, keepdims=True), out=out)
            np.subtract(grad, out, out=out)

        return (self._by_rows(block, result, grad),)
