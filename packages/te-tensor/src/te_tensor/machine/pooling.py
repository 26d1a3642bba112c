"""Maxima of windows of 2 × 2, and the way back, in one pass over the images.

A window's elements are numbered 0 to 3, row by row. Planes are (P, H, W, L): with one lane the two
elements of a row lie side by side, and of 32 that are loaded 16 are first ones and 16 second ones;
with more lanes they are L elements apart.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache

import numpy as np

from ..dtypes import Array, int32
from ..executable import Code
from .assembler import R8, R9, R10, R11, R12, R13, RAX, RBP, RDX, RSI, Constant, Memory
from .compiler import LANES, VECTOR
from .program import Call, Record, Writer, program

#: Masks: of a row's last results, of the 32 elements that they look at, and of comparisons.
_MASK, _LOW, _HIGH, _CHOICE = 1, 2, 3, 4
#: Bytes of comparisons: neither is NaN; not greater, or NaN; equal.
_ORDERED, _NOT_GREATER, _EQUAL = 0x07, 0x1A, 0x00
#: Registers: a window's elements, what is made of them, numbers in all lanes, and orders of lanes.
_WINDOW, _BEST, _NUMBER, _NUMBERS, _ORDERS = (0, 2, 4, 6), 0, 8, (20, 21, 22, 23), (28, 29)
#: Lanes of two vectors: first and second ones of pairs; and pairs of two vectors' lanes.
_PART = np.array([range(0, 32, 2), range(1, 32, 2)], int32)
_JOIN = np.array([[i // 2 + 16 * (i % 2) + half for i in range(16)] for half in (0, 8)], int32)

_IMAGE, _RESULT, _BYTES = _STREAMS = RAX, RDX, RSI
_BELOW, _BESIDE, _BOTH = R8, R9, R10
#: How far streams move after a vector, after the vectors of a place, after a row's places, and
#: after a plane's rows.
_MOVES = ("vector", "place", "row", "plane")
_ADDRESSES = Record("image", "result", "bytes", "orders")
_SIZES = Record(
    *("below", "beside", "both"),
    *(f"{move}{stream}" for move in _MOVES for stream in range(3)),
    *("planes", "rows", "places", "vectors", "last", "mask", "low", "high"),
    behind=_ADDRESSES,
)

_Step = Callable[[Writer, int], None]


def _over_windows(step: _Step) -> Code:
    """Code that takes a step for each vector of results; a step gets the mask, 0 for all lanes."""
    record = _SIZES

    def move(code: Writer, name: str) -> None:
        for number, stream in enumerate(_STREAMS):
            code.add(stream, record[f"{name}{number}"])

    def write(code: Writer) -> None:
        for mask, name in ((_MASK, "mask"), (_LOW, "low"), (_HIGH, "high")):
            code.load_mask(mask, record[name])
        code.load(_IMAGE, record["orders"])
        for number, order in enumerate(_ORDERS):
            code.vector("vmovups", order, Memory(_IMAGE, offset=VECTOR * number))
        for number, register in enumerate(_NUMBERS):
            code.vector("vbroadcastss", register, Constant(number))
        names = ("image", "result", "bytes", "below", "beside", "both")
        for register, name in zip((*_STREAMS, _BELOW, _BESIDE, _BOTH), names, strict=True):
            code.load(register, record[name])
        with code.times(RBP, record["planes"]):
            with code.times(R11, record["rows"]):
                with code.times(R12, record["places"]):
                    with code.times(R13, record["vectors"]):
                        step(code, 0)
                        move(code, "vector")
                    with code.times(R13, record["last"]):
                        step(code, _MASK)
                    move(code, "place")
                move(code, "row")
            move(code, "plane")

    return program(write)


def _rows(mask: int) -> list[list[tuple[Memory, int]]]:
    """Two vectors of each row of the windows, of pairs, with their masks."""
    low, high = (_LOW, _HIGH) if mask else (0, 0)
    top = [(Memory(_IMAGE), low), (Memory(_IMAGE, offset=VECTOR), high)]
    return [top, [(Memory(_IMAGE, _BELOW, place.offset), kept) for place, kept in top]]


#: The elements of a window where lanes lie innermost.
_ELEMENTS = (
    Memory(_IMAGE),
    Memory(_IMAGE, _BESIDE),
    Memory(_IMAGE, _BELOW),
    Memory(_IMAGE, _BOTH),
)


def _load_windows(code: Writer, pairs: bool, mask: int) -> None:
    if not pairs:
        for register, place in zip(_WINDOW, _ELEMENTS, strict=True):
            code.vector("vmovups", register, place, mask=mask, zero=bool(mask))
        return
    for row, (low, high) in enumerate(_rows(mask)):
        first, second = _WINDOW[2 * row], _WINDOW[2 * row + 1]
        further = first + 1
        code.vector("vmovups", first, low[0], mask=low[1], zero=bool(mask))
        code.vector("vmovups", further, high[0], mask=high[1], zero=bool(mask))
        code.vector("vmovups", second, first)
        code.vector("vpermt2ps", first, _ORDERS[0], further)
        code.vector("vpermt2ps", second, _ORDERS[1], further)


def _store_windows(code: Writer, pairs: bool, mask: int) -> None:
    if not pairs:
        for register, place in zip(_WINDOW, _ELEMENTS, strict=True):
            code.store(place, register, mask)
        return
    for row, (low, high) in enumerate(_rows(mask)):
        first, second = _WINDOW[2 * row], _WINDOW[2 * row + 1]
        joined = first + 1
        code.vector("vmovups", joined, first)
        code.vector("vpermt2ps", joined, _ORDERS[0], second)
        code.vector("vpermt2ps", first, _ORDERS[1], second)
        code.store(low[0], joined, low[1])
        code.store(high[0], first, high[1])


@cache
def _maximum(pairs: bool, numbered: bool) -> Code:
    """The first of the greatest, and the last NaN if there is one, as in PyTorch; its number."""

    def step(code: Writer, mask: int) -> None:
        _load_windows(code, pairs, mask)
        number = _NUMBERS[0]
        for register, its in zip(_WINDOW[1:], _NUMBERS[1:], strict=True):
            code.vector("vcmpps", _CHOICE, register, register, immediate=_ORDERED)
            code.vector("vcmpps", _CHOICE, register, _BEST, mask=_CHOICE, immediate=_NOT_GREATER)
            code.vector("vblendmps", _BEST, register, _BEST, mask=_CHOICE)
            if numbered:
                code.vector("vblendmps", _NUMBER, its, number, mask=_CHOICE)
                number = _NUMBER
        code.store(Memory(_RESULT), _BEST, mask)
        if numbered:
            code.vector("vcvtps2dq", _NUMBER, _NUMBER)
            code.store_bytes(Memory(_BYTES), _NUMBER, mask)

    return _over_windows(step)


@cache
def _gradient(pairs: bool) -> Code:
    """Each window's gradient where its maximum was, 0 elsewhere."""
    given = _NUMBER + 1

    def step(code: Writer, mask: int) -> None:
        code.vector("vpmovzxbd", _NUMBER, Memory(_BYTES), mask=mask, zero=bool(mask))
        code.vector("vcvtdq2ps", _NUMBER, _NUMBER)
        code.vector("vmovups", given, Memory(_RESULT), mask=mask, zero=bool(mask))
        for register, its in zip(_WINDOW, _NUMBERS, strict=True):
            code.vector("vcmpps", _CHOICE, _NUMBER, its, immediate=_EQUAL)
            code.vector("vmovups", register, given, mask=_CHOICE, zero=True)
        _store_windows(code, pairs, mask)

    return _over_windows(step)


