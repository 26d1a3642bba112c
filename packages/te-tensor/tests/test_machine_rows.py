"""Kernels over rows: strides, vectors, columns, sums, and what is kept from sweep to sweep."""

import numpy as np
import pytest

import te_tensor as te
from te_tensor.machine import (
    Column,
    Matrix,
    Scalar,
    exponential,
    kernel,
    maximum,
    square_root,
    times_plus,
)
from te_tensor.machine.compiler import TooManyRegisters, compile_formula
from te_tensor.machine.target import TARGETS

COLUMNS = [1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 100]

pytestmark = pytest.mark.usefixtures("target")


def matrix(rows: int, columns: int, *, room: int = 0, seed: int = 0) -> np.ndarray:
    """Whole numbers, whose sums are exact, in rows that are `room` further apart."""
    numbers = np.random.default_rng(seed).integers(-9, 10, (rows, columns + room))
    return numbers.astype(np.float32)[:, :columns]


class Guarded:
    """An output inside a larger array, of which nothing else may change."""

    def __init__(self, rows: int, columns: int, room: int) -> None:
        self._all = np.full((rows + 2, columns + room), 123.0, np.float32)
        self.inside = self._all[1:-1, :columns]

    def check(self, expected: np.ndarray) -> None:
        np.testing.assert_array_equal(self.inside, expected)
        self.inside[:] = 123
        assert (self._all == 123).all()


@kernel
def affine(out: Matrix, x: Matrix, scale: Matrix, shift: Column, factor: Scalar) -> None:
    out.store(times_plus(x.load(), scale.load(), shift.load()) * factor.load())


@pytest.mark.parametrize("room", [0, 1, 40])
@pytest.mark.parametrize("columns", COLUMNS)
@pytest.mark.parametrize("rows", [1, 2, 9])
def test_strides_vectors_and_columns(rows: int, columns: int, room: int) -> None:
    x, scale = matrix(rows, columns, room=room), matrix(1, columns, seed=1)[0]
    shift = matrix(rows, 1, seed=2)
    out = Guarded(rows, columns, room + 3)
    affine.rows(out.inside, x, scale, shift, 2.0)
    out.check((x * scale + shift) * 2)
    affine.rows(out.inside, x, matrix(rows, columns, room=5), np.ascontiguousarray(shift[:, 0]), 2)
    out.check((x * matrix(rows, columns, room=5) + shift) * 2)


def test_columns_of_wider_matrices_and_turned_rows() -> None:
    x, wide = matrix(9, 33), matrix(9, 5, seed=2)
    out, scale = np.empty_like(x), np.ones(33, np.float32)
    affine.rows(out, x[::-1], scale, wide[:, 3], 1.0)
    np.testing.assert_array_equal(out, x[::-1] + wide[:, 3:4])
    affine.rows(out[::2], x[::2], scale, wide[::2, :1], 1.0)
    np.testing.assert_array_equal(out[::2], x[::2] + wide[::2, :1])


@kernel
def statistics(x: Matrix, total: Column, largest: Column, smallest: Column, count: Column) -> None:
    elements = x.load()
    total.store(elements.sum())
    largest.store(elements.max())
    smallest.store(0.0 - (0.0 - elements).max())
    count.store(elements.formula.value(1.0).sum())


@pytest.mark.parametrize("columns", [*COLUMNS, 1000])
def test_sums_and_maxima(columns: int) -> None:
    x = matrix(5, columns, room=3)
    x[1], x[2] = -7, -np.inf
    x[3, -1] = 50
    found = [np.full((5, 1), 123, np.float32) for _ in range(4)]
    statistics.rows(x, *found)
    for column, expected in zip(found, (x.sum(1), x.max(1), x.min(1), [columns] * 5), strict=True):
        np.testing.assert_array_equal(column[:, 0], expected)


def test_rows_of_nothing() -> None:
    found = [np.full(3, 123, np.float32) for _ in range(4)]
    statistics.rows(np.empty((3, 0), np.float32), *found)
    for column, expected in zip(found, (0, -np.inf, np.inf, 0), strict=True):
        np.testing.assert_array_equal(column, expected)
    statistics.rows(np.empty((0, 3), np.float32), *[np.empty(0, np.float32)] * 4)


@kernel
def normalized(out: Matrix, x: Matrix, total: Column) -> None:
    e = out.keep(exponential(x.load() - x.load().max()))
    total.store(e.sum())
    out.store(e / e.sum())


