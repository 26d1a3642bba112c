"""The weights of attention as kernels: what a block of scores goes through, in one pass."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..dtypes import Array, float32
from ..machine import (
    Column,
    Kernel,
    Matrix,
    Nest,
    Value,
    exponential,
    kernel,
    kernel_info,
    maximum,
    times_plus,
)
from ._distance import Part

#: The largest finite number.
LARGEST = float(np.finfo(float32).max)


def runs_in_kernels(q: Array) -> bool:
    """Whether kernels make the weights."""
    return q.dtype is float32 and kernel_info()["kernels"] != "numpy"


def _write_exponentials(scores: Matrix, found: Value, sums: Column, top: Column) -> None:
    highest = maximum(-LARGEST, found.max())
    weights = exponential(found - highest, tiny=False)
    scores.store(weights)
    sums.store(weights.sum())
    top.store(highest)


@kernel
def _exponentials(scores: Matrix, sums: Column, top: Column) -> None:
    _write_exponentials(scores, scores.load(), sums, top)


@kernel
def _biased_exponentials(
    scores: Matrix, sums: Column, top: Column, phi: Matrix, bias: Column
) -> None:
    found = times_plus(phi.load(), bias.load(), scores.load())
    _write_exponentials(scores, found, sums, top)


@kernel
def _score_gradients(scores: Matrix, slope: Matrix) -> None:
    weights = exponential(scores.load(), tiny=False)
    scores.store(weights)
    slope.store(slope.load() * weights)


@kernel
def _biased_score_gradients(
    scores: Matrix, slope: Matrix, phi: Matrix, bias: Column, of_bias: Column
) -> None:
    of_score = phi.load()
    less_sums = times_plus(of_score, bias.load(), scores.load())
    weights = exponential(less_sums, tiny=False)
    scores.store(weights)
    found = slope.load() * weights
    slope.store(found)
    of_bias.store((found * of_score).sum())


def exponentials(scores: Array, parts: Sequence[Part]) -> tuple[Array, Array]:
    """Turn scores into exponentials of their distances to the row's highest, bias included.

    Args:
        scores: shape (B, K, G, rows, columns), overwritten.
        parts: what the distance bias is made of.

    Returns:
        The sums of rows, and their highest scores, shape (B, K, G, rows, 1).
    """
    sums, top = (np.empty((*scores.shape[:-1], 1), scores.dtype) for _ in range(2))
    if not scores.size:
        sums[...] = top[...] = 0
    elif not parts:
        _each(scores.shape, _exponentials, scores, sums, top)
    for part in parts if scores.size else ():
        own = [x[part.place] for x in (scores, sums, top)]
        _each(own[0].shape, _biased_exponentials, *own, *_bias(part))
    return sums, top


def score_gradients(scores: Array, slope: Array, parts: Sequence[Part]) -> list[Array]:
    """Turn scores into weights, and gradients of weights into those of scores.

    Args:
        scores: shape (B, K, G, rows, columns), less the logarithms of their rows' sums.
        slope: the gradients, less what keeps the weights' sum.
        parts: what the distance bias is made of.

    Returns:
        For each part the rows' sums of these gradients times phi, shape (B, k, g, rows, 1).
    """
    if not scores.size:
        return [np.zeros((*slope[part.place].shape[:-1], 1), slope.dtype) for part in parts]
    if not parts:
        _each(scores.shape, _score_gradients, scores, slope)
    results = []
    for part in parts:
        own = scores[part.place], slope[part.place]
        results.append(np.empty((*own[0].shape[:-1], 1), slope.dtype))
        _each(own[0].shape, _biased_score_gradients, *own, *_bias(part), results[-1])
    return results


def _bias(part: Part) -> tuple[Array, Array]:
    phi = part.phi if part.phi.strides[-1] == part.phi.itemsize else np.ascontiguousarray(part.phi)
    return phi, -part.slopes[None]


def _each(shape: tuple[int, ...], kernel: Kernel, *operands: Array) -> None:
    """Run a kernel over the matrices of a block."""
    nest = Nest(*shape[:3])
    nest.kernel(kernel, *operands)
    nest.run()
