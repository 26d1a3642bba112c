"""Adam and AdamW."""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt
from typing import Any, ClassVar

import numpy as np

from te_tensor.memory import scratch
from te_tensor.parallel import elementwise

from .optimizer import Array, Optimizer, Parameters


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
    _counts_steps = True
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

    def _update(
        self, array: Array, grad: Array, state: dict[str, Any], group: dict[str, Any]
    ) -> None:
        if not state:
            state["step"] = 0
            for name in self._arrays_for(group):
                state[name] = np.zeros_like(array, order="C")
        state["step"] += 1
        beta1, beta2, lr = group["beta1"], group["beta2"], group["lr"]
        scalar = array.dtype.type
        step_size = scalar(lr / (1 - beta1 ** state["step"]))
        correction = scalar(1 / sqrt(1 - beta2 ** state["step"]))
        new_mean, keep, new_square = scalar(1 - beta1), scalar(beta2), scalar(1 - beta2)
        eps, decay = scalar(group["eps"]), scalar(group["weight_decay"])
        shrink = scalar(1 - lr * group["weight_decay"])

        def block(p: Array, g: Array, mean: Array, square: Array, *greatest: Array) -> None:
            if decay and self._decoupled:
                np.multiply(p, shrink, out=p)
            elif decay:
                g = g + decay * p
            (step,) = scratch(1, p.shape, p.dtype)
            np.subtract(g, mean, out=step)
            np.multiply(step, new_mean, out=step)
            np.add(mean, step, out=mean)
            np.multiply(square, keep, out=square)
            np.multiply(g, g, out=step)
            np.multiply(step, new_square, out=step)
            np.add(square, step, out=square)
            for top in greatest:
                square = np.maximum(top, square, out=top)
            np.sqrt(square, out=step)
            np.multiply(step, correction, out=step)
            np.add(step, eps, out=step)
            np.divide(mean, step, out=step)
            np.multiply(step, step_size, out=step)
            np.subtract(p, step, out=p)

        elementwise(block, array, grad, *(state[n] for n in self._arrays_for(group)))


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
