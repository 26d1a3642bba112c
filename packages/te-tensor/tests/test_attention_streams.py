"""Attention head after head on one thread gives what blocks give, and holds no scores."""

import numpy as np
import pytest

import te_tensor as te
from te_tensor.ops import attention as ops
from te_tensor.ops._nested import Nested
from te_tensor.ops.attention import Attention

pytestmark = pytest.mark.skipif(te.kernel_info()["kernels"] != "avx512", reason="no AVX-512 here")

BATCH, HEADS, ROWS, COLUMNS, WIDTH = 3, 4, 70, 90, 6
MASK = np.random.default_rng(0).random((BATCH, 1, 1, COLUMNS)) < 0.7
MASK[1] = False  # rows that may attend to nothing
HIDDEN = np.random.default_rng(0).uniform(0, 3, (BATCH, ROWS, COLUMNS))
HIDDEN[HIDDEN > 2.5] = np.inf
OPTIONS = {
    "plain": {},
    "causal": {"causal": True, "offset": 20},
    "mask": {"mask": MASK},
    "additive": {"mask": np.where(MASK, 0.5, -np.inf).astype(np.float32)[0, 0]},
    "bias": {"distance": HIDDEN[0], "slopes": np.linspace(0.1, 2, HEADS)},
    "all": {"distance": HIDDEN, "slopes": np.ones(HEADS), "mask": MASK, "causal": True, "scale": 2},
}


@pytest.fixture(autouse=True)
def _large(monkeypatch):
    te.set_num_threads(1)
    monkeypatch.setattr(ops, "is_small", lambda q, k: False)


def run(kv_heads, options):
    rng = np.random.default_rng(1)
    shapes = [(BATCH, ROWS, HEADS), (BATCH, COLUMNS, kv_heads), (BATCH, COLUMNS, kv_heads)]
    inputs = [
        te.Tensor(rng.standard_normal((*shape[:2], shape[2] * WIDTH), np.float32)).clone().detach()
        for shape in shapes
    ]
    options = dict(options)
    if "slopes" in options:
        options["slopes"] = te.Tensor(options["slopes"], dtype="float32")
        inputs.append(options["slopes"])
    for tensor in inputs:
        tensor.requires_grad = True
    out = te.attention(*inputs[:3], heads=HEADS, kv_heads=kv_heads, **options)
    out.backward(rng.standard_normal(out.shape, np.float32), retain_graph=True)
    out.backward(rng.standard_normal(out.shape, np.float32))
    return [out.numpy(), *(tensor.grad.numpy() for tensor in inputs)]


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_values_and_gradients(name, kv_heads, monkeypatch):
    made = []
    original = Nested.__init__

    def init(self, *args, **options):
        made.append(options["keep"])
        original(self, *args, **options)

    monkeypatch.setattr(Nested, "__init__", init)
    found = run(kv_heads, OPTIONS[name])
    assert made == [False]
    monkeypatch.setattr(Attention, "_streams", lambda *given: False)
    for value, wanted in zip(found, run(kv_heads, OPTIONS[name]), strict=True):
        np.testing.assert_allclose(value, wanted, rtol=2e-4, atol=2e-4)


def test_in_a_shard_as_on_one_thread():
    x = te.Tensor(np.random.default_rng(0).standard_normal((4, 64, 32), np.float32))
    x.requires_grad = True
    results = []
    for threads in (1, 2):
        te.set_num_threads(threads)
        x.grad = None
        y = te.shard(lambda x: te.attention(x, x, x, heads=4, kv_heads=4), x, shards=threads)
        y.sum().backward()
        results.append((y.numpy(), x.grad.numpy()))
    for one, two in zip(*results, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)


def test_threads_that_are_set_in_between_change_nothing():
    rng = np.random.default_rng(0)
    x = te.Tensor(rng.standard_normal((4, 64, 32), np.float32), requires_grad=True)
    grads = []
    for threads in (1, 3):
        te.set_num_threads(1)
        x.grad = None
        y = te.attention(x, x, x, heads=4, kv_heads=4)
        te.set_num_threads(threads)
        y.backward(te.ones_like(y) * x.detach())
        grads.append(x.grad.numpy())
    np.testing.assert_array_equal(*grads)


def test_scores_are_never_held(monkeypatch):
    """All of them would be 64 MB; memory for one head and copies of keys are less than 6."""
    x = te.Tensor(np.ones((16, 256, 256), np.float32), requires_grad=True)
    te.empty_cache()
    before = te.memory_info()["lent"]
    y = te.attention(x, x, x, heads=16, kv_heads=16)
    held = te.memory_info()["lent"] - before - y.nbytes
    assert held < 1 << 20
    y.sum().backward()
    te.empty_cache()


@pytest.mark.parametrize("name", ["mask", "distance"])
def test_what_needs_all_scores_goes_in_blocks(name, monkeypatch):
    monkeypatch.setattr(Nested, "__init__", None)
    x = te.randn(2, 40, 24)
    options = {"mask": te.zeros(40, 40, requires_grad=True)}
    if name == "distance":
        options = {"distance": te.ones(40, 40, requires_grad=True), "slopes": te.ones(4)}
    y = te.attention(x, x, x, heads=4, kv_heads=4, **options)
    y.sum().backward()
    assert options[name].grad is not None
