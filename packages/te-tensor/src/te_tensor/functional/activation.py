"""Activations with parameters that are learned."""

from __future__ import annotations

from ..ops.activation import PReLU
from ..tensor import Tensor, as_tensor
from ._common import Like, apply, cast, floats


def prelu(x: Like, weight: Like) -> Tensor:
    """x above 0, weight·x elsewhere (arXiv:1502.01852).

    Args:
        x: any shape; axis 1 has the channels, where there is one.
        weight: shape (1,), or one element per channel.

    Returns:
        The shape of x.

    Raises:
        ValueError: the weight has another shape.
        TypeError: x holds no floats.
    """
    x = floats("prelu", x)
    return apply(PReLU(), x, cast(as_tensor(weight), x))
