"""A training step of one NL-OOB block: mean squared error against a fixed target, and Adam."""

from __future__ import annotations

from collections.abc import Callable

from ..blocks.common import Size

SIZES = {"B8 S256 D512 F2048 H8": Size(8, 256, 512, 2048, 8)}


def tensor_engine(size: Size) -> Callable[[], object]:
    from ..blocks import te_block

    return te_block.training(size)


def torch(size: Size) -> Callable[[], object]:
    from ..blocks import torch_block

    return torch_block.training(size)


def jax(size: Size) -> Callable[[], object]:
    from ..blocks import jax_block

    return jax_block.training(size)


CONTESTANTS = {"tensor-engine": tensor_engine, "torch": torch, "jax": jax}
