import numpy as np
import pytest

import te_tensor as te
from te_optim import SGD, Adam, AdamW, OneCycleLR, clip_gradients

MAKE = {
    "sgd": lambda **k: SGD(0.1, 0.9, **k),
    "adam": lambda **k: Adam(0.1, **k),
    "adamw": lambda **k: AdamW(0.1, amsgrad=True, **k),
}


def leaves(*values):
    return [te.Tensor(value, requires_grad=True) for value in values]


def train(optimizer, tensors, steps, *, each_call=False, seed=0):
    rng = np.random.default_rng(seed)
    given = (tensors,) if each_call else ()
    for _ in range(steps):
        optimizer.zero_grad(*given)
        for tensor in tensors:
            tensor.grad = rng.standard_normal(tensor.shape)
        optimizer.step(*given)
    return [tensor.numpy().copy() for tensor in tensors]


@pytest.mark.parametrize("kind", MAKE)
def test_both_calling_styles_agree(kind):
    first, second = leaves([1.0, 2.0], [[3.0]]), leaves([1.0, 2.0], [[3.0]])
    bound = train(MAKE[kind](parameters=first), first, 5)
    given = train(MAKE[kind](), second, 5, each_call=True)
    assert all(np.array_equal(a, b) for a, b in zip(bound, given, strict=True))


@pytest.mark.parametrize("kind", MAKE)
def test_resuming_gives_the_same_bits(kind):
    through = leaves([1.0, 2.0], [[3.0]])
    optimizer = MAKE[kind](parameters=through)
    train(optimizer, through, 3, seed=1)
    state = optimizer.state_dict()
    halfway = [tensor.numpy().copy() for tensor in through]
    expected = train(optimizer, through, 4, seed=2)
    fresh = leaves(*halfway)
    resumed = MAKE[kind](parameters=fresh)
    resumed.lr = 99.0  # the state brings its own
    resumed.load_state_dict(state)
    actual = train(resumed, fresh, 4, seed=2)
    assert all(np.array_equal(a, b) for a, b in zip(actual, expected, strict=True))


def test_state_is_a_copy():
    tensors = leaves([1.0])
    optimizer = Adam(parameters=tensors)
    train(optimizer, tensors, 1)
    state = optimizer.state_dict()
    before = state["state"][0]["mean"].item()
    train(optimizer, tensors, 1)
    assert state["state"][0]["mean"].item() == before


def test_groups_have_their_own_settings():
    slow, fast = leaves([0.0], [0.0])
    optimizer = SGD(0.1, parameters=[{"parameters": [slow]}, {"parameters": fast, "lr": 1.0}])
    slow.grad, fast.grad = [1.0], [1.0]
    optimizer.step()
    assert slow.item() == pytest.approx(-0.1) and fast.item() == -1
    optimizer.lr = 0.5
    assert [group["lr"] for group in optimizer.groups] == [0.5, 0.5]


def test_parameters_without_gradient_stay():
    tensors = leaves([1.0], [2.0])
    optimizer = AdamW(0.1, parameters=tensors)
    tensors[0].grad = [1.0]
    optimizer.step()
    assert tensors[1].item() == 2


def test_large_parameters_are_updated_whole():
    te.set_num_threads(2)
    tensors = [te.zeros(300_001, requires_grad=True)]
    tensors[0].grad = np.ones(300_001)
    SGD(0.5, parameters=tensors).step()
    assert (tensors[0].numpy() == -0.5).all()


def test_stepping_is_a_change():
    (w,) = leaves([1.0])
    loss = (w * w).sum()
    w.grad = [1.0]
    SGD(0.1, parameters=[w]).step()
    with pytest.raises(RuntimeError, match="Mul"):
        loss.backward()


def test_minimum_is_found():
    (w,) = leaves([5.0, -3.0])
    optimizer = Adam(0.1, parameters=[w])
    for _ in range(500):
        optimizer.zero_grad()
        ((w - te.Tensor([1.0, 2.0])) ** 2).sum().backward()
        optimizer.step()
    assert np.allclose(w.numpy(), [1, 2], atol=1e-3)


