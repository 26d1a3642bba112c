"""Conversion between dtypes."""

from __future__ import annotations

from ..dtypes import Array, DType, float64
from ..operation import Gradients, Operation, Sample


class Cast(Operation):
    """The same values in another dtype, rounded once; the gradient is cast back.

    Args:
        dtype: the new dtype.
    """

    computes = False
    samples = (Sample((2, 3), args=(float64,)),)

    def __init__(self, dtype: DType) -> None:
        self.dtype = dtype

    def forward(self, x: Array) -> Array:
        """A copy in the new dtype."""
        return x.astype(self.dtype)

    def backward(self, grad: Array) -> Gradients:
        """The gradient; the walk casts it to the input's dtype."""
        return (grad,)
