"""What needs PyTorch or MPI is collected where it is installed; small work is cut up too."""

import os
import shutil
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

import te_tensor as te

collect_ignore = [] if find_spec("torch") else ["test_torch.py", "test_torch_schedules.py"]
if not find_spec("mpi4py") or not shutil.which(
    "mpiexec", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
):
    collect_ignore.append("test_mpi.py")

#: Sizes from which work is gathered, cut and spread, small enough for tests to reach them.
CUT = {
    "arena.SMALL": 40,
    "gradients.SMALL": 40,
    "gradients._PARALLEL_FROM": 200,
    "plan.SMALL": 40,
    "plan.BLOCK": 128,
    "plan._GATHERED": 64,
    "direct.PARALLEL_FROM": 200,
    "direct.SHORTEST": 64,
}


@pytest.fixture(autouse=True)
def _cut_small_work(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in CUT.items():
        monkeypatch.setattr(f"te_optim.{name}", value)


@pytest.fixture(autouse=True)
def _settings() -> Iterator[None]:
    threads, kernels = te.get_num_threads(), te.kernel_info()["kernels"]
    te.manual_seed(0)
    te.set_num_threads(2)
    yield
    te.set_num_threads(threads)
    te.set_kernels(kernels)
