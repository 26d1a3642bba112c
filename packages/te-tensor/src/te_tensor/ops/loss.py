"""Losses of one element each, then averaged: MSELoss L1Loss HuberLoss BCEWithLogits."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import memory, parallel
from ..checks import broadcasts_to, check_reduction
from ..dtypes import Array
from ..operation import Gradients, Operation, Sample
from ._kernels import limited, total

_SAMPLES = (
    Sample((3, 4), (3, 4)),
    Sample((3,), (3,), kwargs={"reduction": "sum"}),
    Sample((2, 3), (2, 3), kwargs={"reduction": "none"}),
)


class _PointLoss(Operation, abstract=True):
    """A loss of each prediction and its target, averaged, summed or as it is.

    Args:
        reduction: "mean", "sum" or "none".
    """

    def __init__(self, reduction: str = "mean") -> None:
        self.reduction = check_reduction(reduction)

    def _check_shapes(self, name: str, prediction: Array, target: Array) -> None:
        if prediction.shape != target.shape:
            raise ValueError(
                f"{name} got prediction {prediction.shape} and target {target.shape}: "
                "expected equal shapes"
            )

    def _reduced(self, losses: Array) -> Array:
        """The losses as the reduction has them."""
        if self.reduction == "none":
            return losses
        return self._averaged(total(losses.reshape(-1)), losses)

    def _averaged(self, summed: Any, losses: Array) -> Array:
        if self.reduction == "mean":
            summed = np.divide(summed, losses.dtype.type(losses.size))
        return np.asarray(summed, losses.dtype)

    def _factor(self, grad: Array, size: int) -> Array:
        """What each loss counts for in what is returned, times the gradient."""
        return np.asarray(
            grad / grad.dtype.type(max(size, 1)) if self.reduction == "mean" else grad
        )


class _DifferenceLoss(_PointLoss, abstract=True):
    """A loss of the difference alone."""

    _name: str

    def forward(self, prediction: Array, target: Array) -> Array:
        """The loss: a scalar, or the inputs' shape for "none"."""
        self._check_shapes(self._name, prediction, target)
        difference = parallel.ufunc(np.subtract, prediction, target)
        self.save(difference)
        return self._loss(difference)

    def _loss(self, difference: Array) -> Array:
        """The reduced loss."""
        raise NotImplementedError

    def _slope(self, difference: Array, factor: Array) -> Array:
        """The derivative times a factor."""
        raise NotImplementedError

    def backward(self, grad: Array) -> Gradients:
        """The derivative to the prediction, its negative to the target."""
        (difference,) = self.saved
        slope = self._slope(difference, self._factor(grad, difference.size))
        needs_prediction, needs_target = self.needs_grad
        return slope if needs_prediction else None, np.negative(slope) if needs_target else None


class MSELoss(_DifferenceLoss):
    """The squared difference."""

    samples = _SAMPLES
    _name = "mse_loss"

    def _loss(self, difference: Array) -> Array:
        if self.reduction == "none":
            return parallel.ufunc(np.square, difference)
        flat = difference.reshape(-1)
        summed = np.einsum("i,i->", flat, flat) if flat.size < 1024 else _square_sum(flat)
        return self._averaged(summed, difference)

    def _slope(self, difference: Array, factor: Array) -> Array:
        return parallel.ufunc(np.multiply, difference, factor * factor.dtype.type(2))


class L1Loss(_DifferenceLoss):
    """The absolute difference, with gradient 0 at 0."""

    samples = tuple(
        Sample(*s.shapes, inputs=(None, np.full(s.shapes[0], 2.0)), kwargs=s.kwargs)
        for s in _SAMPLES
    )
    _name = "l1_loss"

    def _loss(self, difference: Array) -> Array:
        return self._reduced(parallel.ufunc(np.absolute, difference))

    def _slope(self, difference: Array, factor: Array) -> Array:
        return parallel.ufunc(np.multiply, parallel.ufunc(np.sign, difference), factor)


class HuberLoss(_DifferenceLoss):
    """d²/2 for |d| up to delta, delta·(|d| - delta/2) beyond (Huber, 1964).

    With c = min(|d|, delta) both are c·(|d| - c/2), and nothing overflows on the way.

    Args:
        reduction: "mean", "sum" or "none".
        delta: where the square ends, above 0.
    """

    samples = (
        *_SAMPLES,
        Sample((3, 4), (3, 4), low=-4, high=4, kwargs={"delta": 0.7}),
    )
    _name = "huber_loss"

    def __init__(self, reduction: str = "mean", delta: float = 1.0) -> None:
        super().__init__(reduction)
        if not delta > 0:
            raise ValueError(f"huber_loss delta is {delta}: expected more than 0")
        self.delta = delta

    def _loss(self, difference: Array) -> Array:
        scalar = difference.dtype.type

        def block(out: Array, difference: Array) -> None:
            (near,) = memory.scratch(1, difference.shape, difference.dtype)
            np.absolute(difference, out=out)
            np.clip(out, 0, self.delta, out=near)
            # halves before they are taken off: delta may be the greatest number
            np.multiply(near, scalar(0.5), out=near)
            np.subtract(out, near, out=out)
            np.add(near, near, out=near)
            np.multiply(out, near, out=out)

        losses = memory.empty(difference.shape, difference.dtype)
        parallel.elementwise(block, losses, difference)
        return self._reduced(losses)

    def _slope(self, difference: Array, factor: Array) -> Array:
        near = limited(difference, -self.delta, self.delta)
        return parallel.ufunc(np.multiply, near, factor)


