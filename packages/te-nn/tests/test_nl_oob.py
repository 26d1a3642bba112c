import numpy as np
import pytest

import te_nn as nn
import te_tensor as te
from te_nn import BiasFunction, distances


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (0, BiasFunction.LOGARITHMIC),
        (1, BiasFunction.GAUSSIAN),
        (BiasFunction.GAUSSIAN, BiasFunction.GAUSSIAN),
        ("gaussian", BiasFunction.GAUSSIAN),
        ("Logarithmic", BiasFunction.LOGARITHMIC),
        (np.int64(1), BiasFunction.GAUSSIAN),
    ],
)
def test_bias_functions_by_value_and_name(given, expected):
    assert BiasFunction.parse(given) is expected


@pytest.mark.parametrize("given", [2, -1, "gauss", "", None, 1.5, True])
def test_unknown_bias_functions_raise(given):
    with pytest.raises(ValueError, match="logarithmic"):
        BiasFunction.parse(given)


@pytest.mark.parametrize("heads", [1, 2, 3, 8])
def test_slopes_fall_geometrically_from_max_scale(heads):
    nl_oob = nn.NLOOB(heads, "gaussian", 3.0)
    assert nl_oob.slopes.shape == (1, heads, 1, 1)
    assert nl_oob.slopes.requires_grad
    expected = 3.0 * 2.0 ** (-8 * np.arange(heads) / heads)
    assert np.allclose(nl_oob.slopes.numpy().ravel(), expected)


def test_config_is_a_buffer_that_the_function_follows():
    nl_oob = nn.NLOOB(2, "gaussian")
    assert nl_oob.config.dtype == te.int64 and nl_oob.config.shape == ()
    assert list(nl_oob.state_dict()) == ["slopes", "config"]
    with nl_oob.config.lock() as array:
        array[...] = 0
    assert nl_oob.function is BiasFunction.LOGARITHMIC


@pytest.mark.parametrize("code", [np.array(1), np.array([1]), np.array([1.0], np.float32)])
def test_loading_sets_slopes_and_function(code):
    nl_oob = nn.NLOOB(2)
    slopes = np.array([0.3, 0.7], np.float32).reshape(1, 2, 1, 1)
    nl_oob.load_state_dict({"slopes": slopes, "config": code})
    assert nl_oob.function is BiasFunction.GAUSSIAN
    assert nl_oob.slopes.requires_grad
    assert np.array_equal(nl_oob.slopes.numpy(), slopes)


@pytest.mark.parametrize("code", [np.array(7), np.array([0.5]), np.array([0, 1]), np.array(np.nan)])
def test_loading_an_unknown_code_changes_nothing(code):
    nl_oob = nn.NLOOB(2)
    before = nl_oob.slopes.numpy().copy()
    with pytest.raises(nn.StateDictError, match="config"):
        nl_oob.load_state_dict({"slopes": np.zeros((1, 2, 1, 1)), "config": code})
    assert nl_oob.function is BiasFunction.LOGARITHMIC
    assert np.array_equal(nl_oob.slopes.numpy(), before)


def test_block_has_the_original_names():
    block = nn.TransformerBlock.new_with_nl_oob(16, 32, 4, BiasFunction.LOGARITHMIC, 2.0)
    state = block.state_dict()
    assert state["self_attn.nl_oob.slopes"].shape == (1, 4, 1, 1)
    assert state["self_attn.nl_oob.slopes"].numpy().max() == 2.0
    assert state["self_attn.nl_oob.config"].item() == 0
    for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
        assert state[f"self_attn.{name}.weight"].shape == (16, 16)
    assert {"linear1.weight", "linear2.bias", "norm1.weight", "norm2.bias"} <= set(state)


@pytest.mark.parametrize(
    ("arguments", "options", "given"),
    [
        ((16, 32, 3), {}, "num_heads is 3"),
        ((16, 32, 4, "gauss"), {}, "'gauss'"),
        ((16, 32, 4, None, 2.0), {}, "nl_oob_max_scale is 2.0"),
        ((16, 32, 4, "gaussian", 0.0), {}, "max_scale is 0.0"),
        ((16, 32, 4, "gaussian", float("nan")), {}, "max_scale is nan"),
        ((16, 0, 4), {}, "d_ff is 0"),
        ((16, 32, 4), {"norm": "none"}, "'none'"),
        ((16, 32, 4), {"activation": "Gelu"}, "'Gelu'"),
        ((16, 32, 4), {"kv_heads": 3}, "kv_heads is 3"),
        ((16, 32, 4), {"dropout": -0.1}, "dropout is -0.1"),
    ],
)
def test_bad_settings_are_named(arguments, options, given):
    with pytest.raises(ValueError) as caught:
        nn.TransformerBlock(*arguments, **options)
    assert given in str(caught.value)


