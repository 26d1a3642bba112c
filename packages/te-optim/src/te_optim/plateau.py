"""A schedule that follows a metric."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf, isnan
from typing import Any

import numpy as np

from .checks import check_choice, check_count, check_number
from .cycle import PerGroup
from .optimizer import Optimizer
from .schedule import Schedule, number_of_groups, per_group


class ReduceLROnPlateau(Schedule):
    """Times `factor` when a metric, given to each step, hasn't improved for `patience` steps.

    Args:
        optimizer: the optimizer.
        mode: whether the metric should reach a "min" or a "max".
        factor: the factor, above 0 and below 1.
        patience: the number of steps without improvement that are let pass.
        threshold: what counts as improvement.
        threshold_mode: whether the threshold is a share of the best metric, "rel", or is "abs".
        cooldown: the number of steps after a reduction that don't count.
        min_lr: the lowest learning rate, for all groups or a list for each.
        eps: a change that isn't greater than this is not made.

    Raises:
        TypeError: the optimizer is something else.
        ValueError: a setting is out of range.

    Example:
        >>> import te_tensor as te
        >>> from te_optim import SGD
        >>> optimizer = SGD(lr=1.0, parameters=[te.ones(2, requires_grad=True)])
        >>> schedule = ReduceLROnPlateau(optimizer, factor=0.5, patience=1)
        >>> for loss in (3.0, 2.0, 2.0, 2.0):
        ...     schedule.step(loss)
        >>> optimizer.lr
        0.5
    """

    def __init__(
        self,
        optimizer: Optimizer,
        mode: str = "min",
        factor: float = 0.1,
        patience: int = 10,
        threshold: float = 1e-4,
        threshold_mode: str = "rel",
        cooldown: int = 0,
        min_lr: PerGroup = 0.0,
        eps: float = 1e-8,
    ) -> None:
        check_choice("mode", mode, ("min", "max"))
        check_number("factor", factor, above=0, below=1)
        check_count("patience", patience, least=0)
        check_number("threshold", threshold, least=0)
        check_choice("threshold_mode", threshold_mode, ("rel", "abs"))
        check_count("cooldown", cooldown, least=0)
        check_number("eps", eps, least=0)
        self.mode = mode
        self.factor = factor
        self.patience = patience
        self.threshold = threshold
        self.threshold_mode = threshold_mode
        self.cooldown = cooldown
        self.min_lr = per_group("min_lr", min_lr, number_of_groups(optimizer), least=0)
        self.eps = eps
        self.best = inf if mode == "min" else -inf
        self.bad_steps = 0
        self.cooling = 0
        self.reductions = 0
        super().__init__(optimizer)

    def settings_at(self, count: int, group: int, base_lr: float) -> dict[str, float]:
        """The learning rate after the reductions so far."""
        for _ in range(self.reductions):
            lower = max(base_lr * self.factor, self.min_lr[group])
            if not base_lr - lower > self.eps:
                break
            base_lr = lower
        return {"lr": base_lr}

    def _improves(self, metric: float) -> bool:
        sign = 1 if self.mode == "min" else -1
        if self.threshold_mode == "rel":
            return sign * metric < sign * self.best * (1 - sign * self.threshold)
        return sign * metric < sign * self.best - self.threshold

    def _watch(self, metric: float | None, count: int) -> None:
        if metric is None:
            raise ValueError(f"step() of {type(self).__name__} without a metric: step(loss)")
        value = float(metric)
        if self._improves(value):
            self.best = value
            self.bad_steps = 0
        else:
            self.bad_steps += 1
        if self.cooling:
            self.cooling -= 1
            self.bad_steps = 0
        if self.bad_steps > self.patience:
            self.reductions += 1
            self.cooling = self.cooldown
            self.bad_steps = 0

    def state_dict(self) -> dict[str, Any]:
        """What resuming needs, with what is known of the metric."""
        own = {name: getattr(self, name) for name in ("best", *_COUNTS)}
        return {**super().state_dict(), **own}

    def _take(self, state: Mapping[str, Any]) -> None:
        super()._take(state)
        best = state["best"]
        if not isinstance(best, (int, float, np.number)) or isnan(best):
            raise ValueError(f"best is {best!r}: expected a number")
        for name in _COUNTS:
            check_count(name, state[name], least=0)
        self.best = float(best)
        for name in _COUNTS:
            setattr(self, name, int(state[name]))


_COUNTS = ("bad_steps", "cooling", "reductions")
