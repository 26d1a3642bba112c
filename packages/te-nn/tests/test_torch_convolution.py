"""Convolution and pooling layers beside PyTorch's: state dicts both ways, values, gradients."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import te_nn as nn
import te_tensor as te

QUICK = settings(derandomize=True, deadline=None, database=None, max_examples=30)


def compare(ours, theirs, shape):
    """The same output and gradients, with the weights of torch's layer."""
    ours.zero_grad()
    theirs.zero_grad()
    ours.load_state_dict({k: v.numpy() for k, v in theirs.state_dict().items()})
    x = np.random.default_rng(0).standard_normal(shape).astype("f4")
    a, b = te.Tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
    y, z = ours(a), theirs(b)
    np.testing.assert_allclose(y.numpy(), z.detach().numpy(), rtol=1e-4, atol=1e-5)
    (y * y).sum().backward()
    (z * z).sum().backward()
    expected = {name: p.grad.numpy() for name, p in theirs.named_parameters()}
    found = {name: p.grad.numpy() for name, p in ours.named_parameters()}
    for name, grad in {**expected, "x": b.grad.numpy()}.items():
        mine = a.grad.numpy() if name == "x" else found[name]
        np.testing.assert_allclose(mine, grad, rtol=1e-3, atol=1e-4)


@QUICK
@given(st.data())
def test_convolution_layers(data):
    axes = data.draw(st.sampled_from([1, 2]))

    def option(least, most):
        each = st.integers(least, most)
        return data.draw(each | st.tuples(*[each] * axes))

    groups = data.draw(st.sampled_from([1, 2]))
    options = {
        "stride": option(1, 3),
        "padding": data.draw(st.sampled_from(["valid", None])) or option(0, 2),
        "dilation": option(1, 2),
        "groups": groups,
        "bias": data.draw(st.booleans()),
        "padding_mode": data.draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"])),
    }
    arguments = (2 * groups, 3 * groups, option(1, 3))
    ours = (nn.Conv1D, nn.Conv2D)[axes - 1](*arguments, **options)
    theirs = (torch.nn.Conv1d, torch.nn.Conv2d)[axes - 1](*arguments, **options)
    shape = (2, 2 * groups, *[data.draw(st.integers(5, 9)) for _ in range(axes)])
    compare(ours, theirs, shape)
    fresh = type(ours)(*arguments, **options)
    theirs.load_state_dict({k: torch.tensor(v.numpy()) for k, v in fresh.state_dict().items()})
    compare(fresh, theirs, shape)


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
def test_same_padding(mode):
    options = {"padding": "same", "dilation": 2, "padding_mode": mode}
    compare(
        nn.Conv2D(2, 3, (3, 2), **options), torch.nn.Conv2d(2, 3, (3, 2), **options), (2, 2, 7, 6)
    )


@pytest.mark.parametrize(
    ("ours", "theirs", "shape"),
    [
        (nn.MaxPool1D(2), torch.nn.MaxPool1d(2), (2, 3, 9)),
        (nn.MaxPool2D(3, 2, 1), torch.nn.MaxPool2d(3, 2, 1), (2, 3, 9, 8)),
        (
            nn.MaxPool2D((2, 3), (1, 2), (1, 0), (2, 1), ceil_mode=True),
            torch.nn.MaxPool2d((2, 3), (1, 2), (1, 0), (2, 1), ceil_mode=True),
            (3, 9, 8),
        ),
        (nn.AvgPool1D(3, 2, 1), torch.nn.AvgPool1d(3, 2, 1), (2, 3, 9)),
        (
            nn.AvgPool2D(3, 2, 1, ceil_mode=True, count_include_pad=False),
            torch.nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False),
            (2, 3, 9, 8),
        ),
        (
            nn.AvgPool2D(2, divisor_override=3),
            torch.nn.AvgPool2d(2, divisor_override=3),
            (3, 9, 8),
        ),
        (nn.AdaptiveAvgPool1D(4), torch.nn.AdaptiveAvgPool1d(4), (2, 3, 9)),
        (nn.AdaptiveAvgPool2D((None, 3)), torch.nn.AdaptiveAvgPool2d((None, 3)), (2, 3, 9, 8)),
    ],
    ids=lambda layer: type(layer).__name__ if not isinstance(layer, tuple) else "",
)
def test_pooling_layers(ours, theirs, shape):
    compare(ours, theirs, shape)


@pytest.mark.parametrize("groups", [1, 8])
def test_initialization(groups):
    te.manual_seed(0)
    torch.manual_seed(0)
    ours, theirs = nn.Conv2D(64, 64, 5, groups=groups), torch.nn.Conv2d(64, 64, 5, groups=groups)
    bound = 1 / math.sqrt(64 // groups * 25)
    for name, parameter in theirs.named_parameters():
        values = dict(ours.named_parameters())[name].numpy()
        assert values.shape == tuple(parameter.shape)
        assert values.dtype == np.float32
        assert np.abs(values).max() <= bound
        tolerance = 0.03 if name == "weight" else 0.3
        assert values.std() == pytest.approx(parameter.detach().numpy().std(), rel=tolerance)


def test_a_network_interchanges():
    def network(kinds):
        return kinds.Sequential(
            *(kinds.Conv2D(1, 4, 3, padding=1), kinds.ReLU(), kinds.MaxPool2D(2)),
            *(kinds.Conv2D(4, 8, 3, padding=1), kinds.ReLU(), kinds.AdaptiveAvgPool2D(2)),
            *(kinds.Flatten(), kinds.Linear(32, 10)),
        )

    class Torch:
        def __getattr__(self, name):
            return getattr(torch.nn, name.replace("2D", "2d"))

    for shape in ((32, 1, 8, 8), (2, 1, 40, 36)):
        compare(network(nn), network(Torch()), shape)
