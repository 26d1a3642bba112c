"""What a kernel computes, written as arithmetic on values that stand for a row's elements.

A kernel is a function of operands. It runs once, on symbols, and leaves steps that the compiler
turns into machine code. `Matrix` operands are read and written element by element, `Column`
operands hold one number a row, and `Scalar` ones a single number.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Container, Iterable
from math import inf, log, sqrt
from typing import Final, TypeAlias, Union

#: Levels of values: the same for all rows, one a row, one an element.
FIXED, ROW, ELEMENT = range(3)

Number: TypeAlias = Union["Value", float]


class Value:
    """A step of a formula: its name, its arguments, and where it is known.

    Args:
        formula: the formula it belongs to.
        name: what it does.
        arguments: earlier steps.
        operand: the operand it reads or writes, by number.
        number: that of a constant.
        level: FIXED, ROW or ELEMENT.
        stage: the sweep over a row in which it can be known first.
    """

    __slots__ = ("arguments", "formula", "level", "name", "number", "operand", "place", "stage")

    def __init__(
        self,
        formula: Formula,
        name: str,
        arguments: tuple[Value, ...] = (),
        *,
        operand: int = -1,
        number: float = 0.0,
        level: int,
        stage: int = 0,
    ) -> None:
        self.formula, self.name, self.arguments = formula, name, arguments
        self.operand, self.number, self.level, self.stage = operand, number, level, stage
        self.place = len(formula.steps)
        formula.steps.append(self)

    def __add__(self, other: Number) -> Value:
        return self.formula.step("add", self, other)

    def __radd__(self, other: float) -> Value:
        return self.formula.step("add", self, other)

    def __sub__(self, other: Number) -> Value:
        return self.formula.step("subtract", self, other)

    def __rsub__(self, other: float) -> Value:
        return self.formula.step("subtract", other, self)

    def __mul__(self, other: Number) -> Value:
        return self.formula.step("multiply", self, other)

    def __rmul__(self, other: float) -> Value:
        return self.formula.step("multiply", self, other)

    def __truediv__(self, other: Number) -> Value:
        return self.formula.step("divide", self, other)

    def __rtruediv__(self, other: float) -> Value:
        return self.formula.step("divide", other, self)

    def sum(self) -> Value:
        """The sum over the row."""
        return self.formula.reduction("sum", self)

    def max(self) -> Value:
        """The largest of the row; what NaN does is left open."""
        return self.formula.reduction("max", self)


class Operand:
    """An argument of a kernel."""

    def __init__(self, formula: Formula, number: int) -> None:
        self._formula, self._number = formula, number
        #: The sweep in which it was written last; what reads it from then on isn't made earlier.
        self._stage = 0

    def _read(self, name: str, level: int, of: tuple[Value, ...] = ()) -> Value:
        return Value(self._formula, name, of, operand=self._number, level=level, stage=self._stage)

    def _write(self, name: str, value: Number, level: int) -> None:
        value = self._formula.value(value)
        self._stage = max(self._stage, value.stage)
        self._read(name, level, (value,))


class Matrix(Operand):
    """Rows of elements; a single row serves for all of them."""

    def load(self) -> Value:
        """The elements."""
        return self._read("load", ELEMENT)

    def store(self, value: Number) -> None:
        """Write the elements."""
        self._write("store", value, ELEMENT)

    def add(self, value: Value) -> None:
        """Add to the elements; with a single row, the sum over all rows."""
        self._formula.adds = True
        self.store(self.load() + value)

    def keep(self, value: Value) -> Value:
        """Write the elements; later sweeps over the row read them, and needn't make them again."""
        self.store(value)
        return self._read("keep", ELEMENT, (value,))


class Column(Operand):
    """One number a row."""

    def load(self) -> Value:
        """The row's number."""
        return self._read("load_row", ROW)

    def store(self, value: Value) -> None:
        """Write the row's number."""
        self._write("store_row", value, ROW)


class Scalar(Operand):
    """One number."""

    def load(self) -> Value:
        """The number."""
        return self._read("scalar", FIXED)


