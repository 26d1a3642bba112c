"""Products of few rows with a matrix that is used again and again: out = start + a @ matrix.

A BLAS lays out both matrices anew in each call, which takes as long as a product of few rows. Here
the matrix is laid out once, in panels of 32 columns, and `a` is read as it stands. Eight rows at a
time go through a panel and add up in sixteen registers: enough for multipliers that are never idle.
"""

from __future__ import annotations

import ctypes
import struct
from functools import cache, lru_cache
from typing import Any

from numpy.lib.stride_tricks import as_strided

from .. import memory, parallel
from ..dtypes import Array
from ..executable import Code
from .assembler import (
    CALLEE_SAVED,
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
    RDI,
    RDX,
    RSI,
    Assembler,
    Memory,
)
from .compiler import LANES, VECTOR

#: Vectors of a panel's row, and its columns.
_VECTORS = 2
PANEL = _VECTORS * LANES
_PANEL_BYTES = PANEL * 4
#: Rows that go through a panel together.
_TOGETHER = 8
#: Elements from which laying out is spread over threads.
_PARALLEL_FROM = 1 << 17

#: Where a record's words are: addresses, and bytes from row to row, of a, start and out; the
#: address of the panels; then what `head` gives; and what the code counts with.
(
    _A, _A_ROW, _START, _START_ROW, _OUT, _OUT_ROW, _MATRIX,
    _PANELS, _PANEL_SIZE, _PANEL_ROW, _A_STEP, _DEPTH, _MINUS_DEPTH, _TIMES, _FULL, _LAST,
    _PANELS_LEFT, _TIMES_LEFT, _COLUMN,
) = range(0, 19 * 8, 8)  # fmt: skip
#: Words at the end of a record that only the code uses.
COUNTERS = 3

_RECORD, _PANEL, _K, _COUNT = RDI, RBX, RCX, RDX
#: The rows that follow.
_NEXT_A, _NEXT_START, _NEXT_OUT = RAX, RSI, R15
#: The ends of the rows of a that go through a panel.
_ENDS = (RBP, R8, R9, R10, R11, R12, R13, R14)
#: Vector registers of a panel's row, and of a number of a; those before hold sums.
_FACTORS = _TOGETHER * _VECTORS
_NUMBER = _FACTORS + _VECTORS


def packed(matrix: Array) -> Array:
    """A matrix as panels of 32 columns, zeros behind the last one.

    Args:
        matrix: shape (k, n), float32, of any strides.

    Returns:
        Shape (panels, k, 32).
    """
    depth, columns = matrix.shape
    full, rest = divmod(columns, PANEL)
    panels = memory.empty((full + bool(rest), depth, PANEL), matrix.dtype)
    by_row, by_column = matrix.strides
    view = as_strided(matrix, (full, depth, PANEL), (PANEL * by_column, by_row, by_column))
    if rest:
        panels[full, :, :rest] = matrix[:, full * PANEL :]
        panels[full, :, rest:] = 0
    pieces = parallel.split(full, 1 if matrix.size < _PARALLEL_FROM else parallel.get_num_threads())

    def run(index: int) -> None:
        panels[:full][pieces[index]] = view[pieces[index]]

    parallel.parallel_for(run, len(pieces))
    return panels


