"""Normalization."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from ml_dtypes import finfo

from ..checks import check_number, check_switch, check_whole
from ..conversion import lengths
from ..dtypes import FLOATS, Array
from ..ops.channel_normalization import BatchNorm, GroupNorm, RunningNorm
from ..ops.normalization import LayerNorm, RMSNorm
from ..tensor import Tensor, as_tensor
from ._common import Like, apply, cast, floats


def layer_norm(
    x: Like,
    normalized_shape: int | Sequence[int],
    weight: Like | None = None,
    bias: Like | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """(x - mean) / √(var + eps) · weight + bias, over the last axes (arXiv:1607.06450).

    Args:
        x: shape (…, *normalized_shape).
        normalized_shape: lengths of the axes that are normalized together.
        weight: shape normalized_shape.
        bias: likewise; needs a weight.
        eps: added to the variance.

    Returns:
        The shape of x.

    Raises:
        ValueError: shapes that don't fit, or a bias without a weight.
    """
    x = floats("layer_norm", x)
    shape = _last_axes("layer_norm", x, normalized_shape)
    check_number("layer_norm eps", eps, 0)
    affine = _affine("layer_norm", weight, bias)
    return apply(LayerNorm(len(shape), eps), x, *affine)


def rms_norm(
    x: Like,
    normalized_shape: int | Sequence[int],
    weight: Like | None = None,
    eps: float | None = None,
) -> Tensor:
    """x / √(mean(x²) + eps) · weight, over the last axes (arXiv:1910.07467).

    Args:
        x: shape (…, *normalized_shape).
        normalized_shape: lengths of the axes that are normalized together.
        weight: shape normalized_shape.
        eps: added to the mean of the squares; by default the smallest step of x's dtype at 1.

    Returns:
        The shape of x.

    Raises:
        ValueError: shapes that don't fit.
    """
    x = floats("rms_norm", x)
    shape = _last_axes("rms_norm", x, normalized_shape)
    if eps is None:
        eps = float(finfo(x.dtype).eps)  # type: ignore[no-untyped-call]
    check_number("rms_norm eps", eps, 0)
    return apply(RMSNorm(len(shape), eps), x, None if weight is None else as_tensor(weight))


def group_norm(
    x: Like,
    num_groups: int,
    weight: Like | None = None,
    bias: Like | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Groups of channels by their own mean and variance in each sample (arXiv:1803.08494).

    Args:
        x: shape (N, C, …).
        num_groups: how many groups the channels are cut into.
        weight: shape (C,).
        bias: likewise; needs a weight.
        eps: added to the variance.

    Returns:
        The shape of x.

    Raises:
        ValueError: shapes that don't fit, or groups that don't divide the channels.
    """
    check_whole("num_groups", num_groups, 1)
    check_number("group_norm eps", eps, 0)
    affine = _affine("group_norm", weight, bias)
    return apply(GroupNorm(num_groups, eps), floats("group_norm", x), *affine)


def batch_norm(
    x: Like,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Like | None = None,
    bias: Like | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Each channel by its mean and variance (arXiv:1502.03167).

    Args:
        x: shape (N, C), (N, C, L) or (N, C, H, W), or with more axes.
        running_mean: shape (C,). In training it is moved towards the batch's mean.
        running_var: likewise, towards the unbiased variance.
        weight: shape (C,).
        bias: likewise; needs a weight.
        training: use the batch's own statistics instead of the running ones; these are coupled,
            so it raises inside `shard`.
        momentum: how far the running statistics move, 0 … 1.
        eps: added to the variance.

    Returns:
        The shape of x.

    Raises:
        ValueError: shapes that don't fit, one value a channel in training, or no running
            statistics otherwise.
        RuntimeError: in training inside `shard`.
    """
    x = floats("batch_norm", x)
    check_number("batch_norm eps", eps, 0)
    check_number("batch_norm momentum", momentum, 0, 1)
    affine = _affine("batch_norm", weight, bias)
    running = (running_mean, running_var)
    if not check_switch("batch_norm training", training):
        if running_mean is None or running_var is None:
            raise ValueError(
                "batch_norm got no running statistics: expected both, or training=True"
            )
        given = (cast(as_tensor(v), x).detach() for v in running)
        return apply(RunningNorm(eps), x, *given, *affine)
    for name, tensor in zip(("running_mean", "running_var"), running, strict=True):
        if tensor is None:
            continue
        if not isinstance(tensor, Tensor) or tensor.dtype not in FLOATS:
            kind = getattr(tensor, "dtype", type(tensor).__name__)
            raise TypeError(f"batch_norm got {name} of {kind}: expected a Tensor of floats")
        if tensor.shape != x.shape[1:2]:
            raise ValueError(f"batch_norm of {x.shape} got {name} {tensor.shape}: expected (C,)")
        if not tensor.writable:
            raise ValueError(f"batch_norm got a read-only {name}: expected one to write to")
    operation = BatchNorm(eps)
    out, mean, variance = Tensor.apply(operation, x, *(a for a in affine if a is not None))
    count = x.shape[0] * prod(x.shape[2:])
    _move(running_mean, mean.data, momentum)
    _move(running_var, variance.data * (count / (count - 1)), momentum)
    result: Tensor = out
    return result


def _move(running: Tensor | None, value: Array, momentum: float) -> None:
    """Move a running statistic towards a value, in place."""
    if running is not None:
        with running.lock() as array:
            array[...] = array * (1 - momentum) + value * momentum


def _last_axes(name: str, x: Tensor, normalized_shape: int | Sequence[int]) -> tuple[int, ...]:
    shape = lengths((normalized_shape,))
    if not shape or x.shape[-len(shape) :] != shape:
        raise ValueError(f"{name} of shape {x.shape}: expected it to end with {shape}")
    return shape


def _affine(name: str, weight: Like | None, bias: Like | None) -> list[Tensor | None]:
    if bias is not None and weight is None:
        raise ValueError(f"{name} got a bias without a weight: expected both, or weight alone")
    return [None if a is None else as_tensor(a) for a in (weight, bias)]
