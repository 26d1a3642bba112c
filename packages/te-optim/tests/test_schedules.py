"""What holds for all schedules, resuming and bad settings."""

import json

import numpy as np
import pytest

import te_tensor as te
from te_optim import (
    SGD,
    Adagrad,
    Adam,
    Chain,
    CosineAnnealing,
    CyclicLR,
    ExponentialDecay,
    LinearWarmup,
    OneCycleLR,
    PolynomialDecay,
    ReduceLROnPlateau,
    Schedule,
    Sequential,
    StepDecay,
)


def leaves(*values):
    return [te.Tensor(value, requires_grad=True) for value in values]


def optimizer_of(lr=0.1, kind=SGD):
    return kind(lr, parameters=leaves([1.0]))


def sequence(optimizer):
    parts = [LinearWarmup(optimizer), ReduceLROnPlateau(optimizer, patience=0)]
    return Sequential(parts, milestones=[3])


MAKE = {
    "warmup": lambda o: LinearWarmup(o, 0.0, total_iters=8),
    "cosine": lambda o: CosineAnnealing(o, 12, eta_min=0.01),
    "steps": lambda o: StepDecay(o, 3),
    "exponential": lambda o: ExponentialDecay(o, 0.9),
    "polynomial": lambda o: PolynomialDecay(o, 12, 2.0),
    "cyclic": lambda o: CyclicLR(o, 0.01, 0.1, 4, mode="triangular2"),
    "one cycle": lambda o: OneCycleLR(o, 1.0, 30),
    "plateau": lambda o: ReduceLROnPlateau(o, factor=0.5, patience=1, cooldown=1),
    "chain": lambda o: Chain([LinearWarmup(o), ReduceLROnPlateau(o, patience=0)]),
    "sequence": sequence,
    "nested": lambda o: Sequential([sequence(o), CosineAnnealing(o, 20)], milestones=[9]),
}
METRICS = [3.0, 2.0, 2.5, 2.0, 2.0, 1.0, 1.5, 1.5, 1.5, 1.5, 0.5, 0.6, 0.7, 0.7, 0.7, 0.7]


@pytest.mark.parametrize("kind", MAKE)
@pytest.mark.parametrize("at", [1, 5, 9])
def test_resuming_gives_the_same_bits(kind, at):
    """Optimizer and schedule stopped at a step, and gone on with from their states."""
    rng = np.random.default_rng(0)
    grads = rng.standard_normal((len(METRICS), 3))

    def train(w, optimizer, schedule, steps):
        for step in steps:
            w.grad = grads[step]
            optimizer.step()
            schedule.step(METRICS[step])

    (through,) = leaves(np.ones(3))
    optimizer = Adam(0.1, parameters=[through])
    schedule = MAKE[kind](optimizer)
    train(through, optimizer, schedule, range(at))
    saved = optimizer.state_dict(), json.loads(json.dumps(schedule.state_dict()))
    (fresh,) = leaves(through.numpy())
    train(through, optimizer, schedule, range(at, len(METRICS)))

    other = Adam(0.1, parameters=[fresh])
    resumed = MAKE[kind](other)
    other.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    train(fresh, other, resumed, range(at, len(METRICS)))
    assert np.array_equal(fresh.numpy(), through.numpy())
    assert other.groups[0]["lr"] == optimizer.groups[0]["lr"]


@pytest.mark.parametrize("kind", MAKE)
def test_a_state_that_does_not_fit_changes_nothing(kind):
    optimizer = optimizer_of(kind=Adam)
    schedule = MAKE[kind](optimizer)
    for metric in METRICS[:4]:
        schedule.step(metric)
    good = schedule.state_dict()
    lr = optimizer.lr
    bad = [
        {},
        5,
        {"count": 3},
        {**good, "count": -1},
        {**good, "count": 1.5},
        {**good, "base_lrs": [0.1, 0.2]},
        {**good, "base_lrs": [float("nan")]},
        {**good, "base_lrs": 0.1, "more": 1},
    ]
    if "best" in good:
        bad += [{**good, "best": "good"}, {**good, "reductions": -1}]
    if "schedules" in good:
        parts = good["schedules"]
        bad += [{**good, "schedules": parts[:1]}, {**good, "schedules": 5}]
        bad += [{**good, "count": 7, "schedules": [parts[0], {}]}]
    for state in bad:
        with pytest.raises(ValueError, match=r"expected"):
            schedule.load_state_dict(state)
        assert schedule.state_dict() == good
        assert optimizer.lr == lr