@lru_cache
def head(rows: int, depth: int, columns: int, by_k: int = 4, by_row: int = 0) -> tuple[int, ...]:
    """The words of a record that say how large the matrices are.

    Args:
        rows: those of a.
        depth: k.
        columns: those of the matrix.
        by_k: bytes from number to number in a row of a.
        by_row: bytes from row to row of a matrix that isn't packed, but has contiguous columns.
    """
    panels = -(-columns // PANEL)
    rest = columns - (panels - 1) * PANEL
    masks = (1 << PANEL) - 1, (1 << rest) - 1
    panel = (_PANEL_BYTES, by_row) if by_row else (depth * _PANEL_BYTES, _PANEL_BYTES)
    return panels, *panel, by_k, depth * by_k, -depth * by_k, rows // _TOGETHER, *masks


def address(rows: int, columns: int, depth: int = 0) -> int:
    """Where the code for matrices of so many rows and columns begins.

    Args:
        rows: those of a.
        columns: those of the matrix.
        depth: k, where the matrix is `packed`: all panels are as wide, and the next one is fetched
            while rows go through this one.
    """
    vectors = 1 if columns <= LANES else _VECTORS
    return _code(rows % _TOGETHER, vectors, depth, columns % (vectors * LANES) == 0).address


@cache
def _code(rest: int, vectors: int, depth: int, whole: bool) -> Code:
    """The code for rows of which so many are left in the end, and panels of so many vectors.

    Args:
        rest: the rows.
        vectors: of a panel.
        depth: as for `address`.
        whole: all panels are full: then nothing is masked, and what was written is read back soon.
    """
    code = Assembler()
    for register in CALLEE_SAVED:
        code.push(register)
    code.load(_PANEL, _word(_MATRIX))
    code.load(_COUNT, _word(_PANELS))
    code.keep(_word(_PANELS_LEFT), _COUNT)
    code.clear(_COUNT)
    code.keep(_word(_COLUMN), _COUNT)
    _load_masks(code, _FULL, vectors)
    panel = code.here()
    _count_down(code, _PANELS_LEFT)
    more = code.jump("not zero")
    _load_masks(code, _LAST, vectors)
    code.land(more)
    _through_panel(code, rest, vectors, depth, whole)
    code.load(_COUNT, _word(_COLUMN))
    for _ in range(_VECTORS):
        code.add_number(_COUNT, VECTOR)
    code.keep(_word(_COLUMN), _COUNT)
    code.add(_PANEL, _word(_PANEL_SIZE))
    code.load(_COUNT, _word(_PANELS_LEFT))
    code.add_number(_COUNT, 0)
    code.jump("not zero", panel)
    for register in reversed(CALLEE_SAVED):
        code.pop(register)
    code.leave_vectors()
    code.give_back()
    return Code(code.finish())


def _word(offset: int) -> Memory:
    return Memory(_RECORD, offset=offset)


def _count_down(code: Assembler, word: int) -> None:
    """One less; whether that is zero is what `jump` asks."""
    code.load(_COUNT, _word(word))
    code.add_number(_COUNT, -1)
    code.keep(_word(word), _COUNT)


def _load_masks(code: Assembler, word: int, vectors: int) -> None:
    for vector in range(vectors):
        code.load_mask(1 + vector, _word(word + vector * LANES // 8))


def _through_panel(code: Assembler, rest: int, vectors: int, depth: int, whole: bool) -> None:
    """All rows with one panel."""
    code.load(_NEXT_A, _word(_A))
    code.add(_NEXT_A, _word(_DEPTH))
    for following, word in ((_NEXT_START, _START), (_NEXT_OUT, _OUT)):
        code.load(following, _word(word))
        code.add(following, _word(_COLUMN))
    code.load(_COUNT, _word(_TIMES))
    code.keep(_word(_TIMES_LEFT), _COUNT)
    code.add_number(_COUNT, 0)
    none = code.jump("zero")
    again = code.here()
    _rows(code, _TOGETHER, vectors, depth, whole)
    _count_down(code, _TIMES_LEFT)
    code.jump("not zero", again)
    code.land(none)
    if rest:
        _rows(code, rest, vectors, depth, whole)


def _rows(code: Assembler, count: int, vectors: int, depth: int, whole: bool) -> None:
    """Some rows with one panel: sums of a number of `a` times a row of the panel."""
    sums = [[row * vectors + vector for vector in range(vectors)] for row in range(count)]
    masks = [0 if whole else 1 + vector for vector in range(vectors)]
    for row in range(count):
        for vector, register in enumerate(sums[row]):
            place = Memory(_NEXT_START, offset=vector * VECTOR)
            code.vector("vmovups", register, place, mask=masks[vector], zero=not whole)
        code.add(_NEXT_START, _word(_START_ROW))
        code.move(_ENDS[row], _NEXT_A)
        code.add(_NEXT_A, _word(_A_ROW))
    code.load(_K, _word(_MINUS_DEPTH))
    code.move(_COUNT, _PANEL)
    loop = code.here()
    places = [Memory(_COUNT, offset=vector * VECTOR) for vector in range(vectors)]
    if depth and count == 1:  # bound by memory, and a step by its sum: masks would prolong it
        code.vector("vbroadcastss", _NUMBER, Memory(_ENDS[0], _K))
        for vector, register in enumerate(sums[0]):
            code.vector("vfmadd231ps", register, _NUMBER, places[vector])
    else:
        for vector, place in enumerate(places):
            code.vector("vmovups", _FACTORS + vector, place, mask=masks[vector], zero=not whole)
            if depth:  # from afar the next panel would come too late
                code.prefetch(Memory(_COUNT, offset=place.offset + depth * _PANEL_BYTES))
        for row in range(count):
            code.vector("vbroadcastss", _NUMBER + row, Memory(_ENDS[row], _K))
            for vector, register in enumerate(sums[row]):
                code.vector("vfmadd231ps", register, _NUMBER + row, _FACTORS + vector)
    code.add(_COUNT, _word(_PANEL_ROW))
    code.add(_K, _word(_A_STEP))
    code.jump("not zero", loop)
    for row in range(count):
        for vector, register in enumerate(sums[row]):
            code.store(Memory(_NEXT_OUT, offset=vector * VECTOR), register, masks[vector])
        code.add(_NEXT_OUT, _word(_OUT_ROW))


#: A record of one product, the words for counting at its end.
_RECORD_OF = struct.Struct(f"={16 + COUNTERS}q").pack
#: Elements of rows that go through all panels together: they stay in the second-level cache.
_BLOCK = 1 << 17
#: Multiply-adds from which panels are shared out, and up to which that is short work.
_SHARED_FROM, _SHORT = 1 << 19, 1 << 23


def rows_of_block(depth: int) -> int:
    """How many rows of k = depth numbers go through all panels together."""
    return max(_BLOCK // max(depth, 1) // _TOGETHER, 1) * _TOGETHER


def multiply(a: Array, panels: Array, start: Array, out: Array) -> Array:
    """out = start + a @ matrix, its columns shared out over the engine's threads.

    Args:
        a: shape (rows, k), float32, as the others, columns contiguous.
        panels: the `packed` matrix (k, columns).
        start: shape (columns,), or (rows, columns); may be `out`.
        out: shape (rows, columns).

    Returns:
        out.
    """
    rows, depth = a.shape
    columns = out.shape[1]
    by_row = start.strides[0] if start.ndim == 2 else 0
    places = memory.address(a), memory.address(start), memory.address(out), memory.address(panels)
    steps = a.strides[0], by_row, out.strides[0]
    height = rows_of_block(depth)
    for first in range(0, rows, height):
        count = min(height, rows - first)
        work = count * depth * columns
        parts = parallel.parts() if work >= _SHARED_FROM else 1
        if parts == 1:
            record = _record(places, steps, first, 0, count, depth, columns)
            _function(address(count, columns, depth), held=work <= _SHORT)(record)
            continue
        calls = []
        for piece in parallel.split(len(panels), parts):
            width = min(piece.stop * PANEL, columns) - piece.start * PANEL
            record = _record(places, steps, first, piece.start, count, depth, width)
            calls.append((address(count, width, depth), record))
        parallel.share(calls, short=work <= _SHORT)
    return out


def _record(
    places: tuple[int, ...],
    steps: tuple[int, ...],
    row: int,
    panel: int,
    rows: int,
    depth: int,
    columns: int,
) -> bytes:
    """For some rows and panels of a product: the first ones, and how many rows and columns."""
    at_a, at_start, at_out, at_panels = places
    of_a, of_start, of_out = steps
    beside = panel * PANEL * 4
    return _RECORD_OF(
        *(at_a + row * of_a, of_a),
        *(at_start + row * of_start + beside, of_start),
        *(at_out + row * of_out + beside, of_out),
        at_panels + beside * depth,
        *head(rows, depth, columns),
        *_UNCOUNTED,
    )


_UNCOUNTED = (0,) * COUNTERS


@cache
def _function(place: int, held: bool) -> Any:
    """The code at an address as a function that keeps the GIL or doesn't."""
    kind = ctypes.PYFUNCTYPE if held else ctypes.CFUNCTYPE
    return kind(None, ctypes.c_char_p)(place)
