"""Bad calls of layers: what is wrong raises, and the error says what was given and expected."""

from functools import partial

import numpy as np
import pytest

import te_nn as nn
import te_tensor as te

BLOCK = partial(nn.TransformerBlock, 8, 16, 2)
#: Options that are on or off, by name, with what takes them.
SWITCHES = [
    ("bias", partial(nn.Linear, 2, 3)),
    ("bias", partial(nn.Conv1D, 2, 3, 1)),
    ("bias", partial(nn.LayerNorm, 2)),
    ("elementwise_affine", partial(nn.LayerNorm, 2)),
    ("elementwise_affine", partial(nn.RMSNorm, 2)),
    ("affine", partial(nn.GroupNorm, 1, 2)),
    ("affine", partial(nn.BatchNorm1D, 2)),
    ("track_running_stats", partial(nn.BatchNorm2D, 2)),
    ("ceil_mode", partial(nn.MaxPool2D, 2)),
    ("count_include_pad", partial(nn.AvgPool1D, 2)),
    ("count_include_pad", partial(nn.AvgPool2D, 2)),
    ("bias", partial(nn.RNN, 2, 3)),
    ("batch_first", partial(nn.LSTM, 2, 3)),
    ("bidirectional", partial(nn.GRU, 2, 3)),
    ("bias", partial(nn.LSTMCell, 2, 3)),
    ("bias", partial(nn.MultiHeadAttention, 8, 2)),
    ("causal", BLOCK),
    ("bias", BLOCK),
    ("final_norm", partial(nn.TransformerEncoder, 1, 8, 16, 2)),
    ("softplus", partial(nn.NLOOB, 2)),
    ("rates", partial(nn.NLOOB, 2, softplus=True)),
    ("causal", partial(nn.MultiHeadAttention(8, 2), te.ones(1, 3, 8))),
    ("requires_grad", partial(nn.Parameter, [1.0])),
    ("mode", nn.ReLU().train),
    ("requires_grad", nn.ReLU().requires_grad_),
    ("prepend", partial(nn.ReLU().register_forward_hook, print)),
    ("prepend", partial(nn.ReLU().register_forward_pre_hook, print)),
    ("strict", partial(nn.ReLU().load_state_dict, {})),
    ("persistent", partial(nn.ReLU().register_buffer, "x", te.ones(1))),
]


@pytest.mark.parametrize("given", ["no", 1, None])
@pytest.mark.parametrize("number", range(len(SWITCHES)))
def test_a_switch_is_true_or_false(number, given):
    option, make = SWITCHES[number]
    with pytest.raises(ValueError, match=f"{option} is {given!r}: expected True or False"):
        make(**{option: given})


