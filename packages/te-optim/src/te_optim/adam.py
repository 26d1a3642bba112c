"""Adam and AdamW."""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt
from typing import Any, ClassVar

from te_tensor.machine import Value, maximum, square_root

from .formula import formula
from .optimizer import Optimizer, Parameters, Rule, Scalar


class Adam(Optimizer):
    """Steps scaled by running means of gradient and square (Kingma and Ba, arXiv:1412.6980).

    Args:
        lr: learning rate, at least 0.
        beta1: decay of the mean of gradients.
        beta2: decay of the mean of squares.
        eps: added to the root of the mean square.
        weight_decay: weight·weight_decay is added to the gradient.
        amsgrad: divide by the greatest mean square so far (Reddi et al., arXiv:1904.09237).
        parameters: tensors or groups to bind; else they are given with each call.

    Raises:
        ValueError: a setting is out of range.

    Example:
        >>> import te_tensor as te
        >>> w = te.Tensor([1.0], requires_grad=True)
        >>> optimizer = Adam(lr=0.5, parameters=[w])
        >>> (w * w).backward()
        >>> optimizer.step()
        >>> round(w.item(), 6)
        0.5
    """

    _arrays = ("mean", "square", "greatest_square")
    _switches = ("amsgrad",)
    _shares = ("beta1", "beta2")
    #: Whether weight decay acts on the weights themselves, apart from the gradient.
    _decoupled: ClassVar[bool] = False

    def __init__(
        self,
        lr: float = 1e-3,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        parameters: Parameters | None = None,
    ) -> None:
        settings = {
            "lr": lr,
            "beta1": beta1,
            "beta2": beta2,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
        }
        super().__init__(settings, parameters)

    def _arrays_for(self, settings: Mapping[str, Any]) -> tuple[str, ...]:
        return self._arrays if settings["amsgrad"] else self._arrays[:2]

    def _rule(self, settings: Mapping[str, Any], step: int, scalar: Scalar) -> Rule:
        lr, decay = settings["lr"], settings["weight_decay"]
        beta1, beta2 = settings["beta1"], settings["beta2"]
        # lr·(mean/c1)/(√square/c2 + eps) = (lr·c2/c1)·mean/(√square + eps·c2) takes a step less.
        c1, c2 = 1 - beta1**step, sqrt(1 - beta2**step)
        return _adam(
            *("p", "g", *self._arrays_for(settings)),
            rate=lr * c2 / c1,
            eps=settings["eps"] * c2,
            keep_mean=beta1,
            new_mean=1 - beta1,
            keep_square=beta2,
            new_square=1 - beta2,
            shrink=1 - lr * decay if decay and self._decoupled else None,
            pull=decay if decay and not self._decoupled else None,
        )


@formula
def _adam(
    p: Value,
    g: Value,
    mean: Value,
    square: Value,
    greatest_square: Value | None = None,
    *,
    rate: Value,
    eps: Value,
    keep_mean: Value,
    new_mean: Value,
    keep_square: Value,
    new_square: Value,
    shrink: Value | None = None,
    pull: Value | None = None,
) -> tuple[Value | None, ...]:
    if shrink is not None:
        p = p * shrink
    if pull is not None:
        g = g + p * pull
    mean = mean * keep_mean + g * new_mean
    square = scale = square * keep_square + g * g * new_square
    if greatest_square is not None:
        scale = greatest_square = maximum(greatest_square, square)
    return p - mean / (square_root(scale) + eps) * rate, mean, square, greatest_square


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter, arXiv:1711.05101).

    Args:
        lr: learning rate, at least 0.
        beta1: decay of the mean of gradients.
        beta2: decay of the mean of squares.
        eps: added to the root of the mean square.
        weight_decay: every step multiplies the weights by 1 - lr·weight_decay.
        amsgrad: divide by the greatest mean square so far.
        parameters: tensors or groups to bind; else they are given with each call.

    Raises:
        ValueError: a setting is out of range.

    Example:
        >>> import te_tensor as te
        >>> w = te.Tensor([1.0], requires_grad=True)
        >>> optimizer = AdamW(lr=0.5, weight_decay=0.1, parameters=[w])
        >>> (w * w).backward()
        >>> optimizer.step()
        >>> round(w.item(), 6)
        0.45
    """

    _decoupled = True

    def __init__(
        self,
        lr: float = 1e-3,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        amsgrad: bool = False,
        *,
        parameters: Parameters | None = None,
    ) -> None:
        super().__init__(lr, beta1, beta2, eps, weight_decay, amsgrad, parameters=parameters)