@pytest.mark.parametrize("columns", COLUMNS)
def test_what_is_kept_is_read_again(columns: int) -> None:
    x = matrix(7, columns)
    e = np.exp(x - x.max(1, keepdims=True))
    out, total = np.empty_like(x), np.empty(7, np.float32)
    normalized.rows(out, x, total)
    np.testing.assert_allclose(out, e / e.sum(1, keepdims=True), rtol=1e-6)
    np.testing.assert_allclose(total, e.sum(1), rtol=1e-6)
    normalized.rows(x, x, total)  # in place
    np.testing.assert_array_equal(x, out)


@kernel
def sums_over_rows(x: Matrix, total: Matrix, squares: Matrix, centred: Matrix) -> None:
    elements = x.load()
    total.add(elements)
    squares.add(elements * elements)
    centred.add(elements - elements.sum())


@pytest.mark.parametrize("columns", COLUMNS)
def test_sums_over_rows(columns: int) -> None:
    x = matrix(9, columns, room=2)
    sums = np.ones((3, columns), np.float32)
    sums_over_rows.rows(x, *sums)
    expected = [x.sum(0), (x * x).sum(0), (x - x.sum(1, keepdims=True)).sum(0)]
    np.testing.assert_array_equal(sums, 1 + np.array(expected))
    parts = np.zeros((3, 9, columns), np.float32)  # of matrices, element by element
    sums_over_rows.rows(x, *parts)
    np.testing.assert_array_equal(parts[1], x * x)


@kernel
def in_place(x: Matrix, y: Matrix, step: Scalar) -> None:
    before = x.load()
    x.store(before - step.load() * y.load())
    y.store(before)


def test_in_place() -> None:
    x, y = matrix(3, 37), matrix(3, 37, seed=1)
    expected = x - 2 * y, x.copy()
    in_place.flat(x, y, 2.0)
    np.testing.assert_array_equal((x, y), expected)


# -- sweeps ----------------------------------------------------------------------------------


@kernel
def three_sweeps(out: Matrix, x: Matrix, last: Column, given: Column, share: Scalar) -> None:
    """Row-level values that are used in the first sweep, the last one, and in all of them."""
    elements, offset = x.load(), given.load()
    mean = elements.sum() * share.load()
    centred = elements - mean
    variance = (centred * centred).sum() * share.load()
    top = (centred * offset).max()
    last.store(top - offset * mean)
    out.store(times_plus(centred, square_root(variance), offset) + mean * top)
    elements.sum()  # of no use
    (centred * offset).max()


def test_values_of_rows_across_sweeps() -> None:
    x, given = matrix(6, 41), matrix(6, 1, seed=3)
    out, last = np.empty_like(x), np.empty((6, 1), np.float32)
    three_sweeps.rows(out, x, last, given, 1 / 41)
    mean = x.mean(1, keepdims=True)
    centred = x - mean
    top = (centred * given).max(1, keepdims=True)
    expected = centred * x.std(1, keepdims=True) + given + mean * top
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(last, top - given * mean, rtol=1e-4, atol=1e-4)


@kernel
def written_and_read(out: Matrix, x: Matrix, column: Column) -> None:
    """What is read after it was written is what was written, whatever sweep that was in."""
    column.store(x.load().sum())
    x.store(x.load() * column.load())
    again = x.load()
    column.store(again.max())
    out.store(again + column.load())


def test_order_of_writing_and_reading() -> None:
    x = matrix(5, 19)
    expected = x * x.sum(1, keepdims=True)
    out, column = np.empty_like(x), np.zeros(5, np.float32)
    written_and_read.rows(out, x, column)
    np.testing.assert_array_equal(column, expected.max(1))
    np.testing.assert_array_equal(out, expected + expected.max(1, keepdims=True))
    np.testing.assert_array_equal(x, expected)


@pytest.mark.parametrize("reads", ["load", "keep"])
def test_what_is_overwritten_too_early(reads: str) -> None:
    @kernel
    def lossy(out: Matrix, x: Matrix) -> None:
        value = x.load() if reads == "load" else x.keep(x.load() * 2.0)
        x.store(value + 1.0)
        out.store(value * value.sum())

    with pytest.raises(ValueError, match=r"lossy reads operand 1 in sweep 1, which sweep 0"):
        lossy.flat(matrix(2, 3), matrix(2, 3))


