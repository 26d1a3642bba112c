"""The base of schedules: how settings, above all the learning rate, change from step to step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .checks import check_count, check_number
from .optimizer import Optimizer


class Schedule:
    """Sets the learning rate of every group, from a formula of the number of steps taken.

    Make it after the optimizer's parameters are bound, and call `step()` after each of the
    optimizer's steps. A subclass defines `lr_at`, or `settings_at` where it sets more.

    The base of a formula is the learning rate that a group had before its first schedule, as in
    PyTorch; setting `optimizer.lr` gives the schedules that are made from then on a new one.

    Args:
        optimizer: the optimizer.

    Attributes:
        count: the steps taken.
        base_lrs: the base, for each group.

    Raises:
        TypeError: the optimizer is something else.
        ValueError: the optimizer has no parameters yet.

    Example:
        >>> import te_tensor as te
        >>> from te_optim import SGD
        >>> class Halving(Schedule):
        ...     def lr_at(self, count, base_lr):
        ...         return base_lr / 2**count
        >>> optimizer = SGD(lr=0.1, parameters=[te.ones(2, requires_grad=True)])
        >>> schedule = Halving(optimizer)
        >>> schedule.step()
        >>> optimizer.lr
        0.05
    """

    def __init__(self, optimizer: Optimizer) -> None:
        number_of_groups(optimizer)
        if optimizer.base_lrs is None:
            optimizer.base_lrs = [group["lr"] for group in optimizer.groups]
        self.optimizer = optimizer
        self.base_lrs = list(optimizer.base_lrs)
        self.count = 0
        self._set()

    def lr_at(self, count: int, base_lr: float) -> float:
        """The learning rate after `count` steps, for a group whose base is `base_lr`."""
        raise NotImplementedError(f"{type(self).__name__} has no lr_at")

    def settings_at(self, count: int, group: int, base_lr: float) -> dict[str, float]:
        """All that is set after `count` steps, by name.

        Args:
            count: the number of steps.
            group: which of the optimizer's groups it is for.
            base_lr: the learning rate to start from.
        """
        return {"lr": self.lr_at(count, base_lr)}

    def step(self, metric: float | None = None) -> None:
        """Go one step further.

        Args:
            metric: what is watched, such as a loss, for the schedules that follow one.

        Raises:
            ValueError: the schedule has ended, or needs a metric; nothing was changed.
        """
        before = self.state_dict()
        try:
            self.count += 1
            self._watch(metric, self.count)
            self._set()
        except Exception:
            self._take(before)
            raise

    def _watch(self, metric: float | None, count: int) -> None:
        """Take note of the metric of step `count`; most schedules have no use for it."""

    def _set(self) -> None:
        settings = [
            self.settings_at(self.count, place, base) for place, base in enumerate(self.base_lrs)
        ]
        for group, values in zip(self.optimizer.groups, settings, strict=True):
            group.update(values)

    def state_dict(self) -> dict[str, Any]:
        """What resuming needs: the steps taken, the base learning rates, and what was watched."""
        return {"count": self.count, "base_lrs": list(self.base_lrs)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state that `state_dict` gave.

        Args:
            state: the state of a schedule of the same kind.

        Raises:
            ValueError: it doesn't fit; nothing was changed.
        """
        before = self.state_dict()
        try:
            self._take(state)
            self._set()
        except Exception:
            self._take(before)
            raise

    def _take(self, state: Mapping[str, Any]) -> None:
        """Take a state over, perhaps a part of it before an error."""
        wanted = sorted(self.state_dict())
        if not isinstance(state, Mapping) or sorted(map(str, state)) != wanted:
            given = sorted(map(str, state)) if isinstance(state, Mapping) else state
            raise ValueError(f"the state has {given!r}: expected the keys {', '.join(wanted)}")
        check_count("count", state["count"], least=0)
        base_lrs = per_group("base_lrs", state["base_lrs"], len(self.base_lrs), least=0)
        self.count, self.base_lrs = int(state["count"]), base_lrs


def number_of_groups(optimizer: Optimizer) -> int:
    """How many groups an optimizer has, which schedules set.

    Raises:
        TypeError: it is no optimizer.
        ValueError: it has no parameters yet.
    """
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer is {optimizer!r}: expected an Optimizer")
    if not optimizer.groups:
        raise ValueError("the optimizer has no parameters yet: bind them with parameters=…")
    return len(optimizer.groups)


def per_group(name: str, value: object, groups: int, **bounds: float) -> list[float]:
    """A number for each group, from one for all or from a list of them.

    Args:
        name: what it is called.
        value: the number or the list.
        groups: how many groups there are.
        **bounds: what `check_number` holds each to.

    Raises:
        ValueError: a number is out of bounds, or there are too few or too many.
    """
    listed = isinstance(value, Sequence) and not isinstance(value, str)
    values: Any = value if listed else [value] * groups
    for each in values:
        check_number(name, each, **bounds)
    if len(values) != groups:
        raise ValueError(
            f"{name} has {len(values)} numbers: expected one for each of {groups} groups"
        )
    return list(values)
