"""Run benchmarks: `python -m benchmarks [WORK …]`, or `nox -s bench -- [WORK …]`.

Contestants take turns, each turn in a fresh process, so that a slow minute of the machine meets
all of them. Prints a table of the least and median figures, the ratio of the least ones and the
memory that the work added to imports and inputs; writes the same as JSON, and as Markdown with
--markdown. A peer that isn't installed is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import pkgutil
import subprocess
import sys
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from statistics import mean, median
from time import perf_counter
from types import ModuleType
from typing import Any

from . import machine, report, works
from .contestant import load

OURS = "tensor-engine"


def names() -> list[str]:
    return [module.name for module in pkgutil.iter_modules(works.__path__)]


@dataclass
class Run:
    """The rows and the notes of a run, as they come."""

    turns: int
    rounds: int
    seconds: float
    rows: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    failed: bool = False
    #: CPUs that other programs used during each turn.
    others: list[float] = field(default_factory=list)

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)
            print(text, flush=True)

    def present(self, work: ModuleType) -> list[str]:
        """The contestants of a work that are installed."""
        found = []
        for name in work.CONTESTANTS:
            module = machine.missing(name)
            if module is None:
                found.append(name)
            else:
                self.note(f"{name} is left out: {module} isn't installed.")
        return found

    def turn(self, work: str, contestant: str, size: str) -> dict[str, Any] | None:
        """One contestant's turn, or None, noted, if it ended with an error."""
        command = [sys.executable, "-m", "benchmarks.contestant", work, contestant, size]
        begin, busy, own = perf_counter(), machine.busy_seconds(), os.times()
        done = subprocess.run(
            [*command, str(self.rounds), str(self.seconds)],
            capture_output=True,
            text=True,
            encoding="utf-8",
            cwd=Path(__file__).parents[1],
            check=False,
        )
        now = machine.busy_seconds()
        if busy is not None and now is not None:
            used = os.times()
            children = used.children_user + used.children_system
            children -= own.children_user + own.children_system
            self.others.append(max(0.0, now - busy - children) / (perf_counter() - begin))
        if done.returncode:
            self.failed = True
            print(done.stderr, file=sys.stderr)
            reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            self.note(f"{contestant} is left out of {work}, {size}: {reason}")
            return None
        result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return result

    def compare(self, work: str, size: str) -> None:
        """All contestants on one size, in turns."""
        module = load(work)
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in self.present(module)}
        # what isn't a time is the same every time
        for _ in range(1 if hasattr(module, "UNIT") else self.turns):
            for name in list(found):
                result = self.turn(work, name, size)
                if result is None:
                    del found[name]
                else:
                    found[name].append(result)
        rows = [row(work, size, name, results) for name, results in found.items()]
        ours = next((row["least"] for row in rows if row["contestant"] == OURS), None)
        for entry in rows:
            entry["ratio"] = entry["least"] / ours if ours else None
        self.rows += rows


def row(work: str, size: str, contestant: str, results: list[dict[str, Any]]) -> dict[str, Any]:
    """What a contestant's turns come to."""
    module = load(work)
    values = [value for result in results for value in result["values"]]
    memory = [result["added_mb"] for result in results if result["added_mb"] is not None]
    least = min(values)
    flops = module.flops(module.SIZES[size]) if hasattr(module, "flops") else None
    return {
        "work": work,
        "size": size,
        "contestant": contestant,
        "unit": getattr(module, "UNIT", "ms"),
        "least": least,
        "median": median(values),
        "added_mb": max(memory, default=None),
        "gflops": None if flops is None else flops / least / 1e6,
    }


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("works", nargs="*", metavar="WORK", help=f"any of {', '.join(names())}")
    parser.add_argument("--turns", type=int, default=3, help="turns of each contestant")
    parser.add_argument("--rounds", type=int, default=5, help="least timed rounds in a turn")
    parser.add_argument(
        "--seconds", type=float, default=1.0, help="more rounds are timed until a turn took so long"
    )
    parser.add_argument("--json", type=Path, default=Path("benchmarks-results.json"))
    parser.add_argument("--markdown", type=Path, help="a file for the table")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.works) - set(names()))
    if unknown:
        parser.error(f"unknown work {unknown[0]!r}: expected any of {', '.join(names())}")
    if arguments.turns < 1 or arguments.rounds < 1:
        parser.error("--turns and --rounds: expected at least 1")
    return arguments


def main() -> int:
    arguments = parse_arguments()
    run = Run(arguments.turns, arguments.rounds, arguments.seconds)
    removed = machine.clean_environment()
    if removed:
        run.note(f"Taken out of the contestants' environment: {', '.join(removed)}.")
    facts = {
        "date": date.today().isoformat(),
        "command": " ".join(["python -m benchmarks", *sys.argv[1:]]),
        **machine.describe(),
    }
    print("\n".join(report.machine_lines(facts)), flush=True)
    for work in arguments.works or names():
        for size in load(work).SIZES:
            done = len(run.rows)
            run.compare(work, size)
            print(f"\n{report.table(run.rows[done:])}", flush=True)
    if run.others:
        run.note(
            f"CPUs that other programs used: {mean(run.others):.1f} on average, up to "
            f"{max(run.others):.1f}; only figures of an idle machine count (OpenMP, in PyTorch, "
            "suffers most)."
        )
    text = report.markdown(facts, run.rows, run.notes)
    print(f"\n{text}")
    if arguments.markdown:
        arguments.markdown.write_text(text, encoding="utf-8")
    results = {"machine": facts, "notes": run.notes, "rows": run.rows}
    arguments.json.write_text(json.dumps(results, indent=1, ensure_ascii=False), encoding="utf-8")
    return int(run.failed)  # a contestant that broke, never a time


if __name__ == "__main__":
    sys.exit(main())
