"""Batches: calls of one kernel over many arrays, as a single call, time and again.

A model has hundreds of small parameters, and a call for each from Python would cost more than the
work in it. A batch writes down the calls once, and goes through them as chains do.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence
from functools import cache
from itertools import accumulate
from typing import Any

import numpy as np

from ..dtypes import Array, float32
from .chain import _caller
from .compiler import OPERAND_SIZE, OPERANDS
from .kernel import _KEEP_GIL, Kernel

_WORD = 8
_HEAD = struct.Struct("=2q").pack


@cache
def _callers() -> tuple[Any, Any]:
    """The caller of a chain's calls as a function that keeps the GIL, and as one that doesn't."""
    released = _caller()
    return ctypes.PYFUNCTYPE(None, ctypes.c_void_p)(released.code.address), released


class Batch:
    """Calls of an elementwise kernel over arrays that stay, but for those of one operand.

    Callers see to it that kernels run (`runs`), and that the arrays of a call are float32, in C
    order and of equally many elements, of which there is at least one.

    Args:
        kernel: the kernel.
        operands: for each of its arrays in order, those of each call; None for the operand whose
            arrays come with each `run`.
    """

    def __init__(self, kernel: Kernel, operands: Sequence[Sequence[Array] | None]) -> None:
        self.kernel = kernel
        self.sizes = [array.size for array in next(o for o in operands if o is not None)]
        self._edges = list(accumulate(self.sizes, initial=0))
        self._kept = operands  # the records know their addresses
        self._open = operands.index(None)
        record = np.dtype(
            [
                ("head", np.int64, OPERANDS // _WORD),
                ("arrays", np.int64, (len(operands), OPERAND_SIZE // _WORD)),
                ("scalars", float32, kernel.scalars),
            ],
            align=True,
        )
        self._records = np.zeros(len(self.sizes), record)
        self._records["head"] = [kernel.head(1, size) for size in self.sizes]
        for number, arrays in enumerate(operands):
            if arrays is not None:
                self._records["arrays"][:, number, 0] = [id(array) for array in arrays]
        self._given = self._records["arrays"][:, self._open, 0]
        self._scalars = self._records["scalars"]
        self._table = np.empty((len(self.sizes), 2), np.int64)
        self._table[:, 0] = kernel.address
        start = self._records.ctypes.data
        self._table[:, 1] = start + record.itemsize * np.arange(len(self.sizes))
        self._start = self._table.ctypes.data

    def run(self, calls: slice, given: Sequence[Array], scalars: Sequence[float]) -> None:
        """Make some of the calls; threads may make different ones at the same time.

        Args:
            calls: which, from start to stop; at least one.
            given: the open operand's arrays, for these calls.
            scalars: the kernel's scalars.
        """
        self._given[calls] = [id(array) for array in given]
        self._scalars[calls] = scalars
        start, stop = calls.start, calls.stop
        held, released = _callers()
        call = held if self._edges[stop] - self._edges[start] <= _KEEP_GIL else released
        call(_HEAD(stop - start, self._start + 2 * _WORD * start))

    def __reduce__(self) -> str:
        """Hold that it isn't copied: it would go on with the memory of this one."""
        raise TypeError("a batch knows addresses and can't be copied: make another one")
