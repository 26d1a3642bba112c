"""Activations of one element each: ReLU LeakyReLU PReLU Sigmoid SiLU Tanh; GELU is in gelu.py."""

from __future__ import annotations

import numpy as np

from .. import memory, parallel
from ..dtypes import Array
from ..operation import Gradients, Operation, Sample


class ReLU(Operation):
    """max(x, 0), with gradient 0 at 0."""

    samples = (Sample((3, 4), low=0.1), Sample((3,), low=-1.0, high=-0.1))

    def forward(self, x: Array) -> Array:
        """The positive part; NaN stays NaN."""
        result = parallel.ufunc(np.maximum, x, np.zeros((), x.dtype))
        self.save(result)
        return result

    def backward(self, grad: Array) -> Gradients:
        """The gradient where the result is positive."""
        (result,) = self.saved

        def block(out: Array, grad: Array, result: Array) -> None:
            # A product with 0 would turn the gradient's inf into NaN.
            np.copyto(out, grad, where=result > 0)

        out = np.zeros(result.shape, result.dtype)
        parallel.elementwise(block, out, grad, result)
        return (out,)


class LeakyReLU(Operation):
    """x above 0, alpha·x elsewhere (Maas, Hannun and Ng, 2013); gradient alpha at 0.

    Args:
        alpha: slope below 0.
    """

    samples = (Sample((3, 4), low=0.1), Sample((3,), low=-1.0, high=-0.1, args=(0.2,)))

    def __init__(self, alpha: float = 0.01) -> None:
        self.alpha = alpha

    def forward(self, x: Array) -> Array:
        """The activation."""
        self.save(x)
        return self._bent(x, x)

    def backward(self, grad: Array) -> Gradients:
        """The gradient where x is positive, alpha times it elsewhere."""
        (x,) = self.saved
        return (self._bent(grad, x),)

    def _bent(self, values: Array, x: Array) -> Array:
        alpha = x.dtype.type(self.alpha)

        def block(out: Array, values: Array, x: Array) -> None:
            np.multiply(values, alpha, out=out)
            np.copyto(out, values, where=x > 0)

        out = memory.empty(x.shape, x.dtype)
        parallel.elementwise(block, out, values, x)
        return out


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
        return np.where(x > 0, x, x * self._aligned(weight, x))

    @staticmethod
    def _aligned(weight: Array, x: Array) -> Array:
        """The weight as it broadcasts along axis 1."""
        if weight.size == 1:
            return weight.reshape(())
        return weight.reshape(-1, *[1] * (x.ndim - 2))

    def backward(self, grad: Array) -> Gradients:
        """As of LeakyReLU; to the weight, Σ g·x where x isn't positive."""
        x, weight = self.saved
        positive = x > 0
        grad_weight = None
        if self.needs_grad[1]:
            shares = np.where(positive, np.zeros((), x.dtype), grad * x)
            one = weight.size == 1
            axes = tuple(axis for axis in range(x.ndim) if one or axis != 1)
            grad_weight = shares.sum(axis=axes).reshape(weight.shape)
        return np.where(positive, grad, grad * self._aligned(weight, x)), grad_weight


class Sigmoid(Operation):
    """1 / (1 + e^-x), as e^min(x,0) / (1 + e^-|x|), which neither overflows nor cancels."""

    samples = (Sample((3, 4), low=-3, high=3), Sample(()))

    def forward(self, x: Array) -> Array:
        """The logistic function."""
        one = x.dtype.type(1)

        def block(out: Array, x: Array) -> None:
            np.abs(x, out=out)
            np.negative(out, out=out)
            np.exp(out, out=out)
            (denominator,) = memory.scratch(1, x.shape, x.dtype)
            np.add(out, one, out=denominator)
            np.copyto(out, one, where=x >= 0)
            np.divide(out, denominator, out=out)

        out = memory.empty(x.shape, x.dtype)
        parallel.elementwise(block, out, x)
        self.save(out)
        return out

    def backward(self, grad: Array) -> Gradients:
        """G·s·(1-s)."""
        (result,) = self.saved
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
    """x·σ(x) and its derivative, for one block.

    With a = |x| and h = σ(-a) the result is max(x, 0) - a·h. The derivative is w = h - a·h·(1-h)
    below 0, and 1 - w above.
    """
    scalar = x.dtype.type
    a, h = memory.scratch(2, x.shape, x.dtype)
    np.abs(x, out=a)
    np.minimum(a, scalar(_FAR), out=a)
    np.negative(a, out=h)
    np.exp(h, out=h)
    np.add(h, scalar(1), out=out)
    np.divide(h, out, out=h)
    if slope is not None:
        # copysign(1/2 - w, x) + 1/2 is both sides in one; w is at most 1/2
        np.subtract(h, scalar(1), out=slope)
        np.multiply(slope, a, out=slope)
        np.add(slope, scalar(1), out=slope)
        np.multiply(slope, h, out=slope)
        np.subtract(scalar(0.5), slope, out=slope)
        np.copysign(slope, x, out=slope)
        np.add(slope, scalar(0.5), out=slope)
    np.multiply(a, h, out=h)
    np.maximum(x, scalar(0), out=out)
    np.subtract(out, h, out=out)


class SiLU(Operation):
    """x·σ(x), also called swish (Hendrycks and Gimpel, arXiv:1606.08415)."""

    samples = (Sample((3, 4), low=-3, high=3), Sample(()))

    def forward(self, x: Array) -> Array:
        """The activation; the derivative is made on the way, while everything is in cache."""
        out = memory.empty(x.shape, x.dtype)
        if self.needs_grad[0]:
            slope = memory.empty(x.shape, x.dtype)
            parallel.elementwise(_silu, out, slope, x)
            self.save(slope)
        else:
            parallel.elementwise(lambda out, x: _silu(out, None, x), out, x)
        return out

    def backward(self, grad: Array) -> Gradients:
        """The gradient times the derivative."""
        return (parallel.ufunc(np.multiply, grad, self.saved[0]),)


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
        one = result.dtype.type(1)

        def block(out: Array, grad: Array, result: Array) -> None:
            np.multiply(result, result, out=out)
            np.subtract(one, out, out=out)
            np.multiply(out, grad, out=out)

        out = memory.empty(result.shape, result.dtype)
        parallel.elementwise(block, out, grad, result)
        return (out,)
