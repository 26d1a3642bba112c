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

import itertools
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, lru_cache, partial
from itertools import product
from math import ceil
from typing import NamedTuple, TypeAlias

import numpy as np

from .. import memory, parallel
from ..dtypes import Array, float32
from ..executable import Code
from .assembler import (
    R8,
    R9,
    R10,
    R11,
    R12,
    R13,
    R14,
    R15,
    RAX,
    RBP,
    RBX,
    RCX,
    RDX,
    RSI,
    Memory,
)
from .calls import Calls, Draft, run_calls
from .chain import Chain
from .compiler import LANES, VECTOR
from .program import Record, Writer, program

#: Rows and columns of a tile of the product; and numbers of k that tiles of bfloat16 have, in
#: pairs: the first 16 beside the others.
SIDE, DEPTH = 16, 32
#: Bytes of a tile, and of the three that are the parts of 16 x 32 numbers.
TILE, PARTS = 1024, 3 * 1024
#: The most k that goes through the tiles at once; and the most numbers and rows whose parts stay in
#: the second-level cache meanwhile.
_K, _NUMBERS, _ROWS = 1024, 1 << 17, 256
#: Pairs of tiles side by side that are multiplied with each pair of rows in turn: so many that what
#: is written of a row lies together, and few enough that they stay in that cache too.
_GROUP = 4
#: Numbers whose largest is outside of this are left to others.
_LOW, _HIGH = 2.0**-50, 2.0**50

#: Tiles begin where lines of the cache do.
LINE = 64


# -- laying out ------------------------------------------------------------------------------

_LAY_OUT = Record(
    *("source", "row", "second", "tile", "outer", "outer_step", "inner", "inner_step"),
    *("out", "out_outer", "out_inner", "found_before", "found", "scratch"),
    *("first_mask", "second_mask", "bits"),
)
#: What rounds to the upper half of a number's bits, and what leaves nothing but this half.
BITS: int = struct.unpack("=q", struct.pack("=2I", 0x8000, 0xFFFF0000))[0]
_ROUND, _UPPER, _ZERO = 31, 30, 29
#: What is found, of first and of second vectors: NaN, if any number isn't finite; the largest.
_NOT_FINITE, _LARGEST = (28, 27), (26, 25)
#: Of `vrangeps`: the larger magnitude, without sign.
_MAGNITUDE = 0b1011
_ABOVE, _UNORDERED = 0x1E, 0x03


def begin_parts(code: Writer, record: Record) -> None:
    """What `write_parts` needs: a record with `bits`, and what was found before."""
    bits = record["bits"]
    code.vector("vbroadcastss", _ROUND, bits)
    code.vector("vbroadcastss", _UPPER, Memory(bits.base, offset=bits.offset + 4))
    code.vector("vxorps", _ZERO, _ZERO, _ZERO)
    code.load(RAX, record["found_before"])
    for found in (_LARGEST, _NOT_FINITE):
        code.vector("vmovups", found[0], Memory(RAX, offset=VECTOR * (found is _NOT_FINITE)))
        code.vector("vxorps", found[1], found[1], found[1])


def write_parts(code: Writer, places: list[Memory], *, in_order: bool = False) -> None:
    """Write the three parts of the numbers in registers 0 and 1.

    Args:
        code: where this is written.
        places: of the parts.
        in_order: those of register 0 come first, instead of pairs of one of each.
    """
    numbers, upper, both = (0, 1), (2, 3), 4
    for number, largest in zip(numbers, _LARGEST, strict=True):
        code.vector("vrangeps", largest, largest, number, immediate=_MAGNITUDE)
    for part, place in enumerate(places):
        source = upper if part < 2 else numbers
        if part < 2:
            for number, rounded in zip(numbers, upper, strict=True):
                code.vector("vpaddd", rounded, number, _ROUND)
                code.vector("vandps", rounded, rounded, _UPPER)
                code.vector("vsubps", number, number, rounded)
        if in_order:
            code.vector("vcvtne2ps2bf16", both, source[1], source[0])
        else:
            code.vector("vpsrld", both, source[0], immediate=16)
            code.vector("vorps", both, both, source[1])
        code.store(place, both)
    for number, found in zip(numbers, _NOT_FINITE, strict=True):
        code.vector("vfmadd231ps", found, number, _ZERO)


def end_parts(code: Writer, record: Record) -> None:
    """Write down what was found."""
    code.load(RAX, record["found"])
    code.vector("vrangeps", _LARGEST[0], *_LARGEST, immediate=_MAGNITUDE)
    code.vector("vaddps", _NOT_FINITE[0], *_NOT_FINITE)
    code.store(Memory(RAX), _LARGEST[0])
    code.store(Memory(RAX, offset=VECTOR), _NOT_FINITE[0])


