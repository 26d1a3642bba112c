"""What operations promise apart from their values: methods and functions agree, and silence."""

import numpy as np
import pytest

import te_tensor as te

X = np.random.default_rng(0).uniform(0.2, 2, (3, 4)).astype("float32")


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("add", (2.0,)),
        ("sub", (2.0,)),
        ("mul", (2.0,)),
        ("div", (2.0,)),
        ("pow", (2.0,)),
        ("neg", ()),
        ("abs", ()),
        ("exp", ()),
        ("log", ()),
        ("sqrt", ()),
        ("sum", (1, True)),
        ("mean", (0,)),
        ("max", ((0, 1),)),
        ("min", (0, True)),
        ("var", (1, True)),
        ("std", (None,)),
        ("argmax", (1, True)),
        ("argmin", ()),
        ("cumsum", (1,)),
        ("log1p", ()),
        ("sin", ()),
        ("cos", ()),
        ("erf", ()),
        ("clip", (0.5, 1.0)),
        ("maximum", (0.5,)),
        ("minimum", (X[::-1],)),
        ("silu", ()),
        ("leaky_relu", (0.1,)),
        ("relu", ()),
        ("sigmoid", ()),
        ("tanh", ()),
        ("gelu", ("tanh",)),
        ("softmax", (0,)),
        ("log_softmax", (0,)),
        ("reshape", ((2, 6),)),
        ("transpose", (0, 1)),
        ("permute", ((1, 0),)),
        ("flatten", (0, 1)),
        ("unsqueeze", (1,)),
        ("expand", ((2, 3, 4),)),
        ("matmul", (X.T,)),
    ],
)
def test_functions_are_methods(name, arguments):
    x = te.Tensor(X)
    method = getattr(x, name)(*arguments)
    for given in (x, X):  # a function takes arrays too
        result = getattr(te, name)(given, *arguments)
        assert isinstance(result, te.Tensor)
        np.testing.assert_array_equal(result.numpy(), method.numpy())


def test_operators_are_methods():
    x, y = te.Tensor(X), te.Tensor(X + 1)
    results = {
        "add": x + y,
        "sub": x - y,
        "mul": x * y,
        "div": x / y,
        "pow": x**y,
        "neg": -x,
        "abs": abs(x),
        "matmul": x @ y.T,
    }
    for name, result in results.items():
        other = () if name in ("neg", "abs") else (y.T if name == "matmul" else y,)
        np.testing.assert_array_equal(getattr(x, name)(*other).numpy(), result.numpy())


def test_inputs_are_never_written_to():
    values = np.array([[0.5, 1.5], [2.5, -3.5]], "float32")
    values.flags.writeable = False
    label = np.array([0, 1])
    for f in (
        lambda x: x.relu(),
        lambda x: x.exp() + x.tanh() * x.sigmoid(),
        lambda x: x.softmax(0) + x.log_softmax(1),
        lambda x: x.gelu() + x.gelu("tanh"),
        lambda x: te.layer_norm(x, 2, x[0], x[1]),
        lambda x: te.dropout(x, 0.5),
        lambda x: te.cross_entropy(x, label, label_smoothing=0.1),
        lambda x: te.mse_loss(x, x * 2),
        lambda x: te.huber_loss(x, x * 2) + te.l1_loss(x, x * 2),
        lambda x: te.bce_with_logits(x, values > 0, values, pos_weight=values),
        lambda x: te.nll_loss(x, label, values[0]),
        lambda x: x.erf() + x.silu() + x.leaky_relu() + te.prelu(x, x[0]),
        lambda x: x.clip(0, 1) + x.maximum(values) + x.where(values > 0, values),
        lambda x: x.min(0) + x.var(0) + x.std(0) + x.cumsum(1)[0],
        lambda x: x.split(1)[0],
        lambda x: te.linear(x, x, x[0]),
        lambda x: te.attention(*(x.reshape(1, 1, 2, 2) for _ in range(3)), causal=True),
        lambda x: te.embedding(label, x),
    ):
        x = te.from_numpy(values)
        x.requires_grad = True
        y = f(x)
        grad = np.ones(y.shape, "float32")
        grad.flags.writeable = False
        y.backward(grad)
        assert x.grad is not None


