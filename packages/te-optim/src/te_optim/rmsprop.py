"""RMSProp."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from te_tensor.dtypes import Array
from te_tensor.memory import scratch

from .optimizer import Optimizer, Parameters, Rule, Scalar


class RMSProp(Optimizer):
    """Steps divided by the root of a running mean of squares (Hinton, 2012, lecture 6e).

    Centered, that mean is the variance: the squared mean gradient is taken off (Graves,
    arXiv:1308.0850).

    Args:
        lr: learning rate.
        alpha: decay of the running means.
        eps: added to the root.
        weight_decay: weight·weight_decay is added to the gradient.
        momentum: share of the last step that is kept.
        centered: divide by the root of the variance.
        parameters: tensors or groups to bind; else they are given with each call.

    Raises:
        ValueError: a setting is out of range.

    Example:
        >>> import te_tensor as te
        >>> w = te.Tensor([1.0], requires_grad=True)
        >>> optimizer = RMSProp(lr=0.05, parameters=[w])
        >>> (w * w).backward()
        >>> optimizer.step()
        >>> round(w.item(), 6)
        0.5
    """

    _arrays = ("square", "mean", "momentum_buffer")
    _switches = ("centered",)
    _shares = ("alpha",)

    def __init__(
        self,
        lr: float = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
        *,
        parameters: Parameters | None = None,
    ) -> None:
        settings = {
            "lr": lr,
            "alpha": alpha,
            "eps": eps,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "centered": centered,
        }
        super().__init__(settings, parameters)

    def _arrays_for(self, settings: Mapping[str, Any]) -> tuple[str, ...]:
        mean = ("mean",) if settings["centered"] else ()
        return ("square", *mean, *(("momentum_buffer",) if settings["momentum"] else ()))

    def _rule(self, settings: Mapping[str, Any], step: int, scalar: Scalar) -> Rule:
        lr, decay, momentum, keep, eps = (
            scalar(settings[n]) for n in ("lr", "weight_decay", "momentum", "alpha", "eps")
        )
        new = scalar(1 - settings["alpha"])
        names = self._arrays_for(settings)

        def rule(p: Array, g: Array, *state: Array) -> None:
            at = dict(zip(names, state, strict=True))
            spare, decayed = scratch(2, p.shape, p.dtype)
            if decay:
                g = np.add(g, np.multiply(p, decay, decayed), decayed)
            square = at["square"]
            np.multiply(square, keep, square)
            np.multiply(np.multiply(g, g, spare), new, spare)
            np.add(square, spare, square)
            if "mean" in at:
                mean = at["mean"]
                np.multiply(mean, keep, mean)
                np.add(mean, np.multiply(g, new, spare), mean)
                square = np.subtract(square, np.multiply(mean, mean, spare), spare)
            np.add(np.sqrt(square, spare), eps, spare)
            step = np.divide(g, spare, spare)
            if "momentum_buffer" in at:
                velocity = at["momentum_buffer"]
                np.multiply(velocity, momentum, velocity)
                step = np.add(velocity, step, velocity)
            np.subtract(p, np.multiply(step, lr, spare), p)

        return rule
