"""Update rules and schedules against PyTorch, step by step in float64."""

import numpy as np
import pytest
import torch
from torch.optim import lr_scheduler

import te_tensor as te
from te_optim import SGD, Adam, AdamW, OneCycleLR, clip_gradients

SHAPES = [(3, 4), (5,), (), (0,)]


def parameters(rng):
    values = [rng.standard_normal(shape) for shape in SHAPES]
    ours = [te.Tensor(value, requires_grad=True) for value in values]
    return ours, [torch.tensor(value, requires_grad=True) for value in values]


def set_gradients(rng, ours, theirs, step):
    for place, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        if place == 1 and step % 3 == 0:  # some steps leave a parameter without one
            mine.grad = other.grad = None
        else:
            grad = rng.standard_normal(mine.shape)
            mine.grad, other.grad = grad, torch.tensor(grad)


def assert_equal(ours, theirs):
    for mine, other in zip(ours, theirs, strict=True):
        assert np.allclose(mine.numpy(), other.detach().numpy(), rtol=1e-12, atol=1e-14)


OPTIMIZERS = [
    (SGD, torch.optim.SGD, {"lr": 0.1}, {}),
    (SGD, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}, {}),
    (SGD, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}, {}),
    (SGD, torch.optim.SGD, {"lr": 0.1, "momentum": 0.5, "nesterov": True, "weight_decay": 0.1}, {}),
    (Adam, torch.optim.Adam, {"lr": 0.01}, {}),
    (Adam, torch.optim.Adam, {"lr": 0.01, "weight_decay": 0.1, "eps": 1e-3}, {}),
    (Adam, torch.optim.Adam, {"lr": 0.01, "amsgrad": True}, {}),
    (Adam, torch.optim.Adam, {"lr": 0.01}, {"beta1": 0.5, "beta2": 0.7}),
    (AdamW, torch.optim.AdamW, {"lr": 0.01}, {}),
    (AdamW, torch.optim.AdamW, {"lr": 0.01, "weight_decay": 0.3, "amsgrad": True}, {}),
]


@pytest.mark.parametrize(("ours", "theirs", "options", "betas"), OPTIMIZERS)
def test_fifty_steps(ours, theirs, options, betas):
    rng = np.random.default_rng(0)
    mine, other = parameters(rng)
    optimizer = ours(**options, **betas, parameters=mine)
    extra = {"betas": tuple(betas.values())} if betas else {}
    reference = theirs(other, **options, **extra)
    for step in range(50):
        set_gradients(rng, mine, other, step)
        optimizer.step()
        reference.step()
    assert_equal(mine, other)


@pytest.mark.parametrize("total", [3, 10, 37])
@pytest.mark.parametrize("options", [{}, {"pct_start": 0.5, "div_factor": 10}, {"pct_start": 0.01}])
@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_one_cycle(total, options, kind):
    rng = np.random.default_rng(0)
    mine, other = parameters(rng)
    if kind == "sgd":
        optimizer = SGD(0.1, 0.9, parameters=mine)
        reference = torch.optim.SGD(other, 0.1, momentum=0.9)
    else:
        optimizer, reference = Adam(0.1, parameters=mine), torch.optim.Adam(other, 0.1)
    schedule = OneCycleLR(optimizer, 0.3, total, **options)
    wanted = lr_scheduler.OneCycleLR(reference, 0.3, total_steps=total, **options)
    for step in range(total):
        group = reference.param_groups[0]
        assert optimizer.lr == pytest.approx(group["lr"], rel=1e-12)
        momentum = group["momentum"] if kind == "sgd" else group["betas"][0]
        name = "momentum" if kind == "sgd" else "beta1"
        assert optimizer.groups[0][name] == pytest.approx(momentum, rel=1e-12)
        set_gradients(rng, mine, other, step)
        optimizer.step()
        reference.step()
        if step < total - 1:
            schedule.step()
            wanted.step()
    assert_equal(mine, other)


@pytest.mark.parametrize("max_norm", [0.0, 0.5, 1e3])
@pytest.mark.parametrize("norm_type", [1.0, 2.0, 3.0, float("inf")])
def test_clipping(max_norm, norm_type):
    rng = np.random.default_rng(0)
    mine, other = parameters(rng)
    set_gradients(rng, mine, other, 0)
    norm = clip_gradients(mine, max_norm, norm_type=norm_type)
    wanted = torch.nn.utils.clip_grad_norm_([t for t in other if t.numel()], max_norm, norm_type)
    assert norm == pytest.approx(wanted.item())
    for a, b in zip(mine, other, strict=True):
        assert (a.grad is None) == (b.grad is None)
        if a.grad is not None:
            assert np.allclose(a.grad.numpy(), b.grad.numpy(), rtol=1e-12)
