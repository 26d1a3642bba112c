"""Parameters and optimizer state between ranks: broadcast, sharded, put together again."""

import copy

import numpy as np
import pytest
from regression import OPTIMIZERS, model, train

import te_tensor as te
from te_optim import SGD, Adam
from te_optim.distributed import (
    DistributedOptimizer,
    broadcast_optimizer_state,
    broadcast_parameters,
)


def same(first, second):
    assert first["groups"] == second["groups"]
    for one, other in zip(first["state"], second["state"], strict=True):
        assert set(one) == set(other)
        for name in one:
            assert np.array_equal(np.asarray(one[name]), np.asarray(other[name]))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_sharded_state_is_the_whole_in_parts(comm, name):
    whole, parted = model(), model()
    options = {"deterministic": True, "bucket_mb": 1e-3}
    first = DistributedOptimizer(OPTIMIZERS[name](whole), comm, **options)
    second = DistributedOptimizer(OPTIMIZERS[name](parted), comm, shard_state=True, **options)
    same(first.state_dict(), second.state_dict())
    expected = train(whole, first, comm)
    assert np.array_equal(train(parted, second, comm), expected)
    same(first.state_dict(), second.state_dict())
    own = sum(arena.edges[-1] for arena in second.optimizer._arenas)
    total = sum(p.size for p in parted)
    assert comm.allreduce(own) == total
    assert abs(own - total / comm.size) <= 4 * len(second._reducer.buckets)


def test_sharded_state_resumes_anywhere(comm):
    through, half = model(), model()
    make = OPTIMIZERS["Adam"]
    options = {"deterministic": True}
    expected = train(
        through, DistributedOptimizer(make(through), comm, **options), comm, steps=range(4)
    )
    optimizer = DistributedOptimizer(make(half), comm, shard_state=True, **options)
    train(half, optimizer, comm, steps=range(2))
    state = optimizer.state_dict()
    for shard_state in (False, True):
        again = [te.Tensor(p.data, requires_grad=True) for p in half]
        inner = make(again)
        if shard_state:
            inner.load_state_dict(state)  # before it is wrapped, and after
        resumed = DistributedOptimizer(inner, comm, shard_state=shard_state, **options)
        if not shard_state:
            resumed.load_state_dict(state)
        assert np.array_equal(train(again, resumed, comm, steps=[2, 3]), expected)


def test_groups_of_a_sharded_optimizer(comm):
    whole, parted = model(), model()

    def grouped(p):
        return Adam(parameters=[{"parameters": p[:2], "lr": 0.1}, {"parameters": p[2:]}])

    first = DistributedOptimizer(grouped(whole), comm)
    second = DistributedOptimizer(grouped(parted), comm, shard_state=True)
    assert [group["lr"] for group in second.groups] == [0.1, 1e-3]
    assert np.array_equal(train(parted, second, comm), train(whole, first, comm))
    same(first.state_dict(), second.state_dict())


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_sharded_state_of_small_floats(comm, dtype):
    whole, parted = model(dtype), model(dtype)
    first = DistributedOptimizer(Adam(parameters=whole), comm)
    second = DistributedOptimizer(Adam(parameters=parted), comm, shard_state=True)
    expected = train(whole, first, comm, dtype=dtype)
    assert np.array_equal(train(parted, second, comm, dtype=dtype), expected)
    same(first.state_dict(), second.state_dict())


def test_states_that_do_not_fit_change_nothing(comm):
    parameters = model()
    optimizer = DistributedOptimizer(Adam(parameters=parameters), comm, shard_state=True)
    train(parameters, optimizer, comm, steps=[0])
    state = optimizer.state_dict()
    other = copy.deepcopy(state)
    other["state"][0]["mean"] = te.ones(3)
    fewer = {**state, "state": state["state"][:-1]}
    for bad, said in [
        (SGD(lr=0.1, parameters=model()).state_dict(), "the state is of SGD: expected one of Adam"),
        (other, r"mean of parameter 0 has shape \(3,\): expected \(5, 40\)"),
        (fewer, "the state has groups of"),
        ({}, "expected the keys"),
    ]:
        with pytest.raises(ValueError, match=said):
            optimizer.load_state_dict(bad)
    same(optimizer.state_dict(), state)


def test_sharding_refuses_what_it_cannot_part(comm):
    with pytest.raises(ValueError, match="parameter 0 isn't in C order"):
        turned = te.Tensor(np.ones((2, 3))).T.detach()
        turned.requires_grad = True
        DistributedOptimizer(SGD(lr=0.1, parameters=[turned]), comm, shard_state=True)
    if comm.size > 2:
        with pytest.raises(ValueError, match="too few parameters to shard over"):
            one = te.ones(1, requires_grad=True)
            DistributedOptimizer(SGD(lr=0.1, parameters=[one]), comm, shard_state=True)
    assert comm.allreduce(1) == comm.size


# -- broadcasts -------------------------------------------------------------------------------


class Model:
    """A weight, a buffer, and the weight once more under another name."""

    def __init__(self, value, names=("weight", "mean", "tied")):
        weight = te.full((2, 3), float(value), requires_grad=True)
        self.tensors = dict(zip(names, (weight, te.full((), value, dtype="int64"), weight)))  # noqa: B905

    def state_dict(self):
        return {name: tensor.detach() for name, tensor in self.tensors.items()}


@pytest.mark.parametrize("as_module", [True, False])
def test_broadcast_parameters(comm, as_module):
    own = Model(comm.rank + 1)
    broadcast_parameters(own if as_module else own.state_dict(), comm.size - 1)
    assert all((tensor.data == comm.size).all() for tensor in own.tensors.values())
    with pytest.raises(ValueError, match="root is 9"):
        broadcast_parameters(own, 9)


def test_broadcast_refuses_models_that_differ(comm):
    read_only = np.ones(2)
    read_only.flags.writeable = False
    with pytest.raises(ValueError, match="the memory of weight is read-only"):
        broadcast_parameters({"weight": te.from_numpy(read_only)})
    if comm.size > 1:
        own = Model(comm.rank, ("weight", "mean" if comm.rank else "average"))
        with pytest.raises(ValueError, match=r"rank 0 has average: .* mean: "):
            broadcast_parameters(own)
        assert (own.tensors["weight"].data == comm.rank).all()


def test_broadcast_optimizer_state(comm):
    parameters = model()
    optimizer = Adam(lr=0.1 * (comm.rank + 1), parameters=parameters)
    if comm.rank == 0:
        train(parameters, optimizer, steps=range(2))
    broadcast_optimizer_state(optimizer)
    assert optimizer.lr == 0.1
    assert [entry["step"] for entry in optimizer.state_dict()["state"]] == [2] * 5
    sums = [float(np.sum(entry["mean"].data)) for entry in optimizer.state_dict()["state"]]
    assert np.ptp(comm.allgather(sums), axis=0).max() == 0
    broadcast_parameters(dict(enumerate(parameters)))
    broadcast_optimizer_state(DistributedOptimizer(optimizer, comm))
    sharded = DistributedOptimizer(optimizer, comm, shard_state=True)
    with pytest.raises(ValueError, match="the optimizer's state is in parts"):
        broadcast_optimizer_state(sharded)
