"""Importing a library in a fresh process, beyond what starting Python takes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from time import perf_counter

SIZES = {"import": None}
MODULES = {"tensor-engine": "te_nn", "torch": "torch", "jax": "jax", "numpy": "numpy"}
#: The process that is timed does nothing but wait for others.
MEMORY = False


def _run(statement: str) -> None:
    subprocess.run([sys.executable, "-c", statement], check=True)


def overhead() -> float:
    """The least milliseconds that Python itself takes from start to end."""
    milliseconds = []
    for _ in range(5):
        begin = perf_counter()
        _run("pass")
        milliseconds.append((perf_counter() - begin) * 1e3)
    return min(milliseconds)


def _importing(module: str, size: None) -> Callable[[], object]:
    return lambda: _run(f"import {module}")


CONTESTANTS = {name: partial(_importing, module) for name, module in MODULES.items()}
