"""Adding into given arrays equals adding afterwards, for every operation that offers it."""

import numpy as np
import pytest

import te_tensor as te

OFFERED = sorted(name for name, op in te.REGISTRY.items() if op.backward_into is not None)
CASES = [(name, i) for name in OFFERED for i in range(len(te.REGISTRY[name].samples))]


def applied(kind, sample):
    operation = kind(*sample.args, **sample.kwargs)
    arrays = sample.arrays()
    operation.needs_grad = tuple(p not in sample.nondiff for p in range(len(arrays)))
    return operation, arrays, operation.forward(*arrays)


def test_products_and_attention_offer_it():
    assert {"Linear", "MatMul", "Attention"} <= set(OFFERED)


@pytest.mark.parametrize(("name", "index"), CASES)
def test_samples(name, index):
    kind = te.REGISTRY[name]
    sample = kind.samples[index]
    rng = np.random.default_rng(0)
    operation, arrays, result = applied(kind, sample)
    results = result if isinstance(result, tuple) else (result,)
    grads = [rng.standard_normal(array.shape) for array in results]
    wanted = operation.backward(*grads)
    operation, arrays, _ = applied(kind, sample)
    start = [rng.standard_normal(a.shape) for a in arrays]
    for chosen in range(len(arrays)):
        outs = [s.copy() if p == chosen else None for p, s in enumerate(start)]
        found = operation.backward_into(*grads, outs=outs)
        for position, (plain, given) in enumerate(zip(wanted, found, strict=True)):
            if plain is None:
                continue
            added = given is outs[position]
            expected = plain + start[position] if added else plain
            np.testing.assert_allclose(given, expected, rtol=1e-10, atol=1e-12)


def graph(q, k, v, w):
    h = q @ w + (q * 2) @ w + te.linear(q, w)
    return te.attention(h, k, v) + te.attention(q, h, h) + te.attention(h, h, h, causal=True)


def test_in_a_graph():
    rng = np.random.default_rng(0)
    leaves = [te.Tensor(rng.standard_normal((2, 3, 5, 4)), requires_grad=True) for _ in range(3)]
    w = te.Tensor(rng.standard_normal((4, 4)), requires_grad=True)
    assert te.gradcheck(graph, [*leaves, w])


def test_nobody_elses_gradient_is_written_to():
    w = te.Tensor(np.eye(3), requires_grad=True)
    x = te.Tensor(np.ones((2, 3)), requires_grad=True)
    h = x * 1.0
    upstream = np.full((2, 3), 2.0)
    kept = upstream.copy()
    (te.linear(h, w) + te.linear(h, w) + h).backward(upstream)
    assert np.array_equal(upstream, kept)
    assert np.array_equal(x.grad.numpy(), 3 * kept)
