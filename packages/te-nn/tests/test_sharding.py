"""A large block runs in shards, and that changes nothing but the time it takes."""

import numpy as np
import pytest

import te_nn as nn
import te_tensor as te

B, S, D, F = 4, 64, 64, 256


@pytest.fixture(autouse=True)
def _threads(monkeypatch):
    monkeypatch.setattr("te_nn.transformer._SHARD_FROM", 1 << 20)
    # Recordings share their work out by themselves.
    monkeypatch.setattr("te_nn.transformer.run_recorded", lambda *given: None)
    monkeypatch.setattr("te_nn.transformer.are_recorded", lambda *given: False)
    before = te.get_num_threads()
    yield
    te.set_num_threads(before)


def run(threads, mask, distance):
    """The result and all gradients, with this many threads."""
    te.set_num_threads(threads)
    te.manual_seed(0)
    block = nn.TransformerBlock(D, F, 4, "gaussian")
    rng = np.random.default_rng(0)
    x = te.Tensor(rng.standard_normal((B, S, D)).astype(np.float32), requires_grad=True)
    d = None if distance is None else te.Tensor(distance, dtype="float32", requires_grad=True)
    y = block(x, mask=mask, distance=d)
    upstream = rng.standard_normal(y.shape).astype(np.float32)
    y.backward(upstream)
    leaves = [x, *block.parameters(), *([] if d is None else [d])]
    grads = [None if t.grad is None else t.grad.numpy() for t in leaves]
    return type(y.creator).__name__, [y.numpy(), *grads]


MASKS = {
    "none": None,
    "pairs": np.tril(np.ones((S, S), bool)),
    "padding": (np.arange(S) < np.array([64, 20, 33, 1])[:, None]).reshape(B, 1, 1, S),
    "shared": np.ones((1, 1, S, S), bool),
}
SHAPES = {"none": None, "all": (S, S), "batch": (B, S, S), "one": (1, S, S), "heads": (B, 4, S, S)}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("shape", SHAPES)
def test_threads_change_nothing(mask, shape):
    distance = None
    if SHAPES[shape]:
        distance = np.random.default_rng(1).uniform(0, 2, SHAPES[shape])
    _, alone = run(1, MASKS[mask], distance)
    for threads in (2, 3):
        creator, together = run(threads, MASKS[mask], distance)
        assert creator == "Shard"
        for a, b in zip(alone, together, strict=True):
            assert (a is None) == (b is None)
            assert a is None or np.allclose(a, b, rtol=1e-3, atol=1e-4)


def test_a_small_block_and_a_traced_one_are_whole():
    te.set_num_threads(2)
    block = nn.TransformerBlock(8, 16, 2)
    x = te.randn(2, 3, 8, requires_grad=True)
    assert type(block(x).creator).__name__ == "Linear"
    large = nn.TransformerBlock(D, F, 4)
    with te.trace():
        assert type(large(te.randn(B, S, D)).creator).__name__ == "Linear"
