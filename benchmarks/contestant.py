"""One contestant in a process of its own: times a work and prints JSON.

python -m benchmarks.contestant WORK CONTESTANT SIZE ROUNDS
"""

from __future__ import annotations

import gc
import importlib
import json
import resource
import sys
from time import perf_counter


def peak() -> float:
    """The most memory that this process has held, in MB."""
    value = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return value / (1024 * 1024 if sys.platform == "darwin" else 1024)


def main() -> None:
    name, contestant, size, rounds = sys.argv[1:]
    work = importlib.import_module(f"benchmarks.works.{name}")
    step = work.CONTESTANTS[contestant](int(size))
    gc.collect()
    before = peak()
    step()
    milliseconds = []
    for _ in range(int(rounds)):
        begin = perf_counter()
        step()
        milliseconds.append((perf_counter() - begin) * 1e3)
    print(json.dumps({"ms": milliseconds, "added_mb": peak() - before}))


if __name__ == "__main__":
    main()
