"""Schedules that go up and down, with momentum going the other way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import cos, floor, pi
from typing import TypeAlias

from te_tensor.checks import check_switch

from .checks import check_choice, check_count, check_number
from .optimizer import Optimizer
from .schedule import Schedule, number_of_groups, per_group

#: One number for all groups, or one for each.
PerGroup: TypeAlias = float | Sequence[float]


def _momentum_of(optimizer: Optimizer, cycle_momentum: bool) -> str | None:
    """The setting that momentum is cycled in: an optimizer's momentum, or Adam's beta1."""
    check_switch("cycle_momentum", cycle_momentum)
    if not cycle_momentum:
        return None
    for name in ("momentum", "beta1"):
        if name in optimizer.groups[0]:
            return name
    raise ValueError(
        f"cycle_momentum with {type(optimizer).__name__}, which has no momentum: expected False"
    )


class CyclicLR(Schedule):
    """Up and down between two learning rates, in straight lines (Smith, arXiv:1506.01186).

    Args:
        optimizer: the optimizer.
        base_lr: the lower learning rate, for all groups or a list for each.
        max_lr: the upper one.
        step_size_up: the number of steps up.
        step_size_down: the number of steps down; as many as up where it is None.
        mode: "triangular"; "triangular2", each cycle half as high as the last; or "exp_range",
            times gamma at each step.
        gamma: the factor of "exp_range".
        scale_fn: the factor of the height, instead of `mode`'s.
        scale_mode: whether scale_fn is given the number of the "cycle", from 1, or of "iterations".
        cycle_momentum: whether momentum, or Adam's beta1, goes the other way.
        base_momentum: momentum where the learning rate is highest.
        max_momentum: momentum where it is lowest.

    Raises:
        TypeError: the optimizer is something else.
        ValueError: a setting is out of range.

    Example:
        >>> import te_tensor as te
        >>> from te_optim import SGD
        >>> optimizer = SGD(lr=0.1, parameters=[te.ones(2, requires_grad=True)])
        >>> schedule = CyclicLR(optimizer, base_lr=1.0, max_lr=2.0, step_size_up=2)
        >>> schedule.step()
        >>> optimizer.lr
        1.5
    """

    def __init__(
        self,
        optimizer: Optimizer,
        base_lr: PerGroup,
        max_lr: PerGroup,
        step_size_up: int = 2000,
        step_size_down: int | None = None,
        mode: str = "triangular",
        gamma: float = 1.0,
        scale_fn: Callable[[float], float] | None = None,
        scale_mode: str = "cycle",
        cycle_momentum: bool = True,
        base_momentum: PerGroup = 0.8,
        max_momentum: PerGroup = 0.9,
    ) -> None:
        groups = number_of_groups(optimizer)
        check_count("step_size_up", step_size_up, least=1)
        if step_size_down is not None:
            check_count("step_size_down", step_size_down, least=1)
        check_number("gamma", gamma, above=0)
        modes: dict[str, tuple[Callable[[float], float], str]] = {
            "triangular": (lambda cycle: 1.0, "cycle"),
            "triangular2": (lambda cycle: 1 / 2.0 ** (cycle - 1), "cycle"),
            "exp_range": (lambda count: gamma**count, "iterations"),
        }
        check_choice("mode", mode, modes)
        check_choice("scale_mode", scale_mode, ("cycle", "iterations"))
        self.scale_fn, self.scale_mode = modes[mode] if scale_fn is None else (scale_fn, scale_mode)
        self.low = per_group("base_lr", base_lr, groups, least=0)
        self.high = per_group("max_lr", max_lr, groups, above=0)
        self.up = step_size_up
        self.down = step_size_up if step_size_down is None else step_size_down
        self.base_momentum = per_group("base_momentum", base_momentum, groups, least=0, below=1)
        self.max_momentum = per_group("max_momentum", max_momentum, groups, least=0, below=1)
        self._momentum = _momentum_of(optimizer, cycle_momentum)
        super().__init__(optimizer)

    def settings_at(self, count: int, group: int, base_lr: float) -> dict[str, float]:
        """Learning rate and momentum after `count` steps; the base plays no part."""
        length = self.up + self.down
        cycle = floor(1 + count / length)
        done = 1 + count / length - cycle
        ratio = self.up / length
        height = done / ratio if done <= ratio else (done - 1) / (ratio - 1)
        height *= self.scale_fn(cycle if self.scale_mode == "cycle" else count)
        found = {"lr": self.low[group] + (self.high[group] - self.low[group]) * height}
        if self._momentum is not None:
            span = self.max_momentum[group] - self.base_momentum[group]
            found[self._momentum] = self.max_momentum[group] - span * height
        return found


class OneCycleLR(Schedule):
    """Up to a peak and far down again (Smith and Topin, arXiv:1708.07120).

    As PyTorch's: the learning rate goes from max_lr/div_factor to max_lr and down to
    max_lr/div_factor/final_div_factor, while momentum goes the other way.

    Args:
        optimizer: the optimizer.
        max_lr: the peak, for all groups or a list for each.
        total_steps: the number of steps of the whole cycle.
        pct_start: the share of them before the peak.
        div_factor: what the peak is divided by at the start.
        final_div_factor: what the start is divided by at the end.
        cycle_momentum: whether momentum, or Adam's beta1, goes the other way.
        base_momentum: momentum at the peak.
        max_momentum: momentum at start and end.
        epochs: with steps_per_epoch, the total in place of total_steps.
        steps_per_epoch: with epochs.
        anneal_strategy: "cos", half cosines, or "linear", straight lines.
        three_phase: down to the start first, in as many steps as up, and from there to the end.

    Raises:
        TypeError: the optimizer is something else.
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
        max_lr: PerGroup,
        total_steps: int | None = None,
        pct_start: float = 0.3,
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
        cycle_momentum: bool = True,
        base_momentum: PerGroup = 0.85,
        max_momentum: PerGroup = 0.95,
        *,
        epochs: int | None = None,
        steps_per_epoch: int | None = None,
        anneal_strategy: str = "cos",
        three_phase: bool = False,
    ) -> None:
        groups = number_of_groups(optimizer)
        if total_steps is None:
            check_count("epochs", epochs, least=1)
            check_count("steps_per_epoch", steps_per_epoch, least=1)
            total_steps = (epochs or 0) * (steps_per_epoch or 0)
        check_count("total_steps", total_steps, least=1)
        check_number("pct_start", pct_start, least=0, most=1)
        check_number("div_factor", div_factor, above=0)
        check_number("final_div_factor", final_div_factor, above=0)
        check_choice("anneal_strategy", anneal_strategy, ("cos", "linear"))
        check_switch("three_phase", three_phase)
        self.max_lr = per_group("max_lr", max_lr, groups, above=0)
        self.total_steps = total_steps
        self.div_factor = div_factor
        self.final_div_factor = final_div_factor
        self.base_momentum = per_group("base_momentum", base_momentum, groups, least=0, below=1)
        self.max_momentum = per_group("max_momentum", max_momentum, groups, least=0, below=1)
        self.anneal_strategy = anneal_strategy
        # Where each phase ends, in steps; PyTorch's phases, fractions included.
        peak, last = pct_start * total_steps - 1, float(total_steps - 1)
        self.ends = [peak, 2 * pct_start * total_steps - 2, last] if three_phase else [peak, last]
        self._momentum = _momentum_of(optimizer, cycle_momentum)
        super().__init__(optimizer)

    def settings_at(self, count: int, group: int, base_lr: float) -> dict[str, float]:
        """Learning rate and momentum after `count` steps; the base plays no part.

        Raises:
            ValueError: the cycle has fewer steps.
        """
        if count > self.total_steps:
            raise ValueError(
                f"step {count} of a cycle of {self.total_steps}: expected no more steps than that"
            )
        peak = self.max_lr[group]
        start = peak / self.div_factor
        back = [start] if len(self.ends) == 3 else []
        found = {"lr": self._along(count, [start, peak, *back, start / self.final_div_factor])}
        if self._momentum is not None:
            low, high = self.base_momentum[group], self.max_momentum[group]
            levels = [high, low, high, high][: len(self.ends) + 1]
            found[self._momentum] = self._along(count, levels)
        return found

    def _along(self, count: int, levels: Sequence[float]) -> float:
        """Where a path through the levels, one at each phase's end, is after `count` steps."""
        phase = next((i for i, end in enumerate(self.ends) if count <= end), len(self.ends) - 1)
        begin = self.ends[phase - 1] if phase else 0.0
        span = self.ends[phase] - begin
        share = (count - begin) / span if span else 1.0
        first, second = levels[phase : phase + 2]
        if self.anneal_strategy == "linear":
            return (second - first) * share + first
        return second + (first - second) / 2 * (1 + cos(pi * share))
