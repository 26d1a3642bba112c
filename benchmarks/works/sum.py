"""The sum of 8192 × 512 elements."""

from __future__ import annotations

from ..blocks.single import SIZES as SIZES
from ..blocks.single import contestants

CONTESTANTS = contestants(lambda te, x: te.sum(x), lambda torch, x: torch.sum(x))
