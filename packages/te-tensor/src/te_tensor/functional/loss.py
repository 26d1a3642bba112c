"""Losses."""

from __future__ import annotations

from ..dtypes import FLOATS
from ..ops.loss import CrossEntropy, MSELoss
from ..tensor import Tensor, as_tensor, pair
from ._common import Like, apply, floats


def mse_loss(prediction: Like, target: Like, reduction: str = "mean") -> Tensor:
    """The squared difference.

    Args:
        prediction: any shape.
        target: the same shape.
        reduction: "mean", "sum" or "none".

    Returns:
        A scalar, or the inputs' shape for "none".

    Raises:
        ValueError: different shapes, or an unknown reduction.
    """
    return apply(MSELoss(reduction), *pair(as_tensor(prediction), target, floats=True))


def cross_entropy(
    logits: Like,
    target: Like,
    weight: Like | None = None,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """-Σ t·log softmax(logits), with the classes on axis 1 (axis 0 for one sample).

    Args:
        logits: shape (N, C, …) or (C,).
        target: class labels, shape (N, …) or (); or probabilities in the shape of the logits.
        weight: one factor per class, shape (C,).
        ignore_index: a label that counts for nothing.
        label_smoothing: share of the target spread evenly over the classes, 0 … 1.
        reduction: "mean" (weighted by the labels' weights), "sum" or "none".

    Returns:
        A scalar, or the labels' shape for "none".

    Raises:
        IndexError: a label is out of range.
        ValueError: shapes that don't fit, or an option that is out of range.
    """
    operation = CrossEntropy(reduction, ignore_index, label_smoothing)
    logits, target = floats("cross_entropy", logits), as_tensor(target)
    if target.dtype in FLOATS and target.dtype != logits.dtype:
        target = target.astype(logits.dtype)
    factors = None if weight is None else as_tensor(weight).astype(logits.dtype)
    if factors is not None and factors.requires_grad:
        raise ValueError("cross_entropy weight requires a gradient: it has none; detach() it")
    return apply(operation, logits, target, factors)
