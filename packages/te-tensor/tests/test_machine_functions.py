"""Functions that formulas are written with, against NumPy in float64."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest

from te_tensor.machine import (
    Matrix,
    Value,
    absolute,
    exponential,
    flipped,
    hyperbolic_tangent,
    kernel,
    logarithm,
    logistic,
    maximum,
    minimum,
    minus_times,
    polynomial,
    square_root,
    times_plus,
    where_greater,
    with_sign,
)

pytestmark = pytest.mark.usefixtures("target")

LENGTHS = [0, 1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 100, 1000]
LARGEST = float(np.finfo(np.float32).max)
NORMAL = float(np.finfo(np.float32).smallest_normal)
DENORMAL = float(np.finfo(np.float32).smallest_subnormal)
EXTREMES = np.array(
    [
        sign * size
        for size in (0, DENORMAL, 77 * DENORMAL, NORMAL, 1e-30, 0.5, 1, 1e30, LARGEST, np.inf)
        for sign in (1, -1)
    ]
    + [np.nan],
    np.float32,
)


class Function(NamedTuple):
    """A function of one argument: as a formula, its reference, and how near it comes."""

    formula: Callable[[Value], Value]
    reference: Callable[[np.ndarray], np.ndarray]
    ulps: float
    low: float = -10
    high: float = 10
    #: Results below may be anything that is below.
    least: float = -np.inf


FUNCTIONS = {
    "absolute": Function(absolute, np.abs, 0),
    "square_root": Function(square_root, np.sqrt, 0.5, 0, 1e3),
    "exponential": Function(exponential, np.exp, 1.1, -104, 89),
    "exponential of small": Function(exponential, np.exp, 1, -1e-3, 1e-3),
    "hyperbolic_tangent": Function(hyperbolic_tangent, np.tanh, 2.5, -12, 12),
    "hyperbolic_tangent of small": Function(hyperbolic_tangent, np.tanh, 2.5, -1e-3, 1e-3),
    "logistic": Function(logistic, lambda x: 1 / (1 + np.exp(-x)), 2.5, -88, 88, NORMAL),
    "logarithm": Function(logarithm, np.log, 1, 0, 100),
    "logarithm near 1": Function(logarithm, np.log, 1, 0.7, 1.5),
    "logarithm of denormals": Function(logarithm, np.log, 1, 0, NORMAL),
}


def ulps(found: np.ndarray, expected: np.ndarray, least: float = -np.inf) -> np.ndarray:
    """How far results are from float64 ones, in units of the last place of a float32."""
    # inf stands for the next power of two, and what rounds to it for itself
    low, beyond = max(least, -(2.0**128)), 2.0**128
    far = np.clip(found.astype(np.float64), low, beyond) - np.clip(expected, low, beyond)
    unit = np.spacing(np.fmin(np.fmax(np.abs(expected), NORMAL), 2.0**127).astype(np.float32))
    same = np.isnan(expected) & np.isnan(found)
    return np.where(same, 0, np.nan_to_num(np.abs(far) / unit, nan=np.inf))


def apply(formula: Callable[..., Value], *arrays: np.ndarray) -> np.ndarray:
    """A formula of arrays as a kernel; nothing behind the output's end is written."""
    size = arrays[0].size
    if len(arrays) == 1:

        @kernel
        def function(out: Matrix, x: Matrix) -> None:
            out.store(formula(x.load()))
    elif len(arrays) == 2:

        @kernel
        def function(out: Matrix, x: Matrix, y: Matrix) -> None:
            out.store(formula(x.load(), y.load()))
    else:

        @kernel
        def function(out: Matrix, x: Matrix, y: Matrix, z: Matrix) -> None:
            out.store(formula(x.load(), y.load(), z.load()))

    wide = np.full(size + 40, 123.0, np.float32)
    out = wide[20 : 20 + size]
    function.flat(out, *arrays)
    assert (wide[:20] == 123).all() and (wide[20 + size :] == 123).all()
    return out


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name: str, length: int) -> None:
    function = FUNCTIONS[name]
    random = np.random.default_rng(length)
    x = random.uniform(function.low, function.high, length).astype(np.float32)
    expected = function.reference(x.astype(np.float64))
    found = apply(function.formula, x)
    assert (ulps(found, expected, function.least) <= function.ulps).all()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_many_arguments(name: str) -> None:
    function = FUNCTIONS[name]
    x = np.linspace(function.low, function.high, 100_003, dtype=np.float32)
    with np.errstate(divide="ignore"):
        expected = function.reference(x.astype(np.float64))
    far = ulps(apply(function.formula, x), expected, function.least)
    assert far.max() <= function.ulps, x[far.argmax()]


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("turn", [0, 3, 11])
def test_extremes(name: str, turn: int) -> None:
    """In whole vectors and in the last one."""
    function = FUNCTIONS[name]
    x = np.roll(np.concatenate([EXTREMES, np.arange(-110, 110, 0.5, np.float32)]), turn)
    with np.errstate(all="ignore"):
        expected = function.reference(x.astype(np.float64))
    found = apply(function.formula, x)
    far = ulps(found, expected, function.least)
    assert far.max() <= function.ulps, x[far.argmax()]
    zeros = (expected == 0) & (name != "logistic")
    np.testing.assert_array_equal(np.signbit(found[zeros]), np.signbit(expected[zeros]))


