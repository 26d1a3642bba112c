"""The activation GELU."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from .. import memory, parallel
from ..dtypes import Array, float64
from ..machine import (
    Kernel,
    Matrix,
    Value,
    absolute,
    exponential,
    flipped,
    hyperbolic_tangent,
    kernel,
    maximum,
    minimum,
    minus_times,
    polynomial,
    runs,
    times_plus,
)
from ..operation import Gradients, Operation, Sample
from ..plan import Plan
from ..recorder import Backward, Recorder
from ._kernels import EXPONENT_OF_E, EXPONENTIAL, as_rows, bits_of, record_slope

_erfc_exact = np.frompyfunc(math.erfc, 1, 1)

# Abramowitz and Stegun, Handbook of Mathematical Functions (1964), formula 7.1.26:
# erfc(z) ≈ (a1 t + … + a5 t⁵)·exp(-z²), t = 1/(1 + p z), for z ≥ 0, error below 1.5e-7.
_ERFC_P = 0.3275911
_ERFC_A = (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)
# The same for Φ(-a) = erfc(a/√2)/2, with t scaled so that t⁵ has the factor 1: two passes less.
_SCALE = (_ERFC_A[4] / 2) ** 0.2
_TAIL_SHIFT = math.sqrt(2) / _ERFC_P
_TAIL_SCALE = _SCALE * _TAIL_SHIFT
_TAIL = tuple(a / 2 / _SCALE**power for power, a in enumerate(_ERFC_A[:4], start=1))
#: e^(-a²/2) is EXPONENTIAL of a² times this.
_HALF_SQUARE = -0.5 * EXPONENT_OF_E
#: From here on both forms are x or 0 to the last bit; limited to it, nothing turns to inf - inf.
_FAR = 40.0


def _normal_tail(tail: Array, t: Array, a: Array, density: Array) -> None:
    """Φ(-a) from a ≥ 0 and e^(-a²/2); t is scratch."""
    scalar = a.dtype.type
    if a.dtype == float64:
        tail[...] = _erfc_exact(a * math.sqrt(0.5))
        np.multiply(tail, 0.5, out=tail)
        return
    np.add(a, scalar(_TAIL_SHIFT), out=t)
    np.divide(scalar(_TAIL_SCALE), t, out=t)
    np.add(t, scalar(_TAIL[3]), out=tail)
    for coefficient in reversed(_TAIL[:3]):
        np.multiply(tail, t, out=tail)
        np.add(tail, scalar(coefficient), out=tail)
    np.multiply(tail, t, out=tail)
    np.multiply(tail, density, out=tail)


def _gelu_erf(out: Array, slope: Array | None, x: Array) -> None:
    """x·Φ(x) and its derivative Φ(x) + x·φ(x), for one block.

    With a = |x| and h = Φ(-a) the result is max(x, 0) - a·h: no cancellation where Φ is near 0,
    and one formula on both sides. The derivative is w = h - a·φ(a) below 0, and 1 - w above.
    """
    scalar = x.dtype.type
    a, density, tail, t = memory.scratch(4, x.shape, x.dtype)
    np.abs(x, out=a)
    a.clip(0, _FAR, out=a)
    np.multiply(a, a, out=density)
    np.multiply(density, scalar(_HALF_SQUARE), out=density)
    EXPONENTIAL(density, out=density)
    _normal_tail(tail, t, a, density)
    if slope is not None:
        # 1/2 - w is at least 0 up to rounding: with the sign of x, plus 1/2, it is both sides
        np.multiply(density, scalar(1 / math.sqrt(2 * math.pi)), out=density)
        np.multiply(density, a, out=density)
        np.subtract(density, tail, out=density)
        np.add(density, scalar(0.5), out=density)
        bits, sign = bits_of(slope), bits_of(t)
        np.bitwise_and(bits_of(x), np.iinfo(sign.dtype).min, out=sign)
        np.bitwise_xor(bits_of(density), sign, out=bits)
        np.add(slope, scalar(0.5), out=slope)
    np.multiply(a, tail, out=tail)
    x.clip(0, np.inf, out=out)
    np.subtract(out, tail, out=out)


_TANH_A = math.sqrt(2 / math.pi)
_TANH_B = 0.044715 * _TANH_A


def _gelu_tanh(out: Array, slope: Array | None, x: Array) -> None:
    """x·(1 + tanh u)/2 with u = √(2/π)·(x + 0.044715 x³), and its derivative, for one block."""
    scalar = x.dtype.type
    limited, square, t = memory.scratch(3, x.shape, x.dtype)
    x.clip(-_FAR, _FAR, out=limited)
    np.multiply(limited, limited, out=square)
    np.multiply(square, scalar(_TANH_B), out=t)
    np.add(t, scalar(_TANH_A), out=t)
    np.multiply(t, limited, out=t)
    np.tanh(t, out=t)
    if slope is not None:
        # (1 + t)/2 + x·(1 - t²)·u'/2 with u' = a + 3b·x²
        np.multiply(square, scalar(1.5 * _TANH_B), out=square)
        np.add(square, scalar(0.5 * _TANH_A), out=square)
        np.multiply(square, limited, out=square)
        np.multiply(t, t, out=slope)
        np.subtract(scalar(1), slope, out=slope)
        np.multiply(slope, square, out=slope)
    np.multiply(t, scalar(0.5), out=t)
    np.add(t, scalar(0.5), out=t)
    if slope is not None:
        np.add(slope, t, out=slope)
    np.multiply(x, t, out=out)


def _erf_form(x: Value) -> tuple[Value, Value]:
    """The result, and 1/2 - w of the derivative, as in `_gelu_erf`."""
    a = minimum(_FAR, absolute(x))
    density = exponential(a * a * -0.5, limited=False)
    t = _TAIL_SCALE / (a + _TAIL_SHIFT)
    tail = polynomial(t, *_TAIL, 1.0) * t * density
    middle = times_plus(density * (1 / math.sqrt(2 * math.pi)), a, 0.5 - tail)
    return minus_times(maximum(0.0, x), a, tail), middle


@kernel
def _erf_kernel(out: Matrix, x: Matrix) -> None:
    out.store(_erf_form(x.load())[0])


@kernel
def _erf_slope_kernel(out: Matrix, slope: Matrix, x: Matrix) -> None:
    elements = x.load()
    result, middle = _erf_form(elements)
    out.store(result)
    slope.store(flipped(middle, elements) + 0.5)


def _tanh_form(x: Value) -> tuple[Value, Value, Value]:
    """(1 + tanh u)/2, x² and x as in `_gelu_tanh`."""
    limited = maximum(-_FAR, minimum(_FAR, x))
    square = limited * limited
    share = times_plus(hyperbolic_tangent(polynomial(square, _TANH_A, _TANH_B) * limited), 0.5, 0.5)
    return share, square, limited


@kernel
def _tanh_kernel(out: Matrix, x: Matrix) -> None:
    elements = x.load()
    out.store(elements * _tanh_form(elements)[0])


@kernel
def _tanh_slope_kernel(out: Matrix, slope: Matrix, x: Matrix) -> None:
    elements = x.load()
    share, square, limited = _tanh_form(elements)
    out.store(elements * share)
    # 1 - t² with t = 2·share - 1 is 4·share·(1 - share)
    of_tanh = share * (1.0 - share) * (polynomial(square, 2 * _TANH_A, 6 * _TANH_B) * limited)
    slope.store(share + of_tanh)


class GELU(Operation):
    """x·Φ(x), Φ the normal distribution function (Hendrycks and Gimpel, arXiv:1606.08415).

    Args:
        approximate: "none" for Φ by erf, "tanh" for the paper's approximation of it.
    """

    samples = (
        Sample((3, 4), low=-3, high=3),
        Sample((3, 4), low=-3, high=3, kwargs={"approximate": "tanh"}),
    )
    _chains: dict[str, Callable[[Array, Array | None, Array], None]] = {
        "none": _gelu_erf,
        "tanh": _gelu_tanh,
    }
    #: Without and with the derivative.
    _kernels: dict[str, tuple[Kernel, Kernel]] = {
        "none": (_erf_kernel, _erf_slope_kernel),
        "tanh": (_tanh_kernel, _tanh_slope_kernel),
    }

    gradient_in_place = True
    records_lanes = "taken"

    def __init__(self, approximate: str = "none") -> None:
        if approximate not in self._kernels:
            raise ValueError(f"approximate is {approximate!r}: expected 'none' or 'tanh'")
        self.approximate = approximate

    def forward(self, x: Array) -> Array:
        """The activation; the derivative is made on the way, while everything is in cache."""
        out = memory.empty(x.shape, x.dtype)
        slope = memory.empty(x.shape, x.dtype) if self.needs_grad[0] else None
        self._fill(out, slope, x)
        if slope is not None:
            self.save(slope)
        return out

    def prepare(self, plan: Plan, x: Array) -> Array:
        """The same, in a plan."""
        out = np.empty(x.shape, x.dtype)
        plan.rows(self._kernels[self.approximate][0], as_rows(out), as_rows(x))
        return out

    def record(self, recorder: Recorder, x: Array) -> tuple[Array, Backward, int | None]:
        """Both directions, in a recording."""
        return record_slope(recorder, *self._kernels[self.approximate], x)

    def _fill(self, out: Array, slope: Array | None, x: Array) -> None:
        plain, with_slope = self._kernels[self.approximate]
        chain = self._chains[self.approximate]
        if runs(x):
            with_slope.flat(out, slope, x) if slope is not None else plain.flat(out, x)
        elif slope is None:
            parallel.elementwise(lambda out, x: chain(out, None, x), out, x)
        else:
            parallel.elementwise(chain, out, slope, x)

    def backward(self, grad: Array) -> Gradients:
        """The gradient times the derivative."""
        (slope,) = self.saved
        if self.retains_graph:
            return (parallel.ufunc(np.multiply, grad, slope),)
        self.saved = ()  # nobody else has it: the memory serves for the gradient
        parallel.elementwise(lambda s, g: np.multiply(s, g, out=s), slope, grad)
        return (slope,)
