"""Contestants in processes of their own, in turns, and what their figures come to."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, median
from time import perf_counter
from types import ModuleType
from typing import Any

from . import machine
from .contestant import load

OURS = "tensor-engine"


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
        arguments = [work, contestant, size, str(self.rounds), str(self.seconds)]
        lines = self.process("contestant", arguments, f"{contestant} is left out of {work}, {size}")
        result: dict[str, Any] | None = json.loads(lines[-1]) if lines else None
        return result

    def process(self, module: str, arguments: list[str], complaint: str) -> list[str] | None:
        """The lines that a module prints in a process of its own.

        Args:
            module: its name in this package.
            arguments: those of the command line.
            complaint: what to note, with the reason, if it ends with an error.

        Returns:
            None after an error.
        """
        command = [sys.executable, "-m", f"benchmarks.{module}", *arguments]
        begin, busy, own = perf_counter(), machine.busy_seconds(), os.times()
        done = subprocess.run(
            command,
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
            self.note(f"{complaint}: {reason}")
            return None
        return done.stdout.splitlines()

    def note_others(self) -> None:
        """Note how much of the machine other programs used."""
        if self.others:
            self.note(
                f"CPUs that other programs used: {mean(self.others):.1f} on average, up to "
                f"{max(self.others):.1f}; only figures of an idle machine count (OpenMP, in "
                "PyTorch, suffers most)."
            )

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
