"""Nests of machine code: products and kernels for each of many small matrices."""

import numpy as np
import pytest

import te_tensor as te
from te_tensor.machine import (
    Column,
    Matrix,
    Nest,
    Scalar,
    Steps,
    copy_kernel,
    exponential,
    fill_kernel,
    kernel,
)

pytestmark = pytest.mark.skipif(te.kernel_info()["kernels"] != "avx512", reason="no AVX-512 here")


def uniform(*shape, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


@pytest.mark.parametrize("lead", [(), (5,), (2, 3), (2, 3, 4), (40, 8)])
@pytest.mark.parametrize(("m", "k", "n"), [(1, 1, 1), (3, 5, 16), (8, 2, 17), (27, 8, 100)])
def test_products_of_strided_matrices(lead, m, k, n, threads):
    a = np.swapaxes(uniform(*lead, k, m), -1, -2)
    b = uniform(*lead, k, n + 3, seed=1)[..., :n]
    whole = np.full((*lead, m + 1, n + 1), 7, np.float32)
    out = whole[..., :m, :n]
    for times in (1, 2):
        nest = Nest(*lead)
        nest.product(a, b, out, add=times == 2)
        nest.run()
        np.testing.assert_allclose(out, times * (a @ b), rtol=1e-5, atol=1e-5)
    out[...] = 7
    assert (whole == 7).all()


@kernel
def _shares(
    out: Matrix, x: Matrix, bias: Matrix, slope: Column, total: Column, unit: Scalar
) -> None:
    shares = out.keep(exponential((x.load() - slope.load() * bias.load()) * unit.load()))
    total.store(shares.sum())


@pytest.mark.parametrize("columns", [1, 16, 27, 40])
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (30, 4)])
def test_kernels_of_operands_that_broadcast(size, columns, threads):
    batch, heads = size
    x = np.swapaxes(uniform(batch, 6, heads, columns), 1, 2)
    bias, slope = uniform(batch, 1, 1, columns, seed=1), uniform(1, heads, 1, 1, seed=2)
    out, total = np.empty(x.shape, np.float32), np.empty((*x.shape[:-1], 1), np.float32)
    nest = Nest(batch, heads)
    nest.kernel(_shares, out, x, bias, slope, total, 0.5)
    nest.run()
    expected = np.exp((x - slope * bias) / 2)
    np.testing.assert_allclose(out, expected, rtol=1e-6)
    np.testing.assert_allclose(total, expected.sum(axis=-1, keepdims=True), rtol=1e-5)


