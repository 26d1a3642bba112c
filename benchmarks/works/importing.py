"""Importing a library in a fresh process, beyond what starting Python takes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from time import perf_counter

#: What of this project is imported.
SIZES = {"import": "te_nn", "import of all packages": "te_tensor, te_nn, te_io, te_optim"}
PEERS = "torch", "jax", "numpy"
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


def _importing(module: str) -> Callable[[], object]:
    return lambda: _run(f"import {module}")


def _peer(module: str) -> Callable[[str], Callable[[], object]]:
    """The same module whatever of this project is imported."""
    return lambda _: _importing(module)


CONTESTANTS = {"tensor-engine": _importing, **{name: _peer(name) for name in PEERS}}