class Formula:
    """The steps of a kernel.

    Args:
        function: the kernel as it is written.
        known: steps that are one instruction; what else has several depends on them.
    """

    def __init__(self, function: Callable[..., None], known: Container[str] = ()) -> None:
        self.name, self.known = function.__name__, known
        self.steps: list[Value] = []
        self._constants: dict[str, Value] = {}
        #: Whether it adds to what may be a sum over all rows.
        self.adds = False
        #: Whether it takes sums or maxima over rows.
        self.reduces = False
        parameters = inspect.signature(function, eval_str=True).parameters.values()
        self.kinds: list[type[Operand]] = [parameter.annotation for parameter in parameters]
        function(*(kind(self, number) for number, kind in enumerate(self.kinds)))

    def value(self, given: Number) -> Value:
        """A number as a step."""
        if isinstance(given, Value):
            return given
        key = repr(float(given))  # 0.0 and -0.0 are two constants
        if key not in self._constants:
            self._constants[key] = Value(self, "constant", number=float(given), level=FIXED)
        return self._constants[key]

    def step(self, name: str, *given: Number) -> Value:
        """A step of arithmetic."""
        arguments = tuple(map(self.value, given))
        return Value(
            self,
            name,
            arguments,
            level=max(ROW, *(a.level for a in arguments)),
            stage=max(a.stage for a in arguments),
        )

    def reduction(self, name: str, value: Value) -> Value:
        """A number a row, known after a sweep over the row."""
        self.reduces = True
        return Value(self, name, (value,), level=ROW, stage=value.stage + 1)


def _of(values: Iterable[Number]) -> Formula:
    return next(v.formula for v in values if isinstance(v, Value))


def maximum(a: Number, b: Number) -> Value:
    """The greater one; b where either is NaN."""
    return _of((a, b)).step("maximum", a, b)


def minimum(a: Number, b: Number) -> Value:
    """The lesser one; b where either is NaN."""
    return _of((a, b)).step("minimum", a, b)


def absolute(x: Value) -> Value:
    """|x|."""
    return x.formula.step("and_not", -0.0, x)


def with_sign(size: Value, x: Value) -> Value:
    """`size`, which is at least 0, with the sign of x."""
    return size.formula.step("or", size, size.formula.step("and", x, -0.0))


def flipped(value: Value, x: Value) -> Value:
    """`value`, negated where x has a minus sign."""
    return value.formula.step("xor", value, value.formula.step("and", x, -0.0))


def square_root(x: Value) -> Value:
    """√x."""
    return x.formula.step("square_root", x)


def where_greater(a: Number, b: Number, this: Number, other: Number) -> Value:
    """`this` where a > b, `other` elsewhere, also where either is NaN."""
    return _of((a, b, this, other)).step("where_greater", a, b, this, other)


def times_plus(a: Number, b: Number, c: Number) -> Value:
    """a·b + c, rounded once."""
    return _of((a, b, c)).step("times_plus", a, b, c)


def minus_times(c: Number, a: Number, b: Number) -> Value:
    """c - a·b, rounded once."""
    return _of((a, b, c)).step("minus_times", a, b, c)


def polynomial(x: Value, *coefficients: float) -> Value:
    """c0 + c1·x + c2·x² + …, by Horner's rule."""
    *others, highest = coefficients
    result: Number = highest
    for coefficient in reversed(others):
        result = times_plus(result, x, coefficient)
    assert isinstance(result, Value)
    return result


#: ln 2 in two parts, the first one with few bits: multiples of it are exact.
_LN2_HIGH: Final = 0.693359375
_LN2_LOW: Final = log(2) - _LN2_HIGH
#: Beyond these e^x is inf and 0 in float32.
_EXP_LIMITS: Final = (-104.0, 89.0)
#: (e^r - 1 - r) / r² for |r| ≤ ln 2 / 2, interpolated at Chebyshev's nodes: e^r to 1e-8.
_EXP: Final = (0.5, 0.16666576566, 0.04166655421, 0.00836323288, 0.00139262508)
#: A float32 from 2²³ to 2²⁴ has a whole number in its last bits: to add this to n leaves n + 127
#: there, which is how an exponent is stored.
_STORED: Final = 1.5 * 2**23 + 127


def _power_of_two(stored: Value) -> Value:
    """2^n for a whole n from -126 to 127, from n + _STORED."""
    return stored.formula.step("as_exponent", stored)


