"""Hooks, where errors arose, dtypes, and buffers that pass."""

import copy

import numpy as np
import pytest

import te_nn as nn
import te_tensor as te


def notes(error):
    return "\n".join(getattr(error, "__notes__", []))


def test_hooks_see_and_replace():
    layer = nn.ReLU()
    seen = []
    before = layer.register_forward_pre_hook(lambda m, args: seen.append(args[0].tolist()))
    changed = layer.register_forward_pre_hook(lambda m, args: args[0] * 2)
    after = layer.register_forward_hook(lambda m, args, result: result + 1)
    assert layer(te.Tensor([-1.0, 3.0])).tolist() == [1.0, 7.0]
    assert seen == [[-1.0, 3.0]]
    for handle in (before, changed, after, after):
        handle.remove()
    assert not layer.has_hooks()
    assert layer(te.Tensor([-1.0, 3.0])).tolist() == [0.0, 3.0]


def test_hooks_run_in_order_and_first_where_asked():
    layer, order = nn.ReLU(), []
    for name in "ab":
        layer.register_forward_hook(lambda m, args, result, name=name: order.append(name))
    layer.register_forward_hook(lambda m, args, result: order.append("first"), prepend=True)
    layer(te.ones(1))
    assert order == ["first", "a", "b"]


def test_a_handle_is_a_context():
    layer, calls = nn.ReLU(), []
    with layer.register_forward_hook(lambda *given: calls.append(1)):
        layer(te.ones(1))
    layer(te.ones(1))
    assert calls == [1]


def test_hooks_of_one_module_are_not_those_of_another():
    one, other = nn.ReLU(), nn.ReLU()
    one.register_forward_hook(lambda m, args, result: result * 5)
    assert other(te.ones(1)).item() == 1
    copied = copy.deepcopy(one)
    copied.register_forward_hook(lambda m, args, result: result * 5)
    assert (one(te.ones(1)).item(), copied(te.ones(1)).item()) == (5, 25)


def test_a_hook_that_is_none_raises():
    with pytest.raises(TypeError, match="int"):
        nn.ReLU().register_forward_hook(3)


def test_keyword_arguments_pass_hooks_by():
    attend = nn.MultiHeadAttention(4, 2)
    attend.register_forward_pre_hook(lambda m, args: None)
    assert attend(te.ones(1, 3, 4), causal=True).shape == (1, 3, 4)


def test_hooks_inside_a_block_see_the_whole_batch(monkeypatch):
    monkeypatch.setattr("te_nn.transformer._SHARD_FROM", 1)
    encoder = nn.TransformerEncoder(2, 64, 64, 2)
    shapes = []
    handle = encoder.layers[1].linear1.register_forward_hook(
        lambda m, args, result: shapes.append(result.shape)
    )
    x = te.randn(4, 100, 64)
    with_hook = encoder(x)
    handle.remove()
    assert shapes == [(4, 100, 64)]
    np.testing.assert_allclose(with_hook.numpy(), encoder(x).numpy(), atol=1e-5)


def test_a_hook_on_a_projection_is_called():
    attend, shapes = nn.MultiHeadAttention(4, 2), []
    attend.k_proj.register_forward_hook(lambda m, args, result: shapes.append(result.shape))
    attend(te.ones(1, 3, 4))
    assert shapes == [(1, 3, 4)]


def test_another_layer_in_a_projections_place_is_used():
    attend = nn.MultiHeadAttention(4, 2)

    class Doubled(nn.Linear):
        def forward(self, x):
            return super().forward(x) * 2

    doubled = Doubled(4, 4)
    doubled.load_state_dict(attend.v_proj.state_dict())
    attend.v_proj = doubled
    attend.o_proj.bias = None
    with_doubled = attend(te.ones(1, 3, 4)).numpy()
    doubled.forward = lambda x: nn.Linear.forward(doubled, x)
    assert np.allclose(with_doubled, 2 * attend(te.ones(1, 3, 4)).numpy(), atol=1e-6)


# -- where errors arose -------------------------------------------------------------------


def test_errors_name_the_layer_by_its_path():
    encoder = nn.TransformerEncoder(2, 8, 16, 2)
    model = nn.Sequential(nn.Linear(8, 8), encoder)
    encoder.layers[1].linear2 = nn.Linear(9, 8)
    with pytest.raises(ValueError) as caught:
        model(te.ones(1, 3, 8))
    assert "1.layers.1.linear2 (Linear) of Sequential" in notes(caught.value)
    assert notes(caught.value).count("linear2") == 1
    assert "(8, 9)" in str(caught.value)


def test_an_error_of_the_model_itself_names_its_kind():
    with pytest.raises(ValueError) as caught:
        nn.Linear(3, 2)(te.ones(4))
    assert notes(caught.value) == "in Linear"


@pytest.mark.parametrize(
    ("shape", "place"),
    [((3, 8), "layers.0.self_attn"), ((1, 3, 7), "layers.0.norm1")],
)
def test_wrong_ranks_and_sizes_name_the_layer(shape, place):
    with pytest.raises(ValueError) as caught:
        nn.TransformerEncoder(2, 8, 16, 2)(te.ones(*shape))
    assert place in notes(caught.value)
    assert str(shape) in str(caught.value)


