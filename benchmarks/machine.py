"""The machine that a run is on, and what the libraries on it are."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

#: What the environment may hold that makes a library other than the one that users get (one that
#: is compiled anew by every import, for one), or gives contestants different numbers of threads.
FORCING = (
    "OPENBLAS_CORETYPE",
    "OPENBLAS_L2_SIZE",
    "OPENBLAS_NUM_THREADS",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "TE_NUM_THREADS",
    "TE_BLAS",
    "XLA_FLAGS",
    "PYTHONDONTWRITEBYTECODE",
)
#: Modules that a contestant or a picture needs; others need only what this project itself does.
NEEDS = {
    "2 ranks": ("mpi4py",),
    "torch": ("torch",),
    "torch fused": ("torch",),
    "torch mapped": ("torch",),
    "jax": ("jax",),
    "onnxruntime": ("onnx", "onnxruntime"),
    "openblas": ("scipy_openblas32",),
    "pictures": ("matplotlib",),
    "safetensors.numpy": ("safetensors",),
    "safetensors.torch": ("safetensors", "torch"),
}
#: Programs that a contestant needs.
PROGRAMS = {"2 ranks": ("mpiexec",)}
DISTRIBUTIONS = (
    *("te-tensor", "te-nn", "te-io", "te-optim", "numpy", "scipy-openblas32", "safetensors"),
    *("torch", "jax", "jaxlib", "onnx", "onnxruntime", "mpi4py", "mpich"),
)


def cpus() -> int:
    """How many CPUs this process may use: the threads that each contestant gets."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_counts() -> list[int]:
    """The numbers of CPUs that scaling is looked at with: one, if there is a way, and all."""
    can_limit = hasattr(os, "sched_setaffinity") and cpus() > 1
    return [1, cpus()] if can_limit else [cpus()]


def limit_cpus(count: int) -> None:
    """Have this process use so many CPUs, where the system can."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])


def clean_environment() -> list[str]:
    """Take what forces a library out of the environment; returns the names of what was there.

    Must come before a library is loaded: OpenBLAS looks once.
    """
    return [name for name in FORCING if os.environ.pop(name, None) is not None]


def program(name: str) -> str | None:
    """The path of a program, one beside this Python first."""
    return shutil.which(name, path=Path(sys.executable).parent) or shutil.which(name)


def missing(contestant: str) -> str | None:
    """A module or program that the contestant needs and that isn't installed."""
    for module in NEEDS.get(contestant, ()):
        if importlib.util.find_spec(module) is None:
            return module
    return next((name for name in PROGRAMS.get(contestant, ()) if program(name) is None), None)


def processor() -> str:
    """The model that /proc/cpuinfo names, or what Python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        lines = ""
    model = re.search(r"^model name\s*:\s*(.+)$", lines, re.MULTILINE)
    return model[1] if model else platform.processor() or platform.machine()


def busy_seconds() -> float | None:
    """Seconds that all CPUs have worked since the start, or were taken by a hypervisor."""
    try:
        line = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0]
    except OSError:
        return None
    # cpu user nice system idle iowait irq softirq steal guest…; guest is part of user
    ticks = [int(number) for number in line.split()[1:9]]
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")


def versions() -> dict[str, str]:
    """The versions of all contestants that are installed."""
    found = {}
    for name in DISTRIBUTIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def describe() -> dict[str, Any]:
    """What figures depend on."""
    import te_tensor as te

    blas = te.blas_info()
    return {
        "processor": processor(),
        "cpus": cpus(),
        "engine_threads": te.get_num_threads(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "blas": f"{blas['library']} {blas['version']}",
        "blas_kernel": blas["kernel"],
        "versions": versions(),
    }
