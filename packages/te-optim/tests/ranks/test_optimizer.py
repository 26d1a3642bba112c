"""Steps of several ranks on shares of a batch equal those of one process on all of it."""

import gc
import weakref

import ml_dtypes
import numpy as np
import pytest
from regression import OPTIMIZERS, data, loss_of, model, train, values

import te_tensor as te
from te_optim import SGD, Adam, AdamW, StepDecay, clip_gradients
from te_optim.distributed import DistributedOptimizer

OPTIONS = [{}, {"bucket_mb": 1e-4}, {"deterministic": True}, {"shard_state": True}]
OPTIONS += [{"shard_state": True, "deterministic": True, "bucket_mb": 1e-3}]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_ranks_on_shares_equal_one_on_the_whole(comm, name, options):
    single, shared = model(), model()
    optimizer = DistributedOptimizer(OPTIMIZERS[name](shared), comm, **options)
    expected = train(single, OPTIMIZERS[name](single))
    found = train(shared, optimizer, comm)
    assert np.allclose(found, expected, rtol=1e-11, atol=1e-13)
    assert np.ptp(comm.allgather(found), axis=0).max() == 0  # the same bits on every rank


@pytest.mark.parametrize("dtype", ["float32", "float16", ml_dtypes.bfloat16])
@pytest.mark.parametrize("options", OPTIONS[2:4], ids=str)
def test_small_floats_are_summed_in_float32(comm, dtype, options):
    single, shared = model(dtype), model(dtype)
    optimizer = DistributedOptimizer(SGD(lr=0.1, parameters=shared), comm, **options)
    assert {bucket.flat.dtype for bucket in optimizer._reducer.buckets} == {np.dtype(np.float32)}
    expected = train(single, SGD(lr=0.1, parameters=single), dtype=dtype)
    found = train(shared, optimizer, comm, dtype=dtype)
    assert np.allclose(found, expected, atol=1e-6 if dtype == "float32" else 1e-2)
    assert np.ptp(comm.allgather(found), axis=0).max() == 0


def test_dtypes_have_buckets_of_their_own(comm):
    kinds = ["float32", "float64", "float16", "float64", "float32"]
    parameters = [te.ones(3, dtype=kind, requires_grad=True) for kind in kinds]
    optimizer = DistributedOptimizer(SGD(lr=1.0, parameters=parameters), comm)
    sum((p * (comm.rank + 1)).sum().astype("float64") for p in parameters).backward()
    optimizer.step()
    mean = (comm.size + 1) / 2
    assert np.allclose(values(parameters), 1 - mean)
    assert len(optimizer._reducer.buckets) == 2


# -- order, bits and overlap ------------------------------------------------------------------


def test_deterministic_adds_in_the_order_of_the_ranks(comm):
    rng = np.random.default_rng(comm.rank)
    own = (rng.standard_normal(1000) * 10.0 ** rng.integers(-6, 6, 1000)).astype(np.float32)
    everybody = comm.allgather(own)
    expected = everybody[0].copy()
    for other in everybody[1:]:
        expected += other
    expected /= np.float32(comm.size)
    for bucket_mb in (25, 1e-3, 1e-6):
        parameters = [te.zeros(n, requires_grad=True) for n in (600, 1, 399)]
        optimizer = DistributedOptimizer(
            SGD(lr=1.0, parameters=parameters), comm, bucket_mb, deterministic=True
        )
        parts = [own[:600], own[600:601], own[601:]]
        sum((p * te.Tensor(g)).sum() for p, g in zip(parameters, parts, strict=True)).backward()
        optimizer.synchronize()
        found = np.concatenate([p.grad.data for p in parameters])
        assert found.tobytes() == expected.tobytes()
        optimizer.step()


def test_sums_begin_while_backward_goes_on(comm):
    parameters = model()
    optimizer = DistributedOptimizer(SGD(lr=0.1, parameters=parameters), comm, bucket_mb=1e-6)
    begun = []
    handle = parameters[0].register_hook(lambda grad: begun.append(optimizer._reducer.begun))
    loss_of(parameters, *data(4)).backward()
    optimizer.step()
    handle.remove()
    assert begun == [4]  # all but that of the first parameter itself, whose gradient comes last


