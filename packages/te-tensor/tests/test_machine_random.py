"""Random formulas, to the bit as NumPy computes them: registers, sweeps, and what dies when."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import te_tensor as te
from te_tensor.machine import (
    Column,
    Kernel,
    Matrix,
    Scalar,
    Value,
    absolute,
    flipped,
    kernel,
    maximum,
    minimum,
    minus_times,
    square_root,
    times_plus,
    where_greater,
    with_sign,
)
from te_tensor.machine.compiler import TooManyRegisters, _Compiler
from te_tensor.machine.target import TARGETS

#: Steps by how many arguments they have, as a formula and as NumPy has them. Quotients and roots
#: are of what they can be taken of.
STEPS: dict[str, tuple[int, Callable[..., Any], Callable[..., Any]]] = {
    "add": (2, lambda a, b: a + b, np.add),
    "subtract": (2, lambda a, b: a - b, np.subtract),
    "multiply": (2, lambda a, b: a * b, np.multiply),
    "divide": (2, lambda a, b: a / (absolute(b) + 1.0), lambda a, b: a / (np.abs(b) + 1)),
    "maximum": (2, maximum, lambda a, b: np.where(a > b, a, b)),
    "minimum": (2, minimum, lambda a, b: np.where(a < b, a, b)),
    "root": (1, lambda a: square_root(absolute(a)), lambda a: np.sqrt(np.abs(a))),
    "with_sign": (2, lambda a, b: with_sign(absolute(a), b), np.copysign),
    "flipped": (2, flipped, lambda a, b: np.where(np.signbit(b), -a, a)),
    "where_greater": (4, where_greater, lambda a, b, c, d: np.where(a > b, c, d)),
    "times_plus": (3, times_plus, None),  # the fixture `fused`
    "minus_times": (3, minus_times, None),
    "sum": (1, Value.sum, None),  # in the order of lanes
    "max": (1, Value.max, lambda a: a.max(1, keepdims=True)),
    "keep": (1, None, lambda a: a),
}
NUMBERS = [0.0, -0.0, 1.0, -2.0, 0.5]
ROWS = 3


@dataclass(frozen=True)
class Program:
    """Steps, each with its arguments by number: inputs, numbers, then earlier steps."""

    columns: int
    steps: list[tuple[str, tuple[int, ...]]]
    #: What is written: two matrices, a column and a sum over rows.
    written: tuple[int, int, int, int]
    in_place: bool


@st.composite
def programs(draw: st.DrawFn) -> Program:
    steps: list[tuple[str, tuple[int, ...]]] = []
    known = INPUTS + len(NUMBERS)
    kept = 0
    for _ in range(draw(st.integers(1, 14))):
        name = draw(st.sampled_from(sorted(STEPS)))
        if name == "keep":
            kept += 1
            name = name if kept <= KEPT else "add"
        # later values more often, so that formulas grow deep
        places = st.one_of(st.integers(0, known - 1), st.integers(max(0, known - 4), known - 1))
        arguments = tuple(draw(places) for _ in range(STEPS[name][0]))
        steps.append((name, arguments))
        known += 1
    last = st.one_of(st.integers(0, known - 1), st.just(known - 1))
    written = draw(st.tuples(last, last, last, last))
    return Program(draw(st.integers(1, 40)), steps, written, draw(st.booleans()))


#: x, y, v (a vector), c (a column), s and t (scalars).
INPUTS, KEPT = 6, 2


def compiled(program: Program) -> Kernel:
    """A program as a kernel."""

    @kernel
    def formula(
        first: Matrix,
        second: Matrix,
        to_column: Column,
        over_rows: Matrix,
        kept: Matrix,
        kept_too: Matrix,
        x: Matrix,
        y: Matrix,
        v: Matrix,
        c: Column,
        s: Scalar,
        t: Scalar,
    ) -> None:
        values = [operand.load() for operand in (x, y, v, c, s, t)]
        values += [values[0].formula.value(number) for number in NUMBERS]
        keepers = iter((kept, kept_too))
        for name, places in program.steps:
            arguments = [values[place] for place in places]
            if name == "keep":
                values.append(next(keepers).keep(*arguments))
            else:
                values.append(STEPS[name][1](*arguments))
        chosen = [values[place] for place in program.written]
        over_rows.add(chosen[3])
        to_column.store(chosen[2].max())
        second.store(chosen[1])
        first.store(chosen[0])

    return formula


def lanes_summed(a: np.ndarray, lanes: int) -> np.ndarray:
    """Sums of rows in the order in which vectors of so many lanes add them."""
    rows, columns = a.shape
    padded = np.zeros((rows, -(-columns // lanes) * lanes), np.float32)
    padded[:, :columns] = a
    total = np.zeros((rows, lanes), np.float32)
    for vector in np.split(padded, padded.shape[1] // lanes, axis=1):
        total = total + vector
    while lanes > 1:
        lanes //= 2
        total = total[:, :lanes] + total[:, lanes:]
    return total


def evaluated(
    program: Program, inputs: list[np.ndarray], lanes: int, fused: Callable[..., np.ndarray]
) -> list[np.ndarray]:
    """A program in NumPy."""

    def whole(a: np.ndarray) -> np.ndarray:
        return np.broadcast_to(a, (ROWS, program.columns))

    own: dict[str, Callable[..., np.ndarray]] = {
        "times_plus": fused,
        "minus_times": lambda c, a, b: fused(a, b, c, -1),
        "sum": lambda a: lanes_summed(whole(a), lanes),
        "max": lambda a: whole(a).max(1, keepdims=True),
    }
    values = [*inputs, *map(np.float32, NUMBERS)]
    for name, places in program.steps:
        result = (own.get(name) or STEPS[name][2])(*(values[place] for place in places))
        assume(np.isfinite(result).all())
        values.append(np.float32(result))
    first, second, column, over_rows = (whole(values[place]) for place in program.written)
    total = np.zeros(program.columns, np.float32)
    for row in over_rows:
        total = total + row
    assume(np.isfinite(total).all())
    return [first.copy(), second.copy(), column.max(1), total]


@pytest.mark.parametrize("name", TARGETS)
def test_random_formulas(name: str, fused: Callable[..., np.ndarray]) -> None:
    before = te.kernel_info()["kernels"]
    try:
        te.set_kernels(name)
    except OSError as error:
        pytest.skip(str(error))

    @settings(
        derandomize=True,
        database=None,
        deadline=None,
        max_examples=EXAMPLES,
        suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow],
    )
    @given(programs(), st.integers(0, 99))
    def check(program: Program, seed: int) -> None:
        compare(program, seed, TARGETS[name].lanes, fused)

    try:
        check()
    finally:
        te.set_kernels(before)


EXAMPLES = 300


def compare(program: Program, seed: int, lanes: int, fused: Callable[..., np.ndarray]) -> None:
    random, columns = np.random.default_rng(seed), program.columns

    def numbers(*shape: int) -> np.ndarray:
        return (random.integers(-12, 13, shape) / 4).astype(np.float32)

    x, y, v, c = numbers(ROWS, columns), numbers(ROWS, columns), numbers(columns), numbers(ROWS, 1)
    s, t = numbers(2)
    with np.errstate(all="ignore"):
        expected = evaluated(program, [x, y, v, c, s, t], lanes, fused)
    room = np.full((4, ROWS + 1, columns + 3), 7, np.float32)
    first, second, kept, kept_too = room[:, :ROWS, :columns]
    column, over_rows = np.full(ROWS, 7, np.float32), np.zeros(columns, np.float32)
    if program.in_place and only_sweep(program):
        first, second = x, y
    function = compiled(program)
    try:
        check_registers(function, lanes)
        function.rows(
            first, second, column, over_rows, kept, kept_too, x, y, v, c, float(s), float(t)
        )
    except TooManyRegisters:
        assert lanes == 8
        return
    for found, wanted in zip((first, second, column, over_rows), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)
    assert (room[:, ROWS:] == 7).all() and (room[:, :, columns:] == 7).all()


def check_registers(function: Kernel, lanes: int) -> None:
    """All registers are free again behind a row."""
    target = next(t for t in TARGETS.values() if t.lanes == lanes)
    compiler = _Compiler(function.formula(target), target)
    compiler.compile()
    assert sorted(compiler.free) == list(range(target.registers))
    assert not compiler.register


def only_sweep(program: Program) -> bool:
    """Whether elements are written in the sweep that reads all of them."""
    return not any(name in ("sum", "max") for name, _ in program.steps)
