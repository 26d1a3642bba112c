"""Elementwise arithmetic with broadcasting: Add Sub Mul Div Pow."""

from __future__ import annotations

import numpy as np

from ..dtypes import Array
from ..operation import Gradients, Operation, Sample
from ..parallel import ufunc

_PAIRS = (
    Sample((3, 4), (3, 4)),
    Sample((3, 1), (4,)),
    Sample((), (2, 3)),
    Sample((2, 0), (1, 1)),
)
_POSITIVE_PAIRS = tuple(Sample(*s.shapes, low=0.5, high=2.0) for s in _PAIRS)


class Add(Operation):
    """a + b."""

    broadcasts = True
    samples = _PAIRS

    def forward(self, a: Array, b: Array) -> Array:
        """The sum."""
        return ufunc(np.add, a, b)

    def backward(self, grad: Array) -> Gradients:
        """The gradient itself, for both."""
        return grad, grad


class Sub(Operation):
    """a - b."""

    broadcasts = True
    samples = _PAIRS

    def forward(self, a: Array, b: Array) -> Array:
        """The difference."""
        return ufunc(np.subtract, a, b)

    def backward(self, grad: Array) -> Gradients:
        """The gradient, and its negative."""
        return grad, (ufunc(np.negative, grad) if self.needs_grad[1] else None)


class Mul(Operation):
    """a * b."""

    broadcasts = True
    samples = _PAIRS

    def forward(self, a: Array, b: Array) -> Array:
        """The product."""
        needs_a, needs_b = self.needs_grad
        self.save(a if needs_b else None, b if needs_a else None)
        return ufunc(np.multiply, a, b)

    def backward(self, grad: Array) -> Gradients:
        """Each gets the gradient times the other."""
        a, b = self.saved
        return (
            ufunc(np.multiply, grad, b) if b is not None else None,
            ufunc(np.multiply, grad, a) if a is not None else None,
        )


class Div(Operation):
    """a / b."""

    broadcasts = True
    samples = _POSITIVE_PAIRS

    def forward(self, a: Array, b: Array) -> Array:
        """The quotient; x/0 is ±inf or NaN, as IEEE 754 has it."""
        result = ufunc(np.divide, a, b)
        self.save(b, result if self.needs_grad[1] else None)
        return result

    def backward(self, grad: Array) -> Gradients:
        """g/b, and -g·(a/b)/b."""
        b, result = self.saved
        grad_a = ufunc(np.divide, grad, b)
        grad_b = None if result is None else ufunc(np.negative, grad * (result / b))
        return grad_a, grad_b


class Pow(Operation):
    """a ** b; as in PyTorch, a zero base has gradient 0 to the exponent where b >= 0."""

    broadcasts = True
    samples = _POSITIVE_PAIRS

    def forward(self, a: Array, b: Array) -> Array:
        """The power; a negative base with a fractional exponent is NaN."""
        # NumPy has short ways for scalar exponents such as 2 and 0.5.
        result = np.asarray(a ** b.item()) if not b.ndim else np.power(a, b)
        self.save(a, b, result if self.needs_grad[1] else None)
        return result

    def backward(self, grad: Array) -> Gradients:
        """g·b·a^(b-1), and g·a^b·ln a."""
        a, b, result = self.saved
        grad_a = grad_b = None
        if self.needs_grad[0]:
            # 0·a^-1 is 0 also at a = 0
            exponent = b - np.ones((), b.dtype)
            slope = b * (a ** exponent.item() if not b.ndim else np.power(a, exponent))
            grad_a = grad * np.where(b == 0, np.zeros((), b.dtype), slope)
        if result is not None:
            logarithm = np.where((a == 0) & (b >= 0), np.zeros((), a.dtype), np.log(a))
            grad_b = grad * result * logarithm
        return grad_a, grad_b
