"""Attention against the formula written out in float64, and its blocks, threads and memory."""

import subprocess
import sys
import textwrap

import numpy as np
import pytest

import te_tensor as te
from te_tensor.ops import _in_blocks
from te_tensor.ops import attention as module

PHI = {
    "logarithmic": (np.log1p, lambda d: 1 / (1 + d)),
    "gaussian": (np.square, lambda d: 2 * d),
}


def reference(
    q, k, v, grad, *, mask=None, causal=False, distance=None, slopes=None,
    bias_function="logarithmic", scale=None,
):  # fmt: skip
    """softmax(scale·q·kᵀ + mask - slopes·phi(D))·v and its gradients, all scores at once."""
    wide = {"q": q, "k": k, "v": v, "grad": grad}
    q, k, v, grad = (np.asarray(a, np.float64) for a in wide.values())
    (batch, heads, rows, width), (key_heads, columns) = q.shape, k.shape[1:3]
    group = heads // key_heads
    all_k, all_v = (np.repeat(a, group, axis=1) for a in (k, v))
    scale = width**-0.5 if scale is None else scale
    full = (batch, heads, rows, columns)
    scores = scale * q @ all_k.swapaxes(-1, -2)
    allowed = np.ones(full, bool)
    if mask is not None:
        mask = np.asarray(mask)
        if mask.dtype == bool:
            allowed &= mask
        else:
            with np.errstate(invalid="ignore"):
                scores = scores + mask.astype(np.float64)
    if causal:
        allowed &= np.arange(columns) <= np.arange(rows)[:, None]
    if distance is not None:
        distance = np.asarray(distance, np.float64)
        spread = distance[:, None] if distance.ndim == 3 else distance
        spread = np.broadcast_to(spread, full)
        allowed &= np.isfinite(spread)
        finite = np.where(np.isfinite(spread), spread, 0)
        phi, derivative = (f(finite) for f in PHI[bias_function])
        factors = np.asarray(slopes, np.float64).reshape(1, heads, 1, 1)
        scores = scores - factors * phi
    scores = np.where(allowed, scores, -np.inf)
    top = scores.max(-1, keepdims=True, initial=-np.inf)
    weights = np.exp(scores - np.where(np.isinf(top), 0, top))
    total = weights.sum(-1, keepdims=True)
    weights = weights / np.where(total == 0, 1, total)
    out = weights @ all_v
    to_weights = grad @ all_v.swapaxes(-1, -2)
    to_scores = weights * (to_weights - (weights * to_weights).sum(-1, keepdims=True))

    def by_key(array):
        return array.reshape(batch, key_heads, group, *array.shape[2:]).sum(2)

    grads = {
        "q": scale * to_scores @ all_k,
        "k": by_key(scale * to_scores.swapaxes(-1, -2) @ q),
        "v": by_key(weights.swapaxes(-1, -2) @ grad),
    }
    if mask is not None and mask.dtype != bool:
        grads["mask"] = _sum_to(to_scores, mask.shape)
    if distance is not None:
        grads["slopes"] = -(to_scores * phi).sum((0, 2, 3)).reshape(np.shape(slopes))
        inner = -factors * to_scores * derivative
        if distance.ndim == 3:
            grads["distance"] = _sum_to(inner.sum(1), distance.shape)
        else:
            grads["distance"] = _sum_to(inner, distance.shape)
    return out, grads


def _sum_to(array, shape):
    array = array.sum(tuple(range(array.ndim - len(shape))))
    return array.sum(tuple(a for a, n in enumerate(shape) if n == 1), keepdims=True)


