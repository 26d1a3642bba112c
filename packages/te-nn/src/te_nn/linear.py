"""The fully connected layer."""

from __future__ import annotations

import te_tensor as te
from te_tensor import Tensor
from te_tensor.checks import check_switch

from . import initialize
from .checks import positive
from .module import Module


class Linear(Module):
    """x @ weight.T + bias.

    Args:
        in_features: length of the last axis of x.
        out_features: length of the last axis of the result.
        bias: whether to add a bias.

    Attributes:
        weight: shape (out_features, in_features), initially even in ±1/√in_features.
        bias: shape (out_features,), likewise, or None.

    Example:
        >>> Linear(3, 2)(te.ones(5, 3)).shape
        (5, 2)
    """

    _always_the_same = True
    _shown = ("in_features", "out_features")

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        self.in_features = positive("in_features", in_features)
        self.out_features = positive("out_features", out_features)
        check_switch("bias", bias)
        self.weight = initialize.fan_in_uniform((out_features, in_features), in_features)
        self.bias = initialize.fan_in_uniform((out_features,), in_features) if bias else None

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Shape (…, in_features) to (…, out_features); a residual of that shape is added."""
        return te.linear(x, self.weight, self.bias, residual)

    def extra_repr(self) -> str:
        """The sizes, and whether there is a bias."""
        return f"{super().extra_repr()}, bias={self.bias is not None}"