# -- sizes -----------------------------------------------------------------------------------


@kernel
def eleven(
    a: Matrix,
    b: Matrix,
    c: Matrix,
    d: Matrix,
    e: Matrix,
    f: Column,
    g: Matrix,
    h: Matrix,
    i: Matrix,
    j: Matrix,
    k: Column,
    s: Scalar,
    t: Scalar,
) -> None:
    sources = b, c, d, e, g, h, i, j
    values = [operand.load() for operand in sources]
    total = values[0]
    for value in values[1:]:
        total = total + value
    k.store(f.load() * t.load())
    a.store(total + f.load() * s.load())


def test_as_many_arrays_as_there_are_registers() -> None:
    arrays = [matrix(4, 21, seed=n) for n in range(11)]
    arrays[5], arrays[10] = matrix(4, 1, seed=5), matrix(4, 1)
    eleven.rows(*arrays, 2.0, 3.0)
    expected = sum(arrays[n] for n in (1, 2, 3, 4, 6, 7, 8, 9)) + 2 * arrays[5]
    np.testing.assert_array_equal(arrays[0], expected)
    np.testing.assert_array_equal(arrays[10], 3 * arrays[5])


@pytest.mark.parametrize("name", TARGETS)
def test_too_many(name: str) -> None:
    target = TARGETS[name]

    @kernel
    def values(out: Matrix, x: Matrix) -> None:
        made = [x.load() + float(n) for n in range(target.registers + 1)]
        for value in reversed(made):
            out.store(value)

    with pytest.raises(TooManyRegisters, match=f"values has more values at once than {name}"):
        compile_formula(values.formula(target), target)

    def arrays(a, b, c, d, e, f, g, h, i, j, k, more) -> None:
        a.store(more.load())

    arrays.__annotations__ = dict.fromkeys("abcdefghijk", Matrix) | {"more": Matrix}
    with pytest.raises(TooManyRegisters, match="arrays has 12 arrays: at most 11"):
        compile_formula(kernel(arrays).formula(target), target)


def test_scalars_come_last() -> None:
    with pytest.raises(TypeError, match="wrong has scalars before arrays"):

        @kernel
        def wrong(x: Scalar, y: Matrix) -> None:
            y.store(x.load())


@pytest.mark.parametrize("name", TARGETS)
def test_code_is_the_same_each_time(name: str) -> None:
    target = TARGETS[name]
    for made in (normalized, three_sweeps, eleven):
        codes = {compile_formula(made.formula(target), target) for _ in range(5)}
        assert len(codes) == 1


# -- threads ---------------------------------------------------------------------------------


@kernel
def squared_total(x: Matrix, total: Column) -> None:
    total.store((x.load() * x.load()).sum())


@kernel
def clipped(out: Matrix, x: Matrix) -> None:
    out.store(maximum(x.load(), 0.0))


@pytest.mark.parametrize("run", ["flat", "rows"])
def test_large_arrays_are_cut(run: str, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("te_tensor.parallel.PARALLEL_KERNEL_FROM", 1 << 10)
    x = matrix(70, 33)
    out = np.empty_like(x)
    getattr(clipped, run)(out, x)
    np.testing.assert_array_equal(out, x.clip(0))
    shift, ones = matrix(70, 1), np.ones(33, np.float32)
    affine.rows(out, x, ones, shift, 1.0)
    np.testing.assert_array_equal(out, x + shift)
    total = np.empty(1, np.float32)
    squared_total.flat(x, total)  # a sum of all isn't cut
    np.testing.assert_array_equal(total, [(x * x).sum()])
    sums = np.zeros((3, 33), np.float32)
    sums_over_rows.rows(x, *sums)
    np.testing.assert_array_equal(sums[0], x.sum(0))


def test_the_gil_is_given_away_for_long_calls() -> None:
    x = np.ones(1 << 15, np.float32)
    out = np.empty_like(x)
    clipped.flat(out, x)
    assert (out == 1).all()


def test_kernels_can_change_on_the_way(target: str) -> None:
    """A call that asked `runs` before NumPy was chosen still runs."""
    x = matrix(2, 9)
    out = np.empty_like(x)
    te.set_kernels("numpy")
    clipped.flat(out, x)
    np.testing.assert_array_equal(out, x.clip(0))
