"""The training step of a block so small that what a library adds to each call is all there is."""

from __future__ import annotations

from ..blocks.common import Size
from .block_training import CONTESTANTS as CONTESTANTS

SIZES = {"B4 S8 D16 F32 H2": Size(4, 8, 16, 32, 2)}
