"""Products of float32 by a processor's tiles, which multiply bfloat16 sixteen times as fast (AMX).

A number of float32 is the sum of three of bfloat16, each with 8 of its 24 bits:
x = x₀ + x₁ + x₂. Of the nine products of such parts, three are too small to count, and the others
add up in float32: Σ xᵢ yⱼ for i + j ≤ 2. Six products of tiles are still well ahead of one of
vectors, and as exact: tests hold them to the error of a BLAS (Henry, Tang and Heinecke, "Leveraging
the bfloat16 Artificial Intelligence Datatype For Higher-Precision Computations", 2019).

Two things are not as in float32, and where they could matter the product isn't made here:
infinities and NaN can't be split, and parts below 2⁻¹²⁶ are 0 to tiles. So each block of rows is
made only if it and the other matrix hold finite numbers, the largest of them from 2⁻⁵⁰ to 2⁵⁰.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from math import ceil
from typing import NamedTuple

import numpy as np

from .assembler import RAX, Memory
from .compiler import VECTOR
from .program import Record, Writer

#: Rows and columns of a tile of the product; and numbers of k that tiles of bfloat16 have, in
#: pairs: the first 16 beside the others.
SIDE, DEPTH = 16, 32
#: Bytes of a tile, and of the three that are the parts of 16 x 32 numbers.
TILE, PARTS = 1024, 3 * 1024
#: Numbers whose largest is outside of this are left to others.
LOW, HIGH = 2.0**-50, 2.0**50

#: Tiles begin where lines of the cache do.
LINE = 64
#: Of `vcmpps`: above, or not in order at all.
_ABOVE, _UNORDERED = 0x1E, 0x03
#: Eight tiles, all of them whole.
SHAPES = np.frombuffer(
    struct.pack("=2B14x16H16B", 1, 0, *[64] * 8, *[0] * 8, *[SIDE] * 8, *[0] * 8), np.uint8
)
#: Numbers of tiles: two by two of sums, and two of each matrix.
SUMS, TILES_OF_A, TILES_OF_B = ((0, 1), (2, 3)), (4, 5), (6, 7)
#: Bytes of what is found of a matrix.
FOUND = 2 * VECTOR
#: The bounds that numbers which can be split are between; and those of small ones, too.
BOUNDS, SMALL_TOO = (int.from_bytes(struct.pack("=2f", low, HIGH), "little") for low in (LOW, -1.0))
ZEROS = np.zeros(2 * VECTOR, np.uint8)


class Operand(NamedTuple):
    """How a matrix lies."""

    #: Bytes from row to row, or from column to column.
    step: int
    #: Whether what is contiguous are the numbers of k.
    by_k: bool


def regions(length: int, unit: int) -> list[tuple[int, int, int]]:
    """Where units begin, how many there are, and how long they are: whole ones, and the rest."""
    whole, rest = divmod(length, unit)
    return [(0, whole, unit)] * bool(whole) + [(whole, 1, rest)] * bool(rest)


def tiles_size(length: int, depth: int) -> int:
    """Bytes of the tiles of a matrix (length, k)."""
    return ceil(length / (2 * SIDE)) * 2 * ceil(depth / DEPTH) * PARTS


def _check(code: Writer, record: Record, found: str) -> list[int]:
    """Jumps, should the numbers that were found be none to be split."""
    code.load(RAX, record[found])
    code.vector("vmovups", 0, Memory(RAX))
    code.vector("vmovups", 1, Memory(RAX, offset=VECTOR))
    bounds = record["bounds"]
    code.vector("vbroadcastss", 2, bounds)
    code.vector("vbroadcastss", 3, Memory(bounds.base, offset=bounds.offset + 4))
    jumps = []
    for pair, condition, jump in (
        ((0, 2), _ABOVE, "zero"),
        ((0, 3), _ABOVE, "not zero"),
        ((1, 1), _UNORDERED, "not zero"),
    ):
        code.vector("vcmpps", 1, *pair, immediate=condition)
        code.any_lane(1)
        jumps.append(code.jump(jump))
    return jumps


@contextmanager
def tiles_in_use(code: Writer, record: Record, one: int) -> Iterator[None]:
    """What is written inside has tiles, if both sides could be split; else it is skipped.

    Args:
        code: where this is written.
        record: has both sides' `found`, and what all records of tiles have.
        one: a register for the bytes from row to row of a tile.
    """
    wrong = [*_check(code, record, "found_a"), *_check(code, record, "found_b")]
    code.load(RAX, record["shapes"])
    code.shape_tiles(Memory(RAX))
    code.load(one, record["one"])
    yield
    code.leave_tiles()
    done = code.jump("always")
    for jump in wrong:
        code.land(jump)
    code.load(RAX, record["one"])
    code.keep(record["skipped"], RAX)
    code.land(done)
