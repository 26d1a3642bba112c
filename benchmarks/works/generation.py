"""Greedy generation with a cache: 128 tokens after a prompt of 16, by four causal blocks."""

from __future__ import annotations

from collections.abc import Callable

from ..blocks.common import Size

LAYERS, VOCABULARY, PROMPT = 4, 1000, 16
SIZES = {"128 tokens, 4 blocks, D256 F1024 H8": Size(1, 128, 256, 1024, 8)}


def tensor_engine(size: Size) -> Callable[[], object]:
    from ..blocks import te_generation

    return te_generation.generation(size, LAYERS, VOCABULARY, PROMPT)


def torch(size: Size) -> Callable[[], object]:
    from ..blocks import torch_generation

    return torch_generation.generation(size, LAYERS, VOCABULARY, PROMPT)


CONTESTANTS = {"tensor-engine": tensor_engine, "torch": torch}
