"""Attention with learnable slopes on distances, with backward and without; heads of 64 features."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ..blocks.common import Array
from ..machine import cpus

HEAD_DIM = 64


class Size(NamedTuple):
    length: int
    batch: int = 1
    heads: int = 8
    #: Whether gradients of q, k, v and the slopes are part of the step.
    both: bool = True

    @property
    def shape(self) -> tuple[int, ...]:
        """That of q, k, v and of what attention gives: (B, H, S, d)."""
        return self.batch, self.heads, self.length, HEAD_DIM


LENGTHS = 1024, 2048, 4096
SIZES = {f"S={length}": Size(length) for length in LENGTHS}
SIZES |= {f"forward of S={length}": Size(length, both=False) for length in LENGTHS}


def _inputs(size: Size) -> list[Array]:
    """q, k, v (B, H, S, d), distances (S, S) and slopes (1, H, 1, 1)."""
    rng = np.random.default_rng(0)
    length, heads = size.length, size.heads
    arrays = [rng.standard_normal(size.shape, np.float32) for _ in range(3)]
    points = rng.standard_normal((length, 3), np.float32)
    squares = (points * points).sum(axis=1)
    distance = np.sqrt(np.maximum(squares[:, None] + squares - 2 * points @ points.T, 0))
    slopes = 2.0 ** -np.arange(heads, dtype=np.float32)
    return [*arrays, distance, slopes.reshape(1, heads, 1, 1)]


def tensor_engine(size: Size) -> Callable[[], object]:
    """The one attention core of te-tensor."""
    import te_tensor as te

    q, k, v, distance, slopes = (te.from_numpy(a) for a in _inputs(size))
    learnt = (q, k, v, slopes)
    upstream = te.ones(*size.shape)
    for tensor in learnt:
        tensor.requires_grad = True

    def forward() -> object:
        with te.no_grad():
            return te.attention(q, k, v, distance=distance, slopes=slopes)

    def step() -> object:
        for tensor in learnt:
            tensor.zero_grad()
        result = te.attention(q, k, v, distance=distance, slopes=slopes)
        result.backward(upstream)
        return result.detach(), *(tensor.grad for tensor in learnt)

    return step if size.both else forward


def torch(size: Size) -> Callable[[], object]:
    """PyTorch's own attention, given the bias as the mask it takes."""
    import torch

    torch.set_num_threads(cpus())
    q, k, v, distance, slopes = (torch.from_numpy(a) for a in _inputs(size))
    learnt = (q, k, v, slopes)
    upstream = torch.ones(*size.shape)
    phi = torch.log1p(distance)
    for tensor in learnt:
        tensor.requires_grad_()

    def attend() -> torch.Tensor:
        bias = -slopes * phi
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)

    def forward() -> object:
        with torch.no_grad():
            return attend()

    def step() -> object:
        for tensor in learnt:
            tensor.grad = None
        result = attend()
        result.backward(upstream)
        return result.detach(), *(tensor.grad for tensor in learnt)

    return step if size.both else forward


def jax(size: Size) -> Callable[[], object]:
    """Attention and its gradient compiled as one program."""
    import jax
    import jax.numpy as jnp

    from ..blocks.jax_block import attention

    *arrays, distance, slopes = _inputs(size)
    learnt = tuple(jnp.array(array) for array in (*arrays, slopes))
    phi = jnp.log1p(distance)
    upstream = jnp.ones(size.shape)

    def step(learnt: tuple[jax.Array, ...], phi: jax.Array, upstream: jax.Array) -> object:
        def attend(q: jax.Array, k: jax.Array, v: jax.Array, slopes: jax.Array) -> jax.Array:
            return attention(q, k, v, -slopes * phi)

        if not size.both:
            return attend(*learnt)
        result, backward = jax.vjp(attend, *learnt)
        return result, *backward(upstream)

    run = jax.jit(step).lower(learnt, phi, upstream).compile()
    return lambda: jax.block_until_ready(run(learnt, phi, upstream))


CONTESTANTS = {"tensor-engine": tensor_engine, "torch": torch, "jax": jax}