def test_logarithm_has_its_limits() -> None:
    x = np.float32([0.0, -0.0, np.inf, -np.inf, np.nan, -DENORMAL, -1, -LARGEST, 1])
    expected = np.float32([-np.inf, -np.inf, np.inf] + [np.nan] * 5 + [0])
    np.testing.assert_array_equal(apply(logarithm, x), expected)


def test_exponential_without_limits() -> None:
    def unlimited(x: Value) -> Value:
        return exponential(x, limited=False)

    x = np.linspace(-1000, 1000, 10_001, dtype=np.float32)
    np.testing.assert_array_equal(apply(unlimited, x), apply(exponential, x))
    assert np.isnan(apply(unlimited, np.float32([np.nan]))).all()


def test_exponential_without_tiny_numbers() -> None:
    def shares(x: Value) -> Value:
        return exponential(x, tiny=False)

    x = np.linspace(-79.9, 80, 1001, dtype=np.float32)
    np.testing.assert_array_equal(apply(shares, x), apply(exponential, x))
    below = np.float32([-80.1, -88, -100, -1e30, -np.inf] * 4)
    np.testing.assert_array_equal(apply(shares, below), np.zeros_like(below))
    assert np.isnan(apply(shares, np.float32([np.nan]))).all()


def test_elements_do_not_depend_on_where_they_lie() -> None:
    x = np.random.default_rng(0).uniform(-100, 100, 1000).astype(np.float32)
    whole = apply(exponential, x)
    for start in (1, 5, 16, 991):
        np.testing.assert_array_equal(apply(exponential, x[start:]), whole[start:])


# -- of two and three arguments --------------------------------------------------------------


def pairs() -> tuple[np.ndarray, np.ndarray]:
    numbers = np.concatenate([EXTREMES, np.linspace(-3, 3, 12, dtype=np.float32)])
    a, b = np.meshgrid(numbers, numbers)
    return a.ravel(), b.ravel()


OF_TWO = {
    "add": (lambda a, b: a + b, lambda a, b: a + b),
    "subtract": (lambda a, b: a - b, lambda a, b: a - b),
    "multiply": (lambda a, b: a * b, lambda a, b: a * b),
    "divide": (lambda a, b: a / b, lambda a, b: a / b),
    "maximum": (maximum, lambda a, b: np.where(a > b, a, b)),
    "minimum": (minimum, lambda a, b: np.where(a < b, a, b)),
    "with_sign": (
        lambda a, b: with_sign(absolute(a), b),
        lambda a, b: np.copysign(a, b),
    ),
    "flipped": (flipped, lambda a, b: np.where(np.signbit(b), -a, a)),
    "polynomial": (
        lambda a, b: polynomial(a, 0.5, -2.0) + b * 0.0,
        lambda a, b: (0.5 - 2 * a.astype(np.float64)).astype(np.float32) + b * np.float32(0),
    ),
    "number - a": (lambda a, b: 2.0 - a + (3.0 + b), lambda a, b: (2 - a) + (3 + b)),
    "number / a": (lambda a, b: 2.0 / a * (b * 3.0), lambda a, b: 2 / a * (b * 3)),
    "a / number": (lambda a, b: a / 3.0 - (b - 4.0), lambda a, b: a / 3 - (b - 4)),
}


