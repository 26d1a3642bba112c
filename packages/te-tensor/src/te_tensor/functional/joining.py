"""Tensors made of several, and several made of one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..ops.shape import Concat, Stack
from ..tensor import Tensor, as_tensor, pair
from ._common import Like, apply


def _of_one_dtype(name: str, tensors: Sequence[Like]) -> list[Tensor]:
    if not isinstance(tensors, Iterable) or isinstance(tensors, (str, Tensor)):
        raise TypeError(f"{name} got a {type(tensors).__name__}: expected a list of one or more")
    tensors = list(tensors)
    if not tensors:
        raise ValueError(f"{name} got no tensors: expected one or more")
    first, *rest = (as_tensor(t) for t in tensors)
    for other in rest:
        first, _ = pair(first, other)
    return [pair(as_tensor(t), first)[0] for t in tensors]


def concat(tensors: Sequence[Like], axis: int | None = 0) -> Tensor:
    """Tensors joined along an axis they have.

    Args:
        tensors: one or more, whose shapes differ at most along `axis`.
        axis: the axis that grows; None joins the elements of all in C order, whatever the shapes.

    Returns:
        The joined tensor.

    Raises:
        ValueError: no tensors, or shapes that don't fit.
        IndexError: there is no such axis.
    """
    parts = _of_one_dtype("concat", tensors)
    if axis is None:
        axis, parts = 0, [part.flatten() for part in parts]
    return apply(Concat(axis), *parts)


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


def split(x: Like, size: int | Sequence[int], axis: int = 0) -> tuple[Tensor, ...]:
    """Contiguous parts along an axis; views.

    Args:
        x: any tensor with axes.
        size: the length of each part, of which the last may be shorter; or the lengths of all
            parts, as in PyTorch. (NumPy's `split` takes their number, or where to cut.)
        axis: the axis that is cut.

    Returns:
        The parts, in order.

    Raises:
        ValueError: lengths that don't sum to the axis's, or a length below 1.
        IndexError: there is no such axis.

    Example:
        >>> import te_tensor as te
        >>> [part.tolist() for part in te.split(te.arange(5), 2)]
        [[0, 1], [2, 3], [4]]
    """
    return as_tensor(x).split(size, axis)
