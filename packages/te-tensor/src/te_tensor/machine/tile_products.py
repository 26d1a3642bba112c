"""Products of matrices by tiles: in blocks that stay in a core's cache, shared out over threads.

What a product's calls are depends on how large its matrices are and how they lie. So they are
written down once (`_template`), and a product adds the addresses.
"""

from __future__ import annotations

import itertools
import struct
import threading
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from itertools import product
from math import ceil, log2
from typing import NamedTuple, TypeAlias

import numpy as np

from .. import memory, parallel
from ..dtypes import Array, float32
from .calls import Calls, Draft, run_calls
from .chain import Chain, Steps
from .compiler import LANES, VECTOR
from .elementary import add_kernel, copy_kernel
from .formula import Matrix, maximum
from .kernel import kernel
from .tiles import (
    BOUNDS,
    DEPTH,
    FEW_ROWS,
    FOUND,
    HIGH,
    LINE,
    LOW,
    MULTIPLY,
    PARTS,
    SCRATCH,
    SHAPES,
    SIDE,
    SMALL_TOO,
    TILE,
    WIDE,
    ZEROS,
    Operand,
    add_layout,
    few_rows_program,
    multiply_program,
    regions,
    tiles_size,
)

#: The most k that goes through the tiles at once; and the most numbers whose parts stay in the
#: second-level cache meanwhile.
_K, _NUMBERS = 512, 1 << 17
#: Pairs of tiles side by side that are multiplied with each pair of rows in turn: so many that what
#: is written of a row lies together, and few enough that they stay in that cache too.
_GROUP = 2
#: The bits of 1, a factor that changes nothing.
_ONE = int.from_bytes(struct.pack("=f", 1.0), "little")
#: Multiply-adds up to which products are short, and keep the GIL; and numbers that are laid out.
_SHORT, _FEW = 1 << 24, 1 << 17
#: Rows for a thread from which it gets rows, not columns; numbers of a right side that threads lay
#: out together.
_LEAST_ROWS, SHARED_FROM = 256, 1 << 17
#: A long product sums over a k of so many times its rows and columns. Both sides are laid out a
#: stretch of k at a time, of so many numbers that they stay in the second-level cache.
_LONG, _STRETCH = 2, 1 << 17
#: Bytes of a row of two tiles of float32.
_PAIR = 2 * VECTOR


def _lying(matrix: Array, by_k_axis: int) -> Operand | None:
    """How a matrix lies; None where neither axis is contiguous."""
    strides = matrix.strides
    for axis in (by_k_axis, 1 - by_k_axis):
        if strides[axis] == 4 and strides[1 - axis] > 0:
            return Operand(strides[1 - axis], axis == by_k_axis)
    return None


# -- sides -----------------------------------------------------------------------------------


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
        return bool(LOW < self._largest.max() < HIGH) and not np.isnan(self._sums).any()


class Product(NamedTuple):
    """What is made with a left side: out = start + alpha * a @ b.

    Attributes:
        b: shape (k, columns), float32, one of its axes contiguous.
        out: shape (rows, columns), contiguous rows unless the product `is_long`; shares no memory
            with a or b.
        start: shape (columns,), or (rows, columns) with contiguous rows, which may be `out`; None
            for zeros.
        laid: b laid out, if it is.
    """

    b: Array
    out: Array
    start: Array | None = None
    laid: Laid | None = None


class _Side(NamedTuple):
    """How a product with a left side lies."""

    columns: int
    #: The right side; None where it is laid out.
    b: Operand | None
    out_row: int
    start_row: int
    #: Whether it begins at 0.
    plain: bool


class _Form(NamedTuple):
    """What products have in common that are made by the same calls."""

    rows: int
    depth: int
    a: Operand
    sides: tuple[_Side, ...]
    #: The bits of alpha.
    factor: int = _ONE
    #: How many threads share the work.
    parts: int = 1
    bounds: int = BOUNDS

    @property
    def is_long(self) -> bool:
        return is_long(self.rows, sum(s.columns for s in self.sides), self.depth) and all(
            side.b for side in self.sides
        )


