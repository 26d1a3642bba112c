"""Chains: calls of kernels and products one after the other, as a single call.

A recurrence is thousands of short calls, and from Python each would cost more than it does. A chain
is a list of calls and their records, made for all steps at once, and is gone through without
the GIL.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import numpy as np

from .. import memory
from ..dtypes import Array
from ..executable import Code
from . import product
from .assembler import R12, RBX, RDI, Assembler, Memory
from .kernel import Kernel

#: Bytes of a word, and of what stands before a call's record: where the code is, and how long both.
_WORD, _PREFIX = 8, 16


@cache
def _go_through() -> tuple[Any, Code]:
    """A function of how many calls there are, and the address of the first."""
    code = Assembler()
    code.push(RBX)
    code.push(R12)
    code.load(RBX, Memory(RDI, offset=_WORD))
    code.load(R12, Memory(RDI))
    loop = code.here()
    code.move(RDI, RBX)
    code.add_number(RDI, _PREFIX)
    code.call(Memory(RBX))
    code.add(RBX, Memory(RBX, offset=_WORD))
    code.add_number(R12, -1)
    code.jump("not zero", loop)
    code.pop(R12)
    code.pop(RBX)
    code.give_back()
    made = Code(code.finish())
    return ctypes.CFUNCTYPE(None, ctypes.c_void_p)(made.address), made


class Chain:
    """Steps that each make the same calls.

    Operands are stacks of matrices, (steps, rows, columns) of float32 with contiguous columns; a
    stack of one serves all steps, and a vector all their rows. Callers see to it that kernels
    run in AVX-512, and that no operand is of size 0.

    Args:
        steps: how many.
    """

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._calls = 0
        # The words of the first step, how much each grows by a step, and which are places in here.
        self._words: list[int] = []
        self._growth: list[int] = []
        self._inside: list[int] = []
        self._alive: list[Array] = []

    def kernel(self, kernel: Kernel, *operands: Array) -> None:
        """Have each step call a kernel over rows; the first operand says how many there are."""
        count = len(operands)
        program = kernel.program()
        head = program.head(*operands[0].shape[-2:])
        self._call(program.address, len(head) + 3 * count)
        self._add(*head)
        # A kernel looks for addresses in array objects, behind their heads; here they are behind
        # the record.
        behind = (len(self._words) + 2 * count) * _WORD - object.__basicsize__
        for place, operand in enumerate(operands):
            self._inside.append(len(self._words))
            self._add(behind + place * _WORD, operand.strides[-2] if operand.ndim > 1 else 0)
        for operand in operands:
            self._add_address(operand)

    def product(self, a: Array, panels: Array, start: Array, out: Array) -> None:
        """Have each step make out = start + a @ matrix.

        Args:
            a: matrices (rows, k).
            panels: the `packed` matrix (k, columns).
            start: matrices (rows, columns); may be `out`.
            out: matrices (rows, columns).
        """
        rows, columns = out.shape[-2:]
        sizes = product.head(rows, a.shape[-1], columns)
        self._call(product.address(rows, columns, whole=True), 7 + len(sizes) + product.COUNTERS)
        for operand in (a, start, out):
            self._add_address(operand)
            self._add(operand.strides[-2] if operand.ndim > 1 else 0)
        self._add_address(panels[None])
        self._add(*sizes, *[0] * product.COUNTERS)

    def _call(self, code: int, words: int) -> None:
        """Begin the record of a call."""
        self._calls += 1
        self._add(code, _PREFIX + words * _WORD)

    def _add(self, *words: int) -> None:
        """Words that are the same in every step."""
        self._words += words
        self._growth += [0] * len(words)

    def _add_address(self, stack: Array) -> None:
        """A word that says where a step's matrix is."""
        self._alive.append(stack)
        self._words.append(memory.address(stack))
        self._growth.append(stack.strides[0] if stack.ndim > 1 and len(stack) > 1 else 0)

    def run(self) -> None:
        """Go through the steps."""
        steps = np.arange(self._steps)[:, None]
        records = steps * np.array(self._growth)
        records += np.array(self._words)
        start = memory.address(records)
        records[:, self._inside] += start + steps * records.strides[0]
        go_through, _ = _go_through()
        head = np.array((self._calls * self._steps, start))
        go_through(memory.address(head))