def _scaled(x: Value, n: Value) -> Value:
    """x·2^n for x near 1 and a whole n, rounded once."""
    if "scale" in x.formula.known:
        return x.formula.step("scale", x, n)
    n = minimum(254.0, maximum(-252.0, n))
    stored = times_plus(n, 0.5, _STORED)
    rest = n - (stored - _STORED)
    return x * _power_of_two(stored) * _power_of_two(rest + _STORED)


def _reduced(x: Value) -> tuple[Value, Value]:
    """r and a whole n with x = r + n·ln 2, |r| ≤ ln 2 / 2, and e^r - 1."""
    n = x.formula.step("round", x * (1 / log(2)))
    r = minus_times(minus_times(x, n, _LN2_HIGH), n, _LN2_LOW)
    return n, times_plus(polynomial(r, *_EXP), r * r, r)


#: Exponents below this give 0 where they are asked to.
_LEAST: Final = -80.0


def exponential(x: Value, *, limited: bool = True, tiny: bool = True) -> Value:
    """e^x, to hardly more than one unit in the last place.

    Args:
        x: the exponent.
        limited: let infinite exponents give inf and 0; without, what they give is left open.
        tiny: without, exponents below -80 give 0, as is enough for shares of a sum. Numbers below
            the smallest normal one, 0 instead of them included, take some processors 20 times as
            long to make.
    """
    low, high = _EXP_LIMITS
    if not tiny:
        upper = minimum(high, x) if limited else x
        found = exponential(maximum(_LEAST, upper), limited=False)
        return where_greater(_LEAST, x, 0.0, found)
    n, successor = _reduced(minimum(high, maximum(low, x)) if limited else x)
    return _scaled(successor + 1.0, n)


def hyperbolic_tangent(x: Value) -> Value:
    """Tanh x, to some units in the last place: t / (t + 2) with t = e^(2|x|) - 1."""
    n, successor = _reduced(minimum(20.0, absolute(x + x)))
    power = _power_of_two(n + _STORED)
    t = times_plus(successor, power, power - 1.0)
    return with_sign(t / (t + 2.0), x)


def logistic(x: Value) -> Value:
    """1 / (1 + e^-x); 0 where that is below the smallest normal number."""
    return 1.0 / (exponential(0.0 - x, tiny=False) + 1.0)


#: (ln(1 + r) - r + r²/2) / r³ from √½ to √2, interpolated at Chebyshev's nodes: ln to 4e-9.
_LOG: Final = (
    0.3333333118,
    -0.2499999696,
    0.2000071575,
    -0.1666780232,
    0.1424905765,
    -0.1242568733,
    0.1168541992,
    -0.1147973385,
    0.06971611472,
)
#: ln 2 in two parts, the first one a float32 and less, so that both keep the sign of an infinity.
_LN2_BELOW: Final = 0.693147122859954833984375
_LN2_REST: Final = log(2) - _LN2_BELOW
#: The smallest normal number; the bits of a significand, as a number.
_NORMAL, _SIGNIFICAND = 2.0**-126, (2**23 - 1) * 2.0**-149


def _parts(x: Value) -> tuple[Value, Value]:
    """The significand, from 1 to 2, and the exponent of x: -inf at 0, and inf at inf.

    One of them is NaN where x is, or below 0.
    """
    step = x.formula.step
    if "exponent" in x.formula.known:
        return step("significand", x), step("exponent", x)
    normal = where_greater(_NORMAL, x, x * 2.0**24, x)
    # an exponent, as it is stored, in the last bits of 2²³
    stored = step("or", step("exponent_bits", normal), 2.0**23)
    exponent = stored - where_greater(_NORMAL, x, 2.0**23 + 127 + 24, 2.0**23 + 127)
    infinite = where_greater(inf, x, exponent, x)
    exponent = where_greater(x, 0.0, infinite, square_root(x) - inf)
    return step("or", step("and", normal, _SIGNIFICAND), 1.0), exponent


def logarithm(x: Value) -> Value:
    """The natural logarithm, to one unit in the last place: NaN below 0, -inf at 0."""
    significand, exponent = _parts(x)
    r = where_greater(significand, sqrt(2), significand * 0.5, significand) - 1.0
    n = where_greater(significand, sqrt(2), exponent + 1.0, exponent)
    square = r * r
    rest = times_plus(polynomial(r, *_LOG) * square, r, n * _LN2_REST)
    return times_plus(n, _LN2_BELOW, r + minus_times(rest, square, 0.5))