def is_long(rows: int, columns: int, depth: int) -> bool:
    """Whether a product, of matrices that aren't laid out, goes along k first.

    Threads then share k, and sums are added up at the end.
    """
    sides = rows + columns
    return depth >= _LONG * sides and DEPTH * sides <= _STRETCH


# -- calls -----------------------------------------------------------------------------------

#: Rows and columns of a product that aren't made, and are as they were.
_Block: TypeAlias = tuple[slice, slice]
#: Words of a record; see `Draft.call`.
_Words: TypeAlias = dict[str, int | tuple[str, int]]


class _Template(NamedTuple):
    """The calls of products with one left side."""

    calls: Calls
    #: For each thread its words, how many calls they are, and the bytes that it works in.
    shares: list[tuple[slice, int, int]]
    #: The places of words that say whether a block was left out; whose it is, and which.
    skipped: Array
    blocks: list[tuple[int, _Block]]
    #: Of a long product, where in that memory each side's sums are.
    sums: list[int]
    #: What products begin with that begin with nothing.
    zeros: Array


#: Names of what the addresses of a product's own count from.
_OWN = ("b", "found_b", "out", "start")


@lru_cache(1024)
def _template(form: _Form) -> _Template:
    """The calls of such products."""
    zeros = np.zeros(max(side.columns for side in form.sides), float32)
    shares = _shared_out(form)
    own = [f"{name} {number}" for number in range(len(form.sides)) for name in _OWN]
    works = [f"work {number}" for number in range(len(shares))]
    draft = Draft("zeros", "shapes", "nothing", "a", *own, *works)
    made = [_Share(draft, form, work, part) for work, part in zip(works, shares, strict=True)]
    return _Template(
        draft.done(),
        [(share.words, share.count, share.size) for share in made],
        np.array([place for share in made for place in share.skipped]),
        [block for share in made for block in share.blocks],
        made[0].sums,
        zeros,
    )


def _shared_out(form: _Form) -> list[tuple[slice, list[slice], slice]]:
    """What each thread does: rows, columns of each side, and k."""
    widths = [side.columns for side in form.sides]
    rows, k = slice(0, form.rows), slice(0, form.depth)
    columns = [slice(0, width) for width in widths]
    if form.is_long:
        return [(rows, columns, part) for part in cuts(form.depth, form.parts)]
    if _goes_by_rows(form.rows, sum(widths), form.depth, form.parts):
        return [(part, columns, k) for part in cuts(form.rows, form.parts)]
    each = [cuts(width, form.parts) for width in widths]
    pieces = itertools.zip_longest(*each, fillvalue=slice(0, 0))
    return [(rows, list(own), k) for own in pieces]


