"""Nests: kernels and products for each of many small matrices, in one call.

A head of attention takes a few products and kernels of a few rows. From Python each call would
cost more than it does, and what it makes would leave the cache before the next one reads it. A
nest is the calls for one matrix, and how far each operand's address moves along up to three axes.
"""

from __future__ import annotations

import ctypes
import itertools
import struct
from collections.abc import Sequence
from functools import cache, lru_cache
from math import prod
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from .. import memory, parallel
from ..dtypes import Array, float32
from ..executable import Code
from . import product, transposition
from .assembler import CALLEE_SAVED, R12, R13, R14, R15, RAX, RBP, RBX, RCX, RDI, Assembler, Memory
from .calls import PREFIX, WORD, Calls, rooms_of_threads
from .compiler import LANES, VECTOR
from .elementary import fill_kernel
from .kernel import Kernel, as_words
from .tile_layout import ROOM, layout_calls
from .tile_templates import Form, Side, Template, lying, template_of
from .tiles import SHAPES, SMALL_TOO, ZEROS, Operand, tiles_size

#: Axes that matrices lie along.
_AXES = 3
_WORD, _ITEM = WORD, 4
#: Where a nest's words are: how many calls come before those for the last axis, where they are; the
#: same of these, and of addresses that move; and the lengths of the axes from the last one to the
#: first.
_FIRST, _FIRST_AT, _CALLS, _CALLS_AT, _MOVES, _MOVES_AT, _LENGTHS = range(0, 7 * WORD, WORD)
_HEAD = 6 + _AXES
#: Words for each call: its code and its record; and for each address: where it is, and how far it
#: moves along each axis, from the last one to the first.
_CALL, _MOVE = 2, 1 + _AXES
#: Numbers in all matrices from which threads that are awake share them, and from which others are
#: woken and the GIL is given away. A thousand take half a microsecond, a thread's records 20, and
#: waking it 40.
_SHARED_FROM, _WOKEN_FROM = 1 << 17, 1 << 19
#: Multiply-adds, and rows and columns, and k, from which tiles are ahead of vectors.
_TILED_FROM, _SHORTEST, _SHALLOWEST = 5 << 19, 64, 32


@cache
def nest_code() -> Code:
    """A function of the address of a nest's address."""
    code = Assembler()
    counters = (R14, R13, R12)
    for register in CALLEE_SAVED:
        code.push(register)
    code.load(RBX, Memory(RDI))
    loops = []
    for axis in reversed(range(_AXES)):
        if not axis:
            _make_calls(code, _FIRST, _FIRST_AT)
        code.load(counters[axis], Memory(RBX, offset=_LENGTHS + axis * _WORD))
        loops.append(code.here())
    _make_calls(code, _CALLS, _CALLS_AT)
    for axis in range(_AXES):
        code.load(R15, Memory(RBX, offset=_MOVES_AT))
        code.load(RBP, Memory(RBX, offset=_MOVES))
        place = code.here()
        code.load(RAX, Memory(R15))
        code.load(RCX, Memory(RAX))
        code.add(RCX, Memory(R15, offset=_WORD * (1 + axis)))
        code.keep(Memory(RAX), RCX)
        _next(code, R15, _MOVE)
        code.jump("not zero", place)
        code.add_number(counters[axis], -1)
        code.jump("not zero", loops.pop())
    for register in reversed(CALLEE_SAVED):
        code.pop(register)
    code.give_back()
    return Code(code.finish())


def _make_calls(code: Assembler, count: int, at: int) -> None:
    """Make the calls of a list, perhaps none."""
    code.load(R15, Memory(RBX, offset=at))
    code.load(RBP, Memory(RBX, offset=count))
    code.add_number(RBP, 0)
    none = code.jump("zero")
    call = code.here()
    code.load(RDI, Memory(R15, offset=_WORD))
    code.call(Memory(R15))
    _next(code, R15, _CALL)
    code.jump("not zero", call)
    code.land(none)


def _next(code: Assembler, place: int, words: int) -> None:
    """Go to the next entry of a list; whether there is none is what `jump` asks."""
    code.add_number(place, words * _WORD)
    code.add_number(RBP, -1)


