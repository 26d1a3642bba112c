"""One contestant in a process of its own: times a work and prints JSON as its last line.

python -m benchmarks.contestant WORK CONTESTANT SIZE ROUNDS SECONDS

A work is a module with SIZES (what a contestant is given, by name) and CONTESTANTS (a function
each, which prepares and returns what is timed). It may also have

- flops(size): operations of one step, for a column of speed;
- overhead(): milliseconds that are no part of the work, taken off each time;
- UNIT: the unit of what a step returns, for a work whose figure isn't its time;
- MEMORY = False: the process's own memory says nothing.
"""

from __future__ import annotations

import gc
import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from types import ModuleType
from typing import Any

MOST_ROUNDS = 2000
#: Seconds before anything counts: until then, threads are only finding their processors.
WARM_UP = 0.2


def load(name: str) -> ModuleType:
    """The module of a work."""
    return importlib.import_module(f"benchmarks.works.{name}")


def forget_peak() -> None:
    """Make the kernel count the peak of memory anew, where it can: preparing isn't the work."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return


def peak() -> float | None:
    """The most memory that this process has held, in MB; None where nothing tells."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return int(status.split("VmHWM:")[1].split()[0]) / 1024
    except OSError:
        pass
    try:
        import resource
    except ModuleNotFoundError:
        return None
    value = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return value / (1024 * 1024 if sys.platform == "darwin" else 1024)


def clock(step: Callable[[], object]) -> float:
    """Milliseconds of one step, its result dropped included."""
    begin = perf_counter()
    step()
    return (perf_counter() - begin) * 1e3


def rounds_of(step: Callable[[], object], least: int, seconds: float) -> list[float]:
    """Milliseconds of at least so many steps, and of more while they take less than `seconds`."""
    milliseconds = [clock(step) for _ in range(least)]
    while sum(milliseconds) < seconds * 1e3 and len(milliseconds) < MOST_ROUNDS:
        milliseconds.append(clock(step))
    return milliseconds


def measure(
    work: ModuleType, contestant: str, size: str, least: int, seconds: float
) -> dict[str, Any]:
    """What one turn found: "values" in the work's unit, and "added_mb"."""
    step = work.CONTESTANTS[contestant](work.SIZES[size])
    if hasattr(work, "UNIT"):
        return {"values": [step()], "added_mb": None}
    overhead = work.overhead() if hasattr(work, "overhead") else 0.0
    gc.collect()
    forget_peak()
    before = peak() if getattr(work, "MEMORY", True) else None
    rounds_of(step, 2, WARM_UP)
    values = [value - overhead for value in rounds_of(step, least, seconds)]
    after = peak()
    added = None if before is None or after is None else after - before
    return {"values": values, "added_mb": added}


def main() -> None:
    name, contestant, size, least, seconds = sys.argv[1:]
    print(json.dumps(measure(load(name), contestant, size, int(least), float(seconds))))


if __name__ == "__main__":
    main()
