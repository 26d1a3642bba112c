"""Copies of rows from one distance to another, with zeros around them where they are wanted."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import pairwise
from math import ceil
from typing import NamedTuple

from ..dtypes import Array
from ..executable import Code
from .assembler import R8, R9, R10, R11, R12, R13, R14, R15, RBP, RBX, RCX, RSI, Memory
from .compiler import LANES, VECTOR
from .program import Call, Record, Writer, last_mask, program


class Frame(NamedTuple):
    """How the rows of planes of float32 lie, and where they come in planes with zeros around them.

    All are numbers of elements, but for `rows`.
    """

    rows: int
    length: int
    #: From one row to the next, and from one plane to the next, where they are read.
    source_row: int
    source_plane: int
    #: Where the first row begins in a plane, and from there to the next row.
    first: int
    line: int
    plane: int

    def steps(self, plane: int, unit: int, size: int) -> dict[str, int]:
        """What `PLACING` says of it.

        Args:
            plane: from one plane to the next where rows come; at least `needed(unit)`.
            unit: elements that are copied at once.
            size: bytes of them where they come.
        """
        vectors, between = self._vectors(unit)
        last = self.first + (self.rows - 1) * self.line + vectors * unit
        after = max(0, ceil((plane - last) / unit))
        return {
            "source_plane": 4 * self.source_plane,
            "source_row": 4 * self.source_row,
            "out_plane": plane * size // unit,
            "out_row": self.line * size // unit,
            "first": self.first * size // unit,
            "ending": (plane - after * unit) * size // unit,
            "rows": self.rows,
            "vectors": vectors - 1,
            "mask": (1 << (self.length - 1) % unit + 1) - 1,
            "before": ceil(self.first / unit),
            "between": between,
            "after": after,
        }

    def _vectors(self, unit: int) -> tuple[int, int]:
        """Of a row, and of zeros behind it."""
        vectors = ceil(self.length / unit)
        return vectors, max(0, ceil(self.line / unit) - vectors) if self.rows > 1 else 0

    def needed(self, unit: int) -> int:
        """The elements that are written, from where a plane begins."""
        return self.first + (self.rows - 1) * self.line + sum(self._vectors(unit)) * unit


#: What `each_plane` reads.
PLACING = (
    *("source", "source_plane", "source_row", "out", "out_plane", "out_row", "first", "ending"),
    *("planes", "rows", "vectors", "mask", "before", "between", "after"),
)
_SOURCE, _OUT, _ROW, _TARGET = R8, R9, R10, R11
#: Where it is read and written; a second source and more places are at a distance.
SOURCES, OUTS = (RSI, RBX), (R12, RCX, RBP)
_COUNT, _ROWS_LEFT, _PLANES_LEFT = R13, R14, R15


def each_plane(
    code: Writer,
    record: Record,
    *,
    outs: int,
    copy: Callable[[bool], None],
    clear: Callable[[], None] | None,
) -> None:
    """Go through planes: zeros before and after, then rows, each with zeros behind.

    What zeros cover too much is written later; the last plane may need memory behind it.

    Args:
        code: where this is written.
        record: has the numbers of `PLACING`; with two outs or more also "out_part", and "second",
            the distance to the second source.
        outs: places that are written.
        copy: writes a step from `SOURCES` to `OUTS`, and moves these on; it is told whether it is
            the last step of a row.
        clear: does so with zeros; None where there are none.
    """
    targets = OUTS[:outs]

    def begin(start: int) -> None:
        code.move(targets[0], start)
        for before, target in pairwise(targets):
            code.move(target, before)
            code.add(target, record["out_part"])

    def zeros(name: str) -> None:
        if clear is not None:
            with code.times(_COUNT, record[name]):
                clear()

    code.load(_SOURCE, record["source"])
    code.load(_OUT, record["out"])
    with code.times(_PLANES_LEFT, record["planes"]):
        begin(_OUT)
        zeros("before")
        if clear is not None:
            code.move(_TARGET, _OUT)
            code.add(_TARGET, record["ending"])
            begin(_TARGET)
        zeros("after")
        code.move(_ROW, _SOURCE)
        code.move(_TARGET, _OUT)
        code.add(_TARGET, record["first"])
        with code.times(_ROWS_LEFT, record["rows"]):
            code.move(SOURCES[0], _ROW)
            if outs > 1:
                code.move(SOURCES[1], _ROW)
                code.add(SOURCES[1], record["second"])
            begin(_TARGET)
            with code.times(_COUNT, record["vectors"]):
                copy(False)
            copy(True)
            zeros("between")
            code.add(_ROW, record["source_row"])
            code.add(_TARGET, record["out_row"])
        code.add(_SOURCE, record["source_plane"])
        code.add(_OUT, record["out_plane"])


#: A record of these numbers alone.
PLACE = Record(*PLACING)


@cache
def place(zeros: bool) -> Code:
    """Code that copies rows of numbers: with zeros around them, or only these."""
    (source, _), (out, *_) = SOURCES, OUTS

    def clear(code: Writer) -> None:
        code.store(Memory(out), 1)
        code.add_number(out, VECTOR)

    def copy(code: Writer, last: bool) -> None:
        code.vector("vmovups", 0, Memory(source), mask=int(last), zero=last)
        code.add_number(source, VECTOR)
        # Lanes beyond the row are zeros, the first of those behind it.
        code.store(Memory(out), 0, int(last and not zeros))
        code.add_number(out, VECTOR)

    def body(code: Writer) -> None:
        code.load_mask(1, PLACE["mask"])
        code.vector("vxorps", 1, 1, 1)
        each_plane(
            code,
            PLACE,
            outs=1,
            copy=lambda last: copy(code, last),
            clear=(lambda: clear(code)) if zeros else None,
        )

    return program(body)


def room_for(planes: int, frame: Frame) -> int:
    """The numbers of memory that `surrounded` needs; a few more than the planes have."""
    return planes * frame.plane + max(0, frame.needed(LANES) - frame.plane)


def surrounded(source: Array, frame: Frame, out: Array) -> Call:
    """The rows of planes with zeros around them.

    Args:
        source: shape (P, …), float32; its beginning is what matters of it.
        frame: how it is read, and placed.
        out: as many numbers as `room_for` says.
    """
    words: dict[str, int | tuple[Array, int]] = {**frame.steps(frame.plane, LANES, VECTOR)}
    words |= {"source": (source, 0), "out": (out, 0), "planes": len(source)}
    return Call(place(True), [words[name] for name in PLACING])


def copied_rows(source: Array, out: Array) -> Call:
    """Fill out with source, both float32, of shape (P, R, n) with contiguous rows, n ≥ 1."""
    planes, rows, length = source.shape
    words = (
        *((source, 0), *source.strides[:2], (out, 0), *out.strides[:2]),
        *(0, 0, planes, rows, (length - 1) // LANES, last_mask(length), 0, 0, 0),
    )
    return Call(place(False), words)
