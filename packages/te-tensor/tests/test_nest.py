"""Nests of machine code: products and kernels for each of many small matrices."""

import numpy as np
import pytest

import te_tensor as te
from te_tensor.machine import Column, Matrix, Nest, Scalar, exponential, kernel

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
