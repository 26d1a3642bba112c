"""What holds for all optimizers."""

import threading
import tracemalloc
from copy import deepcopy

import numpy as np
import pytest

import te_tensor as te
from te_optim import SGD, Adagrad, Adam, AdamW, Optimizer, RMSProp

MAKE = {
    "sgd": lambda **k: SGD(0.1, 0.9, **k),
    "plain": lambda **k: SGD(0.1, **k),
    "adam": lambda **k: Adam(0.1, **k),
    "adamw": lambda **k: AdamW(0.1, amsgrad=True, **k),
    "rmsprop": lambda **k: RMSProp(0.1, momentum=0.5, centered=True, **k),
    "adagrad": lambda **k: Adagrad(0.1, lr_decay=0.1, initial_accumulator_value=0.1, **k),
}
#: Shapes that are gathered, cut and neither, and a dtype for each.
SHAPES = [(3,), (100,), (2, 2), (), (0,), (41,), (30, 7)]


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
def test_a_loaded_state_that_waits_for_its_parameters_can_be_saved(kind):
    through = leaves([1.0, 2.0], [[3.0]])
    optimizer = MAKE[kind](parameters=through)
    train(optimizer, through, 3, seed=1)
    waiting, again = MAKE[kind](), MAKE[kind]()
    waiting.load_state_dict(optimizer.state_dict())
    again.load_state_dict(waiting.state_dict())
    fresh = leaves(*(tensor.numpy().copy() for tensor in through))
    expected = train(optimizer, through, 2, seed=2)
    found = train(again, fresh, 2, each_call=True, seed=2)
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))
    with pytest.raises(ValueError, match="expected the keys optimizer, groups and state"):
        waiting.load_state_dict({})


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


def on_one_memory():
    whole = te.zeros(4, requires_grad=True)
    part = te.from_numpy(whole.numpy()[1:3])
    part.requires_grad = True
    return [whole, part]


@pytest.mark.parametrize("kind", [SGD, Adam, AdamW, RMSProp, Adagrad])
def test_a_rate_of_zero_may_be_given(kind):
    w, other = leaves([1.0], [1.0])
    groups = [{"parameters": [w]}, {"parameters": [other], "lr": 0.5}]
    optimizer = kind(lr=0.0, parameters=groups)
    w.grad = other.grad = [1.0]
    optimizer.step()
    assert w.item() == 1 and other.item() < 1
    optimizer.lr = 0.5
    optimizer.step()
    assert w.item() < 1
    optimizer.lr = 0
    before = w.item()
    optimizer.step()
    assert (optimizer.lr, w.item()) == (0, before)


