"""Shares along an axis: Softmax LogSoftmax."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .. import memory, parallel
from ..blas import gemm
from ..checks import normalize_axis
from ..dtypes import Array
from ..machine import Kernel, Matrix, exponential, kernel, minus_times, runs
from ..operation import Gradients, Operation, Sample


class _AlongAxis(Operation, abstract=True):
    """A function of whole lines along one axis.

    Args:
        axis: the axis the lines run along.
    """

    def __init__(self, axis: int = -1) -> None:
        self.axis = axis

    def _by_rows(self, kernel: Kernel | None, chain: Callable[..., None], *inputs: Array) -> Array:
        """Run the kernel, or the chain, on blocks of rows, the axis being last; put it back."""
        x = inputs[0]
        if x.ndim == 0:  # a single element is a line of its own
            return self._by_rows(kernel, chain, *(a.reshape(1) for a in inputs)).reshape(())
        axis = normalize_axis(self.axis, x.ndim)
        moved = [np.ascontiguousarray(np.moveaxis(a, axis, -1)) for a in inputs]
        out = memory.empty(moved[0].shape, x.dtype)
        if out.size:
            length = x.shape[axis]
            rows = [a.reshape(-1, length) for a in (out, *moved)]
            if kernel and runs(*moved):
                kernel.rows(*rows)
            else:
                parallel.rowwise(chain, *rows)
        # the array itself where it can be: a leaf keeps a gradient that is nobody's view
        return out if axis == x.ndim - 1 else np.moveaxis(out, -1, axis)


_AXIS_SAMPLES = (Sample((3, 4)), Sample((2, 3, 4), kwargs={"axis": 1}), Sample(()))


def _shifted(out: Array, x: Array) -> None:
    """X minus its row's maximum; a row of -inf stays as it is instead of turning NaN."""
    top = x.max(axis=1, keepdims=True)
    np.copyto(top, 0, where=np.isinf(top) & (top < 0))
    np.subtract(x, top, out=out)


def _row_sums(x: Array) -> Array:
    """Sums of rows, shape (rows, 1): a product with ones is the fastest."""
    ones = np.ones((x.shape[1], 1), x.dtype)
    return gemm(x, ones, np.empty((len(x), 1), x.dtype))


def _exponentials(out: Array, x: Array, most: float) -> Array | None:
    """e^x, and the sums of its rows; None if a sum isn't between 2^-20 and `most`.

    Numbers of usual size need no shift by the maximum, and then have no rounding by it. The sums
    tell whether that holds: in between, no e^x that counts was rounded to 0 or to inf.
    """
    np.exp(x, out=out)
    sums = _row_sums(out)
    return sums if sums.min() >= 2.0**-20 and sums.max() <= most else None


@kernel
def _softmax(out: Matrix, x: Matrix) -> None:
    elements = x.load()
    shares = out.keep(exponential(elements - elements.max(), tiny=False))
    out.store(shares / shares.sum())


@kernel
def _softmax_gradient(out: Matrix, p: Matrix, grad: Matrix) -> None:
    shares, upstream = p.load(), grad.load()
    out.store(shares * (upstream - (shares * upstream).sum()))


@kernel
def _log_softmax_gradient(out: Matrix, y: Matrix, grad: Matrix) -> None:
    upstream = grad.load()
    out.store(minus_times(upstream, exponential(y.load(), tiny=False), upstream.sum()))


class Softmax(_AlongAxis):
    """e^x / Σ e^x along an axis."""

    samples = _AXIS_SAMPLES

    def forward(self, x: Array) -> Array:
        """Shares that sum to 1."""

        def block(out: Array, x: Array) -> None:
            sums = _exponentials(out, x, most=2.0**100)
            if sums is None:
                _shifted(out, x)
                np.exp(out, out=out)
                sums = _row_sums(out)
            np.divide(out, sums, out=out)

        result = self._by_rows(_softmax, block, x)
        self.save(result)
        return result

    def backward(self, grad: Array) -> Gradients:
        """p·(g - Σ g·p)."""
        (result,) = self.saved

        def block(out: Array, p: Array, grad: Array) -> None:
            np.subtract(grad, np.einsum("ij,ij->i", grad, p)[:, None], out=out)
            np.multiply(out, p, out=out)

        return (self._by_rows(_softmax_gradient, block, result, grad),)


class LogSoftmax(_AlongAxis):
    """x - ln Σ e^x along an axis."""

    samples = _AXIS_SAMPLES

    def forward(self, x: Array) -> Array:
        """The logarithms of softmax, exact where softmax rounds to 0."""

        def block(out: Array, x: Array) -> None:
            # ln Σ of more than 2^20 has a last bit that is seen in what is left of x
            sums = _exponentials(out, x, most=2.0**20)
            if sums is None:
                _shifted(out, x)
                x, sums = out, _row_sums(np.exp(out))
            np.subtract(x, np.log(sums), out=out)

        result = self._by_rows(None, block, x)
        self.save(result)
        return result

    def backward(self, grad: Array) -> Gradients:
        """g - e^y·Σ g."""
        (result,) = self.saved

        def block(out: Array, y: Array, grad: Array) -> None:
            np.exp(y, out=out)
            np.multiply(out, _row_sums(grad), out=out)
            np.subtract(grad, out, out=out)

        return (self._by_rows(_log_softmax_gradient, block, result, grad),)
