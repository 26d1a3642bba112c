"""Pictures of curves: times on logarithmic axes, and below them how often we go into the peer's."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

from .runner import OURS

COLOURS = {OURS: "#0b6e99", "torch": "#d9622b"}
#: One thread is dashed, so that all of them stand out.
STYLES = ("--", "-")
#: So many colours are enough, and make small files.
_PALETTE = 32


def draw(title: str, rows: list[dict[str, Any]], machine: dict[str, Any], path: Path) -> Path:
    """A column for each axis of a work: least times above, the peer's as multiples of ours below.

    Args:
        title: what the work is.
        rows: its points.
        machine: what they were measured on.
        path: of the PNG file.

    Returns:
        The path.
    """
    from matplotlib.figure import Figure
    from PIL import Image  # matplotlib needs it itself

    axes = list(dict.fromkeys(row["axis"] for row in rows))
    figure = Figure(figsize=(3.4 * len(axes), 5.2), layout="constrained")
    grid = figure.subplots(2, len(axes), squeeze=False, sharex="col", height_ratios=(3, 2))
    top = max((row["ratio"] for row in rows if row["ratio"] is not None), default=1)
    for column, axis in enumerate(axes):
        own = [row for row in rows if row["axis"] == axis]
        _times(grid[0, column], own)
        _ratios(grid[1, column], own, top)
        grid[0, column].set_title(f"over {axis}  ({own[0]['rest']})", fontsize=10)
        grid[1, column].set_xlabel(axis)
    grid[0, 0].set_ylabel("milliseconds")
    grid[1, 0].set_ylabel("PyTorch's time / ours")
    grid[0, 0].legend(fontsize=8)
    versions = machine["versions"]
    about = f"{machine['processor']}, float32, PyTorch {versions.get('torch', '–')}"
    figure.suptitle(f"{title}\n{about}, {machine['date']}", fontsize=11)
    raw = BytesIO()
    figure.savefig(raw, dpi=90)
    Image.open(raw).convert("RGB").quantize(_PALETTE).save(path, optimize=True)
    return path


def _times(plot: Any, rows: list[dict[str, Any]]) -> None:
    from matplotlib.ticker import FormatStrFormatter, LogLocator

    for name, colour in COLOURS.items():
        for count, style, points in _by_cpus(rows):
            known = [(row["value"], row["least"][name]) for row in points if name in row["least"]]
            if known:
                label = f"{name}, {count} thread{'s' if count > 1 else ''}"
                plot.plot(*zip(*known, strict=True), style, color=colour, marker=".", label=label)
    plot.set_xscale("log", base=2)
    plot.set_yscale("log")
    plot.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    plot.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    plot.minorticks_off()
    plot.grid(alpha=0.3)


def _ratios(plot: Any, rows: list[dict[str, Any]], top: float) -> None:
    """Above the line at 1 we are faster; each point with all threads says by how much."""
    for count, style, points in _by_cpus(rows):
        known = [(row["value"], row["ratio"]) for row in points if row["ratio"] is not None]
        if not known:
            continue
        plot.plot(*zip(*known, strict=True), style, color="black", marker=".", linewidth=1)
        above = count == max(row["cpus"] for row in rows)
        for value, ratio in known if above else ():
            plot.annotate(
                *(f"{ratio:.1f}", (value, ratio)),
                **{"xytext": (0, -12), "textcoords": "offset points"},
                **{"ha": "center", "fontsize": 8},
            )
    plot.axhline(1, color="gray", linewidth=1)
    plot.set_ylim(-0.12 * top, 1.1 * top)
    plot.margins(x=0.08)
    plot.set_xscale("log", base=2)
    ticks = sorted({row["value"] for row in rows})
    plot.set_xticks(ticks, [str(tick) for tick in ticks], fontsize=8)
    plot.minorticks_off()
    plot.grid(alpha=0.3)


def _by_cpus(rows: list[dict[str, Any]]) -> list[tuple[int, str, list[dict[str, Any]]]]:
    """The number of CPUs, a style for its lines, and its points."""
    counts = sorted({row["cpus"] for row in rows})
    styles = STYLES[-len(counts) :]
    return [
        (count, style, [row for row in rows if row["cpus"] == count])
        for count, style in zip(counts, styles, strict=True)
    ]
