"""Values and gradients beside PyTorch's, over dtypes, shapes, memory layouts and extremes."""

import itertools

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import te_tensor as te

torch.set_num_threads(1)

DTYPES = ["float32", "float64"]
TOLERANCE = {
    "float32": {"rtol": 2e-5, "atol": 2e-6},
    "float64": {"rtol": 1e-11, "atol": 1e-13},
}
LAYOUTS = ["contiguous", "transposed", "strided", "reversed"]


def laid_out(array, layout):
    """The same values in another memory layout."""
    if not array.ndim:
        return array
    if layout == "transposed":
        return array.T.copy().T
    if layout == "strided":
        big = np.zeros([2 * n for n in array.shape], array.dtype)
        view = big[tuple(slice(None, None, 2) for _ in array.shape)]
        view[...] = array
        return view
    if layout == "reversed":
        turn = tuple(slice(None, None, -1) for _ in array.shape)
        return array[turn].copy()[turn]
    return array


def compare(ours, theirs, *arrays, layout="contiguous", fixed=(), rtol=None, atol=None):
    """Run both on the arrays, and hold the results and all gradients equal.

    Arrays at positions in `fixed`, and integers, get no gradient.
    """
    dtype = next(a.dtype for a in arrays if a.dtype.kind == "f")
    tolerance = dict(TOLERANCE[dtype.name])
    tolerance |= {k: v for k, v in (("rtol", rtol), ("atol", atol)) if v is not None}
    needs = [a.dtype.kind == "f" and i not in fixed for i, a in enumerate(arrays)]
    # as_tensor keeps the layout; torch has no negative strides, so it gets copies
    mine = [te.as_tensor(laid_out(a, layout)) for a in arrays]
    other = [torch.from_numpy(np.array(a, order="C")) for a in arrays]
    for a, b, need in zip(mine, other, needs, strict=True):
        a.requires_grad = need
        b.requires_grad_(need)
    result, expected = ours(*mine), theirs(*other)
    assert result.shape == tuple(expected.shape)
    assert result.dtype == expected.detach().numpy().dtype
    np.testing.assert_allclose(result.numpy(), expected.detach().numpy(), **tolerance)
    grad = np.random.default_rng(7).uniform(-1, 1, result.shape).astype(result.dtype)
    result.backward(laid_out(np.array(grad), layout))
    expected.backward(torch.from_numpy(np.array(grad)))
    for position, (a, b, need) in enumerate(zip(mine, other, needs, strict=True)):
        if need:
            assert a.grad.dtype == a.dtype
            wanted = np.zeros(a.shape) if b.grad is None else b.grad.numpy()
            np.testing.assert_allclose(
                a.grad.numpy(), wanted, **tolerance, err_msg=f"gradient of input {position}"
            )


def draw(*shape, dtype="float32", low=-1.0, high=1.0, seed=0):
    return np.array(np.random.default_rng(seed).uniform(low, high, shape), dtype)


# -- elementwise --------------------------------------------------------------------------

