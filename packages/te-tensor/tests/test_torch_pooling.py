"""Pooling beside PyTorch, over options, layouts, ties and extremes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

import te_tensor as te

torch.set_num_threads(1)

QUICK = settings(derandomize=True, deadline=None, database=None, max_examples=60)


def compare(ours, theirs, x, rtol=1e-12, atol=1e-13):
    """The same values and gradients from both."""
    a, b = te.as_tensor(x), torch.from_numpy(np.array(x, order="C"))
    a.requires_grad = True
    b.requires_grad_()
    result, expected = ours(a), theirs(b)
    assert result.shape == tuple(expected.shape)
    np.testing.assert_allclose(result.numpy(), expected.detach().numpy(), rtol=rtol, atol=atol)
    grad = np.random.default_rng(1).standard_normal(result.shape).astype(result.dtype)
    result.backward(grad)
    expected.backward(torch.from_numpy(grad))
    np.testing.assert_allclose(a.grad.numpy(), b.grad.numpy(), rtol=rtol, atol=atol)
    with te.no_grad():
        np.testing.assert_array_equal(ours(a).numpy(), result.numpy())


@st.composite
def pools(draw, dilated):
    """The number of axes, the array, and the options."""
    axes = draw(st.sampled_from([1, 2, 2]))

    def per_axis(least, most):
        return tuple(draw(st.integers(least, most)) for _ in range(axes))

    kernel, stride = per_axis(1, 4), draw(st.sampled_from([None, per_axis(1, 5)]))
    dilation = per_axis(1, 3) if dilated else (1,) * axes
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    padding = tuple(draw(st.integers(0, k // 2)) for k in kernel)
    lengths = [
        max(1, s - 2 * p) + draw(st.integers(0, 7)) for s, p in zip(spans, padding, strict=True)
    ]
    batch = draw(st.sampled_from([(), (0,), (1,), (3,)]))
    options = {"kernel_size": kernel, "stride": stride, "padding": padding}
    options["ceil_mode"] = draw(st.booleans())
    if dilated:
        options["dilation"] = dilation
    shape = (*batch, 2, *lengths)
    rng = np.random.default_rng(draw(st.integers(0, 100)))
    # few different values: many ties
    x = rng.integers(-2, 3, shape).astype("f8") if draw(st.booleans()) else rng.random(shape)
    if len(batch) and draw(st.booleans()):  # the batch innermost in memory
        x = np.ascontiguousarray(np.moveaxis(x, 0, -1))
        x = np.moveaxis(x, -1, 0)
    return axes, x, options


@QUICK
@given(pools(dilated=True))
def test_max_pool(drawn):
    axes, x, options = drawn
    ours, theirs = ((te.max_pool1d, F.max_pool1d), (te.max_pool2d, F.max_pool2d))[axes - 1]
    # with d > H a window may lie in the padding alone: there PyTorch writes where it may not
    if all(s >= d for s, d in zip(x.shape[-axes:], options["dilation"], strict=True)):
        compare(lambda x: ours(x, **options), lambda x: theirs(x, **options), x)


@QUICK
@given(pools(dilated=False), st.booleans(), st.sampled_from([None, None, 3]))
def test_avg_pool(drawn, include, divisor):
    axes, x, options = drawn
    options["count_include_pad"] = include
    if axes == 2:
        options["divisor_override"] = divisor
    ours, theirs = ((te.avg_pool1d, F.avg_pool1d), (te.avg_pool2d, F.avg_pool2d))[axes - 1]
    compare(lambda x: ours(x, **options), lambda x: theirs(x, **options), x)


@QUICK
@given(
    st.lists(st.integers(1, 9), min_size=2, max_size=2),
    st.lists(st.sampled_from([None, 1, 2, 3, 5, 10]), min_size=2, max_size=2),
    st.sampled_from([(), (0,), (3,)]),
)
def test_adaptive_avg_pool(lengths, size, batch):
    x = np.random.default_rng(0).standard_normal((*batch, 2, *lengths))
    compare(
        lambda x: te.adaptive_avg_pool2d(x, tuple(size)),
        lambda x: F.adaptive_avg_pool2d(x, tuple(size)),
        x,
    )
    if size[0] is not None:
        compare(
            lambda x: te.adaptive_avg_pool1d(x, size[0]),
            lambda x: F.adaptive_avg_pool1d(x, size[0]),
            x[..., 0],
        )


@pytest.mark.parametrize("kernel", [2, 3, (3, 2)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_nan_and_inf(kernel, dtype):
    rng = np.random.default_rng(0)
    values = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1e30]
    x = rng.choice(values, (2, 3, 8, 9), p=[0.1, 0.1, 0.5, 0.1, 0.1, 0.1]).astype(dtype)
    options = {"stride": 2, "padding": 1}
    compare(
        lambda x: te.max_pool2d(x, kernel, **options),
        lambda x: F.max_pool2d(x, kernel, **options),
        x,
        rtol=1e-6,
    )


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_gradient_that_is_not_finite_stays_at_the_maximum(value, stride):
    x = te.Tensor(np.arange(16.0).reshape(1, 1, 4, 4), dtype="float32", requires_grad=True)
    y = te.max_pool2d(x, 2, stride)
    grad = np.ones(y.shape, "f4")
    grad[0, 0, 0, 0] = value
    y.backward(grad)
    np.testing.assert_array_equal(x.grad.numpy()[0, 0, 1, 1], np.float32(value))
    assert np.isfinite(np.delete(x.grad.numpy().ravel(), 5)).all()


def test_large_ones_are_cut_and_equal(threads):
    x = np.maximum(np.random.default_rng(0).standard_normal((8, 16, 40, 36)), 0).astype("f4")
    for ours, theirs in (
        (lambda x: te.max_pool2d(x, 2), lambda x: F.max_pool2d(x, 2)),
        (lambda x: te.max_pool2d(x, 3, 2, 1), lambda x: F.max_pool2d(x, 3, 2, 1)),
        (lambda x: te.avg_pool2d(x, 2), lambda x: F.avg_pool2d(x, 2)),
        (lambda x: te.adaptive_avg_pool2d(x, 3), lambda x: F.adaptive_avg_pool2d(x, 3)),
    ):
        compare(ours, theirs, x, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kernel", [(17, 17), (1, 300)])
def test_windows_of_many_elements(kernel):
    x = np.random.default_rng(0).integers(0, 9, (1, 2, 20, 301)).astype("f8")
    options = {"stride": (1, 3)}
    compare(
        lambda x: te.max_pool2d(x, kernel, **options),
        lambda x: F.max_pool2d(x, kernel, **options),
        x,
    )


@pytest.mark.parametrize("width", [8, 300])
@pytest.mark.parametrize("options", [(3, 1), (3, 3), (2, 2), ((1, 2), (1, 1))], ids=str)
def test_rows_that_are_made_together_or_one_by_one(options, width):
    """Infinities in one plane leave the next one's windows alone, however the rows are made."""
    x = np.random.default_rng(0).standard_normal((3, 4, 9, width)).astype("float32")
    x[1, 2] = np.inf
    x[1, 3, 0] = -np.inf
    for ours, theirs in ((te.max_pool2d, F.max_pool2d), (te.avg_pool2d, F.avg_pool2d)):
        expected = theirs(torch.tensor(x), *options).numpy()
        np.testing.assert_allclose(
            ours(te.Tensor(x), *options).numpy(), expected, rtol=1e-5, atol=1e-6
        )
