"""Adam and AdamW."""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt
from typing import Any, ClassVar

import numpy as np

from te_tensor.dtypes import Array
from te_tensor.memory import scratch

from .optimizer import Optimizer, Parameters, Rule, Scalar


class Adam(Optimizer):
    """Steps scaled by running means of gradient and square (Kingma and Ba, arXiv:1412.6980).

    Args:
        lr: learning rate.
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
        # lr·(mean/c1)/(√square/c2 + eps) = (lr·c2/c1)·mean/(√square + eps·c2) takes a pass less.
        c1, c2 = 1 - beta1**step, sqrt(1 - beta2**step)
        rate, eps = scalar(lr * c2 / c1), scalar(settings["eps"] * c2)
        keep_mean, new_mean = scalar(beta1), scalar(1 - beta1)
        keep_square, new_square = scalar(beta2), scalar(1 - beta2)
        shrink, pull = scalar(1 - lr * decay), scalar(decay)

        def rule(p: Array, g: Array, mean: Array, square: Array, *greatest: Array) -> None:
            spare, decayed = scratch(2, p.shape, p.dtype)
            if decay and self._decoupled:
                np.multiply(p, shrink, p)
            elif decay:
                g = np.add(g, np.multiply(p, pull, decayed), decayed)
            np.multiply(mean, keep_mean, mean)
            np.add(mean, np.multiply(g, new_mean, spare), mean)
            np.multiply(square, keep_square, square)
            np.multiply(np.multiply(g, g, spare), new_square, spare)
            np.add(square, spare, square)
            for top in greatest:
                square = np.maximum(top, square, out=top)
            np.add(np.sqrt(square, spare), eps, spare)
            np.multiply(np.divide(mean, spare, spare), rate, spare)
            np.subtract(p, spare, p)

        return rule


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter, arXiv:1711.05101).

    Args:
        lr: learning rate.
        beta1: decay of the mean of gradients.
        beta2: decay of the mean of squares.
        eps: added to the root of the mean square.
        weight_decay: every step multiplies the weights by 1 - lr·weight_decay.
        amsgrad: divide by the greatest mean square so far.
        parameters: tensors or groups to bind; else they are given with each call.

    Raises:
        ValueError: a setting is out of range.
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
