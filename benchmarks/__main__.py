"""Run benchmarks: `python -m benchmarks [WORK …]`, or `nox -s bench -- [WORK …]`.

Contestants take turns, each turn in a fresh process, so that a slow minute of the machine meets
all of them. Prints a table of the least and median figures, the ratio of the least ones and the
memory that the work added to imports and inputs; writes the same as JSON, and as Markdown with
--markdown. A peer that isn't installed is left out. `python -m benchmarks curves` shows how times
grow with the sizes instead.
"""

from __future__ import annotations

import argparse
import json
import pkgutil
import sys
from datetime import date
from pathlib import Path

from . import curves, machine, report, works
from .contestant import load
from .runner import Run


def names() -> list[str]:
    return [module.name for module in pkgutil.iter_modules(works.__path__)]


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
    run.note_others()
    text = report.markdown(facts, run.rows, run.notes)
    print(f"\n{text}")
    if arguments.markdown:
        arguments.markdown.write_text(text, encoding="utf-8")
    results = {"machine": facts, "notes": run.notes, "rows": run.rows}
    arguments.json.write_text(json.dumps(results, indent=1, ensure_ascii=False), encoding="utf-8")
    return int(run.failed)  # a contestant that broke, never a time


if __name__ == "__main__":
    sys.exit(curves.main(sys.argv[2:]) if sys.argv[1:2] == ["curves"] else main())
