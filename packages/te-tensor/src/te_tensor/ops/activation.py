"""Activations of one element each: ReLU LeakyReLU PReLU Sigmoid SiLU Tanh; GELU is in gelu.py."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .. import memory, parallel
from ..checks import check_number
from ..dtypes import Array, bool_
from ..machine import (
    Matrix,
    Scalar,
    kernel,
    logistic,
    maximum,
    minimum,
    minus_times,
    runs,
    times_plus,
    where_greater,
)
from ..operation import Gradients, Operation, Sample
from ..plan import Plan
from ..recorder import Backward, Into, Recorder
from ._kernels import as_rows, by_kernel, limited, masked, number, record_slope, rows_of, select

#: Elements up to which NumPy's calls are as quick as a kernel's.
_SHORT = 1 << 9


def _sigmoid(out: Array, x: Array) -> None:
    """The logistic function of one block."""
    one = number(1, x.dtype)
    np.negative(x, out=out)
    np.exp(out, out=out)
    np.add(out, one, out=out)
    np.divide(one, out, out=out)


def _tanh_slope(out: Array | None, grad: Array, result: Array) -> Array:
    """g·(1 - tanh²x) of one block."""
    out = np.multiply(result, result, out)
    np.subtract(number(1, out.dtype), out, out)
    return np.multiply(out, grad, out)


@kernel
def _positive(out: Matrix, x: Matrix) -> None:
    out.store(maximum(0.0, x.load()))


@kernel
def _where_positive(out: Matrix, x: Matrix, grad: Matrix) -> None:
    out.store(where_greater(x.load(), 0.0, grad.load(), 0.0))


@kernel
def _where_positive_more(out: Matrix, x: Matrix, grad: Matrix, start: Matrix) -> None:
    out.store(start.load() + where_greater(x.load(), 0.0, grad.load(), 0.0))


@kernel
def _bent_kernel(out: Matrix, x: Matrix, alpha: Scalar) -> None:
    elements = x.load()
    out.store(where_greater(elements, 0.0, elements, elements * alpha.load()))


@kernel
def _slopes_kernel(out: Matrix, x: Matrix, grad: Matrix, alpha: Scalar) -> None:
    upstream = grad.load()
    out.store(where_greater(x.load(), 0.0, upstream, upstream * alpha.load()))


class ReLU(Operation):
    """max(x, 0), with gradient 0 at 0."""

    gradient_in_place = True
    records_lanes = "taken"
    samples = (Sample((3, 4), low=0.1), Sample((3,), low=-1.0, high=-0.1))

    def forward(self, x: Array) -> Array:
        """The positive part; NaN stays NaN."""
        result = by_kernel(_positive, x)
        if result is None:
            result = limited(x, low=0)
        self.save(result)
        return result

    def prepare(self, plan: Plan, x: Array) -> Array:
        """The same, in a plan."""
        out = np.empty(x.shape, x.dtype)
        plan.rows(_positive, as_rows(out), as_rows(x))
        return out

    def record(self, recorder: Recorder, x: Array) -> tuple[Array, Backward, int | None]:
        """Both directions, in a recording."""
        out = recorder.kept_like(x)
        recorder.forward.rows(_positive, *rows_of(recorder, out, x))

        def back(grad: Array, outs: Sequence[Into | None]) -> None:
            (to_x,) = outs
            assert to_x is not None
            arrays = rows_of(recorder, to_x.out, out, grad)
            if to_x.start is None:
                recorder.backward.rows(_where_positive, *arrays)
            else:
                start = rows_of(recorder, to_x.start)
                recorder.backward.rows(_where_positive_more, *arrays, *start)

        return out, back, None

    def backward(self, grad: Array) -> Gradients:
        """The gradient where the result is positive."""
        (result,) = self.saved
        made = by_kernel(_where_positive, result, grad)
        if made is not None:
            return (made,)
        return (
            masked(parallel.ufunc(np.greater, result, number(0, result.dtype), dtype=bool_), grad),
        )


class LeakyReLU(Operation):
    """x above 0, alpha·x elsewhere (Maas, Hannun and Ng, 2013); gradient alpha at 0.

    Args:
        alpha: slope below 0.
    """

    samples = (Sample((3, 4), low=0.1), Sample((3,), low=-1.0, high=-0.1, args=(0.2,)))

    def __init__(self, alpha: float = 0.01) -> None:
        self.alpha = check_number("leaky_relu alpha", alpha)

    def forward(self, x: Array) -> Array:
        """The activation."""
        self.save(x)
        result = by_kernel(_bent_kernel, x, self.alpha)
        return _bent(x, np.asarray(self.alpha, x.dtype)) if result is None else result

    def backward(self, grad: Array) -> Gradients:
        """The gradient where x is positive, alpha times it elsewhere."""
        (x,) = self.saved
        made = by_kernel(_slopes_kernel, x, grad, self.alpha)
        return (_slopes(grad, x, np.asarray(self.alpha, x.dtype)) if made is None else made,)


def _bent(x: Array, alpha: Array) -> Array:
    """max(x, 0) + alpha·min(x, 0)."""

    def block(out: Array, x: Array) -> None:
        (positive,) = memory.scratch(1, x.shape, x.dtype)
        np.clip(x, -np.inf, 0, out=out)
        np.multiply(out, alpha, out=out)
        np.clip(x, 0, np.inf, out=positive)
        np.add(out, positive, out=out)

    out = memory.empty(x.shape, x.dtype)
    if alpha.ndim:
        block(out, x)
    else:
        parallel.elementwise(block, out, x)
    return out


def _slopes(grad: Array, x: Array, alpha: Array) -> Array:
    """The gradient where x is positive, alpha times it elsewhere."""
    positive = parallel.ufunc(np.greater, x, number(0, x.dtype), dtype=bool_)
    return parallel.ufunc(np.multiply, grad, select(positive, number(1, x.dtype), alpha))


class PReLU(Operation):
    """x above 0, weight·x elsewhere, the weight learned (He et al., arXiv:1502.01852).

    Inputs: x, and a weight of one element, or of one for each index of axis 1.
    """

    samples = (
        Sample((2, 3, 4), (3,)),
        Sample((5,), (1,)),
        Sample((3, 2), ()),
    )

    def forward(self, x: Array, weight: Array) -> Array:
        """The activation."""
        channels = x.shape[1] if x.ndim > 1 else 1
        if weight.ndim > 1 or weight.size not in (1, channels):
            raise ValueError(
                f"prelu of shape {x.shape} got a weight of shape {weight.shape}: expected (1,) "
                f"or ({channels},)"
            )
        self.save(x, weight)
        return _bent(x, self._aligned(weight, x))

    @staticmethod
    def _aligned(weight: Array, x: Array) -> Array:
        """The weight as it broadcasts along axis 1."""
        if weight.size == 1:
            return weight.reshape(())
        return weight.reshape(-1, *[1] * (x.ndim - 2))

    def backward(self, grad: Array) -> Gradients:
        """As of LeakyReLU; to the weight, Σ g·x where x isn't positive."""
        x, weight = self.saved
        grad_weight = None
        if self.needs_grad[1]:
            shares = grad * limited(x, high=0)
            one = weight.size == 1
            axes = tuple(axis for axis in range(x.ndim) if one or axis != 1)
            grad_weight = shares.sum(axis=axes).reshape(weight.shape)
        return _slopes(grad, x, self._aligned(weight, x)), grad_weight


