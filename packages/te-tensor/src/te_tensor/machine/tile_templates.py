"""What products by tiles come to: calls written down once for all products of a kind.

What a product's calls are depends on how large its matrices are and how they lie. A product adds
the addresses. Matrices go through in blocks that stay in a core's cache.
"""

from __future__ import annotations

import itertools
import struct
from functools import lru_cache
from itertools import product
from math import ceil, log2
from typing import NamedTuple, TypeAlias

import numpy as np

from .. import parallel
from ..dtypes import Array, float32
from .calls import Calls, Draft
from .compiler import VECTOR
from .tile_layout import Layout
from .tile_multiply import FEW_ROWS, MULTIPLY, SCRATCH, WIDE, few_rows_program, multiply_program
from .tiles import BOUNDS, DEPTH, FOUND, LINE, PARTS, SIDE, SMALL_TOO, Operand, regions, tiles_size

#: The most k that goes through the tiles at once; and the most numbers whose parts stay in the
#: second-level cache meanwhile.
_K, _NUMBERS = 512, 1 << 17
#: Pairs of tiles side by side that are multiplied with each pair of rows in turn: so many that what
#: is written of a row lies together, and few enough that they stay in that cache too.
_GROUP = 2
#: The bits of 1, a factor that changes nothing.
ONE = int.from_bytes(struct.pack("=f", 1.0), "little")
#: Rows for a thread from which it gets rows, not columns.
_LEAST_ROWS = 256
#: A long product sums over a k of so many times its rows and columns. Both sides are laid out a
#: stretch of k at a time, of so many numbers that they stay in the second-level cache.
_LONG, _STRETCH = 2, 1 << 17
#: Bytes of a row of two tiles of float32.
_PAIR = 2 * VECTOR


def lying(strides: tuple[int, ...], by_k_axis: int) -> Operand | None:
    """How a matrix lies; None where neither axis is contiguous.

    Args:
        strides: those of an array whose last two axes are the matrix's.
        by_k_axis: which one is k's, 0 or 1.
    """
    steps = strides[-2:]
    for axis in (by_k_axis, 1 - by_k_axis):
        if steps[axis] == 4 and steps[1 - axis] > 0:
            return Operand(steps[1 - axis], axis == by_k_axis)
    return None


class Side(NamedTuple):
    """How a product with a left side lies."""

    columns: int
    #: The right side; None where it is laid out.
    b: Operand | None
    out_row: int
    start_row: int
    #: Whether it begins at 0.
    plain: bool


class Form(NamedTuple):
    """What products have in common that are made by the same calls."""

    rows: int
    depth: int
    a: Operand
    sides: tuple[Side, ...]
    #: The bits of alpha.
    factor: int = ONE
    #: How many threads share the work.
    parts: int = 1
    bounds: int = BOUNDS
    #: Whether sums of a long product may be in memory of the threads' own, to be added up.
    sums_apart: bool = True

    @property
    def is_long(self) -> bool:
        """As the function says; what is laid out is not."""
        long = is_long(self.rows, sum(side.columns for side in self.sides), self.depth)
        return self.sums_apart and long and all(side.b for side in self.sides)


def is_long(rows: int, columns: int, depth: int) -> bool:
    """Whether a product, of matrices that aren't laid out, goes along k first.

    Threads then share k, and sums are added up at the end.
    """
    sides = rows + columns
    return depth >= _LONG * sides and DEPTH * sides <= _STRETCH


#: Rows and columns of a product that aren't made, and are as they were.
Block: TypeAlias = tuple[slice, slice]
#: Words of a record; see `Draft.call`.
_Words: TypeAlias = dict[str, int | tuple[str, int]]


class Template(NamedTuple):
    """The calls of products with one left side."""

    calls: Calls
    #: For each thread its words, how many calls they are, and the bytes that it works in.
    shares: list[tuple[slice, int, int]]
    #: The places of words that say whether a block was left out; whose it is, and which.
    skipped: Array
    blocks: list[tuple[int, Block]]
    #: Of a long product, where in that memory each side's sums are.
    sums: list[int]
    #: What products begin with that begin with nothing.
    zeros: Array


#: Names of what addresses count from, in order: what products have in common, and each one's own.
SHARED, OWN = ("zeros", "shapes", "nothing", "a"), ("b", "found_b", "out", "start")


@lru_cache(1024)
def template_of(form: Form) -> Template:
    """The calls of such products."""
    zeros = np.zeros(max(side.columns for side in form.sides), float32)
    shares = _shared_out(form)
    own = [f"{name} {number}" for number in range(len(form.sides)) for name in OWN]
    works = [f"work {number}" for number in range(len(shares))]
    draft = Draft(*SHARED, *own, *works)
    made = [_Share(draft, form, work, part) for work, part in zip(works, shares, strict=True)]
    return Template(
        draft.done(),
        [(share.words, share.count, share.size) for share in made],
        np.array([place for share in made for place in share.skipped]),
        [block for share in made for block in share.blocks],
        made[0].sums,
        zeros,
    )


