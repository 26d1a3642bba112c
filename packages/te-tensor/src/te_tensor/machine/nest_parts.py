"""A nest's calls and addresses as words for each thread, and the code that goes through them."""

from __future__ import annotations

import ctypes
import itertools
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np

from .. import parallel
from ..dtypes import Array
from ..executable import Code
from .assembler import CALLEE_SAVED, R12, R13, R14, R15, RAX, RBP, RBX, RCX, RDI, Assembler, Memory
from .calls import WORD
from .nest_calls import At, Here, Lying, NestCall

#: Axes that matrices lie along.
AXES = 3
#: Where a nest's words are: how many calls come before those for the last axis, where they are; the
#: same of these, and of addresses that move; and the lengths of the axes from the last one to the
#: first.
_FIRST, _FIRST_AT, _CALLS, _CALLS_AT, _MOVES, _MOVES_AT, _LENGTHS = range(0, 7 * WORD, WORD)
_HEAD = 6 + AXES
#: Words for each call: its code and its record; and for each address: where it is, and how far it
#: moves along each axis, from the last one to the first.
_CALL, _MOVE = 2, 1 + AXES


@cache
def nest_code() -> Code:
    """A function of the address of a nest's address."""
    code = Assembler()
    counters = (R14, R13, R12)
    for register in CALLEE_SAVED:
        code.push(register)
    code.load(RBX, Memory(RDI))
    loops = []
    for axis in reversed(range(AXES)):
        if not axis:
            _make_calls(code, _FIRST, _FIRST_AT)
        code.load(counters[axis], Memory(RBX, offset=_LENGTHS + axis * WORD))
        loops.append(code.here())
    _make_calls(code, _CALLS, _CALLS_AT)
    for axis in range(AXES):
        code.load(R15, Memory(RBX, offset=_MOVES_AT))
        code.load(RBP, Memory(RBX, offset=_MOVES))
        code.add_number(RBP, 0)
        none = code.jump("zero")
        place = code.here()
        code.load(RAX, Memory(R15))
        code.load(RCX, Memory(RAX))
        code.add(RCX, Memory(R15, offset=WORD * (1 + axis)))
        code.keep(Memory(RAX), RCX)
        _next(code, R15, _MOVE)
        code.jump("not zero", place)
        code.land(none)
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
    code.load(RDI, Memory(R15, offset=WORD))
    code.call(Memory(R15))
    _next(code, R15, _CALL)
    code.jump("not zero", call)
    code.land(none)


def _next(code: Assembler, place: int, words: int) -> None:
    """Go to the next entry of a list; whether there is none is what `jump` asks."""
    code.add_number(place, words * WORD)
    code.add_number(RBP, -1)


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
def parts_of(lead: tuple[int, ...], pieces: int, calls: tuple[NestCall, ...]) -> list[Part]:
    """What each thread goes through.

    Args:
        lead: lengths of the nest's axes, the first of which is cut.
        pieces: into so many.
        calls: for each matrix.
    """
    return [_part(lead, piece, calls) for piece in parallel.split(lead[0], pieces)]


def _part(lead: tuple[int, ...], piece: slice, calls: tuple[NestCall, ...]) -> Part:
    words, bases = [0] * _HEAD, [0] * _HEAD
    firsts: list[tuple[int, int]] = []
    entries: list[tuple[int, int]] = []
    moves: list[tuple[int, ...]] = []
    operands = itertools.count(OPERANDS)
    failures: list[int] = []
    for entry in itertools.chain.from_iterable(c.entries() for c in calls):
        first = len(words)
        (firsts if entry.first else entries).append((entry.code, first * WORD))
        failures += [first + place for place in entry.failures]
        for word in entry.words:
            if isinstance(word, Lying):
                word = At(word, 0)
            if isinstance(word, Here):
                words.append((first + word.word) * WORD - object.__basicsize__)
                bases.append(INSIDE)
            elif isinstance(word, At):
                step = 0
                if word.matrix is not None:
                    shape, strides = word.matrix
                    step, distances = _moves(shape[:-2], strides[:-2], lead)
                    moves.append((len(words) * WORD, *distances))
                words.append(piece.start * step + word.distance)
                bases.append(next(operands))
            else:
                words.append(word)
                bases.append(0)
    at_entries = (len(words) + len(firsts) * _CALL) * WORD
    words[:_HEAD] = (
        *(len(firsts), len(words) * WORD, len(entries), at_entries),
        *(len(moves), at_entries + len(entries) * _CALL * WORD),
        *(*lead[:0:-1], piece.stop - piece.start),
    )
    bases[1] = bases[3] = bases[5] = INSIDE
    for code, record in firsts + entries:
        words += (code, record)
        bases += (0, INSIDE)
    for move in moves:
        words += move
        bases += (INSIDE, *[0] * AXES)
    return Part(np.array(words, np.int64), np.array(bases), failures)


@lru_cache
def _moves(
    shape: tuple[int, ...], strides: tuple[int, ...], lead: tuple[int, ...]
) -> tuple[int, tuple[int, ...]]:
    """How far addresses are apart on the first axis; and how far they move, last axis first."""
    steps = [0 if n == 1 else s for n, s in zip(shape, strides, strict=True)]
    steps = [0] * (AXES - len(steps)) + steps
    # At the end of an axis, the address goes back to its beginning.
    back = [0, *(n * s for n, s in zip(lead[:0:-1], steps[:0:-1], strict=True))]
    return steps[0], tuple(s - b for s, b in zip(reversed(steps), back, strict=True))


@cache
def nest_function(held: bool) -> Any:
    """The code, as a function that keeps the GIL or doesn't."""
    kind = ctypes.PYFUNCTYPE if held else ctypes.CFUNCTYPE
    return kind(None, ctypes.c_char_p)(nest_code().address)
