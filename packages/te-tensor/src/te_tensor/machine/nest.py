"""Nests: kernels and products for each of many small matrices, in one call.

A head of attention takes a few products and kernels of a few rows. From Python each call would
cost more than it does, and what it makes would leave the cache before the next one reads it. A
nest is the calls for one matrix, and how far each operand's address moves along up to three axes.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable
from functools import cache, lru_cache
from math import prod
from typing import Any

import numpy as np

from .. import memory, parallel
from ..dtypes import Array
from ..executable import Code
from . import product
from .assembler import CALLEE_SAVED, R12, R13, R14, R15, RAX, RBP, RBX, RCX, RDI, Assembler, Memory
from .compiler import LANES
from .kernel import Kernel

#: Axes that matrices lie along.
_AXES = 3
_WORD = 8
#: Where a nest's words are: how many calls, where they are, how many addresses that move, where
#: they are, and the lengths of the axes from the last one to the first.
_CALLS, _CALLS_AT, _MOVES, _MOVES_AT, _LENGTHS = 0, 8, 16, 24, 32
_HEAD = 4 + _AXES
#: Words for each call: its code and its record; and for each address: where it is, and how far it
#: moves along each axis, from the last one to the first.
_CALL, _MOVE = 2, 1 + _AXES
#: Words that are enough for a call and its record.
_ROOM = 128
#: Numbers in all matrices from which threads that are awake share them, and from which others are
#: woken and the GIL is given away. A thousand take half a microsecond, a thread's records 20, and
#: waking it 40.
_SHARED_FROM, _WOKEN_FROM = 1 << 17, 1 << 19


@cache
def _code() -> Code:
    """A function of the address of a nest's address."""
    code = Assembler()
    counters = (R14, R13, R12)
    for register in CALLEE_SAVED:
        code.push(register)
    code.load(RBX, Memory(RDI))
    loops = []
    for axis in reversed(range(_AXES)):
        code.load(counters[axis], Memory(RBX, offset=_LENGTHS + axis * _WORD))
        loops.append(code.here())
    code.load(R15, Memory(RBX, offset=_CALLS_AT))
    code.load(RBP, Memory(RBX, offset=_CALLS))
    call = code.here()
    code.load(RDI, Memory(R15, offset=_WORD))
    code.call(Memory(R15))
    _next(code, R15, _CALL)
    code.jump("not zero", call)
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


def _next(code: Assembler, place: int, words: int) -> None:
    """Go to the next entry of a list; whether there is none is what `jump` asks."""
    code.add_number(place, words * _WORD)
    code.add_number(RBP, -1)


