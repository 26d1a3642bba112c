"""Softmax along the last axis of 8192 × 512."""

from __future__ import annotations

from ..blocks.single import SIZES as SIZES
from ..blocks.single import contestants

CONTESTANTS = contestants(
    lambda te, x: te.softmax(x, -1),
    lambda torch, x: torch.softmax(x, -1),
)
