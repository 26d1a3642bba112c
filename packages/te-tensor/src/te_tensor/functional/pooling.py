"""Pooling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

from ..checks import check_switch, per_axis
from ..ops.pooling import AdaptiveAvgPool, AvgPool, MaxPool
from ..tensor import Tensor
from ._common import Like, apply, floats

_PerAxis: TypeAlias = int | Sequence[int]


def max_pool1d(
    x: Like,
    kernel_size: _PerAxis,
    stride: _PerAxis | None = None,
    padding: _PerAxis = 0,
    dilation: _PerAxis = 1,
    ceil_mode: bool = False,
) -> Tensor:
    """The maximum of each window of sequences; the options are those of `max_pool2d`.

    Args:
        x: shape (N, C, L) or (C, L).
        kernel_size: length of the window.
        stride: how far it moves; its own length by default.
        padding: places at each end that are never the maximum; at most half of kernel_size.
        dilation: from one element that it looks at to the next.
        ceil_mode: whether a last window may reach beyond the padding.

    Returns:
        Shape (N, C, L') or (C, L').

    Raises:
        ValueError: shapes or options that don't fit.
        TypeError: no floats.
    """
    return _max_pool(1, x, kernel_size, stride, padding, dilation, ceil_mode)


def max_pool2d(
    x: Like,
    kernel_size: _PerAxis,
    stride: _PerAxis | None = None,
    padding: _PerAxis = 0,
    dilation: _PerAxis = 1,
    ceil_mode: bool = False,
) -> Tensor:
    """The maximum of each window of images.

    A NaN in a window is its maximum. Of several maxima the first gets the gradient.

    Args:
        x: shape (N, C, H, W) or (C, H, W).
        kernel_size: the window; a number, or one for rows and one for columns, as all that follow.
        stride: how far it moves; its own size by default.
        padding: places at each end that are never the maximum; at most half of kernel_size.
        dilation: from one element that it looks at to the next.
        ceil_mode: whether a last window may reach beyond the padding.

    Returns:
        Shape (N, C, H', W') or (C, H', W'), with
        H' = ⌊(H + 2·padding - dilation·(kernel-1) - 1) / stride⌋ + 1 (⌈ ⌉ in ceil_mode).

    Raises:
        ValueError: shapes or options that don't fit.
        TypeError: no floats.

    Example:
        >>> import te_tensor as te
        >>> te.max_pool2d(te.arange(16.0).reshape(1, 4, 4), 2).tolist()
        [[[5.0, 7.0], [13.0, 15.0]]]
    """
    return _max_pool(2, x, kernel_size, stride, padding, dilation, ceil_mode)


def avg_pool1d(
    x: Like,
    kernel_size: _PerAxis,
    stride: _PerAxis | None = None,
    padding: _PerAxis = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Tensor:
    """The mean of each window of sequences; the options are those of `avg_pool2d`.

    Args:
        x: shape (N, C, L) or (C, L).
        kernel_size: length of the window.
        stride: how far it moves; its own length by default.
        padding: zeros at each end; at most half of kernel_size.
        ceil_mode: whether a last window may reach beyond the padding.
        count_include_pad: whether the padding counts in the mean.

    Returns:
        Shape (N, C, L') or (C, L').

    Raises:
        ValueError: shapes or options that don't fit.
        TypeError: no floats.
    """
    return _avg_pool(1, x, kernel_size, stride, padding, ceil_mode, count_include_pad, None)


def avg_pool2d(
    x: Like,
    kernel_size: _PerAxis,
    stride: _PerAxis | None = None,
    padding: _PerAxis = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """The mean of each window of images.

    Args:
        x: shape (N, C, H, W) or (C, H, W).
        kernel_size: the window; a number, or one for rows and one for columns, as all that follow.
        stride: how far it moves; its own size by default.
        padding: zeros at each end; at most half of kernel_size.
        ceil_mode: whether a last window may reach beyond the padding.
        count_include_pad: whether the padding counts in the mean.
        divisor_override: what sums are divided by, instead of the number of elements.

    Returns:
        Shape (N, C, H', W') or (C, H', W'), as `max_pool2d`.

    Raises:
        ValueError: shapes or options that don't fit.
        TypeError: no floats.

    Example:
        >>> import te_tensor as te
        >>> te.avg_pool2d(te.arange(16.0).reshape(1, 4, 4), 2).tolist()
        [[[2.5, 4.5], [10.5, 12.5]]]
    """
    options = (stride, padding, ceil_mode, count_include_pad, divisor_override)
    return _avg_pool(2, x, kernel_size, *options)


def adaptive_avg_pool1d(x: Like, output_size: int | None) -> Tensor:
    """The means of so many windows, which divide sequences as evenly as whole numbers allow.

    Args:
        x: shape (N, C, L) or (C, L).
        output_size: the number of windows; None keeps the length.

    Returns:
        Shape (N, C, output_size) or (C, output_size).

    Raises:
        ValueError: shapes or sizes that don't fit.
        TypeError: no floats.
    """
    return _adaptive_avg_pool(1, x, output_size)


def adaptive_avg_pool2d(x: Like, output_size: int | Sequence[int | None] | None) -> Tensor:
    """The means of so many windows, which divide images as evenly as whole numbers allow.

    Args:
        x: shape (N, C, H, W) or (C, H, W).
        output_size: the windows; a number, or one for rows and one for columns. None keeps an
            axis.

    Returns:
        Shape (N, C, H', W') or (C, H', W').

    Raises:
        ValueError: shapes or sizes that don't fit.
        TypeError: no floats.

    Example:
        >>> import te_tensor as te
        >>> te.adaptive_avg_pool2d(te.ones(2, 3, 5, 7), (1, None)).shape
        (2, 3, 1, 7)
    """
    return _adaptive_avg_pool(2, x, output_size)


def _max_pool(
    axes: int,
    x: Like,
    kernel_size: _PerAxis,
    stride: _PerAxis | None,
    padding: _PerAxis,
    dilation: _PerAxis,
    ceil_mode: bool,
) -> Tensor:
    kernel = per_axis("kernel_size", kernel_size, axes)
    strides = kernel if stride is None else per_axis("stride", stride, axes)
    dilations = per_axis("dilation", dilation, axes)
    paddings = _at_most_half(per_axis("padding", padding, axes, least=0), kernel)
    ceil_mode = check_switch("ceil_mode", ceil_mode)
    operation = MaxPool(kernel, strides, paddings, dilations, ceil_mode)
    return apply(operation, floats(f"max_pool{axes}d", x))


def _avg_pool(
    axes: int,
    x: Like,
    kernel_size: _PerAxis,
    stride: _PerAxis | None,
    padding: _PerAxis,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> Tensor:
    kernel = per_axis("kernel_size", kernel_size, axes)
    strides = kernel if stride is None else per_axis("stride", stride, axes)
    paddings = _at_most_half(per_axis("padding", padding, axes, least=0), kernel)
    if divisor_override is not None:
        (divisor_override,) = per_axis("divisor_override", divisor_override, 1)
    ceil_mode = check_switch("ceil_mode", ceil_mode)
    counted = check_switch("count_include_pad", count_include_pad)
    operation = AvgPool(kernel, strides, paddings, ceil_mode, counted, divisor_override)
    return apply(operation, floats(f"avg_pool{axes}d", x))


def _at_most_half(padding: tuple[int, ...], kernel: tuple[int, ...]) -> tuple[int, ...]:
    """The padding, as PyTorch allows it."""
    if any(p > k // 2 for p, k in zip(padding, kernel, strict=True)):
        raise ValueError(f"padding is {padding}: expected at most half of kernel_size, {kernel}")
    return padding


def _adaptive_avg_pool(
    axes: int, x: Like, output_size: int | Sequence[int | None] | None
) -> Tensor:
    given: Sequence[Any] = (output_size,) * axes
    if isinstance(output_size, (tuple, list)):
        given = output_size
    if len(given) != axes:
        raise ValueError(f"output_size is {output_size!r}: expected one number, or {axes}")
    for size in given:
        if size is not None:
            per_axis("output_size", size, 1)
    return apply(AdaptiveAvgPool(given), floats(f"adaptive_avg_pool{axes}d", x))