def test_gradients_may_come_in_another_order_on_each_rank(comm):
    parameters = [te.ones(4, requires_grad=True) for _ in range(4)]
    optimizer = DistributedOptimizer(SGD(lr=1.0, parameters=parameters), comm, bucket_mb=1e-6)
    order = np.roll(np.arange(4), comm.rank)
    total = te.zeros(4)
    for place in order:
        total = total + parameters[place] * float(place + comm.rank)
    total.sum().backward()
    optimizer.step()
    shift = (comm.size - 1) / 2
    assert np.allclose(values(parameters).reshape(4, 4)[:, 0], 1 - np.arange(4) - shift)


# -- who counts for what ----------------------------------------------------------------------


def test_weights_give_the_mean_over_all_examples(comm):
    single, shared = model(), model()
    optimizer = DistributedOptimizer(SGD(lr=0.1, parameters=shared), comm)
    count = 2 * comm.size + 1
    x, y = data(count)
    loss_of(single, x, y).backward()
    optimizer.weight = len(x.data[comm.rank :: comm.size])
    loss_of(shared, x[comm.rank :: comm.size], y[comm.rank :: comm.size]).backward()
    optimizer.synchronize()
    for one, other in zip(single, shared, strict=True):
        assert np.allclose(one.grad.data, other.grad.data, rtol=1e-12, atol=1e-14)


def test_a_rank_without_examples_takes_part(comm):
    parameters = model()
    before = values(parameters)
    optimizer = DistributedOptimizer(SGD(lr=0.1, parameters=parameters), comm, bucket_mb=1e-4)
    optimizer.weight = float(comm.rank == 0)
    if comm.rank == 0:
        loss_of(parameters, *data(4)).backward()
    optimizer.step()
    assert (values(parameters) != before).any()
    assert np.ptp(comm.allgather(values(parameters)), axis=0).max() == 0
    optimizer.zero_grad()
    optimizer.weight = 0
    with pytest.raises(ValueError, match="the weights of all ranks come to 0"):
        optimizer.step()


def test_what_some_ranks_use_counts_as_zeros_on_others(comm):
    used, alone, never = parameters = [te.ones(3, requires_grad=True) for _ in range(3)]
    optimizer = DistributedOptimizer(AdamW(lr=0.1, parameters=parameters), comm)
    loss = (used * 2.0).sum()
    if comm.rank == comm.size - 1:
        loss = loss + (alone * comm.size).sum()
    loss.backward()
    optimizer.step()
    assert used.grad.tolist() == [2.0] * 3
    assert alone.grad.tolist() == [1.0] * 3
    assert never.grad is None
    assert never.tolist() == [1.0] * 3  # no weight decay either, as in one process


def test_no_sync_adds_up_before_the_sum(comm):
    single, shared = model(), model()
    optimizer = DistributedOptimizer(SGD(lr=0.1, parameters=shared), comm)
    parts = [data(3, seed) for seed in range(3 * comm.size)]
    for x, y in parts:
        (loss_of(single, x, y) / len(parts)).backward()
    first, *middle, last = parts[comm.rank :: comm.size]
    with optimizer.no_sync():
        for x, y in [first, *middle]:
            (loss_of(shared, x, y) / 3).backward()
        assert not optimizer._reducer.busy
    (loss_of(shared, *last) / 3).backward()
    optimizer.synchronize()
    for one, other in zip(single, shared, strict=True):
        assert np.allclose(one.grad.data, other.grad.data, rtol=1e-11, atol=1e-14)


def test_gradients_add_up_over_steps_without_zero_grad(comm):
    w = te.zeros(2, requires_grad=True)
    optimizer = DistributedOptimizer(SGD(lr=1.0, parameters=[w]), comm)
    for total in (1, 2, 3):
        (w * 1.0).sum().backward()
        optimizer.step()
        assert w.grad.tolist() == [total, total]


def test_zero_grad_drops_a_backward(comm):
    parameters = model()
    optimizer = DistributedOptimizer(SGD(lr=0.1, parameters=parameters), comm, bucket_mb=1e-4)
    loss_of(parameters, *data(4, comm.rank)).backward()
    optimizer.zero_grad()
    assert all(p.grad is None for p in parameters)
    before = values(parameters)
    optimizer.step()
    assert np.array_equal(values(parameters), before)
    loss_of(parameters, *data(4, comm.rank)).backward()
    optimizer.step()
    assert (values(parameters) != before).any()


