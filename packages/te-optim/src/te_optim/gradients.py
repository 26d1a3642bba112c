"""What is asked of all gradients together: their norm, and whether they are finite."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from math import inf, isfinite, sqrt

import numpy as np

from te_tensor.dtypes import Array
from te_tensor.machine import Column, Matrix, kernel, runs
from te_tensor.memory import scratch
from te_tensor.parallel import fixed_blocks, parallel_for

from .arena import SMALL

#: Elements from which the blocks of one gradient are spread over threads.
_PARALLEL_FROM = 1 << 18
#: Elements whose squares a kernel adds in float32; from there on sums are of float64.
_ROW = 1 << 10
#: Rows of a kernel's call.
_ROWS = 1 << 8
#: The mean of squares from which those that are too small for float32 don't count.
_SMALLEST_MEAN = 1e-28


def norm(gradients: Sequence[Array], p: float = 2.0) -> float:
    """The p-norm over all elements as one vector, the same for any threads.

    Sums are of float64; where kernels run, squares of float32 are added up to rows before, which
    leaves an error of some 1e-7 of the norm.

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
        if p != 2:
            return float(np.float64(sum(_power_sum(flat, p) for flat in large)) ** (1 / p))
        return sqrt(_square_sum(large))


@kernel
def _squares(x: Matrix, sums: Column) -> None:
    element = x.load()
    sums.store((element * element).sum())


def _square_sum(gradients: Sequence[Array]) -> float:
    """The sum of all squares, of float32 by kernels where that loses nothing."""
    quick = [g for g in gradients if g.size and runs(g)]
    found = _sum_by_rows(quick) if quick else 0.0
    if not sum(g.size for g in quick) * _SMALLEST_MEAN <= found < inf:
        found, quick = 0.0, []
    known = set(map(id, quick))
    return found + sum(_power_sum(g, 2) for g in gradients if id(g) not in known)


def _sum_by_rows(gradients: Sequence[Array]) -> float:
    """The sum of squares: over rows in float32, then in float64."""
    blocks = []
    for flat in gradients:
        whole = flat.size - flat.size % _ROW
        rows = flat[:whole].reshape(-1, _ROW)
        blocks += [rows[start : start + _ROWS] for start in range(0, len(rows), _ROWS)]
        if whole < flat.size:
            blocks.append(flat[None, whole:])
    edges = [0, *accumulate(map(len, blocks))]
    sums = np.empty(edges[-1], np.float32)

    def add(index: int) -> None:
        _squares.rows(blocks[index], sums[edges[index] : edges[index + 1]])

    if len(sums) * _ROW >= _PARALLEL_FROM:
        parallel_for(add, len(blocks))
    else:
        for index in range(len(blocks)):
            add(index)
    return float(sums.sum(dtype=np.float64))


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
