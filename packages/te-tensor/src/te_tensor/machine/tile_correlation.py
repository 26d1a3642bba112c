"""The products of `correlation.py` by tiles, read where the images lie, split into parts once.

An image's parts lie place by place, 32 channels at a place in a line of the cache. A tile has the
channels in its columns and places in its rows, so it is read at the place and the offset of the
kernel's element: nothing is copied for each element, and no row of a tile crosses a line.

What belongs to some rows of an image's output is done in one go, and stays in the second-level
cache; a thread goes through its images in a single call.
"""

from __future__ import annotations

from functools import cache, partial
from itertools import pairwise, product
from math import ceil

import numpy as np

from .. import memory
from ..dtypes import Array, int64
from ..executable import Code
from .assembler import R8, R10, R11, R12, R13, R14, R15, RAX, RBX, RCX, RDX, RSI, Memory
from .calls import Draft
from .compiler import LANES, VECTOR
from .program import Record, Writer, program
from .tile_images import SAME, TiledBlock, TiledCalls, add_parts
from .tile_multiply import multiply_chunk
from .tiles import DEPTH, FOUND, LINE, PARTS, SIDE, SUMS, TILE, TILES_OF_A, TILES_OF_B, tiles_in_use
from .transposition import transpose

_CORRELATE = Record(
    *("b", "pair", "image", "image_part", "table", "table_end", "places", "pairs"),
    *("out", "out_step", "back", "bias", "output_pairs", "found_a", "found_b", "bounds"),
    *("parts", "one", "shapes", "scratch", "skipped"),
    variables=("pairs_left", "entry", "outputs_left"),
)
#: Words that `_entries` has for 32 places; and of the masks among them, those for the later rows.
_ENTRY, _LATER = 4, int(np.array([0, -1, 0, -1], np.int16).view(int64)[0])

#: A register of biases.
_BIAS = 20


@cache
def _correlation(rest: int, gaps: bool) -> Code:
    """Code that goes through pairs of tiles of places, and for each through pairs of outputs.

    Args:
        rest: the outputs of the last pair, where these are fewer than 32.
        gaps: there are places between the rows that aren't wanted.
    """
    record = _CORRELATE
    of_a, of_b, b, bias = (RCX, RDX, RSI), RAX, R8, R10
    image, place, target, number, line, one = RBX, R11, R12, R13, R14, R15
    further, back, both = of_a  # once the products are made
    cells = ((Memory(line), Memory(line, back)), (Memory(line, further), Memory(line, both)))

    def load(code: Writer, matrix: str, i: int, part: int) -> None:
        if matrix == "a":
            code.load_tile(TILES_OF_A[i], Memory(of_a[part], one, i * TILE))
        else:
            code.load_tile(TILES_OF_B[i], Memory(of_b, one, i * PARTS + part * TILE))

    def pair(code: Writer, outputs: int) -> None:
        """Two by two tiles: 32 places of 32 outputs, or as many as there are."""
        code.move(of_b, b)
        for i, j in product(range(2), range(2)):
            code.clear_tile(SUMS[i][j])
        code.load(place, record["table"])
        code.load(number, record["table_end"])
        loop = code.here()
        code.load(of_a[0], Memory(place))
        code.add_register(of_a[0], image)
        for before, part in pairwise(of_a):
            code.move(part, before)
            code.add(part, record["image_part"])
        multiply_chunk(code, partial(load, code))
        code.add(of_b, record["parts"])
        code.add_number(place, 8)
        code.compare(place, number)
        code.jump("below", loop)
        code.load(place, record["scratch"])
        for i, j in product(range(2), range(2)):
            code.store_tile(Memory(place, one, TILE * (2 * i + j)), SUMS[i][j])
        code.load(number, record["entry"])
        code.load(further, Memory(number, offset=16))
        code.load(back, record["back"])
        code.move(both, further)
        code.add_register(both, back)
        for j, i in product(range(2), range(2)):
            if outputs > SIDE * j:
                turn(code, i, j, min(SIDE, outputs - SIDE * j))

    def turn(code: Writer, i: int, j: int, outputs: int) -> None:
        """A tile of the output, whose rows are places: to the outputs' rows, with their biases."""
        for n in range(SIDE):
            code.vector("vmovups", n, Memory(place, offset=TILE * (2 * i + j) + VECTOR * n))
        registers = transpose(code)
        code.move(line, target)
        for n in range(outputs):
            register = registers[n]
            code.vector("vbroadcastss", _BIAS, Memory(bias, offset=4 * (SIDE * j + n)))
            code.vector("vaddps", register, register, _BIAS)
            for at, cell in enumerate(cells[i][: 1 + gaps]):
                code.store(cell, register, 1 + 2 * i + at)
            code.add(line, record["out_step"])
        if i:
            code.move(target, line)

    def outputs(code: Writer) -> None:
        """All outputs of 32 places."""
        entry = further
        code.load(entry, record["entry"])
        code.load(image, Memory(entry))
        code.add(image, record["image"])
        code.load(target, Memory(entry, offset=8))
        code.add(target, record["out"])
        for mask in range(4):
            code.load_mask(1 + mask, Memory(entry, offset=24 + 2 * mask))
        code.load(b, record["b"])
        code.load(bias, record["bias"])
        with code.times_kept(record["outputs_left"], record["output_pairs"], number):
            pair(code, 2 * SIDE)
            code.add(b, record["pair"])
            for _ in range(2):
                code.add_number(bias, 4 * SIDE)
        if rest:
            pair(code, rest)
        code.load(number, record["entry"])
        code.add_number(number, 8 * _ENTRY)
        code.keep(record["entry"], number)

    def write(code: Writer) -> None:
        with tiles_in_use(code, record, one):
            code.load(number, record["places"])
            code.keep(record["entry"], number)
            with code.times_kept(record["pairs_left"], record["pairs"], number):
                outputs(code)

    return program(write)