@pytest.mark.parametrize(
    ("make", "given"),
    [
        (lambda: SGD(-0.1), "lr is -0.1"),
        (lambda: SGD(float("nan")), "lr is nan"),
        (lambda: SGD(float("inf")), "lr is inf"),
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
        (lambda: Adam(beta1=float("nan")), "beta1 is nan"),
        (lambda: Adam(eps=-1.0), "eps is -1.0"),
        (lambda: AdamW(weight_decay=-0.1), "weight_decay is -0.1"),
        (lambda: RMSProp(alpha=1.0), "alpha is 1.0"),
        (lambda: RMSProp(centered="yes"), "centered is 'yes'"),
        (lambda: RMSProp(momentum=-1.0), "momentum is -1.0"),
        (lambda: Adagrad(lr_decay=-1.0), "lr_decay is -1.0"),
        (lambda: Adagrad(initial_accumulator_value=-1.0), "initial_accumulator_value is -1.0"),
        (lambda: SGD(0.1, 0.9, nesterov=True, dampening=0.1), "dampening 0.1"),
        (lambda: SGD(0.1, parameters=[te.zeros(2, dtype="int64")]), "int64"),
        (lambda: SGD(0.1, parameters=on_one_memory()), "the same memory"),
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


@pytest.mark.parametrize("kind", MAKE)
def test_threads_and_blocks_change_no_bits(kind, monkeypatch):
    rng = np.random.default_rng(0)
    values = [rng.standard_normal(shape).astype("float32") for shape in SHAPES]
    found = []
    for threads, size in ((1, 40), (3, 40), (2, 1000), (2, 0)):
        te.set_num_threads(threads)
        for name in ("arena.SMALL", "plan.SMALL"):  # all gathered, none, or as it comes
            monkeypatch.setattr(f"te_optim.{name}", size)
        tensors = leaves(*values)
        found.append(train(MAKE[kind](parameters=tensors), tensors, 5))
    for other in found[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("kind", MAKE)
def test_memory_in_any_order(kind):
    rng = np.random.default_rng(0)
    values = [rng.standard_normal((4, 5)), rng.standard_normal((30, 10)), rng.standard_normal(3)]
    plain, turned = leaves(*values), []
    for value in values:
        turned.append(te.from_numpy(np.asfortranarray(value)[::1]))
        turned[-1].requires_grad = True
    for tensor in turned[:2]:
        assert not tensor.numpy().flags.c_contiguous
    first = train(MAKE[kind](parameters=plain), plain, 4)
    second = train(MAKE[kind](parameters=turned), turned, 4)
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_gradients_in_any_order():
    plain, turned = leaves(np.ones((20, 10))), leaves(np.ones((20, 10)))
    grad = np.random.default_rng(0).standard_normal((20, 10))
    plain[0].grad = grad
    (turned[0] * te.from_numpy(grad.T.copy()).T).sum().backward()
    SGD(0.1, parameters=plain).step()
    SGD(0.1, parameters=turned).step()
    assert np.array_equal(plain[0].numpy(), turned[0].numpy())


def test_gradients_stay_as_they_are():
    tensors = leaves(np.ones(4, "float32"), np.ones(300, "float32"))
    optimizer = Adam(0.1, weight_decay=0.5, parameters=tensors)
    for tensor in tensors:
        tensor.grad = np.full(tensor.shape, 2.0)
    optimizer.step()
    assert all((tensor.grad.numpy() == 2).all() for tensor in tensors)


def test_locks_are_held_and_given_back():
    tensors = leaves([1.0], [2.0])
    optimizer = SGD(0.1, parameters=tensors)
    for tensor in tensors:
        tensor.grad = [1.0]
    held, stepped = threading.Event(), threading.Event()

    def hold():
        with tensors[1].lock():
            held.set()
            assert not stepped.wait(0.05)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    optimizer.step()
    stepped.set()
    holder.join()
    assert tensors[0].item() == pytest.approx(0.9) and tensors[1].item() == pytest.approx(1.9)
    free = threading.Thread(target=lambda: tensors[0].lock().__enter__())
    free.start()
    free.join(5)
    assert not free.is_alive()


def test_optimizers_of_the_same_parameters_in_threads():
    tensors = leaves(*([0.0] for _ in range(20)))
    for tensor in tensors:
        tensor.grad = [1.0]
    forward, backward = SGD(1.0, parameters=tensors), SGD(1.0, parameters=tensors[::-1])

    def steps(optimizer):
        for _ in range(200):
            optimizer.step()

    workers = [threading.Thread(target=steps, args=(o,)) for o in (forward, backward)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
        assert not worker.is_alive()
    assert all(tensor.item() == -400 for tensor in tensors)


@pytest.mark.parametrize("kind", MAKE)
def test_copies_go_on_alike(kind):
    tensors = leaves(*(np.ones(shape) for shape in SHAPES))
    optimizer = MAKE[kind](parameters=tensors)
    train(optimizer, tensors, 3)
    copied, copies = deepcopy((optimizer, tensors))
    first, second = train(optimizer, tensors, 2), train(copied, copies, 2)
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("shape", [(3,), (300,), (15, 20)])
def test_small_steps_of_small_floats_add_up(dtype, shape):
    w = te.ones(*shape, dtype=dtype, requires_grad=True)
    reference = te.ones(*shape, requires_grad=True)
    optimizers = [SGD(1e-4, parameters=[w]), SGD(1e-4, parameters=[reference])]
    for _ in range(100):
        w.grad = reference.grad = np.ones(shape)
        for optimizer in optimizers:
            optimizer.step()
    assert np.array_equal(w.numpy(), reference.numpy().astype(w.dtype))
    assert (w.numpy() < 1).all()
    with w.lock() as array:
        array[...] = 4.0  # what is set from outside counts, and not the master copy
    optimizers[0].step()
    assert (w.numpy() == 4).all()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_small_floats_resume(dtype):
    tensors = [te.ones(n, dtype=dtype, requires_grad=True) for n in (5, 300)]
    optimizer = Adam(1e-3, parameters=tensors)
    halfway = [te.Tensor(a, requires_grad=True) for a in train(optimizer, tensors, 5)]
    resumed = Adam(1e-3, parameters=halfway)
    resumed.load_state_dict(optimizer.state_dict())
    first, second = train(optimizer, tensors, 5), train(resumed, halfway, 5)
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_no_temporaries_of_the_size_of_the_model(monkeypatch):
    monkeypatch.undo()  # blocks as they are in earnest
    tensors = [te.zeros(1 << 20, requires_grad=True) for _ in range(8)]
    optimizer = Adam(0.1, weight_decay=0.1, parameters=tensors)
    for tensor in tensors:
        tensor.grad = np.ones(tensor.shape, "float32")
    optimizer.step()  # state is made
    tracemalloc.start()
    optimizer.step()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < sum(tensor.nbytes for tensor in tensors) / 4


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [0, 1])
def test_non_finite_gradients_can_stop_a_step(bad, place):
    tensors = leaves(np.ones(3), np.ones(300))
    optimizer = Adam(0.1, parameters=tensors)
    train(optimizer, tensors, 1)
    before = str(optimizer.state_dict()), [tensor.tolist() for tensor in tensors]
    grad = np.ones(tensors[place].shape)
    grad[-1] = bad
    tensors[place].grad = grad
    with pytest.raises(FloatingPointError, match=f"parameter {place}, .* has 1 elements"):
        optimizer.step(error_if_nonfinite=True)
    assert before == (str(optimizer.state_dict()), [tensor.tolist() for tensor in tensors])
    optimizer.step()
    assert not np.isfinite(tensors[place].numpy()).all()


def test_great_gradients_are_finite():
    (w,) = leaves(np.ones(300))
    w.grad = np.full(300, 1e200)  # their squares aren't
    SGD(1e-200, parameters=[w]).step(error_if_nonfinite=True)
    assert (w.numpy() == 0).all()


def test_settings_are_checked_at_each_step():
    (w,) = leaves([1.0])
    optimizer = Adam(0.1, parameters=[w])
    w.grad = [1.0]
    optimizer.groups[0]["beta1"] = 1.0
    with pytest.raises(ValueError, match=r"beta1 is 1\.0"):
        optimizer.step()
    assert w.item() == 1
    optimizer.groups[0]["beta1"] = 0.9
    optimizer.groups[0]["parameters"] = leaves([1.0])
    with pytest.raises(ValueError, match="changed"):
        optimizer.step()


def test_a_state_that_does_not_fit_is_not_taken_with_the_first_call():
    donor = leaves([1.0])
    optimizer = Adam(0.1, parameters=donor)
    train(optimizer, donor, 1)
    other = Adam(0.1)
    other.load_state_dict(optimizer.state_dict())
    tensors = leaves([1.0, 2.0])
    tensors[0].grad = [1.0, 1.0]
    for _ in range(2):
        with pytest.raises(ValueError, match=r"of parameter 0 is float32 of shape \(1,\)"):
            other.step(tensors)
    assert tensors[0].tolist() == [1, 2]


def test_a_rule_of_ones_own():
    class Signs(Optimizer):
        """Steps of one length."""

        def __init__(self, lr, *, parameters=None):
            super().__init__({"lr": lr}, parameters)

        def _rule(self, settings, step, scalar):
            lr = scalar(settings["lr"])

            def rule(p, g):
                np.subtract(p, lr * np.sign(g), p)

            return rule

    tensors = leaves(np.zeros(3), np.zeros(300))
    for tensor in tensors:
        tensor.grad = np.full(tensor.shape, -7.0)
    Signs(0.5, parameters=tensors).step()
    assert all((tensor.numpy() == 0.5).all() for tensor in tensors)
    with pytest.raises(NotImplementedError, match="no update rule"):
        Optimizer({"lr": 0.1}, tensors).step()


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