class Nest:
    """Calls that are made for each matrix of stacks.

    Stacks are arrays of float32 whose last two axes are those of the matrices, and whose others
    broadcast to the nest's. Callers see to it that kernels run in AVX-512, that no operand is of
    size 0, and that what one matrix's calls write no other one's use.

    Args:
        lead: lengths of up to three axes. They are cut over the threads along the first one.
        alone: all of it is for the caller's thread: then matrices may write to the same memory,
            one after the other.
    """

    def __init__(self, *lead: int, alone: bool = False) -> None:
        self._alone = alone
        self._lead = (1,) * (_AXES - len(lead)) + lead
        self._calls: list[Callable[[_Part], None]] = []
        self._work = 0

    def kernel(self, kernel: Kernel, *given: Any) -> None:
        """Have a kernel go over rows of matrices; the first one says how many rows, and columns.

        Args:
            kernel: the kernel.
            given: its operands; scalars come last. A matrix of one row serves for all rows; a
                `Column` is a matrix of one column.
        """
        stacks, scalars = given[: kernel.arrays], given[kernel.arrays :]
        rows, columns = stacks[0].shape[-2:]
        self._work += rows * columns

        def place(part: _Part) -> None:
            places = []
            for stack in stacks:
                # A kernel looks for addresses in array objects, behind their heads.
                places.append(part.here() - object.__basicsize__)
                places.append(stack.strides[-2] if stack.shape[-2] > 1 else 0)
                part.moving(stack)
            program = kernel.program()
            record = program.many_rows(*program.head(rows, columns), *places, *scalars)
            part.call(program.address)
            part.words += _as_words(record)

        self._calls.append(place)

    def product(self, a: Array, b: Array, out: Array, *, add: bool = False) -> None:
        """Have out = a @ b made.

        Args:
            a: matrices (m, k), of any strides but 0.
            b: matrices (k, n), columns contiguous.
            out: matrices (m, n), columns contiguous.
            add: add to what is there.
        """
        (rows, depth), columns = a.shape[-2:], out.shape[-1]
        by_k, by_row = (a.strides[-1], b.strides[-2]) if depth > 1 else (4, 4 * columns)
        head = product.head(rows, depth, columns, by_k, by_row)
        start = out if add else np.zeros((1, columns), out.dtype)
        self._work += rows * columns * (1 + depth // LANES)

        def place(part: _Part) -> None:
            part.call(product.address(rows, columns))
            for stack in (a, start, out):
                part.moving(stack)
                part.words.append(stack.strides[-2] if stack.shape[-2] > 1 else 0)
            part.moving(b)
            part.words += (*head, *[0] * product.COUNTERS)

        self._calls.append(place)

    def run(self) -> None:
        """Make the calls for all matrices."""
        work = self._work * prod(self._lead)
        pieces = parallel.split(self._lead[0], 1 if self._alone else _threads(work))
        parts = [_Part(self._lead, piece, self._calls) for piece in pieces]
        if len(parts) > 1:
            parallel.share([(_code().address, p.record) for p in parts], short=work < _WOKEN_FROM)
        else:
            _function(work < _WOKEN_FROM)(parts[0].record)


def _threads(work: int) -> int:
    """How many threads go through a nest of so many numbers."""
    crew, threads = parallel.crew(), parallel.parts()
    if crew is None or work < _SHARED_FROM:
        return 1
    # A caller that has woken somebody is done before that one is there.
    ready = work >= _WOKEN_FROM or all(map(crew.awake, range(threads - 1)))
    return threads if ready else 1


class _Part:
    """What a thread goes through: the nest, with its calls' records and addresses, in one array.

    Args:
        lead: lengths of the nest's axes.
        piece: this part of the first one.
        calls: write the records.
    """

    def __init__(
        self, lead: tuple[int, ...], piece: slice, calls: list[Callable[[_Part], None]]
    ) -> None:
        self._memory = np.empty(_HEAD + _ROOM * len(calls), np.int64)
        self._base = memory.address(self._memory)
        self._lead, self._first = lead, piece.start
        self._entries: list[int] = []
        self._moves: list[int] = []
        self.words = [0] * _HEAD
        for place in calls:
            place(self)
        self.words[:_HEAD] = (
            *(len(self._entries) // _CALL, self.here()),
            *(len(self._moves) // _MOVE, self.here() + len(self._entries) * _WORD),
            *(*lead[:0:-1], piece.stop - piece.start),
        )
        self.words += (*self._entries, *self._moves)
        self._memory[: len(self.words)] = self.words
        #: What the code gets.
        self.record = struct.pack("=q", self._base)

    def here(self) -> int:
        """Where the next word is."""
        return self._base + len(self.words) * _WORD

    def call(self, code: int) -> None:
        """Have code called with the record whose words follow."""
        self._entries += (code, self.here())

    def moving(self, stack: Array) -> None:
        """A word that says where the stack's matrix is."""
        step, moves = _moves(stack.shape[:-2], stack.strides[:-2], self._lead)
        self._moves += (self.here(), *moves)
        self.words.append(memory.address(stack) + self._first * step)


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
    return kind(None, ctypes.c_char_p)(_code().address)


def _as_words(record: bytes) -> tuple[int, ...]:
    words = -(-len(record) // _WORD)
    return struct.unpack(f"={words}q", record.ljust(words * _WORD, b"\0"))
