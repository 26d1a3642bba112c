"""Schedules against PyTorch, step by step."""

import numpy as np
import pytest
import torch
from torch.optim import lr_scheduler

import te_optim
import te_tensor as te

BASES = (0.1, 0.7)


def pair(kind="SGD", **options):
    """An optimizer with two groups of different learning rates, here and there."""
    theirs = {"RMSProp": "RMSprop"}.get(kind, kind)
    ours = getattr(te_optim, kind)(
        lr=1.0,
        **options,
        parameters=[
            {"parameters": [te.zeros(2, dtype="float64", requires_grad=True)], "lr": lr}
            for lr in BASES
        ],
    )
    groups = [{"params": [torch.zeros(2).double().requires_grad_()], "lr": lr} for lr in BASES]
    return ours, getattr(torch.optim, theirs)(groups, lr=1.0, **options)


def settings(optimizer, reference):
    """What both have now: learning rates, and momentum or beta1 where there is one."""
    for own, other in zip(optimizer.groups, reference.param_groups, strict=True):
        yield own["lr"], other["lr"]
        if "momentum" in own:
            yield own["momentum"], other["momentum"]
        if "beta1" in own:
            yield own["beta1"], other["betas"][0]


def assert_follows(optimizer, reference, schedule, wanted, metrics):
    """Step by step the same, and the parameters too."""
    rng = np.random.default_rng(0)
    for metric in metrics:
        for one, other in settings(optimizer, reference):
            assert one == pytest.approx(other, rel=1e-12, abs=1e-15)
        for own, other in zip(optimizer.groups, reference.param_groups, strict=True):
            grad = rng.standard_normal(2)
            own["parameters"][0].grad, other["params"][0].grad = grad, torch.tensor(grad)
        optimizer.step()
        reference.step()
        given = () if metric is None else (metric,)
        schedule.step(*given)
        wanted.step(*given)
    for own, other in zip(optimizer.groups, reference.param_groups, strict=True):
        values = other["params"][0].detach().numpy()
        assert np.allclose(own["parameters"][0].numpy(), values, rtol=1e-11)


SIMPLE = [
    ("LinearWarmup", "LinearLR", {}),
    ("LinearWarmup", "LinearLR", {"start_factor": 0.1, "end_factor": 0.5, "total_iters": 12}),
    ("CosineAnnealing", "CosineAnnealingLR", {"T_max": 7}),
    ("CosineAnnealing", "CosineAnnealingLR", {"T_max": 30, "eta_min": 0.05}),
    ("StepDecay", "StepLR", {"step_size": 4}),
    ("StepDecay", "StepLR", {"step_size": 1, "gamma": 0.7}),
    ("ExponentialDecay", "ExponentialLR", {"gamma": 0.8}),
    ("PolynomialDecay", "PolynomialLR", {}),
    ("PolynomialDecay", "PolynomialLR", {"total_iters": 17, "power": 2.5}),
]


@pytest.mark.parametrize(("ours", "theirs", "options"), SIMPLE)
def test_decays(ours, theirs, options):
    optimizer, reference = pair()
    schedule = getattr(te_optim, ours)(optimizer, **options)
    wanted = getattr(lr_scheduler, theirs)(reference, **options)
    assert_follows(optimizer, reference, schedule, wanted, [None] * 25)


CYCLES = [
    {},
    {"step_size_down": 5},
    {"mode": "triangular2"},
    {"mode": "exp_range", "gamma": 0.9},
    {"scale_fn": lambda cycle: 1 / cycle, "scale_mode": "cycle"},
    {"scale_fn": lambda count: 0.9**count, "scale_mode": "iterations"},
    {"cycle_momentum": False},
    {"base_momentum": 0.3, "max_momentum": 0.7},
]


@pytest.mark.parametrize("options", CYCLES)
@pytest.mark.parametrize("kind", ["SGD", "Adam", "RMSProp"])
def test_cycles(kind, options):
    optimizer, reference = pair(kind)
    options = {"base_lr": [0.1, 0.2], "max_lr": 0.5, "step_size_up": 3, **options}
    schedule = te_optim.CyclicLR(optimizer, **options)
    wanted = lr_scheduler.CyclicLR(reference, **options)
    assert_follows(optimizer, reference, schedule, wanted, [None] * 25)


