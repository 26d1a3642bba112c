"""Schedules: how the learning rate changes from step to step."""

from __future__ import annotations

from collections.abc import Mapping
from math import cos, isfinite, pi
from typing import Any

import numpy as np

from .optimizer import Optimizer


class Schedule:
    """Sets the learning rate of every group, from a formula of the number of steps taken.

    Make it after the optimizer's parameters are bound, and call `step()` after each of the
    optimizer's steps. A subclass defines `lr_at`.

    Args:
        optimizer: the optimizer; its learning rates when the schedule is made are the base.

    Raises:
        ValueError: the optimizer has no parameters yet.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        if not optimizer.groups:
            raise ValueError("the optimizer has no parameters yet: bind them with parameters=…")
        self.optimizer = optimizer
        self.base_lrs = [group["lr"] for group in optimizer.groups]
        self.count = 0
        self._set()

    def lr_at(self, count: int, base_lr: float) -> float:
        """The learning rate after `count` steps, for a group whose base is `base_lr`."""
        raise NotImplementedError(f"{type(self).__name__} has no lr_at")

    def _set(self) -> None:
        rates = [self.lr_at(self.count, base) for base in self.base_lrs]
        for group, rate in zip(self.optimizer.groups, rates, strict=True):
            group["lr"] = rate

    def step(self) -> None:
        """Go one step further."""
        self.count += 1
        try:
            self._set()
        except ValueError:
            self.count -= 1
            raise

    def state_dict(self) -> dict[str, Any]:
        """What resuming needs: the number of steps and the base learning rates."""
        return {"count": self.count, "base_lrs": list(self.base_lrs)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state that `state_dict` gave.

        Raises:
            ValueError: it doesn't fit; nothing was changed.
        """
        if set(state) != {"count", "base_lrs"}:
            raise ValueError(f"the state has the keys {sorted(state)}: expected count, base_lrs")
        _check_count("count", state["count"], least=0)
        if not all(_is_number(lr) and lr >= 0 for lr in state["base_lrs"]):
            raise ValueError(f"base_lrs is {state['base_lrs']}: expected numbers of at least 0")
        if len(state["base_lrs"]) != len(self.base_lrs):
            raise ValueError(
                f"the state is of {len(state['base_lrs'])} groups: expected {len(self.base_lrs)}"
            )
        before = self.count, self.base_lrs
        self.count, self.base_lrs = int(state["count"]), list(state["base_lrs"])
        try:
            self._set()
        except ValueError:
            self.count, self.base_lrs = before
            raise


def _is_number(value: object) -> bool:
    return (
        isinstance(value, (int, float, np.number))
        and not isinstance(value, bool)
        and isfinite(value)
    )


def _check_count(name: str, value: object, least: int) -> None:
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not whole or value < least:  # type: ignore[operator]
        raise ValueError(f"{name} is {value!r}: expected a whole number of at least {least}")


class OneCycleLR(Schedule):
    """Up to a peak and far down again, by half cosines (Smith and Topin, arXiv:1708.07120).

    As PyTorch's with two phases and cosines: the rate goes from max_lr/div_factor to max_lr and
    down to max_lr/div_factor/final_div_factor, while momentum (Adam's beta1) goes the other way.

    Args:
        optimizer: the optimizer.
        max_lr: the peak, one for all groups.
        total_steps: the number of steps of the whole cycle.
        pct_start: the share of them before the peak.
        div_factor: what the peak is divided by at the start.
        final_div_factor: what the start is divided by at the end.
        cycle_momentum: whether momentum goes the other way.
        base_momentum: momentum at the peak.
        max_momentum: momentum at start and end.

    Raises:
        ValueError: a setting is out of range, or a step beyond total_steps.

    Example:
        >>> import te_tensor as te
        >>> from te_optim import SGD
        >>> optimizer = SGD(lr=0.1, parameters=[te.ones(2, requires_grad=True)])
        >>> schedule = OneCycleLR(optimizer, max_lr=1.0, total_steps=10)
        >>> round(optimizer.lr, 6)
        0.04
    """

    def __init__(
        self,
        optimizer: Optimizer,
        max_lr: float,
        total_steps: int,
        pct_start: float = 0.3,
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
        cycle_momentum: bool = True,
        base_momentum: float = 0.85,
        max_momentum: float = 0.95,
    ) -> None:
        _check_count("total_steps", total_steps, least=1)
        numbers = {
            "max_lr": max_lr,
            "div_factor": div_factor,
            "final_div_factor": final_div_factor,
        }
        for name, value in numbers.items():
            if not _is_number(value) or value <= 0:
                raise ValueError(f"{name} is {value!r}: expected a number above 0")
        if not _is_number(pct_start) or not 0 <= pct_start <= 1:
            raise ValueError(f"pct_start is {pct_start!r}: expected 0 … 1")
        for name, value in (("base_momentum", base_momentum), ("max_momentum", max_momentum)):
            if not _is_number(value) or not 0 <= value < 1:
                raise ValueError(f"{name} is {value!r}: expected 0 … below 1")
        self.max_lr = max_lr
        self.total_steps = total_steps
        self.peak = pct_start * total_steps - 1
        self.start_lr = max_lr / div_factor
        self.final_lr = self.start_lr / final_div_factor
        self.base_momentum = base_momentum
        self.max_momentum = max_momentum
        self._momentum = None
        if cycle_momentum:
            known = optimizer.groups[0] if optimizer.groups else {}
            self._momentum = next((n for n in ("momentum", "beta1") if n in known), None)
        super().__init__(optimizer)

    def _between(self, count: int, start: float, peak: float, end: float) -> float:
        """From start to peak to end, each by half a cosine."""
        last = self.total_steps - 1
        if count <= self.peak:
            share = count / self.peak if self.peak else 1.0
            first, second = start, peak
        else:
            span = last - self.peak
            share = (count - self.peak) / span if span else 1.0
            first, second = peak, end
        return second + (first - second) / 2 * (1 + cos(pi * share))

    def lr_at(self, count: int, base_lr: float) -> float:
        """The learning rate after `count` steps; the base plays no part."""
        if count > self.total_steps:
            raise ValueError(
                f"step {count} of a cycle of {self.total_steps}: expected no more steps than that"
            )
        return self._between(count, self.start_lr, self.max_lr, self.final_lr)

    def _set(self) -> None:
        super()._set()
        if self._momentum is not None:
            value = self._between(
                self.count, self.max_momentum, self.base_momentum, self.max_momentum
            )
            for group in self.optimizer.groups:
                group[self._momentum] = value
