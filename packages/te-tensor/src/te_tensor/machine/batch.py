"""Batches: calls of one kernel over many arrays, as a single call, time and again.

A model has hundreds of small parameters, and a call for each from Python would cost more than the
work in it. A batch writes down the calls once, and goes through them as chains do.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import accumulate

import numpy as np

from ..dtypes import Array, float32
from ..memory import address
from .calls import WORD, callers
from .compiler import OPERAND_SIZE
from .kernel import _KEEP_GIL, Kernel

#: How many calls, and where the first is.
_HEAD = struct.Struct("=2q").pack


class Batch:
    """Calls of an elementwise kernel over arrays that stay, but for those of one operand.

    Callers see to it that kernels run (`runs`), and that the arrays of a call are float32, in C
    order and of equally many elements, of which there is at least one.

    Args:
        kernel: the kernel.
        operands: for each of its arrays in order, those of each call; None for the operand whose
            arrays come with each `run`.

    Attributes:
        program: the kernel's code that is called, for what ran when the batch was made.
        sizes: the elements of each call.
    """

    def __init__(self, kernel: Kernel, operands: Sequence[Sequence[Array] | None]) -> None:
        self.sizes = [array.size for array in next(o for o in operands if o is not None)]
        self._edges = list(accumulate(self.sizes, initial=0))
        self._kept = operands  # the records know their addresses
        self._open = operands.index(None)
        self.program = program = kernel.program()
        heads = [program.head(1, size) for size in self.sizes]
        record = np.dtype(
            [
                ("code", np.int64),
                ("length", np.int64),
                ("head", np.int64, len(heads[0])),
                ("arrays", np.int64, (len(operands), OPERAND_SIZE // WORD)),
                ("scalars", float32, kernel.scalars),
            ],
            align=True,
        )
        self._length = record.itemsize
        self._records = np.zeros(len(self.sizes), record)
        self._records["code"], self._records["length"] = program.address, self._length
        self._records["head"] = heads
        for number, arrays in enumerate(operands):
            if arrays is not None:
                self._records["arrays"][:, number, 0] = [id(array) for array in arrays]
        self._given = self._records["arrays"][:, self._open, 0]
        self._scalars = self._records["scalars"]
        self._start = address(self._records)

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
        held, released = callers()
        call = held if self._edges[stop] - self._edges[start] <= _KEEP_GIL else released
        call(_HEAD(stop - start, self._start + self._length * start))

    def __reduce__(self) -> str:
        """Hold that it isn't copied: it would go on with the memory of this one."""
        raise TypeError("a batch knows addresses and can't be copied: make another one")
