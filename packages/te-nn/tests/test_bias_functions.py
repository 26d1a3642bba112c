"""Registered functions, functions per head, softplus slopes and presets, against float64."""

import itertools

import numpy as np
import pytest

import te_nn as nn
import te_tensor as te
from te_nn import BiasFunction, bias_function, distances

B, S, D, H = 2, 6, 8, 4

PHI = {
    "logarithmic": (np.log1p, lambda d: 1 / (1 + d)),
    "gaussian": (np.square, lambda d: 2 * d),
    "alibi": (lambda d: d, np.ones_like),
    "root": (lambda d: np.sqrt(1 + d) - 2, lambda d: 0.5 / np.sqrt(1 + d)),
}
CODES = itertools.count(500)


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    """Functions that a test registers are gone after it."""
    from te_tensor.ops import _distance

    monkeypatch.setattr(bias_function, "_registered", list(bias_function._registered))
    monkeypatch.setattr(_distance, "DISTANCE_FUNCTIONS", dict(_distance.DISTANCE_FUNCTIONS))


@pytest.fixture
def root():
    return nn.register_bias_function("Root", *PHI["root"], code=next(CODES))


def reference(q, k, v, distance, slopes, rates, names):
    """The formula in float64, all at once, as te operations whose gradients are checked apart."""
    width = q.shape[-1]
    scores = q @ k.transpose(-1, -2) / width**0.5
    rows = []
    for head, name in enumerate(names):
        scaled = distance * rates[head]
        if name == "gaussian":
            phi = scaled * scaled
        elif name == "logarithmic":
            phi = (scaled + 1.0).log()
        elif name == "alibi":
            phi = scaled
        else:
            phi = (scaled + 1.0).sqrt() - 2.0
        rows.append(scores[:, head] - slopes[head] * phi)
    return te.stack(rows, axis=1).softmax(-1) @ v


NAMES = [
    ("gaussian",) * H,
    ("alibi",) * H,
    ("root",) * H,
    ("gaussian", "logarithmic", "root", "alibi"),
]


@pytest.mark.parametrize("names", NAMES, ids="-".join)
@pytest.mark.parametrize("with_rates", [False, True])
@pytest.mark.parametrize("shape", [(S, S), (B, S, S)])
def test_against_the_formula_in_float64(names, with_rates, shape, root):
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((B, H, S, 3)) for _ in range(3)]
    arrays += [rng.uniform(0.1, 2, shape), rng.uniform(0.1, 1, H), rng.uniform(0.5, 2, H)]
    upstream = rng.standard_normal((B, H, S, 3))
    found = []
    for ours in (True, False):
        tensors = [te.Tensor(a, requires_grad=True) for a in arrays]
        q, k, v, distance, slopes, rates = tensors
        if ours:
            result = te.attention(
                *(q, k, v),
                distance=distance,
                slopes=slopes,
                rates=rates if with_rates else None,
                bias_function=names if len(set(names)) > 1 else names[0],
            )
        else:
            factors = rates if with_rates else te.ones(H, dtype="float64")
            result = reference(q, k, v, distance, slopes, factors, names)
        result.backward(upstream)
        used = tensors if with_rates else tensors[:-1]
        found.append([result, *(t.grad for t in used)])
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("rows", [5, 200])
@pytest.mark.parametrize("grad", [False, True])
def test_hidden_columns_with_every_kind_of_bias(rows, grad):
    # the small path, blocks, and both with rates and with functions of heads' own
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((2, 4, rows, 8)).astype("f") for _ in range(3))
    distance = rng.uniform(0, 2, (rows, rows))
    distance[:, -2:] = np.inf
    distance[1] = np.inf
    for options in (
        {"bias_function": "gaussian"},
        {"bias_function": ["gaussian", "logarithmic", "alibi", "alibi"]},
        {"bias_function": "logarithmic", "rates": np.array([0.5, 1, 2, 3])},
    ):
        tensors = [te.Tensor(a, requires_grad=grad) for a in (q, k, v)]
        d = te.Tensor(distance, requires_grad=grad)
        slopes = te.Tensor(np.arange(4) / 4, requires_grad=grad)
        result = te.attention(*tensors, distance=d, slopes=slopes, **options)
        assert np.isfinite(result.numpy()).all()
        assert not result.numpy()[:, :, 1].any()
        changed = tensors[2].numpy().copy()
        changed[:, :, -2:] = 100
        again = te.attention(*tensors[:2], changed, distance=d, slopes=slopes, **options)
        np.testing.assert_allclose(again.numpy(), result.numpy(), atol=1e-6)
        if grad:
            result.sum().backward()
            assert all(np.isfinite(t.grad.numpy()).all() for t in (*tensors, d, slopes))
            assert not d.grad.numpy()[:, -2:].any()


