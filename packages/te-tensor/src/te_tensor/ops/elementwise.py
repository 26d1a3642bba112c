"""Elementary functions of one input: Neg Abs Exp Log Log1p Sqrt Sin Cos Erf."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .. import memory, parallel
from ..dtypes import Array, float64
from ..machine import Matrix, exponential, kernel
from ..operation import Gradients, Operation, Sample
from ..parallel import ufunc
from ._kernels import by_kernel, number


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


#: Elements up to which NumPy's call is the quicker one.
_SHORT = 1 << 10


@kernel
def _exponential(out: Matrix, x: Matrix) -> None:
    out.store(exponential(x.load()))


class Exp(_Unary):
    """e ** x."""

    samples = (Sample((3, 4)), Sample(()))

    def forward(self, x: Array) -> Array:
        """The exponential; inf where it overflows."""
        result = None if x.size <= _SHORT else by_kernel(_exponential, x)
        if result is None:
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


class Log1p(_Unary):
    """ln(1 + x), exact also where 1 + x rounds to 1."""

    samples = (Sample((3, 4), low=-0.5, high=2.0), Sample((), low=0.5, high=2.0))

    def forward(self, x: Array) -> Array:
        """The logarithm; -inf at -1 and NaN below."""
        self.save(x)
        return ufunc(np.log1p, x)

    def slope(self, grad: Array, x: Array) -> Array:
        """g/(1+x)."""
        return ufunc(np.divide, grad, ufunc(np.add, x, number(1, x.dtype)))


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


class Sin(_Unary):
    """The sine of an angle in radians."""

    samples = (Sample((3, 4), low=-4, high=4), Sample(()))

    def forward(self, x: Array) -> Array:
        """The sine; NaN at ±inf."""
        self.save(x)
        return ufunc(np.sin, x)

    def slope(self, grad: Array, x: Array) -> Array:
        """g·cos x."""
        return ufunc(np.multiply, grad, ufunc(np.cos, x))


class Cos(_Unary):
    """The cosine of an angle in radians."""

    samples = (Sample((3, 4), low=-4, high=4), Sample(()))

    def forward(self, x: Array) -> Array:
        """The cosine; NaN at ±inf."""
        self.save(x)
        return ufunc(np.cos, x)

    def slope(self, grad: Array, x: Array) -> Array:
        """-g·sin x."""
        return ufunc(np.multiply, grad, ufunc(np.negative, ufunc(np.sin, x)))


_erf_exact = np.frompyfunc(math.erf, 1, 1)

# erf(x) ≈ x·P(x²)/Q(x²) for |x| < 4, beyond which float32 has ±1; relative error below 4e-7, also
# near 0. Coefficients of XLA's ErfImpl32 and Eigen's generic_fast_erf_float, highest power first.
_ERF_P = (
    *(-2.72614225801306e-10, 2.77068142495902e-08, -2.10102402082508e-06, -5.69250639462346e-05),
    *(-7.34990630326855e-04, -2.95459980854025e-03, -1.60960333262415e-02),
)
_ERF_Q = (
    *(-1.45660718464996e-05, -2.13374055278905e-04, -1.68282697438203e-03),
    *(-7.37332916720468e-03, -1.42647390514189e-02),
)
_ERF_END = 4.0


def _polynomial(out: Array, x: Array, coefficients: tuple[float, ...]) -> None:
    """Horner's scheme, the highest power's coefficient first."""
    np.multiply(x, x.dtype.type(coefficients[0]), out=out)
    for coefficient in coefficients[1:-1]:
        np.add(out, x.dtype.type(coefficient), out=out)
        np.multiply(out, x, out=out)
    np.add(out, x.dtype.type(coefficients[-1]), out=out)


def _erf(out: Array, x: Array) -> None:
    """The error function of one block."""
    if x.dtype == float64:
        out[...] = _erf_exact(x)
        return
    end = x.dtype.type(_ERF_END)
    limited, square, denominator = memory.scratch(3, x.shape, x.dtype)
    np.clip(x, -end, end, out=limited)
    np.multiply(limited, limited, out=square)
    _polynomial(out, square, _ERF_P)
    _polynomial(denominator, square, _ERF_Q)
    np.divide(out, denominator, out=out)
    np.multiply(out, limited, out=out)
    np.clip(out, x.dtype.type(-1), x.dtype.type(1), out=out)


class Erf(_Unary):
    """The error function 2/√π · ∫₀ˣ e^(-t²) dt."""

    samples = (Sample((3, 4), low=-3, high=3), Sample(()))

    def forward(self, x: Array) -> Array:
        """Between -1 and 1; float64 by the C library's function, float32 by a quotient."""
        out = memory.empty(x.shape, x.dtype)
        parallel.elementwise(_erf, out, x)
        self.save(x)
        return out

    def slope(self, grad: Array, x: Array) -> Array:
        """g·2/√π·e^(-x²)."""
        factor = x.dtype.type(2 / math.sqrt(math.pi))

        def block(out: Array, grad: Array, x: Array) -> None:
            np.multiply(x, x, out=out)
            np.negative(out, out=out)
            np.exp(out, out=out)
            np.multiply(out, factor, out=out)
            np.multiply(out, grad, out=out)

        out = memory.empty(x.shape, x.dtype)
        parallel.elementwise(block, out, grad, x)
        return out
