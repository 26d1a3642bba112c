"""Rows of results as Markdown, for people; JSON has the same."""

from __future__ import annotations

from typing import Any


def machine_lines(machine: dict[str, Any]) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return [
        f"{machine['date']}: {machine['processor']}, {machine['cpus']} CPUs, "
        f"a thread for each in every contestant; {machine['system']}, Python {machine['python']}.",
        f"Products by {machine['blas']}, kernel {machine['blas_kernel']}. {versions}.",
        f"Command: `{machine['command']}`.",
    ]


def _figure(value: float, unit: str) -> str:
    """Three digits that say something."""
    digits = 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0
    return f"{value:.{digits}f} {unit}"


def table(rows: list[dict[str, Any]]) -> str:
    """The rows in Markdown."""
    speed = any(row["gflops"] is not None for row in rows)
    heads = ["work", "size", "contestant", "least", "median", "ratio", "added memory"]
    heads += ["GF/s"] if speed else []
    lines = [heads, ["---"] * 3 + ["---:"] * (len(heads) - 3)]
    for row in rows:
        memory, ratio, gflops = row["added_mb"], row["ratio"], row["gflops"]
        cells = [
            *(row["work"], row["size"], row["contestant"]),
            *(_figure(row[key], row["unit"]) for key in ("least", "median")),
            "–" if ratio is None else f"{ratio:.2f}",
            "–" if memory is None else f"{memory:.0f} MB",
        ]
        cells += ["–" if gflops is None else f"{gflops:.0f}"] if speed else []
        lines.append(cells)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def markdown(machine: dict[str, Any], rows: list[dict[str, Any]], notes: list[str]) -> str:
    """The table with what it depends on and what was left out."""
    about = "Ratio: the least of the contestant's figures, divided by tensor-engine's."
    return "\n".join([*machine_lines(machine), *notes, about, "", table(rows), ""])