def test_functions_of_several_results():
    x = te.Tensor(X)
    for given in (x, X):
        for part, other in zip(te.split(given, [1, 3], 1), x.split((1, 3), 1), strict=True):
            np.testing.assert_array_equal(part.numpy(), other.numpy())


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "int32"])
@pytest.mark.parametrize("f", [te.maximum, te.minimum, te.add, te.mul, te.sub, te.div, te.pow,
                               lambda x, y: te.where(np.array([True, False]), x, y)])  # fmt: skip
def test_numbers_are_weak_on_either_side(f, dtype):
    x = te.Tensor([1, 3], dtype=dtype)
    assert f(x, 2).dtype == f(2, x).dtype == (x / 1 if f is te.div else x).dtype
    for a, b in ((x, 0.1), (0.1, x)):
        result = f(a, b)
        assert result.dtype == (te.float32 if dtype == "int32" else x.dtype)
        if dtype == "float64":  # the number isn't rounded to float32 on the way
            exact = {te.maximum: max, te.minimum: min}.get(f)
            if exact:
                assert result.tolist() == [exact(0.1, v) for v in (1.0, 3.0)]


def test_clip_takes_weak_numbers_and_other_dtypes():
    x = te.Tensor([1, 5, 9], dtype="int8")
    assert te.clip(x, 2, 7).dtype == te.int8
    assert te.clip(x, 2.5).dtype == te.float32
    assert te.clip(te.Tensor([0.0], dtype="float64"), 0.1).item() == 0.1
    small = te.Tensor([1.0, 5.0], dtype="float16")
    assert te.clip(small, 0.1, te.Tensor([2.0])).dtype == te.float32
    assert te.clip(small, 2, 3).dtype == te.float16
    assert te.clip(x).tolist() == x.tolist()


def test_split_makes_views():
    x = te.zeros(4, 3)
    for part in te.split(x, 2):
        assert np.shares_memory(part.numpy(), x.numpy())


@pytest.mark.parametrize("shape", [(3, 4), (70, 90), (300, 300)])
@pytest.mark.parametrize("dtype", ["float32", "float64", "int8", "int16", "int64", "bool"])
def test_where_chooses_in_every_size_and_dtype(shape, dtype, threads):
    rng = np.random.default_rng(0)
    a, b = (rng.integers(0, 2, shape).astype(dtype) for _ in range(2))
    mask = rng.uniform(size=shape) < 0.5
    np.testing.assert_array_equal(te.where(mask, a, b).numpy(), np.where(mask, a, b))
    row = te.where(mask[:1], te.Tensor(a), te.Tensor(b[:, :1]))
    np.testing.assert_array_equal(row.numpy(), np.where(mask[:1], a, b[:, :1]))
    swapped = te.where(te.as_tensor(mask).T, te.as_tensor(a).T, te.as_tensor(b).T)
    np.testing.assert_array_equal(swapped.numpy(), np.where(mask, a, b).T)


@pytest.mark.parametrize("shape", [(3, 4), (70, 90), (300, 300)])
@pytest.mark.parametrize("f", [te.relu, lambda x: x.clip(0, 9), lambda x: x.maximum(0),
                               lambda x: te.where(x.numpy() > 0, x, 0.0)])  # fmt: skip
def test_an_infinite_gradient_stays_where_it_belongs(f, shape, threads):
    values = np.random.default_rng(0).uniform(-1, 1, shape)
    x = te.Tensor(values, requires_grad=True)
    f(x).backward(np.full(shape, np.inf))
    np.testing.assert_array_equal(x.grad.numpy(), np.where(values > 0, np.inf, 0))


