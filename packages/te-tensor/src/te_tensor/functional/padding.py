"""Padding."""

from __future__ import annotations

from collections.abc import Sequence

from ..checks import is_whole
from ..ops.padding import MODES, Pad
from ..tensor import Tensor, as_tensor
from ._common import Like, apply


def pad(
    x: Like, padding: Sequence[tuple[int, int]], mode: str = "constant", value: float = 0.0
) -> Tensor:
    """Elements added at the ends of the last axes.

    Args:
        x: any shape.
        padding: how many before and after, a pair per axis, for the last axes in order.
        mode: "constant"; "reflect" mirrors without repeating the edge, "replicate" repeats it,
            "circular" goes on at the other end.
        value: what "constant" adds.

    Returns:
        x with each axis longer by its pair's sum.

    Raises:
        ValueError: an unknown mode, negative numbers, or more than there is to copy.

    Example:
        >>> import te_tensor as te
        >>> te.pad(te.Tensor([1.0, 2.0, 3.0]), [(2, 1)], "reflect").tolist()
        [3.0, 2.0, 1.0, 2.0, 3.0, 2.0]
    """
    if mode not in MODES:
        raise ValueError(f"pad mode is {mode!r}: expected one of {', '.join(MODES)}")
    x = as_tensor(x)
    try:
        pairs = tuple((before, after) for before, after in padding)
    except (TypeError, ValueError):  # no pairs
        pairs = ((-1, -1),)
    if not all(is_whole(n) and n >= 0 for pair in pairs for n in pair):
        raise ValueError(f"padding is {padding!r}: expected pairs of whole numbers of at least 0")
    return apply(Pad(pairs, mode, float(as_tensor(value).item())), x)
