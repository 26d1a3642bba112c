"""Sums over the places of images by tiles: the gradients of convolutions' kernels."""

from __future__ import annotations

from functools import cache, partial
from itertools import pairwise, product
from math import ceil

import numpy as np

from .. import memory
from ..dtypes import int64
from ..executable import Code
from . import placement
from .assembler import R9, R10, R11, R12, R13, R14, R15, RAX, RBP, RBX, RCX, RDX, RSI, Memory
from .calls import Draft
from .compiler import LANES, VECTOR
from .placement import PLACE, Frame
from .program import Record, Writer, program
from .tile_images import SAME, TiledBlock, TiledCalls, add_parts
from .tile_layout import Layout
from .tile_multiply import multiply_chunk
from .tiles import (
    DEPTH,
    FOUND,
    LINE,
    PARTS,
    SIDE,
    SUMS,
    TILE,
    TILES_OF_A,
    TILES_OF_B,
    Operand,
    tiles_in_use,
    tiles_size,
)

_PLACES = Record(
    *("image", "image_pair", "image_tile", "image_row", "image_part", "image_block"),
    *("grad", "grad_pair", "grad_block", "table", "elements", "blocks", "row_pairs"),
    *("column_pairs", "chunks", "out", "out_pair", "out_row", "found_a", "found_b", "bounds"),
    *("parts", "one", "two", "both", "shapes", "scratch", "skipped"),
    variables=(
        *("blocks_left", "elements_left", "rows_left", "columns_left"),
        *("image_at", "grad_at", "element", "line"),
    ),
)
#: Chunks of places that are summed up by themselves.
_CHUNKS = 16


@cache
def _places() -> Code:
    """Code for each block of places, each element of the kernel, and each two by two tiles."""
    record = _PLACES
    place, number, count = R12, R13, RBP  # between the products
    of_a, of_b, left, step, one = ((RAX, RCX, RDX), (R12, R13, RBP)), RSI, R11, R14, R15
    grad, out, base = R9, R10, RBX

    def load(code: Writer, matrix: str, i: int, part: int) -> None:
        if matrix == "a":
            code.load_tile(TILES_OF_A[i], Memory(of_a[i][part], step))
        else:
            code.load_tile(TILES_OF_B[i], Memory(of_b, one, i * PARTS + part * TILE))

    def pair(code: Writer) -> None:
        """Two by two tiles: 32 channels of 32 outputs, added to what is there."""
        for i, parts in enumerate(of_a):
            code.move(parts[0], base)
            if i:
                code.add(parts[0], record["image_tile"])
            for before, part in pairwise(parts):
                code.move(part, before)
                code.add(part, record["image_part"])
        code.move(of_b, grad)
        for i, j in product(range(2), range(2)):
            code.clear_tile(SUMS[i][j])
        with code.times(left, record["chunks"]):
            multiply_chunk(code, partial(load, code))
            for part in (*of_a[0], *of_a[1]):
                code.add_number(part, VECTOR)
            code.add(of_b, record["parts"])
        code.load(place, record["scratch"])
        code.load(number, record["two"])
        for i, j in product(range(2), range(2)):
            code.store_tile(Memory(place, number, 2 * TILE * i + VECTOR * j), SUMS[i][j])
        code.load(count, record["both"])
        code.move(number, out)
        loop = code.here()
        for j in range(2):
            code.vector("vmovups", j, Memory(place, offset=VECTOR * j))
            code.vector("vaddps", j, j, Memory(number, offset=VECTOR * j))
            code.store(Memory(number, offset=VECTOR * j), j)
        code.add(number, record["out_row"])
        code.add(place, record["two"])
        code.add_number(count, -1)
        code.jump("not zero", loop)

    def elements(code: Writer) -> None:
        """All of a block of places."""
        code.load(number, record["table"])
        code.keep(record["element"], number)
        code.load(number, record["out"])
        code.keep(record["line"], number)
        with code.times_kept(record["elements_left"], record["elements"], number):
            code.load(number, record["element"])
            code.load(base, Memory(number))
            code.add_number(number, 8)
            code.keep(record["element"], number)
            code.add(base, record["image_at"])
            with code.times_kept(record["rows_left"], record["row_pairs"], number):
                code.load(grad, record["grad_at"])
                code.load(out, record["line"])
                with code.times_kept(record["columns_left"], record["column_pairs"], number):
                    pair(code)
                    code.add(grad, record["grad_pair"])
                    code.add(out, record["two"])
                code.add(base, record["image_pair"])
                code.load(number, record["line"])
                code.add(number, record["out_pair"])
                code.keep(record["line"], number)

    def write(code: Writer) -> None:
        with tiles_in_use(code, record, one):
            code.load(step, record["image_row"])
            for name in ("image", "grad"):
                code.load(number, record[name])
                code.keep(record[f"{name}_at"], number)
            with code.times_kept(record["blocks_left"], record["blocks"], number):
                elements(code)
                for name in ("image", "grad"):
                    code.load(number, record[f"{name}_at"])
                    code.add(number, record[f"{name}_block"])
                    code.keep(record[f"{name}_at"], number)

    return program(write)


