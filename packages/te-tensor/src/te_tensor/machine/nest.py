"""Nests: kernels and products for each of many small matrices, in one call.

A head of attention takes a few products and kernels of a few rows. From Python each call would
cost more than it does, and what it makes would leave the cache before the next one reads it. A
nest is the calls for one matrix, and how far each operand's address moves along up to three axes.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

import numpy as np

from .. import memory, parallel
from ..dtypes import Array, float32
from .calls import Calls, rooms_of_threads
from .compiler import LANES, VECTOR
from .elementary import fill_kernel
from .kernel import Kernel
from .nest_calls import (
    ITEM,
    KernelCall,
    LayoutCall,
    Lying,
    NestCall,
    ProductCall,
    TiledCall,
    TransposedCall,
)
from .nest_parts import AXES, Part, nest_code, nest_function, parts_of
from .tile_layout import ROOM
from .tile_templates import lying
from .tiles import SHAPES, ZEROS, tiles_size

#: Numbers in all matrices from which threads that are awake share them, and from which others are
#: woken and the GIL is given away. A thousand take half a microsecond, a thread's records 20, and
#: waking it 40.
_SHARED_FROM, _WOKEN_FROM = 1 << 17, 1 << 19
#: Multiply-adds, and rows and columns, and k, from which tiles are ahead of vectors.
_TILED_FROM, _SHORTEST, _SHALLOWEST = 5 << 19, 64, 32


class Own:
    """A matrix of each thread's own, which it writes anew for each of its matrices.

    Attributes:
        shape, strides: as those of an array (rows, columns) of float32.
        place: bytes from where a thread's own memory begins.
    """

    def __init__(self, shape: tuple[int, int], strides: tuple[int, int], place: int) -> None:
        self.shape, self.strides, self.place = shape, strides, place

    @property
    def turned(self) -> Own:
        """The same with rows and columns exchanged."""
        return Own(self.shape[::-1], self.strides[::-1], self.place)

    def last(self, begin: int) -> Own:
        """Its columns from one on."""
        shape = self.shape[0], self.shape[1] - begin
        return Own(shape, self.strides, self.place + begin * self.strides[1])

    def first(self, columns: int) -> Own:
        """Its first columns."""
        return Own((self.shape[0], columns), self.strides, self.place)


class LaidOut(NamedTuple):
    """A right side that a nest lays out.

    Attributes:
        shape: (k, columns).
        tiles: its tiles.
        found: what was found.
    """

    shape: tuple[int, int]
    tiles: Own
    found: Own


#: Memory of each thread's own that products by tiles work in, one after the other.
_TILES = Own((0, 0), (0, 0), 0)


class Nest:
    """Calls that are made for each matrix of stacks.

    Stacks are arrays of float32 whose last two axes are those of the matrices, and whose others
    broadcast to the nest's. Callers see to it that kernels run in AVX-512, that no operand is of
    size 0, and that what one matrix's calls write no other one's use.

    Args:
        lead: lengths of up to three axes. They are cut over the threads along the first one.
        alone: all of it is for the caller's thread: then matrices may write to the same memory,
            one after the other.
        tiles: large products go by tiles. What these can't split, `Part.failures` say.
    """

    def __init__(self, *lead: int, alone: bool = False, tiles: bool = False) -> None:
        self._alone, self._tiles = alone, tiles
        self._lead = (1,) * (AXES - len(lead)) + lead
        self._calls: list[NestCall] = []
        #: What the words that are addresses lead to, in the order of the words.
        self._operands: list[Array | Own] = []
        #: Bytes that a thread needs for itself, and then for its tiles.
        self._own = self._of_tiles = 0
        self._work = 0

    def kernel(self, kernel: Kernel, *given: Any, first: bool = False) -> None:
        """Have a kernel go over rows of matrices; the first one says how many rows, and columns.

        Args:
            kernel: the kernel.
            given: its operands; scalars come last. A matrix of one row serves for all rows; a
                `Column` is a matrix of one column.
            first: before everything else, once for all matrices along the last axis.
        """
        stacks = given[: kernel.arrays]
        rows, columns = stacks[0].shape[-2:]
        self._work += rows * columns
        lying = tuple([Lying(stack.shape, stack.strides) for stack in stacks])
        self._calls.append(KernelCall(kernel, lying, given[kernel.arrays :], first))
        self._operands += stacks

    def own(self, rows: int, columns: int) -> Own:
        """Memory of each thread's own for a matrix that ends with whole vectors."""
        whole = columns + -columns % LANES
        # Rows a line of the cache further apart than they are long don't contend for places in it.
        made = Own((rows, whole), (ITEM * whole + VECTOR, ITEM), self._own)
        self._own += rows * made.strides[0]
        return made

    def lay(self, b: Array, rows: int) -> Array | LaidOut:
        """Have the right side of products laid out, once for all matrices along the last axis.

        Args:
            b: matrices (k, n), the same ones along that axis.
            rows: those of the left sides.

        Returns:
            What the products take; b itself where they don't go by tiles.
        """
        depth, columns = b.shape[-2:]
        operand = lying(b.strides, 0)
        if not (self._tiles and operand and _suit_tiles(rows, depth, columns)):
            return b
        laid = LaidOut((depth, columns), self._room(tiles_size(columns, depth)), self._room(ROOM))
        call = LayoutCall(Lying(b.shape, b.strides), operand)
        self._add(call, call.calls(), (b, laid.tiles, laid.found, ZEROS))
        return laid

    def _room(self, size: int) -> Own:
        """So many bytes of each thread's own."""
        made = Own((1, -(-size // ITEM)), (size, ITEM), self._own)
        self._own += size + -size % VECTOR
        return made

    def _add(self, call: NestCall, calls: Calls, leads_to: Sequence[Array | Own]) -> None:
        """Add a call that comes to calls written down, and what their bases are."""
        self._operands += [leads_to[base - 1] for base in calls.bases.tolist() if base]
        self._calls.append(call)

    def product(
        self, a: Array | Own, b: Array | Own | LaidOut, out: Array | Own, *, add: bool = False
    ) -> None:
        """Have out = a @ b made.

        Args:
            a: matrices (m, k), of any strides but 0.
            b: matrices (k, n), one of their axes contiguous; or what `lay` gave.
            out: matrices (m, n), columns contiguous. There may be more than b has, up to a
                whole vector, if its rows are contiguous: they come to be 0.
            add: add to what is there.
        """
        (rows, depth), columns = a.shape[-2:], out.shape[-1]
        if isinstance(b, LaidOut) or (self._tiles and _by_tiles(a, b)):
            self._by_tiles(a, b, self._zeros_behind(out, b.shape[-1]), add)
            return
        if b.shape[-1] < columns or (columns > 1 and b.strides[-1] != ITEM):
            b = self._transposed(b.turned if isinstance(b, Own) else b.swapaxes(-1, -2))
        start: Array | Own = out if add else _nothing(columns)
        self._work += rows * columns * (1 + depth // LANES)
        operands = (a, b, start, out)
        self._calls.append(ProductCall(*[Lying(x.shape, x.strides) for x in operands]))
        self._operands += (a, start, out, b)

    def _zeros_behind(self, out: Array | Own, columns: int) -> Array | Own:
        """The first columns, the others being set to 0."""
        if out.shape[-1] == columns:
            return out
        if isinstance(out, Own):
            self.kernel(fill_kernel, out.last(columns), 0.0)
            return out.first(columns)
        self.kernel(fill_kernel, out[..., columns:], 0.0)
        return out[..., :columns]

    def _by_tiles(
        self, a: Array | Own, b: Array | Own | LaidOut, out: Array | Own, add: bool
    ) -> None:
        self._work += a.shape[-2] * out.shape[-1] * (1 + a.shape[-1] // LANES)
        of_a, of_out = Lying(a.shape, a.strides), Lying(out.shape, out.strides)
        tiles, found, of_b = (
            (b.tiles, b.found, None)
            if isinstance(b, LaidOut)
            else (b, ZEROS, Lying(b.shape, b.strides))
        )
        call = TiledCall(of_a, of_b, of_out, add)
        made = call.template()
        ((_, _, size),) = made.shares
        self._of_tiles = max(self._of_tiles, size)
        # In the order of `SHARED` and `OWN`; then memory to work in.
        leads_to = (ZEROS, SHAPES, made.zeros, a, tiles, found, out, out, _TILES)
        self._add(call, made.calls, leads_to)

    def _transposed(self, stack: Array | Own) -> Own:
        """Have matrices (n, k) copied as (k, n), and zeros up to a whole vector."""
        if stack.strides[-1] != ITEM and stack.shape[-1] > 1:
            raise ValueError(f"matrices with strides {stack.strides}: expected contiguous rows")
        rows, columns = stack.shape[-2:]
        out = self.own(columns, rows)
        self._work += rows * columns
        self._calls.append(
            TransposedCall(Lying(stack.shape, stack.strides), Lying(out.shape, out.strides))
        )
        self._operands += (stack, out)
        return out

    def run(self) -> bool:
        """Make all calls, if there are any; whether tiles could split all numbers."""
        if not self._calls:
            return True
        pieces = 1 if self._alone else min(_threads(self.work), self.length)
        short = self.work < _WOKEN_FROM
        rooms = rooms_of_threads.take([self.own_size * ITEM] * pieces)
        parts = self.parts(pieces)
        written, records = [], []
        for part, room in zip(parts, rooms, strict=True):
            words = np.empty(len(part.words), np.int64)
            addresses = [0, memory.address(words), *self._addresses(room)]
            np.add(part.words, np.array(addresses)[part.bases], out=words)
            written.append(words)
            records.append(struct.pack("=q", memory.address(words)))
        if pieces > 1:
            parallel.share([(nest_code().address, record) for record in records], short=short)
        else:
            nest_function(short)(records[0])
        rooms_of_threads.give_back(rooms)
        return not any(
            words[part.failures].any()
            for words, part in zip(written, parts, strict=True)
            if part.failures
        )

    def parts(self, pieces: int) -> list[Part]:
        """What each of so many threads goes through."""
        return parts_of(self._lead, pieces, tuple(self._calls))

    @property
    def own_size(self) -> int:
        """How many numbers of its own a thread needs memory for."""
        return -(-(self._own + self._of_tiles) // ITEM) + LANES

    def operands(self, room: Array) -> list[Array]:
        """The arrays that addresses lead to, for a thread with this memory of its own."""
        first = -memory.address(room) % VECTOR // ITEM
        return [
            room[first + self._place(operand) // ITEM :] if isinstance(operand, Own) else operand
            for operand in self._operands
        ]

    def _addresses(self, room: Array) -> list[int]:
        """Those of `operands`, each looked up once."""
        first = memory.address(room)
        first += -first % VECTOR
        known = {id(x): x for x in self._operands}
        found = {
            place: first + self._place(x) if isinstance(x, Own) else memory.address(x)
            for place, x in known.items()
        }
        return [found[id(x)] for x in self._operands]

    def _place(self, own: Own) -> int:
        return self._own if own is _TILES else own.place

    @property
    def length(self) -> int:
        """That of the axis that is cut over the threads."""
        return self._lead[0]

    @property
    def work(self) -> int:
        """Numbers in all matrices."""
        return self._work * prod(self._lead)


def _by_tiles(a: Array | Own, b: Array | Own) -> bool:
    """Whether tiles make such a product sooner than vectors."""
    rows, depth = a.shape[-2:]
    return (
        _suit_tiles(rows, depth, b.shape[-1])
        and lying(a.strides, 1) is not None
        and lying(b.strides, 0) is not None
    )


def _suit_tiles(rows: int, depth: int, columns: int) -> bool:
    return (
        rows * columns * depth >= _TILED_FROM
        and min(rows, columns) >= _SHORTEST
        and depth >= _SHALLOWEST
    )


@lru_cache(64)
def _nothing(columns: int) -> Array:
    """What a product begins with that isn't added to anything."""
    return np.zeros((1, columns), float32)


def _threads(work: int) -> int:
    """How many threads go through a nest of so many numbers."""
    crew, threads = parallel.crew(), parallel.parts()
    if crew is None or work < _SHARED_FROM:
        return 1
    # A caller that has woken somebody is done before that one is there.
    ready = work >= _WOKEN_FROM or all(map(crew.awake, range(threads - 1)))
    return threads if ready else 1
