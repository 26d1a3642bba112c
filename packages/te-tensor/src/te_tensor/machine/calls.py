"""Calls of programs one after the other, as a single call: written down once, run on many arrays.

Records hold addresses. Here they count from bases, so that calls for arrays alike are made by one
addition.
"""

from __future__ import annotations

import ctypes
import struct
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from .. import memory, parallel
from ..dtypes import Array, float32, int64
from ..executable import Code
from .assembler import R12, R13, RBX, RDI, Assembler, Memory
from .compiler import VECTOR
from .program import Record

#: Bytes of a word, and of what stands before a call's record: where the code is, and how long both.
WORD, PREFIX = 8, 16


@dataclass(frozen=True)
class Calls:
    """Calls as words.

    Attributes:
        words: a call's code, length and record, and the next one's; addresses in them are
            distances from bases.
        bases: the number of each word's base.
        count: how many calls.
    """

    words: Array
    bases: Array
    count: int

    def at(self, *bases: int) -> Array:
        """The words with these bases, in the order in which the draft named them."""
        return self.words + np.array((0, *bases), int64)[self.bases]

    def at_each(self, bases: Array) -> Array:
        """The words of n times as many calls, shape (n, words), with bases of shape (n, bases)."""
        given = np.zeros((len(bases), bases.shape[1] + 1), int64)
        given[:, 1:] = bases
        return self.words + given[:, self.bases]


class Draft:
    """Calls that are being written.

    Args:
        bases: names of what addresses count from.

    Attributes:
        count: how many calls there are.
    """

    def __init__(self, *bases: str) -> None:
        self.bases = ("", *bases)
        self._words: list[int] = []
        self._bases: list[int] = []
        self.count = 0

    @property
    def length(self) -> int:
        """How many words there are."""
        return len(self._words)

    def call(self, code: Code, record: Record, **words: int | tuple[str, int]) -> int:
        """Add a call.

        Args:
            code: what is called.
            record: what it reads.
            words: numbers by name, or addresses: a base, and the distance from it.

        Returns:
            The place of the record's first word.
        """
        self.count += 1
        self._words += (code.address, PREFIX + len(record.names) * WORD)
        self._bases += (0, 0)
        first = len(self._words)
        for name in record.names:
            word = words[name]
            base, word = word if isinstance(word, tuple) else ("", word)
            self._words.append(word)
            self._bases.append(self.bases.index(base))
        return first

    def done(self) -> Calls:
        """The calls."""
        return Calls(np.array(self._words, int64), np.array(self._bases), self.count)


#: Registers that `go_through` gives back; as many as have the stack where libraries expect it.
_PUSHED = (RBX, R12, R13)


@cache
def go_through() -> tuple[Any, Code]:
    """What goes through calls: a function of how many there are, and the address of the first."""
    code = Assembler()
    for register in _PUSHED:
        code.push(register)
    code.load(RBX, Memory(RDI, offset=WORD))
    code.load(R12, Memory(RDI))
    code.add_number(R12, 0)
    none = code.jump("zero")
    loop = code.here()
    code.move(RDI, RBX)
    code.add_number(RDI, PREFIX)
    code.call(Memory(RBX))
    code.add(RBX, Memory(RBX, offset=WORD))
    code.add_number(R12, -1)
    code.jump("not zero", loop)
    code.land(none)
    for register in reversed(_PUSHED):
        code.pop(register)
    code.give_back()
    made = Code(code.finish())
    return ctypes.CFUNCTYPE(None, ctypes.c_void_p)(made.address), made


@cache
def callers() -> tuple[Any, Any]:
    """What goes through calls: once with the GIL kept, once with it given away."""
    released, code = go_through()
    return ctypes.PYFUNCTYPE(None, ctypes.c_void_p)(code.address), released


def run_calls(shares: list[tuple[Array, int]], *, short: bool) -> None:
    """Make calls, each share's in order, in a thread each.

    Args:
        shares: words and how many calls they are.
        short: whether all take less than some 100 µs; the caller then keeps the GIL.
    """
    records = [struct.pack("=2q", count, memory.address(words)) for words, count in shares]
    held, released = callers()
    if len(records) == 1:
        (held if short else released)(records[0])
    elif parallel.crew() is None or len(records) > parallel.parts():
        parallel.parallel_for(lambda index: released(records[index]), len(records))
    else:
        code = go_through()[1].address
        parallel.share([(code, record) for record in records], short=short)


# -- memory to work in -----------------------------------------------------------------------

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
                made = memory.empty(((size + VECTOR) // 4,), float32)
                rooms[number] = made[-memory.address(made) % VECTOR // 4 :]
        return rooms

    def give_back(self, rooms: list[Array]) -> None:
        """Keep the arrays, but for large ones."""
        self._free = [room if room.nbytes <= _KEPT else room[:0].copy() for room in rooms]


rooms_of_threads = _Rooms()