UNARY = {
    "neg": (te.neg, torch.neg, -2, 2),
    "abs": (te.abs, torch.abs, -2, 2),
    "exp": (te.exp, torch.exp, -5, 5),
    "log": (te.log, torch.log, 0.1, 9),
    "sqrt": (te.sqrt, torch.sqrt, 0.1, 9),
    "relu": (te.relu, torch.relu, -2, 2),
    "sigmoid": (te.sigmoid, torch.sigmoid, -9, 9),
    "tanh": (te.tanh, torch.tanh, -4, 4),
    "gelu": (te.gelu, F.gelu, -6, 6),
    "gelu tanh": (
        lambda x: te.gelu(x, "tanh"),
        lambda x: F.gelu(x, approximate="tanh"),
        -6,
        6,
    ),
    "square": (lambda x: x**2, lambda x: x**2, -2, 2),
    "cube": (lambda x: x**3, lambda x: x**3, -2, 2),
    "root": (lambda x: x**0.5, lambda x: x**0.5, 0.1, 9),
    "reciprocal": (lambda x: 1 / x, lambda x: 1 / x, 0.1, 9),
    "exponential": (lambda x: 2**x, lambda x: 2**x, -2, 2),
    "times": (lambda x: x * 3, lambda x: x * 3, -2, 2),
    "minus": (lambda x: 1 - x, lambda x: 1 - x, -2, 2),
}
BINARY = {
    "add": (te.add, torch.add),
    "sub": (te.sub, torch.sub),
    "mul": (te.mul, torch.mul),
    "div": (te.div, torch.div),
    "pow": (te.pow, torch.pow),
}
SHAPES = [(), (1,), (0,), (2, 0, 3), (5,), (3, 4), (2, 3, 4)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", UNARY)
def test_unary(name, shape, dtype):
    ours, theirs, low, high = UNARY[name]
    compare(ours, theirs, draw(*shape, dtype=dtype, low=low, high=high))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", UNARY)
def test_unary_layouts(name, layout):
    ours, theirs, low, high = UNARY[name]
    compare(ours, theirs, draw(6, 5, 4, dtype="float64", low=low, high=high), layout=layout)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", UNARY)
def test_unary_large(name, layout):
    # over 1 << 18 elements: blocks and threads
    te.set_num_threads(2)
    ours, theirs, low, high = UNARY[name]
    x = draw(130, 2100, low=low, high=high)
    compare(ours, theirs, x, layout=layout, rtol=1e-4, atol=1e-5)


PAIRS = [
    ((3, 4), (3, 4)),
    ((3, 4), (4,)),
    ((3, 1), (1, 4)),
    ((2, 1, 4), (3, 1)),
    ((), (2, 3)),
    ((2, 3), ()),
    ((), ()),
    ((1,), (5,)),
    ((0, 3), (1, 3)),
    ((2, 1), (2, 0)),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shapes", PAIRS, ids=str)
@pytest.mark.parametrize("name", BINARY)
def test_binary(name, shapes, dtype):
    a, b = (draw(*s, dtype=dtype, low=0.3, high=2, seed=i) for i, s in enumerate(shapes))
    compare(*BINARY[name], a, b)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", BINARY)
def test_binary_layouts(name, layout):
    a, b = (draw(*s, low=0.3, high=2, seed=i) for i, s in enumerate([(4, 5), (3, 4, 5)]))
    compare(*BINARY[name], a, b, layout=layout)


@pytest.mark.parametrize("shapes", [((300, 1000), (300, 1000)), ((300, 1000), (1000,))], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "transposed"])
@pytest.mark.parametrize("name", BINARY)
def test_binary_large(name, shapes, layout):
    te.set_num_threads(2)
    a, b = (draw(*s, low=0.3, high=2, seed=i) for i, s in enumerate(shapes))
    compare(*BINARY[name], a, b, layout=layout, rtol=2e-4, atol=2e-4)


def extremes(dtype):
    tiny = 1e-40 if dtype == "float32" else 1e-310
    positive = [0.0, tiny, 1e-30, 0.5, 1.0, 3.0, 90.0, 1e30, np.inf]
    return np.array([s * v for v in positive for s in (1, -1)] + [np.nan], dtype)


def _extreme(ours, theirs, *arrays):
    """As `compare`, with gradient 1 and hardly any tolerance; NaN and infinities as in torch."""
    mine = [te.Tensor(a, requires_grad=True) for a in arrays]
    other = [torch.from_numpy(a.copy()).requires_grad_() for a in arrays]
    result, expected = ours(*mine), theirs(*other)
    # torch rounds some results below the smallest normal number to 0
    tiny = np.finfo(arrays[0].dtype).tiny
    tolerance = {"rtol": 1e-5 if arrays[0].dtype == np.float32 else 1e-12, "atol": tiny}
    wanted = expected.detach().numpy()
    np.testing.assert_allclose(result.numpy(), wanted, **tolerance)
    result.backward(np.ones(result.shape))
    expected.backward(torch.ones_like(expected))
    return mine, other, tolerance


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    # gelu is below; torch's x**0.5 and 2**x disagree with IEEE 754 on negative infinities
    "name",
    [n for n in UNARY if n not in ("gelu", "gelu tanh", "exponential", "root")],
)
def test_unary_extremes(name, dtype):
    values = extremes(dtype)
    if name in ("abs", "relu"):
        values = values[:-1]  # at NaN torch has gradients of 0 and 1, which mean nothing
    mine, other, tolerance = _extreme(*UNARY[name][:2], values)
    np.testing.assert_allclose(
        mine[0].grad.numpy(), other[0].grad.numpy(), err_msg="gradient", **tolerance
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_extremes(approximate, dtype):
    values = np.array([np.inf, np.nan, 1e30, 100.0, -100.0, 0.0, -0.0, 1e-40, -1e30], dtype)
    expected = np.array([np.inf, np.nan, 1e30, 100, 0, 0, 0, 5e-41, 0], dtype)
    y = te.gelu(te.Tensor(values, requires_grad=True), approximate)
    np.testing.assert_allclose(y.numpy(), expected, rtol=1e-6, atol=1e-44)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_the_slope_of_gelu_far_out(approximate, dtype):
    x = te.Tensor([1e30, 1e5, 100.0, 0.0, -100.0, -1e5, -1e30], dtype=dtype, requires_grad=True)
    te.gelu(x, approximate).sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), [1, 1, 1, 0.5, 0, 0, 0], rtol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_sigmoid_keeps_its_small_values(dtype):
    # e^x far below 0: a loss takes their logarithm
    x = np.linspace(-80, -1, 200, dtype=dtype)
    compare(te.sigmoid, torch.sigmoid, x, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", BINARY)
def test_binary_extremes(name, dtype):
    pairs = np.array(list(itertools.product(extremes(dtype), repeat=2)), dtype)
    a, b = (np.ascontiguousarray(c) for c in pairs.T)
    mine, other, tolerance = _extreme(*BINARY[name], a, b)
    for x, y, side in zip(mine, other, "ab", strict=True):
        np.testing.assert_allclose(
            x.grad.numpy(), y.grad.numpy(), err_msg=f"gradient of {side}", **tolerance
        )


@pytest.mark.parametrize("exponent", [0, 1, 2, 3, -1, -2, 0.5, 1.5, 0.0, 2.0])
def test_pow_by_a_number_at_and_around_zero(exponent):
    x = np.array([0.0, 1.0, 2.0, 1e-3], "float64")
    compare(lambda x: x**exponent, lambda x: x**exponent, x)


# -- reductions ---------------------------------------------------------------------------

AXES = [None, 0, 1, -1, (0, 2), (0, 1, 2), (-1, 0)]
REDUCTIONS = {
    "sum": (te.sum, torch.sum),
    "mean": (te.mean, torch.mean),
    "max": (te.max, torch.amax),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("axis", AXES, ids=str)
@pytest.mark.parametrize("name", REDUCTIONS)
def test_reductions(name, axis, keepdims, dtype):
    ours, theirs = REDUCTIONS[name]
    compare(
        lambda x: ours(x, axis, keepdims),
        lambda x: theirs(x, dim=(0, 1, 2) if axis is None else axis, keepdim=keepdims),
        draw(2, 3, 4, dtype=dtype),
    )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", REDUCTIONS)
def test_reduction_layouts(name, layout):
    ours, theirs = REDUCTIONS[name]
    compare(lambda x: ours(x, 1), lambda x: theirs(x, dim=1), draw(3, 4, 5), layout=layout)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
@pytest.mark.parametrize("name", REDUCTIONS)
def test_reductions_of_one_element(name, shape):
    ours, theirs = REDUCTIONS[name]
    axes = tuple(range(len(shape)))
    compare(ours, lambda x: theirs(x, dim=axes) if axes else x * 1, draw(*shape))


@pytest.mark.parametrize("axis", [0, 1, None, (0, 1)])
@pytest.mark.parametrize("name", ["sum", "mean"])
def test_reductions_of_nothing(name, axis):
    ours, theirs = REDUCTIONS[name]
    everything = axis if axis is not None else (0, 1)
    compare(lambda x: ours(x, axis), lambda x: theirs(x, dim=everything), draw(0, 3))


def test_max_shares_the_gradient_among_equals():
    x = np.array([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]])
    compare(lambda x: te.max(x, 1), lambda x: torch.amax(x, 1), x)
    compare(te.max, lambda x: torch.amax(x, (0, 1)), x)


@pytest.mark.parametrize("name", REDUCTIONS)
def test_reductions_of_extremes(name):
    ours, theirs = REDUCTIONS[name]
    x = np.array([[np.inf, 1.0], [-np.inf, 2.0], [np.nan, 3.0], [1e30, 1.0]], "float32")
    result = ours(te.Tensor(x), 1).numpy()
    np.testing.assert_array_equal(result, theirs(torch.from_numpy(x), dim=1).numpy())


@pytest.mark.parametrize("name", REDUCTIONS)
@pytest.mark.parametrize("axis", [None, 0, 1])
def test_reductions_large(name, axis):
    ours, theirs = REDUCTIONS[name]
    compare(
        lambda x: ours(x, axis),
        lambda x: theirs(x, dim=(0, 1) if axis is None else axis),
        draw(600, 700),
        rtol=1e-4,
        atol=1e-3,
    )


# -- shapes and indexing ------------------------------------------------------------------

MOVES = {
    "reshape": (lambda x: x.reshape(4, -1), lambda x: x.reshape(4, -1)),
    "reshape list": (lambda x: x.reshape([24]), lambda x: x.reshape([24])),
    "transpose": (lambda x: x.transpose(0, -1), lambda x: x.transpose(0, -1)),
    "T": (lambda x: x.T, lambda x: x.permute(2, 1, 0)),
    "permute": (lambda x: x.permute(1, 2, 0), lambda x: x.permute(1, 2, 0)),
    "permute negative": (lambda x: x.permute((-1, 0, 1)), lambda x: x.permute(-1, 0, 1)),
    "flatten": (lambda x: x.flatten(), lambda x: x.flatten()),
    "flatten some": (lambda x: x.flatten(1, 2), lambda x: x.flatten(1, 2)),
    "flatten negative": (lambda x: x.flatten(0, -2), lambda x: x.flatten(0, -2)),
    "unsqueeze": (lambda x: x.unsqueeze(1), lambda x: x.unsqueeze(1)),
    "unsqueeze last": (lambda x: x.unsqueeze(-1), lambda x: x.unsqueeze(-1)),
    "squeeze": (lambda x: x.unsqueeze(1).squeeze(), lambda x: x.unsqueeze(1).squeeze()),
    "squeeze one": (lambda x: x.unsqueeze(1).squeeze(1), lambda x: x.unsqueeze(1).squeeze(1)),
    "expand": (
        lambda x: x.unsqueeze(1).expand(2, 5, 3, 4),
        lambda x: x.unsqueeze(1).expand(2, 5, 3, 4),
    ),
    "expand in front": (lambda x: x.expand(3, -1, -1, -1), lambda x: x.expand(3, -1, -1, -1)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", MOVES)
def test_moves(name, layout):
    compare(*MOVES[name], draw(2, 3, 4), layout=layout)


@pytest.mark.parametrize("shape", [(0,), (2, 0), (0, 3, 2)])
def test_moves_of_nothing(shape):
    compare(lambda x: x.flatten(), lambda x: x.flatten(), draw(*shape))
    compare(lambda x: x.T, lambda x: x.permute(*reversed(range(x.ndim))), draw(*shape))


INDEX = np.array([[0, 3, 3], [1, 0, -1]])
MASK = np.array([True, False, True, True])
INDICES = {
    "integer": 1,
    "negative": (-1, -2),
    "slice": slice(1, 3),
    "step": (slice(None, None, 2), slice(1, None, 3)),
    "ellipsis": (..., 2),
    "new axis": (None, slice(None), None, 1),
    "empty slice": (slice(2, 2),),
    "everything": (),
    "integers": (INDEX,),
    "integers later": (slice(None), np.array([2, 0, 2])),
    "two arrays": (np.array([0, 0, 3]), np.array([1, 1, 2])),
    "apart": (np.array([0, 2]), slice(None), np.array([1, 1])),
    "mixed": (1, np.array([0, 0]), slice(0, 2)),
    "mask": (MASK,),
    "mask of nothing": (np.zeros(4, bool),),
    "whole mask": (np.arange(60).reshape(4, 5, 3) % 7 < 3,),
    "no integers": (np.zeros(0, np.int64),),
}


def _to_torch(index):
    parts = index if isinstance(index, tuple) else (index,)
    return tuple(torch.from_numpy(p) if isinstance(p, np.ndarray) else p for p in parts)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", INDICES)
def test_indexing(name, layout):
    index = INDICES[name]
    compare(lambda x: x[index], lambda x: x[_to_torch(index)], draw(4, 5, 3), layout=layout)


@pytest.mark.parametrize(
    "index", [slice(None, None, -1), (slice(3, 0, -2), ..., slice(None, 0, -1))]
)
def test_negative_steps(index):
    # torch has none: the gradient of w·x[index] is w, put back in its places
    x = te.Tensor(draw(4, 5, 3), requires_grad=True)
    y = x[index]
    np.testing.assert_array_equal(y.numpy(), x.numpy()[index])
    grad = draw(*y.shape, seed=3)
    y.backward(grad)
    expected = np.zeros((4, 5, 3), "float32")
    expected[index] = grad
    np.testing.assert_array_equal(x.grad.numpy(), expected)


def test_indexing_with_lists_and_tensors():
    compare(lambda x: x[[0, 2, 2]], lambda x: x[[0, 2, 2]], draw(4, 3))
    index = np.array([3, 3, 0])
    compare(lambda x: x[te.Tensor(index)], lambda x: x[torch.from_numpy(index)], draw(4, 3))
    compare(lambda x: x[x > 0], lambda x: x[x > 0], draw(4, 3))


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2])
def test_concat_and_stack(axis):
    a, b, c = (draw(2, 3, 4, seed=i) for i in range(3))
    wide = np.concatenate([b, b], axis)
    compare(lambda *t: te.concat(t, axis), lambda *t: torch.cat(t, axis), a, wide, c)
    compare(lambda *t: te.cat(t, axis=axis), lambda *t: torch.cat(t, axis), a)
    compare(lambda *t: te.stack(t, axis), lambda *t: torch.stack(t, axis), a, b, c)


def test_concat_and_stack_of_small_things():
    compare(lambda *t: te.concat(t), lambda *t: torch.cat(t), draw(0), draw(3), draw(1))
    compare(lambda *t: te.stack(t), lambda *t: torch.stack(t), draw(), draw(seed=1))
    compare(lambda x: te.concat([x, x]), lambda x: torch.cat([x, x]), draw(2, 2))
    compare(lambda *t: te.stack(t, 3), lambda *t: torch.stack(t, 3), draw(1, 2, 3), draw(1, 2, 3))


# -- products -----------------------------------------------------------------------------

PRODUCTS = [
    ((4,), (4,)),
    ((3, 4), (4,)),
    ((4,), (4, 2)),
    ((3, 4), (4, 2)),
    ((1, 1), (1, 1)),
    ((5, 3, 4), (4, 2)),
    ((3, 4), (5, 4, 2)),
    ((4,), (5, 4, 2)),
    ((5, 3, 4), (4,)),
    ((2, 1, 3, 4), (5, 4, 2)),
    ((2, 5, 3, 4), (2, 5, 4, 2)),
    ((2, 1, 3, 4), (1, 5, 4, 1)),
    ((0, 4), (4, 2)),
    ((3, 0), (0, 2)),
    ((3, 4), (4, 0)),
    ((0, 3, 4), (4, 2)),
    ((2, 3, 0), (2, 0, 5)),
    ((0,), (0,)),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shapes", PRODUCTS, ids=str)
def test_matmul(shapes, layout, dtype):
    a, b = (draw(*s, dtype=dtype, seed=i) for i, s in enumerate(shapes))
    compare(te.matmul, torch.matmul, a, b, layout=layout)


@pytest.mark.parametrize(
    "shapes",
    [
        ((700, 300), (300, 500)),
        ((3, 200, 300), (300, 100)),
        ((3, 200, 300), (3, 300, 100)),
        ((40, 50, 60), (40, 60, 70)),
        ((2000, 700), (700,)),
    ],
    ids=str,
)
@pytest.mark.parametrize("layout", ["contiguous", "transposed"])
def test_matmul_large(shapes, layout, threads):
    a, b = (draw(*s, seed=i) for i, s in enumerate(shapes))
    compare(te.matmul, torch.matmul, a, b, layout=layout, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("lead", [(), (1,), (5,), (0,), (2, 3), (2, 0, 3), (2, 1, 3)], ids=str)
def test_linear(lead, bias, layout, dtype):
    arrays = [draw(*lead, 4, dtype=dtype), draw(3, 4, dtype=dtype, seed=1)]
    arrays += [draw(3, dtype=dtype, seed=2)] if bias else []
    compare(te.linear, F.linear, *arrays, layout=layout)


def residual_linear(linear, bias):
    """A linear map whose last argument is added to the result."""
    if linear is te.linear:
        return lambda x, w, *rest: te.linear(x, w, rest[0] if bias else None, rest[-1])
    return lambda x, w, *rest: F.linear(x, w, rest[0] if bias else None) + rest[-1]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("lead", [(), (1,), (5,), (0,), (2, 3)], ids=str)
def test_linear_with_a_residual(lead, bias, layout, dtype):
    arrays = [draw(*lead, 4, dtype=dtype), draw(3, 4, dtype=dtype, seed=1)]
    arrays += [draw(3, dtype=dtype, seed=2)] if bias else []
    arrays += [draw(*lead, 3, dtype=dtype, seed=3)]
    ours, theirs = (residual_linear(f, bias) for f in (te.linear, F.linear))
    compare(ours, theirs, *arrays, layout=layout)


@pytest.mark.parametrize("rows", [3, 50, 1200])
def test_large_linear_with_a_residual(rows, threads):
    x, w, b = draw(rows, 200), draw(500, 200, seed=1), draw(500, seed=2)
    ours, theirs = (residual_linear(f, True) for f in (te.linear, F.linear))
    compare(ours, theirs, x, w, b, draw(rows, 500, seed=3), rtol=1e-4, atol=3e-4)


def test_a_residual_of_another_shape_raises():
    x, w = te.ones(5, 3), te.ones(2, 3)
    for shape in ((2,), (5, 1), (1, 5, 2)):
        with pytest.raises(ValueError, match=r"residual .*: expected \(5, 2\)"):
            te.linear(x, w, residual=te.ones(*shape))
    with pytest.raises(TypeError, match="residual float64"):
        te.linear(x, w, residual=te.ones(5, 2, dtype="float64"))


@pytest.mark.parametrize("sizes", [(1, 1), (1, 5), (5, 1)])
def test_linear_of_single_features(sizes):
    features, outputs = sizes
    compare(te.linear, F.linear, draw(7, features), draw(outputs, features, seed=1), draw(outputs))


def test_linear_large(threads):
    x, w, b = draw(4, 300, 200), draw(500, 200, seed=1), draw(500, seed=2)
    compare(te.linear, F.linear, x, w, b, rtol=1e-4, atol=3e-4)


# -- lines along an axis ------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_softmax(name, axis, layout, dtype):
    compare(
        lambda x: getattr(te, name)(x, axis),
        lambda x: getattr(torch, name)(x, axis),
        draw(3, 4, 5, dtype=dtype, low=-9, high=9),
        layout=layout,
    )


@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 0), (0, 3), (4, 1)], ids=str)
@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_softmax_of_small_things(name, shape):
    compare(lambda x: getattr(te, name)(x, -1), lambda x: getattr(torch, name)(x, -1), draw(*shape))


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
@pytest.mark.parametrize("axis", [0, 1])
def test_softmax_large(name, axis):
    te.set_num_threads(2)
    x = draw(600, 700, low=-9, high=9)
    compare(lambda x: getattr(te, name)(x, axis), lambda x: getattr(torch, name)(x, axis), x)


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_softmax_of_extremes(name):
    inf, nan = np.inf, np.nan
    rows = [
        [1e30, -1e30, 0.0],
        [-inf, 0.0, 1.0],
        [-inf, -inf, 2.0],
        [-inf, -inf, -inf],
        [inf, 0.0, 1.0],
        [nan, 0.0, 1.0],
        [1000.0, 1000.0, 999.0],
        [-1000.0, -1000.0, -999.0],
        [1e-40, 0.0, -0.0],
    ]
    x = np.array(rows, "float32")
    compare(lambda x: getattr(te, name)(x, 1), lambda x: getattr(torch, name)(x, 1), x)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("affine", [0, 1, 2])
