"""Chains: calls of kernels and products one after the other, as a single call.

A recurrence is thousands of short calls, and from Python each would cost more than it does. A chain
is a list of addresses, of code and of records, made for all steps at once, and goes through it
without the GIL.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from .. import parallel
from ..dtypes import Array
from ..executable import Code
from . import product
from .assembler import R12, RBP, RBX, RDI, Assembler, Memory
from .compiler import OPERAND_SIZE, OPERANDS
from .kernel import Kernel

#: Rows of a large product that are one call.
_ROWS = 64
#: Multiply-adds from which a large product is cut over the threads.
_PARALLEL_FROM = 1 << 22
_WORD = 8


@cache
def _caller() -> Any:
    """A function of how many calls, and their table: code and record of each."""
    code = Assembler()
    saved = (RBX, R12, RBP)
    for register in saved:
        code.push(register)
    code.load(RBX, Memory(RDI, offset=_WORD))
    code.load(R12, Memory(RDI))
    loop = code.here()
    code.load(RDI, Memory(RBX, offset=_WORD))
    code.call(Memory(RBX))
    code.add_number(RBX, 2 * _WORD)
    code.add_number(R12, -1)
    code.jump("not zero", loop)
    for register in reversed(saved):
        code.pop(register)
    code.give_back()
    held = Code(code.finish())
    function = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(held.address)
    function.code = held  # type: ignore[attr-defined]
    return function


class Chain:
    """Steps that each make the same calls.

    Operands are stacks of matrices, (steps, rows, columns) of float32 with contiguous columns; a
    stack of one serves all steps, and a vector all rows of them. Callers see to it that kernels
    run (`runs`), and that no operand is of size 0.

    Args:
        steps: how many.
    """

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._calls: list[tuple[int, Array]] = []
        self._alive: list[Array] = []

    def kernel(self, kernel: Kernel, *operands: Array) -> None:
        """Have each step call a kernel, over rows; the first operand says of which size."""
        count = len(operands)
        words = OPERANDS // _WORD
        records = np.empty((self._steps, words + 3 * count), np.int64)
        records[:, :words] = kernel.head(*operands[0].shape[-2:])
        # A kernel looks for addresses in array objects, behind their heads: these are in the record.
        at = self._addresses(records) + (words + 2 * count) * _WORD - object.__basicsize__
        assert OPERAND_SIZE == 2 * _WORD
        for place, operand in enumerate(operands):
            records[:, words + 2 * place] = at + place * _WORD
            records[:, words + 2 * place + 1] = _row_stride(operand)
            records[:, words + 2 * count + place] = self._addresses(operand)
        self._calls.append((kernel.address, records))

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
        records = np.empty((self._steps, 7 + len(sizes) + product.COUNTERS), np.int64)
        for place, operand in enumerate((a, start, out)):
            records[:, 2 * place] = self._addresses(operand)
            records[:, 2 * place + 1] = _row_stride(operand)
        records[:, 6] = self._addresses(panels[None])
        records[:, 7 : 7 + len(sizes)] = sizes
        self._calls.append((product.address(rows), records))

    def _addresses(self, stack: Array) -> Array:
        """Where the matrix of each step is."""
        self._alive.append(stack)
        by_step = stack.strides[0] if stack.ndim > 1 and len(stack) > 1 else 0
        return stack.ctypes.data + by_step * np.arange(self._steps)

    def run(self) -> None:
        """Go through the steps."""
        table = np.empty((self._steps, len(self._calls), 2), np.int64)
        for place, (code, records) in enumerate(self._calls):
            table[:, place, 0] = code
            table[:, place, 1] = self._addresses(records)
        head = np.array((table.size // 2, table.ctypes.data))
        _caller()(head.ctypes.data)


def _row_stride(operand: Array) -> int:
    return operand.strides[-2] if operand.ndim > 1 else 0


def multiply(a: Array, panels: Array, start: Array, out: Array) -> Array:
    """out = start + a @ matrix, of many rows, cut over the threads.

    Args:
        a: shape (rows, k), float32 with contiguous columns, as the others.
        panels: the `packed` matrix (k, columns).
        start: shape (columns,), or (rows, columns); may be `out`.
        out: shape (rows, columns).

    Returns:
        out.
    """
    large = out.size * a.shape[1] >= _PARALLEL_FROM
    pieces = parallel.split(len(out), parallel.get_num_threads() if large else 1)

    def run(index: int) -> None:
        begin, end = pieces[index].start, pieces[index].stop
        behind = end - (end - begin) % _ROWS
        for first, last, height in ((begin, behind, _ROWS), (behind, end, end - behind)):
            if first < last:
                chain = Chain((last - first) // height)
                stacks = (_stacked(m[first:last], height) for m in (a, out))
                rows_of_start = start if start.ndim == 1 else _stacked(start[first:last], height)
                chain.product(next(stacks), panels, rows_of_start, next(stacks))
                chain.run()

    parallel.parallel_for(run, len(pieces))
    return out


def _stacked(matrix: Array, height: int) -> Array:
    """Blocks of a matrix's rows, as a stack of matrices."""
    by_row, by_column = matrix.strides
    shape = (len(matrix) // height, height, matrix.shape[1])
    return as_strided(matrix, shape, (height * by_row, by_row, by_column))
