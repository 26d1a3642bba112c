"""Activations as modules."""

from __future__ import annotations

from te_tensor import Tensor

from .checks import one_of
from .module import Module


class ReLU(Module):
    """max(x, 0), elementwise."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape, which stays."""
        return x.relu()


class Sigmoid(Module):
    """1 / (1 + e^-x), elementwise."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape, which stays."""
        return x.sigmoid()


class Tanh(Module):
    """The hyperbolic tangent, elementwise."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape, which stays."""
        return x.tanh()


class GELU(Module):
    """x·Φ(x), elementwise (arXiv:1606.08415).

    Args:
        approximate: "none" for Φ by erf, "tanh" for its approximation.
    """

    _shown = ("approximate",)

    def __init__(self, approximate: str = "none") -> None:
        self.approximate = one_of("approximate", approximate, ("none", "tanh"))

    def forward(self, x: Tensor) -> Tensor:
        """Any shape, which stays."""
        return x.gelu(self.approximate)


class Softmax(Module):
    """e^x / Σ e^x along an axis.

    Args:
        axis: the axis that sums to 1.
    """

    _shown = ("axis",)

    def __init__(self, axis: int = -1) -> None:
        self.axis = axis

    def forward(self, x: Tensor) -> Tensor:
        """Any shape, which stays."""
        return x.softmax(self.axis)


class LogSoftmax(Module):
    """x - ln Σ e^x along an axis.

    Args:
        axis: the axis that is normalized.
    """

    _shown = ("axis",)

    def __init__(self, axis: int = -1) -> None:
        self.axis = axis

    def forward(self, x: Tensor) -> Tensor:
        """Any shape, which stays."""
        return x.log_softmax(self.axis)
