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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from itertools import product
from math import ceil
from typing import NamedTuple

import numpy as np

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
from .calls import Draft
from .compiler import LANES, VECTOR
from .program import Record, Writer, program
from .transposition import transpose

#: Rows and columns of a tile of the product; and numbers of k that tiles of bfloat16 have, in
#: pairs: the first 16 beside the others.
SIDE, DEPTH = 16, 32
#: Bytes of a tile, and of the three that are the parts of 16 x 32 numbers.
TILE, PARTS = 1024, 3 * 1024
#: Numbers whose largest is outside of this are left to others.
LOW, HIGH = 2.0**-50, 2.0**50

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
#: Of `vpternlogd`: the first one, or what the others have in common.
_OR_AND = 0xF8


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
            # The last part of a small number may be too small for bfloat16: its low bits go.
            code.vector("vpternlogd", both, source[1], _UPPER, immediate=_OR_AND)
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


# -- multiplying -----------------------------------------------------------------------------

MULTIPLY = Record(
    *("a", "a_pair", "b", "pair", "mixing", "chunks", "row_pairs", "column_pairs", "rows", "masks"),
    *("out", "out_row", "out_pair", "start", "start_row", "start_pair"),
    *("alpha", "scratch", "spare"),
    *("found_a", "found_b", "bounds", "parts", "one", "two", "shapes", "skipped"),
    variables=("columns_left", "rows_left", "out_line", "start_line", "out_step", "start_step"),
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


#: Bytes that `multiply_program` works in: the sums of a pair, and a row of them more.
SCRATCH = 4 * TILE + 2 * VECTOR


@cache
def multiply_program(rows: int) -> Code:
    """Code for out = start + alpha * a @ b of matrices laid out as tiles, two by two.

    While a pair is multiplied, the sums of the one before go to their place, with vectors that have
    nothing else to do then; and what this pair will write to is fetched.

    Args:
        rows: how many rows of sums go to their place with each chunk of k; 0 for pairs that aren't
            whole, whose sums go there at once.
    """
    record = MULTIPLY
    a, out, start, b = R8, R9, R10, RBX
    of_a, of_b, left, spare = RAX, RDX, R11, RCX
    place, line, begin, ahead = R12, RSI, R13, RBP  # of sums that wait, and of what is fetched
    one, two = R15, R14  # bytes from row to row of one tile, and two
    lines = (("out", out, line), ("start", start, begin))

    def load(code: Writer, matrix: str, i: int, part: int) -> None:
        tile, at = (TILES_OF_A[i], of_a) if matrix == "a" else (TILES_OF_B[i], of_b)
        code.load_tile(tile, Memory(at, one, i * PARTS + part * TILE))

    def chunks(code: Writer, count: str, beside: Callable[[], None] = lambda: None) -> None:
        with code.times(left, record[count]):
            beside()
            multiply_chunk(code, partial(load, code))
            code.add(of_a, record["parts"])
            code.add(of_b, record["parts"])

    def mix(code: Writer) -> None:
        """The next row of sums to its place."""
        for j in range(2):
            code.vector("vmovups", j, Memory(begin, offset=VECTOR * j), mask=1 + j, zero=True)
            code.vector("vfmadd231ps", j, 4, Memory(place, offset=VECTOR * j))
            code.store(Memory(line, offset=VECTOR * j), j, 1 + j)
        code.add_register(place, two)
        code.add(line, record["out_step"])
        code.add(begin, record["start_step"])

    def mix_the_rest(code: Writer) -> None:
        code.load(place, record["scratch"])
        with code.times(left, record["rows"]):
            mix(code)

    def fetch(code: Writer, count: int) -> None:
        for _ in range(count):
            code.prefetch_to_write(Memory(ahead))
            code.prefetch_to_write(Memory(ahead, offset=2 * VECTOR - 4))
            code.add(ahead, record["out_row"])

    def pair(code: Writer) -> None:
        """Two by two tiles of the product."""

        def mix_and_fetch() -> None:
            for _ in range(rows):
                mix(code)
            fetch(code, rows)

        code.move(of_a, a)
        code.move(of_b, b)
        code.move(ahead, out)
        for i, j in product(range(2), repeat=2):
            code.clear_tile(SUMS[i][j])
        if rows:
            code.load(place, record["scratch"])
            chunks(code, "mixing", mix_and_fetch)
        else:
            fetch(code, 2 * SIDE)
        chunks(code, "chunks")
        code.load(place, record["scratch"])
        for i, j in product(range(2), repeat=2):
            code.store_tile(Memory(place, two, 2 * TILE * i + VECTOR * j), SUMS[i][j])
        for name, pointer, before in lines:
            code.move(before, pointer)
            code.add_register(pointer, two)
            code.load(spare, record[f"{name}_row"])
            code.keep(record[f"{name}_step"], spare)
        if not rows:
            mix_the_rest(code)

    def write(code: Writer) -> None:
        with tiles_in_use(code, record, one):
            code.load(two, record["two"])
            code.vector("vbroadcastss", 4, record["alpha"])
            masks = record["masks"]
            for j in range(2):
                code.load_mask(1 + j, Memory(masks.base, offset=masks.offset + 2 * j))
            for name, _, before in lines:
                code.load(spare, record[name])
                code.keep(record[f"{name}_line"], spare)
                code.load(before, record["spare"])  # no sums wait yet: to a row that nobody reads
                code.clear(spare)
                code.keep(record[f"{name}_step"], spare)
            code.load(a, record["a"])
            with code.times_kept(record["rows_left"], record["row_pairs"], spare):
                code.load(b, record["b"])
                for name, pointer, _ in lines:
                    code.load(pointer, record[f"{name}_line"])
                with code.times_kept(record["columns_left"], record["column_pairs"], spare):
                    pair(code)
                    code.add(b, record["pair"])
                code.add(a, record["a_pair"])
                for name, _, _ in lines:
                    code.load(spare, record[f"{name}_line"])
                    code.add(spare, record[f"{name}_pair"])
                    code.keep(record[f"{name}_line"], spare)
            if rows:
                mix_the_rest(code)

    return program(write)


FEW_ROWS = Record(
    *("a", "b", "pair", "chunks", "groups", "rows", "out", "out_row", "start", "start_row"),
    *("scratch", "found_a", "found_b", "bounds", "parts", "one", "four", "shapes", "skipped"),
    variables=("groups_left",),
)
#: Tiles side by side in a group, and the columns that they have.
_SIDE_BY_SIDE = 4
WIDE = _SIDE_BY_SIDE * SIDE


@cache
def few_rows_program() -> Code:
    """Code for out = start + a @ b with one tile of rows, by four tiles of columns.

    The right side is read once, and each of its tiles comes from the first-level cache when it is
    wanted again.
    """
    record = FEW_ROWS
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


# -- calls --------------------------------------------------------------------


class Operand(NamedTuple):
    """How a matrix lies."""

    #: Bytes from row to row, or from column to column.
    step: int
    #: Whether what is contiguous are the numbers of k.
    by_k: bool


#: Bytes of what is found of a matrix.
FOUND = 2 * VECTOR
#: The bounds that numbers which can be split are between; and those of small ones, too.
BOUNDS, SMALL_TOO = (int.from_bytes(struct.pack("=2f", low, HIGH), "little") for low in (LOW, -1.0))
ZEROS = np.zeros(2 * VECTOR, np.uint8)


def regions(length: int, unit: int) -> list[tuple[int, int, int]]:
    """Where units begin, how many there are, and how long they are: whole ones, and the rest."""
    whole, rest = divmod(length, unit)
    return [(0, whole, unit)] * bool(whole) + [(whole, 1, rest)] * bool(rest)


def _pairs(length: int) -> list[tuple[int, int, int, int]]:
    """Where pairs of tiles begin, how many there are, of how many tiles, and how long these are."""
    whole, rest = divmod(length, SIDE)
    pairs, odd = divmod(whole, 2)
    found = [(0, pairs, 2, SIDE), (2 * pairs, odd, 1, SIDE), (whole, int(rest > 0), 1, rest)]
    return [region for region in found if region[1]]


def add_layout(
    words: Draft, source: str, at: int, operand: Operand, turned: bool, size: tuple[int, int],
    out: int, found: int, scratch: int, adjacent: bool = False, to: str = "work",
    work: str = "work", more: bool = False,
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
        work: what `found` and `scratch` count from.
        more: keep in mind what was found before.
    """
    length, depth = size
    along, across = 4, operand.step
    by_k, by_tile = (along, across) if operand.by_k else (across, along)
    pair = 2 * ceil(depth / DEPTH) * PARTS
    before = (work, found) if more else ("zeros", 0)
    for (tile, pairs, tiles, high), (chunk, chunks, deep) in product(
        _pairs(length), regions(depth, DEPTH)
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
            found=(work, found),
            scratch=(work, scratch),
            first_mask=(1 << lanes[0]) - 1,
            second_mask=(1 << lanes[1]) - 1,
            bits=BITS,
        )
        before = (work, found)


def tiles_size(length: int, depth: int) -> int:
    """Bytes of the tiles of a matrix (length, k)."""
    return ceil(length / (2 * SIDE)) * 2 * ceil(depth / DEPTH) * PARTS