@cache
def _lay_out(turned: bool, tiles: int, first: int, second: int, adjacent: bool = False) -> Code:
    """Code that lays out blocks of 16 x 32 numbers as tiles of their three parts.

    A block is two vectors in each of 16 rows, whose elements stand in pairs in the tiles.

    Args:
        turned: rows and lanes are exchanged.
        tiles: blocks that lie beside each other in the source and become one pair of tiles, or 1.
        first: rows that the first vectors are read of; the rest are 0.
        second: the same of the second ones.
        adjacent: pairs are of elements beside each other in a row, of what is turned.
    """
    record = _LAY_OUT
    blocks, block, row, other, out, target, scratch = RSI, RBX, RCX, RDX, R8, R9, R10

    def half(code: Writer, rows: int, mask: int, at: int) -> None:
        """Sixteen vectors of a block, turned, into memory beside the others."""
        for i in range(SIDE):
            if i < rows:
                code.vector("vmovups", i, Memory(row), mask=mask, zero=True)
                code.add(row, record["row"])
            else:
                code.vector("vxorps", i, i, i)
        for i, register in enumerate(transpose(code)):
            code.store(Memory(scratch, offset=2 * VECTOR * i + at), register)

    def one_block(code: Writer, tile: int) -> None:
        code.move(row, R11)
        code.move(other, R11)
        code.add(other, record["second"])
        if turned:
            half(code, first, 1, 0)
            code.move(row, other)
            half(code, second, 2, VECTOR)
        for i in range(SIDE):
            for number, (start, rows) in enumerate(((row, first), (other, second))):
                if turned:
                    element = 2 * i + number if adjacent else i + SIDE * number
                    half_of, row_of = divmod(element, SIDE)
                    place = Memory(scratch, offset=VECTOR * (2 * row_of + half_of))
                    code.vector("vmovups", number, place)
                elif i < rows:
                    code.vector("vmovups", number, Memory(start), mask=1 + number, zero=True)
                    code.add(start, record["row"])
                else:
                    code.vector("vxorps", number, number, number)
            at = tile * PARTS + VECTOR * i
            write_parts(code, [Memory(target, offset=part * TILE + at) for part in range(3)])

    def write(code: Writer) -> None:
        code.load_mask(1, record["first_mask"])
        code.load_mask(2, record["second_mask"])
        begin_parts(code, record)
        code.load(blocks, record["source"])
        code.load(out, record["out"])
        code.load(scratch, record["scratch"])
        with code.times(R14, record["outer"]):
            code.move(block, blocks)
            code.move(target, out)
            with code.times(R15, record["inner"]):
                code.move(R11, block)
                for tile in range(tiles):
                    if tile:
                        code.add(R11, record["tile"])
                    one_block(code, tile)
                code.add(block, record["inner_step"])
                code.add(target, record["out_inner"])
            code.add(blocks, record["outer_step"])
            code.add(out, record["out_outer"])
        end_parts(code, record)

    return program(write)


def transpose(code: Writer) -> list[int]:
    """Exchange rows and lanes of registers 0 … 15.

    Returns:
        The registers that hold what were the lanes; one more may be among them.
    """
    held, spare = list(range(SIDE)), SIDE

    def exchange(i: int, j: int, low: tuple[str, int | None], high: tuple[str, int | None]) -> None:
        nonlocal spare
        a, b = held[i], held[j]
        code.vector(low[0], spare, a, b, immediate=low[1])
        code.vector(high[0], a, a, b, immediate=high[1])
        held[i], held[j], spare = spare, a, b

    for i in range(0, SIDE, 2):
        exchange(i, i + 1, ("vunpcklps", None), ("vunpckhps", None))
    for i, j in product(range(0, SIDE, 4), (0, 1)):
        exchange(i + j, i + j + 2, ("vshufps", 0x44), ("vshufps", 0xEE))
    for i, j in product(range(4), (0, 8)):
        exchange(i + j, i + j + 4, ("vshuff32x4", 0x44), ("vshuff32x4", 0xEE))
    for i in range(8):
        exchange(i, i + 8, ("vshuff32x4", 0x88), ("vshuff32x4", 0xDD))
    # lane 4 i + j is where quarter i, and in each quarter element j, have come to
    quarters, elements = (0, 8, 4, 12), (0, 2, 1, 3)
    return [held[quarter + element] for quarter, element in product(quarters, elements)]


# -- multiplying -----------------------------------------------------------------------------

_MULTIPLY = Record(
    *("a", "b", "pair", "chunks", "row_pairs", "column_pairs", "rows", "masks"),
    *("out", "out_row", "out_tile", "out_pair", "start", "start_row", "start_pair"),
    *("alpha", "scratch"),
    *("found_a", "found_b", "bounds", "parts", "one", "two", "shapes", "skipped"),
    variables=("columns_left", "rows_left", "out_line", "start_line"),
)
#: Eight tiles, all of them whole.
SHAPES = np.frombuffer(
    struct.pack("=2B14x16H16B", 1, 0, *[64] * 8, *[0] * 8, *[SIDE] * 8, *[0] * 8), np.uint8
)


