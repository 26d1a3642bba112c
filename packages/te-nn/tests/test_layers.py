import math

import numpy as np
import pytest

import te_nn as nn
import te_tensor as te


def test_linear_initialization_is_even_in_its_bound():
    te.manual_seed(0)
    layer = nn.Linear(400, 300)
    bound = 1 / math.sqrt(400)
    for parameter in layer.parameters():
        values = parameter.numpy()
        assert np.abs(values).max() <= bound
        assert values.std() == pytest.approx(bound / math.sqrt(3), rel=0.1)
    assert layer.weight.dtype == te.float32


def test_embedding_initialization_and_padding():
    te.manual_seed(0)
    table = nn.Embedding(1000, 20, padding_idx=-1)
    weight = table.weight.numpy()
    assert not weight[999].any()
    assert weight[:999].std() == pytest.approx(1, rel=0.05)
    table(te.Tensor([999, 0])).sum().backward()
    assert not table.weight.grad.numpy()[999].any()
    assert table.weight.grad.numpy()[0].all()


def test_same_seed_same_weights():
    te.manual_seed(5)
    first = nn.Linear(3, 3).weight.numpy()
    te.manual_seed(5)
    assert np.array_equal(first, nn.Linear(3, 3).weight.numpy())


def test_layer_norm_forms():
    assert list(nn.LayerNorm(4).state_dict()) == ["weight", "bias"]
    assert list(nn.LayerNorm(4, bias=False).state_dict()) == ["weight"]
    assert not nn.LayerNorm((2, 3), elementwise_affine=False).state_dict()
    y = nn.LayerNorm((2, 3))(te.randn(5, 2, 3)).numpy().reshape(5, 6)
    assert np.allclose(y.mean(1), 0, atol=1e-6)
    assert np.allclose(y.std(1), 1, atol=1e-3)


def test_dropout_only_in_training():
    te.manual_seed(0)
    layer = nn.Dropout(0.25)
    x = te.ones(10_000)
    y = layer(x).numpy()
    assert set(np.unique(y)) == {0, np.float32(1 / 0.75)}
    assert (y == 0).mean() == pytest.approx(0.25, abs=0.02)
    assert layer.eval()(x) is x


@pytest.mark.parametrize(
    ("layer", "function"),
    [
        (nn.ReLU(), te.relu),
        (nn.Sigmoid(), te.sigmoid),
        (nn.Tanh(), te.tanh),
        (nn.GELU(), te.gelu),
        (nn.GELU("tanh"), lambda x: te.gelu(x, "tanh")),
        (nn.Softmax(0), lambda x: te.softmax(x, 0)),
        (nn.LogSoftmax(), te.log_softmax),
        (nn.Flatten(), lambda x: x.reshape(3, -1)),
        (nn.Flatten(0), lambda x: x.reshape(-1)),
    ],
)
def test_modules_without_parameters(layer, function):
    x = te.randn(3, 4, 2)
    assert layer(x).tolist() == function(x).tolist()
    assert not layer.state_dict()


def test_losses():
    prediction, target = te.Tensor([[1.0, 2.0], [3.0, 0.0]]), te.Tensor([[1.0, 0.0], [0.0, 0.0]])
    assert nn.MSELoss()(prediction, target).item() == pytest.approx(13 / 4)
    assert nn.MSELoss("sum").forward(prediction, target).item() == pytest.approx(13)
    assert nn.MSELoss("none")(prediction, target).shape == (2, 2)
    labels = te.Tensor([0, 1])
    expected = -prediction.log_softmax(1).numpy()[[0, 1], [0, 1]].mean()
    for loss in (nn.CrossEntropyLoss(), nn.SoftmaxCrossEntropyLoss()):
        assert loss.forward(prediction, labels).item() == pytest.approx(expected)
    weighted = nn.CrossEntropyLoss(weight=te.Tensor([1.0, 0.0]))
    assert weighted(prediction, labels).item() == pytest.approx(
        -prediction.log_softmax(1).numpy()[0, 0]
    )


def test_sequential_trains():
    te.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 1))
    x = te.Tensor([[0.0, 0], [0, 1], [1, 0], [1, 1]])
    y = te.Tensor([[0.0], [1], [1], [0]])
    for _ in range(1500):
        model.zero_grad()
        loss = nn.MSELoss()(model(x), y)
        loss.backward()
        for parameter in model.parameters():
            with parameter.lock() as array:
                array -= 0.1 * parameter.grad.numpy()
    assert loss.item() < 1e-2


@pytest.mark.parametrize(
    ("make", "error", "given"),
    [
        (lambda: nn.Linear(0, 2), ValueError, "in_features is 0"),
        (lambda: nn.Linear(2, 1.5), ValueError, "out_features is 1.5"),
        (lambda: nn.Embedding(3, 2, padding_idx=3), IndexError, "padding_idx is 3"),
        (lambda: nn.LayerNorm(-1), ValueError, "normalized_shape is -1"),
        (lambda: nn.Dropout(1.5), ValueError, "p is 1.5"),
        (lambda: nn.GELU("erf"), ValueError, "'erf'"),
        (lambda: nn.Linear(3, 2)(te.ones(2, 4)), ValueError, "(2, 4)"),
        (lambda: nn.LayerNorm(3)(te.ones(2, 4)), ValueError, "(2, 4)"),
        (lambda: nn.Embedding(3, 2)(te.Tensor([1, 3])), IndexError, "index 3"),
        (lambda: nn.Embedding(3, 2)(te.Tensor([-1])), IndexError, "index -1"),
        (lambda: nn.Embedding(3, 2)(te.Tensor([1.0])), TypeError, "float32"),
        (lambda: nn.MSELoss("average")(te.ones(1), te.ones(1)), ValueError, "'average'"),
        (lambda: nn.MSELoss()(te.ones(2), te.ones(3)), ValueError, "(2,)"),
        (lambda: nn.CrossEntropyLoss()(te.ones(1, 3), te.Tensor([3])), IndexError, "label 3"),
        (lambda: nn.Sequential(nn.ReLU(), len), TypeError, "builtin_function_or_method"),
    ],
)
def test_bad_input_is_named(make, error, given):
    with pytest.raises(error) as caught:
        make()
    assert given in str(caught.value)