# -- registering --------------------------------------------------------------------------


def test_a_registered_function_by_name_code_and_value(root):
    for given in ("root", "ROOT", root.value, root, np.int64(root.value)):
        assert BiasFunction.parse(given) is root
    block = nn.TransformerBlock(D, 16, H, "root")
    assert block.state_dict()["self_attn.nl_oob.config"].item() == root.value
    other = nn.TransformerBlock(D, 16, H, "gaussian")
    other.load_state_dict(block.state_dict())
    assert other.self_attn.nl_oob.function is root
    x = te.randn(2, S, D)
    d = distances.sequence(S)
    assert np.array_equal(block(x, distance=d).numpy(), other(x, distance=d).numpy())
    assert "function=Root" in repr(block)


@pytest.mark.parametrize(
    ("changes", "error", "given"),
    [
        ({"code": 99}, ValueError, "code is 99"),
        ({"code": 100.0}, ValueError, "code is 100.0"),
        ({"code": True}, ValueError, "code is True"),
        ({"name": "GAUSSIAN"}, ValueError, "'GAUSSIAN'"),
        ({"name": "alibi"}, ValueError, "'alibi'"),
        ({"name": ""}, ValueError, "''"),
        ({"phi": 3}, TypeError, "int"),
        ({"phi": lambda d: d.sum()}, ValueError, "shape"),
        ({"derivative": lambda d: 1.0}, ValueError, "derivative"),
    ],
)
def test_what_can_not_be_registered(changes, error, given):
    settings = {"name": "line", "phi": lambda d: d, "derivative": np.ones_like, "code": 100}
    before = len(bias_function._known())
    with pytest.raises(error) as caught:
        nn.register_bias_function(**(settings | changes))
    assert given in str(caught.value)
    assert len(bias_function._known()) == before
    nn.register_bias_function(**settings)  # nothing was taken
    with pytest.raises(ValueError, match="100"):
        nn.register_bias_function(**(settings | {"name": "other"}))


def test_a_function_that_makes_nan_raises():
    nn.register_bias_function("broken", lambda d: d * np.nan, np.ones_like, code=101)
    block = nn.TransformerBlock(D, 16, H, "broken")
    with pytest.raises(ValueError, match="'broken' has NaN"):
        block(te.randn(1, S, D), distance=distances.sequence(S))


def test_an_infinite_phi_hides():
    nn.register_bias_function(
        "window", lambda d: np.where(d > 1, np.inf, 0), np.zeros_like, code=102
    )
    block = nn.MultiHeadAttention(D, H, distance_bias="window")
    x = te.randn(1, S, D)
    near = np.abs(np.subtract.outer(np.arange(S), np.arange(S))) <= 1
    expected = block(x, mask=near).numpy()
    assert np.allclose(block(x, distance=distances.sequence(S)).numpy(), expected, atol=1e-6)