class _Share:
    """Writes down the calls of a thread.

    Attributes:
        words, count, size: as in `_Template.shares`.
        skipped, blocks, sums: as in `_Template`.
    """

    def __init__(
        self, draft: Draft, form: _Form, work: str, part: tuple[slice, list[slice], slice]
    ) -> None:
        self._draft, self._form, self._work = draft, form, work
        self._rows, self._columns, self._k = part
        self._long = form.is_long
        first, before = draft.length, draft.count
        self.size = 0
        self.skipped: list[int] = []
        self.blocks: list[tuple[int, _Block]] = []
        self.sums: list[int] = []
        self._write()
        self.words, self.count = slice(first, draft.length), draft.count - before

    def _room(self, size: int) -> int:
        """Where memory of so many bytes begins."""
        place = self.size
        self.size += size + -size % LINE
        return place

    def _write(self) -> None:
        form, depth = self._form, self._k.stop - self._k.start
        widths = [chosen.stop - chosen.start for chosen in self._columns]
        height = self._rows.stop - self._rows.start
        if self._long:
            deepest = _STRETCH // (height + sum(widths)) // DEPTH * DEPTH
            stretches = cuts(depth, ceil(depth / deepest), DEPTH)
            deepest = max(stretch.stop - stretch.start for stretch in stretches)
            block = height
            self.sums = [self._room(height * width * 4) for width in widths]
        else:
            deepest, stretches = depth, [slice(0, depth)]
            block = min(height, _NUMBERS // (min(depth, _K) * SIDE) * SIDE)
        self._found_a = self._room(FOUND)
        self._of_a = self._room(tiles_size(block, deepest))
        self._found_b = [self._room(FOUND) for _ in widths]
        self._of_b = [
            self._room(tiles_size(width, deepest)) if side.b else 0
            for width, side in zip(widths, form.sides, strict=True)
        ]
        self._scratch = self._room(SCRATCH)
        for stretch in stretches:
            last = stretch is stretches[-1]
            for number, width in enumerate(widths):
                self._lay_out_b(number, width, stretch)
            for first in range(0, height, block):
                here = slice(first, min(first + block, height))
                self._lay_out_a(here, stretch)
                for number, width in enumerate(widths):
                    if not width:
                        continue
                    place = self._multiply(number, here, width, stretch, last)
                    if last:
                        at = slice(self._rows.start + here.start, self._rows.start + here.stop)
                        self.skipped.append(place)
                        self.blocks.append((number, (at, self._columns[number])))

    def _lay_out_a(self, rows: slice, k: slice) -> None:
        a, scratch = self._form.a, self._scratch
        by_k, by_row = (4, a.step) if a.by_k else (a.step, 4)
        at = (self._rows.start + rows.start) * by_row + (self._k.start + k.start) * by_k
        size = rows.stop - rows.start, k.stop - k.start
        where, more = (self._of_a, self._found_a, scratch), k.start > 0
        add_layout(
            *(self._draft, "a", at, a, not a.by_k, size, *where),
            to=self._work, work=self._work, more=more,
        )  # fmt: skip

    def _lay_out_b(self, number: int, width: int, k: slice) -> None:
        b = self._form.sides[number].b
        if b is None or not width:
            return
        by_k, by_column = (4, b.step) if b.by_k else (b.step, 4)
        at = self._columns[number].start * by_column + (self._k.start + k.start) * by_k
        where = self._of_b[number], self._found_b[number], self._scratch
        add_layout(
            *(self._draft, f"b {number}", at, b, b.by_k, (width, k.stop - k.start), *where),
            to=self._work, work=self._work, more=k.start > 0,
        )  # fmt: skip

    def _multiply(self, number: int, rows: slice, width: int, stretch: slice, last: bool) -> int:
        """A block of rows with a right side.

        Returns:
            The place of the word that says whether it was left out.
        """
        form, side = self._form, self._form.sides[number]
        chunks = ceil((stretch.stop - stretch.start) / DEPTH)
        pair = 2 * chunks * PARTS
        if side.b:
            base, start_b = self._work, self._of_b[number]
            found_b = (self._work, self._found_b[number])
        else:  # columns begin at a whole pair of tiles
            base, start_b = f"b {number}", self._columns[number].start // (2 * SIDE) * pair
            found_b = (f"found_b {number}", 0)
        if self._long:
            (to, at), out_row = (self._work, self.sums[number]), width * 4
            begin, start_at, start_row, plain, factor = "nothing", 0, 0, True, _ONE
        else:
            first, beside = self._rows.start + rows.start, self._columns[number].start * 4
            out_row, start_row = side.out_row, side.start_row
            to, at = f"out {number}", first * out_row + beside
            begin, start_at = f"start {number}", first * start_row + beside
            plain, factor = side.plain, form.factor
            if plain:
                begin, start_at = "nothing", 0
        place = 0
        for piece, (row, row_pairs, high) in product(
            parallel.split(chunks, ceil(chunks * DEPTH / _K)),
            regions(rows.stop - rows.start, 2 * SIDE),
        ):
            # Sums of a part of k begin at 0: their errors are those of numbers as large as its own.
            further = piece.start > 0 or stretch.start > 0
            deep = piece.stop - piece.start
            step = out_row if further else start_row
            down = row * 2 * SIDE
            ahead = piece.start * 2 * PARTS
            few = width // WIDE if high <= SIDE and factor == _ONE else 0
            words: _Words = {
                "a": (self._work, self._of_a + row * pair + ahead),
                "b": (base, start_b + ahead),
                "pair": pair,
                "rows": high,
                "out": (to, at + down * out_row),
                "out_row": out_row,
                "start": (to, at + down * step) if further else (begin, start_at + down * step),
                "start_row": step,
                "scratch": (self._work, self._scratch),
                "found_a": (self._work, self._found_a),
                "found_b": found_b,
                "bounds": form.bounds if last else SMALL_TOO,
                "parts": 2 * PARTS,
                "one": VECTOR,
                "shapes": ("shapes", 0),
                "skipped": 0,
            }
            record = FEW_ROWS
            if few:
                place = self._draft.call(
                    few_rows_program(), record, chunks=deep, groups=few, four=4 * VECTOR, **words
                )
            words |= {
                "spare": (self._work, self._scratch + SCRATCH - _PAIR),
                "out_pair": out_row * 2 * SIDE,
                "start_pair": step * 2 * SIDE,
                "alpha": factor,
                "two": 2 * VECTOR,
                "row_pairs": row_pairs,
            }
            for column, column_pairs, wide in _groups(width, 2 * few):
                at_once = _rows_at_once(deep) if high == wide == 2 * SIDE else 0
                mixing = 2 * SIDE // at_once if at_once else 0
                record = MULTIPLY
                place = self._draft.call(
                    multiply_program(at_once),
                    record,
                    mixing=mixing,
                    chunks=deep - mixing,
                    column_pairs=column_pairs,
                    masks=(1 << wide) - 1,
                    **_moved(words, b=column * pair, out=column * _PAIR, start=column * _PAIR),
                )
        return place + record.names.index("skipped")


def _rows_at_once(chunks: int) -> int:
    """How many rows of sums, 1 to 32, go to their place with each of so many chunks, or fewer."""
    return 1 << max(0, ceil(log2(2 * SIDE / chunks)))


def _moved(words: _Words, **distances: int) -> _Words:
    """The words with some of the addresses further on."""
    made = dict(words)
    for name, distance in distances.items():
        word = words[name]
        assert isinstance(word, tuple)
        made[name] = (word[0], word[1] + distance)
    return made


def _groups(columns: int, done: int) -> list[tuple[int, int, int]]:
    """`regions` of pairs of tiles that are multiplied with each pair of rows; some are done."""
    found = []
    for begin, count, wide in regions(columns, 2 * SIDE):
        for first in range(max(begin, done), begin + count, _GROUP):
            found.append((first, min(_GROUP, begin + count - first), wide))
    return found


def cuts(length: int, parts: int, unit: int = 2 * SIDE) -> list[slice]:
    """Slices of a length, in whole units (pairs of tiles) but for the last one."""
    units = parallel.split(-(-length // unit), parts)
    return [slice(u.start * unit, min(u.stop * unit, length)) for u in units]


@kernel
def _set_larger(out: Matrix, one: Matrix, other: Matrix) -> None:
    out.store(maximum(one.load(), other.load()))


# -- products --------------------------------------------------------------------------------


#: Bytes that a thread keeps to work in.
_KEPT = 1 << 22


class _Rooms(threading.local):
    """Memory that threads work in, kept by who calls them: so it stays in the caches."""

    def __init__(self) -> None:
        self._free: list[Array] = []

    def take(self, sizes: Sequence[int]) -> list[Array]:
        """Arrays of so many bytes, at lines of the cache."""
        rooms, self._free = self._free[: len(sizes)], []  # should anybody come in between
        rooms += [np.empty(0, float32)] * (len(sizes) - len(rooms))
        for number, size in enumerate(sizes):
            if rooms[number].nbytes < size:
                made = memory.empty(((size + LINE) // 4,), float32)
                rooms[number] = made[-memory.address(made) % LINE // 4 :]
        return rooms

    def give_back(self, rooms: list[Array]) -> None:
        """Keep the arrays, but for large ones."""
        self._free = [room if room.nbytes <= _KEPT else room[:0].copy() for room in rooms]


_rooms = _Rooms()
_AT_ZEROS, _AT_SHAPES = memory.address(ZEROS), memory.address(SHAPES)


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
        For each product the blocks that aren't made. If it begins with something, they are as they
        were.
    """
    (rows, depth), of_a = a.shape, _lying(a, 1)
    assert of_a
    columns = sum([product.out.shape[1] for product in products])
    factor = _ONE if alpha == 1.0 else int.from_bytes(struct.pack("=f", alpha), "little")
    by_rows = _goes_by_rows(rows, columns, depth, parts)
    if parts > 1 and by_rows:  # else each thread would lay out the whole of the other side
        products = [
            side
            if side.laid or side.b.size < SHARED_FROM
            else side._replace(laid=Laid(side.b, right=True, parts=parts))
            for side in products
        ]
    form = _Form(rows, depth, of_a, tuple(map(_side, products)), factor, parts)
    template = _template(form)
    rooms = _rooms.take([size for _, _, size in template.shares])
    words = template.calls.at(*_addresses(template, a, products), *map(memory.address, rooms))
    short = rows * columns * depth <= _SHORT
    run_calls([(words[own], count) for own, count, _ in template.shares], short=short)
    left: list[list[_Block]] = [[] for _ in products]
    skipped = words[template.skipped]
    if skipped.any():
        for place in np.flatnonzero(skipped).tolist():
            number, block = template.blocks[place]
            if block not in left[number]:  # threads that share k leave out the same one
                left[number].append(block)
    if template.sums:
        for product, blocks, place in zip(products, left, template.sums, strict=True):
            if not blocks:
                _add_up(product, alpha, rooms, place // 4)
    _rooms.give_back(rooms)
    return left


def _goes_by_rows(rows: int, columns: int, depth: int, parts: int) -> bool:
    """Whether threads get rows of products, not columns or parts of k."""
    return rows >= min(columns, _LEAST_ROWS * parts) and not is_long(rows, columns, depth)


def _side(product: Product) -> _Side:
    b, out, start, laid = product
    by_row = 0 if start is None or start.ndim == 1 else start.strides[0]
    of_b = None if laid else _lying(b, 0)
    return _Side(out.shape[1], of_b, out.strides[0], by_row, start is None)


def _addresses(template: _Template, a: Array, products: Sequence[Product]) -> list[int]:
    """What addresses count from, as `_template` names them, but for memory to work in."""
    address = memory.address
    found = [_AT_ZEROS, _AT_SHAPES, address(template.zeros), address(a)]
    for b, out, start, laid in products:
        found += (address(b), 0) if laid is None else (laid.address, laid.found)
        found += address(out), 0 if start is None else address(start)
    return found


def _add_up(product: Product, alpha: float, rooms: list[Array], place: int) -> None:
    """What a long product is: the sums of all threads, and what it begins with."""
    out = product.out
    total, *others = (room[place : place + out.size].reshape(out.shape) for room in rooms)
    for sums in others:
        total += sums
    if alpha != 1.0:
        total *= float32.type(alpha)
    if product.start is None:
        np.copyto(out, total)
    else:
        np.add(product.start, total, out=out)


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
    side = _Side(b.shape[1], None, out.strides[-2], by_row, plain=False)
    template = _template(_Form(rows, depth, of_a, (side,), bounds=SMALL_TOO))
    ((_, _, size),) = template.shares
    work = memory.empty(((size + LINE) // 4,), float32)
    at = memory.address(work)
    given = [*_addresses(template, a, [Product(b, out, start, laid)]), at + -at % LINE]
    growth = np.zeros(len(given) + 1, np.int64)
    for place, stack in ((4, a), (7, out), (8, start)):  # as `_template` names them
        growth[place] = stack.strides[0] if stack.ndim == 3 and len(stack) > 1 else 0
    calls = template.calls
    chain.add(
        calls.at(*given),
        growth[calls.bases],
        calls.count,
        failures=template.skipped.tolist(),
        kept=(work, laid, template),
    )


def share_products(
    steps: Steps, a: Array, products: Sequence[Product], room: Callable[[int], Array]
) -> list[Array]:
    """Have products with one left side made by steps, shared out over their threads.

    What can't be split the steps count as failed; for small numbers see `link_product`.

    Args:
        steps: where they are written down.
        a: shape (rows, k), float32 as the others, one of its axes contiguous.
        products: the others, none of them laid out.
        room: makes memory that stays, of so many numbers, at a line of the cache.

    Returns:
        What `room` made; nothing reads it after these calls.
    """
    (rows, depth), of_a = a.shape, _lying(a, 1)
    assert of_a
    columns = sum([product.out.shape[1] for product in products])
    by_rows = _goes_by_rows(rows, columns, depth, steps.threads)
    sides: list[_Side] = []
    # What each base counts from; `stays` for what stays where it is.
    stays = np.zeros(1, np.int64)
    stacks = [stays, stays, stays, stays, a]
    rooms: list[Array] = []
    for side in products:
        lies, stack, found = _side(side), side.b, stays
        if steps.threads > 1 and by_rows and side.b.size >= SHARED_FROM:
            found = _laid_together(steps, side.b, room)
            lies, stack = lies._replace(b=None), found[FOUND // 4 :]
            rooms.append(found)
        sides.append(lies)
        stacks += [stack, found, side.out, stays if side.start is None else side.start]
    form = _Form(rows, depth, of_a, tuple(sides), parts=steps.threads, bounds=SMALL_TOO)
    template = _template(form)
    own_rooms = [room(-(-size // 4)) for _, _, size in template.shares]
    stacks += own_rooms
    constant = [_AT_ZEROS, _AT_SHAPES, memory.address(template.zeros)]
    given = [*constant, *map(memory.address, stacks[4:])]
    words, bases = template.calls.at(*given), template.calls.bases.tolist()

    def write(number: int) -> None:
        own, count, _ = template.shares[number]
        places = range(own.start, own.stop)
        leads_to = {at - own.start: stacks[bases[at]] for at in places}
        steps.add(
            words[own],
            np.zeros(len(places), np.int64),
            count,
            failures=[at - own.start for at in template.skipped.tolist() if at in places],
            kept=(template,),
            operands={at: stack for at, stack in leads_to.items() if stack is not stays},
        )

    steps.note_work(a.size * columns)
    steps.side_by_side([partial(write, number) for number in range(len(own_rooms))])
    for (_, out, start, _), place in zip(products, template.sums, strict=False):
        at = place // 4
        terms = [] if start is None else [start]  # first: it may be `out`
        terms += [work[at : at + out.size].reshape(out.shape) for work in own_rooms]
        steps.add_up(out, terms)
    return rooms + own_rooms


def _laid_together(steps: Steps, b: Array, room: Callable[[int], Array]) -> Array:
    """A right side laid out by all threads of steps: what is found of it, and its tiles."""
    depth, length = b.shape
    operand = _lying(b, 0)
    assert operand
    pieces = cuts(length, steps.threads)
    laid = room((FOUND + tiles_size(length, depth)) // 4)
    work = room(len(pieces) * _ROOM // 4).reshape(len(pieces), -1)

    def write(number: int) -> None:
        piece = pieces[number]
        calls = _laid(piece.stop - piece.start, depth, operand, True)
        tiles = laid[(FOUND + tiles_size(piece.start, depth)) // 4 :]
        stacks = [None, b[:, piece], tiles, work[number], None]
        places = [0 if stack is None else memory.address(stack) for stack in stacks[1:]]
        steps.add(
            calls.at(*places[:3], _AT_ZEROS),
            np.zeros(len(calls.words), np.int64),
            calls.count,
            failures=(),
            kept=(),
            operands={
                at: stack
                for at, base in enumerate(calls.bases.tolist())
                if (stack := stacks[base]) is not None
            },
        )

    steps.side_by_side([partial(write, number) for number in range(len(pieces))])
    largest, sums = laid[:LANES].reshape(1, -1), laid[LANES : 2 * LANES].reshape(1, -1)
    for function, into, first in ((_set_larger, largest, 0), (add_kernel, sums, LANES)):
        found = [own[None, first : first + LANES] for own in work]
        steps.kernel(copy_kernel, into, found[0])
        for other in found[1:]:
            steps.kernel(function, into, into, other)
    return laid


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
