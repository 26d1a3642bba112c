"""Losses as modules: `loss(prediction, target)` and `loss.forward(prediction, target)`."""

from __future__ import annotations

import numpy.typing as npt

import te_tensor as te
from te_tensor import Tensor

from .checks import one_of, probability
from .module import Module


class MSELoss(Module):
    """The squared difference.

    Args:
        reduction: "mean", "sum" or "none".

    Example:
        >>> MSELoss()(te.Tensor([1.0, 3.0]), te.Tensor([1.0, 1.0])).item()
        2.0
    """

    _shown = ("reduction",)

    def __init__(self, reduction: str = "mean") -> None:
        self.reduction = one_of("reduction", reduction, ("mean", "sum", "none"))

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Two tensors of one shape to a scalar, or to that shape for "none"."""
        return te.mse_loss(prediction, target, self.reduction)


class CrossEntropyLoss(Module):
    """-Σ t·log softmax(logits), with the classes on axis 1.

    Args:
        weight: one factor per class, shape (C,).
        ignore_index: a label that counts for nothing.
        reduction: "mean" (weighted by the labels' weights), "sum" or "none".
        label_smoothing: share of the target spread evenly over the classes.

    Example:
        >>> round(CrossEntropyLoss()(te.zeros(2, 4), te.Tensor([0, 3])).item(), 4)  # ln 4
        1.3863
    """

    _shown = ("ignore_index", "reduction", "label_smoothing")

    def __init__(
        self,
        weight: Tensor | npt.ArrayLike | None = None,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
    ) -> None:
        if weight is not None:
            self.register_buffer("weight", te.as_tensor(weight).detach())
        else:
            self.weight = None
        self.ignore_index = ignore_index
        self.reduction = one_of("reduction", reduction, ("mean", "sum", "none"))
        self.label_smoothing = probability("label_smoothing", label_smoothing)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Logits (N, C, …) and labels (N, …) or probabilities (N, C, …) to a scalar."""
        return te.cross_entropy(
            logits,
            target,
            self.weight,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            reduction=self.reduction,
        )


class SoftmaxCrossEntropyLoss(CrossEntropyLoss):
    """`CrossEntropyLoss` under the name it has in the Rust original."""