@pytest.fixture
def block():
    te.manual_seed(0)
    return nn.TransformerBlock(8, 16, 2, "gaussian")


@pytest.mark.parametrize(
    ("distance", "given"),
    [
        (np.ones((4, 5)), "(4, 5)"),
        (np.ones((3, 5, 5)), "(3, 5, 5)"),
        (np.ones((2, 3, 5, 5)), "(2, 3, 5, 5)"),
        (np.ones(5), "(5,)"),
        (-np.ones((5, 5)), "negative"),
        (np.full((5, 5), np.nan), "NaN"),
    ],
)
def test_bad_distances_are_named(block, distance, given):
    x = te.randn(2, 5, 8)
    with pytest.raises(ValueError) as caught:
        block.forward_with_distance(x, distance)
    assert given in str(caught.value)


@pytest.mark.parametrize("mask", [np.ones((4, 5), bool), np.ones((2, 5, 5), bool)])
def test_bad_masks_are_named(block, mask):
    with pytest.raises(ValueError) as caught:
        block(te.randn(2, 5, 8), mask=mask)
    assert str(mask.shape) in str(caught.value)


def test_integer_masks_raise(block):
    with pytest.raises(TypeError, match="int64"):
        block(te.randn(2, 5, 8), mask=np.ones((5, 5), np.int64))


def test_distance_without_nl_oob_raises():
    block = nn.TransformerBlock(8, 16, 2)
    with pytest.raises(ValueError, match="no distance bias"):
        block.forward_with_distance(te.randn(1, 3, 8), distances.sequence(3))


def test_wrong_input_shapes_are_named(block):
    for shape in ((5, 8), (2, 5, 7)):
        with pytest.raises(ValueError) as caught:
            block.self_attn(te.randn(*shape))
        assert str(shape) in str(caught.value)


def test_without_distance_the_bias_is_off(block):
    plain = nn.TransformerBlock(8, 16, 2)
    plain.load_state_dict(block.state_dict(), strict=False)
    x = te.randn(2, 5, 8)
    assert np.array_equal(block(x).numpy(), plain(x).numpy())
    zero = block(x, distance=np.zeros((5, 5))).numpy()
    assert np.allclose(zero, plain(x).numpy(), atol=1e-6)


def test_float64_distances_are_cast(block):
    x = te.randn(2, 5, 8)
    distance = np.abs(np.random.default_rng(0).standard_normal((5, 5)))
    narrow = distance.astype(np.float32)
    assert np.array_equal(block(x, distance=distance).numpy(), block(x, distance=narrow).numpy())


def test_grouped_key_heads():
    te.manual_seed(0)
    grouped = nn.MultiHeadAttention(8, 4, kv_heads=2)
    full = nn.MultiHeadAttention(8, 4)
    state = dict(grouped.state_dict())
    for name in ("k_proj", "v_proj"):
        for part in ("weight", "bias"):
            value = state[f"{name}.{part}"].numpy()
            heads = value.reshape(2, 2, *value.shape[1:])
            state[f"{name}.{part}"] = np.repeat(heads, 2, axis=0).reshape(8, *value.shape[1:])
    full.load_state_dict(state)
    x = te.randn(2, 5, 8)
    assert np.allclose(grouped(x).numpy(), full(x).numpy(), atol=1e-6)


@pytest.mark.parametrize("activation", ["gelu", "relu", "silu", "swiglu"])
@pytest.mark.parametrize("norm", ["pre", "post"])
def test_block_gradients(activation, norm):
    te.manual_seed(1)
    block = nn.TransformerBlock(4, 6, 2, "logarithmic", activation=activation, norm=norm)
    names = [name for name, _ in block.named_parameters()]
    x = te.randn(2, 3, 4, dtype="float64", requires_grad=True)
    distance = te.rand(3, 3, dtype="float64", requires_grad=True)
    values = [te.Tensor(p.numpy(), dtype="float64", requires_grad=True) for p in block.parameters()]

    def run(x, distance, *values):
        for (path, _), value in zip(list(block.named_parameters()), values, strict=True):
            owner = block
            *parents, last = path.split(".")
            for part in parents:
                owner = getattr(owner, part)
            object.__setattr__(owner, last, value)
        result = block(x, distance=distance)
        for path, value in zip(names, values, strict=True):
            owner = block
            *parents, last = path.split(".")
            for part in parents:
                owner = getattr(owner, part)
            object.__setattr__(owner, last, nn.Parameter(value.numpy()))
        return result

    assert te.gradcheck(run, [x, distance, *values], directions=1)


