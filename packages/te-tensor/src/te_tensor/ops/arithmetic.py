"""Elementwise arithmetic with broadcasting: Add Sub Mul Div Pow Neg Abs Exp Log Sqrt."""

from __future__ import annotations

from typing import Any

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


class _Unary(Operation, abstract=True):
    """One input, one output of the same shape."""

    def backward(self, grad: Array) -> Gradients:
        """The gradient times the derivative."""
        return (self.slope(grad, *self.saved),)

    def slope(self, grad: Array, *saved: Any) -> Array:
        """The gradient times the derivative, from what was saved."""
        raise NotImplementedError


class Neg(_Unary):
    """-x."""

    samples = (Sample((3, 4)), Sample(()))

    def forward(self, x: Array) -> Array:
        """The negative."""
        return ufunc(np.negative, x)

    def slope(self, grad: Array) -> Array:
        """-g."""
        return ufunc(np.negative, grad)


class Abs(_Unary):
    """|x|, with gradient 0 at 0."""

    samples = (Sample((3, 4), low=0.5, high=2.0), Sample((3,), low=-2.0, high=-0.5))

    def forward(self, x: Array) -> Array:
        """The absolute value."""
        self.save(x)
        return ufunc(np.absolute, x)

    def slope(self, grad: Array, x: Array) -> Array:
        """G·sign x."""
        return grad * np.sign(x)


class Exp(_Unary):
    """e ** x."""

    samples = (Sample((3, 4)), Sample(()))

    def forward(self, x: Array) -> Array:
        """The exponential; inf where it overflows."""
        result = ufunc(np.exp, x)
        self.save(result)
        return result

    def slope(self, grad: Array, result: Array) -> Array:
        """G·eˣ."""
        return ufunc(np.multiply, grad, result)


class Log(_Unary):
    """The natural logarithm."""

    samples = (Sample((3, 4), low=0.5, high=2.0), Sample((), low=0.5, high=2.0))

    def forward(self, x: Array) -> Array:
        """The logarithm; -inf at 0 and NaN below."""
        self.save(x)
        return ufunc(np.log, x)

    def slope(self, grad: Array, x: Array) -> Array:
        """g/x."""
        return ufunc(np.divide, grad, x)


class Sqrt(_Unary):
    """The square root."""

    samples = (Sample((3, 4), low=0.5, high=2.0), Sample((), low=0.5, high=2.0))

    def forward(self, x: Array) -> Array:
        """The root; NaN below 0."""
        result = ufunc(np.sqrt, x)
        self.save(result)
        return result

    def slope(self, grad: Array, result: Array) -> Array:
        """g / (2·√x)."""
        return ufunc(np.divide, grad, ufunc(np.add, result, result))
