"""Dropout."""

from __future__ import annotations

import te_tensor as te
from te_tensor import Tensor

from .checks import probability
from .module import Module


class Dropout(Module):
    """In training, elements are zero with probability p and the others times 1/(1-p).

    Args:
        p: probability of a zero.

    Example:
        >>> Dropout(0.5).eval()(te.ones(3)).tolist()
        [1.0, 1.0, 1.0]
    """

    _shown = ("p",)

    def __init__(self, p: float = 0.5) -> None:
        self.p = probability("p", p)

    def forward(self, x: Tensor) -> Tensor:
        """Any shape, which stays."""
        return te.dropout(x, self.p, self.training)
