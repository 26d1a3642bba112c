"""Functions beside PyTorch's in value and gradient: drawn shapes and layouts, and extremes."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

import te_tensor as te

torch.set_num_threads(1)

QUICK = settings(derandomize=True, deadline=None, database=None, max_examples=40)
TOLERANCE = {"float32": (2e-5, 2e-6), "float64": (1e-11, 1e-13)}


def laid_out(array, layout):
    """The same values in another memory layout."""
    if layout == "transposed":
        return array.T.copy().T
    if layout == "reversed" and array.ndim:
        turn = tuple(slice(None, None, -1) for _ in array.shape)
        return array[turn].copy()[turn]
    return array


def compare(ours, theirs, *arrays, layout="contiguous", fixed=(), ones=False, tolerance=None):
    """The same values and gradients from both; integers, bools and `fixed` have no gradient."""
    mine = [te.as_tensor(laid_out(a, layout)) for a in arrays]
    other = [torch.from_numpy(np.array(a, order="C")) for a in arrays]
    needs = [a.dtype.kind == "f" and i not in fixed for i, a in enumerate(arrays)]
    for a, b, need in zip(mine, other, needs, strict=True):
        a.requires_grad = need
        b.requires_grad_(need)
    result, expected = ours(*mine), theirs(*other)
    wanted = expected.detach().numpy()
    dtype = next(a.dtype.name for a in arrays if a.dtype.kind == "f")
    rtol, atol = tolerance or TOLERANCE[dtype]
    assert result.shape == wanted.shape
    assert result.dtype == wanted.dtype
    np.testing.assert_allclose(result.numpy(), wanted, rtol=rtol, atol=atol)
    if not expected.requires_grad:
        return
    grad = np.random.default_rng(7).uniform(0.5, 1, result.shape).astype(result.dtype)
    grad = np.ones_like(grad) if ones else grad
    result.backward(laid_out(grad, layout))
    expected.backward(torch.from_numpy(np.array(grad)))
    for position, (a, b, need) in enumerate(zip(mine, other, needs, strict=True)):
        if need:
            wanted = np.zeros(a.shape, a.dtype) if b.grad is None else b.grad.numpy()
            np.testing.assert_allclose(
                a.grad.numpy(), wanted, rtol=rtol, atol=atol, err_msg=f"gradient of {position}"
            )


DTYPES = st.sampled_from(["float32", "float64"])
LAYOUTS = st.sampled_from(["contiguous", "transposed", "reversed"])
SHAPES = st.one_of(
    st.sampled_from([(), (1,), (0,), (2, 0, 3)]),
    st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple),
)


@st.composite
def arrays(draw, shapes=SHAPES, low=-4, high=4, ties=True):
    """Values from low to high; some are whole, so that some are equal."""
    shape, seed = draw(shapes), draw(st.integers(0, 99))
    values = np.random.default_rng(seed).uniform(low, high, shape)
    if ties and draw(st.booleans()):
        values = np.clip(np.round(values), np.ceil(low), np.floor(high))
    return np.array(values, draw(DTYPES))


@st.composite
def broadcast(draw, count, **options):
    """Arrays of shapes that broadcast together, in one dtype."""
    whole = draw(SHAPES)
    found = []
    for _ in range(count):
        kept = whole[draw(st.integers(0, len(whole))) :]
        shape = tuple(1 if draw(st.integers(0, 3)) == 0 else n for n in kept)
        found.append(draw(arrays(st.just(shape), **options)))
    return [a.astype(found[0].dtype) for a in found]


# -- elementwise --------------------------------------------------------------------------

UNARY = {
    "log1p": (te.log1p, torch.log1p, -0.9, 9),
    "sin": (te.sin, torch.sin, -9, 9),
    "cos": (te.cos, torch.cos, -9, 9),
    "erf": (te.erf, torch.erf, -6, 6),
    "silu": (te.silu, F.silu, -9, 9),
    "leaky_relu": (te.leaky_relu, F.leaky_relu, -4, 4),
    "leaky_relu 0.3": (lambda x: te.leaky_relu(x, 0.3), lambda x: F.leaky_relu(x, 0.3), -4, 4),
    "leaky_relu 2": (lambda x: te.leaky_relu(x, 2.0), lambda x: F.leaky_relu(x, 2.0), -4, 4),
    "clip": (lambda x: te.clip(x, -1, 2), lambda x: torch.clamp(x, -1, 2), -4, 4),
    "clip crossed": (lambda x: te.clip(x, 2, -1), lambda x: torch.clamp(x, 2, -1), -4, 4),
    "clip below": (lambda x: te.clip(x, 0.5), lambda x: torch.clamp(x, 0.5), -4, 4),
    "clip above": (lambda x: te.clip(x, max=1), lambda x: torch.clamp(x, max=1), -4, 4),
}


@pytest.mark.parametrize("name", UNARY)
@QUICK
@given(data=st.data(), layout=LAYOUTS)
def test_unary(name, data, layout):
    ours, theirs, low, high = UNARY[name]
    compare(ours, theirs, data.draw(arrays(low=low, high=high)), layout=layout)


@pytest.mark.parametrize("layout", ["contiguous", "transposed"])
@pytest.mark.parametrize("name", UNARY)
def test_unary_in_blocks(name, layout):
    te.set_num_threads(2)
    ours, theirs, low, high = UNARY[name]
    x = np.random.default_rng(0).uniform(low, high, (130, 700)).astype("float32")
    compare(ours, theirs, x, layout=layout)


def extremes(dtype):
    tiny = 1e-40 if dtype == "float32" else 1e-310
    positive = [0.0, tiny, 1e-38, 1e-8, 0.5, 1.0, 3.0, 90.0, 1e30, 1e38, np.inf]
    return np.array([s * v for v in positive for s in (1, -1)] + [np.nan], dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", UNARY)
def test_unary_extremes(name, dtype):
    values = extremes(dtype)
    if name == "silu":  # torch has NaN at -inf; the limit is 0, and its gradient is 0
        values = values[~np.isinf(values)]
    # torch rounds some results below the smallest normal number to 0
    tolerance = (1e-5 if dtype == "float32" else 1e-12, 2 * np.finfo(dtype).tiny)
    if name == "silu":  # as GELU's: 1/2 - (1/2 - w), where w is small
        tolerance = (tolerance[0], np.finfo(dtype).eps)
    compare(*UNARY[name][:2], values, ones=True, tolerance=tolerance)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_silu_far_out(dtype):
    x = te.Tensor([np.inf, -np.inf, 1e38, -1e38], dtype=dtype, requires_grad=True)
    y = x.silu()
    assert y.tolist()[:2] == [np.inf, 0.0]
    y.backward(np.ones(4))
    assert x.grad.tolist() == [1, 0, 1, 0]


def test_erf_of_float32_is_exact_to_some_units_in_the_last_place():
    x = np.concatenate([np.geomspace(1e-38, 6, 4000), -np.geomspace(1e-38, 6, 4000)])
    x = x.astype("float32")
    exact = torch.erf(torch.from_numpy(x.astype("float64"))).numpy()
    ours = te.erf(te.Tensor(x)).numpy()
    np.testing.assert_allclose(ours, exact, rtol=6e-7)
    assert np.abs(ours).max() == 1


BINARY = {
    "maximum": (te.maximum, torch.maximum),
    "minimum": (te.minimum, torch.minimum),
}


@pytest.mark.parametrize("name", BINARY)
@QUICK
@given(pair=broadcast(2), layout=LAYOUTS)
def test_binary(name, pair, layout):
    compare(*BINARY[name], *pair, layout=layout)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", BINARY)
def test_binary_extremes(name, dtype):
    pairs = np.array(list(itertools.product(extremes(dtype), repeat=2)), dtype)
    compare(*BINARY[name], *(np.ascontiguousarray(column) for column in pairs.T))


def clamp(x, **limits):
    """torch.clamp; its backward fails where x is broadcast to the limits."""
    x, *values = torch.broadcast_tensors(x, *limits.values())
    return torch.clamp(x, **dict(zip(limits, values, strict=True)))


@QUICK
@given(three=broadcast(3), layout=LAYOUTS)
def test_clip_by_tensors(three, layout):
    x, low, _ = three
    compare(te.clip, lambda x, a, b: clamp(x, min=a, max=b), *three, layout=layout)
    compare(te.clip, lambda x, a: clamp(x, min=a), x, low, layout=layout)
    compare(lambda x, a: te.clip(x, max=a), lambda x, a: clamp(x, max=a), *(x, low), layout=layout)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_clip_extremes(dtype):
    triples = np.array(list(itertools.product(extremes(dtype)[::2], repeat=3)), dtype)
    compare(te.clip, torch.clamp, *(np.ascontiguousarray(column) for column in triples.T))


@QUICK
@given(three=broadcast(3), layout=LAYOUTS)
def test_where(three, layout):
    condition, a, b = three[0] > 0, *three[1:]
    compare(te.where, torch.where, condition, a, b, layout=layout)
    compare(lambda c, a: te.where(c, a, 2), lambda c, a: torch.where(c, a, 2), condition, a)
    compare(lambda c, a: te.where(c, -1.5, a), lambda c, a: torch.where(c, -1.5, a), condition, a)


def test_where_keeps_what_it_did_not_choose_out_of_the_gradient():
    x = np.array([0.0, 4.0, np.nan, np.inf, -np.inf])
    for f in (
        lambda lib, x: lib.where(x > 1, x, 0.5),
        lambda lib, x: lib.where(x > 1, lib.sqrt(x), x),
    ):
        compare(lambda x, f=f: f(te, x), lambda x, f=f: f(torch, x), x)


COMPARISONS = {
    "equal": torch.eq, "not_equal": torch.ne, "less": torch.lt, "less_equal": torch.le,
    "greater": torch.gt, "greater_equal": torch.ge,
}  # fmt: skip


@pytest.mark.parametrize("name", COMPARISONS)
@QUICK
@given(pair=broadcast(2))
def test_comparisons(name, pair):
    compare(getattr(te, name), COMPARISONS[name], *pair)


@pytest.mark.parametrize("name", COMPARISONS)
def test_comparisons_of_extremes_and_numbers(name):
    a, b = np.array(list(itertools.product(extremes("float32"), repeat=2)), "float32").T
    compare(getattr(te, name), COMPARISONS[name], a.copy(), b.copy())
    x, ours = te.Tensor([1.0, 2.0, 3.0]), getattr(te, name)
    expected = COMPARISONS[name](torch.tensor([1.0, 2.0, 3.0]), 2).tolist()
    assert ours(x, 2).tolist() == ours(x.numpy(), x * 0 + 2).tolist() == expected
    assert ours(2, x).tolist() == COMPARISONS[name](torch.tensor(2.0), torch.arange(1, 4)).tolist()
    assert ours(x, 2).dtype == te.bool_


@QUICK
@given(x=arrays(), data=st.data(), layout=LAYOUTS)
def test_prelu(x, data, layout):
    channels = x.shape[1] if x.ndim > 1 else 1
    count = data.draw(st.sampled_from([1, channels]))
    weight = np.random.default_rng(1).uniform(-1, 1, count).astype(x.dtype)
    compare(te.prelu, F.prelu, x, weight, layout=layout)


# -- reductions ---------------------------------------------------------------------------


def over_all(function):
    """The torch function over all axes for None."""

    def run(x, axis, keepdims, **options):
        dim = tuple(range(x.ndim)) if axis is None else axis
        return function(x, dim=dim, keepdim=keepdims, **options)

    return run


@st.composite
def axes_of(draw, ndim):
    """None, an axis, or several, counted from either end."""
    if not ndim:
        return None
    chosen = draw(st.lists(st.integers(0, ndim - 1), min_size=1, max_size=ndim, unique=True))
    axes = tuple(a - ndim if draw(st.booleans()) else a for a in chosen)
    return draw(st.sampled_from([None, axes, axes[0]]))


@pytest.mark.parametrize("name", ["max", "min"])
@QUICK
@given(x=arrays(), keepdims=st.booleans(), data=st.data(), layout=LAYOUTS)
def test_extremes_over_axes(name, x, keepdims, data, layout):
    axis = data.draw(axes_of(x.ndim))
    ours, theirs = getattr(te, name), over_all(getattr(torch, f"a{name}"))
    if not x.size:
        with pytest.raises(ValueError, match=f"{name} over axes"):
            ours(te.Tensor(x), None)
        return
    compare(
        lambda x: ours(x, axis, keepdims), lambda x: theirs(x, axis, keepdims), x, layout=layout
    )


@pytest.mark.filterwarnings("ignore:(std|var):UserWarning")  # torch's, on no degrees of freedom
@pytest.mark.parametrize("name", ["var", "std"])
@QUICK
@given(
    x=arrays(ties=False),
    keepdims=st.booleans(),
    correction=st.sampled_from([0, 1, 0.5]),
    data=st.data(),
    layout=LAYOUTS,
)
def test_spread(name, x, keepdims, correction, data, layout):
    axis = data.draw(axes_of(x.ndim))
    ours, theirs = getattr(te, name), over_all(getattr(torch, name))
    compare(
        lambda x: ours(x, axis, keepdims, correction=correction),
        lambda x: theirs(x, axis, keepdims, correction=correction),
        x,
        layout=layout,
    )


@pytest.mark.parametrize("name", ["var", "std"])
def test_spread_of_equal_and_of_far_numbers(name):
    ours, theirs = getattr(te, name), getattr(torch, name)
    same = np.full((2, 3), 0.1, "float32")
    compare(lambda x: ours(x, 1) + 0 * x.sum(), lambda x: theirs(x, 1, correction=0) + 0 * x.sum(),
            np.full((2, 3), 0.5, "float32"))  # fmt: skip
    assert ours(te.Tensor(same)).item() < 1e-8
    far = np.array([[1e6, 1e6 + 1, 1e6 + 2]], "float32")
    compare(lambda x: ours(x, 1), lambda x: theirs(x, 1, correction=0), far)
    ends = np.array([[1e30, -1e30], [1e-30, 0], [1e-40, 0]], "float32")
    compare(lambda x: ours(x, 1), lambda x: theirs(x, 1, correction=0), ends, tolerance=(1e-5, 0))
    assert ours(te.Tensor([3e38, 3e38])).item() == 0  # torch's mean overflows
    for infinite in ([np.inf, 1], [np.nan, 2], [-np.inf, np.inf]):
        assert np.isnan(ours(te.Tensor(infinite)).item())


@pytest.mark.parametrize("name", ["argmax", "argmin"])
@QUICK
@given(x=arrays(), keepdims=st.booleans(), data=st.data(), layout=LAYOUTS)
def test_arguments(name, x, keepdims, data, layout):
    axis = None if not x.ndim else data.draw(st.one_of(st.none(), st.integers(-x.ndim, x.ndim - 1)))
    ours, theirs = getattr(te, name), getattr(torch, name)
    if not x.size:
        with pytest.raises(ValueError, match=name):
            ours(te.Tensor(x))
        return
    result = ours(te.as_tensor(laid_out(x, layout)), axis, keepdims)
    expected = theirs(torch.from_numpy(x), dim=axis, keepdim=keepdims)
    # of equal ones torch promises any, here it is the first
    np.testing.assert_array_equal(result.numpy(), getattr(np, name)(x, axis, keepdims=keepdims))
    assert result.dtype == te.int64
    assert result.shape == tuple(expected.shape)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float8_e4m3fn", "int8", "bool"])
def test_arguments_of_other_dtypes(dtype):
    x = te.Tensor([[0, 1, 0], [1, 0, 1]], dtype=dtype)
    assert x.argmax(1).tolist() == [1, 0]
    assert x.argmin(1).tolist() == [0, 1]
    if x.dtype in (te.float32, te.bfloat16):
        assert te.Tensor([1.0, np.nan, 2.0, np.nan], dtype=dtype).argmax().item() == 1


@QUICK
@given(x=arrays(), data=st.data(), layout=LAYOUTS)
def test_cumsum(x, data, layout):
    compare(lambda x: te.cumsum(x), lambda x: x.flatten().cumsum(0), x, layout=layout)
    if x.ndim:
        axis = data.draw(st.integers(-x.ndim, x.ndim - 1))
        compare(lambda x: te.cumsum(x, axis), lambda x: x.cumsum(axis), x, layout=layout)


def test_cumsum_of_integers_and_extremes():
    assert te.cumsum(te.Tensor([100, 100], dtype="int8")).tolist() == [100, 200]
    assert te.cumsum(te.Tensor([True, True])).dtype == te.int64
    for values in ([1.0, np.inf, -np.inf, 1.0], [1.0, np.nan, 1.0], [1e38, 3e38, -3e38]):
        compare(te.cumsum, lambda x: x.cumsum(0), np.array(values, "float32"))


# -- splitting and indexing ---------------------------------------------------------------


@QUICK
@given(x=arrays(SHAPES.filter(len)), data=st.data(), layout=LAYOUTS)
def test_split(x, data, layout):
    axis = data.draw(st.integers(-x.ndim, x.ndim - 1))
    length = x.shape[axis]
    cuts = sorted(data.draw(st.lists(st.integers(0, length), max_size=3)))
    lengths = [b - a for a, b in itertools.pairwise([0, *cuts, length])]
    size = data.draw(st.one_of(st.integers(1, 6), st.just(lengths)))
    count = len(torch.split(torch.from_numpy(x), size, dim=axis))
    used = data.draw(st.integers(0, count - 1))

    def weighted(parts):
        assert len(parts) == count
        return parts[used] * 2  # the others lead nowhere

    compare(
        lambda x: weighted(te.split(x, size, axis)),
        lambda x: weighted(torch.split(x, size, dim=axis)),
        x,
        layout=layout,
    )
    joined = te.concat(te.split(te.Tensor(x), size, axis), axis)
    np.testing.assert_array_equal(joined.numpy(), x)


@st.composite
def indices(draw, shape):
    """Integer arrays, with repetitions and negative ones, among slices and integers."""
    parts, target = [], draw(st.sampled_from([(3,), (2, 2), (0,), ()]))
    for length in shape[: draw(st.integers(1, len(shape)))]:
        kind = draw(st.sampled_from(["array", "array", "slice", "integer", "mask"]))
        if kind == "slice" or not length:
            parts.append(slice(draw(st.integers(0, length)), None, draw(st.integers(1, 2))))
        elif kind == "integer":
            parts.append(draw(st.integers(-length, length - 1)))
        elif kind == "mask" and len(target) == 1:
            mask = np.zeros(length, bool)
            mask[: target[0]] = True
            whole = mask.sum() == target[0]
            parts.append(mask if whole else np.full(target, -1))
        else:
            seed = draw(st.integers(0, 99))
            parts.append(np.random.default_rng(seed).integers(-length, length, target))
    return tuple(parts)


@settings(QUICK, max_examples=150)
@given(x=arrays(SHAPES.filter(len)), data=st.data(), layout=LAYOUTS)
def test_indexing_with_repetitions(x, data, layout):
    index = data.draw(indices(x.shape))
    theirs = tuple(torch.from_numpy(p) if isinstance(p, np.ndarray) else p for p in index)
    compare(lambda x: x[index], lambda x: x[theirs], x, layout=layout)


def test_indexing_many_rows_many_times():
    x = np.random.default_rng(0).standard_normal((50, 30))
    rows = np.random.default_rng(1).integers(-50, 50, (40, 60))
    compare(lambda x: x[rows], lambda x: x[torch.from_numpy(rows)], x)
    columns = np.random.default_rng(2).integers(0, 30, (40, 60))
    compare(
        lambda x: x[rows, columns],
        lambda x: x[torch.from_numpy(rows), torch.from_numpy(columns)],
        x,
    )


# -- losses -------------------------------------------------------------------------------

REDUCTIONS = st.sampled_from(["mean", "sum", "none"])
POINT_LOSSES = {
    "mse": (te.mse_loss, F.mse_loss, {}),
    "l1": (te.l1_loss, F.l1_loss, {}),
    "huber": (te.huber_loss, F.huber_loss, {}),
    "huber 0.3": (te.huber_loss, F.huber_loss, {"delta": 0.3}),
    "huber 5": (te.huber_loss, F.huber_loss, {"delta": 5.0}),
}


@pytest.mark.parametrize("name", POINT_LOSSES)
@QUICK
@given(x=arrays(), seed=st.integers(0, 9), reduction=REDUCTIONS, layout=LAYOUTS)
def test_losses_of_differences(name, x, seed, reduction, layout):
    ours, theirs, options = POINT_LOSSES[name]
    options = {**options, "reduction": reduction}
    target = np.round(np.random.default_rng(seed).uniform(-4, 4, x.shape)).astype(x.dtype)
    compare(
        lambda x, t: ours(x, t, **options), lambda x, t: theirs(x, t, **options),
        *(x, target), layout=layout,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["l1", "huber", "huber 0.3"])
def test_losses_of_extreme_differences(name):
    ours, theirs, options = POINT_LOSSES[name]
    x = extremes("float32")[:-1]  # the gradient at NaN means nothing in torch
    compare(
        lambda x, t: ours(x, t, "none", **options),
        lambda x, t: theirs(x, t, reduction="none", **options),
        *(x, np.zeros_like(x)),
        tolerance=(1e-6, 1e-37),
    )
    assert np.isnan(ours(te.Tensor([np.nan]), te.Tensor([0.0]), **options).item())


@pytest.mark.parametrize("name", POINT_LOSSES)
def test_losses_of_many_differences(name):
    te.set_num_threads(2)
    ours, theirs, options = POINT_LOSSES[name]
    x, target = np.random.default_rng(0).standard_normal((2, 300, 300))
    compare(lambda x, t: ours(x, t, **options), lambda x, t: theirs(x, t, **options), x, target)


@QUICK
@given(
    x=arrays(low=-30, high=30), seed=st.integers(0, 9), reduction=REDUCTIONS, layout=LAYOUTS,
    weights=st.tuples(st.booleans(), st.booleans()),
)  # fmt: skip
def test_bce_with_logits(x, seed, reduction, layout, weights):
    rng = np.random.default_rng(seed)
    target = rng.choice([0, 1, 0.3], x.shape).astype(x.dtype)
    # a weight for each element, or for each place on the last axis
    weight = rng.uniform(0, 2, x.shape[-1:] if seed % 2 else x.shape).astype(x.dtype)
    positive = rng.uniform(0, 2, x.shape[-1:]).astype(x.dtype)
    factors = [weight if weights[0] else None, positive if weights[1] else None]

    def run(function, x, t, make):
        given = [None if f is None else make(f) for f in factors]
        return function(x, t, given[0], pos_weight=given[1], reduction=reduction)

    compare(
        lambda x, t: run(te.bce_with_logits, x, t, te.Tensor),
        lambda x, t: run(F.binary_cross_entropy_with_logits, x, t, torch.from_numpy),
        *(x, target),
        layout=layout,
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_bce_with_logits_at_extremes(dtype):
    finite = extremes(dtype)[:-1]
    finite = finite[np.isfinite(finite)]
    x, target = (np.array(list(itertools.product(finite, [0, 1, 0.25])), dtype).T).copy()
    compare(
        lambda x, t: te.bce_with_logits(x, t, reduction="none"),
        lambda x, t: F.binary_cross_entropy_with_logits(x, t, reduction="none"),
        *(x, target),
        fixed=(1,),
        tolerance=(1e-5, 1e-20),  # torch loses losses below
    )
    # torch has 0·inf = NaN where a certain prediction is right
    x = te.Tensor([np.inf, np.inf, -np.inf, -np.inf, np.inf], dtype=dtype, requires_grad=True)
    loss = te.bce_with_logits(x, te.Tensor([1, 0, 1, 0, 0.5]), reduction="none")
    assert loss.tolist() == [0, np.inf, np.inf, 0, np.inf]
    loss.backward(np.ones(5))
    np.testing.assert_allclose(x.grad.numpy(), [0, 1, -1, 0, 0.5], atol=1e-29)


@st.composite
def classifications(draw):
    """Scores (N, C, …), labels, weights and the index that is ignored."""
    classes = draw(st.integers(1, 5))
    rest = draw(st.sampled_from([None, (), (3,), (2, 2), (0,)]))
    lead = () if rest is None else (draw(st.integers(0, 4)),)
    places = (*lead, *(rest or ()))
    shape = (*lead, classes, *(rest or ()))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    scores = np.array(rng.uniform(-5, 5, shape), draw(DTYPES))
    labels = np.asarray(rng.integers(0, classes, places))
    ignored = draw(st.sampled_from([-100, -1, 0]))
    labels = np.where(rng.uniform(size=places) < 0.3, ignored, labels)
    weight = rng.uniform(0.1, 2, classes).astype(scores.dtype) if draw(st.booleans()) else None
    return scores, labels, weight, ignored


@settings(QUICK, max_examples=120)
@given(case=classifications(), reduction=REDUCTIONS, layout=LAYOUTS)
def test_nll_loss(case, reduction, layout):
    scores, labels, weight, ignored = case
    given = {"ignore_index": ignored, "reduction": reduction}
    factors = None if weight is None else torch.from_numpy(weight)
    compare(
        lambda x, t: te.nll_loss(x, t, weight, **given),
        lambda x, t: F.nll_loss(x, t, factors, **given),
        *(scores, labels),
        layout=layout,
    )


@settings(QUICK, max_examples=120)
@given(
    case=classifications(), reduction=REDUCTIONS, layout=LAYOUTS,
    smoothing=st.sampled_from([0.0, 0.1, 1.0]), soft=st.booleans(),
)  # fmt: skip
def test_cross_entropy(case, reduction, layout, smoothing, soft):
    scores, labels, weight, ignored = case
    given = {"reduction": reduction, "label_smoothing": smoothing}
    target = labels
    if soft:
        target = np.random.default_rng(3).uniform(0, 1, scores.shape).astype(scores.dtype)
    else:
        given["ignore_index"] = ignored
    factors = None if weight is None else torch.from_numpy(weight)
    compare(
        lambda x, t: te.cross_entropy(x, t, weight, **given),
        lambda x, t: F.cross_entropy(x, t, factors, **given),
        *(scores, target),
        layout=layout,
    )


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("top", [80.0, 1e4, 1e30, 1e38])
def test_cross_entropy_of_scores_far_apart(top, reduction):
    scores = np.array([[top, 0, -top], [-top, top, 0], [0, 0, top]], "float32")
    for labels in ([0, 1, 2], [1, 2, 0], [2, 0, 1]):
        compare(
            lambda x, t: te.cross_entropy(x, t, reduction=reduction),
            lambda x, t: F.cross_entropy(x, t, reduction=reduction),
            *(scores, np.array(labels)),
        )


def test_class_losses_where_nothing_counts():
    x, labels = np.array([[0.1, 0.2]]), np.array([-100])
    for ours, theirs in ((te.nll_loss, F.nll_loss), (te.cross_entropy, F.cross_entropy)):
        compare(ours, theirs, x, labels)  # NaN, with gradient 0


def test_a_class_of_weight_0_may_be_impossible():
    log_p = te.Tensor([[-np.inf, 0.0], [0.0, -np.inf]], requires_grad=True)
    loss = te.nll_loss(log_p, [0, 0], te.Tensor([1.0, 0.0]), reduction="none")
    assert loss.tolist() == [np.inf, 0]
    assert te.nll_loss(log_p, [1, 1], te.Tensor([1.0, 0.0]), reduction="none").tolist() == [0, 0]
