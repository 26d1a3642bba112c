"""How a matrix is laid out as tiles of bfloat16: blocks of 16 x 32 numbers as their three parts."""

from __future__ import annotations

import struct
from functools import cache, lru_cache
from itertools import product
from math import ceil
from typing import NamedTuple, TypeAlias

from ..executable import Code
from .assembler import R8, R9, R10, R11, R14, R15, RAX, RBX, RCX, RDX, RSI, Memory
from .calls import Calls, Draft
from .compiler import LANES, VECTOR
from .program import Record, Writer, program
from .tiles import DEPTH, FOUND, PARTS, SIDE, TILE, Operand, regions
from .transposition import transpose

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


def _pairs(length: int) -> list[tuple[int, int, int, int]]:
    """Where pairs of tiles begin, how many there are, of how many tiles, and how long these are."""
    whole, rest = divmod(length, SIDE)
    pairs, odd = divmod(whole, 2)
    found = [(0, pairs, 2, SIDE), (2 * pairs, odd, 1, SIDE), (whole, int(rest > 0), 1, rest)]
    return [region for region in found if region[1]]


#: An address of a draft: its base, and the distance from that.
Place: TypeAlias = tuple[str, int]


class Layout(NamedTuple):
    """A matrix that is to be laid out.

    Attributes:
        source: the matrix.
        operand: how it lies.
        turned: whether numbers that are contiguous come into a column of the tiles.
        length: how many rows or columns.
        depth: how many k.
        tiles: where they go; one more than needed may be read.
        found: where it goes what was found.
        scratch: memory for a block.
        adjacent: as for `_lay_out`.
    """

    source: Place
    operand: Operand
    turned: bool
    length: int
    depth: int
    tiles: Place
    found: Place
    scratch: Place
    adjacent: bool = False

    def add(self, draft: Draft, *, more: bool = False) -> None:
        """Add the calls.

        Args:
            draft: where they are written.
            more: keep in mind what was found before.
        """
        operand = self.operand
        along, across = 4, operand.step
        by_k, by_tile = (along, across) if operand.by_k else (across, along)
        pair = 2 * ceil(self.depth / DEPTH) * PARTS
        before = self.found if more else ("zeros", 0)
        for (tile, pairs, tiles, high), (chunk, chunks, deep) in product(
            _pairs(self.length), regions(self.depth, DEPTH)
        ):
            halves = min(deep, LANES), max(deep - LANES, 0)
            rows, lanes = ((high, high), halves) if operand.by_k else (halves, (high, high))
            first, second = rows[0], rows[1] if halves[1] else 0
            loops = [(pairs, 2 * SIDE * by_tile, pair), (chunks, DEPTH * by_k, 2 * PARTS)]
            if not operand.by_k:  # along what is contiguous
                loops.reverse()
            (outer, outer_step, out_outer), (inner, inner_step, out_inner) = loops
            draft.call(
                _lay_out(self.turned, tiles, first, second, self.adjacent),
                _LAY_OUT,
                source=_further(self.source, tile * SIDE * by_tile + chunk * DEPTH * by_k),
                row=operand.step,
                second=LANES * by_k,
                tile=SIDE * by_tile,
                outer=outer,
                outer_step=outer_step,
                inner=inner,
                inner_step=inner_step,
                out=_further(self.tiles, tile // 2 * pair + (2 * chunk + tile % 2) * PARTS),
                out_outer=out_outer,
                out_inner=out_inner,
                found_before=before,
                found=self.found,
                scratch=self.scratch,
                first_mask=(1 << lanes[0]) - 1,
                second_mask=(1 << lanes[1]) - 1,
                bits=BITS,
            )
            before = self.found


#: Bytes for what is found, and for a block.
ROOM = FOUND + 2 * TILE


@lru_cache
def layout_calls(length: int, depth: int, operand: Operand) -> Calls:
    """The calls that lay out a right side, with `ROOM` to work in, where it begins with `FOUND`.

    Bases are the matrix, its tiles, memory to work in, and zeros.
    """
    draft = Draft("matrix", "tiles", "work", "zeros")
    Layout(
        *(("matrix", 0), operand, operand.by_k, length, depth),
        *(("tiles", 0), ("work", 0), ("work", FOUND)),
    ).add(draft)
    return draft.done()


def _further(place: Place, distance: int) -> Place:
    return place[0], place[1] + distance
