"""What machine code that no formula says is written with: records, loops, and how it is called.

Such programs are AVX-512 code.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import NamedTuple

from .. import memory
from ..dtypes import Array
from ..executable import Code
from .assembler import CALLEE_SAVED, RDI, RSP, Assembler, Memory
from .compiler import LANES
from .kernel import kernel_info, runs


class Record:
    """Numbers that code reads by name, 8 bytes each, and variables below the stack pointer.

    A function that calls no other may use 128 bytes there (System V ABI).

    Args:
        names: of the numbers.
        variables: names of the variables.
        behind: the record, without variables, that stands before this one.
    """

    def __init__(
        self, *names: str, variables: tuple[str, ...] = (), behind: Record | None = None
    ) -> None:
        self.names = names
        self.pack: Callable[..., bytes] = struct.Struct(f"={len(names)}q").pack
        self._places: dict[str, Memory] = dict(behind._places) if behind else {}
        at = 8 * len(self._places)
        self._places |= {name: Memory(RDI, offset=at + 8 * i) for i, name in enumerate(names)}
        self._places |= {name: Memory(RSP, offset=-8 * i - 8) for i, name in enumerate(variables)}

    def __getitem__(self, name: str) -> Memory:
        return self._places[name]


class Writer(Assembler):
    """Code with loops."""

    @contextmanager
    def times(self, counter: int, count: Memory) -> Iterator[None]:
        """What is written inside runs so many times, perhaps not at all."""
        self.load(counter, count)
        self.add_number(counter, 0)
        none = self.jump("zero")
        loop = self.here()
        yield
        self.add_number(counter, -1)
        self.jump("not zero", loop)
        self.land(none)

    @contextmanager
    def times_kept(self, counter: Memory, count: Memory, spare: int) -> Iterator[None]:
        """As `times`, the counter in memory and on its way through a register."""
        self.load(spare, count)
        self.add_number(spare, 0)
        none = self.jump("zero")
        loop = self.here()
        self.keep(counter, spare)
        yield
        self.load(spare, counter)
        self.add_number(spare, -1)
        self.jump("not zero", loop)
        self.land(none)


def program(write: Callable[[Writer], None]) -> Code:
    """Machine code as a function of a record."""
    code = Writer()
    for register in CALLEE_SAVED:
        code.push(register)
    write(code)
    for register in reversed(CALLEE_SAVED):
        code.pop(register)
    code.leave_vectors()
    code.give_back()
    return Code(code.finish())


class Call(NamedTuple):
    """A program and what its record says.

    Attributes:
        code: the program.
        words: numbers; and addresses: arrays, and bytes from their beginnings.
    """

    code: Code
    words: Sequence[int | tuple[Array, int]]

    def run(self) -> None:
        """Make the call, without the GIL."""
        words = [w if isinstance(w, int) else memory.address(w[0]) + w[1] for w in self.words]
        call(self.code, struct.pack(f"={len(words)}q", *words))


_function = cache(ctypes.CFUNCTYPE(None, ctypes.c_void_p))


def call(code: Code, record: bytes | int) -> None:
    """Run a program, without the GIL, on a record or on that at an address."""
    _function(code.address)(record)


def runs_programs(*arrays: Array) -> bool:
    """Whether programs can be called with these arrays: as `runs`, and AVX-512."""
    return runs(*arrays) and kernel_info()["kernels"] == "avx512"


def last_mask(columns: int) -> int:
    """The lanes of a row's last vector, which has one at least."""
    return (1 << ((columns - 1) % LANES + 1)) - 1
