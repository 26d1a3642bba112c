"""Run benchmarks: `python -m benchmarks [WORK …]`, or `nox -s bench -- [WORK …]`.

Contestants take turns, each turn in a fresh process, so that a slow minute of the machine meets
all of them. Prints a table of the least and median times, the ratio of the least times and the
memory that was added; writes the same as JSON.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import pkgutil
import platform
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

import te_tensor as te

from . import works

OURS = "tensor-engine"


def names() -> list[str]:
    return [module.name for module in pkgutil.iter_modules(works.__path__)]


def turn(work: str, contestant: str, size: int, rounds: int) -> dict[str, Any]:
    """One contestant's turn."""
    command = [sys.executable, "-m", "benchmarks.contestant", work, contestant]
    done = subprocess.run(
        [*command, str(size), str(rounds)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{work}, {contestant}, size {size} failed:\n{done.stderr}")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def compare(work: str, size: int, contestants: list[str], turns: int, rounds: int) -> list[Any]:
    """All contestants on one size, in turns."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in contestants}
    for _ in range(turns):
        for name in contestants:
            found[name].append(turn(work, name, size, rounds))
    rows = []
    for name, results in found.items():
        times = [time for result in results for time in result["ms"]]
        rows.append(
            {
                "work": work,
                "size": size,
                "contestant": name,
                "min_ms": min(times),
                "median_ms": median(times),
                "added_mb": max(result["added_mb"] for result in results),
            }
        )
    ours = next(row["min_ms"] for row in rows if row["contestant"] == OURS)
    for row in rows:
        row["ratio"] = row["min_ms"] / ours
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """The rows in Markdown."""
    lines = [
        "| work | size | contestant | least (ms) | median (ms) | ratio | added memory (MB) |",
        "|---|---:|---|---:|---:|---:|---:|",
    ]
    for row in rows:
        lines.append(
            f"| {row['work']} | {row['size']} | {row['contestant']} | {row['min_ms']:.1f} "
            f"| {row['median_ms']:.1f} | {row['ratio']:.2f} | {row['added_mb']:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("works", nargs="*", metavar="WORK", help=f"any of {', '.join(names())}")
    parser.add_argument("--turns", type=int, default=3, help="turns of each contestant")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds in a turn")
    parser.add_argument("--json", type=Path, default=Path("benchmarks-results.json"))
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.works) - set(names()))
    if unknown:
        parser.error(f"unknown work {unknown[0]!r}: expected any of {', '.join(names())}")
    machine = {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "blas": {key: value for key, value in te.blas_info().items() if key != "path"},
    }
    print(json.dumps(machine))
    rows = []
    for work in arguments.works or names():
        module = importlib.import_module(f"benchmarks.works.{work}")
        for size in module.SIZES:
            rows += compare(work, size, list(module.CONTESTANTS), arguments.turns, arguments.rounds)
    print(table(rows))
    arguments.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
