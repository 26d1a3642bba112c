"""Attention with learnable slopes on distances, forward and backward: B=1, H=8, d=64."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

SIZES = (1024, 2048, 4096)
HEADS, HEAD_DIM = 8, 64


def _inputs(size: int) -> list[np.ndarray]:
    """q, k, v (1, H, S, d), distances (S, S) and slopes (1, H, 1, 1)."""
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((1, HEADS, size, HEAD_DIM), np.float32) for _ in range(3)]
    points = rng.standard_normal((size, 3), np.float32)
    squares = (points * points).sum(axis=1)
    distance = np.sqrt(np.maximum(squares[:, None] + squares - 2 * points @ points.T, 0))
    slopes = 2.0 ** -np.arange(HEADS, dtype=np.float32)
    return [*arrays, distance, slopes.reshape(1, HEADS, 1, 1)]


def tensor_engine(size: int) -> Callable[[], object]:
    """The one attention core of te-tensor."""
    import te_tensor as te

    q, k, v, distance, slopes = (te.from_numpy(a) for a in _inputs(size))
    learnt = (q, k, v, slopes)
    upstream = te.ones(1, HEADS, size, HEAD_DIM)
    for tensor in learnt:
        tensor.requires_grad = True

    def step() -> object:
        for tensor in learnt:
            tensor.zero_grad()
        te.attention(q, k, v, distance=distance, slopes=slopes).backward(upstream)
        return slopes.grad

    return step


def torch(size: int) -> Callable[[], object]:
    """PyTorch's own attention, given the bias as the mask it takes."""
    import torch

    q, k, v, distance, slopes = (torch.from_numpy(a) for a in _inputs(size))
    learnt = (q, k, v, slopes)
    upstream = torch.ones(1, HEADS, size, HEAD_DIM)
    phi = torch.log1p(distance)
    for tensor in learnt:
        tensor.requires_grad_()

    def step() -> object:
        for tensor in learnt:
            tensor.grad = None
        bias = -slopes * phi
        result = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        result.backward(upstream)
        return slopes.grad

    return step


CONTESTANTS = {"tensor-engine": tensor_engine, "torch": torch}