# -- between the sum and the step -------------------------------------------------------------


def test_clipping_comes_after_the_sum(comm):
    single, shared = model(), model()
    optimizer = DistributedOptimizer(SGD(lr=0.1, parameters=shared), comm)
    x, y = data(24)
    loss_of(single, x, y).backward()
    loss_of(shared, x[comm.rank :: comm.size], y[comm.rank :: comm.size]).backward()
    optimizer.synchronize()
    expected = clip_gradients(single, 1e-3)
    assert np.isclose(clip_gradients(shared, 1e-3), expected, rtol=1e-12)
    SGD(lr=0.1, parameters=single).step()
    optimizer.step()
    assert np.allclose(values(shared), values(single), rtol=1e-13)


@pytest.mark.parametrize("change", [lambda p: clip_gradients(p, 1e-6), lambda p: p[1].zero_grad()])
def test_a_change_before_the_sum_is_an_error(comm, change):
    parameters = model()
    optimizer = DistributedOptimizer(SGD(lr=0.1, parameters=parameters), comm)
    loss_of(parameters, *data(4)).backward()
    change(parameters)
    with pytest.raises(RuntimeError, match=r"parameter \d was changed after backward: call sync"):
        optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("options", OPTIONS[:4], ids=str)
def test_all_ranks_raise_where_one_has_a_nan(comm, options):
    parameters = model()
    optimizer = DistributedOptimizer(Adam(parameters=parameters), comm, **options)
    before = values(parameters)
    x, y = data(4)
    factor = np.nan if comm.rank == comm.size - 1 else 1.0
    (loss_of(parameters, x, y) * factor).backward()
    with pytest.raises(FloatingPointError, match="inf or NaN"):
        optimizer.step(error_if_nonfinite=True)
    assert np.array_equal(values(parameters), before)
    optimizer.zero_grad()
    loss_of(parameters, x, y).backward()
    optimizer.step(error_if_nonfinite=True)
    assert np.isfinite(values(parameters)).all()


@pytest.mark.parametrize("shard_state", [False, True])
def test_schedules_on_the_wrapper_and_on_the_wrapped(comm, shard_state):
    single, shared = model(), model()
    first = SGD(lr=0.1, momentum=0.9, parameters=single)
    inner = SGD(lr=0.1, momentum=0.9, parameters=shared)
    early = StepDecay(inner, step_size=2, gamma=0.1)
    optimizer = DistributedOptimizer(inner, comm, shard_state=shard_state)
    late = StepDecay(optimizer, step_size=3, gamma=0.5)
    schedules = [StepDecay(first, step_size=2, gamma=0.1), StepDecay(first, step_size=3, gamma=0.5)]
    for _ in range(4):
        train(single, first, steps=[0])
        train(shared, optimizer, comm, steps=[0])
        for schedule in (*schedules, early, late):
            schedule.step()
        assert optimizer.lr == inner.lr == first.lr
    assert np.allclose(values(shared), values(single), rtol=1e-11)
    optimizer.lr = 0.25
    assert inner.lr == 0.25


# -- bad input --------------------------------------------------------------------------------


def build(kind=SGD, parameters=None, **options):
    return kind(parameters=parameters or model(), **{"lr": 0.1, **options})


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: (build(), {"bucket_mb": 0}), "bucket_mb is 0"),
        (lambda: (build(), {"deterministic": 1}), "deterministic is 1: expected True or False"),
        (lambda: (build(), {"shard_state": None}), "shard_state is None"),
        (lambda: (SGD(lr=0.1), {}), "no parameters yet"),
        (lambda: (SGD(lr=0.1, parameters=[te.ones(2)]), {}), "no parameter needs a gradient"),
    ],
)
def test_bad_options_are_named(comm, make, said):
    optimizer, options = make()
    with pytest.raises(ValueError, match=said):
        DistributedOptimizer(optimizer, comm, **options)
    assert comm.allreduce(1) == comm.size


