"""Shares of batches: all ranks together take what one process takes."""

import numpy as np
import pytest

from te_optim.distributed import DistributedSampler


def gathered(comm, sampler, epoch=0):
    """The batches of all ranks together."""
    shares = list(sampler.batches(epoch))
    assert len(shares) == len(sampler)
    lengths = comm.allgather([len(share) for share in shares])
    padded = np.full((len(shares), lengths.max(initial=0)), -1)
    for row, share in zip(padded, shares, strict=True):
        row[: len(share)] = share
    return np.concatenate(comm.allgather(padded), axis=1), lengths


@pytest.mark.parametrize("n", [1, 5, 24, 26])
def test_weighted_takes_every_example_once(comm, n):
    sampler = DistributedSampler(n, 3, "weighted", batch=5)
    batches, lengths = gathered(comm, sampler, epoch=2)
    order = np.random.default_rng((3, 2)).permutation(n)
    assert np.ptp(lengths, axis=0).max() <= 1
    for number, batch in enumerate(batches):
        expected = order[5 * number : 5 * number + 5]
        assert sorted(batch[batch >= 0]) == sorted(expected)


@pytest.mark.parametrize("n", [1, 5, 24, 26])
def test_pad_gives_every_rank_as_many(comm, n):
    sampler = DistributedSampler(n, uneven="pad", batch=2 * comm.size)
    batches, lengths = gathered(comm, sampler)
    assert (np.ptp(lengths, axis=0) == 0).all()
    taken = batches[batches >= 0]
    assert set(taken) == set(range(n)) and len(taken) < n + comm.size


@pytest.mark.parametrize("n", [5, 24, 26])
def test_drop_leaves_out_what_is_over(comm, n):
    sampler = DistributedSampler(n, uneven="drop", batch=2 * comm.size)
    batches, lengths = gathered(comm, sampler)
    assert (np.ptp(lengths, axis=0) == 0).all()
    taken = batches[batches >= 0]
    assert len(set(taken)) == len(taken) == n - n % comm.size


def test_epochs_and_seeds_differ(comm):
    sampler = DistributedSampler(100, seed=1)
    first, again, second = (np.concatenate(list(sampler.batches(e))) for e in (0, 0, 1))
    other = np.concatenate(list(DistributedSampler(100, seed=2).batches(0)))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, second) and not np.array_equal(first, other)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"n": 0}, "n is 0"),
        ({"n": 9, "seed": -1}, "seed is -1"),
        ({"n": 9, "uneven": "equal"}, "uneven is 'equal': expected any of pad, drop, weighted"),
        ({"n": 9, "batch": 0}, "batch is 0"),
    ],
)
def test_bad_options_are_named(comm, options, said):
    with pytest.raises(ValueError, match=said):
        DistributedSampler(**options)
    with pytest.raises(ValueError, match="epoch is -1"):
        DistributedSampler(9).batches(-1)


def test_batches_must_part_evenly_unless_weighted(comm):
    if comm.size == 1:
        pytest.skip("needs several ranks")
    with pytest.raises(ValueError, match="expected a multiple of the"):
        DistributedSampler(50, batch=comm.size + 1)
    with pytest.raises(ValueError, match="n is 1: expected at least one example"):
        DistributedSampler(1, uneven="drop")
