"""Convolution: 32 images of 64 channels and 56 × 56, 64 kernels of 3 × 3, padding 1."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..blocks.common import Array
from ..machine import cpus

#: Whether gradients of the input, the weight and the bias are part of the step.
SIZES = {"forward": False, "both": True}
BATCH, CHANNELS, KERNELS, SIDE, KERNEL = 32, 64, 64, 56, 3


def flops(both: bool) -> float:
    """Operations of the products: backward has two as large as forward's."""
    return 2 * BATCH * KERNELS * CHANNELS * KERNEL**2 * SIDE**2 * (3 if both else 1)


def _inputs() -> list[Array]:
    """Images, weight, bias and the gradient from above."""
    rng = np.random.default_rng(0)
    shapes = (
        (BATCH, CHANNELS, SIDE, SIDE),
        (KERNELS, CHANNELS, KERNEL, KERNEL),
        (KERNELS,),
        (BATCH, KERNELS, SIDE, SIDE),
    )
    return [rng.standard_normal(shape, np.float32) for shape in shapes]


def tensor_engine(both: bool) -> Callable[[], object]:
    import te_tensor as te

    x, weight, bias, upstream = (te.from_numpy(a) for a in _inputs())
    learnt = (x, weight, bias)

    def forward() -> object:
        with te.no_grad():
            return te.conv2d(x, weight, bias, padding=1)

    def step() -> object:
        for tensor in learnt:
            tensor.zero_grad()
        result = te.conv2d(x, weight, bias, padding=1)
        result.backward(upstream)
        return result.detach(), *(tensor.grad for tensor in learnt)

    for tensor in learnt:
        tensor.requires_grad = True
    return step if both else forward


def torch(both: bool) -> Callable[[], object]:
    import torch
    from torch.nn.functional import conv2d

    torch.set_num_threads(cpus())
    *learnt, upstream = (torch.from_numpy(a) for a in _inputs())

    def forward() -> object:
        with torch.no_grad():
            return conv2d(*learnt, padding=1)

    def step() -> object:
        for tensor in learnt:
            tensor.grad = None
        result = conv2d(*learnt, padding=1)
        result.backward(upstream)
        return result.detach(), *(tensor.grad for tensor in learnt)

    for tensor in learnt:
        tensor.requires_grad_()
    return step if both else forward


def jax(both: bool) -> Callable[[], object]:
    """The convolution, or it and its gradients, compiled as one program."""
    import jax
    import jax.numpy as jnp

    *learnt, upstream = (jnp.array(a) for a in _inputs())

    def forward(x: jax.Array, weight: jax.Array, bias: jax.Array) -> jax.Array:
        pads = [(1, 1), (1, 1)]
        return jax.lax.conv_general_dilated(x, weight, (1, 1), pads) + bias[:, None, None]

    def step(*arrays: jax.Array) -> object:
        result, backward = jax.vjp(forward, *arrays[:-1])
        return result, *backward(arrays[-1])

    arguments = (*learnt, upstream) if both else learnt
    run = jax.jit(step if both else forward).lower(*arguments).compile()
    return lambda: jax.block_until_ready(run(*arguments))


CONTESTANTS = {"tensor-engine": tensor_engine, "torch": torch, "jax": jax}