#: The call, the error, and words that its message holds.
BAD = {
    "slope text": (lambda: nn.LeakyReLU("a"), TypeError, ["negative_slope is 'a'", "a number"]),
    "slope NaN": (
        lambda: nn.LeakyReLU(float("nan")), ValueError, ["negative_slope is nan", "finite"]),
    "prelu text": (lambda: nn.PReLU(1, "a"), TypeError, ["init is 'a'", "a number"]),
    "softmax axis": (lambda: nn.Softmax("a"), ValueError, ["axis is 'a'", "whole number"]),
    "log_softmax axis": (lambda: nn.LogSoftmax(1.0), ValueError, ["axis is 1.0", "whole number"]),
    "flatten start": (lambda: nn.Flatten("a"), ValueError, ["start_axis is 'a'", "whole number"]),
    "flatten end": (lambda: nn.Flatten(1, True), ValueError, ["end_axis is True", "whole number"]),
    "ignore_index": (
        lambda: nn.CrossEntropyLoss(ignore_index="a"),
        ValueError, ["ignore_index is 'a'", "whole number"]),
    "ignore_index of labels": (
        lambda: nn.NLLLoss(ignore_index=0.5), ValueError, ["ignore_index is 0.5", "whole number"]),
    "padding_idx text": (
        lambda: nn.Embedding(3, 4, padding_idx="a"),
        ValueError, ["padding_idx is 'a'", "whole number"]),
    "normalized_shape fraction": (
        lambda: nn.LayerNorm(2.5), ValueError, ["normalized_shape is 2.5", "whole number"]),
    "normalized_shape nothing": (
        lambda: nn.RMSNorm(()), ValueError, ["normalized_shape is ()", "a length or more"]),
    "attention cache": (
        lambda: nn.MultiHeadAttention(8, 2)(te.ones(1, 3, 8), cache="x"),
        TypeError, ["cache is a str", "a KVCache"]),
    "block cache": (
        lambda: BLOCK()(te.ones(1, 3, 8), cache=[]), TypeError, ["cache is a list", "a KVCache"]),
    "encoder cache": (
        lambda: nn.TransformerEncoder(1, 8, 16, 2)(te.ones(1, 3, 8), cache=[3]),
        TypeError, ["cache 0 is of type int", "a KVCache"]),
    "encoder caches": (
        lambda: nn.TransformerEncoder(1, 8, 16, 2)(te.ones(1, 3, 8), cache=3),
        TypeError, ["cache is a int", "a list of KVCaches"]),
    "summary": (lambda: nn.summary(3), TypeError, ["summary got a int", "a Module"]),
    "block of no function": (
        lambda: nn.TransformerBlock.new_with_nl_oob(8, 16, 2, None, None),
        ValueError, ["bias_function is None", "a function"]),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_call(name):
    call, kind, words = BAD[name]
    with pytest.raises(kind) as caught:
        call()
    missing = [w for w in words if w not in str(caught.value)]
    assert not missing, f"{caught.value!r} doesn't hold {missing}"


def test_a_switch_may_come_from_an_array():
    on, off = np.array([True, False])
    assert nn.LSTM(2, 3, batch_first=on).batch_first is True
    assert nn.Linear(2, 3, bias=off).bias is None
    assert nn.ReLU().train(off).training is False
    assert te.ones(2, requires_grad=on).requires_grad is True


#: Layers, and the shape that they take.
LAYERS = [
    *[(make(), (2, 3)) for make in (nn.ReLU, nn.Sigmoid, nn.Tanh, nn.GELU, nn.SiLU, nn.LeakyReLU)],
    *[(make(), (2, 3)) for make in (nn.PReLU, nn.Softmax, nn.LogSoftmax, nn.Flatten, nn.Dropout)],
    (nn.Linear(3, 2), (2, 3)),
    (nn.Sequential(nn.ReLU(), nn.Linear(3, 2)), (2, 3)),
    (nn.Conv1D(2, 2, 3), (1, 2, 4)),
    (nn.MaxPool1D(2), (1, 2, 4)),
    (nn.AvgPool2D(2), (1, 2, 4, 4)),
    (nn.AdaptiveAvgPool1D(2), (1, 2, 4)),
    (nn.LayerNorm(3), (2, 3)),
    (nn.RMSNorm(3), (2, 3)),
    (nn.GroupNorm(1, 2), (3, 2)),
    (nn.BatchNorm1D(3), (2, 3)),
    (nn.Rotary(4), (1, 2, 3, 4)),
    (nn.RNN(3, 4), (5, 2, 3)),
    (nn.LSTM(3, 4), (5, 3)),
    (nn.GRUCell(3, 4), (2, 3)),
    (nn.MultiHeadAttention(8, 2), (1, 3, 8)),
    (nn.TransformerBlock(8, 16, 2), (1, 3, 8)),
    (nn.TransformerEncoder(1, 8, 16, 2), (1, 3, 8)),
]


def first(result):
    return result[0] if isinstance(result, tuple) else result


@pytest.mark.parametrize("number", range(len(LAYERS)))
def test_layers_take_arrays_and_lists(number):
    layer, shape = LAYERS[number]
    layer.eval()
    x = np.random.default_rng(0).standard_normal(shape).astype("float32")
    expected = first(layer(te.Tensor(x))).numpy()
    for given in (x, x.tolist()):
        np.testing.assert_allclose(first(layer(given)).numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("given", ["text", None, {}])
@pytest.mark.parametrize("number", range(len(LAYERS)))
def test_layers_take_nothing_else(number, given):
    layer, _ = LAYERS[number]
    with pytest.raises(TypeError, match=f"data of type {type(given).__name__} holds no numbers"):
        layer(given)


def test_states_may_be_arrays():
    x, h = te.ones(5, 2, 3), np.ones((1, 2, 4), "float32")
    layer = nn.LSTM(3, 4)
    assert layer(x, (h, h))[0].tolist() == layer(x, (te.Tensor(h), te.Tensor(h)))[0].tolist()
    with pytest.raises(ValueError, match=r"state of int: expected a pair \(h, c\)"):
        layer(x, 3)