@pytest.mark.parametrize(
    ("make", "given"),
    [
        (lambda: SGD(-0.1), "lr is -0.1"),
        (lambda: SGD(float("nan")), "lr is nan"),
        (lambda: SGD("fast"), "lr is 'fast'"),
        (lambda: SGD(0.1, nesterov=True), "nesterov"),
        (lambda: SGD(True), "lr is True"),
        (lambda: Adam(amsgrad=1), "amsgrad is 1"),
        (
            lambda: SGD(0.1, parameters=[{"parameters": leaves([1.0]), "nesterov": True}]),
            "momentum",
        ),
        (lambda: Adam(beta1=1.0), "beta1 is 1.0"),
        (lambda: Adam(beta2=-0.1), "beta2 is -0.1"),
        (lambda: Adam(eps=-1.0), "eps is -1.0"),
        (lambda: SGD(0.1, parameters=[]), "no parameters"),
        (lambda: SGD(0.1, parameters=leaves([1.0]) * 2), "twice"),
        (lambda: SGD(0.1, parameters=[leaves([1.0])[0] * 2]), "leaf"),
        (lambda: SGD(0.1, parameters=[{"lr": 1.0}]), "'parameters'"),
        (lambda: SGD(0.1, parameters=[{"parameters": leaves([1.0]), "rate": 1.0}]), "'rate'"),
        (lambda: SGD(0.1).step(), "no parameters"),
        (lambda: setattr(SGD(0.1), "lr", -1.0), "lr is -1.0"),
    ],
)
def test_bad_settings_are_named(make, given):
    with pytest.raises(ValueError) as caught:
        make()
    assert given in str(caught.value)


def test_parameters_are_tensors():
    with pytest.raises(TypeError, match="list"):
        SGD(0.1, parameters=[[1.0]])


def test_a_parameter_list_that_changes_raises():
    first, second = leaves([1.0]), leaves([1.0])
    optimizer = SGD(0.1)
    optimizer.zero_grad(first)
    with pytest.raises(ValueError, match="changed"):
        optimizer.step(second)
    with pytest.raises(ValueError, match="changed"):
        optimizer.step(first + second)


@pytest.mark.parametrize("kind", MAKE)
def test_resuming_with_parameters_given_to_each_call(kind):
    tensors = leaves([1.0, 2.0], [[3.0]])
    optimizer = MAKE[kind]()
    halfway = train(optimizer, tensors, 3, each_call=True, seed=1)
    state = optimizer.state_dict()
    expected = train(optimizer, tensors, 2, each_call=True, seed=2)
    fresh = leaves(*halfway)
    resumed = MAKE[kind]()
    resumed.load_state_dict(state)
    actual = train(resumed, fresh, 2, each_call=True, seed=2)
    assert all(np.array_equal(a, b) for a, b in zip(actual, expected, strict=True))


def test_a_single_tensor_is_a_parameter():
    (w,) = leaves([1.0, 2.0])
    optimizer = SGD(1.0, parameters=w)
    w.grad = [1.0, 1.0]
    optimizer.step()
    assert w.tolist() == [0, 1]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_small_parameters_are_updated_in_float32(dtype):
    w = te.Tensor([1.0, 1.0], dtype=dtype, requires_grad=True)
    optimizer = Adam(parameters=[w])
    w.grad = te.Tensor([0.0, 4.0], dtype=dtype)
    optimizer.step()
    assert np.isfinite(w.numpy().astype("float32")).all()
    assert optimizer.state_dict()["state"][0]["mean"].dtype == te.float32


def test_read_only_memory_changes_nothing():
    first, second = leaves([1.0])[0], te.from_numpy(np.broadcast_to(np.ones(1), (2,)))
    second.requires_grad = True
    first.grad, second.grad = [1.0], [1.0, 1.0]
    with pytest.raises(ValueError, match="read-only"):
        SGD(1.0, parameters=[first, second]).step()
    assert first.item() == 1


def test_sgd_keeps_its_memory():
    (w,) = leaves(np.zeros(4))
    optimizer = SGD(0.1, 0.9, parameters=[w])
    w.grad = np.ones(4)
    optimizer.step()
    buffer = optimizer._arenas[0].state["momentum_buffer"]
    optimizer.step()
    assert optimizer._arenas[0].state["momentum_buffer"] is buffer


def bad_states(state):
    kind, groups, entries = state["optimizer"], state["groups"], state["state"]
    without = {name: value for name, value in entries[0].items() if name != "square"}
    yield {"optimizer": kind, "groups": groups, "state": [without, entries[1]]}
    yield {"optimizer": kind, "groups": [{**groups[0], "amsgrad": True}], "state": entries}
    yield {"optimizer": kind, "groups": groups, "state": [{**entries[0], "step": -3}, entries[1]]}
    yield {
        "optimizer": kind,
        "groups": groups,
        "state": [{**entries[0], "mean": np.zeros(2, int)}, entries[1]],
    }
    yield {"optimizer": kind, "groups": 5, "state": entries}
    yield {"optimizer": kind, "groups": [{}], "state": entries}
    yield {}
    yield {"optimizer": kind, "groups": groups, "state": entries[:1]}
    yield {"optimizer": kind, "groups": [{**groups[0], "parameters": [0]}], "state": entries}
    yield {"optimizer": kind, "groups": [{"lr": 0.1, "parameters": [0, 1]}], "state": entries}
    yield {"optimizer": kind, "groups": [{**groups[0], "lr": -1.0}], "state": entries}
    yield {
        "optimizer": kind,
        "groups": groups,
        "state": [{**entries[0], "mean": te.zeros(3)}, entries[1]],
    }
    yield {"optimizer": kind, "groups": groups, "state": [{**entries[0], "other": 1}, entries[1]]}


