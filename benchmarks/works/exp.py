"""e^x of 8192 × 512 elements."""

from __future__ import annotations

from ..blocks.single import SIZES as SIZES
from ..blocks.single import contestants

CONTESTANTS = contestants(lambda te, x: te.exp(x), lambda torch, x: torch.exp(x))
