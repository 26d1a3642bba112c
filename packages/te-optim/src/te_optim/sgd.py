"""Stochastic gradient descent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from te_tensor.machine import Value

from .formula import formula
from .optimizer import Optimizer, Parameters, Rule, Scalar


class SGD(Optimizer):
    """p -= lr·v with v = momentum·v + g, PyTorch's form (Sutskever et al., 2013, for Nesterov's).

    Args:
        lr: learning rate, at least 0.
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

    def _check(self, settings: Mapping[str, Any]) -> None:
        super()._check(settings)
        if settings["nesterov"] and (not settings["momentum"] or settings["dampening"]):
            raise ValueError(
                f"nesterov with momentum {settings['momentum']} and dampening "
                f"{settings['dampening']}: expected a momentum above 0 and no dampening"
            )

    def _arrays_for(self, settings: Mapping[str, Any]) -> tuple[str, ...]:
        return self._arrays if settings["momentum"] else ()

    def _rule(self, settings: Mapping[str, Any], step: int, scalar: Scalar) -> Rule:
        momentum, dampening = settings["momentum"], settings["dampening"]
        return _sgd(
            *("p", "g", *self._arrays_for(settings)),
            lr=settings["lr"],
            momentum=momentum or None,
            ahead=momentum if settings["nesterov"] else None,
            pull=settings["weight_decay"] or None,
            fresh=1 - dampening if momentum and dampening and step > 1 else None,
        )


@formula
def _sgd(
    p: Value,
    g: Value,
    momentum_buffer: Value | None = None,
    *,
    lr: Value,
    momentum: Value | None = None,
    ahead: Value | None = None,
    pull: Value | None = None,
    fresh: Value | None = None,
) -> tuple[Value | None, ...]:
    if pull is not None:
        g = g + p * pull
    move = g
    if momentum_buffer is not None and momentum is not None:
        added = g if fresh is None else g * fresh
        move = momentum_buffer = momentum_buffer * momentum + added
    if ahead is not None:
        move = g + move * ahead
    return p - move * lr, momentum_buffer
