"""How attention is cut: blocks of scores that fit a core's cache, and memory for them."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Self

import numpy as np

from .. import memory
from ..dtypes import Array, DType


@dataclass(frozen=True)
class Block:
    """A range of batch, key heads, query heads to a key head, and query rows."""

    batch: slice
    heads: slice
    group: slice
    rows: slice
    #: Columns that a causal mask leaves in sight.
    columns: slice
    #: Whether this is the whole problem.
    whole: bool = False

    @classmethod
    def of_all(cls, size: tuple[int, ...]) -> Self:
        """The whole problem of a size (B, K, G, S, T)."""
        batch, heads, group, rows, columns = (slice(0, n) for n in size)
        return cls(batch, heads, group, rows, columns, whole=True)

    def of(self, array: Array, *, rows: bool = True, columns: bool = True) -> Array:
        """This block of an array on (B, K, G, rows, columns); axes of length 1 stay whole."""
        if self.whole:
            return array
        wanted = (
            self.batch,
            self.heads,
            self.group,
            self.rows if rows else slice(None),
            self.columns if columns else slice(None),
        )
        return cut(array, wanted)


def cut(array: Array, wanted: tuple[slice, ...]) -> Array:
    """A part of an array, axes of length 1 whole."""
    return array[
        tuple(w if n > 1 else slice(None) for w, n in zip(wanted, array.shape, strict=False))
    ]


def grouped(array: Array, key_heads: int) -> Array:
    """(B, H, …) as (B, K, G, …), without copying; a single head that broadcasts gives 1, 1."""
    heads = array.shape[1]
    split = (1, 1) if heads == 1 else (key_heads, heads // key_heads)
    return array.reshape(array.shape[0], *split, *array.shape[2:])


class Buffer:
    """Memory for one block of scores, used again by the next block."""

    def __init__(self, dtype: DType) -> None:
        self.memory = np.empty(0, dtype)

    def __call__(self, shape: tuple[int, ...]) -> Array:
        size = prod(shape)
        if self.memory.size < size:
            self.memory = memory.empty((size,), self.memory.dtype)
        return self.memory[:size].reshape(shape)
