"""Normalization layers beside PyTorch's: training, evaluation, and state dicts both ways."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import te_nn as nn
import te_tensor as te

torch.set_num_threads(1)
OPTIONS = settings(max_examples=30, deadline=None, derandomize=True)


def wide(module):
    """The module with its floats in float64."""
    for name, tensor in list(vars(module).items()):
        if isinstance(tensor, te.Tensor) and tensor.dtype == te.float32:
            setattr(module, name, type(tensor)(tensor.numpy(), dtype="float64"))
    return module


def copy_into(ours, theirs):
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict({k: v.detach().numpy() for k, v in theirs.state_dict().items()})


def hold_equal(ours, theirs, x):
    a, b = te.Tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
    result, expected = ours(a), theirs(b)
    np.testing.assert_allclose(result.numpy(), expected.detach().numpy(), rtol=1e-7, atol=1e-9)
    ours.zero_grad()
    theirs.zero_grad()
    weight = np.random.default_rng(1).uniform(-1, 1, x.shape)
    (result * weight).sum().backward()
    (expected * torch.tensor(weight)).sum().backward()
    pairs = [(a, b), *zip(ours.parameters(), theirs.parameters(), strict=True)]
    for one, two in pairs:
        np.testing.assert_allclose(one.grad.numpy(), two.grad.numpy(), rtol=1e-6, atol=1e-9)
    state = {k: torch.tensor(v.numpy()) for k, v in ours.state_dict().items()}
    for name, value in theirs.state_dict().items():
        assert torch.allclose(state[name], value, rtol=1e-7), name
        assert state[name].dtype == value.dtype
    theirs.load_state_dict(state)


@OPTIONS
@given(
    axes=st.sampled_from([(), (4,), (3, 2)]),
    momentum=st.sampled_from([0.1, 0.7, None]),
    affine=st.booleans(),
    track=st.booleans(),
    eps=st.sampled_from([1e-5, 1e-2]),
)
def test_batch_norm(axes, momentum, affine, track, eps):
    options = {
        "eps": eps, "momentum": momentum, "affine": affine, "track_running_stats": track
    }  # fmt: skip
    letters = "2" if len(axes) == 2 else "1"
    theirs = getattr(torch.nn, f"BatchNorm{letters}d")(3, **options).double()
    ours = wide(getattr(nn, f"BatchNorm{letters}D")(3, **options))
    if affine:
        torch.nn.init.uniform_(theirs.weight, -1, 1)
        torch.nn.init.uniform_(theirs.bias, -1, 1)
    copy_into(ours, theirs)
    rng = np.random.default_rng(0)
    for _ in range(3):
        hold_equal(ours, theirs, rng.uniform(-2, 3, (5, 3, *axes)))
    ours.eval()
    theirs.eval()
    for _ in range(2):
        hold_equal(ours, theirs, rng.uniform(-2, 3, (5, 3, *axes)))


@OPTIONS
@given(
    groups=st.integers(1, 3),
    axes=st.sampled_from([(), (4,), (3, 2)]),
    affine=st.booleans(),
    eps=st.sampled_from([1e-5, 1e-2]),
)
def test_group_norm(groups, axes, affine, eps):
    theirs = torch.nn.GroupNorm(groups, 2 * groups, eps, affine).double()
    ours = wide(nn.GroupNorm(groups, 2 * groups, eps, affine))
    copy_into(ours, theirs)
    hold_equal(ours, theirs, np.random.default_rng(0).uniform(-2, 3, (5, 2 * groups, *axes)))


@OPTIONS
@given(
    tail=st.sampled_from([(4,), (3, 2)]),
    eps=st.sampled_from([None, 1e-2]),
    affine=st.booleans(),
)
def test_rms_norm(tail, eps, affine):
    theirs = torch.nn.RMSNorm(tail, eps, affine).double()
    ours = wide(nn.RMSNorm(tail, eps, affine))
    copy_into(ours, theirs)
    hold_equal(ours, theirs, np.random.default_rng(0).uniform(-2, 3, (5, *tail)))


@pytest.mark.parametrize("name", ["BatchNorm1", "BatchNorm2"])
def test_batch_norm_of_float32(name):
    theirs, ours = getattr(torch.nn, f"{name}d")(4), getattr(nn, f"{name}D")(4)
    x = np.random.default_rng(0).standard_normal((6, 4, 5, 5)[: 2 if name[-1] == "1" else 4])
    x = x.astype("float32")
    np.testing.assert_allclose(
        ours(te.Tensor(x)).numpy(), theirs(torch.tensor(x)).detach().numpy(), rtol=1e-4, atol=1e-5
    )
    copy_into(ours, theirs)  # the number of batches is a 0-d int64 in both