def test_a_phi_below_zero_and_large_slopes():
    nn.register_bias_function("rising", lambda d: -d, lambda d: -np.ones_like(d), code=103)
    q, k, v = (te.randn(1, 1, S, 4) for _ in range(3))
    for rows in (None, True):
        for t in (q, k, v):
            t.requires_grad = bool(rows)
        d = distances.sequence(S)
        result = te.attention(q, k, v, distance=d, slopes=[200.0], bias_function="rising")
        assert np.isfinite(result.numpy()).all()
        np.testing.assert_allclose(result.numpy()[0, 0, 0], v.numpy()[0, 0, -1], rtol=1e-5)


# -- functions of heads' own --------------------------------------------------------------


def test_config_of_heads():
    names = ["gaussian", "logarithmic", 0, BiasFunction.GAUSSIAN]
    nl_oob = nn.NLOOB(H, names)
    assert nl_oob.config.tolist() == [1, 0, 0, 1]
    assert nl_oob.functions[1] is BiasFunction.LOGARITHMIC
    with pytest.raises(ValueError, match="functions of their own"):
        _ = nl_oob.function
    other = nn.NLOOB(H, [0, 0, 0, 1])
    other.load_state_dict(nl_oob.state_dict())
    assert other.config.tolist() == [1, 0, 0, 1]
    for code in ([1, 0, 0], 1, [[1, 0, 0, 1]], [1, 0, 0, 7], [1, 0, 0, 0.5]):
        with pytest.raises(nn.StateDictError, match="config"):
            other.load_state_dict({**nl_oob.state_dict(), "config": np.array(code)})
    assert "[GAUSSIAN, LOGARITHMIC" in repr(nl_oob)


def test_the_wrong_number_of_functions():
    with pytest.raises(ValueError, match="got 3 bias functions: expected one for each of 4"):
        nn.TransformerBlock(D, 16, H, ["gaussian"] * 3)
    with pytest.raises(ValueError, match="bias functions"):
        te.attention(
            *(te.ones(1, 4, 3, 2) for _ in range(3)),
            distance=np.ones((3, 3)),
            slopes=np.ones(4),
            bias_function=["gaussian"] * 3,
        )


# -- softplus -----------------------------------------------------------------------------


def test_softplus_slopes_count_as_those_without():
    plain, soft = nn.NLOOB(H, "gaussian", 2.0), nn.NLOOB(H, "gaussian", 2.0, softplus=True)
    expected = plain.slopes.numpy()
    np.testing.assert_allclose(soft.factors()[0].numpy(), expected, rtol=1e-5)
    np.testing.assert_allclose(soft.state_dict()["slopes"].numpy(), expected, rtol=1e-5)
    assert not np.allclose(soft.slopes.numpy(), expected)
    plain.load_state_dict(soft.state_dict())
    np.testing.assert_allclose(plain.slopes.numpy(), expected, rtol=1e-5)
    values = np.array([1e-3, 0.5, 3.0, 90.0], np.float32).reshape(1, H, 1, 1)
    soft.load_state_dict({"slopes": values, "config": np.array(0)})
    np.testing.assert_allclose(soft.factors()[0].numpy(), values, rtol=1e-3)
    assert soft.slopes.requires_grad


def test_softplus_slopes_learn_and_stay_above_zero():
    block = nn.TransformerBlock(D, 16, H, nn.NLOOB(H, "gaussian", softplus=True))
    slopes = block.self_attn.nl_oob.slopes
    block(te.randn(2, S, D), distance=distances.sequence(S)).sum().backward()
    assert np.abs(slopes.grad.numpy()).sum() > 0
    with slopes.lock() as array:
        array -= 50
    assert (block.self_attn.nl_oob.factors()[0].numpy() >= 0).all()


def test_softplus_slopes_can_not_be_loaded_below_zero():
    soft = nn.NLOOB(2, softplus=True)
    before = soft.slopes.numpy().copy()
    for values in ([1.0, 0.0], [1.0, -1.0], [1.0, np.nan]):
        with pytest.raises(nn.StateDictError, match="above 0"):
            soft.load_state_dict({"slopes": np.reshape(values, (1, 2, 1, 1)), "config": 0})
    assert np.array_equal(soft.slopes.numpy(), before)
    with pytest.raises(ValueError, match="rates without softplus"):
        nn.NLOOB(2, rates=True)