class _Lying(NamedTuple):
    """How a stack of matrices lies."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def by_row(self) -> int:
        """Bytes from row to row; a matrix of one row serves for all."""
        return self.strides[-2] if self.shape[-2] > 1 else 0


class _Here(NamedTuple):
    """A word of a record: where another one of it is."""

    word: int


class _At(NamedTuple):
    """An address so far into a matrix, or into memory that is the same for all of them."""

    matrix: _Lying | None
    distance: int


class _Entry(NamedTuple):
    """The call of a program."""

    code: int
    words: Sequence[int | _Here | _Lying | _At]
    #: Words of the record that the program changes if it can't do its work.
    failures: Sequence[int] = ()
    #: Whether it comes before those for the last axis.
    first: bool = False


class _KernelCall(NamedTuple):
    """A kernel over rows of matrices."""

    kernel: Kernel
    matrices: tuple[_Lying, ...]
    scalars: tuple[float, ...]
    first: bool

    def entries(self) -> list[_Entry]:
        program = self.kernel.program()
        head = program.head(*self.matrices[0].shape[-2:])
        numbers = as_words(self.scalars)
        words: list[int | _Here | _Lying] = [*head]
        # A kernel looks for addresses in array objects, behind their heads; here they are at the
        # record's end.
        behind = len(head) + 2 * len(self.matrices) + len(numbers)
        for number, matrix in enumerate(self.matrices):
            words += (_Here(behind + number), matrix.by_row)
        return [_Entry(program.address, [*words, *numbers, *self.matrices], first=self.first)]


class _ProductCall(NamedTuple):
    """out = start + a @ b."""

    a: _Lying
    b: _Lying
    start: _Lying
    out: _Lying

    def entries(self) -> list[_Entry]:
        (rows, depth), columns = self.a.shape[-2:], self.out.shape[-1]
        by_k, by_row = self.a.strides[-1], self.b.strides[-2]
        if depth == 1:
            by_k, by_row = _ITEM, _ITEM * columns
        words: list[int | _Lying] = []
        for matrix in (self.a, self.start, self.out):
            words += (matrix, matrix.by_row)
        words += (self.b, *product.head(rows, depth, columns, by_k, by_row))
        words += [0] * product.COUNTERS
        return [_Entry(product.address(rows, columns), words)]


class _TiledCall(NamedTuple):
    """The same by tiles, from memory where both sides are laid out."""

    a: _Lying
    #: None where it is laid out.
    b: _Lying | None
    out: _Lying
    add: bool

    def template(self) -> Template:
        (rows, depth), columns, by_row = self.a.shape[-2:], self.out.shape[-1], self.out.strides[-2]
        of_a, of_b = lying(self.a.strides, 1), self.b and lying(self.b.strides, 0)
        assert of_a
        side = Side(columns, of_b, by_row, by_row if self.add else 0, plain=not self.add)
        form = Form(rows, depth, of_a, (side,), bounds=SMALL_TOO, sums_apart=False)
        return template_of(form)

    def entries(self) -> list[_Entry]:
        made = self.template()
        # In the order of `SHARED` and `OWN`; then memory to work in.
        matrices = (None, None, None, None, self.a, self.b, None, self.out, self.out, None)
        return _entries(made.calls, matrices, set(made.skipped.tolist()))


class _LayoutCall(NamedTuple):
    """A right side laid out as tiles, before what comes for each matrix along the last axis."""

    b: _Lying
    operand: Operand

    def calls(self) -> Calls:
        depth, columns = self.b.shape[-2:]
        return layout_calls(columns, depth, self.operand)

    def entries(self) -> list[_Entry]:
        made = _entries(self.calls(), (None, self.b, None, None, None), set())
        return [entry._replace(first=True) for entry in made]


def _entries(calls: Calls, matrices: Sequence[_Lying | None], failures: set[int]) -> list[_Entry]:
    """Calls that were written down, for matrices that each of their bases is, or none."""
    entries, at = [], 0
    words, bases = calls.words.tolist(), calls.bases.tolist()
    for _ in range(calls.count):
        places = range(at + 2, at + 2 + (words[at + 1] - PREFIX) // _WORD)
        record = [_At(matrices[bases[i]], words[i]) if bases[i] else words[i] for i in places]
        failing = [number for number, place in enumerate(places) if place in failures]
        entries.append(_Entry(words[at], record, failing))
        at = places.stop
    return entries


class _TransposedCall(NamedTuple):
    """A copy of a matrix with rows and columns exchanged."""

    source: _Lying
    out: _Lying

    def entries(self) -> list[_Entry]:
        rows, columns = self.source.shape[-2:]
        code = transposition.in_blocks(rows % LANES, columns % LANES)
        sizes = transposition.block_sizes(rows, columns, self.out.strides[-2])
        return [_Entry(code.address, [self.source, self.source.by_row, self.out, *sizes])]


_Call: TypeAlias = _KernelCall | _ProductCall | _TiledCall | _LayoutCall | _TransposedCall


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
        self._lead = (1,) * (_AXES - len(lead)) + lead
        self._calls: list[_Call] = []
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
        lying = tuple([_Lying(stack.shape, stack.strides) for stack in stacks])
        self._calls.append(_KernelCall(kernel, lying, given[kernel.arrays :], first))
        self._operands += stacks

    def own(self, rows: int, columns: int) -> Own:
        """Memory of each thread's own for a matrix that ends with whole vectors."""
        whole = columns + -columns % LANES
        # Rows a line of the cache further apart than they are long don't contend for places in it.
        made = Own((rows, whole), (_ITEM * whole + VECTOR, _ITEM), self._own)
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
        call = _LayoutCall(_Lying(b.shape, b.strides), operand)
        self._add(call, call.calls(), (b, laid.tiles, laid.found, ZEROS))
        return laid

    def _room(self, size: int) -> Own:
        """So many bytes of each thread's own."""
        made = Own((1, -(-size // _ITEM)), (size, _ITEM), self._own)
        self._own += size + -size % VECTOR
        return made

    def _add(self, call: _Call, calls: Calls, leads_to: Sequence[Array | Own]) -> None:
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
        if b.shape[-1] < columns or (columns > 1 and b.strides[-1] != _ITEM):
            b = self._transposed(b.turned if isinstance(b, Own) else b.swapaxes(-1, -2))
        start: Array | Own = out if add else _nothing(columns)
        self._work += rows * columns * (1 + depth // LANES)
        operands = (a, b, start, out)
        self._calls.append(_ProductCall(*[_Lying(x.shape, x.strides) for x in operands]))
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
        of_a, of_out = _Lying(a.shape, a.strides), _Lying(out.shape, out.strides)
        tiles, found, of_b = (
            (b.tiles, b.found, None)
            if isinstance(b, LaidOut)
            else (b, ZEROS, _Lying(b.shape, b.strides))
        )
        call = _TiledCall(of_a, of_b, of_out, add)
        made = call.template()
        ((_, _, size),) = made.shares
        self._of_tiles = max(self._of_tiles, size)
        # In the order of `SHARED` and `OWN`; then memory to work in.
        leads_to = (ZEROS, SHAPES, made.zeros, a, tiles, found, out, out, _TILES)
        self._add(call, made.calls, leads_to)

    def _transposed(self, stack: Array | Own) -> Own:
        """Have matrices (n, k) copied as (k, n), and zeros up to a whole vector."""
        if stack.strides[-1] != _ITEM and stack.shape[-1] > 1:
            raise ValueError(f"matrices with strides {stack.strides}: expected contiguous rows")
        rows, columns = stack.shape[-2:]
        out = self.own(columns, rows)
        self._work += rows * columns
        self._calls.append(
            _TransposedCall(_Lying(stack.shape, stack.strides), _Lying(out.shape, out.strides))
        )
        self._operands += (stack, out)
        return out

    def run(self) -> bool:
        """Make the calls for all matrices; whether tiles could split all numbers."""
        pieces = 1 if self._alone else min(_threads(self.work), self.length)
        short = self.work < _WOKEN_FROM
        rooms = rooms_of_threads.take([self.own_size * _ITEM] * pieces)
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
            _function(short)(records[0])
        rooms_of_threads.give_back(rooms)
        return not any(
            words[part.failures].any()
            for words, part in zip(written, parts, strict=True)
            if part.failures
        )

    def parts(self, pieces: int) -> list[Part]:
        """What each of so many threads goes through."""
        return _parts(self._lead, pieces, tuple(self._calls))

    @property
    def own_size(self) -> int:
        """How many numbers of its own a thread needs memory for."""
        return -(-(self._own + self._of_tiles) // _ITEM) + LANES

    def operands(self, room: Array) -> list[Array]:
        """The arrays that addresses lead to, for a thread with this memory of its own."""
        first = -memory.address(room) % VECTOR // _ITEM
        return [
            room[first + self._place(operand) // _ITEM :] if isinstance(operand, Own) else operand
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


#: What addresses count from: nothing, the words themselves, and the operands in turn.
INSIDE, OPERANDS = 1, 2


class Part(NamedTuple):
    """What a thread goes through: the nest, with its calls' records and addresses."""

    words: Array
    #: The number of what each word counts from.
    bases: Array
    #: The places of words that a call changes if it can't do its work.
    failures: list[int]


@lru_cache(256)
def _parts(lead: tuple[int, ...], pieces: int, calls: tuple[_Call, ...]) -> list[Part]:
    """What each thread goes through.

    Args:
        lead: lengths of the nest's axes, the first of which is cut.
        pieces: into so many.
        calls: for each matrix.
    """
    return [_part(lead, piece, calls) for piece in parallel.split(lead[0], pieces)]


def _part(lead: tuple[int, ...], piece: slice, calls: tuple[_Call, ...]) -> Part:
    words, bases = [0] * _HEAD, [0] * _HEAD
    firsts: list[tuple[int, int]] = []
    entries: list[tuple[int, int]] = []
    moves: list[tuple[int, ...]] = []
    operands = itertools.count(OPERANDS)
    failures: list[int] = []
    for entry in itertools.chain.from_iterable(c.entries() for c in calls):
        first = len(words)
        (firsts if entry.first else entries).append((entry.code, first * _WORD))
        failures += [first + place for place in entry.failures]
        for word in entry.words:
            if isinstance(word, _Lying):
                word = _At(word, 0)
            if isinstance(word, _Here):
                words.append((first + word.word) * _WORD - object.__basicsize__)
                bases.append(INSIDE)
            elif isinstance(word, _At):
                step = 0
                if word.matrix is not None:
                    shape, strides = word.matrix
                    step, distances = _moves(shape[:-2], strides[:-2], lead)
                    moves.append((len(words) * _WORD, *distances))
                words.append(piece.start * step + word.distance)
                bases.append(next(operands))
            else:
                words.append(word)
                bases.append(0)
    at_entries = (len(words) + len(firsts) * _CALL) * _WORD
    words[:_HEAD] = (
        *(len(firsts), len(words) * _WORD, len(entries), at_entries),
        *(len(moves), at_entries + len(entries) * _CALL * _WORD),
        *(*lead[:0:-1], piece.stop - piece.start),
    )
    bases[1] = bases[3] = bases[5] = INSIDE
    for code, record in firsts + entries:
        words += (code, record)
        bases += (0, INSIDE)
    for move in moves:
        words += move
        bases += (INSIDE, *[0] * _AXES)
    return Part(np.array(words, np.int64), np.array(bases), failures)


@lru_cache
def _moves(
    shape: tuple[int, ...], strides: tuple[int, ...], lead: tuple[int, ...]
) -> tuple[int, tuple[int, ...]]:
    """How far addresses are apart on the first axis; and how far they move, last axis first."""
    steps = [0 if n == 1 else s for n, s in zip(shape, strides, strict=True)]
    steps = [0] * (_AXES - len(steps)) + steps
    # At the end of an axis, the address goes back to its beginning.
    back = [0, *(n * s for n, s in zip(lead[:0:-1], steps[:0:-1], strict=True))]
    return steps[0], tuple(s - b for s, b in zip(reversed(steps), back, strict=True))


@cache
def _function(held: bool) -> Any:
    """The code, as a function that keeps the GIL or doesn't."""
    kind = ctypes.PYFUNCTYPE if held else ctypes.CFUNCTYPE
    return kind(None, ctypes.c_char_p)(nest_code().address)