ONE_CYCLES = [
    {},
    {"pct_start": 0.5, "div_factor": 10},
    {"pct_start": 0.01},
    {"pct_start": 0.4, "three_phase": True},
    {"anneal_strategy": "linear", "final_div_factor": 10.0},
    {"anneal_strategy": "linear", "three_phase": True},
    {"cycle_momentum": False},
    {"base_momentum": 0.2, "max_momentum": 0.6},
    {"max_lr": [0.1, 0.9]},
]


@pytest.mark.parametrize("total", [3, 10, 37])
@pytest.mark.parametrize("options", ONE_CYCLES)
@pytest.mark.parametrize("kind", ["SGD", "Adam"])
def test_one_cycle(kind, options, total):
    optimizer, reference = pair(kind)
    options = {"max_lr": 0.3, "total_steps": total, **options}
    schedule = te_optim.OneCycleLR(optimizer, **options)
    wanted = lr_scheduler.OneCycleLR(reference, **options)
    assert_follows(optimizer, reference, schedule, wanted, [None] * (total - 1))


def test_one_cycle_of_epochs():
    optimizer, reference = pair()
    options = {"max_lr": 0.3, "epochs": 4, "steps_per_epoch": 5}
    schedule = te_optim.OneCycleLR(optimizer, **options)
    wanted = lr_scheduler.OneCycleLR(reference, **options)
    assert_follows(optimizer, reference, schedule, wanted, [None] * 19)


PLATEAUS = [
    {},
    {"patience": 0},
    {"mode": "max", "patience": 2, "factor": 0.5},
    {"mode": "max", "patience": 1, "threshold": 0.5, "threshold_mode": "abs"},
    {"patience": 1, "threshold": 0.2},
    {"patience": 1, "threshold": 0.2, "threshold_mode": "abs"},
    {"patience": 1, "cooldown": 3},
    {"patience": 0, "min_lr": [0.01, 0.3]},
    {"patience": 0, "eps": 0.05},
]


@pytest.mark.parametrize("options", PLATEAUS)
def test_plateaus(options):
    optimizer, reference = pair()
    schedule = te_optim.ReduceLROnPlateau(optimizer, **options)
    wanted = lr_scheduler.ReduceLROnPlateau(reference, **options)
    rng = np.random.default_rng(1)
    metrics = [float(x) for x in rng.standard_normal(40)]
    metrics[7], metrics[11] = float("nan"), float("inf")
    assert_follows(optimizer, reference, schedule, wanted, metrics)


def test_chains_of_factors():
    optimizer, reference = pair()
    schedule = te_optim.Chain(
        [
            te_optim.LinearWarmup(optimizer, 0.1, total_iters=6),
            te_optim.CosineAnnealing(optimizer, 40),
            te_optim.StepDecay(optimizer, 5, 0.5),
        ]
    )
    wanted = lr_scheduler.ChainedScheduler(
        [
            lr_scheduler.LinearLR(reference, 0.1, total_iters=6),
            lr_scheduler.CosineAnnealingLR(reference, 40),
            lr_scheduler.StepLR(reference, 5, 0.5),
        ]
    )
    assert_follows(optimizer, reference, schedule, wanted, [None] * 25)


def test_one_schedule_after_the_other():
    optimizer, reference = pair()
    schedule = te_optim.Sequential(
        [
            te_optim.LinearWarmup(optimizer, 0.1, total_iters=6),
            te_optim.CosineAnnealing(optimizer, 8, eta_min=0.01),
            te_optim.ExponentialDecay(optimizer, 0.9),
        ],
        milestones=[6, 14],
    )
    wanted = lr_scheduler.SequentialLR(
        reference,
        [
            lr_scheduler.LinearLR(reference, 0.1, total_iters=6),
            lr_scheduler.CosineAnnealingLR(reference, 8, eta_min=0.01),
            lr_scheduler.ExponentialLR(reference, 0.9),
        ],
        milestones=[6, 14],
    )
    assert_follows(optimizer, reference, schedule, wanted, [None] * 30)
