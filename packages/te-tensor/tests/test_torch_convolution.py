"""Convolution and padding beside PyTorch, over options, layouts and ways through the kernels."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

import te_tensor as te
from te_tensor.ops import _columns, _units, convolution

torch.set_num_threads(1)

# PyTorch's own, given once a process
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")

QUICK = settings(derandomize=True, deadline=None, database=None, max_examples=60)
CONVOLUTIONS = {1: (te.conv1d, F.conv1d), 2: (te.conv2d, F.conv2d)}


def compare(ours, theirs, *arrays, grad_seed=1, rtol=1e-10, atol=1e-11):
    """The same values and gradients from both, given the same arrays and upstream gradient."""
    mine = [te.as_tensor(a) for a in arrays]
    other = [torch.from_numpy(np.array(a, order="C")) for a in arrays]
    for a, b in zip(mine, other, strict=True):
        a.requires_grad = True
        b.requires_grad_()
    result, expected = ours(*mine), theirs(*other)
    assert result.shape == tuple(expected.shape)
    np.testing.assert_allclose(result.numpy(), expected.detach().numpy(), rtol=rtol, atol=atol)
    grad = np.random.default_rng(grad_seed).standard_normal(result.shape).astype(result.dtype)
    result.backward(grad)
    expected.backward(torch.from_numpy(grad))
    for a, b in zip(mine, other, strict=True):
        np.testing.assert_allclose(a.grad.numpy(), b.grad.numpy(), rtol=rtol, atol=atol)


@st.composite
def convolutions(draw):
    """Shapes of x, weight and bias, the options, and how the work is to be cut."""
    axes = draw(st.sampled_from([1, 2, 2]))

    def per_axis(least, most):
        return [draw(st.integers(least, most)) for _ in range(axes)]

    groups = draw(st.sampled_from([1, 1, 2, 3]))
    channels, outputs = (groups * draw(st.integers(1, 3)) for _ in range(2))
    kernel, dilation, stride = per_axis(1, 4), per_axis(1, 3), per_axis(1, 3)
    padding = draw(st.sampled_from(["same", "valid", None, None, None]))
    if padding == "same":
        stride = [1] * axes
    elif padding is None:
        padding = tuple(per_axis(0, 4))
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    ends = padding if isinstance(padding, tuple) else [0] * axes
    if padding == "same":
        ends = [s // 2 for s in spans]
    lengths = [
        max(1, span - 2 * end) + draw(st.integers(0, 6))
        for span, end in zip(spans, ends, strict=True)
    ]
    batch = draw(st.sampled_from([(), (0,), (1,), (3,)]))
    shapes = (*batch, channels, *lengths), (outputs, channels // groups, *kernel)
    options = {"stride": tuple(stride), "dilation": tuple(dilation), "groups": groups}
    bias = draw(st.booleans())
    cut = draw(st.tuples(st.booleans(), st.booleans(), st.sampled_from([1, 40, 1 << 20])))
    return axes, shapes, bias, options | {"padding": padding}, cut


@QUICK
@given(convolutions())
def test_convolution(drawn):
    axes, (x, weight), bias, options, (in_lanes, thin, block) = drawn
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(shape) for shape in (x, weight)]
    arrays += [rng.standard_normal(weight[0])] if bias else []
    ours, theirs = CONVOLUTIONS[axes]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convolution, "_is_small", lambda *_: in_lanes)
        patch.setattr(_units, "_PARALLEL_FROM", 1)
        patch.setattr(_columns, "_THIN", 1 << 30 if thin else 0)
        patch.setattr(_columns, "_BLOCK", block)
        patch.setattr(convolution, "_FEW_COLUMNS", 1 << 30 if thin else 0)
        patch.setattr(_columns, "_SMALL", 0 if block == 1 else 1 << 17)
        convolution.columns_of.cache_clear()  # it remembers how work was cut
        compare(lambda *a: ours(*a, **options), lambda *a: theirs(*a, **options), *arrays)
    convolution.columns_of.cache_clear()


@pytest.mark.parametrize(
    ("x", "weight", "options"),
    [
        ((4, 64, 28, 28), (32, 64, 3, 3), {"padding": 1}),
        ((2, 64, 28, 28), (32, 64, 1, 1), {}),
        ((2, 64, 28, 28), (32, 64, 1, 1), {"stride": 2}),
        ((2, 3, 65, 63), (16, 3, 7, 7), {"stride": 2, "padding": 3}),
        ((2, 32, 28, 28), (32, 1, 3, 3), {"padding": 1, "groups": 32}),
        ((1, 64, 30, 28), (64, 64, 3, 3), {"stride": 2, "padding": 1}),
        ((32, 16, 8, 8), (32, 16, 3, 3), {"padding": 1}),
    ],
)
def test_usual_sizes_in_float32(x, weight, options, threads):
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(shape).astype("f4") for shape in (x, weight, weight[:1])]
    arrays[1] /= np.sqrt(np.prod(weight[1:]))
    compare(
        lambda *a: te.conv2d(*a, **options),
        lambda *a: F.conv2d(*a, **options),
        *arrays,
        rtol=1e-3,
        atol=2e-3,
    )


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 1, 2, 0), (1, 0, 3, 2)])
@pytest.mark.parametrize("turn", [1, -1])
def test_layouts_in_memory(order, turn):
    rng = np.random.default_rng(0)
    for small in (False, True):
        arrays = []
        for shape in ((3, 4, 6, 7), (5, 4, 3, 2)):
            packed = rng.standard_normal([shape[axis] for axis in order])
            arrays.append(packed.transpose(np.argsort(order))[..., ::turn])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(convolution, "_is_small", lambda *_, small=small: small)
            compare(te.conv2d, F.conv2d, *arrays)


def test_a_broadcast_gradient():
    x, w = (te.randn(*s, dtype="float64") for s in ((2, 3, 5, 5), (4, 3, 2, 2)))
    x.requires_grad = w.requires_grad = True
    te.conv2d(x, w).sum().backward()
    a, b = (torch.tensor(t.numpy(), requires_grad=True) for t in (x, w))
    F.conv2d(a, b).sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), a.grad.numpy())
    np.testing.assert_allclose(w.grad.numpy(), b.grad.numpy())


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize("padding", [2, (1, 2), "same"])
def test_padding_modes(mode, padding):
    layer = torch.nn.Conv2d(3, 4, (3, 4), padding=padding, padding_mode=mode, dtype=torch.float64)
    weight = layer.weight.detach().numpy()

    def theirs(x, weight, bias):
        parameters = {"weight": weight, "bias": bias}
        return torch.func.functional_call(layer, parameters, x)

    x = np.random.default_rng(0).standard_normal((2, 3, 5, 6))
    options = {"padding": padding, "padding_mode": mode}
    ours = lambda *a: te.conv2d(*a, **options)  # noqa: E731
    compare(ours, theirs, x, weight, layer.bias.detach().numpy())


@pytest.mark.parametrize("mode", ["constant", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("padding", [[(0, 2)], [(1, 0), (2, 3)], [(0, 1), (3, 1), (2, 0)]])
def test_pad(mode, padding):
    x = np.random.default_rng(0).standard_normal((2, 5, 4, 4))
    flat = [n for pair in reversed(padding) for n in pair]
    options = {"value": 1.5} if mode == "constant" else {}
    x = x[0] if len(padding) == 1 else x if len(padding) == 2 else x[None]
    compare(
        lambda x: te.pad(x, padding, mode, **options),
        lambda x: F.pad(x, flat, mode, **options),
        x,
    )


def test_only_what_needs_a_gradient_gets_one():
    for needs in np.ndindex(2, 2, 2):
        tensors = [te.randn(2, 3, 5, 5), te.randn(4, 3, 3, 3), te.randn(4)]
        for tensor, need in zip(tensors, needs, strict=True):
            tensor.requires_grad = bool(need)
        if any(needs):
            te.conv2d(*tensors).backward(te.ones(2, 4, 3, 3))
        assert [t.grad is not None for t in tensors] == [bool(n) for n in needs]


def test_the_same_bits_for_the_same_threads(threads):
    results = []
    for _ in range(2):
        te.manual_seed(0)
        tensors = [te.randn(6, 32, 20, 20), te.randn(32, 32, 3, 3), te.randn(32)]
        for tensor in tensors:
            tensor.requires_grad = True
        te.conv2d(*tensors, padding=1).sum().backward()
        results.append([t.grad.numpy() for t in tensors])
    for first, second in zip(*results, strict=True):
        np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_small_floats_round_once(dtype):
    x, w = te.randn(2, 3, 6, 6).astype(dtype), te.randn(4, 3, 3, 3).astype(dtype)
    result = te.conv2d(x, w)
    wide = te.conv2d(x.astype("float32"), w.astype("float32"))
    assert result.dtype == x.dtype
    assert result.astype("float32").tolist() == wide.astype(dtype).astype("float32").tolist()


def test_extremes_stay_where_the_kernel_sees_them():
    x = np.zeros((1, 1, 9, 9))
    x[0, 0, 4, 4], x[0, 0, 0, 0], x[0, 0, 8, 8] = np.inf, np.nan, 1e300
    weight = np.ones((1, 1, 3, 3))
    ours = te.conv2d(te.Tensor(x), te.Tensor(weight), padding=1).numpy()
    theirs = F.conv2d(torch.tensor(x), torch.tensor(weight), padding=1).numpy()
    np.testing.assert_array_equal(ours, theirs)