def check(q, k, v, *, mask=None, distance=None, slopes=None, rtol=None, **options):
    """Hold output and every gradient to the reference; returns the gradients."""
    arrays = {"q": q, "k": k, "v": v, "mask": mask, "distance": distance, "slopes": slopes}
    tensors = {}
    for name, array in arrays.items():
        if array is not None:
            tensors[name] = te.as_tensor(array)
            tensors[name].requires_grad = array.dtype != bool
    result = te.attention(**tensors, **options)
    grad = np.random.default_rng(9).uniform(-1, 1, result.shape).astype(q.dtype)
    result.backward(grad)
    extra = {n: a for n, a in arrays.items() if n not in "qkv" and a is not None}
    expected, grads = reference(q, k, v, grad, **extra, **options)
    rtol = rtol or (1e-10 if q.dtype == np.float64 else 2e-4)
    assert result.dtype == q.dtype
    np.testing.assert_allclose(result.numpy(), expected, rtol=rtol, atol=rtol / 10)
    for name, wanted in grads.items():
        got = tensors[name].grad.numpy()
        assert got.shape == arrays[name].shape
        scale = max(1.0, float(np.abs(wanted).max(initial=0)))
        np.testing.assert_allclose(
            got, wanted, rtol=rtol, atol=rtol * scale / 10, err_msg=f"gradient of {name}"
        )
    return {name: tensors[name].grad.numpy() for name in grads} | {"out": result.numpy()}


def draw(*shape, seed=0, low=-1.0, high=1.0, dtype="float64"):
    return np.random.default_rng(seed).uniform(low, high, shape).astype(dtype)


def qkv(batch=2, heads=2, rows=5, columns=7, width=4, *, key_heads=None, out=None, dtype="float64"):
    key_heads = heads if key_heads is None else key_heads
    return (
        draw(batch, heads, rows, width, dtype=dtype),
        draw(batch, key_heads, columns, width, seed=1, dtype=dtype),
        draw(batch, key_heads, columns, out or width, seed=2, dtype=dtype),
    )


