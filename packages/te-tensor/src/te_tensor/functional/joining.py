"""Tensors made of several."""

from __future__ import annotations

from collections.abc import Sequence

from ..ops.shape import Concat, Stack
from ..tensor import Tensor, as_tensor, pair
from ._common import Like, apply


def _of_one_dtype(name: str, tensors: Sequence[Like]) -> list[Tensor]:
    if isinstance(tensors, Tensor):
        raise ValueError(f"{name} got a Tensor: expected a list of one or more")
    tensors = list(tensors)
    if not tensors:
        raise ValueError(f"{name} got no tensors: expected one or more")
    first, *rest = (as_tensor(t) for t in tensors)
    for other in rest:
        first, _ = pair(first, other)
    return [pair(as_tensor(t), first)[0] for t in tensors]


def concat(tensors: Sequence[Like], axis: int = 0) -> Tensor:
    """Tensors joined along an axis they have.

    Args:
        tensors: one or more, whose shapes differ at most along `axis`.
        axis: the axis that grows.

    Returns:
        The joined tensor.

    Raises:
        ValueError: no tensors, or shapes that don't fit.
        IndexError: there is no such axis.
    """
    return apply(Concat(axis), *_of_one_dtype("concat", tensors))


cat = concat


def stack(tensors: Sequence[Like], axis: int = 0) -> Tensor:
    """Tensors of one shape joined along a new axis.

    Args:
        tensors: one or more, of equal shapes.
        axis: where the new axis stands in the result.

    Returns:
        The joined tensor.

    Raises:
        ValueError: no tensors, or different shapes.
        IndexError: axis is out of range.
    """
    return apply(Stack(axis), *_of_one_dtype("stack", tensors))
