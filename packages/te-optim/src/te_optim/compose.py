"""Schedules made of schedules."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from .checks import check_count
from .schedule import Schedule


class _Composed(Schedule):
    """Holds schedules of one optimizer, and their states; only this one is stepped."""

    def __init__(self, schedules: Sequence[Schedule]) -> None:
        self.schedules = list(schedules)
        if not self.schedules:
            raise ValueError(f"{type(self).__name__} got no schedules: expected at least one")
        for schedule in self.schedules:
            if not isinstance(schedule, Schedule):
                raise TypeError(f"got a {type(schedule).__name__}: expected a Schedule")
            if schedule.optimizer is not self.schedules[0].optimizer:
                raise ValueError("the schedules are of several optimizers: expected one")
        super().__init__(self.schedules[0].optimizer)

    def state_dict(self) -> dict[str, Any]:
        """What resuming needs, with the states of the schedules."""
        return {**super().state_dict(), "schedules": [s.state_dict() for s in self.schedules]}

    def _take(self, state: Mapping[str, Any]) -> None:
        super()._take(state)
        parts = state["schedules"]
        if not isinstance(parts, (list, tuple)) or len(parts) != len(self.schedules):
            raise ValueError(f"schedules is {parts!r}: expected {len(self.schedules)} states")
        for schedule, part in zip(self.schedules, parts, strict=True):
            schedule._take(part)


class Chain(_Composed):
    """Several schedules at once, each starting from the learning rate that the one before gives.

    Of schedules that are factors the product is taken, as by PyTorch's ChainedScheduler.

    Args:
        schedules: schedules of one optimizer; from here on only the chain is stepped.

    Raises:
        ValueError: there are none, or they are of several optimizers.

    Example:
        >>> import te_tensor as te
        >>> from te_optim import SGD, ExponentialDecay, LinearWarmup
        >>> optimizer = SGD(lr=1.0, parameters=[te.ones(2, requires_grad=True)])
        >>> parts = [LinearWarmup(optimizer, 0.5, total_iters=2), ExponentialDecay(optimizer, 0.5)]
        >>> schedule = Chain(parts)
        >>> schedule.step()
        >>> optimizer.lr
        0.375
    """

    def settings_at(self, count: int, group: int, base_lr: float) -> dict[str, float]:
        """What the schedules set, one after the other."""
        found = {"lr": base_lr}
        for schedule in self.schedules:
            found |= schedule.settings_at(count, group, found["lr"])
        return found

    def _watch(self, metric: float | None, count: int) -> None:
        for schedule in self.schedules:
            schedule._watch(metric, count)


class Sequential(_Composed):
    """One schedule after the other, each counting from its own milestone.

    PyTorch's SequentialLR.

    Args:
        schedules: schedules of one optimizer; from here on only the whole is stepped.
        milestones: the numbers of steps at which the second, third, … one begins.

    Raises:
        ValueError: there are none, they are of several optimizers, or the milestones aren't one
            fewer and rising.

    Example:
        >>> import te_tensor as te
        >>> from te_optim import SGD, CosineAnnealing, LinearWarmup
        >>> optimizer = SGD(lr=1.0, parameters=[te.ones(2, requires_grad=True)])
        >>> parts = [LinearWarmup(optimizer, 0.5, total_iters=2), CosineAnnealing(optimizer, 8)]
        >>> schedule = Sequential(parts, milestones=[2])
        >>> for _ in range(2):
        ...     schedule.step()
        >>> optimizer.lr
        1.0
    """

    def __init__(self, schedules: Sequence[Schedule], milestones: Sequence[int]) -> None:
        self.milestones = list(milestones)
        for milestone in self.milestones:
            check_count("a milestone", milestone, least=1)
        if len(self.milestones) != len(schedules) - 1:
            raise ValueError(
                f"{len(self.milestones)} milestones for {len(schedules)} schedules: expected one "
                "fewer than schedules"
            )
        if any(a >= b for a, b in pairwise(self.milestones)):
            raise ValueError(f"milestones is {self.milestones}: expected rising numbers")
        super().__init__(schedules)

    def _part(self, count: int) -> tuple[Schedule, int]:
        """The schedule in charge after `count` steps, and the steps since it began."""
        place = bisect_right(self.milestones, count)
        return self.schedules[place], count - (self.milestones[place - 1] if place else 0)

    def settings_at(self, count: int, group: int, base_lr: float) -> dict[str, float]:
        """What the schedule in charge sets."""
        schedule, own = self._part(count)
        return schedule.settings_at(own, group, base_lr)

    def _watch(self, metric: float | None, count: int) -> None:
        schedule, own = self._part(count)
        schedule._watch(metric, own)
