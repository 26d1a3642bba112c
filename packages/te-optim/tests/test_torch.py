"""Update rules and clipping against PyTorch, step by step."""

import numpy as np
import pytest
import torch

import te_tensor as te
from te_optim import EMA, SGD, Adagrad, Adam, AdamW, RMSProp, clip_grad_value, clip_gradients

#: Small ones that are gathered, a large one that is cut, none and no axes.
SHAPES = [(3, 4), (5,), (), (0,), (20, 15), (7, 3)]
STEPS = 50


def parameters(rng, shapes=SHAPES, dtype=np.float64):
    values = [rng.standard_normal(shape).astype(dtype) for shape in shapes]
    ours = [te.Tensor(value, requires_grad=True) for value in values]
    return ours, [torch.tensor(value, requires_grad=True) for value in values]


def set_gradients(rng, ours, theirs, step):
    for place, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        if place == 1 and step % 3 == 0:  # some steps leave a parameter without one
            mine.grad = other.grad = None
        else:
            grad = torch.tensor(rng.standard_normal(mine.shape), dtype=other.dtype)
            mine.grad, other.grad = grad.numpy(), grad


def assert_equal(ours, theirs):
    for mine, other in zip(ours, theirs, strict=True):
        assert np.allclose(mine.numpy(), other.detach().numpy(), rtol=1e-12, atol=1e-13)


OPTIMIZERS = [
    (SGD, torch.optim.SGD, {"lr": 0.1}),
    (SGD, torch.optim.SGD, {"lr": 0.1, "weight_decay": 0.1}),
    (SGD, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
    (SGD, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}),
    (SGD, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.3}),
    (SGD, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1}),
    (SGD, torch.optim.SGD, {"lr": 0.1, "momentum": 0.5, "nesterov": True}),
    (SGD, torch.optim.SGD, {"lr": 0.1, "momentum": 0.5, "nesterov": True, "weight_decay": 0.1}),
    (Adam, torch.optim.Adam, {"lr": 0.01}),
    (Adam, torch.optim.Adam, {"lr": 0.01, "weight_decay": 0.1, "eps": 1e-3}),
    (Adam, torch.optim.Adam, {"lr": 0.01, "amsgrad": True}),
    (Adam, torch.optim.Adam, {"lr": 0.01, "amsgrad": True, "weight_decay": 0.1}),
    (Adam, torch.optim.Adam, {"lr": 0.01, "betas": (0.5, 0.7)}),
    (Adam, torch.optim.Adam, {"lr": 0.01, "betas": (0.0, 0.9)}),
    (AdamW, torch.optim.AdamW, {"lr": 0.01}),
    (AdamW, torch.optim.AdamW, {"lr": 0.01, "weight_decay": 0.3, "amsgrad": True}),
    (AdamW, torch.optim.AdamW, {"lr": 0.01, "weight_decay": 0.0, "betas": (0.8, 0.9)}),
    (RMSProp, torch.optim.RMSprop, {"lr": 0.01}),
    (RMSProp, torch.optim.RMSprop, {"lr": 0.01, "alpha": 0.5, "eps": 1e-3}),
    (RMSProp, torch.optim.RMSprop, {"lr": 0.01, "weight_decay": 0.1, "momentum": 0.9}),
    (RMSProp, torch.optim.RMSprop, {"lr": 0.01, "centered": True, "eps": 1e-3}),
    (RMSProp, torch.optim.RMSprop, {"lr": 0.01, "centered": True, "momentum": 0.5, "eps": 1e-2}),
    (Adagrad, torch.optim.Adagrad, {"lr": 0.1}),
    (Adagrad, torch.optim.Adagrad, {"lr": 0.1, "lr_decay": 0.1, "weight_decay": 0.1}),
    (Adagrad, torch.optim.Adagrad, {"lr": 0.1, "initial_accumulator_value": 0.5, "eps": 1e-3}),
]
IDS = [f"{kind.__name__}-{'-'.join(options)}" for kind, _, options in OPTIMIZERS]


def own_names(options):
    """PyTorch's options under our names."""
    own = dict(options)
    if "betas" in own:
        own["beta1"], own["beta2"] = own.pop("betas")
    return own


@pytest.mark.parametrize(("ours", "theirs", "options"), OPTIMIZERS, ids=IDS)
def test_fifty_steps(ours, theirs, options):
    rng = np.random.default_rng(0)
    mine, other = parameters(rng)
    optimizer = ours(**own_names(options), parameters=mine)
    reference = theirs(other, **options)
    for step in range(STEPS):
        set_gradients(rng, mine, other, step)
        optimizer.step()
        reference.step()
    assert_equal(mine, other)


@pytest.mark.parametrize("kernels", ["auto", "numpy"])
@pytest.mark.parametrize(("ours", "theirs", "options"), OPTIMIZERS, ids=IDS)
def test_fifty_steps_in_float32(ours, theirs, options, kernels):
    """Units in the last place of the largest element: both sides round in orders of their own."""
    te.set_kernels(kernels)
    rng = np.random.default_rng(0)
    mine, other = parameters(rng, dtype=np.float32)
    optimizer = ours(**own_names(options), parameters=mine)
    reference = theirs(other, **options)
    for step in range(STEPS):
        set_gradients(rng, mine, other, step)
        optimizer.step()
        reference.step()
    for one, wanted in zip(mine, other, strict=True):
        wanted = wanted.detach().numpy()
        unit = np.spacing(np.abs(wanted).max(initial=1))
        assert np.abs(one.numpy() - wanted).max(initial=0) <= 4 * unit


