"""What is asked of all gradients together: their norm, and whether they are finite."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, isfinite, sqrt

import numpy as np

from te_tensor.dtypes import Array
from te_tensor.memory import scratch
from te_tensor.parallel import fixed_blocks, parallel_for

from .arena import SMALL

#: Elements from which the blocks of one gradient are spread over threads.
_PARALLEL_FROM = 1 << 18


def norm(gradients: Sequence[Array], p: float = 2.0) -> float:
    """The p-norm over all elements as one vector, added in float64, the same for any threads.

    Args:
        gradients: arrays of any shapes.
        p: above 0; inf gives the greatest absolute value.
    """
    with np.errstate(all="ignore"):
        if p == inf:
            return float(np.max([np.abs(g).max(initial=0) for g in gradients], initial=0))
        small = [g.reshape(-1) for g in gradients if g.size < SMALL]
        large = [g.reshape(-1) for g in gradients if g.size >= SMALL]
        if small:  # a call for all of them
            large.append(np.concatenate(small, dtype=np.float64, casting="same_kind"))
        total = sum(_power_sum(flat, p) for flat in large)
        return sqrt(total) if p == 2 else float(np.float64(total) ** (1 / p))


def _power_sum(flat: Array, p: float) -> float:
    blocks = fixed_blocks(flat.size)
    sums = np.zeros(len(blocks))

    def add(index: int) -> None:
        (wide,) = scratch(1, flat[blocks[index]].shape, np.dtype(np.float64))
        wide[...] = flat[blocks[index]]
        if p != 2:
            np.power(np.abs(wide, out=wide), p, out=wide)
        sums[index] = np.einsum("i,i->", wide, wide) if p == 2 else wide.sum()

    if flat.size >= _PARALLEL_FROM:
        parallel_for(add, len(blocks))
    else:
        for index in range(len(blocks)):
            add(index)
    return float(sums.sum())


def check_finite(gradients: Sequence[Array | None]) -> None:
    """Hold that no gradient has an inf or a NaN.

    Args:
        gradients: by the place of their parameter, None where there is none.

    Raises:
        FloatingPointError: one has; it is named by its place and shape.
    """
    present = {place: g for place, g in enumerate(gradients) if g is not None}
    if isfinite(norm(list(present.values()))):
        return
    for place, gradient in present.items():
        bad = ~np.isfinite(gradient)
        if bad.any():
            raise FloatingPointError(
                f"the gradient of parameter {place}, of shape {gradient.shape}, has {bad.sum()} "
                "elements that are inf or NaN: expected finite ones"
            )
