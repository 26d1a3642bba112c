"""Normalization layers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

import te_tensor as te
from te_tensor import Tensor

from . import initialize
from .checks import at_least_zero, positive
from .module import Module


class LayerNorm(Module):
    """(x - mean) / √(var + eps) · weight + bias, over the last axes (arXiv:1607.06450).

    Args:
        normalized_shape: lengths of the last axes.
        eps: added to the variance.
        elementwise_affine: whether there are a weight and a bias.
        bias: whether there is a bias.

    Attributes:
        weight: shape normalized_shape, initially ones.
        bias: likewise, initially zeros.

    Example:
        >>> LayerNorm(4)(te.randn(2, 4)).shape
        (2, 4)
    """

    _shown = ("normalized_shape", "eps")

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
    ) -> None:
        given: Sequence[int]
        if isinstance(normalized_shape, (int, np.integer)):
            given = (int(normalized_shape),)
        else:
            given = normalized_shape
        shape = tuple(positive("normalized_shape", n) for n in given)
        self.normalized_shape = shape
        self.eps = at_least_zero("eps", eps)
        self.weight = initialize.ones(shape) if elementwise_affine else None
        self.bias = initialize.zeros(shape) if elementwise_affine and bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Shape (…, *normalized_shape), which stays."""
        return te.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