#: Numbers of tiles: two by two of sums, and two of each matrix.
SUMS, TILES_OF_A, TILES_OF_B = ((0, 1), (2, 3)), (4, 5), (6, 7)


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
    code.clear(RAX)
    code.add_number(RAX, 0)
    done = code.jump("zero")
    for jump in wrong:
        code.land(jump)
    code.load(RAX, record["one"])
    code.keep(record["skipped"], RAX)
    code.land(done)


def multiply_chunk(code: Writer, load: Callable[[str, int, int], None]) -> None:
    """Six products for each of four sums; what is loaded next comes between them.

    Args:
        code: where they are written.
        load: loads a part of one of the two tiles of "a" or "b".
    """

    def add(*places: tuple[int, int]) -> None:
        for i, j in places:
            code.multiply_tiles(SUMS[i][j], TILES_OF_A[i], TILES_OF_B[j])

    load("a", 0, 0)
    load("b", 0, 2)
    add((0, 0))
    load("b", 1, 2)
    add((0, 1))
    load("a", 1, 0)
    add((1, 0))
    load("b", 0, 1)
    add((1, 1), (0, 0))
    load("b", 1, 1)
    add((1, 0), (0, 1))
    load("a", 0, 1)
    add((1, 1))
    load("a", 1, 1)
    add((0, 0), (0, 1), (1, 0))
    load("b", 0, 0)
    add((1, 1))
    load("b", 1, 0)
    add((0, 0), (1, 0), (0, 1))
    load("a", 0, 2)
    add((1, 1))
    load("a", 1, 2)
    add((0, 0), (0, 1))
    load("a", 0, 0)
    add((1, 0), (1, 1))
    load("a", 1, 0)
    add((0, 0), (0, 1), (1, 0), (1, 1))


@cache
def _multiply(whole: bool) -> Code:
    """Code for products of matrices laid out as tiles, two by two.

    Args:
        whole: pairs of tiles are whole, and out = a @ b; else out = start + alpha * a @ b.
    """
    record = _MULTIPLY
    a, out, start, b = R8, R9, R10, RBX
    of_a, of_b, left, place, line = RAX, RDX, R11, R12, RSI
    begin = of_a  # once the products are made
    number, count, one, two = R13, RBP, R15, R14  # bytes from row to row of one tile, and two
    cells = [(i, j) for i in range(2) for j in range(2)]

    def load(code: Writer, matrix: str, i: int, part: int) -> None:
        tile, at = (TILES_OF_A[i], of_a) if matrix == "a" else (TILES_OF_B[i], of_b)
        code.load_tile(tile, Memory(at, one, i * PARTS + part * TILE))

    def cell(i: int, j: int) -> Memory:
        """Where rows of out are that a tile holds; in `place` the lower ones begin."""
        return Memory(place if i else out, number, VECTOR * j)

    def pair(code: Writer) -> None:
        """Two by two tiles of the product."""
        code.move(line, out)
        for _ in range(2 * SIDE):  # here when they are wanted
            code.prefetch_to_write(Memory(line))
            code.prefetch_to_write(Memory(line, offset=2 * VECTOR - 4))
            code.add(line, record["out_row"])
        code.move(of_a, a)
        code.move(of_b, b)
        if whole:
            code.load(number, record["out_row"])
            code.move(place, out)
            code.add(place, record["out_tile"])
        for i, j in cells:
            code.clear_tile(SUMS[i][j])
        with code.times(left, record["chunks"]):
            multiply_chunk(code, partial(load, code))
            code.add(of_a, record["parts"])
            code.add(of_b, record["parts"])
        if whole:
            for i, j in cells:
                code.store_tile(cell(i, j), SUMS[i][j])
        else:
            code.load(place, record["scratch"])
            for i, j in cells:
                code.store_tile(Memory(place, two, 2 * TILE * i + VECTOR * j), SUMS[i][j])
            mix(code)
        code.add(out, record["two"])
        code.add(start, record["two"])

    def mix(code: Writer) -> None:
        """What the tiles hold to its place."""
        code.move(line, out)
        code.move(begin, start)
        code.load(count, record["rows"])
        loop = code.here()
        for j in range(2):
            code.vector("vmovups", j, Memory(begin, offset=VECTOR * j), mask=1 + j, zero=True)
            code.vector("vmovups", 2 + j, Memory(place, offset=VECTOR * j))
            code.vector("vfmadd231ps", j, 2 + j, 4)
            code.store(Memory(line, offset=VECTOR * j), j, 1 + j)
        code.add(begin, record["start_row"])
        code.add(line, record["out_row"])
        code.add(place, record["two"])
        code.add_number(count, -1)
        code.jump("not zero", loop)

    def write(code: Writer) -> None:
        with tiles_in_use(code, record, one):
            code.load(two, record["two"])
            code.vector("vbroadcastss", 4, record["alpha"])
            masks = record["masks"]
            for j in range(2):
                code.load_mask(1 + j, Memory(masks.base, offset=masks.offset + 2 * j))
            for name in ("out", "start"):
                code.load(number, record[name])
                code.keep(record[f"{name}_line"], number)
            code.load(a, record["a"])
            with code.times_kept(record["rows_left"], record["row_pairs"], number):
                code.load(b, record["b"])
                code.load(out, record["out_line"])
                code.load(start, record["start_line"])
                with code.times_kept(record["columns_left"], record["column_pairs"], number):
                    pair(code)
                    code.add(b, record["pair"])
                code.add(a, record["pair"])
                for name in ("out", "start"):
                    code.load(number, record[f"{name}_line"])
                    code.add(number, record[f"{name}_pair"])
                    code.keep(record[f"{name}_line"], number)

    return program(write)