#: For each optimizer, what a second group sets otherwise: every setting of its own.
OTHERWISE = [
    (SGD, torch.optim.SGD, {"lr": 0.2, "momentum": 0.5, "dampening": 0.1, "weight_decay": 0.01}),
    (SGD, torch.optim.SGD, {"lr": 0.2, "momentum": 0.5, "nesterov": True}),
    (
        *(Adam, torch.optim.Adam),
        {"lr": 0.2, "betas": (0.5, 0.6), "eps": 1e-2, "weight_decay": 0.1, "amsgrad": True},
    ),
    (
        *(AdamW, torch.optim.AdamW),
        {"lr": 0.2, "betas": (0.5, 0.6), "eps": 1e-2, "weight_decay": 0.1, "amsgrad": True},
    ),
    (
        *(RMSProp, torch.optim.RMSprop),
        {
            "lr": 0.2,
            "alpha": 0.5,
            "eps": 0.1,
            "weight_decay": 0.1,
            "momentum": 0.5,
            "centered": True,
        },
    ),
    (
        *(Adagrad, torch.optim.Adagrad),
        {"lr": 0.2, "lr_decay": 0.1, "weight_decay": 0.1, "eps": 1e-2},
    ),
]


@pytest.mark.parametrize(("ours", "theirs", "options"), OTHERWISE)
def test_groups_with_settings_of_their_own(ours, theirs, options):
    rng = np.random.default_rng(0)
    mine, other = parameters(rng)
    own = own_names(options)
    optimizer = ours(
        lr=0.05, parameters=[{"parameters": mine[:3]}, {"parameters": mine[3:], **own}]
    )
    reference = theirs([{"params": other[:3]}, {"params": other[3:], **options}], lr=0.05)
    assert set(optimizer.groups[1]) >= set(own)
    for step in range(STEPS):
        if step == 20:
            optimizer.groups[1]["lr"] = reference.param_groups[1]["lr"] = 0.01
        set_gradients(rng, mine, other, step)
        optimizer.step()
        reference.step()
    assert_equal(mine, other)


def test_settings_that_change_on_the_way():
    rng = np.random.default_rng(0)
    mine, other = parameters(rng)
    optimizer = SGD(0.1, parameters=mine)
    reference = torch.optim.SGD(other, 0.1)
    for step in range(30):
        momentum = [0.0, 0.9, 0.0, 0.5][step % 4] if step > 4 else 0.0
        for group in (optimizer.groups[0], reference.param_groups[0]):
            group["momentum"], group["dampening"] = momentum, 0.5
        set_gradients(rng, mine, other, 1)
        optimizer.step()
        reference.step()
    assert_equal(mine, other)


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_extremes(kind):
    values = np.array([1.0, -1.0, 0.0, 1e30, 1e-30, 1e30])
    grads = np.array([np.inf, np.nan, 0.0, 1e30, 1e-30, -1e-30])
    mine = te.Tensor(values, requires_grad=True)
    other = torch.tensor(values, requires_grad=True)
    if kind == "sgd":
        optimizer = SGD(0.1, 0.9, parameters=[mine])
        reference = torch.optim.SGD([other], 0.1, 0.9)
    else:
        optimizer, reference = Adam(0.1, parameters=[mine]), torch.optim.Adam([other], 0.1)
    for _ in range(3):
        mine.grad, other.grad = grads, torch.tensor(grads)
        optimizer.step()
        reference.step()
        assert np.allclose(mine.numpy(), other.detach().numpy(), rtol=1e-12, equal_nan=True)


@pytest.mark.parametrize("max_norm", [0.0, 0.5, 1e3])
@pytest.mark.parametrize("norm_type", [1.0, 2.0, 3.0, float("inf")])
def test_clipping(max_norm, norm_type):
    rng = np.random.default_rng(0)
    mine, other = parameters(rng)
    set_gradients(rng, mine, other, 0)
    norm = clip_gradients(mine, max_norm, norm_type=norm_type)
    wanted = torch.nn.utils.clip_grad_norm_([t for t in other if t.numel()], max_norm, norm_type)
    assert norm == pytest.approx(wanted.item(), rel=1e-12)
    for a, b in zip(mine, other, strict=True):
        assert (a.grad is None) == (b.grad is None)
        if a.grad is not None:
            assert np.allclose(a.grad.numpy(), b.grad.numpy(), rtol=1e-12)


@pytest.mark.parametrize("limit", [0.0, 0.5, 1e3])
def test_clipping_of_values(limit):
    grad = np.array([-2.0, -0.5, 0.1, 3.0, np.inf, -np.inf, np.nan])
    mine, other = te.zeros(7, dtype="float64", requires_grad=True), torch.zeros(7).double()
    mine.grad, other.grad = grad, torch.tensor(grad)
    clip_grad_value([mine], limit)
    torch.nn.utils.clip_grad_value_([other], limit)
    assert np.array_equal(mine.grad.numpy(), other.grad.numpy(), equal_nan=True)


def test_averages():
    rng = np.random.default_rng(0)
    mine, other = parameters(rng)
    holder = torch.nn.Module()
    holder.values = torch.nn.ParameterList(other)
    ema = EMA(mine, decay=0.9)
    function = torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)
    reference = torch.optim.swa_utils.AveragedModel(holder, multi_avg_fn=function)
    reference.update_parameters(holder)  # the first update of theirs is a copy
    for _ in range(20):
        for a, b in zip(mine, other, strict=True):
            values = rng.standard_normal(a.shape)
            with a.lock() as array:
                array[...] = values
            b.data = torch.tensor(values)
        for own, new in zip(holder.values, other, strict=True):
            own.data = new.data
        ema.update()
        reference.update_parameters(holder)
    with ema.average_parameters():
        assert_equal(mine, list(reference.module.values))