def _square_sum(flat: Array) -> float:
    """Σ x², block by block, the blocks' sums added in float64 and in order."""
    blocks = parallel.fixed_blocks(flat.size)
    sums = np.zeros(len(blocks))

    def run(index: int) -> None:
        part = flat[blocks[index]]
        sums[index] = np.einsum("i,i->", part, part)

    parallel.parallel_for(run, len(blocks))
    return float(sums.sum())


class BCEWithLogits(_PointLoss):
    """-w·(p·t·ln σ(x) + (1 - t)·ln(1 - σ(x))), from the logit x.

    ln σ(x) is -softplus(-x), and ln(1 - σ(x)) is -softplus(x), with softplus(x) = max(x, 0) +
    ln(1 + e^-|x|): nothing overflows, and no small number is lost.

    Inputs: logits, targets of the same shape, and what `factors` names, which must broadcast to
    it and has no gradient.

    Args:
        reduction: "mean", "sum" or "none".
        factors: "weight" (w, of each element), "pos_weight" (p, of positive targets) or both, in
            this order.
    """

    samples = (
        Sample((3, 4), (3, 4), low=0.1, high=0.9),
        Sample((2, 3), (2, 3), (3,), nondiff=(2,), low=0.1, kwargs={"factors": ("pos_weight",)}),
        Sample(
            *((2, 3), (2, 3), (2, 1), (3,)),
            nondiff=(2, 3),
            low=0.1,
            kwargs={"reduction": "sum", "factors": ("weight", "pos_weight")},
        ),
    )

    def __init__(self, reduction: str = "mean", factors: tuple[str, ...] = ()) -> None:
        super().__init__(reduction)
        self.factors = factors

    def forward(self, x: Array, target: Array, *factors: Array) -> Array:
        """The loss: a scalar, or the inputs' shape for "none"."""
        self._check_shapes("bce_with_logits", x, target)
        given = dict(zip(self.factors, factors, strict=True))
        for name, factor in given.items():
            if not broadcasts_to(factor.shape, x.shape):
                raise ValueError(
                    f"bce_with_logits {name} has shape {factor.shape}: expected one that "
                    f"broadcasts to {x.shape}"
                )
        needs_x, needs_target = self.needs_grad[:2]
        losses = memory.empty(x.shape, x.dtype)
        slope = memory.empty(x.shape, x.dtype) if needs_x else losses
        parallel.elementwise(self._block, losses, slope, x, target, *factors)
        self.save(slope, *((x, *factors) if needs_target else ()))
        return self._reduced(losses)

    def _block(self, out: Array, slope: Array, x: Array, target: Array, *factors: Array) -> None:
        """The losses of one block, and where `slope` is another array their derivative."""
        given = dict(zip(self.factors, factors, strict=True))
        of_one, of_zero, rest, other = memory.scratch(4, x.shape, x.dtype)
        np.multiply(target, given.get("pos_weight", x.dtype.type(1)), out=of_one)
        np.subtract(x.dtype.type(1), target, out=of_zero)
        _log1p_exp(rest, x)
        np.subtract(rest, np.clip(x, -np.inf, 0, out=out), out=out)
        np.multiply(out, of_one, out=out)
        np.add(rest, np.clip(x, 0, np.inf, out=other), out=other)
        np.multiply(other, of_zero, out=other)
        np.add(out, other, out=out)
        if np.isnan(out.sum()):
            _mend_certain(out, x, of_one, of_zero)
        results = [out]
        if slope is not out:
            _bce_slope(slope, rest, x, of_one, of_zero)
            results.append(slope)
        for array in results if "weight" in given else ():
            np.multiply(array, given["weight"], out=array)

    def backward(self, grad: Array) -> Gradients:
        """(1 - t)·σ(x) - p·t·σ(-x) to the logits; p·softplus(-x) - softplus(x) to the target."""
        slope, *rest = self.saved
        factor = self._factor(grad, slope.size)
        needs_x, needs_target = self.needs_grad[:2]
        grads: list[Array | None] = [
            parallel.ufunc(np.multiply, slope, factor) if needs_x else None
        ]
        grads.append(self._to_target(factor, *rest) if needs_target else None)
        return grads + [None] * len(self.factors)

    def _to_target(self, factor: Array, x: Array, *factors: Array) -> Array:
        given = dict(zip(self.factors, factors, strict=True))
        rest = np.empty_like(x)
        _log1p_exp(rest, x)
        one, zero = rest - np.clip(x, -np.inf, 0), rest + np.clip(x, 0, np.inf)
        slope = given.get("pos_weight", x.dtype.type(1)) * one - zero
        return np.asarray(slope * given.get("weight", x.dtype.type(1)) * factor)


def _log1p_exp(out: Array, x: Array) -> None:
    """ln(1 + e^-|x|)."""
    np.abs(x, out=out)
    np.negative(out, out=out)
    np.exp(out, out=out)
    np.log1p(out, out=out)


def _mend_certain(out: Array, x: Array, of_one: Array, of_zero: Array) -> None:
    """What a share of 0 in an infinite loss made NaN: the loss is the other share's alone."""
    right = (x == np.inf) & (of_zero == 0) | (x == -np.inf) & (of_one == 0)
    out[right] = 0


def _bce_slope(out: Array, scratch: Array, x: Array, of_one: Array, of_zero: Array) -> None:
    """(1 - t)·σ(x) - p·t·σ(-x), from e = e^-x as (1 - t - p·t·e) / (1 + e)."""
    one = x.dtype.type(1)
    # p·t·e must stay finite; further below, σ(x) is less than 1e-30
    np.clip(x, -0.8 * np.log(np.finfo(x.dtype).max), np.inf, out=scratch)
    np.negative(scratch, out=scratch)
    np.exp(scratch, out=scratch)
    np.multiply(scratch, of_one, out=out)
    np.subtract(of_zero, out, out=out)
    np.add(scratch, one, out=scratch)
    np.divide(out, scratch, out=out)
