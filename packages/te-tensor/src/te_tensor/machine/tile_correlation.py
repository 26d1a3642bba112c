"""The products of `correlation.py` by tiles, read where the images lie, split into parts once.

A tile of the images has pairs of channels in its rows and places in its columns. Rows of a tile
may lie as far apart as one likes, so the channels of an image, in parts and in pairs, are read at
the place and the offset of the kernel's element: nothing is copied for each element.
"""

from __future__ import annotations

from functools import cache, partial
from itertools import pairwise, product
from math import ceil

import numpy as np

from .. import memory
from ..dtypes import Array, float32, int64
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
from .compiler import LANES, VECTOR
from .program import Record, Writer, call, last_mask, program
from .tiles import (
    BITS,
    BOUNDS,
    DEPTH,
    FOUND,
    LINE,
    PARTS,
    SHAPES,
    SIDE,
    SUMS,
    TILE,
    TILES_OF_A,
    TILES_OF_B,
    ZEROS,
    Laid,
    begin_parts,
    check,
    end_parts,
    multiply_chunk,
    write_parts,
)

#: Elements behind a channel that the last tile of a row may read, and doesn't use.
_BEHIND = 2 * SIDE
#: Elements of float32 that shouldn't lie between rows of a tile: their lines would contend for the
#: same places of the cache.
_UNLUCKY = 128


# -- the parts of an image -------------------------------------------------------------------

_SPLIT = Record(
    *("source", "source_row", "second", "out", "out_row", "out_part", "rows", "vectors", "mask"),
    *("bits", "found_before", "found"),
)


@cache
def _split() -> Code:
    """Code that writes the parts of pairs of channels, which are rows of numbers."""
    record = _SPLIT
    first, second, parts = RSI, RBX, (R8, R9, R10)
    source, out = R11, R12

    def vector(code: Writer, mask: int) -> None:
        for number, start in enumerate((first, second)):
            code.vector("vmovups", number, Memory(start), mask=mask, zero=bool(mask))
            code.add_number(start, VECTOR)
        write_parts(code, [Memory(part) for part in parts])
        for part in parts:
            code.add_number(part, VECTOR)

    def write(code: Writer) -> None:
        code.load_mask(1, record["mask"])
        begin_parts(code, record)
        code.load(source, record["source"])
        code.load(out, record["out"])
        with code.times(R14, record["rows"]):
            code.move(first, source)
            code.move(second, source)
            code.add(second, record["second"])
            code.move(parts[0], out)
            for before, part in pairwise(parts):
                code.move(part, before)
                code.add(part, record["out_part"])
            with code.times(R15, record["vectors"]):
                vector(code, 0)
            vector(code, 1)
            code.add(source, record["source_row"])
            code.add(out, record["out_row"])
        end_parts(code, record)

    return program(write)


