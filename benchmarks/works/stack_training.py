"""A training step of six NL-OOB blocks that share their distances: mean squared error, and Adam."""

from __future__ import annotations

from collections.abc import Callable

from ..blocks.common import Size

LAYERS = 6
SIZES = {"6 blocks, B8 S256 D512 F2048 H8": Size(8, 256, 512, 2048, 8)}


def tensor_engine(size: Size) -> Callable[[], object]:
    from ..blocks import te_block

    return te_block.stack_training(size, LAYERS)


def torch(size: Size) -> Callable[[], object]:
    from ..blocks import torch_block

    return torch_block.stack_training(size, LAYERS)


CONTESTANTS = {"tensor-engine": tensor_engine, "torch": torch}
