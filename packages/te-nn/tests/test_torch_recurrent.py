"""Recurrent layers and cells beside PyTorch's, state dicts exchanged both ways."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import te_nn as nn
import te_tensor as te

torch.set_num_threads(1)
KINDS = ("RNN", "LSTM", "GRU")
OPTIONS = settings(max_examples=40, deadline=None, derandomize=True)


def wide(module):
    """The module with its floats in float64."""
    for name, tensor in list(vars(module).items()):
        if isinstance(tensor, te.Tensor) and tensor.dtype == te.float32:
            setattr(module, name, type(tensor)(tensor.numpy(), dtype="float64"))
    return module


def tensors(state):
    return [] if state is None else list(state) if isinstance(state, tuple) else [state]


def exchange(ours, theirs):
    """The same values in both: from PyTorch's layer to ours, and back into a new one."""
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict({k: v.detach().numpy() for k, v in theirs.state_dict().items()})
    for parameter in theirs.parameters():
        torch.nn.init.zeros_(parameter)
    theirs.load_state_dict({k: torch.tensor(v.numpy()) for k, v in ours.state_dict().items()})


def hold_equal(ours, theirs, x, state):
    """Outputs, last states, and the gradients of x, the states and all parameters."""
    exchange(ours, theirs)
    a, b = te.Tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
    first = [te.Tensor(s, requires_grad=True) for s in state]
    other = [torch.tensor(s, requires_grad=True) for s in state]

    def form(states):
        return tuple(states) if len(states) > 1 else states[0] if states else None

    result, expected = ours(a, form(first)), theirs(b, form(other))
    layer = isinstance(theirs, torch.nn.RNNBase)
    mine = [result[0], *tensors(result[1])] if layer else tensors(result)
    wanted = [expected[0], *tensors(expected[1])] if layer else tensors(expected)
    loss, torch_loss = te.zeros((), dtype=a.dtype), 0.0
    for place, (one, two) in enumerate(zip(mine, wanted, strict=True)):
        assert one.shape == tuple(two.shape)
        np.testing.assert_allclose(one.numpy(), two.detach().numpy(), rtol=1e-7, atol=1e-9)
        weight = np.random.default_rng(place).uniform(-1, 1, one.shape)
        loss = loss + (one * weight).sum()
        torch_loss = torch_loss + (two * torch.tensor(weight)).sum()
    loss.backward()
    torch_loss.backward()
    pairs = [(a, b), *zip(first, other, strict=True)]
    pairs += zip(ours.parameters(), theirs.parameters(), strict=True)
    for one, two in pairs:
        np.testing.assert_allclose(one.grad.numpy(), two.grad.numpy(), rtol=1e-7, atol=1e-9)


@OPTIONS
@given(
    kind=st.sampled_from(KINDS),
    layers=st.integers(1, 3),
    bias=st.booleans(),
    batch_first=st.booleans(),
    bidirectional=st.booleans(),
    batch=st.sampled_from([None, 1, 3]),
    steps=st.integers(1, 5),
    nonlinearity=st.sampled_from(["tanh", "relu"]),
    given_state=st.booleans(),
)
def test_layers(
    kind, layers, bias, batch_first, bidirectional, batch, steps, nonlinearity, given_state
):
    extra = {"nonlinearity": nonlinearity} if kind == "RNN" else {}
    options = {
        "num_layers": layers,
        "bias": bias,
        "batch_first": batch_first,
        "bidirectional": bidirectional,
        **extra,
    }
    theirs = getattr(torch.nn, kind)(3, 4, **options).double()
    ours = wide(getattr(nn, kind)(3, 4, **options))
    rng = np.random.default_rng(0)
    shape = (steps, 3) if batch is None else (batch, steps, 3) if batch_first else (steps, batch, 3)
    count = layers * (2 if bidirectional else 1)
    of_state = (count, 4) if batch is None else (count, batch, 4)
    state = [rng.uniform(-1, 1, of_state) for _ in range(2 if kind == "LSTM" else 1)]
    hold_equal(ours, theirs, rng.uniform(-1, 1, shape), state if given_state else [])


@OPTIONS
@given(
    kind=st.sampled_from(KINDS),
    bias=st.booleans(),
    batch=st.sampled_from([None, 1, 3]),
    nonlinearity=st.sampled_from(["tanh", "relu"]),
    given_state=st.booleans(),
)
def test_cells(kind, bias, batch, nonlinearity, given_state):
    options = {"bias": bias, **({"nonlinearity": nonlinearity} if kind == "RNN" else {})}
    theirs = getattr(torch.nn, f"{kind}Cell")(3, 4, **options).double()
    ours = wide(getattr(nn, f"{kind}Cell")(3, 4, **options))
    rng = np.random.default_rng(0)
    lead = () if batch is None else (batch,)
    state = [rng.uniform(-1, 1, (*lead, 4)) for _ in range(2 if kind == "LSTM" else 1)]
    hold_equal(ours, theirs, rng.uniform(-1, 1, (*lead, 3)), state if given_state else [])


@pytest.mark.parametrize("kind", [*KINDS, *(f"{kind}Cell" for kind in KINDS)])
def test_initial_distributions(kind):
    te.manual_seed(0)
    torch.manual_seed(0)
    ours, theirs = getattr(nn, kind)(60, 80), getattr(torch.nn, kind)(60, 80)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert a.shape == tuple(b.shape)
        assert np.abs(a.numpy()).max() <= 80**-0.5
        assert a.numpy().std() == pytest.approx(b.detach().numpy().std(), rel=0.15)
