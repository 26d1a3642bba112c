"""Normalization layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import te_tensor as te
from te_tensor import Tensor
from te_tensor.checks import check_switch

from . import initialize
from .checks import at_least_zero, positive, probability
from .module import Module


class LayerNorm(Module):
    """(x - mean) / √(var + eps) · weight + bias, over the last axes (arXiv:1607.06450).

    Args:
        normalized_shape: lengths of the last axes.
        eps: added to the variance.
        elementwise_affine: whether there are a weight and a bias.
        bias: whether there is a bias.

    Attributes:
        weight: shape normalized_shape, initially ones.
        bias: likewise, initially zeros.

    Example:
        >>> LayerNorm(4)(te.randn(2, 4)).shape
        (2, 4)
    """

    _always_the_same = True
    _shown = ("normalized_shape", "eps")

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
    ) -> None:
        shape = _lengths(normalized_shape)
        self.normalized_shape = shape
        self.eps = at_least_zero("eps", eps)
        check_switch("elementwise_affine", elementwise_affine)
        check_switch("bias", bias)
        self.weight = initialize.ones(shape) if elementwise_affine else None
        self.bias = initialize.zeros(shape) if elementwise_affine and bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Shape (…, *normalized_shape), which stays."""
        return te.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)


class RMSNorm(Module):
    """x / √(mean(x²) + eps) · weight, over the last axes (arXiv:1910.07467).

    Args:
        normalized_shape: lengths of the last axes.
        eps: added to the mean of the squares; None for the smallest step of x's dtype at 1.
        elementwise_affine: whether there is a weight.

    Attributes:
        weight: shape normalized_shape, initially ones, or None.

    Example:
        >>> RMSNorm(4)(te.randn(2, 4)).shape
        (2, 4)
    """

    _shown = ("normalized_shape", "eps")

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float | None = None,
        elementwise_affine: bool = True,
    ) -> None:
        self.normalized_shape = _lengths(normalized_shape)
        self.eps = None if eps is None else at_least_zero("eps", eps)
        check_switch("elementwise_affine", elementwise_affine)
        self.weight = initialize.ones(self.normalized_shape) if elementwise_affine else None

    def forward(self, x: Tensor) -> Tensor:
        """Shape (…, *normalized_shape), which stays."""
        return te.rms_norm(x, self.normalized_shape, self.weight, self.eps)


class GroupNorm(Module):
    """Groups of a sample's channels by their own mean and variance (arXiv:1803.08494).

    Args:
        num_groups: how many groups the channels are cut into.
        num_channels: C, the channels; a multiple of num_groups.
        eps: added to the variance.
        affine: whether there are a weight and a bias.

    Attributes:
        weight: shape (C,), initially ones, or None.
        bias: shape (C,), initially zeros, or None.

    Raises:
        ValueError: an option is no such number or switch, or the groups don't divide the channels.

    Example:
        >>> GroupNorm(2, 6)(te.randn(3, 6, 5)).shape
        (3, 6, 5)
    """

    _shown = ("num_groups", "num_channels", "eps")

    def __init__(
        self, num_groups: int, num_channels: int, eps: float = 1e-5, affine: bool = True
    ) -> None:
        self.num_groups = positive("num_groups", num_groups)
        self.num_channels = positive("num_channels", num_channels)
        if num_channels % num_groups:
            raise ValueError(f"num_groups is {num_groups}: expected it to divide {num_channels}")
        self.eps = at_least_zero("eps", eps)
        check_switch("affine", affine)
        self.weight = initialize.ones((num_channels,)) if affine else None
        self.bias = initialize.zeros((num_channels,)) if affine else None

    def forward(self, x: Tensor) -> Tensor:
        """Shape (N, C, …), which stays."""
        if not isinstance(x, Tensor):
            x = te.as_tensor(x)
        if x.ndim < 2 or x.shape[1] != self.num_channels:
            raise ValueError(f"GroupNorm got x {x.shape}: expected (N, {self.num_channels}, …)")
        return te.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


