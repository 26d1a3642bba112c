"""Batch, group and root-mean-square normalization beside PyTorch's, in value and gradient."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

import te_tensor as te

torch.set_num_threads(1)

TOLERANCE = {"float32": {"rtol": 2e-4, "atol": 2e-5}, "float64": {"rtol": 1e-8, "atol": 1e-10}}
OPTIONS = settings(max_examples=40, deadline=None, derandomize=True)
dtypes = st.sampled_from(["float32", "float64"])
affines = st.integers(0, 2)
threads = st.integers(1, 2)
offsets = st.sampled_from([0.0, 0.0, 30.0])


def compare(ours, theirs, x, *affine, dtype):
    """Hold results and gradients equal."""
    arrays = [np.array(a, dtype) for a in (x, *affine)]
    mine = [te.Tensor(a, requires_grad=True) for a in arrays]
    other = [torch.tensor(a, requires_grad=True) for a in arrays]
    result, expected = ours(*mine), theirs(*other)
    np.testing.assert_allclose(result.numpy(), expected.detach().numpy(), **TOLERANCE[dtype])
    grad = np.random.default_rng(7).uniform(-1, 1, result.shape).astype(dtype)
    result.backward(grad)
    expected.backward(torch.from_numpy(grad))
    for place, (a, b) in enumerate(zip(mine, other, strict=True)):
        np.testing.assert_allclose(
            a.grad.numpy(), b.grad.numpy(), **TOLERANCE[dtype], err_msg=f"gradient of input {place}"
        )


def draw(shape, affine, offset=0.0, channels=None, seed=0):
    rng = np.random.default_rng(seed)
    channels = (shape[1],) if channels is None else channels
    return rng.uniform(-2, 3, shape) + offset, *(
        rng.uniform(-1, 1, channels) for _ in range(affine)
    )


shapes = st.tuples(st.integers(2, 5), st.integers(1, 4), st.lists(st.integers(1, 5), max_size=2))


@OPTIONS
@given(shape=shapes, affine=affines, dtype=dtypes, count=threads, offset=offsets)
def test_batch_norm_in_training(shape, affine, dtype, count, offset):
    te.set_num_threads(count)
    shape = (*shape[:2], *shape[2])
    ours_mean, ours_var = te.zeros(shape[1], dtype=dtype), te.ones(shape[1], dtype=dtype)
    mean, var = (torch.tensor(t.numpy().copy()) for t in (ours_mean, ours_var))
    options = {"training": True, "momentum": 0.3, "eps": 1e-2}

    def ours(x, *wb):
        return te.batch_norm(x, ours_mean, ours_var, *wb, **options)

    def theirs(x, *wb):
        return F.batch_norm(x, mean, var, *wb, **options)

    compare(ours, theirs, *draw(shape, affine, offset), dtype=dtype)
    np.testing.assert_allclose(ours_mean.numpy(), mean.numpy(), rtol=1e-5)
    np.testing.assert_allclose(ours_var.numpy(), var.numpy(), rtol=1e-4)


@OPTIONS
@given(shape=shapes, affine=affines, dtype=dtypes)
def test_batch_norm_by_running_statistics(shape, affine, dtype):
    shape = (*shape[:2], *shape[2])
    rng = np.random.default_rng(1)
    mean, var = rng.uniform(-1, 1, shape[1]), rng.uniform(0.1, 2, shape[1])
    compare(
        lambda x, *wb: te.batch_norm(x, te.Tensor(mean), te.Tensor(var), *wb),
        lambda x, *wb: F.batch_norm(
            x, torch.tensor(mean).to(x.dtype), torch.tensor(var).to(x.dtype), *wb
        ),
        *draw(shape, affine),
        dtype=dtype,
    )


@OPTIONS
@given(
    shape=shapes,
    groups=st.integers(1, 3),
    affine=affines,
    dtype=dtypes,
    count=threads,
    offset=offsets,
)
def test_group_norm(shape, groups, affine, dtype, count, offset):
    te.set_num_threads(count)
    shape = (shape[0], 2 * groups * shape[1], *shape[2])
    compare(
        lambda x, *wb: te.group_norm(x, groups, *wb, eps=1e-2),
        lambda x, *wb: F.group_norm(x, groups, *wb, eps=1e-2),
        *draw(shape, affine, offset),
        dtype=dtype,
    )


@OPTIONS
@given(
    shape=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    affine=st.integers(0, 1),
    eps=st.sampled_from([None, 1e-2]),
    dtype=dtypes,
    data=st.data(),
)
def test_rms_norm(shape, affine, eps, dtype, data):
    tail = tuple(shape[-data.draw(st.integers(1, len(shape))) :])
    compare(
        lambda x, *w: te.rms_norm(x, tail, *w, eps=eps),
        lambda x, *w: F.rms_norm(x, tail, *w, eps=eps),
        *draw(tuple(shape), affine, channels=tail),
        dtype=dtype,
    )


@pytest.mark.parametrize("name", ["batch", "group", "rms"])
def test_large(name, threads):
    shape = (6, 8, 60, 40)
    functions = {
        "batch": (
            lambda x, w, b: te.batch_norm(x, None, None, w, b, training=True),
            lambda x, w, b: F.batch_norm(x, None, None, w, b, training=True),
        ),
        "group": (
            lambda x, w, b: te.group_norm(x, 4, w, b),
            lambda x, w, b: F.group_norm(x, 4, w, b),
        ),
        "rms": (
            lambda x, w, b: te.rms_norm(x, (60, 40), w) + b,
            lambda x, w, b: F.rms_norm(x, (60, 40), w, eps=np.finfo("float32").eps) + b,
        ),
    }
    x, w, b = draw(shape, 2, channels=(60, 40) if name == "rms" else (8,))
    compare(*functions[name], x, w, b, dtype="float32")


def test_far_from_zero():
    """Beside the exact result: the mean is 1000 times the spread."""
    x = (np.random.default_rng(0).uniform(-1, 1, (16, 4, 50)) + 1000).astype("float32")
    exact = F.batch_norm(torch.tensor(x.astype("float64")), None, None, training=True).numpy()
    result = te.batch_norm(te.Tensor(x), training=True).numpy()
    np.testing.assert_allclose(result, exact, atol=5e-4)


@pytest.mark.parametrize("affine", [0, 1, 2])
@pytest.mark.parametrize("offset", [0.0, 1.5, 30.0, 1000.0])
def test_large_layer_norm_near_zero_and_far(offset, affine, threads):
    """Beside the exact result, with rows of both kinds, and one that is all alike."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((700, 500)).astype("float32")
    x[::3] += offset
    x[5] = 3.0
    inputs = [x, *rng.standard_normal((affine, 500)).astype("float32")]
    upstream = rng.standard_normal(x.shape).astype("float32")
    ours = [te.Tensor(a, requires_grad=True) for a in inputs]
    exact = [torch.tensor(a.astype("float64"), requires_grad=True) for a in inputs]
    result, expected = (
        te.layer_norm(ours[0], 500, *ours[1:]),
        F.layer_norm(exact[0], (500,), *exact[1:]),
    )
    np.testing.assert_allclose(result.numpy(), expected.detach().numpy(), atol=2e-5)
    result.backward(upstream)
    expected.backward(torch.tensor(upstream.astype("float64")))
    for place, (a, b) in enumerate(zip(ours, exact, strict=True)):
        scale = max(1.0, np.abs(b.grad.numpy()).max())
        error = np.abs(a.grad.numpy() - b.grad.numpy()).max() / scale
        assert error < 5e-6, f"gradient of input {place}"


EXTREMES = np.array(
    [[1e30, 1.0, np.inf, np.nan, 1e-40, 0.0], [-1e30, 2.0, 1.0, 1.0, -1e-40, 0.0]], "float32"
)


def test_extremes():
    pairs = {
        "batch": (
            lambda x: te.batch_norm(x, training=True),
            lambda x: F.batch_norm(x, None, None, training=True),
        ),
        "running": (
            lambda x: te.batch_norm(x, te.zeros(6), te.ones(6)),
            lambda x: F.batch_norm(x, torch.zeros(6), torch.ones(6)),
        ),
        "rms": (lambda x: te.rms_norm(x, 6), lambda x: F.rms_norm(x, (6,))),
        "rms of one": (
            lambda x: te.rms_norm(x.reshape(12, 1), 1),
            lambda x: F.rms_norm(x.reshape(12, 1), (1,)),
        ),
    }
    for name, (ours, theirs) in pairs.items():
        result, expected = ours(te.Tensor(EXTREMES)), theirs(torch.tensor(EXTREMES))
        np.testing.assert_allclose(
            result.numpy(), expected.numpy(), rtol=1e-4, atol=1e-6, err_msg=name
        )
