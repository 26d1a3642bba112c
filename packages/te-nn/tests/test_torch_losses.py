"""Losses and activations over drawn options, beside PyTorch's, in value and gradient."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import te_nn as nn
import te_tensor as te

drawn = settings(max_examples=30, derandomize=True, deadline=None)
reductions = st.sampled_from(["mean", "sum", "none"])


def compare(ours, theirs, x, *rest):
    a, b = te.Tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
    found = ours(a, *(te.Tensor(r) for r in rest))
    expected = theirs(b, *(torch.tensor(r) for r in rest))
    np.testing.assert_allclose(found.numpy(), expected.detach().numpy(), rtol=1e-9, atol=1e-12)
    found.sum().backward()
    expected.sum().backward()
    np.testing.assert_allclose(a.grad.numpy(), b.grad.numpy(), rtol=1e-9, atol=1e-12)


shapes = st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple)


@drawn
@given(reductions, shapes, st.sampled_from([0.3, 1.0, 2.0]), st.integers(0, 99))
def test_regression(reduction, shape, delta, seed):
    rng = np.random.default_rng(seed)
    x, target = 2 * rng.standard_normal(shape), rng.standard_normal(shape)
    compare(nn.L1Loss(reduction), torch.nn.L1Loss(reduction=reduction), x, target)
    ours, theirs = nn.HuberLoss(reduction, delta), torch.nn.HuberLoss(reduction, delta)
    compare(ours, theirs, x, target)


@drawn
@given(reductions, st.booleans(), st.booleans(), st.integers(0, 99))
def test_binary_cross_entropy(reduction, weighted, positive, seed):
    rng = np.random.default_rng(seed)
    x, target = 3 * rng.standard_normal((4, 3)), rng.random((4, 3))
    weight = rng.uniform(0.5, 2, (4, 3)) if weighted else None
    pos_weight = rng.uniform(0.5, 2, 3) if positive else None
    theirs = torch.nn.BCEWithLogitsLoss(
        weight=None if weight is None else torch.tensor(weight),
        pos_weight=None if pos_weight is None else torch.tensor(pos_weight),
        reduction=reduction,
    )
    compare(nn.BCEWithLogitsLoss(weight, reduction, pos_weight), theirs, x, target)


@drawn
@given(reductions, st.booleans(), st.booleans(), st.sampled_from([(), (2,), (2, 3)]))
def test_negative_log_likelihood(reduction, weighted, ignored, rest):
    rng = np.random.default_rng(len(rest))
    x, labels = rng.standard_normal((4, 5, *rest)), rng.integers(0, 5, (4, *rest))
    labels[0] = 2 if ignored else labels[0]
    weight = rng.uniform(0.5, 2, 5) if weighted else None
    options = {"ignore_index": 2 if ignored else -100, "reduction": reduction}
    theirs = torch.nn.NLLLoss(None if weight is None else torch.tensor(weight), **options)
    compare(nn.NLLLoss(weight, **options), theirs, x, labels)


ACTIVATIONS = {
    "silu": (nn.SiLU(), torch.nn.SiLU()),
    "leaky": (nn.LeakyReLU(0.2), torch.nn.LeakyReLU(0.2)),
    "softmax": (nn.Softmax(1), torch.nn.Softmax(1)),
    "log_softmax": (nn.LogSoftmax(0), torch.nn.LogSoftmax(0)),
    "gelu": (nn.GELU("tanh"), torch.nn.GELU("tanh")),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name):
    ours, theirs = ACTIVATIONS[name]
    compare(ours, theirs, 3 * np.random.default_rng(0).standard_normal((2, 3, 4)))


@pytest.mark.parametrize("count", [1, 3])
def test_prelu(count):
    ours, theirs = nn.PReLU(count, 0.1).to("float64"), torch.nn.PReLU(count, 0.1).double()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict({"weight": torch.tensor(ours.weight.numpy())})
    compare(ours, theirs, np.random.default_rng(0).standard_normal((2, 3, 4)))
    np.testing.assert_allclose(ours.weight.grad.numpy(), theirs.weight.grad.numpy())


@pytest.mark.parametrize(
    ("make", "given_"),
    [
        (lambda: nn.L1Loss("avg"), "'avg'"),
        (lambda: nn.HuberLoss(delta=0), "delta is 0"),
        (lambda: nn.NLLLoss(reduction=None), "None"),
        (lambda: nn.PReLU(0), "num_parameters is 0"),
        (lambda: nn.NLLLoss()(te.zeros(2, 3), te.Tensor([0, 3])), "3"),
    ],
)
def test_bad_settings(make, given_):
    with pytest.raises((ValueError, IndexError)) as caught:
        make()
    assert given_ in str(caught.value)
