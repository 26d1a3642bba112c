"""Activations as modules."""

from __future__ import annotations

import te_tensor as te
from te_tensor import Tensor
from te_tensor.checks import check_number, check_whole

from .checks import one_of, positive
from .module import Module, Parameter


class ReLU(Module):
    """max(x, 0), elementwise."""

    _always_the_same = True

    def forward(self, x: Tensor) -> Tensor:
        """Any shape, which stays."""
        return te.relu(x)


class Sigmoid(Module):
    """1 / (1 + e^-x), elementwise."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape, which stays."""
        return te.sigmoid(x)


class Tanh(Module):
    """The hyperbolic tangent, elementwise."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape, which stays."""
        return te.tanh(x)


class GELU(Module):
    """x·Φ(x), elementwise (arXiv:1606.08415).

    Args:
        approximate: "none" for Φ by erf, "tanh" for its approximation.
    """

    _always_the_same = True
    _shown = ("approximate",)

    def __init__(self, approximate: str = "none") -> None:
        self.approximate = one_of("approximate", approximate, ("none", "tanh"))

    def forward(self, x: Tensor) -> Tensor:
        """Any shape, which stays."""
        return te.gelu(x, self.approximate)


class SiLU(Module):
    """x·σ(x), elementwise (arXiv:1702.03118)."""

    _always_the_same = True

    def forward(self, x: Tensor) -> Tensor:
        """Any shape, which stays."""
        return te.silu(x)


class LeakyReLU(Module):
    """x above 0, negative_slope·x elsewhere.

    Args:
        negative_slope: the factor below 0.

    Raises:
        TypeError: negative_slope is no number.
        ValueError: negative_slope is infinite or NaN.
    """

    _shown = ("negative_slope",)

    def __init__(self, negative_slope: float = 0.01) -> None:
        self.negative_slope = check_number("negative_slope", negative_slope)

    def forward(self, x: Tensor) -> Tensor:
        """Any shape, which stays."""
        return te.leaky_relu(x, self.negative_slope)


class PReLU(Module):
    """x above 0, weight·x elsewhere, with a weight that is learnt (arXiv:1502.01852).

    Args:
        num_parameters: 1, or the number of channels, on axis 1, for one weight each.
        init: the initial weights.

    Attributes:
        weight: shape (num_parameters,).

    Raises:
        ValueError: num_parameters is no whole number of at least 1, or init is infinite or NaN.
        TypeError: init is no number.

    Example:
        >>> PReLU()(te.Tensor([-4.0, 4.0])).tolist()
        [-1.0, 4.0]
    """

    _shown = ("num_parameters",)

    def __init__(self, num_parameters: int = 1, init: float = 0.25) -> None:
        self.num_parameters = positive("num_parameters", num_parameters)
        self.weight = Parameter(te.full((num_parameters,), float(check_number("init", init))).data)

    def forward(self, x: Tensor) -> Tensor:
        """Any shape, which stays; several weights need their number on axis 1."""
        return te.prelu(x, self.weight)


class Softmax(Module):
    """e^x / Σ e^x along an axis.

    Args:
        axis: the axis that sums to 1.

    Raises:
        ValueError: axis is no whole number.
    """

    _shown = ("axis",)

    def __init__(self, axis: int = -1) -> None:
        self.axis = check_whole("axis", axis)

    def forward(self, x: Tensor) -> Tensor:
        """Any shape, which stays."""
        return te.softmax(x, self.axis)


class LogSoftmax(Module):
    """x - ln Σ e^x along an axis.

    Args:
        axis: the axis that is normalized.

    Raises:
        ValueError: axis is no whole number.
    """

    _shown = ("axis",)

    def __init__(self, axis: int = -1) -> None:
        self.axis = check_whole("axis", axis)

    def forward(self, x: Tensor) -> Tensor:
        """Any shape, which stays."""
        return te.log_softmax(x, self.axis)
