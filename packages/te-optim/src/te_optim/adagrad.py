"""Adagrad."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from te_tensor.machine import Value, square_root

from .formula import formula
from .optimizer import Optimizer, Parameters, Rule, Scalar


class Adagrad(Optimizer):
    """Steps divided by the root of the sum of all squares so far (Duchi et al., JMLR 12, 2011).

    Args:
        lr: learning rate, at least 0.
        lr_decay: step t has the rate lr/(1 + (t - 1)·lr_decay).
        weight_decay: weight·weight_decay is added to the gradient.
        initial_accumulator_value: what the sums begin with.
        eps: added to the root.
        parameters: tensors or groups to bind; else they are given with each call.

    Raises:
        ValueError: a setting is out of range.

    Example:
        >>> import te_tensor as te
        >>> w = te.Tensor([1.0], requires_grad=True)
        >>> optimizer = Adagrad(lr=0.5, parameters=[w])
        >>> (w * w).backward()
        >>> optimizer.step()
        >>> round(w.item(), 6)
        0.5
    """

    _arrays = ("sum",)

    def __init__(
        self,
        lr: float = 1e-2,
        lr_decay: float = 0.0,
        weight_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
        *,
        parameters: Parameters | None = None,
    ) -> None:
        settings = {
            "lr": lr,
            "lr_decay": lr_decay,
            "weight_decay": weight_decay,
            "initial_accumulator_value": initial_accumulator_value,
            "eps": eps,
        }
        super().__init__(settings, parameters)

    def _initial(self, name: str, settings: Mapping[str, Any]) -> float:
        return float(settings["initial_accumulator_value"])

    def _rule(self, settings: Mapping[str, Any], step: int, scalar: Scalar) -> Rule:
        return _adagrad(
            *("p", "g", "sum"),
            rate=settings["lr"] / (1 + (step - 1) * settings["lr_decay"]),
            eps=settings["eps"],
            pull=settings["weight_decay"] or None,
        )


@formula
def _adagrad(
    p: Value, g: Value, sum: Value, *, rate: Value, eps: Value, pull: Value | None = None
) -> tuple[Value, ...]:
    if pull is not None:
        g = g + p * pull
    sum = sum + g * g
    return p - g / (square_root(sum) + eps) * rate, sum