_FEW_ROWS = Record(
    *("a", "b", "pair", "chunks", "groups", "rows", "out", "out_row", "start", "start_row"),
    *("scratch", "found_a", "found_b", "bounds", "parts", "one", "four", "shapes", "skipped"),
    variables=("groups_left",),
)
#: Tiles side by side in a group, and the columns that they have.
_SIDE_BY_SIDE = 4
_WIDE = _SIDE_BY_SIDE * SIDE


@cache
def _multiply_few() -> Code:
    """Code for out = start + a @ b with one tile of rows, by four tiles of columns.

    The right side is read once, and each of its tiles comes from the first-level cache when it is
    wanted again.
    """
    record = _FEW_ROWS
    b, out, start, of_a, of_b = R8, R9, R10, RAX, (RCX, RDX)
    place, line, begin, left, count, one, four = R12, RBX, RSI, R11, RBP, R15, R14
    sums, numbers = (0, 1, 2, 3), itertools.cycle((4, 5))

    def chunk(code: Writer) -> None:
        """The six products in the order of `multiply_chunk`, so that sums are the same."""
        for part, others in ((0, (2, 1)), (1, (1, 0)), (2, (0,)), (0, (0,))):
            tile = next(numbers)
            code.load_tile(tile, Memory(of_a, one, part * TILE))
            for other, total in product(others, sums):
                pair, side = divmod(total, 2)
                at = Memory(of_b[pair], one, side * PARTS + other * TILE)
                code.load_tile(6 + side, at)
                code.multiply_tiles(total, tile, 6 + side)

    def group(code: Writer) -> None:
        """The products of four tiles of columns."""
        code.load(of_a, record["a"])
        code.move(of_b[0], b)
        code.move(of_b[1], b)
        code.add(of_b[1], record["pair"])
        for total in sums:
            code.clear_tile(total)
        with code.times(left, record["chunks"]):
            chunk(code)
            for at in (of_a, *of_b):
                code.add(at, record["parts"])
        code.load(place, record["scratch"])
        for total in sums:
            code.store_tile(Memory(place, four, VECTOR * total), total)
        code.move(line, out)
        code.move(begin, start)
        code.load(count, record["rows"])
        loop = code.here()
        for total in sums:
            code.vector("vmovups", total, Memory(place, offset=VECTOR * total))
            code.vector("vaddps", total, total, Memory(begin, offset=VECTOR * total))
            code.store(Memory(line, offset=VECTOR * total), total)
        code.add(begin, record["start_row"])
        code.add(line, record["out_row"])
        code.add(place, record["four"])
        code.add_number(count, -1)
        code.jump("not zero", loop)
        for _ in range(2):
            code.add(b, record["pair"])
        for at in (out, start):
            code.add(at, record["four"])

    def write(code: Writer) -> None:
        with tiles_in_use(code, record, one):
            code.load(four, record["four"])
            for register, name in ((b, "b"), (out, "out"), (start, "start")):
                code.load(register, record[name])
            with code.times_kept(record["groups_left"], record["groups"], count):
                group(code)

    return program(write)


# -- products of matrices --------------------------------------------------------------------


class Operand(NamedTuple):
    """How a matrix lies."""

    #: Bytes from row to row, or from column to column.
    step: int
    #: Whether what is contiguous are the numbers of k.
    by_k: bool


#: The bits of 1, a factor that changes nothing.
_ONE = int.from_bytes(struct.pack("=f", 1.0), "little")
FOUND = 2 * VECTOR
BOUNDS = int.from_bytes(struct.pack("=2f", _LOW, _HIGH), "little")
ZEROS = np.zeros(2 * VECTOR, np.uint8)


