"""Collective calls: values on every rank, and bad input, which is refused on all of them."""

import gc
import weakref

import ml_dtypes
import numpy as np
import pytest

import te_tensor as te
from te_optim import distributed


def test_ranks_and_sizes(comm):
    assert 0 <= comm.rank < comm.size
    assert comm.local_rank == comm.rank  # one machine
    assert distributed.world() is comm is distributed.init(timeout=20)


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "float16", ml_dtypes.bfloat16])
def test_allreduce(comm, dtype):
    ranks = np.arange(comm.size)
    given = (np.arange(6).reshape(2, 3) + 10 * comm.rank).astype(dtype)
    for op, expected in (("sum", ranks.sum()), ("max", comm.size - 1), ("min", 0)):
        found = comm.allreduce(given, op)
        base = np.arange(6).reshape(2, 3) * (comm.size if op == "sum" else 1)
        assert found.dtype == given.dtype
        assert np.array_equal(found.astype(float), base + 10 * expected)
    assert given[0, 0] == 10 * comm.rank  # as it was


def test_allreduce_takes_numbers_and_tensors(comm):
    assert comm.allreduce(2) == 2 * comm.size
    assert comm.allreduce(te.Tensor([0.5])).tolist() == [0.5 * comm.size]
    assert comm.allreduce(np.empty(0)).shape == (0,)


def test_iallreduce_works_in_place_and_in_order(comm):
    arrays = [np.full(1 + 1000 * i, comm.rank + i, np.float32) for i in range(5)]
    calls = [comm.iallreduce(array) for array in arrays]
    for call in reversed(calls):
        call.wait()
        assert call.test()
    for i, array in enumerate(arrays):
        assert set(array) == {comm.size * i + sum(range(comm.size))}


def test_reduce_scatter_is_a_part_of_allreduce(comm):
    given = np.arange(6.0 * comm.size).reshape(2 * comm.size, 3) * (comm.rank + 1)
    whole = comm.allreduce(given)
    part = comm.reduce_scatter(given)
    assert np.array_equal(part, whole[2 * comm.rank : 2 * comm.rank + 2])


def test_allgather_and_alltoall(comm):
    gathered = comm.allgather(np.array([comm.rank, 7], ml_dtypes.bfloat16))
    assert gathered.dtype == ml_dtypes.bfloat16
    assert gathered.tolist() == [[rank, 7] for rank in range(comm.size)]
    received, call = comm.ialltoall(np.arange(comm.size) + 10 * comm.rank)
    call.wait()
    assert received.tolist() == [[10 * rank + comm.rank] for rank in range(comm.size)]


def test_broadcast(comm):
    root = comm.size - 1
    assert comm.broadcast(np.full((2, 2), comm.rank), root).tolist() == [[root] * 2] * 2
    assert comm.broadcast(np.float64(comm.rank), root) == root
    assert comm.broadcast_bytes(b"x" * comm.rank, root) == b"x" * root
    assert comm.allgather_bytes(b"a" * comm.rank) == [b"a" * rank for rank in range(comm.size)]


def test_split_makes_groups_that_work(comm):
    group = comm.split(comm.rank % 2, key=-comm.rank)
    members = sorted(range(comm.rank % 2, comm.size, 2), reverse=True)
    assert (group.size, group.rank) == (len(members), members.index(comm.rank))
    assert group.timeout == comm.timeout
    assert group.allreduce(comm.rank) == sum(members)
    assert group.duplicate().allgather(comm.rank).tolist() == members


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda comm: comm.allreduce(1, "mean"), "op is 'mean': expected any of sum, max, min"),
        (lambda comm: comm.iallreduce(np.ones((2, 2)).T), "isn't in C order"),
        (lambda comm: comm.iallreduce(np.ones(2, np.float16)), "float16: expected float32"),
        (lambda comm: comm.allreduce([True]), "is of bool: expected float32, float64 or int"),
        (lambda comm: comm.allreduce([1j]), "is of complex128"),
        (lambda comm: comm.reduce_scatter([True] * comm.size), "is of bool"),
        (lambda comm: comm.broadcast(1, root=comm.size), "expected a rank below"),
        (lambda comm: comm.broadcast(1, root=-1), "root is -1"),
        (lambda comm: comm.split(-1), "color is -1"),
        (lambda comm: comm.reduce_scatter(1.0), "expected a first axis"),
        (lambda comm: distributed.init(timeout=0), "timeout is 0"),
    ],
)
def test_bad_input_is_refused(comm, call, said):
    with pytest.raises(ValueError, match=said):
        call(comm)
    assert comm.allreduce(1) == comm.size  # nobody is left behind


def test_other_calls_and_shapes_are_named_on_all_ranks(comm):
    if comm.size == 1:
        pytest.skip("needs several ranks")
    with pytest.raises(ValueError, match=r"rank 0: barrier; rank 1: allreduce sum of int64 \(\)"):
        _ = comm.allreduce(1) if comm.rank else comm.barrier()
    with pytest.raises(ValueError, match=r"rank 0: .* float64 \(3,\); rank 1: .* float64 \(2,\)"):
        comm.allgather(np.zeros(2 if comm.rank == 1 else 3))
    assert comm.allreduce(1) == comm.size


def test_a_wait_has_a_deadline(comm):
    if comm.size == 1:
        pytest.skip("needs several ranks")
    group = comm.duplicate()
    group.timeout = 0.2
    if comm.rank == 0:
        with pytest.raises(TimeoutError, match=r"rank 0 of \d waited 0.2 s in barrier"):
            group.barrier()
    comm.barrier()


def test_arrays_stay_while_mpi_writes_to_them(comm):
    class Array(np.ndarray):
        """One that can be referred to weakly."""

    array = np.zeros(100_000).view(Array)
    gone = weakref.ref(array)
    group = comm.duplicate()
    if comm.rank == 0:
        call = group.iallreduce(array)
        del array
        gc.collect()
        assert (gone() is None) == (comm.size == 1)
        comm.barrier()
    else:
        comm.barrier()
        call = group.iallreduce(array)
        del array
    call.wait()
    gc.collect()
    assert gone() is None