def _entries(block: TiledBlock) -> Array:
    """For each 32 places of a block: where they are read and written, and which of them are wanted.

    Two vectors of places are written to up to two rows each, the later one so much further back as
    there are places between rows that aren't wanted. The words are the bytes from the image's parts
    and from the output's rows on, from the first vector's place to the second's, and four masks.
    """
    rows, width, line = block.rows, block.width, block.frame.line
    length = (rows - 1) * line + width
    if width % (2 * LANES) and rows * ceil(width / (2 * LANES)) > ceil(length / (2 * LANES)):
        starts = np.arange(0, length, 2 * LANES)
        ends = np.full(len(starts), length)
    else:
        beside = np.arange(0, width, 2 * LANES)
        begins = np.arange(rows)[:, None] * line
        starts = (begins + beside).reshape(-1)
        ends = (begins + np.full(len(beside), width)).reshape(-1)
    vectors = starts[:, None] + (0, LANES)
    lanes = vectors[..., None] + np.arange(LANES)
    row, of_lane = vectors // line, lanes // line
    wanted = (lanes % line < width) & (lanes < ends[:, None, None])
    out = vectors - row * (line - width)
    masks = [wanted & (of_lane == row[..., None] + further) for further in range(2)]
    bits = [(mask * (1 << np.arange(LANES))).sum(-1) for mask in masks]
    entries = np.empty((len(starts), _ENTRY), int64)
    entries[:, 0] = LINE * starts
    entries[:, 1] = 4 * out[:, 0]
    entries[:, 2] = 4 * (out[:, 1] - out[:, 0])
    sixteen = [bits[further][:, vector] for vector in range(2) for further in range(2)]
    entries[:, 3] = np.stack(sixteen, axis=-1).astype(np.uint16).view(int64)[:, 0]
    return entries


def correlation_calls(block: TiledBlock) -> TiledCalls:
    """out[o, p] = bias[o] + Σ weights[o, k, c] · image[c, p + offsets[k]] for places p of a block.

    Bases are the image and the output (float32), the bias, the `Laid` weights' `address` and
    `found`, and memory to work in. C is a multiple of 32, and a row of the output at least 16
    elements wide.
    """
    draft = Draft("image", "out", "bias", "weights", "found", "work", "zeros", "shapes")
    planes, scratch = add_parts(draft, block, FOUND, 0, lines=True)
    chunks = np.arange(block.channels // DEPTH) * planes.row
    table = (LINE * np.array(block.offsets)[:, None] + chunks).astype(int64).reshape(-1)
    entries = _entries(block)
    pairs, rest = divmod(block.outputs, 2 * SIDE)
    gap = block.frame.line - block.width
    at = draft.call(
        _correlation(rest, bool((entries[:, 3] & _LATER).any())),
        _CORRELATE,
        b=("weights", 0),
        pair=len(table) * 2 * PARTS,
        image=("work", FOUND),
        image_part=planes.part,
        table=memory.address(table),
        table_end=memory.address(table) + table.nbytes,
        places=memory.address(entries),
        pairs=len(entries),
        out=("out", 4 * block.out),
        out_step=4 * block.out_plane,
        back=-4 * gap,
        bias=("bias", 0),
        output_pairs=pairs,
        found_a=("work", 0),
        found_b=("found", 0),
        scratch=("work", scratch),
        **SAME,
    )
    skipped = at + _CORRELATE.names.index("skipped")
    return TiledCalls(draft.done(), skipped, scratch + 4 * TILE, (table, entries))