def test_sums_of_many_have_hardly_a_rounding():
    exact = float(np.float32(0.1))
    for shape in ((300, 500), (70, 1024), (3, 50_001), (2, 3, 51_200)):
        x = np.full(shape, 0.1, "float32")
        assert te.sum(te.Tensor(x)).item() == pytest.approx(exact * x.size, rel=1e-6)
        for axis in range(x.ndim):
            sums = te.sum(te.Tensor(x), axis).numpy()
            np.testing.assert_allclose(sums, exact * x.shape[axis], rtol=1e-6)
            assert sums.shape == x.sum(axis).shape
            means = te.mean(te.Tensor(x), axis, keepdims=True).numpy()
            assert means.shape == x.sum(axis, keepdims=True).shape
            np.testing.assert_allclose(means, exact, rtol=1e-6)


@pytest.mark.parametrize("more", [0, 1, 511, 2047, 2049])
@pytest.mark.parametrize("kernels", ["auto", "numpy"])
def test_a_sum_has_each_of_many_elements_once(more, kernels, threads):
    """Small integers, whose sums are exact in any order."""
    te.set_kernels(kernels)
    x = np.random.default_rng(0).integers(-8, 9, (1 << 18) + more)
    assert te.sum(te.Tensor(x.astype("float32"))).item() == x.sum()