def test_each_matrix_goes_through_all_calls_before_the_next_one():
    """So one matrix's scratch, which doesn't move, serves them all."""
    a, scratch = uniform(7, 4, 5), np.empty((4, 4), np.float32)
    out = np.empty((7, 4, 5), np.float32)
    nest = Nest(7)
    nest.product(a, np.ascontiguousarray(np.swapaxes(a, -1, -2)), scratch)
    nest.product(scratch, a, out)
    nest.run()
    np.testing.assert_allclose(out, a @ np.swapaxes(a, -1, -2) @ a, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("columns", [1, 5, 16, 21])
def test_columns_behind_those_of_a_turned_matrix_become_zeros(columns):
    a, b = uniform(3, 4, 6), uniform(3, columns, 6, seed=1)
    out = np.full((3, 4, columns + -columns % 16), np.nan, np.float32)
    nest = Nest(3)
    nest.product(a, b.swapaxes(-1, -2), out)
    nest.run()
    np.testing.assert_allclose(out[..., :columns], a @ b.swapaxes(-1, -2), rtol=1e-5, atol=1e-5)
    assert (out[..., columns:] == 0).all()
    if columns > 1:
        with pytest.raises(ValueError, match="contiguous rows"):
            nest.product(
                a, np.ascontiguousarray(b.swapaxes(-1, -2)), np.empty((3, 4, 32), np.float32)
            )


def test_a_matrix_of_the_threads_own_on_the_right_and_turned():
    a, out = uniform(3, 18, 18), np.empty((3, 18, 18), np.float32)
    nest = Nest(3)
    own = nest.own(18, 18).first(18)
    nest.product(a, a, own)
    nest.product(a, own.turned, out)
    nest.run()
    np.testing.assert_allclose(out, a @ (a @ a).swapaxes(-1, -2), rtol=1e-4, atol=1e-5)


tiled = pytest.mark.skipif(not te.blas_info()["tiles"], reason="no tiles here")


@tiled
@pytest.mark.parametrize("turned", [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize("sizes", [(33, 31, 40), (64, 96, 17), (20, 33, 96)])
def test_products_by_tiles(sizes, turned, threads):
    m, k, n = sizes
    lead = (5, 2, 3)
    a = uniform(*lead, k, m).swapaxes(-1, -2) if turned[0] else uniform(*lead, m, k)
    b = uniform(*lead, n, k, seed=1).swapaxes(-1, -2) if turned[1] else uniform(*lead, k, n, seed=1)
    whole = np.full((*lead, m + 1, n + 1), 7, np.float32)
    out = whole[..., :m, :n]
    parts = np.empty((m, n + -n % 16), np.float32)
    for times in (1, 2):
        nest = Nest(*lead, tiles=True)
        nest.product(a, b, out, add=times == 2)
        assert nest.run()
        wanted = a.astype(np.float64) @ b
        assert np.abs(out - times * wanted).max() < 1e-6 * times * k**0.5
    assert nest.own_size > 6 * k * (m + n) / 4  # both sides are laid out
    out[...] = 7
    assert (whole == 7).all()
    chained = Nest(*lead, alone=True, tiles=True)
    chained.product(a, b, parts[:, :n])  # what it makes, the next one lays out
    chained.product(parts[:, :n], b.swapaxes(-1, -2), made := np.empty((*lead, m, k), np.float32))
    assert chained.run()
    np.testing.assert_allclose(made, a @ b @ b.swapaxes(-1, -2), rtol=1e-4, atol=1e-4)


@tiled
def test_columns_behind_those_of_tiles_become_zeros():
    a, b = uniform(3, 40, 33), uniform(3, 50, 33, seed=1)
    made, copied = (np.full((3, 40, 64), np.nan, np.float32) for _ in range(2))
    nest = Nest(3, alone=True, tiles=True)
    own = nest.own(40, 50)
    nest.kernel(fill_kernel, own, np.nan)
    for out in (made, own):
        nest.product(a, b.swapaxes(-1, -2), out)
    nest.kernel(copy_kernel, copied, own)
    assert nest.run()
    for out in (made, copied):
        np.testing.assert_allclose(out[..., :50], a @ b.swapaxes(-1, -2), rtol=1e-5, atol=1e-5)
        assert (out[..., 50:] == 0).all()


@tiled
@pytest.mark.parametrize("number", [np.inf, np.nan, 1e30])
def test_steps_say_what_a_nest_cannot_split(number, threads):
    a, b, out = uniform(7, 40, 33), uniform(7, 33, 40), np.empty((7, 40, 40), np.float32)
    steps, nest = Steps(), Nest(7, tiles=True)
    nest.product(a, b, out)
    rooms = []
    steps.nest(nest, lambda *shape: rooms.append(np.empty(shape, np.float32)) or rooms[-1])
    assert steps.run()
    a[5, 3, 4] = number
    assert not steps.run()
    a[5, 3, 4] = 1.0
    assert steps.run()
    np.testing.assert_allclose(out, a @ b, rtol=1e-5, atol=1e-5)


@tiled
@pytest.mark.parametrize("number", [np.inf, np.nan, 1e30])
def test_a_nest_says_what_tiles_cannot_split(number, threads):
    a, b, out = uniform(7, 40, 33), uniform(7, 33, 40), np.empty((7, 40, 40), np.float32)
    nest = Nest(7, tiles=True)
    nest.product(a, b, out)
    assert nest.run()
    for place in range(7):
        odd = a.copy()
        odd[place, 3, 4] = number
        nest = Nest(7, tiles=True)
        nest.product(odd, b, out)
        assert not nest.run()


def test_a_nest_without_calls_does_nothing():
    assert Nest(3, 2).run()
    steps = Steps()
    steps.nest(Nest(3, 2), lambda *shape: np.empty(shape, np.float32))
    steps.run()
