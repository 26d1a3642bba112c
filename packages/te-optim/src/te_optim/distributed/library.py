"""mpi4py, imported when it is first needed."""

from __future__ import annotations

import importlib
import os
from typing import Any

#: Where launchers leave the number of ranks that they start.
_SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "MV2_COMM_WORLD_SIZE")
_LINE = 'python -m pip install "te-optim[mpi]"'


def load_mpi() -> Any:
    """The module mpi4py.MPI; importing it starts MPI.

    Raises:
        ModuleNotFoundError: mpi4py isn't installed.
        RuntimeError: mpi4py finds no MPI.
    """
    try:
        return importlib.import_module("mpi4py.MPI")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "mpi4py":
            raise
        raise ModuleNotFoundError(f"several ranks need mpi4py: {_LINE}", name="mpi4py") from None
    except (ImportError, RuntimeError) as error:
        raise RuntimeError(
            f"mpi4py finds no MPI ({error}): load the cluster's, or python -m pip install mpich"
        ) from error


def load_mpi_if_any() -> Any | None:
    """The module mpi4py.MPI; None for a process on its own without mpi4py, or without an MPI.

    Raises:
        ModuleNotFoundError: mpi4py isn't installed, and a launcher started several ranks.
        RuntimeError: mpi4py finds no MPI, and a launcher started several ranks.
    """
    try:
        return load_mpi()
    except (ModuleNotFoundError, RuntimeError):
        if any(os.environ.get(name, "1") != "1" for name in _SIZES):
            raise
        return None
