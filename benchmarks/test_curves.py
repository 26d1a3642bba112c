"""That each curve begins, and that pictures are drawn of what was found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from .contestant import load
from .curves import CURVES, Curve
from .machine import missing
from .runner import OURS
from .test_agreement import arrays


@pytest.mark.parametrize("curve", CURVES, ids=lambda curve: f"{curve.work}-{curve.axis}")
def test_each_curve_begins(curve: Curve) -> None:
    step = load(curve.work).CONTESTANTS[OURS](curve.size_of(curve.values[0]))
    assert all(np.isfinite(array).all() for array in arrays(step()))
    assert curve.chosen(quick=True)[0] == curve.values[0]


@pytest.mark.skipif(missing("pictures") is not None, reason="matplotlib isn't installed")
@pytest.mark.parametrize("cpus", [[1], [1, 2]])
def test_a_picture(cpus: list[int], tmp_path: Path) -> None:
    from .pictures import draw

    def row(axis: str, value: int, count: int, peer: bool) -> dict[str, Any]:
        least = {OURS: value / count, **({"torch": 2.0 * value} if peer else {})}
        ratio = 2.0 * count if peer else None
        point = {"axis": axis, "rest": "B=1", "value": value, "cpus": count}
        return {**point, "least": least, "ratio": ratio}

    rows = [row(a, v, c, a == "S") for a in "SB" for v in (1, 2, 4) for c in cpus]
    facts = {"processor": "one", "versions": {}, "date": "2026-01-01"}
    path = draw("A work", rows, facts, tmp_path / "work.png")
    assert path.read_bytes().startswith(b"\x89PNG")