def test_errors_in_shards_name_the_layer(monkeypatch):
    monkeypatch.setattr("te_nn.transformer._SHARD_FROM", 1)
    te.set_num_threads(2)
    encoder = nn.TransformerEncoder(2, 64, 64, 2)
    encoder.layers[1].linear2 = nn.Linear(65, 64)
    with pytest.raises(ValueError) as caught:
        encoder(te.ones(4, 100, 64))
    assert "layers.1.linear2" in notes(caught.value)


# -- dtypes -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_to_another_dtype(dtype):
    model = nn.Sequential(nn.Embedding(5, 8), nn.TransformerBlock(8, 16, 2, "gaussian"))
    parameters = list(model.parameters())
    indices = te.Tensor([[1, 2, 3]])
    wide = model(indices).numpy()
    assert model.to(dtype) is model
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert {str(p.dtype) for p in model.parameters()} == {dtype}
    assert model[1].self_attn.nl_oob.config.dtype == te.int64
    result = model(indices)
    assert str(result.dtype) == dtype
    assert np.allclose(result.numpy().astype(float), wide, atol=0.1)
    result.sum().backward()
    assert str(model[1].linear1.weight.grad.dtype) == dtype
    stored = model.state_dict()
    again = nn.Sequential(nn.Embedding(5, 8), nn.TransformerBlock(8, 16, 2, "gaussian")).to(dtype)
    again.load_state_dict(stored)
    assert np.array_equal(again(indices).numpy(), result.numpy())


def test_to_keeps_ties_and_drops_gradients():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight = model[0].weight
    model(te.ones(1, 2)).sum().backward()
    model.to("float64")
    assert model[0].weight is model[1].weight
    assert model[0].weight.grad is None


@pytest.mark.parametrize("dtype", ["int32", "complex64", "nonsense"])
def test_to_what_is_no_float(dtype):
    model = nn.Linear(2, 1)
    with pytest.raises(TypeError, match=dtype):
        model.to(dtype)
    assert model.weight.dtype == te.float32


# -- state --------------------------------------------------------------------------------


def test_buffers_that_pass_are_in_no_state():
    model = nn.Module()
    model.register_buffer("kept", te.ones(2))
    model.register_buffer("table", te.ones(3), persistent=False)
    assert list(model.state_dict()) == ["kept"]
    assert [name for name, _ in model.named_buffers()] == ["kept", "table"]
    assert model.load_state_dict({"kept": np.zeros(2)}) == ([], [])
    with pytest.raises(nn.StateDictError, match="unexpected: table"):
        model.load_state_dict({"kept": np.zeros(2), "table": np.zeros(3)})
    model.to("float64")
    assert model.table.dtype == te.float64
    model.register_buffer("table", te.ones(3))
    assert list(model.state_dict()) == ["kept", "table"]


def test_a_deleted_buffer_is_gone():
    model = nn.Module()
    model.register_buffer("kept", te.ones(2))
    del model.kept
    assert model.state_dict() == {}
    assert list(model.buffers()) == []


def test_tied_tensors_stay_tied():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    model[1].weight = model[0].weight
    model.load_state_dict({"0.weight": np.ones((2, 2)), "1.weight": np.ones((2, 2))})
    assert model[0].weight is model[1].weight
    assert model[1].weight.numpy().sum() == 4
    with pytest.raises(nn.StateDictError, match=r"missing: 1\.weight"):
        model.load_state_dict({"0.weight": np.ones((2, 2))})


def test_loading_never_broadcasts():
    model = nn.Linear(3, 2)
    for value in (np.ones((1, 3)), np.ones(3), np.array(1.0), np.ones((3, 2))):
        with pytest.raises(nn.StateDictError, match="expected"):
            model.load_state_dict({"weight": value, "bias": np.zeros(2)})


def test_frozen_parts_get_no_gradient():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    model[0].requires_grad_(False)
    model(te.ones(1, 2)).sum().backward()
    assert model[0].weight.grad is None and model[1].weight.grad is not None


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_hooks_of_a_block_see_results_without_the_residual(norm):
    te.manual_seed(0)
    block = nn.TransformerBlock(8, 16, 2, norm=norm)
    x = te.randn(2, 3, 8)
    expected = block(x)
    for name in ("self_attn", "self_attn.o_proj", "linear2", "dropout"):
        layer, seen = dict(block.named_modules())[name], []
        with layer.register_forward_hook(lambda _, args, result, seen=seen: seen.append(result)):
            assert np.allclose(block(x).numpy(), expected.numpy(), atol=1e-6)
        assert seen, name
        with layer.register_forward_hook(lambda layer, args, result: result * 0):
            assert not np.allclose(block(x).numpy(), expected.numpy(), atol=1e-3), name


def test_a_layer_in_the_place_of_a_projection_knows_no_residual():
    te.manual_seed(0)
    block = nn.TransformerBlock(8, 16, 2)
    x = te.randn(2, 3, 8)
    expected = block(x)
    block.self_attn.o_proj = nn.Sequential(block.self_attn.o_proj)
    block.linear2 = nn.Sequential(block.linear2)
    assert np.allclose(block(x).numpy(), expected.numpy(), atol=1e-6)
