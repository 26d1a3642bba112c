"""RMSProp."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from te_tensor.machine import Value, square_root

from .formula import formula
from .optimizer import Optimizer, Parameters, Rule, Scalar


class RMSProp(Optimizer):
    """Steps divided by the root of a running mean of squares (Hinton, 2012, lecture 6e).

    Centered, that mean is the variance: the squared mean gradient is taken off (Graves,
    arXiv:1308.0850).

    Args:
        lr: learning rate, at least 0.
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
        return _rmsprop(
            *("p", "g", *self._arrays_for(settings)),
            lr=settings["lr"],
            eps=settings["eps"],
            keep=settings["alpha"],
            new=1 - settings["alpha"],
            momentum=settings["momentum"] or None,
            pull=settings["weight_decay"] or None,
        )


@formula
def _rmsprop(
    p: Value,
    g: Value,
    square: Value,
    mean: Value | None = None,
    momentum_buffer: Value | None = None,
    *,
    lr: Value,
    eps: Value,
    keep: Value,
    new: Value,
    momentum: Value | None = None,
    pull: Value | None = None,
) -> tuple[Value | None, ...]:
    if pull is not None:
        g = g + p * pull
    square = scale = square * keep + g * g * new
    if mean is not None:
        mean = mean * keep + g * new
        scale = square - mean * mean
    move = g / (square_root(scale) + eps)
    if momentum_buffer is not None and momentum is not None:
        move = momentum_buffer = momentum_buffer * momentum + move
    return p - move * lr, square, mean, momentum_buffer
