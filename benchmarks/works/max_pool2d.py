"""Max pooling in windows of 2 × 2: 32 images of 64 channels and 56 × 56."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..blocks.common import Array
from ..machine import cpus

#: Whether the gradient of the images is part of the step.
SIZES = {"forward": False, "both": True}
BATCH, CHANNELS, SIDE = 32, 64, 56


def _inputs() -> tuple[Array, Array]:
    """Images, and the gradient from above."""
    rng = np.random.default_rng(0)
    images = rng.standard_normal((BATCH, CHANNELS, SIDE, SIDE), np.float32)
    return images, rng.standard_normal((BATCH, CHANNELS, SIDE // 2, SIDE // 2), np.float32)


def tensor_engine(both: bool) -> Callable[[], object]:
    import te_tensor as te

    images, upstream = (te.from_numpy(a) for a in _inputs())

    def forward() -> object:
        with te.no_grad():
            return te.max_pool2d(images, 2)

    def step() -> object:
        images.zero_grad()
        result = te.max_pool2d(images, 2)
        result.backward(upstream)
        return result.detach(), images.grad

    images.requires_grad = True
    return step if both else forward


def torch(both: bool) -> Callable[[], object]:
    import torch
    from torch.nn.functional import max_pool2d

    torch.set_num_threads(cpus())
    images, upstream = (torch.from_numpy(a) for a in _inputs())

    def forward() -> object:
        with torch.no_grad():
            return max_pool2d(images, 2)

    def step() -> object:
        images.grad = None
        result = max_pool2d(images, 2)
        result.backward(upstream)
        return result.detach(), images.grad

    images.requires_grad_()
    return step if both else forward


def jax(both: bool) -> Callable[[], object]:
    """The pooling, or it and its gradient, compiled as one program."""
    import jax
    import jax.numpy as jnp

    images, upstream = (jnp.array(a) for a in _inputs())

    def forward(images: jax.Array) -> jax.Array:
        window = (1, 1, 2, 2)
        return jax.lax.reduce_window(images, -jnp.inf, jax.lax.max, window, window, "VALID")

    def step(images: jax.Array, upstream: jax.Array) -> object:
        result, backward = jax.vjp(forward, images)
        return result, *backward(upstream)

    arguments = (images, upstream) if both else (images,)
    run = jax.jit(step if both else forward).lower(*arguments).compile()
    return lambda: jax.block_until_ready(run(*arguments))


CONTESTANTS = {"tensor-engine": tensor_engine, "torch": torch, "jax": jax}
