"""Data-parallel training over ranks, through MPI: each rank learns from its share of a batch.

    mpiexec -n 2 python -m mpi4py script.py

`-m mpi4py` has a rank that fails end the others, which would wait for it. Needs mpi4py (the extra
`mpi`) and an MPI library, both only where there is more than one rank.
"""

from .agreement import broadcast_optimizer_state as broadcast_optimizer_state
from .agreement import broadcast_parameters as broadcast_parameters
from .checkpoints import DistributedCheckpointer as DistributedCheckpointer
from .communicator import Communicator as Communicator
from .communicator import DifferentCallsError as DifferentCallsError
from .launch import init as init
from .launch import world as world
from .optimizer import DistributedOptimizer as DistributedOptimizer
from .sampler import DistributedSampler as DistributedSampler
