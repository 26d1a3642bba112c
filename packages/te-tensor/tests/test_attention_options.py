"""Offsets, heads side by side, prepared distances, registered functions, and `linears`."""

from enum import IntEnum

import numpy as np
import pytest

import te_tensor as te


def draw(*shape, seed=0, low=-1.0):
    return np.random.default_rng(seed).uniform(low, 1, shape)


@pytest.fixture(autouse=True)
def _functions(monkeypatch):
    from te_tensor.ops import _distance

    monkeypatch.setattr(_distance, "DISTANCE_FUNCTIONS", dict(_distance.DISTANCE_FUNCTIONS))


@pytest.mark.parametrize("rows", [1, 3, 200])
@pytest.mark.parametrize("offset", [0, 1, 4, 300])
@pytest.mark.parametrize("grad", [False, True])
def test_offset(rows, offset, grad):
    columns = rows + 4
    q, k, v = (draw(2, 4, n, 8, seed=i) for i, n in enumerate((rows, columns, columns)))
    seen = np.arange(columns) <= np.arange(rows)[:, None] + offset
    found = []
    for options in ({"causal": True, "offset": offset}, {"mask": seen}):
        tensors = [te.Tensor(a, requires_grad=grad) for a in (q, k, v)]
        result = te.attention(*tensors, **options)
        if grad:
            result.exp().sum().backward()
        found.append([result, *([t.grad for t in tensors] if grad else [])])
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one.numpy(), other.numpy(), atol=1e-12)


@pytest.mark.parametrize("offset", [-1, 1.5, True, "2"])
def test_bad_offsets(offset):
    with pytest.raises(ValueError, match="offset is"):
        te.attention(*(draw(1, 1, 2, 2) for _ in range(3)), causal=True, offset=offset)


@pytest.mark.parametrize("rows", [5, 150])
@pytest.mark.parametrize("which", ["q", "k", "v", "qkv"])
@pytest.mark.parametrize("grad", [False, True])
def test_heads_side_by_side(rows, which, grad):
    apart = {"q": draw(2, 4, rows, 8), "k": draw(2, 2, 7, 8, seed=1), "v": draw(2, 2, 7, 6, seed=2)}
    joined = {
        name: a.transpose(0, 2, 1, 3).reshape(2, a.shape[2], -1) if name in which else a
        for name, a in apart.items()
    }
    upstream = draw(2, 4, rows, 6, seed=3)
    found = []
    for arrays in (apart, joined):
        tensors = {n: te.Tensor(a, requires_grad=grad) for n, a in arrays.items()}
        result = te.attention(**tensors, heads=4, kv_heads=2)
        if grad:
            flat = upstream.transpose(0, 2, 1, 3).reshape(2, rows, -1)
            result.backward(flat if result.ndim == 3 else upstream)
        found.append((result, tensors))
    assert found[1][0].ndim == (3 if "q" in which else 4)

    def four(x, heads):
        x = x.numpy()
        return x if x.ndim == 4 else x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3)

    np.testing.assert_allclose(four(found[1][0], 4), found[0][0].numpy(), atol=1e-12)
    for name, heads in (("q", 4), ("k", 2), ("v", 2)) if grad else ():
        gradients = (tensors[name].grad for _, tensors in found)
        plain, other = gradients
        np.testing.assert_allclose(four(other, heads), plain.numpy(), atol=1e-12)


def test_heads_that_do_not_divide():
    with pytest.raises(ValueError, match=r"\(2, 3, 8\)"):
        te.attention(*(te.ones(2, 3, 8) for _ in range(3)), heads=3)
    with pytest.raises(ValueError, match=r"\(2, 3, 8\)"):
        te.attention(*(te.ones(2, 3, 8) for _ in range(3)))


# -- distances ----------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5, 7), (2, 5, 7), (2, 4, 5, 7)])
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_prepared_distances(shape, dtype):
    q, k, v = (te.Tensor(draw(2, 4, n, 8, seed=n), dtype=dtype) for n in (5, 7, 7))
    distance = draw(*shape, low=0)
    distance[..., 2] = np.inf
    options = {"slopes": np.arange(4.0), "bias_function": "gaussian"}
    found = []
    for prepared in (False, True):
        d = te.Tensor(distance, requires_grad=True)
        given = te.prepare_distance(d, "gaussian", dtype=dtype) if prepared else d
        result = te.attention(q, k, v, distance=given, **options)
        result.sum().backward()
        found.append((result.numpy(), d.grad.numpy()))
    for one, other in zip(*found, strict=True):
        assert np.array_equal(one, other)


def test_prepared_distances_take_another_dtype():
    prepared = te.prepare_distance(draw(3, 3, low=0))
    assert prepared.shape == (3, 3)
    q = draw(1, 2, 3, 4)
    result = te.attention(q, q, q, distance=prepared, slopes=np.ones(2))
    assert result.dtype == te.float64


@pytest.mark.parametrize(
    ("distance", "function", "given"),
    [(-np.ones((2, 2)), "gaussian", "negative"), (np.full((2, 2), np.nan), "gaussian", "NaN"),
     (np.ones((2, 2)), "gauss", "'gauss'"), (np.ones((2, 2)), 3, "3")],
)  # fmt: skip
def test_what_can_not_be_prepared(distance, function, given):
    with pytest.raises(ValueError, match=given):
        te.prepare_distance(distance, function)


