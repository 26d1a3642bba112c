"""Products of matrices by tiles: shared out over threads, and made by steps and chains.

What they come to is in `tile_templates.py`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from .. import memory
from ..dtypes import Array, float32
from .calls import rooms_of_threads, run_calls
from .chain import Chain, Steps
from .compiler import LANES
from .elementary import add_kernel, copy_kernel
from .formula import Matrix, maximum
from .kernel import kernel
from .tile_layout import ROOM, layout_calls
from .tile_templates import (
    ONE,
    SHARED,
    Block,
    Form,
    Side,
    Template,
    cuts,
    goes_by_rows,
    lying,
    template_of,
)
from .tiles import FOUND, HIGH, LINE, LOW, SHAPES, SMALL_TOO, ZEROS, tiles_size

#: Multiply-adds up to which products are short, and keep the GIL; and numbers that are laid out.
_SHORT, _FEW = 1 << 24, 1 << 17
#: Numbers of a right side that threads lay out together.
SHARED_FROM = 1 << 17


# -- sides -----------------------------------------------------------------------------------


class Laid:
    """The right side of products, laid out as tiles.

    Args:
        matrix: shape (k, columns), float32.
        parts: how many threads share the work.

    Attributes:
        address: where the tiles begin: pairs of tiles, for each the chunks of k.
        found: where it is what was found.
    """

    def __init__(self, matrix: Array, *, parts: int = 1) -> None:
        depth, length = matrix.shape
        operand = lying(matrix.strides, 0)
        if operand is None:  # neither axis is contiguous
            matrix = np.ascontiguousarray(matrix)
            operand = lying(matrix.strides, 0)
            assert operand
        pieces = cuts(length, parts)
        room = len(pieces) * ROOM
        size = room + tiles_size(length, depth)
        self._memory = memory.empty(((size + LINE) // 4,), float32)
        self._size = size - room
        work = memory.address(self._memory)
        self.found = work + -work % LINE
        self.address = self.found + room
        shares = []
        for number, piece in enumerate(pieces):
            calls = layout_calls(piece.stop - piece.start, depth, operand)
            words = calls.at(
                memory.address(matrix[:, piece]),
                self.address + tiles_size(piece.start, depth),
                self.found + number * ROOM,
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

    @property
    def tiles(self) -> Array:
        """The tiles."""
        return self._at(self.address, self._size)

    @property
    def facts(self) -> Array:
        """What was found."""
        return self._at(self.found, FOUND)

    def _at(self, address: int, size: int) -> Array:
        first = (address - memory.address(self._memory)) // 4
        return self._memory[first : first + size // 4]

    def can_be_split(self) -> bool:
        """Whether tiles take the numbers."""
        return bool(LOW < self._largest.max() < HIGH) and not np.isnan(self._sums).any()


class Given(NamedTuple):
    """What stands for a right side laid out, in steps whose addresses change."""

    tiles: Array
    facts: Array


class Product(NamedTuple):
    """What is made with a left side: out = start + alpha * a @ b.

    Attributes:
        b: shape (k, columns), float32, one of its axes contiguous.
        out: shape (rows, columns), contiguous rows unless the product `is_long`; shares no memory
            with a or b.
        start: shape (columns,), or (rows, columns) with contiguous rows, which may be `out`; None
            for zeros.
        laid: b laid out, if it is; what stands for that is for `share_products` alone.
    """

    b: Array
    out: Array
    start: Array | None = None
    laid: Laid | Given | None = None


@kernel
def _set_larger(out: Matrix, one: Matrix, other: Matrix) -> None:
    out.store(maximum(one.load(), other.load()))


# -- products --------------------------------------------------------------------------------


_AT_ZEROS, _AT_SHAPES = memory.address(ZEROS), memory.address(SHAPES)


def multiply_each(
    a: Array, products: Sequence[Product], *, alpha: float = 1.0, parts: int = 1
) -> list[list[Block]]:
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
    (rows, depth), of_a = a.shape, lying(a.strides, 1)
    assert of_a
    columns = sum([product.out.shape[1] for product in products])
    factor = ONE if alpha == 1.0 else int.from_bytes(struct.pack("=f", alpha), "little")
    by_rows = goes_by_rows(rows, columns, depth, parts)
    if parts > 1 and by_rows:  # else each thread would lay out the whole of the other side
        products = [
            side
            if side.laid or side.b.size < SHARED_FROM
            else side._replace(laid=Laid(side.b, parts=parts))
            for side in products
        ]
    form = Form(rows, depth, of_a, tuple(map(_side, products)), factor, parts)
    template = template_of(form)
    rooms = rooms_of_threads.take([size for _, _, size in template.shares])
    words = template.calls.at(*_addresses(template, a, products), *map(memory.address, rooms))
    short = rows * columns * depth <= _SHORT
    run_calls([(words[own], count) for own, count, _ in template.shares], short=short)
    left: list[list[Block]] = [[] for _ in products]
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
    rooms_of_threads.give_back(rooms)
    return left


def _side(product: Product) -> Side:
    b, out, start, laid = product
    by_row = 0 if start is None or start.ndim == 1 else start.strides[0]
    of_b = None if laid else lying(b.strides, 0)
    return Side(out.shape[1], of_b, out.strides[0], by_row, start is None)


def _addresses(template: Template, a: Array, products: Sequence[Product]) -> list[int]:
    """What addresses count from, as `template_of` names them, but for memory to work in."""
    address = memory.address
    found = [*_constant(template), address(a)]
    for b, out, start, laid in products:
        assert not isinstance(laid, Given)
        found += (address(b), 0) if laid is None else (laid.address, laid.found)
        found += address(out), 0 if start is None else address(start)
    return found


def _constant(template: Template) -> list[int]:
    """What all addresses of `SHARED` count from but those of the left side."""
    return [_AT_ZEROS, _AT_SHAPES, memory.address(template.zeros)]


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

    What can't be split the chain counts as failed, and `out` may have a part of it. Numbers may be
    as small as they like: below 2⁻¹⁰² they lose their last bits.

    Args:
        chain: the chain.
        a: matrices (rows, k), one for each step.
        b: shape (k, columns).
        laid: b laid out.
        start: matrices (rows, columns), or (columns,) for all rows; may be `out`.
        out: matrices (rows, columns).
    """
    rows, depth = a.shape[-2:]
    of_a = lying(a[0].strides, 1)
    assert of_a
    by_row = start.strides[-2] if start.ndim > 1 else 0
    side = Side(b.shape[1], None, out.strides[-2], by_row, plain=False)
    template = template_of(Form(rows, depth, of_a, (side,), bounds=SMALL_TOO))
    ((_, _, size),) = template.shares
    work = memory.empty(((size + LINE) // 4,), float32)
    at = memory.address(work)
    given = [*_addresses(template, a, [Product(b, out, start, laid)]), at + -at % LINE]
    growth = np.zeros(len(given) + 1, np.int64)
    for place, stack in ((4, a), (7, out), (8, start)):  # as `template_of` names them
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

    What can't be split the steps count as failed, and `out` may have a part of it; for small
    numbers see `link_product`.

    Args:
        steps: where they are written down.
        a: shape (rows, k), float32 as the others, one of its axes contiguous.
        products: the others.
        room: makes memory that stays, of so many numbers, at a line of the cache.

    Returns:
        What `room` made; nothing reads it after these calls.
    """
    (rows, depth), of_a = a.shape, lying(a.strides, 1)
    assert of_a
    columns = sum([product.out.shape[1] for product in products])
    by_rows = goes_by_rows(rows, columns, depth, steps.threads)
    sides: list[Side] = []
    # What each base counts from; `stays` for what stays where it is.
    stays = np.zeros(1, np.int64)
    stacks = [stays, *[stays] * (len(SHARED) - 1), a]
    rooms: list[Array] = []
    for side in products:
        lies, stack, found = _side(side), side.b, stays
        if side.laid:
            stack, found = side.laid.tiles, side.laid.facts
        elif steps.threads > 1 and by_rows and side.b.size >= SHARED_FROM:
            found, work = _laid_together(steps, side.b, room)
            lies, stack = lies._replace(b=None), found[FOUND // 4 :]
            rooms += (found, work)
        sides.append(lies)
        stacks += [stack, found, side.out, stays if side.start is None else side.start]
    form = Form(rows, depth, of_a, tuple(sides), parts=steps.threads, bounds=SMALL_TOO)
    template = template_of(form)
    own_rooms = [room(-(-size // 4)) for _, _, size in template.shares]
    stacks += own_rooms
    given = [*_constant(template), *map(memory.address, stacks[len(SHARED) :])]
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


def _laid_together(steps: Steps, b: Array, room: Callable[[int], Array]) -> tuple[Array, Array]:
    """A right side laid out by all threads of steps: what is found of it, and its tiles.

    Returns:
        These; and memory that it takes to make them.
    """
    depth, length = b.shape
    operand = lying(b.strides, 0)
    assert operand
    pieces = cuts(length, steps.threads)
    laid = room((FOUND + tiles_size(length, depth)) // 4)
    room_for_all = room(len(pieces) * ROOM // 4)
    work = room_for_all.reshape(len(pieces), -1)

    def write(number: int) -> None:
        piece = pieces[number]
        calls = layout_calls(piece.stop - piece.start, depth, operand)
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
    return laid, room_for_all


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
        and lying(a.strides, 1) is not None
        and lying(b.strides, 0) is not None
    )
