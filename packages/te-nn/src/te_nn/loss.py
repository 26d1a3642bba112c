"""Losses as modules: `loss(prediction, target)` and `loss.forward(prediction, target)`."""

from __future__ import annotations

import numpy.typing as npt

import te_tensor as te
from te_tensor import Tensor
from te_tensor.checks import check_reduction, check_whole

from .checks import at_least_zero, probability
from .module import Module


def _set_factor(module: Module, name: str, value: Tensor | npt.ArrayLike | None) -> None:
    """Factors of a loss as a buffer, or None."""
    if value is None:
        setattr(module, name, None)
    else:
        module.register_buffer(name, te.as_tensor(value).detach())


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
        self.reduction = check_reduction(reduction)

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Two tensors of one shape to a scalar, or to that shape for "none"."""
        return te.mse_loss(prediction, target, self.reduction)


class L1Loss(Module):
    """The absolute difference.

    Args:
        reduction: "mean", "sum" or "none".

    Example:
        >>> L1Loss()(te.Tensor([1.0, 4.0]), te.Tensor([1.0, 1.0])).item()
        1.5
    """

    _shown = ("reduction",)

    def __init__(self, reduction: str = "mean") -> None:
        self.reduction = check_reduction(reduction)

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Two tensors of one shape to a scalar, or to that shape for "none"."""
        return te.l1_loss(prediction, target, self.reduction)


class HuberLoss(Module):
    """Half the squared difference up to delta, and a straight line beyond (Huber, 1964).

    Args:
        reduction: "mean", "sum" or "none".
        delta: where the line begins, above 0.

    Raises:
        ValueError: there is no such reduction, or delta isn't above 0.

    Example:
        >>> HuberLoss("none")(te.Tensor([0.5, 3.0]), te.zeros(2)).tolist()
        [0.125, 2.5]
    """

    _shown = ("reduction", "delta")

    def __init__(self, reduction: str = "mean", delta: float = 1.0) -> None:
        self.reduction = check_reduction(reduction)
        if at_least_zero("delta", delta) == 0:
            raise ValueError(f"delta is {delta}: expected a number above 0")
        self.delta = delta

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Two tensors of one shape to a scalar, or to that shape for "none"."""
        return te.huber_loss(prediction, target, self.reduction, self.delta)


class BCEWithLogitsLoss(Module):
    """The cross entropy of yes and no: -(t·ln σ(x) + (1 - t)·ln(1 - σ(x))).

    Args:
        weight: a factor for each element; broadcasts to the logits' shape.
        reduction: "mean", "sum" or "none".
        pos_weight: a factor for the share of positive targets; likewise.

    Example:
        >>> loss = BCEWithLogitsLoss()(te.zeros(3), te.Tensor([0.0, 1.0, 0.5]))
        >>> round(loss.item(), 4)  # ln 2
        0.6931
    """

    _shown = ("reduction",)

    weight: Tensor | None
    pos_weight: Tensor | None

    def __init__(
        self,
        weight: Tensor | npt.ArrayLike | None = None,
        reduction: str = "mean",
        pos_weight: Tensor | npt.ArrayLike | None = None,
    ) -> None:
        _set_factor(self, "weight", weight)
        _set_factor(self, "pos_weight", pos_weight)
        self.reduction = check_reduction(reduction)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Two tensors of one shape to a scalar, or to that shape for "none"."""
        return te.bce_with_logits(
            logits, target, self.weight, pos_weight=self.pos_weight, reduction=self.reduction
        )


class NLLLoss(Module):
    """-log_p of the label, with the classes on axis 1.

    Args:
        weight: one factor per class, shape (C,).
        ignore_index: a label that counts for nothing.
        reduction: "mean" (weighted by the labels' weights), "sum" or "none".

    Example:
        >>> NLLLoss()(te.Tensor([[-1.0, -2.0], [-3.0, -4.0]]), te.Tensor([0, 1])).item()
        2.5
    """

    _shown = ("ignore_index", "reduction")

    weight: Tensor | None

    def __init__(
        self,
        weight: Tensor | npt.ArrayLike | None = None,
        ignore_index: int = -100,
        reduction: str = "mean",
    ) -> None:
        _set_factor(self, "weight", weight)
        self.ignore_index = check_whole("ignore_index", ignore_index)
        self.reduction = check_reduction(reduction)

    def forward(self, log_p: Tensor, target: Tensor) -> Tensor:
        """Log-probabilities (N, C, …) and labels (N, …) to a scalar."""
        return te.nll_loss(
            log_p,
            target,
            self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
        )


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

    weight: Tensor | None

    def __init__(
        self,
        weight: Tensor | npt.ArrayLike | None = None,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
    ) -> None:
        _set_factor(self, "weight", weight)
        self.ignore_index = check_whole("ignore_index", ignore_index)
        self.reduction = check_reduction(reduction)
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