def test_a_cycle_has_no_more_steps_than_it_has():
    schedule = OneCycleLR(optimizer_of(), 1.0, 3)
    for _ in range(3):
        schedule.step()
    for attempt in (
        schedule.step,
        lambda: schedule.load_state_dict({"count": 4, "base_lrs": [1.0]}),
    ):
        with pytest.raises(ValueError, match="step 4"):
            attempt()
        assert schedule.count == 3


def test_a_failing_step_changes_nothing():
    optimizer = optimizer_of()
    schedule = Chain([ReduceLROnPlateau(optimizer, patience=0), OneCycleLR(optimizer, 1.0, 2)])
    for metric in (1.0, 2.0):
        schedule.step(metric)
    before = schedule.state_dict()
    with pytest.raises(ValueError, match="step 3"):
        schedule.step(3.0)
    with pytest.raises(ValueError, match="without a metric"):
        schedule.step()
    with pytest.raises(ValueError, match="could not convert"):
        schedule.step("low")
    assert schedule.state_dict() == before


def test_schedules_start_from_the_rate_before_the_first_of_them():
    optimizer = optimizer_of(1.0)
    OneCycleLR(optimizer, 50.0, 10)
    assert optimizer.lr == 2
    assert ExponentialDecay(optimizer, 0.5).base_lrs == [1.0]
    optimizer.lr = 3.0
    assert ExponentialDecay(optimizer, 0.5).base_lrs == [3.0]


def test_a_rate_of_zero_is_a_rest():
    optimizer = optimizer_of()
    PolynomialDecay(optimizer, 1).step()
    assert optimizer.lr == 0
    (w,) = optimizer.groups[0]["parameters"]
    w.grad = [1.0]
    optimizer.step()
    assert w.item() == 1
    other = optimizer_of()
    other.load_state_dict(optimizer.state_dict())
    assert other.lr == 0


def test_momentum_is_set_by_the_schedule_in_charge():
    optimizer = SGD(0.1, 0.5, parameters=leaves([1.0]))
    parts = [LinearWarmup(optimizer), OneCycleLR(optimizer, 1.0, 10)]
    schedule = Sequential(parts, milestones=[2])
    schedule.step()
    assert optimizer.groups[0]["lr"] < 0.1
    schedule.step()
    assert optimizer.groups[0]["lr"] == pytest.approx(0.04)
    assert optimizer.groups[0]["momentum"] == 0.95


def test_a_metric_may_be_a_tensor():
    schedule = ReduceLROnPlateau(optimizer_of(), patience=0)
    for loss in (1.0, 2.0):
        schedule.step(te.Tensor(loss))
    assert schedule.reductions == 1


def test_a_schedule_of_ones_own():
    class Halving(Schedule):
        """Half as much each step."""

        def lr_at(self, count, base_lr):
            return base_lr / 2**count

    optimizer = optimizer_of(1.0)
    schedule = Chain([Halving(optimizer), ExponentialDecay(optimizer, 0.1)])
    schedule.step()
    assert optimizer.lr == pytest.approx(0.05)
    with pytest.raises(NotImplementedError, match="no lr_at"):
        Schedule(optimizer)


