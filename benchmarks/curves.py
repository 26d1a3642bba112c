"""How times grow with S, B and D: `python -m benchmarks curves`, or `nox -s curves`.

Each curve is a work at growing sizes, by this project and by PyTorch, on one CPU and on more.
Contestants take turns, and each turn goes through a whole curve in a fresh process. Writes
curves.json and a picture for each work.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

from . import machine, report
from .blocks.common import Size
from .contestant import load
from .runner import OURS, Run
from .works import attention

PEER = "torch"
HEAD_DIM = attention.HEAD_DIM


@dataclass(frozen=True)
class Curve:
    """A work along one axis.

    Attributes:
        work: its module.
        axis: the size that grows: "S", "B" or "D".
        rest: the other sizes, for people.
        values: what it is.
        size_of: what the work's contestants are given for a value.
    """

    work: str
    axis: str
    rest: str
    values: tuple[int, ...]
    size_of: Callable[[int], Any]

    def chosen(self, quick: bool) -> list[int]:
        """Its values, or fewer and smaller ones."""
        return list(self.values[:-1:2] if quick else self.values)


def block(batch: int, length: int, d_model: int) -> Size:
    """A block with a feed-forward layer four times as wide, and heads of 64 features."""
    return Size(batch, length, d_model, 4 * d_model, d_model // HEAD_DIM)


LENGTHS, WIDTHS = (64, 128, 256, 512, 1024, 2048, 4096), (64, 128, 256, 512, 1024)
BATCHES = (1, 2, 4, 8, 16, 32)
CURVES = [
    *(
        curve
        for work in ("block_training", "block_inference")
        for curve in (
            Curve(work, "S", "B=1, D=256", LENGTHS, lambda s: block(1, s, 256)),
            Curve(work, "B", "S=256, D=256", BATCHES, lambda b: block(b, 256, 256)),
            Curve(work, "D", "B=4, S=256", WIDTHS, lambda d: block(4, 256, d)),
        )
    ),
    Curve("attention", "S", "B=1, D=512", LENGTHS, lambda s: attention.Size(s)),
    Curve("attention", "B", "S=256, D=512", BATCHES, lambda b: attention.Size(256, b)),
    Curve("attention", "D", "B=4, S=256", WIDTHS, lambda d: attention.Size(256, 4, d // HEAD_DIM)),
]
#: Names for people.
TITLES = {
    "block_training": "Training step of an NL-OOB block",
    "block_inference": "Inference of an NL-OOB block",
    "attention": "Attention with learnable slopes, forward and backward",
}


def find(work: str, axis: str) -> Curve:
    """The curve of a work along an axis."""
    return next(curve for curve in CURVES if (curve.work, curve.axis) == (work, axis))


@dataclass
class Plan:
    """What is measured: the curves, on how many CPUs, how often."""

    curves: list[Curve]
    cpus: list[int]
    quick: bool
    run: Run

    def measure(self) -> list[dict[str, Any]]:
        """A row for each point: least and median times by contestant, and their ratio."""
        rows = []
        for curve in self.curves:
            for count in self.cpus:
                found = self._in_turns(curve, count)
                rows += [_row(curve, count, value, found) for value in curve.chosen(self.quick)]
                print("\n".join(map(_line, rows[-len(curve.chosen(self.quick)) :])), flush=True)
        return rows

    def _in_turns(self, curve: Curve, count: int) -> dict[str, dict[int, list[float]]]:
        """Milliseconds, by contestant and value."""
        values = curve.chosen(self.quick)
        times: dict[str, dict[int, list[float]]] = {
            name: {value: [] for value in values}
            for name in self.run.present(load(curve.work))
            if name in (OURS, PEER)
        }
        for _ in range(self.run.turns):
            for name, own in times.items():
                what = [curve.work, curve.axis, name]
                lines = self.run.process(
                    "points",
                    [*what, *map(str, (count, self.run.rounds, self.run.seconds, *values))],
                    f"{name} stops on the way along {curve.axis} of {curve.work}, threads {count}",
                )
                for line in lines or ():
                    point = json.loads(line)
                    own[point["value"]] += point["values"]
        return times


def _row(
    curve: Curve, count: int, value: int, times: dict[str, dict[int, list[float]]]
) -> dict[str, Any]:
    found = {name: own[value] for name, own in times.items() if own[value]}
    least = {name: min(values) for name, values in found.items()}
    ours, theirs = least.get(OURS), least.get(PEER)
    return {
        "work": curve.work,
        "axis": curve.axis,
        "rest": curve.rest,
        "value": value,
        "cpus": count,
        "least": least,
        "median": {name: median(values) for name, values in found.items()},
        "ratio": theirs / ours if ours and theirs else None,
    }


def _line(row: dict[str, Any]) -> str:
    times = ", ".join(f"{name} {least:.3g} ms" for name, least in row["least"].items())
    ratio = "" if row["ratio"] is None else f"; ratio {row['ratio']:.2f}"
    return f"{row['work']} {row['axis']}={row['value']}, threads {row['cpus']}: {times}{ratio}"


def parse_arguments(given: list[str]) -> argparse.Namespace:
    works = list(TITLES)
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks curves", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("works", nargs="*", metavar="WORK", help=f"any of {', '.join(works)}")
    parser.add_argument("--quick", action="store_true", help="fewer, smaller sizes and one turn")
    parser.add_argument("--folder", type=Path, default=Path("benchmarks-curves"))
    parser.add_argument("--draw", type=Path, help="only draw what is in this curves.json")
    arguments = parser.parse_args(given)
    unknown = sorted(set(arguments.works) - set(works))
    if unknown:
        parser.error(f"unknown work {unknown[0]!r}: expected any of {', '.join(works)}")
    if machine.missing("pictures"):
        parser.error("matplotlib isn't installed: python -m pip install matplotlib")
    return arguments


def _measure(arguments: argparse.Namespace) -> dict[str, Any]:
    quick = arguments.quick
    run = Run(turns=1 if quick else 2, rounds=2, seconds=0.05 if quick else 0.15)
    machine.clean_environment()
    facts = {
        "date": date.today().isoformat(),
        "command": " ".join(["python -m benchmarks", *sys.argv[1:]]),
        **machine.describe(),
    }
    print("\n".join(report.machine_lines(facts)), flush=True)
    chosen = [curve for curve in CURVES if curve.work in (arguments.works or TITLES)]
    plan = Plan(chosen, machine.cpu_counts(), quick, run)
    rows = plan.measure()
    run.note_others()
    return {"machine": facts, "notes": run.notes, "rows": rows, "failed": run.failed}


def main(given: list[str]) -> int:
    from .pictures import draw

    arguments = parse_arguments(given)
    if arguments.draw:
        results = json.loads(arguments.draw.read_text(encoding="utf-8"))
    else:
        results = _measure(arguments)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    if not arguments.draw:
        text = json.dumps(results, indent=1, ensure_ascii=False)
        (arguments.folder / "curves.json").write_text(text, encoding="utf-8")
    for work, title in TITLES.items():
        rows = [row for row in results["rows"] if row["work"] == work and row["least"]]
        if rows:
            path = draw(title, rows, results["machine"], arguments.folder / f"{work}.png")
            print(path)
    return int(results["failed"])  # a contestant that broke, never a time
