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
    ("strict", partial(nn.ReLU().load_state_dict, {})),
    ("persistent", partial(nn.ReLU().register_buffer, "x", te.ones(1))),
]


@pytest.mark.parametrize("given", ["no", 1, None])
@pytest.mark.parametrize("number", range(len(SWITCHES)))
def test_a_switch_is_true_or_false(number, given):
    option, make = SWITCHES[number]
    with pytest.raises(ValueError, match=f"{option} is {given!r}: expected True or False"):
        make(**{option: given})


def test_a_switch_may_come_from_an_array():
    on, off = np.array([True, False])
    assert nn.LSTM(2, 3, batch_first=on).batch_first is True
    assert nn.Linear(2, 3, bias=off).bias is None
    assert nn.ReLU().train(off).training is False
    assert te.ones(2, requires_grad=on).requires_grad is True
