"""Attention in float32: nests and kernels give what NumPy's chains give in float64."""

import numpy as np
import pytest

import te_tensor as te
from te_tensor.ops import attention

BATCH, HEADS, WIDTH = 2, 4, 5
#: Rows and columns of a problem made at once, and of one made in blocks.
AT_ONCE, IN_BLOCKS = (9, 21), (150, 130)


def uniform(*shape, seed=0, low=-1.0):
    return np.random.default_rng(seed).uniform(low, 1, shape).astype(np.float32)


def reachable(*shape):
    """Distances, some of which are infinite."""
    distance = uniform(*shape, seed=5, low=0)
    distance[np.random.default_rng(6).random(shape) < 0.2] = np.inf
    return distance


def seen(*shape):
    """A mask that hides a third, and all of the first row or batch."""
    mask = np.random.default_rng(7).random(shape) < 0.7
    mask[0] = False
    return mask


#: Options by name, each made for the rows and columns of a problem.
OPTIONS = {
    "none": lambda s, t: {},
    "causal": lambda s, t: {"causal": True, "offset": 2, "scale": 0.3},
    "keys": lambda s, t: {"mask": seen(BATCH, 1, 1, t)},
    "rows": lambda s, t: {"mask": seen(s, t)},
    "additive": lambda s, t: {"mask": uniform(BATCH, 1, s, t, seed=8)},
    "additive keys": lambda s, t: {
        "mask": np.where(seen(BATCH, 1, 1, t), np.float32(0.5), -np.inf)
    },
    "distance": lambda s, t: {"distance": uniform(s, t, low=0), "bias_function": "gaussian"},
    "batches": lambda s, t: {"distance": reachable(BATCH, s, t), "mask": seen(BATCH, 1, 1, t)},
    "heads": lambda s, t: {
        "distance": reachable(BATCH, HEADS, s, t),
        "bias_function": "alibi",
        "causal": True,
    },
    "per head": lambda s, t: {
        "distance": reachable(s, t),
        "bias_function": ["gaussian", "logarithmic", "logarithmic", "alibi"],
    },
    "rates": lambda s, t: {
        "distance": uniform(BATCH, s, t, low=0),
        "rates": uniform(HEADS, seed=9, low=0.5),
    },
    "strided": lambda s, t: {"distance": uniform(t, s, low=0).T, "bias_function": "alibi"},
}


def attend(options, size, kv_heads, dtype, learnt, joined):
    """The result of attention, and the gradients of what is learnt."""
    rows, columns = size
    lengths = {"q": (HEADS, rows), "k": (kv_heads, columns), "v": (kv_heads, columns)}
    given = {}
    for seed, (name, (heads, length)) in enumerate(lengths.items()):
        given[name] = 2 * uniform(BATCH, length, heads, WIDTH, seed=seed)
        if joined:
            given[name] = given[name].reshape(BATCH, length, heads * WIDTH)
        else:
            given[name] = np.ascontiguousarray(given[name].transpose(0, 2, 1, 3))
    options = OPTIONS[options](rows, columns)
    if "distance" in options:
        given["slopes"] = uniform(1, HEADS, 1, 1, seed=4)
    for name in ("distance", "mask", "rates"):
        if name in options and options[name].dtype == np.float32:
            given[name] = options.pop(name)
    tensors = {
        name: te.Tensor(array.astype(dtype), requires_grad=name in learnt)
        for name, array in given.items()
    }
    if joined:
        options |= {"heads": HEADS, "kv_heads": kv_heads}
    result = te.attention(**tensors, **options)
    kind = type(result.creator.saved[0]).__name__
    result.backward(te.Tensor(uniform(*result.shape, seed=10).astype(dtype)))
    gradients = {name: t.grad.numpy() for name, t in tensors.items() if t.requires_grad}
    return kind, {"result": result.numpy(), **gradients}


@pytest.mark.parametrize("learnt", [("q", "k", "v", "slopes"), None], ids=["usual", "all"])
@pytest.mark.parametrize("kv_heads", [HEADS, 2])
@pytest.mark.parametrize("size", [AT_ONCE, IN_BLOCKS], ids=["at once", "in blocks"])
@pytest.mark.parametrize("options", OPTIONS)
def test_kernels_give_what_chains_give(options, size, kv_heads, learnt):
    learnt = learnt or ("q", "k", "v", "slopes", "distance", "mask", "rates")
    expected_kind = "Nested" if te.kernel_info()["kernels"] == "avx512" else "AtOnce"
    joined = kv_heads == HEADS
    kind, found = attend(options, size, kv_heads, np.float32, learnt, joined)
    assert kind == (expected_kind if size == AT_ONCE else "Work")
    kind, expected = attend(options, size, kv_heads, np.float64, learnt, joined)
    assert kind == ("AtOnce" if size == AT_ONCE else "Work")
    assert found.keys() == expected.keys()
    for name, array in found.items():
        scale = np.abs(expected[name]).max() + 1e-3
        np.testing.assert_allclose(array / scale, expected[name] / scale, atol=2e-5, err_msg=name)


@pytest.mark.parametrize("size", [AT_ONCE, IN_BLOCKS], ids=["at once", "in blocks"])
def test_scores_of_any_height(size):
    """Where e to their power is inf or 0, and where a row has no more than -inf."""
    rows, columns = size
    v = uniform(1, HEADS, columns, WIDTH)
    mask = np.zeros((rows, columns), np.float32)
    mask[0], mask[1], mask[2, ::2] = -np.inf, 3e4, -3e4
    q = np.full((1, HEADS, rows, 1), 200, np.float32)
    k = np.full((1, HEADS, columns, 1), 300, np.float32)
    out = te.attention(q, k, v, mask=mask).numpy()
    means = v.mean(axis=2, keepdims=True)
    assert (out[:, :, 0] == 0).all()
    np.testing.assert_allclose(
        out[:, :, [1, 3]], np.broadcast_to(means, out[:, :, [1, 3]].shape), atol=1e-5
    )
    np.testing.assert_allclose(out[:, :, 2], v[:, :, 1::2].mean(axis=2), atol=1e-5)


@pytest.mark.parametrize("size", [AT_ONCE, IN_BLOCKS], ids=["at once", "in blocks"])
def test_what_is_not_a_number_stays_in_its_rows(size):
    q, k, v = (uniform(1, 2, n, WIDTH, seed=i) for i, n in enumerate((size[0], size[1], size[1])))
    q[0, 1, 3, 2] = np.nan
    out = te.attention(q, k, v).numpy()
    rows = np.isnan(out).any(axis=-1)
    assert rows[0, 1, 3] and rows.sum() == 1


def test_few_scores_are_left_to_numpy(monkeypatch):
    monkeypatch.setattr("te_tensor.ops._nested._LEAST_SCORES", 1 << 14)
    arrays = [uniform(2, 8, 32, 4, seed=i) for i in range(3)]
    assert attention.nests(*arrays) == (te.kernel_info()["kernels"] == "avx512")
    assert not attention.nests(*(a[:, :, :31] for a in arrays))