INF, NAN = np.inf, np.nan
#: Operations that say what they give at the edge of their domain give it without a warning.
QUIET = {
    "exp": (lambda x: x.exp(), [100.0, -200.0, INF, -INF, NAN]),
    "log": (lambda x: x.log(), [0.0, -0.0, -1.0, INF, NAN, 1e-40]),
    "sqrt": (lambda x: x.sqrt(), [0.0, -0.0, -1.0, INF, NAN, 1e-40]),
    "div": (lambda x: 1 / x, [0.0, -0.0, INF, NAN, 1e-30, 1e-40, 1e30]),
    "div by itself": (lambda x: x / x, [0.0, INF, NAN, 1e-30, 1e30]),
    "pow": (lambda x: x**-2, [0.0, 1e-30, 1e30, INF, NAN]),
    "root": (lambda x: x**0.5, [0.0, -1.0, INF, NAN]),
    "pow of itself": (lambda x: x**x, [0.0, -0.5, 100.0, INF, NAN]),
    "relu": (lambda x: x.relu(), [0.0, INF, -INF, NAN]),
    "sigmoid": (lambda x: x.sigmoid(), [100.0, -100.0, -90.0, INF, -INF, NAN, 1e-40]),
    "tanh": (lambda x: x.tanh(), [100.0, INF, -INF, NAN, 1e-40]),
    "gelu": (lambda x: x.gelu(), [1e30, -1e30, 9.0, -9.0, INF, -INF, NAN, 1e-40]),
    "gelu tanh": (lambda x: x.gelu("tanh"), [1e30, -1e30, 9.0, -9.0, INF, -INF, NAN]),
    "softmax": (lambda x: x.softmax(), [1e30, -1e30, INF, -INF, NAN, 0.0]),
    "softmax far apart": (lambda x: x.softmax(), [0.0, -90.0, -100.0, -1e30, -INF]),
    "log_softmax": (lambda x: x.log_softmax(), [1e30, -1e30, INF, -INF, NAN, 0.0]),
    "log_softmax far apart": (lambda x: x.log_softmax(), [0.0, -90.0, -1e30, -INF]),
    "cross_entropy": (lambda x: te.cross_entropy(x, np.array(0)), [0.0, -90.0, -1e30, -INF]),
    "cross_entropy inf": (lambda x: te.cross_entropy(x, np.array(0)), [-INF, -90.0, 0.0]),
    "mean of nothing": (lambda x: x[:0].mean(), [0.0]),
    "mse of nothing": (lambda x: te.mse_loss(x[:0], x[:0]), [0.0]),
    "abs": (lambda x: x.abs(), [INF, NAN, -0.0]),
    "max": (lambda x: x.max(), [INF, NAN, -INF]),
    "min": (lambda x: x.min(), [INF, NAN, -INF]),
    "var": (lambda x: x.var(), [INF, NAN, -INF, 1e30]),
    "std": (lambda x: x.std(correction=1), [1.0]),
    "cumsum": (lambda x: x.cumsum(), [INF, -INF, 1e30]),
    "log1p": (lambda x: x.log1p(), [-1.0, -2.0, INF, NAN, 1e-40]),
    "sin": (lambda x: x.sin(), [INF, -INF, NAN, 1e30, 1e-40]),
    "cos": (lambda x: x.cos(), [INF, -INF, NAN, 1e30, 1e-40]),
    "erf": (lambda x: x.erf(), [INF, -INF, NAN, 1e30, 1e-40]),
    "clip": (lambda x: x.clip(-1, 1), [INF, -INF, NAN, 1e-40]),
    "maximum": (lambda x: x.maximum(0), [INF, -INF, NAN, 0.0]),
    "silu": (lambda x: x.silu(), [INF, -INF, NAN, 1e30, -1e30, -90.0, 1e-40]),
    "leaky_relu": (lambda x: x.leaky_relu(), [INF, -INF, NAN, 1e-40]),
    "prelu": (lambda x: te.prelu(x, np.ones(1, x.dtype)), [INF, -INF, NAN, 1e-40]),
    "huber": (lambda x: te.huber_loss(x, x * 0), [1e30, -1e30, INF, NAN]),
    "l1": (lambda x: te.l1_loss(x, x * 0), [1e30, -1e30, INF, NAN]),
    "bce": (lambda x: te.bce_with_logits(x, x * 0), [1e30, -1e30, INF, -INF, NAN, 1e-40]),
    "nll": (lambda x: te.nll_loss(x, np.array(0)), [-INF, 0.0]),
    "cast": (lambda x: x.astype("float16"), [1e30, INF, NAN, 1e-30]),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", QUIET)
def test_edges_give_no_warning(name, dtype):
    f, values = QUIET[name]  # warnings are errors here
    x = te.Tensor(values, dtype=dtype, requires_grad=True)
    y = f(x)
    y.backward(np.ones(y.shape))
    assert x.grad.shape == x.shape


def test_overflow_gives_infinity_without_a_warning():
    x = te.Tensor([1e30, -1e30], requires_grad=True)
    assert (x * x).tolist() == [INF, INF]
    assert (x * 1e30 - x * 1e30).numpy().tolist() != [0, 0]  # inf - inf
    assert (x + 1e39).tolist() == [INF, INF]
    (x * x * x).sum().backward()
    assert x.grad.tolist() == [INF, INF]


def test_large_edges_give_no_warning_in_the_workers():
    te.set_num_threads(2)
    x = te.full((600, 700), -1.0, requires_grad=True)
    assert np.isnan(x.log().numpy()).all()
    assert np.isnan(x.sqrt().numpy()).all()
    assert np.isinf((1 / (x * 0)).numpy()).all()


@pytest.mark.parametrize("f", [te.exp, te.log, te.sqrt, te.sigmoid, te.tanh, te.gelu, te.softmax,
                               te.log_softmax, te.mean, te.log1p, te.sin, te.cos, te.erf, te.silu,
                               te.leaky_relu, te.var, te.std])  # fmt: skip
@pytest.mark.parametrize("dtype", ["int64", "int8", "uint8", "bool"])
def test_integers_become_float32_where_results_are_fractions(f, dtype):
    values = np.array([1, 0, 1], dtype)
    result = f(te.Tensor(values))
    assert result.dtype == te.float32
    expected = f(te.Tensor(values.astype("float32")))
    np.testing.assert_allclose(result.numpy(), expected.numpy(), rtol=1e-6)


@pytest.mark.parametrize("f", [te.relu, te.neg, te.abs, te.max, te.min, te.sum, te.cumsum])
@pytest.mark.parametrize("dtype", ["int64", "int32"])
def test_integers_stay_integers_elsewhere(f, dtype):
    result = f(te.Tensor([-3, 2], dtype=dtype))
    assert result.dtype.kind == "i"


SMALL_OPERATIONS = {
    "sum": lambda x: x.sum(1),
    "mean": lambda x: x.mean(0),
    "softmax": lambda x: x.softmax(),
    "gelu": lambda x: x.gelu(),
    "silu": lambda x: x.silu(),
    "erf": lambda x: x.erf(),
    "std": lambda x: x.std(1),
    "min": lambda x: x.min(0),
    "cumsum": lambda x: x.cumsum(1),
    "clip": lambda x: x.clip(-0.3, 0.2),
    "maximum": lambda x: x.maximum(0.1),
    "where": lambda x: te.where(x > 0, x, 0.1),
    "split": lambda x: x.split(3)[1],
    "prelu": lambda x: te.prelu(x, np.full(1, 0.25, "f4")),
    "bce": lambda x: te.bce_with_logits(x, np.full(x.shape, 0.25, "f4")),
    "huber": lambda x: te.huber_loss(x, x * 2),
    "nll": lambda x: te.nll_loss(x, np.array([0, 1, 2, 3])),
    "layer_norm": lambda x: te.layer_norm(x, 300),
    "linear": lambda x: te.linear(x, x),
    "matmul": lambda x: x @ x.T,
    "concat": lambda x: te.concat([x, x]),
    "slice": lambda x: x[1:, ::2],
    "embedding": lambda x: te.embedding(np.array([0, 3, 3]), x),
    "mse": lambda x: te.mse_loss(x, x * 2),
    "cross_entropy": lambda x: te.cross_entropy(x, np.array([0, 1, 2, 3])),
    "attention": lambda x: te.attention(*(x.reshape(1, 4, 20, 15) for _ in range(3))),
    "square": lambda x: x**2,
}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float8_e5m2"])
@pytest.mark.parametrize("name", SMALL_OPERATIONS)
def test_small_floats_round_once(name, dtype):
    f = SMALL_OPERATIONS[name]
    values = np.random.default_rng(0).uniform(-1, 1, (4, 300))
    small = te.Tensor(values, dtype=dtype, requires_grad=True)
    wide = te.Tensor(small.numpy().astype("float32"), requires_grad=True)
    result, expected = f(small), f(wide)
    assert result.dtype == small.dtype
    if name not in ("mse", "huber"):  # x * 2 is rounded on the way, exactly
        np.testing.assert_array_equal(
            result.numpy().astype("f4"), expected.numpy().astype(small.dtype).astype("f4")
        )
    result.sum().backward()
    assert small.grad.dtype == small.dtype


def test_a_scalar_beside_a_small_float_is_not_rounded_first():
    # float32(0.1) times 1.25, rounded once, differs from bfloat16(0.1) times 1.25
    x = te.Tensor([1.25, 1.0078125], dtype="bfloat16")
    expected = (x.numpy().astype("f4") * np.float32(0.1)).astype(x.dtype)
    assert (x * 0.1).tolist() == expected.tolist()


def test_expand_is_a_view():
    x = te.ones(3, 1)
    y = x.expand(3, 10**9)
    assert y.shape == (3, 10**9)
    assert np.shares_memory(y[0, :1]._array, x._array)


def test_max_of_integers_and_bool():
    assert te.max(te.Tensor([1, 5, 2])).item() == 5
    assert te.max(te.Tensor([False, True])).item() is True


def test_embedding_keeps_integer_tables():
    assert te.embedding([1, 0], te.Tensor([[1, 2], [3, 4]])).tolist() == [[3, 4], [1, 2]]
