"""The molecules example on all ranks, against the same in one process: prints the difference.

python -m mpi4py loss_curve.py FOLDER OPTION …
"""

import sys
from contextlib import nullcontext
from pathlib import Path
from shutil import rmtree

import numpy as np

FOLDER, *OPTIONS = sys.argv[1:]
sys.path.insert(0, str(Path(__file__).parents[2] / "packages" / "te-optim" / "examples"))
sys.argv[1:] = [*OPTIONS, "--output", FOLDER]

import train_molecules as single  # noqa: E402
import train_molecules_mpi as ranks  # noqa: E402
from resuming import Interrupt  # noqa: E402

import te_tensor as te  # noqa: E402
from te_optim.distributed import init  # noqa: E402

comm = init(timeout=60)
te.set_num_threads(1)
single.console.quiet = True
arguments = single.parse_arguments()
task = single.read_task(arguments)
found = ranks.train(task, "gaussian", arguments, comm, Interrupt())
with nullcontext() if comm.rank else single.console.status(""):
    arguments.output = Path(FOLDER, str(comm.rank))
    expected = single.train(task, "gaussian", arguments, Interrupt())
difference = np.abs(np.array(found.losses) - expected.losses).max()
worst = comm.allreduce(difference, "max")
if comm.rank == 0:
    rmtree(FOLDER)
    print(f"{len(expected.losses)} steps, losses differ by {worst:.1e}")
