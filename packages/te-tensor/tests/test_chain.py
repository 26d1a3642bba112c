"""Chains of machine code: products of few rows, kernels, and both one after the other."""

import numpy as np
import pytest

import te_tensor as te
from te_tensor.machine import Chain, Matrix, kernel, multiply, packed, times_plus

pytestmark = pytest.mark.skipif(te.kernel_info()["kernels"] != "avx512", reason="no AVX-512 here")


def uniform(*shape, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


@pytest.mark.parametrize("columns", [1, 16, 31, 32, 33, 100])
@pytest.mark.parametrize("rows", [1, 3, 8, 13, 40])
def test_products(rows, columns, threads):
    """Of matrices with gaps between their rows; what lies behind a row stays as it is."""
    for depth in (1, 5, 64):
        a, matrix = uniform(rows, depth + 3)[:, :depth], uniform(columns, depth, seed=1).T
        start = uniform(rows, columns + 1, seed=2)[:, :columns]
        whole = np.full((rows + 1, columns + 2), 7, np.float32)
        out = whole[:rows, :columns]
        multiply(a, packed(matrix), start, out)
        np.testing.assert_allclose(out, start + a @ matrix, rtol=1e-5, atol=1e-5)
        multiply(a, packed(matrix), out, out)
        np.testing.assert_allclose(out, start + 2 * (a @ matrix), rtol=1e-5, atol=1e-5)
        vector = start[0].copy()
        multiply(a, packed(matrix), vector, out)
        np.testing.assert_allclose(out, vector + a @ matrix, rtol=1e-5, atol=1e-5)
        out[...] = 7
        assert (whole == 7).all()


def test_a_product_of_what_is_not_finite():
    a = uniform(2, 3)
    a[0, 1] = np.inf
    matrix = np.abs(uniform(3, 40, seed=1))
    out = multiply(a, packed(matrix), np.zeros(40, np.float32), np.empty((2, 40), np.float32))
    assert np.isinf(out[0]).all() and np.isfinite(out[1]).all()


def test_packed_panels():
    matrix = uniform(4, 40)
    panels = packed(matrix)
    assert panels.shape == (2, 4, 32)
    np.testing.assert_array_equal(panels[0], matrix[:, :32])
    np.testing.assert_array_equal(panels[1, :, :8], matrix[:, 32:])
    assert not panels[1, :, 8:].any()


@kernel
def _decay(state: Matrix, rate: Matrix, following: Matrix) -> None:
    """A step that a vector serves for all rows of, and that leaves the next state."""
    following.store(times_plus(state.load(), rate.load(), 1.0))


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("steps", [1, 2, 9])
def test_a_chain_of_products_and_kernels(steps, backwards):
    states, given = uniform(steps + 1, 3, 20), uniform(steps, 3, 6, seed=1)
    rate, matrix = uniform(20, seed=2), uniform(6, 20, seed=3)
    order = slice(None, None, -1 if backwards else 1)
    expected = states[0 if not backwards else -1]
    for step in given[order]:
        expected = expected * rate + 1 + step @ matrix
    steps_in_order = states[order]
    chain = Chain(steps)
    chain.kernel(_decay, steps_in_order[:-1], rate, steps_in_order[1:])
    chain.product(given[order], packed(matrix), steps_in_order[1:], steps_in_order[1:])
    chain.run()
    np.testing.assert_allclose(steps_in_order[-1], expected, rtol=1e-4, atol=1e-5)


def test_a_stack_of_one_serves_all_steps():
    state, rate = np.zeros((1, 2, 5), np.float32), np.full(5, 0.5, np.float32)
    chain = Chain(30)
    chain.kernel(_decay, state, rate, state)
    chain.run()
    np.testing.assert_allclose(state, 2.0)