def test_only_optimizers_are_wrapped(comm):
    with pytest.raises(TypeError, match="got a list"):
        DistributedOptimizer(model(), comm)
    wrapped = DistributedOptimizer(build(), comm)
    with pytest.raises(TypeError, match="got a DistributedOptimizer"):
        DistributedOptimizer(wrapped, comm)


def other_shape():
    return [te.ones(n, requires_grad=True) for n in (2, 3)]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda odd: (build(AdamW if odd else SGD), {}), "ranks differ in the optimizer"),
        (lambda odd: (build(lr=0.2 if odd else 0.1), {}), r"optimizer: .* lr=0\.1.* lr=0\.2"),
        (lambda odd: (build(), {"bucket_mb": 2 if odd else 1}), "ranks differ in the options"),
        (
            lambda odd: (build(parameters=[te.ones(3 if odd else 2, requires_grad=True)]), {}),
            r"model: rank 0 has parameter 0: float32 \(2,\).* rank \d parameter 0: float32 \(3,\)",
        ),
        (
            lambda odd: (build(parameters=other_shape()[: 1 if odd else 2]), {}),
            "ranks differ in the optimizer: .* for 2 parameters, .* for 1 parameters",
        ),
        (
            lambda odd: (build(parameters=[te.full(2, float(odd), requires_grad=True)]), {}),
            "ranks differ in the parameters' values",
        ),
    ],
)
def test_ranks_that_differ_are_refused_on_all(comm, make, said):
    if comm.size == 1:
        pytest.skip("needs several ranks")
    optimizer, options = make(comm.rank == comm.size - 1)
    with pytest.raises(ValueError, match=said):
        DistributedOptimizer(optimizer, comm, **options)
    assert comm.allreduce(1) == comm.size


def test_names_are_compared_and_named(comm):
    parameters = other_shape()
    names = ["weight", "bias" if comm.rank == 0 else "offset"]
    named = list(zip(names, parameters, strict=True))
    if comm.size > 1:
        with pytest.raises(ValueError, match=r"rank 0 has bias: .* offset: "):
            DistributedOptimizer(build(parameters=parameters), comm, named_parameters=named)
    named = list(zip(["weight", "bias"], parameters, strict=True))
    optimizer = DistributedOptimizer(build(parameters=parameters), comm, named_parameters=named)
    (parameters[0].sum() + parameters[1].sum()).backward()
    parameters[1].grad = None
    with pytest.raises(RuntimeError, match="the gradient of bias was changed"):
        optimizer.step()


def test_backward_twice_names_no_sync(comm):
    parameters = model()
    optimizer = DistributedOptimizer(build(parameters=parameters), comm)
    loss_of(parameters, *data(4)).backward()
    with pytest.raises(RuntimeError, match=r"with optimizer.no_sync\(\):"):
        loss_of(parameters, *data(4)).backward()
    with pytest.raises(RuntimeError, match="weight was set after backward"):
        optimizer.weight = 3
    optimizer.zero_grad()
    with pytest.raises(ValueError, match="weight is -1"):
        optimizer.weight = -1
    with pytest.raises(ValueError, match="got 1 tensors: expected the 5 bound parameters"):
        optimizer.step(parameters[:1])
    optimizer.step(parameters)


def test_parameters_that_need_no_gradient_are_left_out(comm):
    parameters = model()
    parameters[0].requires_grad = False
    optimizer = DistributedOptimizer(build(parameters=parameters), comm)
    before = np.array(parameters[0].data)
    train(parameters, optimizer, comm, steps=[0])
    assert np.array_equal(parameters[0].data, before)
    parameters[0].requires_grad = True
    optimizer.zero_grad()
    loss_of(parameters, *data(4)).backward()
    with pytest.raises(RuntimeError, match="parameter 0 has a gradient, but needed none"):
        optimizer.step()


def test_hooks_go_with_the_optimizer(comm):
    parameters = model()
    optimizer = DistributedOptimizer(build(parameters=parameters), comm)
    gone = weakref.ref(optimizer)
    del optimizer
    gc.collect()
    assert gone() is None
    for _ in range(2):
        loss_of(parameters, *data(4)).backward()  # nothing is summed any more