class _BatchNorm(Module):
    """Each channel by its mean and variance; subclasses say how many axes there may be."""

    _shown = ("num_features", "eps", "momentum")
    #: Forms of x.
    _forms: ClassVar[dict[int, str]]

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
    ) -> None:
        self.num_features = positive("num_features", num_features)
        self.eps = at_least_zero("eps", eps)
        self.momentum = None if momentum is None else probability("momentum", momentum)
        check_switch("affine", affine)
        self.weight = initialize.ones((num_features,)) if affine else None
        self.bias = initialize.zeros((num_features,)) if affine else None
        self.running_mean: Tensor | None
        self.running_var: Tensor | None
        self.num_batches_tracked: Tensor
        if check_switch("track_running_stats", track_running_stats):
            self.register_buffer("running_mean", te.zeros(num_features))
            self.register_buffer("running_var", te.ones(num_features))
            self.register_buffer("num_batches_tracked", te.zeros((), dtype="int64"))
        else:
            self.running_mean = self.running_var = None

    def forward(self, x: Tensor) -> Tensor:
        """Normalize; in training by the batch, and move the running statistics.

        Args:
            x: the channels on axis 1.

        Returns:
            The shape of x.

        Raises:
            ValueError: x has a wrong shape, or in training one value a channel.
            RuntimeError: in training inside `te.shard`: the batch is coupled.
        """
        if not isinstance(x, Tensor):
            x = te.as_tensor(x)
        if x.ndim not in self._forms or x.shape[1] != self.num_features:
            forms = " or ".join(self._forms.values())
            raise ValueError(
                f"{type(self).__name__} got x {x.shape}: expected {forms} with "
                f"C={self.num_features}"
            )
        tracked = self.running_mean is not None
        by_batch = self.training or not tracked
        moves = self.training and tracked
        momentum = self.momentum
        if momentum is None:  # the mean over all batches
            momentum = 1 / (self.num_batches_tracked.item() + 1) if moves else 0.0
        running = (self.running_mean, self.running_var) if moves or not by_batch else (None, None)
        result = te.batch_norm(x, *running, self.weight, self.bias, by_batch, momentum, self.eps)
        if moves:
            with self.num_batches_tracked.lock() as count:
                count += 1
        return result


class BatchNorm1D(_BatchNorm):
    """Each channel by its mean and variance over the batch (arXiv:1502.03167).

    In evaluation the running statistics stand for those of the batch.

    Args:
        num_features: C, the channels.
        eps: added to the variance.
        momentum: how far the running statistics move with a batch; None for the mean of all.
        affine: whether there are a weight and a bias.
        track_running_stats: whether there are running statistics; if not, the batch's own are
            used in evaluation, too.

    Attributes:
        weight: shape (C,), initially ones, or None.
        bias: shape (C,), initially zeros, or None.
        running_mean: shape (C,), a buffer, or None.
        running_var: shape (C,), the unbiased variance, a buffer, or None.
        num_batches_tracked: shape (), an int64 buffer.

    Example:
        >>> BatchNorm1D(4)(te.randn(3, 4)).shape
        (3, 4)
    """

    _forms: ClassVar[dict[int, str]] = {2: "(N, C)", 3: "(N, C, L)"}


class BatchNorm2D(_BatchNorm):
    """Each channel of images by its mean and variance over the batch (arXiv:1502.03167).

    Args and attributes are those of `BatchNorm1D`; x has the shape (N, C, H, W).

    Example:
        >>> BatchNorm2D(4)(te.randn(3, 4, 5, 5)).shape
        (3, 4, 5, 5)
    """

    _forms: ClassVar[dict[int, str]] = {4: "(N, C, H, W)"}


def _lengths(normalized_shape: int | Sequence[int]) -> tuple[int, ...]:
    """The lengths of the axes that are normalized together."""
    given = normalized_shape
    lengths = tuple(given) if isinstance(given, (tuple, list)) else (given,)
    if not lengths:
        raise ValueError(f"normalized_shape is {given!r}: expected a length or more")
    return tuple(positive("normalized_shape", n) for n in lengths)
