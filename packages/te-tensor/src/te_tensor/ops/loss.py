"""Losses: MSELoss CrossEntropy."""

from __future__ import annotations

import numpy as np

from .. import parallel
from ..dtypes import INTEGERS, Array
from ..operation import Gradients, Operation, Sample

_REDUCTIONS = ("mean", "sum", "none")


def _check_reduction(reduction: str) -> str:
    if reduction not in _REDUCTIONS:
        raise ValueError(f"reduction is {reduction!r}: expected one of {', '.join(_REDUCTIONS)}")
    return reduction


class MSELoss(Operation):
    """The squared difference, averaged, summed or as it is.

    Args:
        reduction: "mean", "sum" or "none".
    """

    samples = (
        Sample((3, 4), (3, 4)),
        Sample((3,), (3,), kwargs={"reduction": "sum"}),
        Sample((2, 3), (2, 3), kwargs={"reduction": "none"}),
    )

    def __init__(self, reduction: str = "mean") -> None:
        self.reduction = _check_reduction(reduction)

    def forward(self, prediction: Array, target: Array) -> Array:
        """The loss: a scalar, or the inputs' shape for "none"."""
        if prediction.shape != target.shape:
            raise ValueError(
                f"mse_loss got prediction {prediction.shape} and target {target.shape}: "
                "expected equal shapes"
            )
        difference = parallel.ufunc(np.subtract, prediction, target)
        self.save(difference)
        if self.reduction == "none":
            return difference * difference
        flat = difference.reshape(-1)
        total = np.einsum("i,i->", flat, flat) if flat.size < 1024 else _square_sum(flat)
        if self.reduction == "mean":
            total = np.divide(total, difference.dtype.type(difference.size))
        return np.asarray(total, difference.dtype)

    def backward(self, grad: Array) -> Gradients:
        """±2·difference·g, over the number of elements for "mean"."""
        (difference,) = self.saved
        factor = grad * grad.dtype.type(2)
        if self.reduction == "mean":
            factor = factor / grad.dtype.type(max(difference.size, 1))
        grad_prediction = parallel.ufunc(np.multiply, difference, np.asarray(factor))
        needs_target = self.needs_grad[1]
        return grad_prediction, np.negative(grad_prediction) if needs_target else None


def _square_sum(flat: Array) -> float:
    """Σ x², block by block, the blocks' sums added in float64 and in order."""
    blocks = parallel.fixed_blocks(flat.size)
    sums = np.zeros(len(blocks))

    def run(index: int) -> None:
        part = flat[blocks[index]]
        sums[index] = np.einsum("i,i->", part, part)

    parallel.parallel_for(run, len(blocks))
    return float(sums.sum())


