"""Schedules that are a factor of the learning rate: warm-up and decay."""

from __future__ import annotations

from math import cos, pi

from .checks import check_count, check_number
from .optimizer import Optimizer
from .schedule import Schedule


class LinearWarmup(Schedule):
    """In a straight line from one factor of the learning rate to another; PyTorch's LinearLR.

    Args:
        optimizer: the optimizer.
        start_factor: the factor of the first step, at least 0.
        end_factor: the factor from step `total_iters` on.
        total_iters: the number of steps in between.

    Raises:
        TypeError: the optimizer is something else.
        ValueError: a setting is out of range.

    Example:
        >>> import te_tensor as te
        >>> from te_optim import SGD
        >>> optimizer = SGD(lr=1.0, parameters=[te.ones(2, requires_grad=True)])
        >>> schedule = LinearWarmup(optimizer, start_factor=0.5, total_iters=2)
        >>> schedule.step()
        >>> optimizer.lr
        0.75
    """

    def __init__(
        self,
        optimizer: Optimizer,
        start_factor: float = 1 / 3,
        end_factor: float = 1.0,
        total_iters: int = 5,
    ) -> None:
        check_number("start_factor", start_factor, least=0)
        check_number("end_factor", end_factor, least=0)
        check_count("total_iters", total_iters, least=1)
        self.start_factor = start_factor
        self.end_factor = end_factor
        self.total_iters = total_iters
        super().__init__(optimizer)

    def lr_at(self, count: int, base_lr: float) -> float:
        """The learning rate after `count` steps."""
        share = min(count, self.total_iters) / self.total_iters
        return base_lr * (self.start_factor + (self.end_factor - self.start_factor) * share)


class CosineAnnealing(Schedule):
    """Down to `eta_min` by half a cosine, and up again (Loshchilov and Hutter, arXiv:1608.03983).

    PyTorch's CosineAnnealingLR.

    Args:
        optimizer: the optimizer.
        T_max: the number of steps down.
        eta_min: the lowest learning rate.

    Raises:
        TypeError: the optimizer is something else.
        ValueError: a setting is out of range.

    Example:
        >>> import te_tensor as te
        >>> from te_optim import SGD
        >>> optimizer = SGD(lr=1.0, parameters=[te.ones(2, requires_grad=True)])
        >>> schedule = CosineAnnealing(optimizer, T_max=2)
        >>> schedule.step()
        >>> round(optimizer.lr, 6)
        0.5
    """

    def __init__(self, optimizer: Optimizer, T_max: int, eta_min: float = 0.0) -> None:
        check_count("T_max", T_max, least=1)
        check_number("eta_min", eta_min, least=0)
        self.T_max = T_max
        self.eta_min = eta_min
        super().__init__(optimizer)

    def lr_at(self, count: int, base_lr: float) -> float:
        """The learning rate after `count` steps."""
        return self.eta_min + (base_lr - self.eta_min) * (1 + cos(pi * count / self.T_max)) / 2


class StepDecay(Schedule):
    """Times `gamma` every `step_size` steps; PyTorch's StepLR.

    Args:
        optimizer: the optimizer.
        step_size: the number of steps between changes.
        gamma: the factor, above 0.

    Raises:
        TypeError: the optimizer is something else.
        ValueError: a setting is out of range.

    Example:
        >>> import te_tensor as te
        >>> from te_optim import SGD
        >>> optimizer = SGD(lr=1.0, parameters=[te.ones(2, requires_grad=True)])
        >>> schedule = StepDecay(optimizer, step_size=1, gamma=0.5)
        >>> schedule.step()
        >>> optimizer.lr
        0.5
    """

    def __init__(self, optimizer: Optimizer, step_size: int, gamma: float = 0.1) -> None:
        check_count("step_size", step_size, least=1)
        check_number("gamma", gamma, above=0)
        self.step_size = step_size
        self.gamma = gamma
        super().__init__(optimizer)

    def lr_at(self, count: int, base_lr: float) -> float:
        """The learning rate after `count` steps."""
        return float(base_lr * self.gamma ** (count // self.step_size))


class ExponentialDecay(Schedule):
    """Times `gamma` every step; PyTorch's ExponentialLR.

    Args:
        optimizer: the optimizer.
        gamma: the factor, above 0.

    Raises:
        TypeError: the optimizer is something else.
        ValueError: a setting is out of range.

    Example:
        >>> import te_tensor as te
        >>> from te_optim import SGD
        >>> optimizer = SGD(lr=1.0, parameters=[te.ones(2, requires_grad=True)])
        >>> schedule = ExponentialDecay(optimizer, gamma=0.5)
        >>> schedule.step()
        >>> optimizer.lr
        0.5
    """

    def __init__(self, optimizer: Optimizer, gamma: float) -> None:
        check_number("gamma", gamma, above=0)
        self.gamma = gamma
        super().__init__(optimizer)

    def lr_at(self, count: int, base_lr: float) -> float:
        """The learning rate after `count` steps."""
        return float(base_lr * self.gamma**count)


class PolynomialDecay(Schedule):
    """Down to 0 in `total_iters` steps, by a power of what is left; PyTorch's PolynomialLR.

    Args:
        optimizer: the optimizer.
        total_iters: the number of steps; from there on the learning rate is 0.
        power: the exponent, above 0.

    Raises:
        TypeError: the optimizer is something else.
        ValueError: a setting is out of range.

    Example:
        >>> import te_tensor as te
        >>> from te_optim import SGD
        >>> optimizer = SGD(lr=1.0, parameters=[te.ones(2, requires_grad=True)])
        >>> schedule = PolynomialDecay(optimizer, total_iters=4, power=2.0)
        >>> schedule.step()
        >>> optimizer.lr
        0.5625
    """

    def __init__(self, optimizer: Optimizer, total_iters: int = 5, power: float = 1.0) -> None:
        check_count("total_iters", total_iters, least=1)
        check_number("power", power, above=0)
        self.total_iters = total_iters
        self.power = power
        super().__init__(optimizer)

    def lr_at(self, count: int, base_lr: float) -> float:
        """The learning rate after `count` steps."""
        left = 1 - min(count, self.total_iters) / self.total_iters
        return float(base_lr * left**self.power)