@kernel
def _logistic_kernel(out: Matrix, x: Matrix) -> None:
    out.store(logistic(x.load()))


@kernel
def _logistic_slope_kernel(out: Matrix, result: Matrix, grad: Matrix) -> None:
    share = result.load()
    out.store((1.0 - share) * share * grad.load())


class Sigmoid(Operation):
    """1 / (1 + e^-x): nothing cancels, and where e^-x overflows the result is 0 but for 1e-38."""

    samples = (Sample((3, 4), low=-3, high=3), Sample(()))

    def forward(self, x: Array) -> Array:
        """The logistic function."""
        out = by_kernel(_logistic_kernel, x)
        if out is None:
            out = memory.empty(x.shape, x.dtype)
            parallel.elementwise(_sigmoid, out, x)
        self.save(out)
        return out

    def backward(self, grad: Array) -> Gradients:
        """G·s·(1-s)."""
        (result,) = self.saved
        made = by_kernel(_logistic_slope_kernel, result, grad)
        if made is not None:
            return (made,)
        one = result.dtype.type(1)

        def block(out: Array, grad: Array, result: Array) -> None:
            np.subtract(one, result, out=out)
            np.multiply(out, result, out=out)
            np.multiply(out, grad, out=out)

        out = memory.empty(result.shape, result.dtype)
        parallel.elementwise(block, out, grad, result)
        return (out,)


