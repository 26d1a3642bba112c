"""Images split into parts for tiles, and what blocks of them come to."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import product
from math import ceil
from typing import NamedTuple

from ..dtypes import Array
from ..executable import Code
from .assembler import RAX, RDX, Memory
from .calls import Calls, Draft
from .compiler import LANES, VECTOR
from .placement import OUTS, PLACING, SOURCES, Frame, each_plane
from .program import Record, Writer, program
from .tile_layout import BITS, begin_parts, end_parts, write_parts
from .tiles import BOUNDS, DEPTH, LINE, PARTS, SIDE, TILE
from .transposition import transpose

#: Elements behind a plane that the last tile may read and doesn't use, beside the places behind
#: a row.
BEHIND = 2 * SIDE
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


#: What all records say of tiles.
SAME: dict[str, int | tuple[str, int]] = {
    "bounds": BOUNDS,
    "parts": 2 * PARTS,
    "one": VECTOR,
    "shapes": ("shapes", 0),
    "skipped": 0,
}


_SPLIT = Record(*PLACING, "second", "out_part", "bits", "found_before", "found")
_LINES = Record(
    *(*PLACING, "second", "out_part", "bits", "found_before", "found"),
    *("channel", "tile", "scratch"),
)
#: A register of zeros.
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


class Planes(NamedTuple):
    """Where the parts of an image are. Numbers are of bytes."""

    #: From one row, or 32 channels, to the next; and from part to part.
    row: int
    part: int


def add_parts(
    draft: Draft, block: TiledBlock, out: int, found: int, *, lines: bool
) -> tuple[Planes, int]:
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
    elements = max(frame.plane + frame.line - block.width + BEHIND, frame.needed(unit))
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
    return Planes(by_row, by_part), scratch + 2 * TILE * lines
