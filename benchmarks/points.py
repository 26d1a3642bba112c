"""The points of one curve by one contestant, in a process of its own: a line of JSON for each.

python -m benchmarks.points WORK AXIS CONTESTANT CPUS ROUNDS SECONDS VALUE …
"""

from __future__ import annotations

import gc
import json
import sys

from . import machine
from .contestant import load, rounds_of


def main() -> None:
    work, axis, contestant, cpus, least, seconds, *values = sys.argv[1:]
    machine.limit_cpus(int(cpus))  # before a library is loaded and counts them
    from .curves import find

    curve, make = find(work, axis), load(work).CONTESTANTS[contestant]
    for value in map(int, values):
        step = make(curve.size_of(value))
        rounds_of(step, 1, float(seconds) / 2)
        times = rounds_of(step, int(least), float(seconds))
        print(json.dumps({"value": value, "values": times}), flush=True)
        del step
        gc.collect()


if __name__ == "__main__":
    main()