def test_a_state_that_does_not_fit_changes_nothing():
    tensors = leaves([1.0, 2.0], [[3.0]])
    optimizer = Adam(0.1, parameters=tensors)
    train(optimizer, tensors, 2)
    before = str(optimizer.state_dict())
    for state in bad_states(optimizer.state_dict()):
        with pytest.raises(ValueError):
            optimizer.load_state_dict(state)
        assert str(optimizer.state_dict()) == before
    with pytest.raises(ValueError, match="of SGD: expected one of Adam"):
        optimizer.load_state_dict(SGD(0.1, parameters=tensors).state_dict())


def test_non_finite_gradients_can_raise():
    tensors = leaves([1.0, 2.0], [3.0])
    tensors[0].grad, tensors[1].grad = [float("inf"), 1.0], [4.0]
    with pytest.raises(FloatingPointError, match="inf"):
        clip_gradients(tensors, 1.0, error_if_nonfinite=True)
    assert tensors[1].grad.item() == 4
    assert clip_gradients(tensors, 1.0) == float("inf")


@pytest.mark.parametrize(("max_norm", "options"), [(-1.0, {}), (1.0, {"norm_type": 0})])
def test_bad_clipping_is_named(max_norm, options):
    with pytest.raises(ValueError, match="expected"):
        clip_gradients([], max_norm, **options)


def test_the_infinity_norm_sees_every_nan():
    tensors = leaves([1.0], [1.0])
    tensors[0].grad, tensors[1].grad = [1.0], [float("nan")]
    with pytest.raises(FloatingPointError, match="nan"):
        clip_gradients(tensors, 1.0, norm_type=float("inf"), error_if_nonfinite=True)


def test_clipping_nothing():
    assert clip_gradients(leaves([1.0]), 1.0) == 0


def test_schedules_resume():
    (w,) = leaves([1.0])
    optimizer = SGD(0.1, parameters=[w])
    schedule = OneCycleLR(optimizer, 1.0, 10)
    for _ in range(4):
        schedule.step()
    other = SGD(0.1, parameters=[w])
    resumed = OneCycleLR(other, 1.0, 10)
    resumed.load_state_dict(schedule.state_dict())
    assert other.lr == optimizer.lr
    with pytest.raises(ValueError, match="expected"):
        resumed.load_state_dict({"count": 3})
    with pytest.raises(ValueError, match="no more steps"):
        resumed.load_state_dict({"count": 11, "base_lrs": [0.1]})
    assert resumed.count == 4


def test_a_cycle_ends():
    (w,) = leaves([1.0])
    schedule = OneCycleLR(SGD(0.1, parameters=[w]), 1.0, 3)
    for _ in range(3):
        schedule.step()
    with pytest.raises(ValueError, match="step 4"):
        schedule.step()
    assert schedule.count == 3


@pytest.mark.parametrize(
    ("options", "given"),
    [
        ({"max_lr": 0.0, "total_steps": 3}, "max_lr is 0.0"),
        ({"max_lr": 1.0, "total_steps": 0}, "total_steps is 0"),
        ({"max_lr": 1.0, "total_steps": 3, "pct_start": 1.5}, "pct_start is 1.5"),
        ({"max_lr": 1.0, "total_steps": 3, "div_factor": 0}, "div_factor is 0"),
        ({"max_lr": 1.0, "total_steps": 3, "div_factor": float("nan")}, "div_factor is nan"),
        ({"max_lr": True, "total_steps": 3}, "max_lr is True"),
        ({"max_lr": 1.0, "total_steps": 3, "max_momentum": 1.0}, "max_momentum is 1.0"),
    ],
)
def test_bad_cycles_are_named(options, given):
    with pytest.raises(ValueError) as caught:
        OneCycleLR(SGD(0.1, parameters=leaves([1.0])), **options)
    assert given in str(caught.value)


def test_a_schedule_needs_bound_parameters():
    with pytest.raises(ValueError, match="no parameters yet"):
        OneCycleLR(SGD(0.1), 1.0, 3)