class Function(IntEnum):
    GAUSSIAN = 1
    LINEAR = 2


@pytest.mark.parametrize("function", ["GAUSSIAN", "Gaussian", Function.GAUSSIAN, ["gaussian"] * 2])
def test_functions_have_their_names_in_any_case(function):
    q = te.Tensor(draw(1, 2, 4, 3))
    options = {"distance": draw(4, 4, low=0.1), "slopes": [0.5, 2.0]}
    expected = te.attention(q, q, q, bias_function="gaussian", **options)
    assert te.attention(q, q, q, bias_function=function, **options).tolist() == expected.tolist()


@pytest.mark.parametrize("function", [1, True, Function.LINEAR, te.float32, None])
def test_what_names_no_function(function):
    with pytest.raises(ValueError, match=r"bias_function is .*: expected one of logarithmic"):
        te.distance_function(function)


def test_registered_functions():
    made = te.register_distance_function("cubic", lambda d: d**3, lambda d: 3 * d**2)
    assert te.distance_function("cubic") is made
    tensors = [te.Tensor(draw(1, 2, 4, 3, seed=i), requires_grad=True) for i in range(3)]
    d = te.Tensor(draw(4, 4, low=0.1), requires_grad=True)
    slopes = te.Tensor([0.5, 2.0], dtype="float64", requires_grad=True)
    for function in ("cubic", made):
        assert te.gradcheck(
            lambda q, k, v, d, s, f=function: te.attention(
                q, k, v, distance=d, slopes=s, bias_function=f
            ),
            [*tensors, d, slopes],
        )
    assert te.distance_function("Cubic") is made
    for name in ("cubic", "CUBIC"):
        with pytest.raises(ValueError, match=f"{name!r} is registered"):
            te.register_distance_function(name, np.square, np.square)


@pytest.mark.parametrize("rates", [[1.0, 0.0], [1.0, -2.0], [1.0, np.nan]])
def test_rates_are_above_zero(rates):
    q = draw(1, 2, 3, 4)
    with pytest.raises(ValueError, match="rates"):
        te.attention(q, q, q, distance=np.ones((3, 3)), slopes=np.ones(2), rates=rates)


def test_rates_without_distance():
    q = draw(1, 2, 3, 4)
    with pytest.raises(ValueError, match="rates"):
        te.attention(q, q, q, rates=np.ones(2))


# -- linears ------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(4,), (3, 4), (2, 3, 4), (0, 4)])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("used", [(0, 1, 2), (1,)])
def test_linears_are_linear_several_times(shape, with_bias, used):
    arrays = [draw(*shape), *(draw(n, 4, seed=n) for n in (2, 5, 3))]
    arrays += [draw(n, seed=n + 9) for n in (2, 5, 3)] if with_bias else []
    found = []
    for together in (True, False):
        x, *rest = (te.Tensor(a, requires_grad=True) for a in arrays)
        weights, biases = rest[:3], rest[3:] or None
        if together:
            results = te.linears(x, weights, biases)
        else:
            results = [
                te.linear(x, w, None if biases is None else biases[i])
                for i, w in enumerate(weights)
            ]
        sum((results[i].exp().sum() for i in used), te.zeros((), dtype="float64")).backward()
        found.append([*results, *(t.grad for t in (x, *rest))])
    for one, other in zip(*found, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            np.testing.assert_allclose(one.numpy(), other.numpy(), atol=1e-12)


@pytest.mark.parametrize("rows", [1, 70, 3000])
def test_large_linears_in_threads(rows):
    before = te.get_num_threads()
    te.set_num_threads(3)
    x, weights = te.randn(rows, 300), [te.randn(n, 300) for n in (200, 100, 301)]
    biases = [te.randn(len(w)) for w in weights]
    for result, w, b in zip(te.linears(x, weights, biases), weights, biases, strict=True):
        expected = x.numpy().astype(float) @ w.numpy().T + b.numpy()
        np.testing.assert_allclose(result.numpy(), expected, atol=1e-3)
    te.set_num_threads(before)


def test_bad_linears():
    x, w = te.ones(2, 3), te.ones(4, 3)
    with pytest.raises(ValueError, match="2 weights and 1 biases"):
        te.linears(x, [w, w], [te.ones(4)])
    with pytest.raises(ValueError, match="0 weights"):
        te.linears(x, [])
    with pytest.raises(ValueError, match=r"\(4, 2\)"):
        te.linears(x, [w, te.ones(4, 2)])
    with pytest.raises(TypeError, match="float64"):
        te.linears(x, [w, w.astype("float64")])


@pytest.mark.parametrize("changed", [0, 1, 2])
def test_a_change_before_backward_is_noticed(changed):
    tensors = [te.ones(2, 3, requires_grad=True) for _ in range(3)]
    first, second = te.linears(tensors[0], tensors[1:])
    with tensors[changed].lock() as array:
        array *= 2
    with pytest.raises(RuntimeError, match="Linears"):
        (first + second).sum().backward()


# -- rotary -------------------------------------------------------------------------------


def test_bad_rotary():
    table = np.ones((5, 2))
    for shape, cos in (((5, 6), table), ((4, 4), table), ((4,), table), ((5, 4), table[:, :1])):
        with pytest.raises(ValueError, match="rotary got x"):
            te.rotary(te.ones(*shape), cos, table)
    with pytest.raises(TypeError, match="int64"):
        te.rotary(te.ones(5, 4, dtype="int64"), table, table)
