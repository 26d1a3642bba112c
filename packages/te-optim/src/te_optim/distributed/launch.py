"""The beginning of a job: the communicator of all ranks, and what happens when one fails."""

from __future__ import annotations

import sys
from time import sleep
from types import TracebackType
from typing import Any

from ..checks import check_number
from .communicator import Communicator, on_machines
from .library import load_mpi_if_any

#: Seconds for the launcher to pass on what a rank printed last: it may drop that when a job ends.
_TELLING = 0.5

_world: Communicator | None = None


def init(timeout: float = 300.0) -> Communicator:
    """The communicator of all ranks that the launcher started.

    Run a script of two ranks as `mpiexec -n 2 python -m mpi4py script.py`. Without a launcher
    there is one rank, and MPI isn't needed. From then on an exception that nobody catches ends
    the whole job, after its traceback. A second call gives the same communicator, with the new
    timeout.

    Args:
        timeout: seconds that a rank waits for others before it raises a TimeoutError. It must
            cover the longest work that one rank does while others wait, such as saving. The end
            of the program is no such wait: rank 0 may report at leisure.

    Returns:
        The communicator.

    Raises:
        ModuleNotFoundError: mpi4py is missing, and a launcher started several ranks.
        RuntimeError: mpi4py finds no MPI, and a launcher started several ranks; or this MPI can't
            live with threads.
        ValueError: timeout isn't above 0.
        TimeoutError: not all ranks came in time.

    Example:
        >>> init(timeout=60)
        <Communicator: rank 0 of 1>
    """
    global _world
    check_number("timeout", timeout, above=0)
    if _world is None:
        _world = _begin(timeout)
    _world.timeout = timeout
    return _world


def world() -> Communicator:
    """The communicator that `init` gave.

    Returns:
        The communicator of all ranks.

    Raises:
        RuntimeError: init() wasn't called.

    Example:
        >>> comm = init()
        >>> world() is comm
        True
    """
    if _world is None:
        raise RuntimeError("no communicator: call te_optim.distributed.init() first")
    return _world


def _begin(timeout: float) -> Communicator:
    mpi = load_mpi_if_any()
    if mpi is None or mpi.COMM_WORLD.size == 1:
        return Communicator(None, timeout)
    if mpi.Query_thread() < mpi.THREAD_FUNNELED:
        raise RuntimeError("this MPI was started without threads: expected MPI_THREAD_FUNNELED")
    _abort_on_exception(mpi)
    Communicator(mpi.COMM_WORLD, timeout).agree("init")  # the calls below have no deadline
    return on_machines(mpi.COMM_WORLD.Dup(), timeout)


def _abort_on_exception(mpi: Any) -> None:
    """Have an exception that nobody catches end all ranks: they would wait for this one."""
    show = sys.excepthook
    everyone = mpi.COMM_WORLD

    def end(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        show(kind, error, trace)
        sys.stdout.flush()
        print(
            f"{kind.__name__} on rank {everyone.rank} of {everyone.size}: the job ends",
            file=sys.stderr,
            flush=True,
        )
        sleep(_TELLING)
        everyone.Abort(1)

    sys.excepthook = end
