"""Rows of tables."""

from __future__ import annotations

from ..checks import check_whole
from ..ops.indexing import Embedding
from ..tensor import Tensor, as_tensor
from ._common import Like, apply


def embedding(indices: Like, weight: Like, padding_idx: int | None = None) -> Tensor:
    """Rows of a table.

    Args:
        indices: whole numbers of any shape.
        weight: shape (rows, features).
        padding_idx: a row whose gradient is zero.

    Returns:
        Shape (*indices.shape, features).

    Raises:
        IndexError: an index is out of range.
        TypeError: indices are no integers.
    """
    weight = as_tensor(weight)
    if weight.ndim != 2:
        raise ValueError(f"embedding weight has shape {weight.shape}: expected (rows, features)")
    if padding_idx is not None:
        check_whole("padding_idx", padding_idx)
        if not -len(weight) <= padding_idx < len(weight):
            raise IndexError(f"padding_idx is {padding_idx}: expected a row of {len(weight)}")
        padding_idx %= len(weight)
    return apply(Embedding(padding_idx), weight, as_tensor(indices))