def test_causal_block_does_not_look_ahead():
    te.manual_seed(0)
    block = nn.TransformerBlock(8, 16, 2, causal=True)
    x = np.random.default_rng(0).standard_normal((1, 6, 8)).astype(np.float32)
    changed = x.copy()
    changed[:, 4:] += 1
    first, second = block(te.Tensor(x)).numpy(), block(te.Tensor(changed)).numpy()
    assert np.array_equal(first[:, :4], second[:, :4])
    assert not np.allclose(first[:, 4:], second[:, 4:])


def test_padding_does_not_change_the_rest(block):
    x = np.random.default_rng(0).standard_normal((1, 6, 8)).astype(np.float32)
    distance = distances.sequence(6).numpy()
    mask = np.array([True] * 4 + [False] * 2).reshape(1, 1, 1, 6)
    padded = block(te.Tensor(x), mask=mask, distance=distance).numpy()[:, :4]
    short = block(te.Tensor(x[:, :4]), distance=distance[:4, :4]).numpy()
    assert np.allclose(padded, short, atol=1e-6)
    unreachable = distance.copy()
    unreachable[:, 4:] = np.inf
    assert np.allclose(block(te.Tensor(x), distance=unreachable).numpy()[:, :4], short, atol=1e-6)


def test_dropout_of_a_block_follows_the_seed():
    block = nn.TransformerBlock(8, 16, 2, dropout=0.5)
    x = te.randn(1, 4, 8)
    results = []
    for seed in (1, 1, 2):
        te.manual_seed(seed)
        results.append(block(x).numpy())
    assert np.array_equal(results[0], results[1])
    assert not np.array_equal(results[0], results[2])
    block.eval()
    assert np.array_equal(block(x).numpy(), block(x).numpy())


def test_sequence_and_grid():
    assert distances.sequence(4).tolist()[0] == [0, 1, 2, 3]
    grid = distances.grid(2, 3).numpy()
    assert grid.shape == (6, 6)
    assert grid[0, 5] == pytest.approx(np.sqrt(5))  # one row down, two columns on
    assert np.array_equal(grid, grid.T)


def test_euclidean_matches_numpy_and_batches():
    points = np.random.default_rng(0).standard_normal((2, 5, 3))
    expected = np.linalg.norm(points[:, :, None] - points[:, None], axis=-1)
    assert np.allclose(distances.euclidean(points).numpy(), expected)
    assert np.allclose(distances.euclidean(points[0]).numpy(), expected[0])


def test_euclidean_gradients_are_finite_where_points_coincide():
    points = te.Tensor([[0.0, 0.0], [0.0, 0.0], [3.0, 4.0]], requires_grad=True)
    distances.euclidean(points).sum().backward()
    assert np.allclose(points.grad.numpy(), [[-1.2, -1.6], [-1.2, -1.6], [2.4, 3.2]])
    apart = te.Tensor(np.random.default_rng(0).standard_normal((4, 3)), requires_grad=True)
    assert te.gradcheck(distances.euclidean, [apart])


def test_euclidean_of_integers():
    assert distances.euclidean(np.array([[0], [20]], np.uint8)).tolist() == [[0, 20], [20, 0]]
    assert distances.euclidean([[0], [100_000]]).tolist()[0][1] == 100_000


def test_graph_hops():
    path = np.diag(np.ones(3), 1)
    hops = distances.graph_hops(path + path.T).numpy()
    assert np.array_equal(hops, distances.sequence(4).numpy())
    assert distances.graph_hops(path).numpy()[3, 0] == np.inf


@pytest.mark.parametrize(
    ("make", "given"),
    [
        (lambda: distances.sequence(0), "length is 0"),
        (lambda: distances.grid(2, -1), "width is -1"),
        (lambda: distances.euclidean(np.ones(3)), "(3,)"),
        (lambda: distances.graph_hops(np.ones((2, 3))), "(2, 3)"),
        (lambda: distances.graph_hops(np.full((2, 2), np.nan)), "NaN"),
    ],
)
def test_bad_distance_builders_are_named(make, given):
    with pytest.raises(ValueError) as caught:
        make()
    assert given in str(caught.value)
