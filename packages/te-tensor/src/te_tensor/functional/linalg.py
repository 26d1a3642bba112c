"""Linear maps."""

from __future__ import annotations

from ..ops.linalg import Linear
from ..tensor import Tensor, as_tensor
from ._common import Like, apply


def linear(x: Like, weight: Like, bias: Like | None = None) -> Tensor:
    """`x @ weight.T + bias`.

    Args:
        x: shape (…, in).
        weight: shape (out, in).
        bias: shape (out,).

    Returns:
        Shape (…, out).

    Raises:
        ValueError: shapes that don't fit.
        TypeError: different float widths.
    """
    extra = None if bias is None else as_tensor(bias)
    return apply(Linear(), as_tensor(x), as_tensor(weight), extra)