@pytest.mark.parametrize("axes", [1, 2])
def test_layer_norm(axes, affine, layout, dtype):
    shape = (5, 6, 4)
    tail = shape[-axes:]
    arrays = [draw(*shape, dtype=dtype, low=-2, high=3)]
    arrays += [draw(*tail, dtype=dtype, seed=i) for i in range(affine)]
    compare(
        lambda x, *wb: te.layer_norm(x, tail, *wb, eps=1e-3),
        lambda x, *wb: F.layer_norm(x, tail, *wb, eps=1e-3),
        *arrays,
        layout=layout,
    )


@pytest.mark.parametrize("shape", [(4,), (0, 4), (3, 1), (1, 4)], ids=str)
def test_layer_norm_of_small_things(shape):
    last = shape[-1]
    x, w, b = draw(*shape), draw(last, seed=1), draw(last, seed=2)
    compare(
        lambda x, w, b: te.layer_norm(x, last, w, b),
        lambda x, w, b: F.layer_norm(x, (last,), w, b),
        x,
        w,
        b,
        atol=1e-5,
    )


def test_layer_norm_large(threads):
    x, w, b = draw(2, 300, 600), draw(600, seed=1), draw(600, seed=2)
    compare(
        lambda x, w, b: te.layer_norm(x, 600, w, b),
        lambda x, w, b: F.layer_norm(x, (600,), w, b),
        x,
        w,
        b,
        rtol=1e-4,
        atol=1e-4,
    )


