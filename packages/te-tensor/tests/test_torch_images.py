"""Machine code for images beside PyTorch: convolution, pooling and the norms of channels.

Inputs are small whole numbers, of which sums are exact: results are equal, not only close.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

import te_tensor as te
from te_tensor.ops import _direct, _units, convolution

torch.set_num_threads(1)

QUICK = settings(derandomize=True, deadline=None, database=None, max_examples=60)


def whole_numbers(shape, seed=0, most=3):
    return np.random.default_rng(seed).integers(-most, most + 1, shape).astype("f4")


def in_lanes(x):
    """The same numbers, the batch innermost in memory."""
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 0, -1)), -1, 0)


def same(ours, theirs, *arrays, exact=True):
    """The same values and gradients from both; PyTorch's in float64."""
    mine = [te.as_tensor(a) for a in arrays]
    other = [torch.from_numpy(np.array(a, "f8", order="C")) for a in arrays]
    for a, b in zip(mine, other, strict=True):
        a.requires_grad = True
        b.requires_grad_()
    result, expected = ours(*mine), theirs(*other)
    assert result.dtype == te.float32
    grad = whole_numbers(result.shape, seed=1)
    result.backward(grad)
    expected.backward(torch.from_numpy(grad.astype("f8")))
    check = np.testing.assert_array_equal
    if not exact:
        check = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)  # noqa: E731
    check(result.numpy(), expected.detach().numpy())
    for a, b in zip(mine, other, strict=True):
        check(a.grad.numpy(), b.grad.numpy())


@st.composite
def convolutions(draw):
    """Shapes of x and weight, options, and how the work is to be cut."""

    def pair(least, most):
        return draw(st.integers(least, most)), draw(st.integers(least, most))

    groups = draw(st.sampled_from([1, 1, 2]))
    kernel, dilation, padding = pair(1, 4), pair(1, 2), pair(0, 5)
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    most = 8, draw(st.sampled_from([6, 40, 90]))
    lengths = [
        max(1, span - 2 * end) + draw(st.integers(0, more))
        for span, end, more in zip(spans, padding, most, strict=True)
    ]
    x = draw(st.sampled_from([1, 2, 3, 17])), groups * draw(st.integers(1, 4)), *lengths
    weight = groups * draw(st.integers(2, 8)), x[1] // groups, *kernel
    options = {"padding": padding, "dilation": dilation, "groups": groups}
    return x, weight, options, draw(st.booleans()), draw(st.sampled_from([60, 1 << 18]))


@QUICK
@given(convolutions())
def test_convolution(drawn):
    x, weight, options, lanes, block = drawn
    arrays = [whole_numbers(shape, seed) for seed, shape in enumerate((x, weight, weight[:1]))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convolution, "_is_small", lambda *_: lanes)
        patch.setattr(_direct, "_BLOCK", block)
        patch.setattr(_units, "_PARALLEL_FROM", 1)
        _direct.layout_of.cache_clear()  # it remembers how work was cut
        same(lambda *a: te.conv2d(*a, **options), lambda *a: F.conv2d(*a, **options), *arrays)
    _direct.layout_of.cache_clear()


@pytest.mark.parametrize(
    ("x", "weight", "options"),
    [
        ((2, 5, 9, 75), (20, 5, 3, 3), {"padding": 1}),
        ((2, 8, 14, 14), (13, 8, 3, 3), {"padding": 1}),  # a power of two from channel to channel
        ((1, 4, 16, 32), (8, 4, 1, 1), {}),
        ((29, 3, 6, 6), (16, 3, 3, 3), {"padding": 1}),
        ((32, 40, 4, 4), (60, 40, 3, 3), {"padding": 1}),  # more weights than are few
        ((2, 6, 20, 21), (4, 3, 5, 5), {"padding": 6, "groups": 2}),
    ],
)
def test_images_are_read_directly(x, weight, options, threads, monkeypatch):
    if te.kernel_info()["kernels"] != "avx512":
        pytest.skip("only AVX-512 code reads images directly")
    calls = []
    correlation = _direct.correlation
    monkeypatch.setattr(_direct, "correlation", lambda *a: (calls.append(a), correlation(*a))[1])
    arrays = [whole_numbers(shape, seed) for seed, shape in enumerate((x, weight, weight[:1]))]
    same(lambda *a: te.conv2d(*a, **options), lambda *a: F.conv2d(*a, **options), *arrays)
    assert calls