# -- presets ------------------------------------------------------------------------------

# From the paper's figure for 8 and 16 heads, and the authors' code for 12.
ALIBI = {
    1: [2.0**-8],
    2: [2.0**-4, 2.0**-8],
    8: [2.0**-i for i in range(1, 9)],
    16: [2.0 ** (-i / 2) for i in range(1, 17)],
    12: [2.0**-i for i in range(1, 9)] + [2.0**-0.5, 2.0**-1.5, 2.0**-2.5, 2.0**-3.5],
}


@pytest.mark.parametrize("heads", ALIBI)
def test_alibi_slopes(heads):
    bias = nn.NLOOB.alibi(heads)
    np.testing.assert_allclose(bias.slopes.numpy().ravel(), ALIBI[heads], rtol=1e-6)
    assert not bias.slopes.requires_grad


def test_alibi_in_a_causal_block():
    block = nn.TransformerBlock(D, 16, H, "alibi", causal=True)
    x = te.randn(1, S, D)
    mask = -np.subtract.outer(np.arange(S), np.arange(S)) * 1.0
    slopes = np.array([2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8]).reshape(1, H, 1, 1)
    expected = block(x, mask=slopes * mask).numpy()
    assert np.allclose(block(x, distance=distances.sequence(S)).numpy(), expected, atol=1e-6)
    assert block.self_attn.nl_oob.config.item() < 100


def test_kerple_log():
    block = nn.TransformerBlock(D, 16, H, "kerple-log")
    bias = block.self_attn.nl_oob
    assert {"slopes", "rates", "config"} == set(bias.state_dict())
    rates = np.array([0.1, 1.0, 2.0, 5.0], np.float32).reshape(1, H, 1, 1)
    bias.load_state_dict({**bias.state_dict(), "rates": rates})
    slopes = bias.state_dict()["slopes"].numpy()
    x, d = te.randn(1, S, D), distances.sequence(S).numpy()
    expected = block(x, mask=-slopes * np.log(1 + rates * d)).numpy()
    result = block(x, distance=d)
    assert np.allclose(result.numpy(), expected, atol=1e-5)
    result.sum().backward()
    assert bias.rates.grad is not None and np.abs(bias.rates.grad.numpy()).sum() > 0


def test_presets_have_slopes_of_their_own():
    with pytest.raises(ValueError, match=r"max_scale is 2\.0, but 'alibi'"):
        nn.TransformerBlock(D, 16, H, "alibi", 2.0)
    with pytest.raises(ValueError, match="for 2 heads: expected 4"):
        nn.TransformerBlock(D, 16, H, nn.NLOOB(2))


# -- pictures and summaries ---------------------------------------------------------------


def test_the_bias_written_out():
    bias = nn.NLOOB(2, ["gaussian", "logarithmic"])
    d = np.array([[0.0, 2.0], [np.inf, 1.0]])
    written = nn.attention_bias(bias, d)
    assert written.shape == (2, 2, 2)
    assert written[0, 0, 1] == -4.0
    assert written[1, 1, 1] == pytest.approx(-(2.0**-4) * np.log(2))
    assert (written[:, 1, 0] == -np.inf).all()
    for wrong in (np.ones(3), -np.ones((2, 2)), np.full((2, 2), np.nan)):
        with pytest.raises(ValueError, match="distance"):
            nn.attention_bias(bias, wrong)


def test_pictures():
    pytest.importorskip("matplotlib")
    block = nn.TransformerBlock(D, 16, H, "kerple-log")
    figure = nn.plot_attention_bias(block, distances.sequence(S))
    assert [axes.get_title() for axes in figure.axes[:H]] == [f"head {h}" for h in range(H)]
    image = figure.axes[0].images[0].get_array()
    assert np.allclose(image, nn.attention_bias(block.self_attn.nl_oob, distances.sequence(S))[0])
    lines = nn.plot_slopes([te.ones(1, 2, 1, 1), [0.5, 2.0]]).axes[0].lines
    assert [list(line.get_ydata()) for line in lines] == [[1.0, 0.5], [1.0, 2.0]]
    with pytest.raises(ValueError, match="holds 0 distance biases"):
        nn.plot_attention_bias(nn.Linear(1, 1), distances.sequence(S))
    for wrong in ([], [[1.0], [1.0, 2.0]]):
        with pytest.raises(ValueError, match="history"):
            nn.plot_slopes(wrong)