def test_layer_norm_far_from_zero():
    # Beside the exact result: the mean is 1000 times the spread.
    x = draw(64, 256, dtype="float64") + 1000
    exact = F.layer_norm(torch.from_numpy(x.astype("float32").astype("float64")), (256,)).numpy()
    result = te.layer_norm(te.Tensor(x.astype("float32")), 256).numpy()
    np.testing.assert_allclose(result, exact, atol=5e-4)


# -- embedding, dropout, losses -----------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("padding", [None, 0, 3, -1])
@pytest.mark.parametrize(
    "indices",
    [[[0, 3, 3], [1, 0, 0]], [2], 1, [], [[0] * 50]],
    ids=["2d", "1d", "0d", "none", "one"],
)
def test_embedding(indices, padding, dtype):
    index = np.array(indices, np.int64)
    compare(
        lambda w: te.embedding(te.Tensor(index), w, padding),
        lambda w: F.embedding(torch.from_numpy(index), w, padding),
        draw(5, 3, dtype=dtype),
    )


def test_embedding_large():
    index = np.random.default_rng(0).integers(0, 1000, (64, 100))
    compare(
        lambda w: te.embedding(te.Tensor(index), w),
        lambda w: F.embedding(torch.from_numpy(index), w),
        draw(1000, 64),
        atol=1e-4,
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (1,), (3, 4), (40, 60)], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_mse_loss(reduction, shape, dtype):
    a, b = draw(*shape, dtype=dtype), draw(*shape, dtype=dtype, seed=1)
    compare(
        lambda a, b: te.mse_loss(a, b, reduction),
        lambda a, b: F.mse_loss(a, b, reduction=reduction),
        a,
        b,
    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_mse_loss_layouts(layout):
    compare(te.mse_loss, F.mse_loss, draw(30, 50), draw(30, 50, seed=1), layout=layout)


def test_mse_loss_large(threads):
    compare(te.mse_loss, F.mse_loss, draw(600, 700), draw(600, 700, seed=1))


@pytest.mark.filterwarnings("ignore:Warning:UserWarning")
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_mse_loss_of_nothing(reduction):
    compare(
        lambda a, b: te.mse_loss(a, b, reduction),
        lambda a, b: F.mse_loss(a, b, reduction=reduction),
        draw(0, 3),
        draw(0, 3),
    )


LABELS = {
    "one": ((4,), np.array(2)),
    "batch": ((5, 4), np.array([0, 3, 1, 1, 2])),
    "extra": ((2, 4, 3), np.array([[0, 3, 1], [2, 2, 0]])),
    "image": ((2, 4, 2, 2), np.arange(8).reshape(2, 2, 2) % 4),
    "ignored": ((5, 4), np.array([0, -100, 1, -100, 2])),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("case", LABELS)
def test_cross_entropy_of_labels(case, weighted, smoothing, reduction, dtype):
    shape, labels = LABELS[case]
    weight = np.array([0.5, 1.0, 2.0, 0.25], dtype) if weighted else None
    options = {"label_smoothing": smoothing, "reduction": reduction}
    compare(
        lambda x: te.cross_entropy(x, labels, weight, **options),
        lambda x: F.cross_entropy(
            x,
            torch.from_numpy(labels),
            None if weight is None else torch.from_numpy(weight),
            **options,
        ),
        draw(*shape, dtype=dtype, low=-3, high=3),
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", [(4,), (5, 4), (2, 4, 3)], ids=str)
def test_cross_entropy_of_probabilities(shape, weighted, smoothing, reduction, dtype):
    # The target gets a gradient too.
    weight = np.array([0.5, 1.0, 2.0, 0.25], dtype) if weighted else None
    options = {"label_smoothing": smoothing, "reduction": reduction}
    compare(
        lambda x, t: te.cross_entropy(x, t, weight, **options),
        lambda x, t: F.cross_entropy(
            x, t, None if weight is None else torch.from_numpy(weight), **options
        ),
        draw(*shape, dtype=dtype, low=-3, high=3),
        draw(*shape, dtype=dtype, low=0.1, seed=1),
    )


@pytest.mark.parametrize("ignore", [-100, -1, 2])
def test_cross_entropy_ignores_a_label(ignore):
    labels = np.array([0, ignore, 1, ignore, 3])
    compare(
        lambda x: te.cross_entropy(x, labels, ignore_index=ignore),
        lambda x: F.cross_entropy(x, torch.from_numpy(labels), ignore_index=ignore),
        draw(5, 4),
    )


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_with_every_label_ignored(reduction, smoothing):
    labels = np.full(3, -100)
    options = {"label_smoothing": smoothing, "reduction": reduction}
    compare(
        lambda x: te.cross_entropy(x, labels, **options),
        lambda x: F.cross_entropy(x, torch.from_numpy(labels), **options),
        draw(3, 4),
    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_cross_entropy_layouts(layout):
    labels = np.arange(30).reshape(5, 6) % 4
    compare(
        lambda x: te.cross_entropy(x, labels),
        lambda x: F.cross_entropy(x, torch.from_numpy(labels)),
        draw(5, 4, 6),
        layout=layout,
    )


def test_cross_entropy_of_extremes():
    x = np.array([[1e30, -1e30, 0], [-np.inf, 0, 1], [1000, 999, 0], [0, -np.inf, 5]], "float32")
    labels = np.array([0, 1, 1, 2])
    compare(
        lambda x: te.cross_entropy(x, labels, reduction="none"),
        lambda x: F.cross_entropy(x, torch.from_numpy(labels), reduction="none"),
        x,
    )


@pytest.mark.parametrize("dtype", ["uint8", "int32", "int64"])
def test_cross_entropy_takes_labels_of_any_integer_dtype(dtype):
    labels = np.array([0, 3, 1], dtype)
    compare(
        lambda x: te.cross_entropy(x, labels),
        lambda x: F.cross_entropy(x, torch.from_numpy(labels.astype("int64"))),
        draw(3, 4),
    )


def test_a_small_network():
    def ours(x, w1, b1, g, b, w2):
        hidden = te.layer_norm(te.gelu(te.linear(x, w1, b1)), 8, g, b)
        return te.cross_entropy(te.linear(hidden + hidden.tanh(), w2), np.array([0, 2, 1]))

    def theirs(x, w1, b1, g, b, w2):
        hidden = F.layer_norm(F.gelu(F.linear(x, w1, b1)), (8,), g, b)
        return F.cross_entropy(F.linear(hidden + hidden.tanh(), w2), torch.tensor([0, 2, 1]))

    shapes = [(3, 5), (8, 5), (8,), (8,), (8,), (4, 8)]
    compare(ours, theirs, *(draw(*s, dtype="float64", seed=i) for i, s in enumerate(shapes)))


# -- exchange -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "uint8", "bool", "float16"])
def test_dlpack_both_ways(dtype):
    t = te.Tensor([[1, 0, 1], [0, 1, 1]], dtype=dtype)
    theirs = torch.from_dlpack(t)
    assert theirs.tolist() == t.tolist()
    with t.lock() as array:
        array[0, 1] = 1
    assert theirs[0, 1] == 1

    source = torch.arange(6, dtype=torch.float32).reshape(2, 3).T
    back = te.from_dlpack(source)
    assert back.tolist() == source.tolist()
    source[0, 0] = 9
    assert back[0, 0].item() == 9


def test_a_tensor_of_a_torch_tensor_is_a_copy():
    source = torch.ones(2, 3)
    t = te.Tensor(source)
    assert t.dtype == te.float32
    source[0, 0] = 5
    assert t[0, 0].item() == 1