@pytest.mark.parametrize("lanes", [False, True])
def test_what_is_not_finite_reaches_only_who_sees_it(lanes, monkeypatch):
    monkeypatch.setattr(convolution, "_is_small", lambda *_: lanes)
    x, weight = whole_numbers((3, 2, 6, 50)), whole_numbers((8, 2, 3, 3), 1)
    x[0, 0, 0, 0], x[1, 1, 5, 49], x[2, 0, 2, 49] = np.inf, -np.inf, np.nan
    same(lambda *a: te.conv2d(*a, padding=1), lambda *a: F.conv2d(*a, padding=1), x, weight)


def test_other_kernels_in_backward_than_in_forward(monkeypatch):
    arrays = [whole_numbers((32, 3, 8, 8)), whole_numbers((8, 3, 3, 3), 1)]
    for first, second in (("auto", "numpy"), ("numpy", "auto")):
        tensors = [te.as_tensor(a) for a in arrays]
        for tensor in tensors:
            tensor.requires_grad = True
        te.set_kernels(first)
        result = te.max_pool2d(te.relu(te.conv2d(*tensors, padding=1)), 2)
        te.set_kernels(second)
        result.sum().backward()
        x, weight = (torch.tensor(a, requires_grad=True) for a in arrays)
        F.max_pool2d(F.relu(F.conv2d(x, weight, padding=1)), 2).sum().backward()
        np.testing.assert_array_equal(tensors[0].grad.numpy(), x.grad.numpy())
        np.testing.assert_array_equal(tensors[1].grad.numpy(), weight.grad.numpy())


@QUICK
@given(
    planes=st.tuples(st.integers(1, 18), st.integers(1, 4)),
    lengths=st.tuples(st.integers(2, 9), st.integers(2, 80)),
    lanes=st.booleans(),
    strange=st.booleans(),
)
def test_maxima_of_pairs_of_rows_and_columns(planes, lengths, lanes, strange):
    x = whole_numbers((*planes, *lengths), most=2)  # many ties
    if strange:
        x.flat[::7], x.flat[::5], x.flat[::11] = np.nan, -np.inf, np.inf
    same(lambda x: te.max_pool2d(x, 2), lambda x: F.max_pool2d(x, 2), in_lanes(x) if lanes else x)
    with te.no_grad():
        pooled = te.max_pool2d(te.as_tensor(x), 2).numpy()
    np.testing.assert_array_equal(pooled, F.max_pool2d(torch.from_numpy(x), 2).numpy())


def test_maxima_of_large_images(threads):
    x = whole_numbers((8, 16, 31, 40), most=2)
    same(lambda x: te.max_pool2d(x, 2), lambda x: F.max_pool2d(x, 2), x)


@pytest.mark.parametrize("layout", [np.asarray, in_lanes, lambda x: x[..., ::-1]])
@pytest.mark.parametrize("shape", [(3, 2, 5), (40, 8, 16, 20), ()])
def test_rectifiers(shape, layout, threads):
    if not shape and layout is not np.asarray:
        return
    x = layout(whole_numbers(shape))
    if shape:
        x[0, 0, 0], x[-1, -1, -1] = np.nan, np.inf
    same(te.relu, lambda x: torch.where(x > 0, x, x * 0 if not shape else F.relu(x).detach()), x)
    same(te.leaky_relu, F.leaky_relu, x, exact=False)


@pytest.mark.parametrize("layout", [np.asarray, in_lanes])
@pytest.mark.parametrize("shape", [(4, 3, 5, 6), (16, 8, 20, 30), (33, 5)])
@pytest.mark.parametrize("training", [True, False])
def test_batch_norm(shape, layout, training, threads):
    rng = np.random.default_rng(0)
    x = layout(whole_numbers(shape, most=9) + 100)
    weight, bias, mean = (rng.standard_normal(shape[1]).astype("f4") for _ in range(3))

    def ours(*a):
        statistics = te.as_tensor(mean.copy()), te.as_tensor(mean * mean)
        return te.batch_norm(a[0], *statistics, *a[1:], training=training)

    def theirs(*a):
        statistics = (torch.from_numpy(v.astype("f8")) for v in (mean, mean * mean))
        return F.batch_norm(a[0], *statistics, *a[1:], training=training)

    same(ours, theirs, x, weight, bias, exact=False)
