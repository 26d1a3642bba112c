"""Stochastic gradient descent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from te_tensor.parallel import elementwise

from .optimizer import Array, Optimizer, Parameters


class SGD(Optimizer):
    """p -= lr·v with v = momentum·v + g, PyTorch's form (Sutskever et al., 2013, for Nesterov's).

    Args:
        lr: learning rate.
        momentum: share of the last step that is kept.
        weight_decay: weight·weight_decay is added to the gradient.
        nesterov: step with g + momentum·v instead of v.
        parameters: tensors or groups to bind; else they are given with each call.

    Raises:
        ValueError: a setting is out of range.

    Example:
        >>> import te_tensor as te
        >>> w = te.Tensor([1.0], requires_grad=True)
        >>> (w * w).backward()
        >>> SGD(lr=0.25, parameters=[w]).step()
        >>> w.item()
        0.5
    """

    _arrays = ("momentum_buffer",)
    _switches = ("nesterov",)

    def __init__(
        self,
        lr: float = 1e-3,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        parameters: Parameters | None = None,
    ) -> None:
        settings = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
        }
        super().__init__(settings, parameters)

    def _check(self, settings: Mapping[str, Any]) -> None:
        super()._check(settings)
        whole = {**self._settings, **settings}
        if whole.get("nesterov") and not whole.get("momentum"):
            raise ValueError("nesterov without momentum: expected a momentum above 0")

    def _arrays_for(self, settings: Mapping[str, Any]) -> tuple[str, ...]:
        return self._arrays if settings["momentum"] else ()

    def _update(
        self, array: Array, grad: Array, state: dict[str, Any], group: dict[str, Any]
    ) -> None:
        scalar = array.dtype.type
        lr, momentum, decay = (scalar(group[n]) for n in ("lr", "momentum", "weight_decay"))
        nesterov = group["nesterov"]

        def block(p: Array, g: Array, *velocity: Array) -> None:
            if decay:
                g = g + decay * p
            if velocity:
                (v,) = velocity
                np.multiply(v, momentum, out=v)
                np.add(v, g, out=v)
                g = g + momentum * v if nesterov else v
            np.subtract(p, lr * g, out=p)

        if not momentum:
            elementwise(block, array, grad)
            return
        # A buffer of zeros makes the first step's velocity the gradient, as PyTorch has it.
        if not state:
            state["momentum_buffer"] = np.zeros_like(array, order="C")
        elementwise(block, array, grad, state["momentum_buffer"])
