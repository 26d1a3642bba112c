"""The products of `correlation.py` by tiles, read where the images lie, split into parts once.

An image's parts lie place by place, 32 channels at a place in a line of the cache. A tile has the
channels in its columns and places in its rows, so it is read at the place and the offset of the
kernel's element: nothing is copied for each element, and no row of a tile crosses a line.

What belongs to some rows of an image's output is done in one go, and stays in the second-level
cache; a thread goes through its images in a single call.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from itertools import pairwise, product
from math import ceil
from typing import NamedTuple

import numpy as np

from .. import memory
from ..dtypes import Array, int64
from ..executable import Code
from . import placement
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
from .calls import Calls, Draft
from .compiler import LANES, VECTOR
from .placement import OUTS, PLACE, PLACING, SOURCES, Frame, each_plane
from .program import Record, Writer, program
from .tile_layout import BITS, Layout, begin_parts, end_parts, write_parts
from .tile_multiply import multiply_chunk
from .tiles import (
    BOUNDS,
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
from .transposition import transpose

#: Elements behind a plane that the last tile may read and doesn't use, beside the places behind
#: a row.
_BEHIND = 2 * SIDE
#: Bytes that shouldn't lie between rows of a tile: their lines would contend for the same places
#: of the cache.
_UNLUCKY = 512


class TiledBlock(NamedTuple):
    """Some rows of an image's correlation. Numbers are of elements, but for counts."""

    channels: int
    outputs: int
    #: How an image's rows are read, where its first one begins, and where they come in planes.
    frame: Frame
    source: int
    #: Rows of the output, elements of each, and from one output's plane to the next.
    rows: int
    width: int
    out_plane: int
    #: Where these rows begin in the output.
    out: int
    #: From a place to those that the kernel's elements look at, in a plane.
    offsets: tuple[int, ...]


# -- the parts of an image -------------------------------------------------------------------

_SPLIT = Record(*PLACING, "second", "out_part", "bits", "found_before", "found")
_LINES = Record(
    *(*PLACING, "second", "out_part", "bits", "found_before", "found"),
    *("channel", "tile", "scratch"),
)
#: A register of zeros, and later of biases.
_NOTHING = 20


@cache
def _split() -> Code:
    """Code that writes the parts of rows of numbers, each row by itself."""
    record = _SPLIT

    def clear(code: Writer) -> None:
        for out in OUTS:
            code.store(Memory(out), _NOTHING)
            code.add_number(out, VECTOR)

    def copy(code: Writer, last: bool) -> None:
        for number, source in enumerate(SOURCES):
            mask = last * (1 + number)
            code.vector("vmovups", number, Memory(source), mask=mask, zero=last)
            for _ in range(2):
                code.add_number(source, VECTOR)
        write_parts(code, [Memory(out) for out in OUTS], in_order=True)
        for out in OUTS:
            code.add_number(out, VECTOR)

    def write(code: Writer) -> None:
        mask = record["mask"]
        for number in range(2):
            code.load_mask(1 + number, Memory(mask.base, offset=mask.offset + 2 * number))
        _write_planes(code, record, copy, clear)

    return program(write)


@cache
def _lines() -> Code:
    """Code that writes the parts of 32 channels at a place side by side, in a line of the cache."""
    record = _LINES
    (source, _), channel, scratch = SOURCES, RAX, RDX

    def move(code: Writer) -> None:
        for out in OUTS:
            code.add(out, record["tile"])

    def clear(code: Writer) -> None:
        for out, place in product(OUTS, range(SIDE)):
            code.store(Memory(out, offset=LINE * place), _NOTHING)
        move(code)

    def copy(code: Writer, last: bool) -> None:
        code.move(channel, source)
        code.load(scratch, record["scratch"])
        for half in range(2):
            for number in range(SIDE):
                code.vector("vmovups", number, Memory(channel), mask=int(last), zero=last)
                code.add(channel, record["channel"])
            for number, register in enumerate(transpose(code)):
                code.store(Memory(scratch, offset=VECTOR * (2 * number + half)), register)
        for place in range(SIDE):
            for half in range(2):
                at = Memory(scratch, offset=VECTOR * (2 * place + half))
                code.vector("vmovups", half, at)
            write_parts(code, [Memory(out, offset=LINE * place) for out in OUTS])
        code.add_number(source, VECTOR)
        move(code)

    def write(code: Writer) -> None:
        code.load_mask(1, record["mask"])
        _write_planes(code, record, copy, clear)

    return program(write)


