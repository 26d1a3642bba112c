"""Layer norm with weight and bias over the last axis of 8192 × 512."""

from __future__ import annotations

from ..blocks.single import SIZES as SIZES
from ..blocks.single import contestants

CONTESTANTS = contestants(
    lambda te, x, weight, bias: te.layer_norm(x, 512, weight, bias),
    lambda torch, x, weight, bias: torch.nn.functional.layer_norm(x, (512,), weight, bias),
    (512,),
    (512,),
)