def _shared_out(form: Form) -> list[tuple[slice, list[slice], slice]]:
    """What each thread does: rows, columns of each side, and k."""
    widths = [side.columns for side in form.sides]
    rows, k = slice(0, form.rows), slice(0, form.depth)
    columns = [slice(0, width) for width in widths]
    if form.is_long:
        return [(rows, columns, part) for part in cuts(form.depth, form.parts)]
    if goes_by_rows(form.rows, sum(widths), form.depth, form.parts):
        return [(part, columns, k) for part in cuts(form.rows, form.parts)]
    each = [cuts(width, form.parts) for width in widths]
    pieces = itertools.zip_longest(*each, fillvalue=slice(0, 0))
    return [(rows, list(own), k) for own in pieces]


class _Share:
    """Writes down the calls of a thread.

    Attributes:
        words, count, size: as in `Template.shares`.
        skipped, blocks, sums: as in `Template`.
    """

    def __init__(
        self, draft: Draft, form: Form, work: str, part: tuple[slice, list[slice], slice]
    ) -> None:
        self._draft, self._form, self._work = draft, form, work
        self._rows, self._columns, self._k = part
        self._long = form.is_long
        first, before = draft.length, draft.count
        self.size = 0
        self.skipped: list[int] = []
        self.blocks: list[tuple[int, Block]] = []
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
        # Where all is made anew if anything can't be split, a part of k of a block is laid out only
        # when it's wanted, and stays in the cache.
        by_parts = form.bounds == SMALL_TOO and not self._long
        self._found_a = self._room(FOUND)
        self._of_a = self._room(tiles_size(block, min(deepest, _K) if by_parts else deepest))
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
            chunks = ceil((stretch.stop - stretch.start) / DEPTH)
            parts = parallel.split(chunks, ceil(chunks * DEPTH / _K))
            laid = [[part] for part in parts] if by_parts else [parts]
            for first, own in product(range(0, height, block), laid):
                here = slice(first, min(first + block, height))
                whole = slice(own[0].start, own[-1].stop)
                begin, end = (stretch.start + at * DEPTH for at in (whole.start, whole.stop))
                self._lay_out_a(here, slice(begin, min(end, stretch.stop)))
                for number, width in enumerate(widths):
                    if not width:
                        continue
                    place = self._multiply(number, here, width, stretch, own, last)
                    if last and own is laid[-1]:
                        at = slice(self._rows.start + here.start, self._rows.start + here.stop)
                        self.skipped.append(place)
                        self.blocks.append((number, (at, self._columns[number])))

    def _lay_out_a(self, rows: slice, k: slice) -> None:
        a = self._form.a
        by_k, by_row = (4, a.step) if a.by_k else (a.step, 4)
        at = (self._rows.start + rows.start) * by_row + (self._k.start + k.start) * by_k
        Layout(
            *(("a", at), a, not a.by_k, rows.stop - rows.start, k.stop - k.start),
            tiles=(self._work, self._of_a),
            found=(self._work, self._found_a),
            scratch=(self._work, self._scratch),
        ).add(self._draft, more=k.start > 0)

    def _lay_out_b(self, number: int, width: int, k: slice) -> None:
        b = self._form.sides[number].b
        if b is None or not width:
            return
        by_k, by_column = (4, b.step) if b.by_k else (b.step, 4)
        at = self._columns[number].start * by_column + (self._k.start + k.start) * by_k
        Layout(
            *((f"b {number}", at), b, b.by_k, width, k.stop - k.start),
            tiles=(self._work, self._of_b[number]),
            found=(self._work, self._found_b[number]),
            scratch=(self._work, self._scratch),
        ).add(self._draft, more=k.start > 0)

    def _multiply(
        self, number: int, rows: slice, width: int, stretch: slice, parts: list[slice], last: bool
    ) -> int:
        """A block of rows with a right side.

        Args:
            number: the side's.
            rows: of the block.
            width: that of the side.
            stretch: the k that the right side is laid out for.
            parts: the chunks of it that the block is laid out for, in parts.
            last: whether it is the last stretch.

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
            begin, start_at, start_row, plain, factor = "nothing", 0, 0, True, ONE
        else:
            first, beside = self._rows.start + rows.start, self._columns[number].start * 4
            out_row, start_row = side.out_row, side.start_row
            to, at = f"out {number}", first * out_row + beside
            begin, start_at = f"start {number}", first * start_row + beside
            plain, factor = side.plain, form.factor
            if plain:
                begin, start_at = "nothing", 0
        place = 0
        pair_of_a = 2 * (parts[-1].stop - parts[0].start) * PARTS
        for piece, (row, row_pairs, high) in product(
            parts, regions(rows.stop - rows.start, 2 * SIDE)
        ):
            # Sums of a part of k begin at 0: their errors are those of numbers as large as its own.
            further = piece.start > 0 or stretch.start > 0
            deep = piece.stop - piece.start
            step = out_row if further else start_row
            down = row * 2 * SIDE
            ahead, ahead_b = ((piece.start - at) * 2 * PARTS for at in (parts[0].start, 0))
            few = width // WIDE if high <= SIDE and factor == ONE else 0
            words: _Words = {
                "a": (self._work, self._of_a + row * pair_of_a + ahead),
                "b": (base, start_b + ahead_b),
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
                "a_pair": pair_of_a,
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


def goes_by_rows(rows: int, columns: int, depth: int, parts: int) -> bool:
    """Whether threads get rows of products, not columns or parts of k."""
    return rows >= min(columns, _LEAST_ROWS * parts) and not is_long(rows, columns, depth)