def maxima(planes: Array, out: Array, winners: Array | None = None) -> Call:
    """Fill out with the maxima of windows of 2 × 2, and winners with their elements' numbers.

    Args:
        planes: shape (P, H, W, L), contiguous.
        out: shape (P, ⌊H/2⌋, ⌊W/2⌋, L), contiguous.
        winners: shape of out, bytes, or None.
    """
    code = _maximum(planes.shape[3] == 1, winners is not None)
    return Call(code, _words(planes, out, out if winners is None else winners, _PART))


def to_winners(grad: Array, winners: Array, out: Array) -> Call:
    """Give each window's gradient to the element that had the maximum, and 0 to the others.

    Args:
        grad: shape (P, ⌊H/2⌋, ⌊W/2⌋, L), contiguous.
        winners: as `maxima` made them.
        out: shape (P, H, W, L), contiguous; what belongs to no window stays.
    """
    return Call(_gradient(out.shape[3] == 1), _words(out, grad, winners, _JOIN))


def _words(
    planes: Array, result: Array, numbers: Array, orders: Array
) -> list[int | tuple[Array, int]]:
    addresses = [(array, 0) for array in (planes, result, numbers, orders)]
    return [*addresses, *_sizes(planes.shape, numbers.itemsize)]


@lru_cache(256)
def _sizes(shape: tuple[int, ...], bytes_of_number: int) -> tuple[int, ...]:
    """What a record says of planes of this shape, all arrays being contiguous."""
    count, height, width, lanes = shape
    rows, columns, pairs = height // 2, width // 2, lanes == 1
    places, elements = (1, columns) if pairs else (columns, lanes)
    vectors, rest = divmod(elements, LANES)
    below, beside = 4 * width * lanes, 4 * lanes
    by_vector = [VECTOR * (1 + pairs), VECTOR, LANES * bytes_of_number]
    by_place = [2 * beside, 4 * lanes, bytes_of_number * lanes]
    by_row = [2 * below, 4 * columns * lanes, bytes_of_number * columns * lanes]
    by_plane = [height * below, rows * by_row[1], rows * by_row[2]]
    # Each level begins where the one inside it left off.
    levels = ((by_place, vectors, by_vector), (by_row, places, by_place), (by_plane, rows, by_row))
    moves = [
        a - times * b for level, times, done in levels for a, b in zip(level, done, strict=True)
    ]
    seen = 2 * rest if pairs else 0
    masks = [(1 << bits) - 1 for bits in (rest, min(seen, LANES), max(seen - LANES, 0))]
    return (
        *(below, beside, below + beside, *by_vector, *moves),
        *(count, rows, places, vectors, int(rest > 0), *masks),
    )