def places_calls(block: TiledBlock) -> TiledCalls:
    """out[k, c, o] += Σ grad[o, p] · image[c, p + offsets[k]] over the places p of a block.

    Bases are the image, the gradient of the output, out (contiguous) and memory to work in; C and
    O are multiples of 32.
    """
    draft = Draft("image", "grad", "out", "work", "zeros", "shapes")
    frame, outputs = block.frame, block.outputs
    planes, laid = add_parts(draft, block, 2 * FOUND, 0, lines=False)
    places = block.rows * frame.line if block.rows > 1 else block.width
    grads = laid + tiles_size(outputs, places)
    scratch = grads
    source, step = ("grad", 4 * block.out), 4 * block.out_plane
    if block.rows > 1 and frame.line > block.width:
        rows = Frame(block.rows, block.width, block.width, block.out_plane, 0, frame.line, places)
        steps = rows.steps(places, LANES, VECTOR)
        draft.call(
            placement.place(True),
            PLACE,
            source=source,
            out=("work", grads),
            planes=outputs,
            **steps,
        )
        source, step = ("work", grads), 4 * places
        scratch += -(-4 * (outputs * places + LANES) // LINE) * LINE
    operand = Operand(step, by_k=True)
    Layout(
        *(source, operand, True, outputs, places),
        *(("work", laid), ("work", FOUND), ("work", scratch)),
        adjacent=True,
    ).add(draft)
    table = (2 * np.array(block.offsets)).astype(int64)
    chunks = ceil(places / DEPTH)
    blocks, rest = divmod(chunks, _CHUNKS)
    skipped = 0
    for first, count, length in ((0, blocks, _CHUNKS), (blocks * _CHUNKS, 1, rest)):
        if count * length:
            at = draft.call(
                _places(),
                _PLACES,
                image=("work", 2 * FOUND + first * 2 * DEPTH),
                image_pair=2 * SIDE * planes.row,
                image_tile=SIDE * planes.row,
                image_row=planes.row,
                image_part=planes.part,
                image_block=2 * DEPTH * length,
                grad=("work", laid + first * 2 * PARTS),
                grad_pair=chunks * 2 * PARTS,
                grad_block=length * 2 * PARTS,
                table=memory.address(table),
                elements=len(table),
                blocks=count,
                row_pairs=block.channels // DEPTH,
                column_pairs=outputs // DEPTH,
                chunks=length,
                out=("out", 0),
                out_pair=4 * 2 * SIDE * outputs,
                out_row=4 * outputs,
                found_a=("work", 0),
                found_b=("work", FOUND),
                scratch=("work", scratch),
                two=2 * VECTOR,
                both=2 * SIDE,
                **SAME,
            )
            skipped = at + _PLACES.names.index("skipped")
    return TiledCalls(draft.done(), skipped, scratch + 4 * TILE, (table,))
