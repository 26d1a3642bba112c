"""Normalization."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..ops.normalization import LayerNorm
from ..tensor import Tensor, as_tensor
from ._common import Like, apply, floats


def layer_norm(
    x: Like,
    normalized_shape: int | Sequence[int],
    weight: Like | None = None,
    bias: Like | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """(x - mean) / √(var + eps) · weight + bias, over the last axes (arXiv:1607.06450).

    Args:
        x: shape (…, *normalized_shape).
        normalized_shape: lengths of the axes that are normalized together.
        weight: shape normalized_shape.
        bias: likewise; needs a weight.
        eps: added to the variance.

    Returns:
        The shape of x.

    Raises:
        ValueError: shapes that don't fit, or a bias without a weight.
    """
    x = floats("layer_norm", x)
    single = isinstance(normalized_shape, (int, np.integer))
    shape = (normalized_shape,) if single else tuple(normalized_shape)  # type: ignore[arg-type]
    if not shape or x.shape[-len(shape) :] != shape:
        raise ValueError(f"layer_norm of shape {x.shape}: expected it to end with {shape}")
    if bias is not None and weight is None:
        raise ValueError("layer_norm got a bias without a weight: expected both, or weight alone")
    affine = [None if a is None else as_tensor(a) for a in (weight, bias)]
    return apply(LayerNorm(len(shape), eps), x, *affine)