@pytest.mark.parametrize("name", OF_TWO)
def test_arithmetic(name: str) -> None:
    formula, reference = OF_TWO[name]
    a, b = pairs()
    with np.errstate(all="ignore"):
        expected = reference(a, b)
    assert expected.dtype == np.float32
    found = apply(formula, a, b)
    np.testing.assert_array_equal(found, expected)
    sure = ~np.isnan(expected)
    np.testing.assert_array_equal(np.signbit(found[sure]), np.signbit(expected[sure]))


CHOICES = {
    "of values": (lambda a, b, c: where_greater(a, b, c, a), lambda a, b, c: np.where(a > b, c, a)),
    "first is a number": (
        lambda a, b, c: where_greater(0.5, b, c, a),
        lambda a, b, c: np.where(b < 0.5, c, a),
    ),
    "second is a number": (
        lambda a, b, c: where_greater(a, -0.5, c, b),
        lambda a, b, c: np.where(a > -0.5, c, b),
    ),
    "third is a number": (
        lambda a, b, c: where_greater(a, b, 7.0, c),
        lambda a, b, c: np.where(a > b, 7, c),
    ),
    "fourth is a number": (
        lambda a, b, c: where_greater(a, b, c, 7.0),
        lambda a, b, c: np.where(a > b, c, 7),
    ),
    "numbers but for the first": (
        lambda a, b, c: where_greater(a, 1.0, 2.0, 3.0),
        lambda a, b, c: np.where(a > 1, 2, 3),
    ),
    "numbers but for the last": (
        lambda a, b, c: where_greater(1.0, 2.0, 3.0, c),
        lambda a, b, c: c,
    ),
    "compared with itself": (
        lambda a, b, c: where_greater(a, a, b, c),
        lambda a, b, c: c,
    ),
    "all one value": (lambda a, b, c: where_greater(a, a, a, a), lambda a, b, c: a),
}


@pytest.mark.parametrize("name", CHOICES)
def test_where_greater(name: str) -> None:
    formula, reference = CHOICES[name]
    a, b = pairs()
    c = np.arange(a.size, dtype=np.float32)
    found = apply(formula, a, b, c)
    np.testing.assert_array_equal(found, reference(a, b, c).astype(np.float32))


#: Where numbers stand in a·b + c, and which arguments are the same.
PLACES = [
    "abc",
    "2bc",
    "a2c",
    "ab2",
    "22c",
    "2b3",
    "a23",
    "234",
    "aac",
    "aba",
    "abb",
    "aaa",
    "2aa",
    "a2a",
]


@pytest.mark.parametrize("later", [False, True], ids=["used up", "used later"])
@pytest.mark.parametrize("places", PLACES)
def test_fused(places: str, later: bool, fused: Callable[..., np.ndarray]) -> None:
    a, b = pairs()
    c = np.roll(a, 5)
    given = {"a": a, "b": b, "c": c} | {n: np.full_like(a, int(n)) for n in "234"}

    for function, sign in ((times_plus, 1), (lambda x, y, z: minus_times(z, x, y), -1)):

        def formula(a: Value, b: Value, c: Value, function=function) -> Value:
            values = {"a": a, "b": b, "c": c, "2": a.formula.value(2.0), "3": 3.0, "4": 4.0}
            result = function(*(values[p] for p in places))
            return result - (a + b + c) if later else result

        with np.errstate(all="ignore"):
            expected = fused(*(given[p] for p in places), sign)
            if later:
                expected = expected - (a + b + c)
        np.testing.assert_array_equal(apply(formula, a, b, c), expected)