class CrossEntropy(Operation):
    """-Σ t·log softmax(logits) over classes, with PyTorch's options and meaning.

    Inputs: logits (N, C, …) or (C,), and target: class labels (N, …) or (), or probabilities in
    the shape of the logits; optionally the classes' weights (C,), which have no gradient.

    Args:
        reduction: "mean" (weighted by the labels' weights), "sum" or "none".
        ignore_index: a label that counts for nothing.
        label_smoothing: share of the target that is spread evenly over the classes.
    """

    samples = (
        Sample((4, 3), inputs=(None, [0, 2, 1, 1]), nondiff=(1,)),
        Sample(
            (2, 3, 2),
            inputs=(None, [[0, 2], [-1, 1]], [0.5, 1.0, 2.0]),
            nondiff=(1, 2),
            kwargs={"ignore_index": -1, "label_smoothing": 0.1},
        ),
        Sample((4, 3), (4, 3), low=0.1, kwargs={"reduction": "sum", "label_smoothing": 0.2}),
        Sample((3,), inputs=(None, 2), nondiff=(1,), kwargs={"reduction": "none"}),
    )

    def __init__(
        self,
        reduction: str = "mean",
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
    ) -> None:
        if not 0.0 <= label_smoothing <= 1.0:
            raise ValueError(f"label_smoothing is {label_smoothing}: expected 0 … 1")
        self.reduction = _check_reduction(reduction)
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing
        self.class_axis = 0
        self.divisor = 1.0

    def forward(self, logits: Array, target: Array, *weight: Array) -> Array:
        """The loss: a scalar, or the labels' shape for "none"."""
        if not logits.ndim:
            raise ValueError("cross_entropy got logits without axes: expected (C,) or (N, C, …)")
        self.class_axis = min(1, logits.ndim - 1)
        last = np.moveaxis(logits, self.class_axis, -1)
        classes = last.shape[-1]
        if weight and weight[0].shape != (classes,):
            raise ValueError(f"weight has shape {weight[0].shape}: expected ({classes},)")
        coefficients, weights = self._coefficients(target, last, *weight)
        shifted = last - last.max(axis=-1, keepdims=True) if last.size else last.copy()
        exponential = np.exp(shifted)
        total = exponential.sum(axis=-1, keepdims=True)
        log_p = shifted - np.log(total)
        np.divide(exponential, total, out=exponential)
        losses = -np.einsum("...c,...c->...", coefficients, log_p)
        # 0·(-inf) is NaN where a class of probability 0 doesn't count
        if np.isnan(losses).any():
            losses = -np.where(coefficients == 0, 0, coefficients * log_p).sum(axis=-1)
        factors = weight[0] if weight else np.ones((), logits.dtype)
        self.save(exponential, coefficients, log_p if self.needs_grad[1] else None, factors)
        if self.reduction == "none":
            return np.asarray(losses, logits.dtype)
        self.divisor = float(weights.sum()) if self.reduction == "mean" else 1.0
        return np.asarray(losses.sum() / logits.dtype.type(self.divisor), logits.dtype)

    def _coefficients(self, target: Array, last: Array, *weight: Array) -> tuple[Array, Array]:
        """What each log-probability is multiplied by, and each place's share in the mean."""
        classes = last.shape[-1]
        smooth = self.label_smoothing
        if target.dtype in INTEGERS:
            return self._from_labels(target, last, *weight)
        if target.shape != (shape := np.moveaxis(last, -1, self.class_axis).shape):
            raise ValueError(f"target probabilities have shape {target.shape}: expected {shape}")
        coefficients = np.moveaxis(target, self.class_axis, -1)
        if smooth:
            coefficients = coefficients * (1 - smooth) + smooth / classes
        if weight:
            coefficients = coefficients * weight[0]
        return np.asarray(coefficients, last.dtype), np.ones(last.shape[:-1])

    def _from_labels(self, labels: Array, last: Array, *weight: Array) -> tuple[Array, Array]:
        classes = last.shape[-1]
        if labels.shape != last.shape[:-1]:
            raise ValueError(f"target labels have shape {labels.shape}: expected {last.shape[:-1]}")
        counted = labels != self.ignore_index
        wrong = labels[counted & ((labels < 0) | (labels >= classes))]
        if wrong.size:
            raise IndexError(f"target label {wrong.flat[0]}: expected 0 … {classes - 1}")
        safe = np.where(counted, labels, 0)[..., None]
        factors = weight[0].astype(last.dtype) if weight else np.ones(classes, last.dtype)
        weights = factors[safe[..., 0]] * counted
        smooth = self.label_smoothing
        coefficients = np.zeros(last.shape, last.dtype)
        if smooth:
            coefficients += (smooth / classes * factors) * counted[..., None]
        chosen = np.take_along_axis(coefficients, safe, axis=-1) + (1 - smooth) * weights[..., None]
        np.put_along_axis(coefficients, safe, chosen.astype(last.dtype), axis=-1)
        return coefficients, weights

    def backward(self, grad: Array) -> Gradients:
        """(softmax·Σ coefficients - coefficients)·g; to probabilities, -log softmax·g."""
        p, coefficients, log_p, factors = self.saved
        # Where every label is ignored the loss is NaN, but nothing can change it.
        scale = grad / grad.dtype.type(self.divisor) if self.divisor else grad * 0
        scale = np.broadcast_to(scale, p.shape[:-1])[..., None]
        result = p * coefficients.sum(axis=-1, keepdims=True)
        np.subtract(result, coefficients, out=result)
        np.multiply(result, scale, out=result)
        grads = [np.moveaxis(result, -1, self.class_axis)]
        if self.needs_grad[1]:
            smooth = 1 - self.label_smoothing
            grads.append(np.moveaxis(-log_p * factors * scale * smooth, -1, self.class_axis))
        else:
            grads.append(None)
        return grads + [None] * (len(self.needs_grad) - 2)
