"""Initial values of parameters: PyTorch's distributions, drawn from the engine's generator."""

from __future__ import annotations

from math import sqrt

import te_tensor as te

from .module import Parameter


def uniform(shape: tuple[int, ...], bound: float) -> Parameter:
    """Values drawn evenly from [-bound, bound)."""
    return Parameter((te.rand(*shape) * (2 * bound) - bound).data)


def fan_in_uniform(shape: tuple[int, ...], fan_in: int) -> Parameter:
    """Values drawn evenly from ±1/√fan_in, the default of PyTorch's linear layers.

    It is He's initialization with a = √5 (He et al., arXiv:1502.01852).
    """
    return uniform(shape, 1 / sqrt(fan_in))


def normal(shape: tuple[int, ...]) -> Parameter:
    """Values drawn from the normal distribution with mean 0 and variance 1."""
    return Parameter(te.randn(*shape).data)


def ones(shape: tuple[int, ...]) -> Parameter:
    """Ones."""
    return Parameter(te.ones(*shape).data)


def zeros(shape: tuple[int, ...]) -> Parameter:
    """Zeros."""
    return Parameter(te.zeros(*shape).data)