SIZES = {
    "one": (1, 1, 1, 1, 1),
    "one row": (2, 3, 1, 7, 4),
    "one column": (2, 3, 7, 1, 4),
    "odd": (3, 5, 7, 9, 3),
    "square": (2, 2, 6, 6, 4),
    "tall": (1, 2, 33, 5, 4),
    "wide": (1, 2, 5, 33, 4),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_sizes(size, causal, dtype):
    check(*qkv(*SIZES[size], dtype=dtype), causal=causal)


@pytest.mark.parametrize("heads", [(4, 2), (4, 1), (6, 3), (3, 3)])
@pytest.mark.parametrize("bias", [False, True])
def test_grouped_heads(heads, bias):
    extra = {"distance": draw(2, heads[0], 5, 7, low=0, high=3, seed=3),
             "slopes": draw(heads[0], seed=4)} if bias else {}  # fmt: skip
    check(*qkv(heads=heads[0], key_heads=heads[1]), **extra)


@pytest.mark.parametrize("out", [1, 3, 9])
def test_values_of_another_width(out):
    check(*qkv(out=out))


@pytest.mark.parametrize("scale", [0.3, 1.0, 0.0, -0.5, 2])
def test_scale(scale):
    check(*qkv(), scale=scale)


def test_heads_inside_rows():
    # (B, S, H, d) as projections leave it: read and written in place
    q, k, v = (draw(2, s, 3, 4, seed=i).transpose(0, 2, 1, 3) for i, s in enumerate((5, 7, 7)))
    check(q, k, v, distance=draw(5, 7, low=0, seed=3), slopes=draw(3, seed=4))
    out = te.attention(q, k, v)
    assert out.numpy().transpose(0, 2, 1, 3).flags.c_contiguous  # laid out as q is


@pytest.mark.parametrize(
    "turn", [np.s_[..., ::2], np.s_[..., ::-1], np.s_[:, ::-1], np.s_[:, :, ::2]]
)
def test_strided_inputs(turn):
    check(*(draw(2, 4, 6, 8, seed=i)[turn] for i in range(3)))


@pytest.mark.parametrize("which", ["q", "k", "v", "qkv"])
def test_inputs_whose_columns_are_rows_in_memory(which):
    arrays = [
        a.swapaxes(-1, -2).copy().swapaxes(-1, -2) if name in which else a
        for name, a in zip("qkv", qkv(heads=4, key_heads=2), strict=True)
    ]
    check(*arrays, distance=draw(5, 7, low=0, seed=3), slopes=draw(4, seed=4))
    assert te.attention(*arrays).numpy().strides[-1] == (40 if "q" in which else 8)


def test_repeated_inputs():
    q, k, v = (np.broadcast_to(draw(1, 1, 5, 4, seed=i), (2, 3, 5, 4)) for i in range(3))
    check(q, k, v)


@pytest.mark.parametrize("sizes", [(0, 2, 3, 4), (2, 0, 3, 4), (2, 2, 0, 4), (2, 2, 3, 0)], ids=str)
def test_nothing(sizes):
    batch, heads, rows, columns = sizes
    if heads == 0:
        with pytest.raises(ValueError, match="K divides H"):
            te.attention(*map(te.Tensor, qkv(batch, heads, rows, columns)))
        return
    check(*qkv(batch, heads, rows, columns))


# -- masks --------------------------------------------------------------------------------

MASK_SHAPES = [(5, 7), (1, 7), (5, 1), (1, 1, 5, 7), (2, 1, 1, 7), (2, 1, 5, 7), (1, 4, 5, 7),
               (2, 4, 5, 7), (1, 1, 1, 7), (2, 4, 1, 7), (2, 1, 5, 1), (1, 1, 1, 1)]  # fmt: skip


@pytest.mark.parametrize("key_heads", [4, 2])
@pytest.mark.parametrize("shape", MASK_SHAPES, ids=str)
def test_boolean_masks(shape, key_heads):
    mask = np.random.default_rng(5).random(shape) < 0.6
    check(*qkv(heads=4, key_heads=key_heads), mask=mask)


@pytest.mark.parametrize("key_heads", [4, 2])
@pytest.mark.parametrize("shape", MASK_SHAPES, ids=str)
def test_additive_masks(shape, key_heads, threads):
    check(*qkv(heads=4, key_heads=key_heads), mask=draw(*shape, low=-3, high=3, seed=5))


def test_additive_masks_with_infinity():
    mask = np.where(np.random.default_rng(5).random((2, 1, 5, 7)) < 0.6, 0.0, -np.inf)
    mask[0, 0, 2] = -np.inf
    grads = check(*qkv(heads=4), mask=mask)
    assert not grads["mask"][np.isinf(mask)].any()


@pytest.mark.parametrize("kind", ["boolean", "additive", None])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("bias", ["logarithmic", "gaussian", None])
@pytest.mark.parametrize("sizes", [(5, 7), (7, 5), (6, 6)])
def test_combinations(kind, causal, bias, sizes):
    rows, columns = sizes
    extra = {}
    if kind == "boolean":
        extra["mask"] = np.random.default_rng(5).random((2, 1, 1, columns)) < 0.7
    elif kind == "additive":
        extra["mask"] = draw(rows, columns, low=-2, seed=5)
    if bias:
        distance = draw(2, rows, columns, low=0, high=3, seed=6)
        distance[np.random.default_rng(7).random(distance.shape) < 0.2] = np.inf
        extra |= {"distance": distance, "slopes": draw(1, 2, 1, 1, seed=8), "bias_function": bias}
    check(*qkv(rows=rows, columns=columns), causal=causal, **extra)


# -- distances ----------------------------------------------------------------------------

DISTANCES = [(5, 7), (2, 5, 7), (1, 5, 7), (2, 4, 5, 7), (1, 4, 5, 7), (2, 1, 5, 7), (1, 1, 5, 7)]


@pytest.mark.parametrize("bias_function", PHI)
@pytest.mark.parametrize("infinite", [False, True])
@pytest.mark.parametrize("shape", DISTANCES, ids=str)
def test_distances(shape, infinite, bias_function, threads):
    distance = draw(*shape, low=0, high=3, seed=3)
    if infinite:
        distance[np.random.default_rng(4).random(shape) < 0.3] = np.inf
    grads = check(
        *qkv(heads=4),
        distance=distance,
        slopes=draw(1, 4, 1, 1, low=0.1, seed=5),
        bias_function=bias_function,
    )
    assert not grads["distance"][np.isinf(distance)].any()


@pytest.mark.parametrize("slopes", [[0.0, 0.0], [-1.0, 0.5], [0.0, 3.0], [-2.0, -3.0]])
@pytest.mark.parametrize("bias_function", PHI)
def test_slopes_of_any_sign(slopes, bias_function):
    distance = draw(5, 7, low=0, high=2, seed=3)
    distance[1, 2] = np.inf
    check(*qkv(), distance=distance, slopes=np.array(slopes), bias_function=bias_function)


def test_distance_zero():
    check(*qkv(), distance=np.zeros((5, 7)), slopes=np.array([1.0, 2.0]))


@pytest.mark.parametrize("shape", [(5, 7), (2, 5, 7), (2, 2, 5, 7)], ids=str)
@pytest.mark.parametrize("bias_function", PHI)
def test_large_finite_distances_count_as_out_of_reach(shape, bias_function):
    # d² overflows float32; neither the output nor a gradient may turn NaN
    distance = draw(*shape, low=0, high=2, seed=3, dtype="float32")
    distance[..., 2:4] = 1e25
    q, k, v = qkv(dtype="float32")
    tensors = [te.Tensor(a, requires_grad=True)
               for a in (q, k, v, distance, np.array([1.0, 4.0], "float32"))]  # fmt: skip
    *parts, d, s = tensors
    out = te.attention(*parts, distance=d, slopes=s, bias_function=bias_function)
    out.sum().backward()
    assert np.isfinite(out.numpy()).all()
    for t in tensors:
        assert np.isfinite(t.grad.numpy()).all()


def test_distance_and_mask_take_the_dtype_of_q():
    q, k, v = qkv(dtype="float32")
    distance = te.Tensor(draw(5, 7, low=0), requires_grad=True)
    mask = te.Tensor(draw(5, 7), requires_grad=True)
    out = te.attention(q, k, v, distance=distance, slopes=np.array([1, 2]), mask=mask)
    assert out.dtype == te.float32
    out.sum().backward()
    assert distance.grad.dtype == mask.grad.dtype == te.float64


def test_integer_distances():
    q, k, v = qkv(rows=4, columns=4)
    hops = np.abs(np.arange(4) - np.arange(4)[:, None])
    a = te.attention(q, k, v, distance=hops, slopes=np.ones(2))
    b = te.attention(q, k, v, distance=hops.astype(float), slopes=np.ones(2))
    np.testing.assert_array_equal(a.numpy(), b.numpy())


# -- rows that may attend to nothing ------------------------------------------------------


def _dead(kind, rows, columns):
    if kind == "boolean":
        mask = np.ones((2, 1, rows, columns), bool)
        mask[0, 0, 1:3] = False
        return {"mask": mask}
    if kind == "additive":
        mask = np.zeros((2, 1, rows, columns))
        mask[0, 0, 1:3] = -np.inf
        return {"mask": mask}
    distance = draw(2, rows, columns, low=0, seed=3)
    distance[0, 1:3] = np.inf
    return {"distance": distance, "slopes": np.array([1.0, -0.5])}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kind", ["boolean", "additive", "distance"])
def test_dead_rows_give_zeros_and_zero_gradients(kind, causal, dtype):
    extra = {n: a if a.dtype == bool else a.astype(dtype) for n, a in _dead(kind, 5, 5).items()}
    grads = check(*qkv(rows=5, columns=5, dtype=dtype), causal=causal, **extra)
    assert not grads["out"][0, :, 1:3].any()
    assert not grads["q"][0, :, 1:3].any()
    for name in ("mask", "distance"):
        if name in grads:
            assert not grads[name][0, ..., 1:3, :].any()
    assert all(np.isfinite(g).all() for g in grads.values())


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_everything_dead(dropout):
    tensors = [te.Tensor(a, requires_grad=True) for a in qkv()]
    out = te.attention(*tensors, mask=np.zeros((5, 7), bool), dropout=dropout)
    out.sum().backward()
    assert not out.numpy().any()
    for t in tensors:
        assert not t.grad.numpy().any()


def test_dead_columns_get_no_gradient():
    mask = np.array([True, True, False, True, False, True, True])
    grads = check(*qkv(), mask=mask[None])
    for name in "kv":
        assert not grads[name][:, :, ~mask].any()


def test_scores_far_apart():
    q, k, v = qkv(dtype="float32")
    grads = check(q * 300, k * 300, v, rtol=2e-2, scale=1.0)
    assert np.isfinite(grads["out"]).all()


# -- blocks and threads -------------------------------------------------------------------

LARGE = {
    "several blocks": {"batch": 1, "heads": 3, "rows": 700, "columns": 700},
    "several blocks, uneven": {"batch": 1, "heads": 3, "rows": 650, "columns": 901},
    "many heads to a block": {"batch": 70, "heads": 8, "rows": 29, "columns": 29},
    "one long head": {"batch": 1, "heads": 1, "rows": 1100, "columns": 300},
    "grouped": {"batch": 2, "heads": 6, "rows": 310, "columns": 290, "key_heads": 2},
    "grouped, long": {"batch": 1, "heads": 4, "rows": 600, "columns": 600, "key_heads": 2},
}


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("size", LARGE)
def test_blocks(size, causal, threads):
    check(*qkv(width=8, dtype="float32", **LARGE[size]), causal=causal, rtol=1e-3)


@pytest.mark.parametrize("shape", ["ST", "BST", "BHST", "1HST"])
@pytest.mark.parametrize("size", ["several blocks", "many heads to a block", "grouped"])
def test_blocks_with_distances(size, shape, threads):
    sizes = LARGE[size]
    letters = {"B": "batch", "H": "heads", "S": "rows", "T": "columns"}
    axes = [sizes[letters[c]] if c in letters else 1 for c in shape]
    distance = draw(*axes, low=0, high=4, seed=3, dtype="float32")
    distance[..., 3:9] = np.inf
    slopes = draw(sizes["heads"], seed=4, low=0.1, dtype="float32")
    check(*qkv(width=8, dtype="float32", **sizes), distance=distance, slopes=slopes, rtol=2e-3)


@pytest.mark.parametrize("shape", ["11ST", "B11T", "BH1T", "BHST", "111T", "B1S1"])
@pytest.mark.parametrize("size", ["several blocks", "many heads to a block"])
def test_blocks_with_additive_masks(size, shape, threads):
    sizes = LARGE[size]
    letters = {"B": "batch", "H": "heads", "S": "rows", "T": "columns"}
    axes = [sizes[letters[c]] if c in letters else 1 for c in shape]
    mask = draw(*axes, seed=3, dtype="float32")
    check(*qkv(width=8, dtype="float32", **sizes), mask=mask, causal=True, rtol=2e-3)


def test_blocks_are_as_small_as_they_say(monkeypatch):
    # A tiny block goes through every way of cutting the work.
    monkeypatch.setattr(_in_blocks, "_BLOCK", 64)
    monkeypatch.setattr(_in_blocks, "_PARALLEL_FROM", 0)
    for count in (1, 2, 3):
        te.set_num_threads(count)
        for heads, key_heads in ((4, 4), (4, 2), (3, 1)):
            distance = draw(2, heads, 37, 41, low=0, seed=3)
            distance[distance > 0.9] = np.inf
            check(
                *qkv(heads=heads, key_heads=key_heads, rows=37, columns=41),
                distance=distance,
                slopes=draw(heads, seed=5),
                mask=draw(2, 1, 37, 41, seed=6),
                causal=True,
            )


@pytest.mark.parametrize("needed", ["q", "k", "v", "mask", "distance", "slopes"])
def test_a_gradient_for_one_input_alone(needed):
    arrays = dict(zip("qkv", qkv(), strict=True)) | {
        "mask": draw(5, 7, seed=3),
        "distance": draw(5, 7, low=0, seed=4),
        "slopes": np.array([0.5, 1.0]),
    }
    tensors = {n: te.Tensor(a, requires_grad=n == needed) for n, a in arrays.items()}
    te.attention(**tensors).backward(np.ones((2, 2, 5, 4)))
    _, grads = reference(grad=np.ones((2, 2, 5, 4)), **arrays)
    for name, tensor in tensors.items():
        if name == needed:
            np.testing.assert_allclose(tensor.grad.numpy(), grads[name], atol=1e-12)
        else:
            assert tensor.grad is None


@pytest.mark.parametrize("shape", [None, "11ST", "B11T", "111T", "distance ST", "distance BST"])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_the_same_thread_count_gives_the_same_bits(shape, dropout, threads):
    sizes = {"batch": 2, "heads": 4, "rows": 300, "columns": 600}
    extra = {}
    if shape and shape.startswith("distance"):
        lead = (2,) if "B" in shape else ()
        extra = {"distance": draw(*lead, 300, 600, low=0, dtype="float32"),
                 "slopes": draw(4, dtype="float32")}  # fmt: skip
    elif shape:
        axes = [{"B": 2, "S": 300, "T": 600, "1": 1}[c] for c in shape]
        extra = {"mask": draw(*axes, dtype="float32")}
    arrays = dict(zip("qkv", qkv(**sizes, dtype="float32"), strict=True)) | extra
    results = []
    for _ in range(5):
        te.manual_seed(3)
        tensors = {n: te.Tensor(a, requires_grad=True) for n, a in arrays.items()}
        out = te.attention(**tensors, dropout=dropout)
        out.backward(np.ones(out.shape))
        results.append([out.numpy(), *(t.grad.numpy() for t in tensors.values())])
    for other in results[1:]:
        for name, a, b in zip(["out", *arrays], results[0], other, strict=True):
            np.testing.assert_array_equal(a, b, err_msg=name)


def test_a_backward_on_another_number_of_threads():
    te.set_num_threads(3)
    arrays = qkv(width=8, dtype="float32", **LARGE["several blocks"])
    tensors = [te.Tensor(a, requires_grad=True) for a in arrays]
    out = te.attention(*tensors)
    te.set_num_threads(1)
    out.backward(np.ones(out.shape))
    _, grads = reference(*arrays, np.ones(out.shape))
    for name, t in zip("qkv", tensors, strict=True):
        np.testing.assert_allclose(t.grad.numpy(), grads[name], rtol=2e-3, atol=2e-4)


# -- dropout ------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_agrees_in_forward_and_backward(p, threads):
    def f(q, k, v, distance, slopes):
        te.manual_seed(4)
        return te.attention(q, k, v, distance=distance, slopes=slopes, dropout=p, causal=True)

    arrays = [*qkv(), draw(2, 5, 7, low=0.1), draw(2, seed=4)]
    assert te.gradcheck(f, [te.Tensor(a, requires_grad=True) for a in arrays])


def test_dropout_agrees_over_several_blocks(monkeypatch):
    monkeypatch.setattr(_in_blocks, "_BLOCK", 64)
    monkeypatch.setattr(_in_blocks, "_PARALLEL_FROM", 0)
    te.set_num_threads(2)

    def f(q, k, v):
        te.manual_seed(4)
        return te.attention(q, k, v, dropout=0.4)

    arrays = qkv(heads=4, key_heads=2, rows=37, columns=41)
    assert te.gradcheck(f, [te.Tensor(a, requires_grad=True) for a in arrays])


def test_dropout_keeps_the_expectation():
    q, k, v = map(te.Tensor, qkv(batch=1, rows=3))
    exact = te.attention(q, k, v).numpy()
    mean = sum(te.attention(q, k, v, dropout=0.4).numpy() for _ in range(3000)) / 3000
    np.testing.assert_allclose(mean, exact, atol=0.05)


def test_dropout_drops_the_share_it_names():
    # v of ones: a row's result is the sum of its kept weights, equal ones here
    q, k = (te.zeros(8, 4, 50, 4) for _ in "qk")
    out = te.attention(q, k, te.ones(8, 4, 50, 1), dropout=0.25).numpy() * 0.75
    assert abs(out.mean() - 0.75) < 0.01
    assert out.std() == pytest.approx((0.25 * 0.75 / 50) ** 0.5, rel=0.1)


def test_dropout_differs_between_calls_heads_and_rows():
    q, k, v = (te.ones(2, 3, 20, 4) for _ in range(3))
    first, second = (te.attention(q, k, v, dropout=0.5).numpy() for _ in range(2))
    assert (first != second).any()
    lines = first[..., 0].reshape(6, 20)
    assert len({line.tobytes() for line in lines}) == 6


def test_dropout_of_everything_and_nothing():
    q, k, v = (te.Tensor(a, requires_grad=True) for a in qkv())
    np.testing.assert_array_equal(
        te.attention(q, k, v, dropout=0.0).numpy(), te.attention(q, k, v).numpy()
    )
    out = te.attention(q, k, v, dropout=1.0)
    assert not out.numpy().any()
    out.sum().backward()
    assert not v.grad.numpy().any()


def test_dropout_follows_the_generator():
    q, k, v = map(te.Tensor, qkv())
    a = te.attention(q, k, v, dropout=0.5, generator=te.Generator(3)).numpy()
    b = te.attention(q, k, v, dropout=0.5, generator=te.Generator(3)).numpy()
    with te.use_generator(te.Generator(3)):
        c = te.attention(q, k, v, dropout=0.5).numpy()
    np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(a, c)


# -- memory -------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_scores_are_never_held():
    pytest.importorskip("resource")
    code = """
        import resource, sys
        import numpy as np
        import te_tensor as te
        te.set_num_threads(2)
        def peak():
            unit = 1 if sys.platform == "darwin" else 1024
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        q, k, v = (te.randn(1, 8, 4096, 64, requires_grad=True) for _ in range(3))
        distance = te.rand(4096, 4096)
        slopes = te.ones(8, requires_grad=True)
        small = [t[:, :, :64].detach() for t in (q, k, v)]
        te.attention(*small, causal=True)  # loads what is needed once
        before = peak()
        te.attention(q, k, v, distance=distance, slopes=slopes).backward(
            np.ones((1, 8, 4096, 64), np.float32)
        )
        print(peak() - before)
    """
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
    )
    grown = int(ran.stdout)
    # All scores would be 512 MiB. Held are q, k and v's gradients, twice for two threads, the
    # output (8 MiB each), phi of the shared distance (64 MiB), and a block per thread.
    assert grown < 200 * 2**20, f"peak memory grew by {grown / 2**20:.0f} MiB"


