"""Losses."""

from __future__ import annotations

from ..checks import check_number, check_whole
from ..dtypes import FLOATS
from ..ops.classification import CrossEntropy, NLLLoss
from ..ops.loss import BCEWithLogits, HuberLoss, L1Loss, MSELoss
from ..tensor import Tensor, as_tensor, pair
from ._common import Like, apply, cast, floats


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


def l1_loss(prediction: Like, target: Like, reduction: str = "mean") -> Tensor:
    """The absolute difference, with gradient 0 at 0.

    Args:
        prediction: any shape.
        target: the same shape.
        reduction: "mean", "sum" or "none".

    Returns:
        A scalar, or the inputs' shape for "none".

    Raises:
        ValueError: different shapes, or an unknown reduction.
    """
    return apply(L1Loss(reduction), *pair(as_tensor(prediction), target, floats=True))


def huber_loss(
    prediction: Like, target: Like, reduction: str = "mean", delta: float = 1.0
) -> Tensor:
    """d²/2 for a difference |d| up to delta, delta·(|d| - delta/2) beyond (Huber, 1964).

    Args:
        prediction: any shape.
        target: the same shape.
        reduction: "mean", "sum" or "none".
        delta: where the square ends, above 0.

    Returns:
        A scalar, or the inputs' shape for "none".

    Raises:
        ValueError: different shapes, an unknown reduction, or a delta of 0 or less.
    """
    check_number("huber_loss delta", delta)
    return apply(HuberLoss(reduction, delta), *pair(as_tensor(prediction), target, floats=True))


def bce_with_logits(
    logits: Like,
    target: Like,
    weight: Like | None = None,
    *,
    pos_weight: Like | None = None,
    reduction: str = "mean",
) -> Tensor:
    """-(t·ln σ(x) + (1 - t)·ln(1 - σ(x))), the binary cross entropy of logits x.

    Args:
        logits: any shape; infinite ones are certain.
        target: probabilities, the same shape.
        weight: a factor for each element; broadcasts to the logits' shape.
        pos_weight: a factor for the share of positive targets; likewise.
        reduction: "mean", "sum" or "none".

    Returns:
        A scalar, or the inputs' shape for "none".

    Raises:
        ValueError: shapes that don't fit, an unknown reduction, or a weight that requires a
            gradient.

    Example:
        >>> import te_tensor as te
        >>> logits, target = te.Tensor([200.0, -float("inf")]), te.Tensor([1, 0])
        >>> te.bce_with_logits(logits, target, reduction="none").tolist()
        [0.0, 0.0]
    """
    logits = floats("bce_with_logits", logits)
    given = {"weight": weight, "pos_weight": pos_weight}
    factors = {
        name: _constant(f"bce_with_logits {name}", value, logits)
        for name, value in given.items()
        if value is not None
    }
    operation = BCEWithLogits(reduction, tuple(factors))
    return apply(operation, logits, cast(as_tensor(target), logits), *factors.values())


def _constant(name: str, value: Like, like: Tensor) -> Tensor:
    """A factor without a gradient, in another tensor's dtype."""
    factor = cast(as_tensor(value), like)
    if factor.requires_grad:
        raise ValueError(f"{name} requires a gradient: it has none; detach() it")
    return factor


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
    check_number("label_smoothing", label_smoothing, 0, 1)
    check_whole("ignore_index", ignore_index)
    operation = CrossEntropy(reduction, ignore_index, label_smoothing)
    logits, target = floats("cross_entropy", logits), as_tensor(target)
    if target.dtype in FLOATS and target.dtype != logits.dtype:
        target = target.astype(logits.dtype)
    factors = None if weight is None else _constant("cross_entropy weight", weight, logits)
    return apply(operation, logits, target, factors)


def nll_loss(
    log_p: Like,
    target: Like,
    weight: Like | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """The negative log-probability of the labels, with the classes on axis 1 (axis 0 for one).

    Args:
        log_p: log-probabilities, as `log_softmax` makes them; shape (N, C, …) or (C,).
        target: class labels, shape (N, …) or ().
        weight: one factor per class, shape (C,).
        ignore_index: a label that counts for nothing.
        reduction: "mean" (weighted by the labels' weights), "sum" or "none".

    Returns:
        A scalar, or the labels' shape for "none".

    Raises:
        IndexError: a label is out of range.
        TypeError: labels that are no integers.
        ValueError: shapes that don't fit, an unknown reduction, or a weight that requires a
            gradient.
    """
    check_whole("ignore_index", ignore_index)
    log_p = floats("nll_loss", log_p)
    factors = None if weight is None else _constant("nll_loss weight", weight, log_p)
    return apply(NLLLoss(reduction, ignore_index), log_p, as_tensor(target), factors)
