"""Stochastic gradient descent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from te_tensor.dtypes import Array
from te_tensor.memory import scratch

from .optimizer import Optimizer, Parameters, Rule, Scalar


class SGD(Optimizer):
    """p -= lr·v with v = momentum·v + g, PyTorch's form (Sutskever et al., 2013, for Nesterov's).

    Args:
        lr: learning rate.
        momentum: share of the last step that is kept.
        weight_decay: weight·weight_decay is added to the gradient.
        nesterov: step with g + momentum·v instead of v.
        dampening: v = momentum·v + (1 - dampening)·g from the second step on.
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
        dampening: float = 0.0,
        parameters: Parameters | None = None,
    ) -> None:
        settings = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "dampening": dampening,
        }
        super().__init__(settings, parameters)

    def _check(self, settings: Mapping[str, Any], *, resting: bool = False) -> None:
        super()._check(settings, resting=resting)
        if settings["nesterov"] and (not settings["momentum"] or settings["dampening"]):
            raise ValueError(
                f"nesterov with momentum {settings['momentum']} and dampening "
                f"{settings['dampening']}: expected a momentum above 0 and no dampening"
            )

    def _arrays_for(self, settings: Mapping[str, Any]) -> tuple[str, ...]:
        return self._arrays if settings["momentum"] else ()

    def _rule(self, settings: Mapping[str, Any], step: int, scalar: Scalar) -> Rule:
        lr, momentum, decay = (scalar(settings[n]) for n in ("lr", "momentum", "weight_decay"))
        dampening, nesterov = settings["dampening"], settings["nesterov"]
        fresh = scalar(1 - dampening)

        def rule(p: Array, g: Array, velocity: Array | None = None) -> None:
            spare, ahead = scratch(2, p.shape, p.dtype)
            if decay:
                g = np.add(g, np.multiply(p, decay, spare), spare)
            if velocity is not None:
                np.multiply(velocity, momentum, velocity)
                if dampening and step > 1:
                    g = np.multiply(g, fresh, spare)
                np.add(velocity, g, velocity)
                g = (
                    np.add(g, np.multiply(velocity, momentum, ahead), ahead)
                    if nesterov
                    else velocity
                )
            np.subtract(p, np.multiply(g, lr, spare), p)

        return rule
