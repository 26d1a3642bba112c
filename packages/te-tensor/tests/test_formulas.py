"""Elementwise formulas: as a batch of kernel calls, and as NumPy calls."""

import copy

import numpy as np
import pytest

from te_tensor.machine import Batch, Kernel, Matrix, Passes, Scalar, maximum, runs, square_root

SIZES = [1, 15, 16, 17, 300, 40_000]


def follow(p: Matrix, g: Matrix, mean: Matrix, top: Matrix, keep: Scalar, rate: Scalar) -> None:
    """Reads what it writes, writes what it reads later, and has a constant."""
    moved = mean.load() * keep.load() + g.load() * 0.25
    greatest = maximum(top.load(), moved * moved)
    mean.store(moved)
    top.store(greatest)
    p.store(p.load() - moved / (square_root(greatest) + 1e-3) * rate.load())


def arrays(size, seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(size).astype(dtype) for _ in range(4)]


def reference(p, g, mean, top, keep, rate):
    moved = mean * keep + g * mean.dtype.type(0.25)
    greatest = np.maximum(top, moved * moved)
    step = moved / (np.sqrt(greatest) + mean.dtype.type(1e-3)) * rate
    return p - step, g, moved, greatest


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(), (0,), (5,), (3, 4)])
def test_passes_are_the_formula(dtype, shape):
    given = arrays(shape, dtype=dtype)
    given = [np.asarray(array) for array in given]
    numbers = [np.array(number, dtype) for number in (0.9, 0.1)]
    wanted = reference(*given, *numbers)
    Passes(follow)(*given, *numbers)
    assert all(np.array_equal(a, b) for a, b in zip(given, wanted, strict=True))


@pytest.mark.skipif(not runs(), reason="kernels don't run here")
@pytest.mark.parametrize("size", SIZES)
def test_kernels_and_passes_give_the_same_bits(size):
    one, other = arrays(size), arrays(size)
    Kernel(follow).flat(*one, 0.9, 0.1)
    Passes(follow)(*other, np.float32(0.9), np.float32(0.1))
    assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.skipif(not runs(), reason="kernels don't run here")
def test_a_batch_makes_the_calls_that_it_is_asked_for():
    kernel = Kernel(follow)
    one = [arrays(size, size) for size in SIZES]
    other = [arrays(size, size) for size in SIZES]
    operands = [list(column) for column in zip(*one, strict=True)]
    batch = Batch(kernel, [operands[0], None, *operands[2:]])
    for step in range(2):
        for calls in (slice(0, 2), slice(2, 3), slice(4, 6)):
            batch.run(calls, operands[1][calls], (0.9, 0.1 + step))
            for given in other[calls]:
                kernel.flat(*given, 0.9, 0.1 + step)
    for mine, wanted in zip(one, other, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(mine, wanted, strict=True))
    assert np.array_equal(one[3][0], arrays(SIZES[3], SIZES[3])[0])  # nobody asked for it
    with pytest.raises(TypeError, match="can't be copied"):
        copy.deepcopy(batch)


def exchange(a: Matrix, b: Matrix) -> None:
    """Each gets what the other one held."""
    first, second = a.load(), b.load()
    a.store(second)
    b.store(first)


def total(a: Matrix, b: Matrix) -> None:
    """Isn't elementwise."""
    b.store(a.load() - a.load().sum())


@pytest.mark.parametrize(("function", "match"), [(exchange, "held"), (total, "function for sum")])
def test_what_passes_cannot_do(function, match):
    with pytest.raises(TypeError, match=match):
        Passes(function)
