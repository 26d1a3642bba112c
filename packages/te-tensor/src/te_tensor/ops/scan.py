"""Running sums: CumSum."""

from __future__ import annotations

import numpy as np

from ..dtypes import FLOATS, Array, float64, int64
from ..operation import Gradients, Operation, Sample
from ._kernels import normalize_axis


class CumSum(Operation):
    """The sums of the first 1, 2, … elements along an axis; of integers and bool, in int64.

    Args:
        axis: the axis that the sums run along.
    """

    samples = (Sample((3, 4), kwargs={"axis": 1}), Sample((2, 3, 4), kwargs={"axis": -2}))

    def __init__(self, axis: int = 0) -> None:
        self.axis = axis

    def forward(self, x: Array) -> Array:
        """The running sums, of floats in float64 and then rounded."""
        self.axis = normalize_axis(self.axis, x.ndim)
        if x.dtype in FLOATS:
            return np.cumsum(x, axis=self.axis, dtype=float64).astype(x.dtype, copy=False)
        return np.cumsum(x, axis=self.axis, dtype=int64)

    def backward(self, grad: Array) -> Gradients:
        """Each element counts in all sums from its own on."""
        turned = np.flip(grad, self.axis)
        sums = np.cumsum(turned, axis=self.axis, dtype=float64).astype(grad.dtype, copy=False)
        return (np.flip(sums, self.axis),)