BAD = [
    (lambda o: OneCycleLR(o, 0.0, 3), "max_lr is 0.0"),
    (lambda o: OneCycleLR(o, True, 3), "max_lr is True"),
    (lambda o: OneCycleLR(o, [1.0, 2.0], 3), "max_lr has 2 numbers"),
    (lambda o: OneCycleLR(o, 1.0, 0), "total_steps is 0"),
    (lambda o: OneCycleLR(o, 1.0), "epochs is None"),
    (lambda o: OneCycleLR(o, 1.0, epochs=2), "steps_per_epoch is None"),
    (lambda o: OneCycleLR(o, 1.0, 3, pct_start=1.5), "pct_start is 1.5"),
    (lambda o: OneCycleLR(o, 1.0, 3, div_factor=0), "div_factor is 0"),
    (lambda o: OneCycleLR(o, 1.0, 3, div_factor=float("nan")), "div_factor is nan"),
    (lambda o: OneCycleLR(o, 1.0, 3, max_momentum=1.0), "max_momentum is 1.0"),
    (lambda o: OneCycleLR(o, 1.0, 3, anneal_strategy="sine"), "anneal_strategy is 'sine'"),
    (lambda o: OneCycleLR(o, 1.0, 3, three_phase=1), "three_phase is 1"),
    (lambda o: CyclicLR(o, -0.1, 1.0), "base_lr is -0.1"),
    (lambda o: CyclicLR(o, 0.1, 1.0, 0), "step_size_up is 0"),
    (lambda o: CyclicLR(o, 0.1, 1.0, step_size_down=0), "step_size_down is 0"),
    (lambda o: CyclicLR(o, 0.1, 1.0, mode="square"), "mode is 'square'"),
    (lambda o: CyclicLR(o, 0.1, 1.0, scale_mode="day"), "scale_mode is 'day'"),
    (lambda o: LinearWarmup(o, -0.1), "start_factor is -0.1"),
    (lambda o: LinearWarmup(o, total_iters=0), "total_iters is 0"),
    (lambda o: CosineAnnealing(o, 0), "T_max is 0"),
    (lambda o: CosineAnnealing(o, 3, -1.0), "eta_min is -1.0"),
    (lambda o: StepDecay(o, 2.5), "step_size is 2.5"),
    (lambda o: StepDecay(o, 2, 0.0), "gamma is 0.0"),
    (lambda o: ExponentialDecay(o, float("inf")), "gamma is inf"),
    (lambda o: PolynomialDecay(o, power=0), "power is 0"),
    (lambda o: ReduceLROnPlateau(o, "least"), "mode is 'least'"),
    (lambda o: ReduceLROnPlateau(o, factor=1.0), "factor is 1.0"),
    (lambda o: ReduceLROnPlateau(o, patience=-1), "patience is -1"),
    (lambda o: ReduceLROnPlateau(o, threshold=-1), "threshold is -1"),
    (lambda o: ReduceLROnPlateau(o, threshold_mode="big"), "threshold_mode is 'big'"),
    (lambda o: ReduceLROnPlateau(o, min_lr=[0.1, 0.1]), "min_lr has 2 numbers"),
    (lambda o: Chain([]), "no schedules"),
    (lambda o: Chain([StepDecay(o, 2), StepDecay(optimizer_of(), 2)]), "several optimizers"),
    (lambda o: Sequential([StepDecay(o, 2)], [3]), "1 milestones for 1 schedules"),
    (lambda o: Sequential([StepDecay(o, 2)] * 3, [3, 3]), "milestones is [3, 3]"),
    (lambda o: Sequential([StepDecay(o, 2)] * 2, [0]), "a milestone is 0"),
    (lambda o: CyclicLR(Adagrad(parameters=leaves([1.0])), 0.1, 1.0), "Adagrad, which has no"),
    (lambda o: OneCycleLR(SGD(0.1), 1.0, 3), "no parameters yet"),
]


@pytest.mark.parametrize(("make", "given"), BAD)
def test_bad_settings_are_named(make, given):
    with pytest.raises(ValueError) as caught:
        make(optimizer_of())
    assert given in str(caught.value)


@pytest.mark.parametrize("thing", [3, None, "sgd", SGD])
@pytest.mark.parametrize(
    "make",
    [
        LinearWarmup,
        lambda o: CosineAnnealing(o, 3),
        lambda o: StepDecay(o, 3),
        lambda o: ExponentialDecay(o, 0.5),
        PolynomialDecay,
        lambda o: CyclicLR(o, 0.1, 1.0),
        lambda o: OneCycleLR(o, 1.0, 3),
        ReduceLROnPlateau,
    ],
)
def test_schedules_are_of_optimizers(make, thing):
    with pytest.raises(TypeError, match=r"optimizer is .*: expected an Optimizer"):
        make(thing)


def test_a_chain_is_of_schedules():
    with pytest.raises(TypeError, match="SGD"):
        Chain([optimizer_of()])