#: Beyond it e^-|x| is 0 in either dtype; limited to it, nothing turns to inf·0.
_FAR = 1000.0


def _silu(out: Array, slope: Array | None, x: Array) -> None:
    """x·s with s = σ(x), and its derivative s·(1 + x·(1 - s)), for one block."""
    one = x.dtype.type(1)
    (share,) = memory.scratch(1, x.shape, x.dtype)
    _sigmoid(share, x)
    if slope is not None:
        np.clip(x, -_FAR, _FAR, out=out)
        np.subtract(one, share, out=slope)
        np.multiply(slope, out, out=slope)
        np.add(slope, one, out=slope)
        np.multiply(slope, share, out=slope)
    np.clip(x, -_FAR, np.inf, out=out)
    np.multiply(out, share, out=out)


@kernel
def _silu_kernel(out: Matrix, x: Matrix) -> None:
    elements = x.load()
    out.store(maximum(-_FAR, elements) * logistic(elements))


@kernel
def _silu_slope_kernel(out: Matrix, slope: Matrix, x: Matrix) -> None:
    elements = x.load()
    share, above = logistic(elements), maximum(-_FAR, elements)
    out.store(above * share)
    slope.store(times_plus(minimum(_FAR, above), 1.0 - share, 1.0) * share)


class SiLU(Operation):
    """x·σ(x), also called swish (Hendrycks and Gimpel, arXiv:1606.08415)."""

    gradient_in_place = True
    records_lanes = "taken"
    samples = (Sample((3, 4), low=-3, high=3), Sample(()))

    def forward(self, x: Array) -> Array:
        """The activation; the derivative is made on the way, while everything is in cache."""
        out = memory.empty(x.shape, x.dtype)
        slope = memory.empty(x.shape, x.dtype) if self.needs_grad[0] else None
        self.save(slope)
        if runs(x) and slope is None:
            _silu_kernel.flat(out, x)
        elif runs(x):
            _silu_slope_kernel.flat(out, slope, x)
        elif slope is not None:
            parallel.elementwise(_silu, out, slope, x)
        else:
            parallel.elementwise(lambda out, x: _silu(out, None, x), out, x)
        return out

    def prepare(self, plan: Plan, x: Array) -> Array:
        """The same, in a plan."""
        out = np.empty(x.shape, x.dtype)
        plan.rows(_silu_kernel, as_rows(out), as_rows(x))
        return out

    def record(self, recorder: Recorder, x: Array) -> tuple[Array, Backward, int | None]:
        """Both directions, in a recording."""
        return record_slope(recorder, _silu_kernel, _silu_slope_kernel, x)

    def backward(self, grad: Array) -> Gradients:
        """The gradient times the derivative."""
        return (parallel.ufunc(np.multiply, grad, self.saved[0]),)


@kernel
def _tanh_slope_kernel(out: Matrix, result: Matrix, grad: Matrix) -> None:
    value = result.load()
    out.store(minus_times(1.0, value, value) * grad.load())


class Tanh(Operation):
    """The hyperbolic tangent."""

    samples = (Sample((3, 4), low=-2, high=2), Sample(()))

    def forward(self, x: Array) -> Array:
        """tanh x."""
        result = parallel.ufunc(np.tanh, x)
        self.save(result)
        return result

    def backward(self, grad: Array) -> Gradients:
        """g·(1 - tanh²x)."""
        (result,) = self.saved
        if result.ndim and result.size < _SHORT:
            return (_tanh_slope(None, grad, result),)
        made = by_kernel(_tanh_slope_kernel, result, grad)
        if made is not None:
            return (made,)
        out = memory.empty(result.shape, result.dtype)
        parallel.elementwise(_tanh_slope, out, grad, result)
        return (out,)
