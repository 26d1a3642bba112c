"""Losses of class labels: CrossEntropy NLLLoss."""

from __future__ import annotations

import numpy as np

from ..checks import check_reduction
from ..dtypes import FLOATS, INTEGERS, Array
from ..operation import Gradients, Operation, Sample


def _checked_labels(
    labels: Array, shape: tuple[int, ...], classes: int, ignore_index: int
) -> tuple[Array, Array]:
    """Which labels count, and the labels with 0 in place of those that don't."""
    if labels.shape != shape:
        raise ValueError(f"target labels have shape {labels.shape}: expected {shape}")
    counted = labels != ignore_index
    wrong = labels[counted & ((labels < 0) | (labels >= classes))]
    if wrong.size:
        raise IndexError(f"target label {wrong.flat[0]}: expected 0 … {classes - 1}")
    return counted, np.where(counted, labels, 0)


def _check_weight(weight: tuple[Array, ...], classes: int) -> None:
    if weight and weight[0].shape != (classes,):
        raise ValueError(f"weight has shape {weight[0].shape}: expected ({classes},)")


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
        self.reduction = check_reduction(reduction)
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing
        self.class_axis = 0
        self.divisor = 1.0
        self.by_label = False

    def forward(self, logits: Array, target: Array, *weight: Array) -> Array:
        """The loss: a scalar, or the labels' shape for "none"."""
        if not logits.ndim:
            raise ValueError("cross_entropy got logits without axes: expected (C,) or (N, C, …)")
        self.class_axis = min(1, logits.ndim - 1)
        last = np.moveaxis(logits, self.class_axis, -1)
        classes = last.shape[-1]
        _check_weight(weight, classes)
        plain = logits.ndim == 2 and classes and not weight and not self.label_smoothing
        if plain and target.dtype in INTEGERS:
            return self._of_labels(logits, target)
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

    def _of_labels(self, logits: Array, labels: Array) -> Array:
        """The usual loss, of which each sample's label alone is looked at: few calls."""
        self.by_label = True
        samples, classes = logits.shape
        counted, safe = _checked_labels(labels, (samples,), classes, self.ignore_index)
        at = np.arange(samples), safe
        shifted = logits - np.maximum.reduce(logits, axis=1, keepdims=True)
        probabilities = np.exp(shifted)
        total = np.add.reduce(probabilities, axis=1, keepdims=True)
        np.divide(probabilities, total, out=probabilities)
        losses = np.log(total[:, 0]) - shifted[at]
        count = np.count_nonzero(counted)
        if count < samples:
            losses = np.where(counted, losses, logits.dtype.type(0))
        self.save(probabilities, at, counted)
        if self.reduction == "none":
            return np.asarray(losses)
        self.divisor = float(count) if self.reduction == "mean" else 1.0
        return np.asarray(np.add.reduce(losses) / logits.dtype.type(self.divisor))

    def _gradient_of_labels(self, grad: Array) -> Array:
        """(softmax - 1 at the label)·g, for the samples that count."""
        probabilities, at, counted = self.saved
        scale = np.asarray(grad / grad.dtype.type(self.divisor) if self.divisor else grad * 0)
        scale = np.where(counted, scale, grad.dtype.type(0))[:, None]
        result = probabilities * scale
        result[at] -= scale[:, 0]
        return np.asarray(result)

    def _coefficients(self, target: Array, last: Array, *weight: Array) -> tuple[Array, Array]:
        """What each log-probability is multiplied by, and each place's share in the mean."""
        classes = last.shape[-1]
        smooth = self.label_smoothing
        if target.dtype in INTEGERS:
            return self._from_labels(target, last, *weight)
        if target.dtype not in FLOATS:
            raise TypeError(f"target is {target.dtype}: expected integer labels, or probabilities")
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
        counted, safe = _checked_labels(labels, last.shape[:-1], classes, self.ignore_index)
        safe = safe[..., None]
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
        if self.by_label:
            return [self._gradient_of_labels(grad)] + [None] * (len(self.needs_grad) - 1)
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


class NLLLoss(Operation):
    """-w[label]·log p[label], log p on axis 1 (axis 0 for one sample).

    Inputs: log-probabilities, labels, and optionally one weight per class. Labels and weights
    have no gradient.

    Args:
        reduction: "mean" (weighted by the labels' weights), "sum" or "none".
        ignore_index: a label that counts for nothing.
    """

    samples = (
        Sample((4, 3), inputs=(None, [0, 2, 1, 1]), nondiff=(1,)),
        Sample(
            (2, 3, 2),
            inputs=(None, [[0, 2], [-1, 1]], [0.5, 1.0, 2.0]),
            nondiff=(1, 2),
            kwargs={"ignore_index": -1},
        ),
        Sample((3,), inputs=(None, 2), nondiff=(1,), kwargs={"reduction": "none"}),
    )

    def __init__(self, reduction: str = "mean", ignore_index: int = -100) -> None:
        self.reduction = check_reduction(reduction)
        self.ignore_index = ignore_index
        self.shape: tuple[int, ...] = ()

    def forward(self, log_p: Array, labels: Array, *weight: Array) -> Array:
        """The loss: a scalar, or the labels' shape for "none"."""
        if not log_p.ndim:
            raise ValueError("nll_loss got log p without axes: expected (C,) or (N, C, …)")
        if labels.dtype not in INTEGERS:
            raise TypeError(f"nll_loss labels are {labels.dtype}: expected integers")
        axis = min(1, log_p.ndim - 1)
        classes = log_p.shape[axis]
        _check_weight(weight, classes)
        places = log_p.shape[:axis] + log_p.shape[axis + 1 :]
        counted, safe = _checked_labels(labels, places, classes, self.ignore_index)
        factors = weight[0].astype(log_p.dtype) if weight else np.ones(classes, log_p.dtype)
        chosen = np.expand_dims(safe, axis)
        if classes:
            weights = factors[safe] * counted
            picked = np.take_along_axis(log_p, chosen, axis).squeeze(axis)
        else:  # nothing to choose, and no label that counts
            weights = picked = np.zeros(places, log_p.dtype)
        # 0·(-inf) is NaN where a label doesn't count
        losses = np.where(weights == 0, 0, -weights * picked).astype(log_p.dtype)
        self.shape = log_p.shape
        divisor = weights.sum() if self.reduction == "mean" else log_p.dtype.type(1)
        self.save(chosen, weights, divisor, axis)
        return losses if self.reduction == "none" else np.asarray(losses.sum() / divisor)

    def backward(self, grad: Array) -> Gradients:
        """-w·g at the label; 0 where no label counts, though the loss is then NaN."""
        chosen, weights, divisor, axis = self.saved
        scale = grad / divisor if divisor else grad * 0
        result = np.zeros(self.shape, grad.dtype)
        if result.size:
            np.put_along_axis(result, chosen, np.expand_dims(-weights * scale, axis), axis)
        return [result] + [None] * (len(self.needs_grad) - 1)
