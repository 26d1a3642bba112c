"""Recurrent and normalization layers beside their values: dropout, states, shards, bad input."""

import copy

import numpy as np
import pytest

import te_nn as nn
import te_tensor as te


def test_dropout_stands_between_layers_in_training_alone():
    te.manual_seed(0)
    layer = nn.GRU(3, 50, num_layers=2, dropout=0.5)
    x = te.randn(4, 2, 3)
    first, second = layer(x)[0].numpy(), layer(x)[0].numpy()
    assert not np.array_equal(first, second)
    layer.eval()
    np.testing.assert_array_equal(layer(x)[0].numpy(), layer(x)[0].numpy())
    # the first layer's states are before any dropout
    layer.train()
    np.testing.assert_array_equal(layer(x)[1].numpy()[0], layer(x)[1].numpy()[0])


def test_dropout_without_a_second_layer_warns():
    with pytest.warns(UserWarning, match="num_layers=1"):
        nn.LSTM(2, 3, dropout=0.5)


def test_a_sequence_in_two_halves_is_the_sequence():
    layer = nn.LSTM(3, 4, num_layers=2, batch_first=True)
    x = te.randn(2, 9, 3)
    whole, last = layer(x)
    front, state = layer(x[:, :5])
    back, end = layer(x[:, 5:], state)
    np.testing.assert_allclose(te.concat([front, back], 1).numpy(), whole.numpy(), atol=1e-6)
    for a, b in zip(last, end, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), atol=1e-6)


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
def test_cells_step_by_step_are_the_layer(kind):
    layer, cell = getattr(nn, kind)(3, 4), getattr(nn, f"{kind}Cell")(3, 4)
    cell.load_state_dict({k.removesuffix("_l0"): v for k, v in layer.state_dict().items()})
    x, state = te.randn(5, 2, 3), None
    for step in range(5):
        state = cell(x[step], state)
    _, last = layer(x)
    pair = (state, last) if kind == "LSTM" else ((state,), (last,))
    for a, b in zip(*pair, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy()[0], atol=1e-6)


def test_layers_in_shards():
    te.set_num_threads(2)
    layer = nn.LSTM(3, 4, bidirectional=True)
    x = te.randn(6, 8, 3)
    by_parts = te.shard(lambda x: layer(x)[0], x, axis=1, shards=2)
    np.testing.assert_allclose(by_parts.numpy(), layer(x)[0].numpy(), atol=1e-6)
    norm = nn.BatchNorm1D(3)
    with pytest.raises(RuntimeError, match="couples the batch"):
        te.shard(norm, te.randn(8, 3), shards=2)
    assert norm.num_batches_tracked.item() == 0
    te.shard(norm.eval(), te.randn(8, 3), shards=2)


def test_repr_names_what_differs():
    assert repr(nn.LSTM(3, 4)) == "LSTM(input_size=3, hidden_size=4, num_layers=1)"
    text = repr(nn.GRU(3, 4, 2, batch_first=True, dropout=0.1))
    assert text == ("GRU(input_size=3, hidden_size=4, num_layers=2, batch_first=True, dropout=0.1)")
    assert "momentum=0.1" in repr(nn.BatchNorm2D(5))


def test_a_copy_has_statistics_of_its_own():
    norm = nn.BatchNorm1D(3)
    norm(te.randn(5, 3))
    copied = copy.deepcopy(norm)
    copied(te.randn(5, 3))
    assert (norm.num_batches_tracked.item(), copied.num_batches_tracked.item()) == (1, 2)


def h(*shape):
    return te.zeros(*shape)


X = te.ones(5, 2, 3)
ERRORS = {
    "input_size": (lambda: nn.LSTM(0, 4), "input_size is 0"),
    "hidden_size": (lambda: nn.GRU(3, 2.5), "hidden_size is 2.5"),
    "num_layers": (lambda: nn.RNN(3, 4, 0), "num_layers is 0"),
    "dropout": (lambda: nn.GRU(3, 4, 2, dropout=1.5), "dropout is 1.5"),
    "nonlinearity": (lambda: nn.RNN(3, 4, nonlinearity="sin"), "'sin'"),
    "rank": (lambda: nn.LSTM(3, 4)(te.ones(1, 5, 2, 3)), "LSTM got x (1, 5, 2, 3)"),
    "vector": (lambda: nn.LSTM(3, 4)(te.ones(3)), "LSTM got x (3,)"),
    "features": (lambda: nn.GRU(3, 4)(te.ones(5, 2, 4)), "I=3"),
    "no steps": (lambda: nn.GRU(3, 4)(te.ones(0, 2, 3)), "at least one step"),
    "state": (lambda: nn.GRU(3, 4)(X, h(2, 4)), "state of (2, 4): expected a tensor (1, 2, 4)"),
    "state batch": (lambda: nn.RNN(3, 4)(X, h(1, 3, 4)), "(1, 3, 4)"),
    "state layers": (lambda: nn.RNN(3, 4, 2, bidirectional=True)(X, h(2, 2, 4)), "(4, 2, 4)"),
    "state unbatched": (lambda: nn.RNN(3, 4)(te.ones(5, 3), h(1, 1, 4)), "a tensor (1, 4)"),
    "state pair": (lambda: nn.LSTM(3, 4)(X, (h(1, 2, 4),)), "a pair (h, c)"),
    "state c": (lambda: nn.LSTM(3, 4)(X, (h(1, 2, 4), h(1, 2, 5))), "(1, 2, 5)"),
    "state kind": (lambda: nn.GRU(3, 4)(X, (h(1, 2, 4), h(1, 2, 4))), "state of tuple"),
    "cell rank": (lambda: nn.GRUCell(3, 4)(X), "GRUCell got x (5, 2, 3)"),
    "cell features": (lambda: nn.LSTMCell(3, 4)(te.ones(2, 5)), "LSTMCell got x (2, 5)"),
    "cell state": (lambda: nn.RNNCell(3, 4)(te.ones(2, 3), h(3, 4)), "(3, 4)"),
    "batch norm features": (lambda: nn.BatchNorm1D(0), "num_features is 0"),
    "batch norm momentum": (lambda: nn.BatchNorm1D(2, momentum=2), "momentum is 2"),
    "batch norm rank": (lambda: nn.BatchNorm1D(3)(te.ones(2, 3, 4, 4)), "(N, C) or (N, C, L)"),
    "batch norm 2-D rank": (lambda: nn.BatchNorm2D(3)(te.ones(2, 3)), "(N, C, H, W)"),
    "batch norm channels": (lambda: nn.BatchNorm1D(3)(te.ones(2, 4)), "C=3"),
    "batch norm of one": (lambda: nn.BatchNorm1D(3)(te.ones(1, 3)), "more than one value"),
    "group norm groups": (lambda: nn.GroupNorm(4, 6), "num_groups is 4"),
    "group norm channels": (lambda: nn.GroupNorm(2, 6)(te.ones(2, 4)), "(2, 4)"),
    "rms norm": (lambda: nn.RMSNorm(3)(te.ones(2, 4)), "(2, 4)"),
    "rms norm eps": (lambda: nn.RMSNorm(3, eps=-1), "eps is -1"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_bad_input_is_named(name):
    call, given = ERRORS[name]
    with pytest.raises(ValueError) as caught:
        call()
    assert given in str(caught.value)