class Split:
    """The parts of an image's channels, in pairs: channels c and c + 16 of each 32.

    Args:
        image: shape (C, …), C a multiple of 32, each channel contiguous.
    """

    def __init__(self, image: Array) -> None:
        channels, length = len(image), image[0].size
        vectors = ceil(length / LANES)
        #: Elements from one row to the next.
        self.row = vectors * LANES + _BEHIND
        self.row += LANES if self.row % _UNLUCKY == 0 else 0
        self.chunk = 3 * SIDE * self.row
        self.memory = memory.empty((channels // DEPTH * self.chunk + (FOUND + LINE) // 4,), float32)
        found = memory.address(self.memory)
        self.found = found + -found % LINE
        self.address = self.found + FOUND
        before = memory.address(ZEROS)
        step = image.strides[0]
        for number in range(channels // DEPTH):
            record = _SPLIT.pack(
                *(memory.address(image) + number * DEPTH * step, step, SIDE * step),
                *(self.address + 4 * number * self.chunk, 4 * self.row, 4 * SIDE * self.row),
                *(SIDE, vectors - 1, last_mask(length), BITS, before, self.found),
            )
            call(_split(), record)
            before = self.found


# -- the correlation -------------------------------------------------------------------------

_CORRELATE = Record(
    *("a", "pair", "image", "image_row", "image_step", "image_part", "table", "table_end"),
    *("out", "out_row", "out_step", "bias", "rows", "column_pairs", "row_pairs", "last_rows"),
    *("mask", "whole", "found_a", "found_b", "bounds", "parts", "one", "two", "both", "shapes"),
    *("scratch", "skipped"),
    variables=("rows_left", "columns_left", "pairs_left", "image_line", "out_line"),
)


@cache
def _correlation(rest: bool) -> Code:
    """Code that goes through rows of places, pairs of tiles of these, and pairs of outputs.

    Args:
        rest: the outputs of the last pair are fewer.
    """
    record = _CORRELATE
    of_a, of_b, a, out, bias = RAX, (RCX, RDX, RSI), R8, R9, R10
    image, place, target, number, count, step, one = RBX, R11, R12, R13, RBP, R14, R15

    def load(code: Writer, matrix: str, i: int, part: int) -> None:
        if matrix == "a":
            code.load_tile(TILES_OF_A[i], Memory(of_a, one, i * PARTS + part * TILE))
        else:
            code.load_tile(TILES_OF_B[i], Memory(of_b[part], step, i * VECTOR))

    def pair(code: Writer, rows: str) -> None:
        """Two by two tiles: 32 outputs, or as many as there are, of 32 places."""
        code.move(of_a, a)
        for i, j in product(range(2), range(2)):
            code.clear_tile(SUMS[i][j])
        code.load(place, record["table"])
        code.load(number, record["table_end"])
        loop = code.here()
        code.load(of_b[0], Memory(place))
        code.add_register(of_b[0], image)
        for before, part in pairwise(of_b):
            code.move(part, before)
            code.add(part, record["image_part"])
        multiply_chunk(code, partial(load, code))
        code.add(of_a, record["parts"])
        code.add_number(place, 8)
        code.compare(place, number)
        code.jump("below", loop)
        code.load(place, record["scratch"])
        code.load(number, record["two"])
        for i, j in product(range(2), range(2)):
            code.store_tile(Memory(place, number, 2 * TILE * i + VECTOR * j), SUMS[i][j])
        code.load(count, record[rows])
        loop = code.here()
        code.vector("vbroadcastss", 0, Memory(bias))
        for j in range(2):
            code.vector("vaddps", 1 + j, 0, Memory(place, offset=VECTOR * j))
            code.store(Memory(target, offset=VECTOR * j), 1 + j, 1 + j)
        code.add_number(bias, 4)
        code.add(target, record["out_step"])
        code.add(place, record["two"])
        code.add_number(count, -1)
        code.jump("not zero", loop)

    def outputs(code: Writer, mask: str) -> None:
        """All outputs of 32 places."""
        place = record[mask]
        for j in range(2):
            code.load_mask(1 + j, Memory(place.base, offset=place.offset + 2 * j))
        code.load(a, record["a"])
        code.load(bias, record["bias"])
        code.move(target, out)
        with code.times_kept(record["pairs_left"], record["row_pairs"], number):
            pair(code, "both")
            code.add(a, record["pair"])
        if rest:
            pair(code, "last_rows")

    def write(code: Writer) -> None:
        wrong = [*check(code, record, "found_a"), *check(code, record, "found_b")]
        code.load(RAX, record["shapes"])
        code.shape_tiles(Memory(RAX))
        code.load(one, record["one"])
        code.load(step, record["image_step"])
        for name in ("image", "out"):
            code.load(number, record[name])
            code.keep(record[f"{name}_line"], number)
        with code.times_kept(record["rows_left"], record["rows"], number):
            code.load(image, record["image_line"])
            code.load(out, record["out_line"])
            with code.times_kept(record["columns_left"], record["column_pairs"], number):
                outputs(code, "whole")
                code.add(image, record["two"])
                code.add(out, record["two"])
            outputs(code, "mask")
            for name in ("image", "out"):
                code.load(number, record[f"{name}_line"])
                code.add(number, record[f"{name}_row"])
                code.keep(record[f"{name}_line"], number)
        code.leave_tiles()
        code.clear(RAX)
        code.add_number(RAX, 0)
        done = code.jump("zero")
        for jump in wrong:
            code.land(jump)
        code.load(RAX, record["one"])
        code.keep(record["skipped"], RAX)
        code.land(done)

    return program(write)


def correlate_by_tiles(
    image: Split, row: int, offsets: Array, weights: Laid, bias: Array, out: Array
) -> bool:
    """out[o, y, x] = bias[o] + Σ weights[o, k, c] · image[c, y, x + offsets[k]].

    Args:
        image: the parts of an image (C, H, …).
        row: elements from row to row of it.
        offsets: of the elements of the kernel, in elements of a channel, int64.
        weights: shape (O, K · C), `lay_out`.
        bias: shape (O,), contiguous.
        out: shape (O, rows, elements), contiguous rows.

    Returns:
        Whether it is made: not if there are numbers that tiles can't split.
    """
    outputs, rows, columns = out.shape
    chunks = weights.depth // len(offsets) // DEPTH
    channels = np.arange(chunks) * image.chunk
    table = (4 * (offsets[:, None] + channels)).astype(int64).reshape(-1)
    scratch = memory.empty((TILE + LINE // 4,), float32)
    at_table, at_scratch = memory.address(table), memory.address(scratch)
    pairs, rest = divmod(outputs, 2 * SIDE)
    ahead, last = divmod(columns - 1, 2 * SIDE)
    record = np.frombuffer(
        _CORRELATE.pack(
            *(weights.address, len(table) * 2 * PARTS, image.address, 4 * row, 4 * image.row),
            *(4 * SIDE * image.row, at_table, at_table + table.nbytes),
            *(memory.address(out), out.strides[1], out.strides[0], memory.address(bias), rows),
            *(ahead, pairs, rest, (2 << last) - 1, (1 << 2 * LANES) - 1),
            *(weights.found, image.found, BOUNDS, 2 * PARTS, VECTOR, 2 * VECTOR, 2 * SIDE),
            *(memory.address(SHAPES), at_scratch + -at_scratch % LINE, 0),
        ),
        int64,
    ).copy()
    call(_correlation(rest > 0), memory.address(record))
    return not record[-1]
