"""Running sums: CumSum."""

from __future__ import annotations

from math import prod

import numpy as np

from .. import memory, parallel
from ..checks import normalize_axis
from ..dtypes import FLOATS, Array, float64, int64
from ..operation import Gradients, Operation, Sample


class CumSum(Operation):
    """The sums of the first 1, 2, … elements along an axis; of integers and bool, in int64.

    Args:
        axis: the axis that the sums run along.
    """

    samples = (Sample((3, 4), kwargs={"axis": 1}), Sample((2, 3, 4), kwargs={"axis": -2}))

    def __init__(self, axis: int = 0) -> None:
        self.axis = axis

    def forward(self, x: Array) -> Array:
        """The running sums."""
        self.axis = normalize_axis(self.axis, x.ndim)
        if x.dtype in FLOATS:
            return self._sums(x, 1)
        return np.cumsum(x, axis=self.axis, dtype=int64)

    def backward(self, grad: Array) -> Gradients:
        """Each element counts in all sums from its own on."""
        return (self._sums(grad, -1),)

    def _sums(self, x: Array, step: int) -> Array:
        """The sums of floats from the front (step 1) or the end (-1), in float64, then rounded."""
        out = memory.empty(x.shape, x.dtype)
        shape = (prod(x.shape[: self.axis]), x.shape[self.axis], prod(x.shape[self.axis + 1 :]))

        def block(out: Array, x: Array) -> None:
            wide = x[:, ::step].astype(float64)
            np.cumsum(wide, axis=1, out=wide)
            out[:, ::step] = wide

        parallel.rowwise(block, out.reshape(shape), x.reshape(shape))
        return out