def test_pictures_without_matplotlib(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"te-nn\[plot\]"):
        nn.plot_slopes([[1.0]])


def test_a_summary():
    te.manual_seed(0)
    model = nn.TransformerEncoder(2, D, 16, H, "gaussian", kv_heads=2)
    model.layers[0].requires_grad_(False)
    model.train()
    found = nn.summary(model, te.randn(2, S, D), distance=distances.sequence(S))
    by_path = {layer.path: layer for layer in found.layers}
    assert by_path["layers.1.linear1"].output_shape == (2, S, 16)
    assert by_path["layers.1.linear1"].multiply_adds == 2 * S * D * 16
    products = 2 * (2 * H * S * S * (D // H))  # scores and means of two sequences
    linears = 2 * S * (D * D + D * D // 2 + D * D // 2 + D * D)
    assert by_path["layers.0.self_attn"].multiply_adds == products + linears
    assert found.multiply_adds == 2 * by_path["layers.0"].multiply_adds
    assert found.parameters == sum(p.size for p in model.parameters())
    assert found.trainable == found.parameters // 2
    assert found.nbytes == 4 * found.parameters + 2 * 8
    assert all(m.training and not m.has_hooks() for m in model.modules())
    text = str(found)
    assert "linear1 (Linear)" in text and f"{found.parameters:,} parameters" in text


def test_a_summary_that_fails_leaves_the_model_as_it_was():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(3, 2))
    with pytest.raises(ValueError):
        nn.summary(model, te.ones(1, 2))
    assert not model.has_hooks() and model.training


def test_a_summary_counts_what_is_shared_once():
    shared = nn.Linear(3, 3, bias=False)
    found = nn.summary(nn.Sequential(shared, nn.ReLU(), shared), te.ones(2, 3))
    assert (found.parameters, found.multiply_adds) == (9, 36)
    assert [layer.path for layer in found.layers] == ["", "0", "1"]


def test_a_summary_of_a_recurrent_layer():
    found = nn.summary(nn.GRU(4, 5, num_layers=2), te.ones(3, 2, 4))
    weights = 15 * (4 + 5) + 15 * (5 + 5)
    assert found.multiply_adds == 3 * 2 * weights
    assert found.layers[0].output_shape == ((3, 2, 5), (2, 2, 5))


def test_a_summary_of_convolutions():
    model = nn.Sequential(
        nn.Conv2D(4, 6, 3, stride=2, padding=1, groups=2), nn.Flatten(), nn.Linear(96, 5)
    )
    found = nn.summary(model, te.ones(2, 4, 8, 8))
    assert found.layers[1].multiply_adds == 2 * 16 * 6 * 2 * 9
    assert found.layers[3].multiply_adds == 2 * 96 * 5
    assert nn.summary(nn.Conv1D(2, 3, 2), te.ones(1, 2, 5)).multiply_adds == 4 * 3 * 2 * 2


def test_attention_takes_what_layers_take():
    q, d = te.randn(1, 2, 3, 4), np.ones((3, 3))
    options = {"distance": d, "slopes": [1.0, 0.5]}
    expected = te.attention(q, q, q, bias_function="gaussian", **options).tolist()
    given = nn.BiasFunction.GAUSSIAN
    assert te.attention(q, q, q, bias_function=given, **options).tolist() == expected
    made = nn.register_bias_function("quartic", lambda d: d**4, lambda d: 4 * d**3, code=400)
    assert te.distance_function(made) is te.distance_function("quartic")
