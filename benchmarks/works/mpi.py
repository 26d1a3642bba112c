"""The training of the work molecules, on one rank with all threads and on ranks of one thread each.

Ranks are a job that a launcher has started before anything is timed; rank 0 reads a line for each
step and answers with the losses.

    mpiexec -n 2 python -m mpi4py -m benchmarks.works.mpi STEPS
"""

from __future__ import annotations

import json
import subprocess
import sys
import weakref
from collections.abc import Callable
from functools import partial

from .. import machine
from . import molecules

SIZES = molecules.SIZES
#: The memory of a rank isn't that of the process that asks it.
MEMORY = False


def ranks(count: int, steps: int) -> Callable[[], object]:
    launcher = machine.program("mpiexec")
    assert launcher is not None
    module = ["-m", "mpi4py", "-m", "benchmarks.works.mpi", str(steps)]
    job = subprocess.Popen(
        [launcher, "-n", str(count), sys.executable, *module],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def train() -> object:
        assert job.stdin is not None and job.stdout is not None
        job.stdin.write("train\n")
        job.stdin.flush()
        answer = job.stdout.readline()
        if not answer:
            raise RuntimeError("the ranks ended: what they said stands above")
        return json.loads(answer)

    weakref.finalize(train, job.communicate)  # ranks end with their input
    return train


CONTESTANTS = {
    "tensor-engine": molecules.tensor_engine,
    "2 ranks": partial(ranks, 2),
}


def serve(steps: int) -> None:
    """A rank: train once for each line that rank 0 reads."""
    import te_nn as nn
    import te_tensor as te
    from te_optim.distributed import DistributedOptimizer, init

    comm = init()
    te.set_num_threads(1)
    model = molecules.te_model()
    loss_function = nn.MSELoss()
    data = [
        [te.from_numpy(array[comm.rank :: comm.size].copy()) for array in batch]
        for batch in molecules.batches(steps)
    ]
    optimizer = DistributedOptimizer(molecules.te_optimizer(model))
    while comm.broadcast_bytes(sys.stdin.readline().encode() if comm.rank == 0 else b""):
        losses = []
        for elements, distance, target in data:
            loss = loss_function(model(elements, distance), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        means = comm.allreduce(losses) / comm.size
        if comm.rank == 0:
            print(json.dumps(means.tolist()), flush=True)


if __name__ == "__main__":
    serve(int(sys.argv[1]))
