"""Ranks that save together, and agree on where to go on; checkpoints here are kept in memory."""

import copy

import numpy as np
import pytest
from regression import model, train, values

import te_tensor as te
from te_optim import Adam
from te_optim.distributed import (
    DifferentCallsError,
    DistributedCheckpointer,
    DistributedOptimizer,
)


class Memory:
    """The part of te_io.Checkpointer that is needed."""

    def __init__(self, **objects):
        self.objects = objects
        self.kept = {}

    def steps(self):
        return sorted(self.kept)

    def save(self, step):
        self.kept[step] = copy.deepcopy(
            {name: thing.state_dict() for name, thing in self.objects.items()}
        )

    def restore(self, step=None):
        for name, thing in self.objects.items():
            thing.load_state_dict(self.kept[step][name])
        return step


class Values:
    """Parameters as one object with a state."""

    def __init__(self, parameters):
        self.parameters = parameters

    def state_dict(self):
        return {"values": [te.Tensor(p.data) for p in self.parameters]}

    def load_state_dict(self, state):
        for parameter, value in zip(self.parameters, state["values"], strict=True):
            with parameter.lock() as memory:
                memory[...] = value.data


class Failing:
    """An object that has no state on one rank."""

    def __init__(self, fails):
        self.fails = fails

    def state_dict(self):
        if self.fails:
            raise OSError("the disk is full")
        return {}

    def load_state_dict(self, state):
        if self.fails:
            raise ValueError("of another time")


def test_ranks_go_on_from_the_newest_step_that_all_have(comm):
    memory = Memory()
    checkpointer = DistributedCheckpointer(memory, comm, shared=False)
    assert checkpointer.latest() is None and checkpointer.restore() is None
    for step in (10, 20, 30):
        checkpointer.save(step)
    assert checkpointer.latest() == 30
    if comm.rank == comm.size - 1:
        del memory.kept[30]  # as if it was damaged there
    assert checkpointer.latest() == 20 == checkpointer.restore()
    if comm.size > 1:
        memory.kept = {comm.rank: {}}
        assert checkpointer.restore() is None


def test_rank_0_saves_for_all_where_they_share_a_directory(comm):
    memory = Memory()
    DistributedCheckpointer(memory, comm).save(5)
    assert memory.steps() == ([5] if comm.rank == 0 else [])


@pytest.mark.parametrize("shard_state", [False, True])
def test_training_resumes_to_the_bit(comm, shard_state):
    through, half = model(), model()

    def optimizer_of(parameters):
        options = {"shard_state": shard_state, "deterministic": True}
        return DistributedOptimizer(Adam(parameters=parameters), comm, **options)

    expected = train(through, optimizer_of(through), comm, steps=range(6))
    optimizer = optimizer_of(half)
    memory = Memory(values=Values(half), optimizer=optimizer)
    checkpointer = DistributedCheckpointer(memory, comm, shared=False)
    train(half, optimizer, comm, steps=range(3))
    checkpointer.save(3)
    train(half, optimizer, comm, steps=range(3))  # in vain
    assert checkpointer.restore() == 3
    assert np.array_equal(train(half, optimizer, comm, steps=range(3, 6)), expected)
    assert np.array_equal(values(half), expected)


def test_every_rank_goes_on_with_its_own_random_numbers(comm):
    te.manual_seed(100 + comm.rank)
    checkpointer = DistributedCheckpointer(Memory(), comm, shared=False)
    checkpointer.save(0)
    drawn = te.rand(3).tolist()
    te.manual_seed(0)
    checkpointer.restore()
    assert te.rand(3).tolist() == drawn
    assert len({tuple(row) for row in comm.allgather(drawn).tolist()}) == comm.size


def test_another_number_of_ranks_keeps_its_seeds(comm):
    memory = Memory()
    checkpointer = DistributedCheckpointer(memory, comm, shared=False)
    checkpointer.save(0)
    memory.kept[0]["ranks"]["states"].append([7, 7])
    te.manual_seed(5)
    drawn = te.rand(3).tolist()
    te.manual_seed(5)
    checkpointer.restore()
    assert te.rand(3).tolist() == drawn


def test_a_failure_on_one_rank_is_one_on_all(comm):
    last = comm.size - 1
    memory = Memory(thing=Failing(comm.rank == last))
    checkpointer = DistributedCheckpointer(memory, comm, shared=False)
    with pytest.raises(OSError if comm.rank == last else DifferentCallsError):
        checkpointer.save(3)  # others are putting states together
    memory.kept = {3: {"thing": {}, "ranks": {"states": []}}}
    with pytest.raises(ValueError if comm.rank == last else RuntimeError, match="of another time"):
        checkpointer.restore()
    assert comm.allreduce(1) == comm.size


def test_all_ranks_hear_that_nothing_was_written(comm):
    memory = Memory()
    checkpointer = DistributedCheckpointer(memory, comm)

    def full(step):
        for thing in memory.objects.values():
            thing.state_dict()
        raise OSError("the disk is full")

    memory.save = full
    with pytest.raises(OSError if comm.rank == 0 else RuntimeError, match="the disk is full"):
        checkpointer.save(3)
    assert comm.allreduce(1) == comm.size


def test_bad_input_is_refused(comm):
    with pytest.raises(ValueError, match="an object is named 'ranks'"):
        DistributedCheckpointer(Memory(ranks=Failing(False)), comm)
    with pytest.raises(ValueError, match="shared is 1"):
        DistributedCheckpointer(Memory(), comm, shared=1)
    with pytest.raises(ValueError, match="step is -1"):
        DistributedCheckpointer(Memory(), comm).save(-1)