@pytest.mark.parametrize("factor", [0.1, 30.0, 1e4])
@pytest.mark.parametrize("hidden", ["none", "columns", "rows", "all"])
def test_at_once_and_in_blocks_agree(factor, hidden, monkeypatch):
    arrays = [factor * draw(2, heads, n, 3, seed=n) for heads, n in ((4, 5), (2, 7), (2, 7))]
    mask = np.zeros((2, 1, 5, 7))
    place = {"none": [], "columns": [..., [2, 3]], "rows": [0, ..., [1, 4], slice(None)]}
    mask[tuple(place[hidden]) if hidden in place else ...] = 0 if hidden == "none" else -np.inf
    options = {"causal": True, "distance": draw(5, 7, low=0.0), "slopes": draw(4, low=0.5)}
    found = []
    for small in (True, False):
        monkeypatch.setattr(module, "is_small", lambda q, k, small=small: small)
        tensors = [te.Tensor(array, requires_grad=True) for array in (*arrays, mask)]
        q, k, v, additive = tensors
        result = te.attention(q, k, v, mask=additive, **options)
        result.backward(draw(*result.shape, seed=2))
        found.append([result.numpy(), *(tensor.grad.numpy() for tensor in tensors)])
    for at_once, in_blocks in zip(*found, strict=True):
        np.testing.assert_allclose(at_once, in_blocks, rtol=1e-6, atol=1e-8 * factor)
