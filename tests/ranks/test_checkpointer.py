"""te_io's Checkpointer on several ranks: in a directory that they share, and in one each."""

import warnings

import numpy as np
import pytest

import te_nn as nn
import te_tensor as te
from te_io import Checkpointer, CheckpointWarning
from te_optim import AdamW, OneCycleLR
from te_optim.distributed import (
    DistributedCheckpointer,
    DistributedOptimizer,
    DistributedSampler,
    broadcast_parameters,
)

EPOCHS, BATCH, COUNT = 2, 8, 36


class Training:
    """A small network with dropout, so that random numbers matter, and a schedule."""

    def __init__(self, comm, directory, *, shared=True, **options):
        te.manual_seed(comm.rank)  # unlike weights, and unlike masks
        self.model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 1))
        broadcast_parameters(self.model, comm=comm)
        self.optimizer = DistributedOptimizer(
            AdamW(parameters=self.model.parameters()), comm, deterministic=True, **options
        )
        self.sampler = DistributedSampler(COUNT, 0, "weighted", batch=BATCH, comm=comm)
        steps = EPOCHS * len(self.sampler)
        self.schedule = OneCycleLR(self.optimizer, max_lr=0.01, total_steps=steps)
        files = Checkpointer(
            directory, model=self.model, optimizer=self.optimizer, schedule=self.schedule
        )
        self.checkpoints = DistributedCheckpointer(files, comm, shared=shared)
        rng = np.random.default_rng(0)
        self.x, self.y = (rng.standard_normal((COUNT, n)).astype(np.float32) for n in (4, 1))

    def run(self, start=0, stop=None, save_at=()):
        """Steps from one to another; returns the parameters."""
        shares = [share for epoch in range(EPOCHS) for share in self.sampler.batches(epoch)]
        for step, share in enumerate(shares[start:stop], start=start + 1):
            self.optimizer.zero_grad()
            self.optimizer.weight = len(share)
            te.mse_loss(self.model(te.Tensor(self.x[share])), te.Tensor(self.y[share])).backward()
            self.optimizer.step()
            self.schedule.step()
            if step in save_at:
                self.checkpoints.save(step)
        return np.concatenate([p.data.ravel() for p in self.model.parameters()])


@pytest.mark.parametrize("shard_state", [False, True])
@pytest.mark.parametrize("share_directory", [True, False])
def test_a_job_resumes_to_the_bit(comm, shared, tmp_path, share_directory, shard_state):
    directory = shared / "all" if share_directory else tmp_path / f"rank-{comm.rank}"
    options = {"shared": share_directory, "shard_state": shard_state}
    expected = Training(comm, directory, **options).run(save_at=(3, 6))
    again = Training(comm, directory, **options)
    te.manual_seed(99)
    assert again.checkpoints.restore() == 6
    assert np.array_equal(again.run(start=6), expected)


def test_a_checkpoint_that_is_damaged_on_one_rank_is_used_by_none(comm, tmp_path):
    directory = tmp_path / f"rank-{comm.rank}"
    training = Training(comm, directory, shared=False)
    training.run(stop=5, save_at=(2, 4))
    last = comm.rank == comm.size - 1
    if last:
        (file,) = directory.glob("step-00000004/model.safetensors")
        file.write_bytes(file.read_bytes()[:-1] + b"?")
    again = Training(comm, directory, shared=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert again.checkpoints.restore() == 2
    assert any(w.category is CheckpointWarning for w in caught) == last


def test_a_checkpoint_fits_another_number_of_ranks(comm, shared):
    training = Training(comm, shared / "all", shard_state=True)
    expected = training.run(stop=3, save_at=(3,))
    state = training.optimizer.state_dict()["state"]
    alone = comm.split(comm.rank)
    again = Training(alone, shared / "all")
    assert again.checkpoints.restore() == 3
    found = np.concatenate([p.data.ravel() for p in again.model.parameters()])
    assert np.array_equal(found, expected)
    for one, other in zip(again.optimizer.state_dict()["state"], state, strict=True):
        assert one["step"] == other["step"] == 3
        assert np.array_equal(one["square"].data, other["square"].data)
    again.run(start=3)