def _regions(length: int, unit: int) -> list[tuple[int, int, int]]:
    """Where units begin, how many there are, and how long they are: whole ones, and the rest."""
    whole, rest = divmod(length, unit)
    return [(0, whole, unit)] * bool(whole) + [(whole, 1, rest)] * bool(rest)


def _groups(columns: int, done: int) -> list[tuple[int, int, int]]:
    """`_regions` of pairs of tiles that are multiplied with each pair of rows; some are done."""
    found = []
    for begin, count, wide in _regions(columns, 2 * SIDE):
        for first in range(max(begin, done), begin + count, _GROUP):
            found.append((first, min(_GROUP, begin + count - first), wide))
    return found


def _pairs(length: int) -> list[tuple[int, int, int, int]]:
    """Where pairs of tiles begin, how many there are, of how many tiles, and how long these are."""
    whole, rest = divmod(length, SIDE)
    pairs, odd = divmod(whole, 2)
    found = [(0, pairs, 2, SIDE), (2 * pairs, odd, 1, SIDE), (whole, int(rest > 0), 1, rest)]
    return [region for region in found if region[1]]


def add_layout(
    words: Draft, source: str, at: int, operand: Operand, turned: bool, size: tuple[int, int],
    out: int, found: int, scratch: int, adjacent: bool = False, to: str = "work",
) -> None:  # fmt: skip
    """Calls that lay out a matrix.

    Args:
        words: where they are added.
        source: the matrix.
        at: bytes from its beginning to what is laid out.
        operand: how it lies.
        turned: whether numbers that are contiguous come into a column of the tiles.
        size: how many rows or columns, and k.
        out: where the tiles go; one more than needed may be read.
        found: where it goes what was found.
        scratch: memory for a block.
        adjacent: as for `_lay_out`.
        to: what `out` counts from.
    """
    length, depth = size
    along, across = 4, operand.step
    by_k, by_tile = (along, across) if operand.by_k else (across, along)
    pair = 2 * ceil(depth / DEPTH) * PARTS
    before: tuple[str, int] = ("zeros", 0)
    for (tile, pairs, tiles, high), (chunk, chunks, deep) in product(
        _pairs(length), _regions(depth, DEPTH)
    ):
        halves = min(deep, LANES), max(deep - LANES, 0)
        rows, lanes = ((high, high), halves) if operand.by_k else (halves, (high, high))
        first, second = rows[0], rows[1] if halves[1] else 0
        loops = [(pairs, 2 * SIDE * by_tile, pair), (chunks, DEPTH * by_k, 2 * PARTS)]
        if not operand.by_k:  # along what is contiguous
            loops.reverse()
        (outer, outer_step, out_outer), (inner, inner_step, out_inner) = loops
        words.call(
            _lay_out(turned, tiles, first, second, adjacent),
            _LAY_OUT,
            source=(source, at + tile * SIDE * by_tile + chunk * DEPTH * by_k),
            row=operand.step,
            second=LANES * by_k,
            tile=SIDE * by_tile,
            outer=outer,
            outer_step=outer_step,
            inner=inner,
            inner_step=inner_step,
            out=(to, out + tile // 2 * pair + (2 * chunk + tile % 2) * PARTS),
            out_outer=out_outer,
            out_inner=out_inner,
            found_before=before,
            found=("work", found),
            scratch=("work", scratch),
            first_mask=(1 << lanes[0]) - 1,
            second_mask=(1 << lanes[1]) - 1,
            bits=BITS,
        )
        before = ("work", found)


def tiles_size(length: int, depth: int) -> int:
    """Bytes of the tiles of a matrix (length, k)."""
    return ceil(length / (2 * SIDE)) * 2 * ceil(depth / DEPTH) * PARTS


@lru_cache
def _laid(length: int, depth: int, operand: Operand, right: bool) -> Calls:
    """The calls that lay out a matrix, with `_ROOM` to work in."""
    draft = Draft("matrix", "tiles", "work", "zeros")
    turned, size = operand.by_k == right, (length, depth)
    add_layout(draft, "matrix", 0, operand, turned, size, 0, 0, FOUND, to="tiles")
    return draft.done()


#: Bytes for what is found, and for a block.
_ROOM = FOUND + 2 * TILE


class Laid:
    """One side of products, laid out as tiles.

    Args:
        matrix: shape (rows, k), or (k, columns) for the right side; float32.
        right: which side.
        parts: how many threads share the work.

    Attributes:
        address: where the tiles begin: pairs of tiles, for each the chunks of k.
        found: where it is what was found.
    """

    def __init__(self, matrix: Array, *, right: bool = False, parts: int = 1) -> None:
        length, depth = matrix.shape[::-1] if right else matrix.shape
        operand = _lying(matrix, 0 if right else 1)
        if operand is None:  # neither axis is contiguous
            matrix = np.ascontiguousarray(matrix)
            operand = _lying(matrix, 0 if right else 1)
            assert operand
        pieces = cuts(length, parts)
        room = len(pieces) * _ROOM
        size = room + tiles_size(length, depth)
        self._memory = memory.empty(((size + LINE) // 4,), float32)
        work = memory.address(self._memory)
        self.found = work + -work % LINE
        self.address = self.found + room
        shares = []
        for number, piece in enumerate(pieces):
            calls = _laid(piece.stop - piece.start, depth, operand, right)
            words = calls.at(
                memory.address(matrix[:, piece] if right else matrix[piece]),
                self.address + tiles_size(piece.start, depth),
                self.found + number * _ROOM,
                memory.address(ZEROS),
            )
            shares.append((words, calls.count))
        run_calls(shares, short=length * depth <= _FEW)
        first = (self.found - work) // 4
        rooms = self._memory[first : first + room // 4].reshape(len(pieces), -1)
        self._largest, self._sums = rooms[0, :LANES], rooms[0, LANES : 2 * LANES]
        if len(pieces) > 1:
            rooms[:, :LANES].max(axis=0, out=self._largest)
            rooms[:, LANES : 2 * LANES].sum(axis=0, out=self._sums)

    def can_be_split(self) -> bool:
        """Whether tiles take the numbers."""
        return bool(_LOW < self._largest.max() < _HIGH) and not np.isnan(self._sums).any()


class _Side(NamedTuple):
    """How a product with a left side lies."""

    columns: int
    #: The right side; None where it is laid out.
    b: Operand | None
    out_row: int
    start_row: int
    #: Whether it is a @ b, and nothing else; and whether it is a multiple of a @ b.
    plain: bool
    scaled: bool


class _Template(NamedTuple):
    """The calls of products with one left side."""

    calls: Calls
    #: Rows of a block.
    rows: int
    #: The places of words that say whether a block of rows was left out: of each product in turn.
    skipped: list[list[int]]
    #: Numbers of float32 to work in.
    size: int


#: Words of a record; see `Draft.call`.
_Numbers: TypeAlias = dict[str, int | tuple[str, int]]
#: Bytes of a row of two tiles of float32.
_PAIR = 2 * VECTOR


def _moved(words: _Numbers, **distances: int) -> _Numbers:
    """The words with some of the addresses further on."""
    made = dict(words)
    for name, distance in distances.items():
        word = words[name]
        assert isinstance(word, tuple)
        made[name] = (word[0], word[1] + distance)
    return made


#: Names of what a product's addresses count from.
_OWN = ("b", "found_b", "out", "start")


@lru_cache(512)
def _template(
    rows: int, depth: int, a: Operand, sides: tuple[_Side, ...], bounds: int = BOUNDS
) -> _Template:
    """The calls of products of a matrix (rows, k)."""
    chunks = ceil(depth / DEPTH)
    pair = 2 * chunks * PARTS
    own = [f"{name} {number}" for number in range(len(sides)) for name in _OWN]
    draft = Draft("a", "work", "zeros", "shapes", "alpha", *own)
    free = 0
    of_b: list[tuple[str, int]] = []
    found_b: list[tuple[str, int]] = []
    for number, side in enumerate(sides):
        if side.b is None:
            of_b.append((f"b {number}", 0))
            found_b.append((f"found_b {number}", 0))
        else:
            of_b.append(("work", free + FOUND))
            found_b.append(("work", free))
            free += FOUND + tiles_size(side.columns, depth)
    block = min(_ROWS, _NUMBERS // (min(depth, _K) * SIDE) * SIDE)
    found_a, of_a = free, free + FOUND
    scratch = of_a + tiles_size(min(rows, block), depth)
    for number, side in enumerate(sides):
        if side.b is not None:
            size = (side.columns, depth)
            to = of_b[number][1]
            where = (to, found_b[number][1], scratch)
            add_layout(draft, f"b {number}", 0, side.b, side.b.by_k, size, *where)
    by_row = 4 if not a.by_k else a.step
    skipped: list[list[int]] = [[] for _ in sides]
    for first in range(0, rows, block):
        count = min(block, rows - first)
        at = first * by_row
        add_layout(draft, "a", at, a, not a.by_k, (count, depth), of_a, found_a, scratch)
        for number, side in enumerate(sides):
            place = 0
            base, start_b = of_b[number]
            for piece, (row, row_pairs, high) in product(
                parallel.split(chunks, ceil(depth / _K)), _regions(count, 2 * SIDE)
            ):
                further = piece.start > 0
                step = side.out_row if further else side.start_row
                row_at = first + row * 2 * SIDE
                ahead = piece.start * 2 * PARTS
                from_start = f"{'out' if further else 'start'} {number}"
                few = side.columns // _WIDE if high <= SIDE and not side.scaled else 0
                words: _Numbers = {
                    "a": ("work", of_a + row * pair + ahead),
                    "b": (base, start_b + ahead),
                    "pair": pair,
                    "chunks": piece.stop - piece.start,
                    "rows": high,
                    "out": (f"out {number}", row_at * side.out_row),
                    "out_row": side.out_row,
                    "start": (from_start, row_at * step),
                    "start_row": step,
                    "scratch": ("work", scratch),
                    "found_a": ("work", found_a),
                    "found_b": found_b[number],
                    "bounds": bounds,
                    "parts": 2 * PARTS,
                    "one": VECTOR,
                    "shapes": ("shapes", 0),
                    "skipped": 0,
                }
                record = _FEW_ROWS
                if few:
                    place = draft.call(
                        _multiply_few(), record, groups=few, four=4 * VECTOR, **words
                    )
                words |= {
                    "out_tile": side.out_row * SIDE,
                    "out_pair": side.out_row * 2 * SIDE,
                    "start_pair": step * 2 * SIDE,
                    "alpha": ("alpha", 0),
                    "two": 2 * VECTOR,
                    "row_pairs": row_pairs,
                }
                for column, column_pairs, wide in _groups(side.columns, 2 * few):
                    # Sums of a block begin at 0: their errors are those of numbers as large as its
                    # own.
                    whole = side.plain and not further and high == wide == 2 * SIDE
                    record = _MULTIPLY
                    place = draft.call(
                        _multiply(whole),
                        record,
                        column_pairs=column_pairs,
                        masks=(1 << wide) - 1,
                        **_moved(words, b=column * pair, out=column * _PAIR, start=column * _PAIR),
                    )
            if side.columns:
                skipped[number].append(place + record.names.index("skipped"))
    return _Template(draft.done(), block, skipped, (scratch + 4 * TILE + LINE) // 4)


@lru_cache
def _nothing(columns: int) -> Array:
    """What a product is added to that isn't added to anything."""
    return np.zeros(columns, float32)


#: Multiply-adds up to which products are short, and keep the GIL; and numbers that are laid out.
_SHORT, _FEW = 1 << 24, 1 << 17
#: Rows for a thread from which it gets rows, not columns; numbers of a right side that threads lay
#: out together.
_LEAST_ROWS, SHARED_FROM = 256, 1 << 17


def _lying(matrix: Array, by_k_axis: int) -> Operand | None:
    """How a matrix lies; None where neither axis is contiguous."""
    strides = matrix.strides
    for axis in (by_k_axis, 1 - by_k_axis):
        if strides[axis] == 4 and strides[1 - axis] > 0:
            return Operand(strides[1 - axis], axis == by_k_axis)
    return None


class Product(NamedTuple):
    """What is made with a left side: out = start + alpha * a @ b.

    Attributes:
        b: shape (k, columns), float32, one of its axes contiguous.
        out: shape (rows, columns), contiguous rows; shares no memory with a or b.
        start: shape (columns,), or (rows, columns) with contiguous rows, which may be `out`; None
            for zeros.
        laid: b laid out, if it is.
    """

    b: Array
    out: Array
    start: Array | None = None
    laid: Laid | None = None


#: Rows and columns of a product that aren't made, and are as they were.
_Block = tuple[slice, slice]


class _Piece:
    """A part of products, as the calls that make it: some rows, or some columns of each."""

    def __init__(
        self, a: Array, products: Sequence[Product], alpha: int, rows: slice, columns: list[slice]
    ) -> None:
        self.rows, self.columns = rows, columns
        depth, of_a = a.shape[1], _lying(a, 1)
        assert of_a
        own: list[int] = []
        sides = []
        self._kept = []
        for (b, out, start, laid), chosen in zip(products, columns, strict=True):
            plain = start is None and alpha == _ONE
            width = chosen.stop - chosen.start
            begin = _nothing(width) if start is None else start[..., chosen]
            if begin.ndim == 2:
                begin = begin[rows]
            if laid is None:
                of_b, found, side = _lying(b, 0), 0, memory.address(b[:, chosen])
            else:  # columns begin at a whole pair of tiles
                of_b, found = None, laid.found
                side = laid.address + tiles_size(chosen.start, depth)
            by_row = begin.strides[0] if begin.ndim == 2 else 0
            sides.append(_Side(width, of_b, out.strides[0], by_row, plain, alpha != _ONE))
            own += (side, found, memory.address(out[rows, chosen]), memory.address(begin))
            self._kept.append(begin)
        height = rows.stop - rows.start
        self.template = template = _template(height, depth, of_a, tuple(sides))
        self.work = memory.empty((template.size,), float32)
        work = memory.address(self.work)
        self.words = template.calls.at(
            memory.address(a[rows]),
            work + -work % LINE,
            *(memory.address(ZEROS), memory.address(SHAPES), alpha, *own),
        )

    def left_out(self, number: int) -> list[_Block]:
        """Blocks of a product."""
        skipped = self.words[self.template.skipped[number]]
        if not skipped.any():
            return []
        first, last, block = self.rows.start, self.rows.stop, self.template.rows
        begins = [first + n * block for n in np.flatnonzero(skipped).tolist()]
        return [(slice(at, min(at + block, last)), self.columns[number]) for at in begins]


def multiply_each(
    a: Array, products: Sequence[Product], *, alpha: float = 1.0, parts: int = 1
) -> list[list[_Block]]:
    """Make products with one left side, but for blocks that tiles can't make.

    Args:
        a: shape (rows, k), float32 as the others, one of its axes contiguous.
        products: the others.
        alpha: the factor.
        parts: how many threads share the work.

    Returns:
        For each product the blocks that aren't made.
    """
    rows, depth = a.shape
    factor = int.from_bytes(struct.pack("=f", alpha), "little")
    widths = [product.out.shape[1] for product in products]
    whole = [slice(0, width) for width in widths]
    if rows >= min(sum(widths), _LEAST_ROWS * parts):
        if parts > 1:  # else each thread would lay out the whole of the other side for itself
            products = [
                side
                if side.laid or side.b.size < SHARED_FROM
                else side._replace(laid=Laid(side.b, right=True, parts=parts))
                for side in products
            ]
        pieces = [_Piece(a, products, factor, part, whole) for part in cuts(rows, parts)]
    else:
        every = slice(0, rows)
        shares = itertools.zip_longest(
            *(cuts(width, parts) for width in widths), fillvalue=slice(0, 0)
        )
        pieces = [_Piece(a, products, factor, every, list(columns)) for columns in shares]
    short = rows * sum(widths) * depth <= _SHORT
    run_calls([(piece.words, piece.template.calls.count) for piece in pieces], short=short)
    numbers = range(len(products))
    return [[block for piece in pieces for block in piece.left_out(n)] for n in numbers]


#: Bounds that all small numbers are inside.
_SMALL_TOO = int.from_bytes(struct.pack("=2f", -1.0, _HIGH), "little")


def link_product(chain: Chain, a: Array, b: Array, laid: Laid, start: Array, out: Array) -> None:
    """Have each step of a chain make out = start + a @ b.

    What can't be split the chain counts as failed. Numbers may be as small as they like: below
    2⁻¹⁰² they lose their last bits.

    Args:
        chain: the chain.
        a: matrices (rows, k), one for each step.
        b: shape (k, columns).
        laid: b laid out.
        start: matrices (rows, columns), or (columns,) for all rows; may be `out`.
        out: matrices (rows, columns).
    """
    rows, depth = a.shape[-2:]
    of_a = _lying(a[0], 1)
    assert of_a
    by_row = start.strides[-2] if start.ndim > 1 else 0
    side = _Side(b.shape[1], None, out.strides[-2], by_row, plain=False, scaled=False)
    template = _template(rows, depth, of_a, (side,), _SMALL_TOO)
    work = memory.empty((template.size,), float32)
    at = memory.address(work)
    given = [
        memory.address(a),
        at + -at % LINE,
        *(memory.address(ZEROS), memory.address(SHAPES), _ONE, laid.address, laid.found),
        *map(memory.address, (out, start)),
    ]
    growth = np.zeros(len(given) + 1, np.int64)
    for place, stack in ((1, a), (len(given) - 1, out), (len(given), start)):
        growth[place] = stack.strides[0] if stack.ndim == 3 and len(stack) > 1 else 0
    calls = template.calls
    chain.add(
        calls.at(*given),
        growth[calls.bases],
        calls.count,
        failures=template.skipped[0],
        kept=(work, laid),
    )


def cuts(length: int, parts: int) -> list[slice]:
    """Slices of a length, in whole pairs of tiles but for the last one."""
    unit = 2 * SIDE
    units = parallel.split(-(-length // unit), parts)
    return [slice(u.start * unit, min(u.stop * unit, length)) for u in units]


#: Multiply-adds, and rows and columns, and k, from which tiles are ahead.
_FROM, _SHORTEST, _SHALLOWEST = 1 << 21, 64, 32


def suits(a: Array, b: Array, out: Array | None = None) -> bool:
    """Whether tiles make a product of 2-D views, into out or a new array, sooner than a BLAS."""
    (rows, depth), columns = a.shape, b.shape[1]
    return (
        a.dtype is float32
        and rows * columns * depth >= _FROM
        and min(rows, columns) >= _SHORTEST
        and depth >= _SHALLOWEST
        and (out is None or out.strides[1] == out.itemsize)
        and _lying(a, 1) is not None
        and _lying(b, 0) is not None
    )