def _write_planes(
    code: Writer,
    record: Record,
    copy: Callable[[Writer, bool], None],
    clear: Callable[[Writer], None],
) -> None:
    begin_parts(code, record)
    code.vector("vxorps", _NOTHING, _NOTHING, _NOTHING)
    each_plane(
        code,
        record,
        outs=PARTS // TILE,
        copy=lambda last: copy(code, last),
        clear=lambda: clear(code),
    )
    end_parts(code, record)


class _Planes(NamedTuple):
    """Where the parts of an image are. Numbers are of bytes."""

    #: From one row, or 32 channels, to the next; and from part to part.
    row: int
    part: int


def _add_parts(
    draft: Draft, block: TiledBlock, out: int, found: int, *, lines: bool
) -> tuple[_Planes, int]:
    """Calls that split the channels of an image, of base "image", in "work".

    Args:
        draft: where they are added.
        block: has its measures.
        out: where the parts come.
        found: where it comes what was found.
        lines: 32 channels at a place in a line, instead of each channel by itself.

    Returns:
        How the parts lie, and where memory is free.
    """
    frame = block.frame
    unit, size = (LANES, TILE) if lines else (2 * LANES, VECTOR)
    elements = max(frame.plane + frame.line - block.width + _BEHIND, frame.needed(unit))
    row = ceil(elements / unit) * size
    row += LINE if row % _UNLUCKY == 0 else 0
    rows = block.channels // DEPTH if lines else block.channels
    # Lines have their parts in each 32 channels.
    by_part, by_row = (row, PARTS // TILE * row) if lines else (rows * row, row)
    scratch = out + PARTS // TILE * rows * row
    words: dict[str, int | tuple[str, int]] = {
        **frame.steps(ceil(elements / unit) * unit, unit, size),
        "source": ("image", 4 * block.source),
        "second": VECTOR,
        "out": ("work", out),
        "out_part": by_part,
        "out_plane": by_row,
        "planes": rows,
        "bits": BITS,
        "found_before": ("zeros", 0),
        "found": ("work", found),
    }
    if lines:
        words["source_plane"] = 4 * DEPTH * frame.source_plane
        words |= {"channel": 4 * frame.source_plane, "tile": TILE, "scratch": ("work", scratch)}
        draft.call(_lines(), _LINES, **words)
    else:
        draft.call(_split(), _SPLIT, **words)
    return _Planes(by_row, by_part), scratch + 2 * TILE * lines


# -- the correlation -------------------------------------------------------------------------

_CORRELATE = Record(
    *("b", "pair", "image", "image_part", "table", "table_end", "places", "pairs"),
    *("out", "out_step", "back", "bias", "output_pairs", "found_a", "found_b", "bounds"),
    *("parts", "one", "shapes", "scratch", "skipped"),
    variables=("pairs_left", "entry", "outputs_left"),
)
#: Words that `_entries` has for 32 places; and of the masks among them, those for the later rows.
_ENTRY, _LATER = 4, int(np.array([0, -1, 0, -1], np.int16).view(int64)[0])


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
            code.vector("vbroadcastss", _NOTHING, Memory(bias, offset=4 * (SIDE * j + n)))
            code.vector("vaddps", register, register, _NOTHING)
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


class TiledCalls(NamedTuple):
    """What a block of an image takes.

    Attributes:
        calls: for one image.
        skipped: the places of words that aren't 0 if nothing was made.
        size: bytes to work in.
        kept: what the calls read.
    """

    calls: Calls
    skipped: int
    size: int
    kept: tuple[Array, ...]


def correlation_calls(block: TiledBlock) -> TiledCalls:
    """out[o, p] = bias[o] + Σ weights[o, k, c] · image[c, p + offsets[k]] for places p of a block.

    Bases are the image and the output (float32), the bias, the `Laid` weights' `address` and
    `found`, and memory to work in. C is a multiple of 32, and a row of the output at least 16
    elements wide.
    """
    draft = Draft("image", "out", "bias", "weights", "found", "work", "zeros", "shapes")
    planes, scratch = _add_parts(draft, block, FOUND, 0, lines=True)
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
        **_SAME,
    )
    skipped = at + _CORRELATE.names.index("skipped")
    return TiledCalls(draft.done(), skipped, scratch + 4 * TILE, (table, entries))


#: What all records say of tiles.
_SAME: dict[str, int | tuple[str, int]] = {
    "bounds": BOUNDS,
    "parts": 2 * PARTS,
    "one": VECTOR,
    "shapes": ("shapes", 0),
    "skipped": 0,
}


# -- sums over places ------------------------------------------------------------------------

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
    planes, laid = _add_parts(draft, block, 2 * FOUND, 0, lines=False)
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
                **_SAME,
            )
            skipped = at + _PLACES.names.index("skipped")
    return TiledCalls(draft.done(), skipped, scratch + 4 * TILE, (table,))
