"""Pooling layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, TypeAlias

import te_tensor as te
from te_tensor import Tensor
from te_tensor.checks import check_switch, per_axis

from .checks import positive
from .module import Module

_PerAxis: TypeAlias = int | Sequence[int]


class _Pool(Module):
    """What poolings with windows that are all alike share."""

    _axes: ClassVar[int]

    def _set_windows(
        self, kernel_size: _PerAxis, stride: _PerAxis | None, padding: _PerAxis, ceil_mode: bool
    ) -> None:
        self.kernel_size = per_axis("kernel_size", kernel_size, self._axes)
        moved = self.kernel_size if stride is None else stride
        self.stride = per_axis("stride", moved, self._axes)
        self.padding = per_axis("padding", padding, self._axes, least=0)
        if any(p > k // 2 for p, k in zip(self.padding, self.kernel_size, strict=True)):
            raise ValueError(
                f"padding is {padding!r}: expected at most half of kernel_size {kernel_size!r}"
            )
        self.ceil_mode = check_switch("ceil_mode", ceil_mode)


class _MaxPool(_Pool):
    _shown = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")

    def __init__(
        self,
        kernel_size: _PerAxis,
        stride: _PerAxis | None = None,
        padding: _PerAxis = 0,
        dilation: _PerAxis = 1,
        ceil_mode: bool = False,
    ) -> None:
        self._set_windows(kernel_size, stride, padding, ceil_mode)
        self.dilation = per_axis("dilation", dilation, self._axes)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (N, C, …) or (C, …), to fewer places."""
        pool = (te.max_pool1d, te.max_pool2d)[self._axes - 1]
        windows = (self.kernel_size, self.stride, self.padding, self.dilation)
        return pool(x, *windows, ceil_mode=self.ceil_mode)


class MaxPool1D(_MaxPool):
    """The maximum of each window of sequences.

    Args:
        kernel_size: length of the window.
        stride: how far it moves; its own length by default.
        padding: places at each end that are never the maximum; at most half of kernel_size.
        dilation: from one element that it looks at to the next.
        ceil_mode: whether a last window may reach beyond the padding.

    Raises:
        ValueError: an option that is no such number.

    Example:
        >>> MaxPool1D(2)(te.Tensor([[[1.0, 3.0, 2.0, 0.0]]])).tolist()
        [[[3.0, 2.0]]]
    """

    _axes = 1


class MaxPool2D(_MaxPool):
    """The maximum of each window of images.

    Args:
        kernel_size: the window; a number, or one for rows and one for columns, as all that follow.
        stride: how far it moves; its own size by default.
        padding: places at each end that are never the maximum; at most half of kernel_size.
        dilation: from one element that it looks at to the next.
        ceil_mode: whether a last window may reach beyond the padding.

    Raises:
        ValueError: an option that is no such number.

    Example:
        >>> MaxPool2D(2)(te.ones(2, 3, 8, 6)).shape
        (2, 3, 4, 3)
    """

    _always_the_same = True
    _axes = 2


class AvgPool1D(_Pool):
    """The mean of each window of sequences.

    Args:
        kernel_size: length of the window.
        stride: how far it moves; its own length by default.
        padding: zeros at each end; at most half of kernel_size.
        ceil_mode: whether a last window may reach beyond the padding.
        count_include_pad: whether the padding counts in the mean.

    Raises:
        ValueError: an option that is no such number.

    Example:
        >>> AvgPool1D(2)(te.Tensor([[[1.0, 3.0, 2.0, 0.0]]])).tolist()
        [[[2.0, 1.0]]]
    """

    _axes = 1
    _shown = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad")

    def __init__(
        self,
        kernel_size: _PerAxis,
        stride: _PerAxis | None = None,
        padding: _PerAxis = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
    ) -> None:
        self._set_windows(kernel_size, stride, padding, ceil_mode)
        self.count_include_pad = check_switch("count_include_pad", count_include_pad)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (N, C, L) or (C, L), to fewer places."""
        windows = (self.kernel_size, self.stride, self.padding)
        return te.avg_pool1d(x, *windows, self.ceil_mode, self.count_include_pad)


class AvgPool2D(_Pool):
    """The mean of each window of images.

    Args:
        kernel_size: the window; a number, or one for rows and one for columns, as all that follow.
        stride: how far it moves; its own size by default.
        padding: zeros at each end; at most half of kernel_size.
        ceil_mode: whether a last window may reach beyond the padding.
        count_include_pad: whether the padding counts in the mean.
        divisor_override: what sums are divided by, instead of the number of elements.

    Raises:
        ValueError: an option that is no such number.

    Example:
        >>> AvgPool2D(2)(te.ones(2, 3, 8, 6)).shape
        (2, 3, 4, 3)
    """

    _axes = 2
    _shown = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad",
              "divisor_override")  # fmt: skip

    def __init__(
        self,
        kernel_size: _PerAxis,
        stride: _PerAxis | None = None,
        padding: _PerAxis = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> None:
        self._set_windows(kernel_size, stride, padding, ceil_mode)
        self.count_include_pad = check_switch("count_include_pad", count_include_pad)
        given = divisor_override
        self.divisor_override = None if given is None else positive("divisor_override", given)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (N, C, H, W) or (C, H, W), to fewer places."""
        windows = (self.kernel_size, self.stride, self.padding, self.ceil_mode)
        return te.avg_pool2d(x, *windows, self.count_include_pad, self.divisor_override)


class AdaptiveAvgPool1D(Module):
    """The means of so many windows, which divide sequences as evenly as whole numbers allow.

    Args:
        output_size: the number of windows; None keeps the length.

    Raises:
        ValueError: output_size is no such number.

    Example:
        >>> AdaptiveAvgPool1D(3)(te.ones(2, 5, 7)).shape
        (2, 5, 3)
    """

    _shown = ("output_size",)

    def __init__(self, output_size: int | None) -> None:
        self.output_size = _size(output_size)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (N, C, L) or (C, L), to output_size places."""
        return te.adaptive_avg_pool1d(x, self.output_size)


class AdaptiveAvgPool2D(Module):
    """The means of so many windows, which divide images as evenly as whole numbers allow.

    Args:
        output_size: the windows; a number, or one for rows and one for columns. None keeps an
            axis.

    Raises:
        ValueError: output_size is no such number.

    Example:
        >>> AdaptiveAvgPool2D(1)(te.ones(2, 5, 7, 7)).shape
        (2, 5, 1, 1)
    """

    _shown = ("output_size",)

    def __init__(self, output_size: int | Sequence[int | None] | None) -> None:
        sizes = output_size if isinstance(output_size, (tuple, list)) else (output_size,) * 2
        if len(sizes) != 2:
            raise ValueError(f"output_size is {output_size!r}: expected one number, or 2")
        self.output_size = tuple(_size(size) for size in sizes)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (N, C, H, W) or (C, H, W), to output_size places."""
        return te.adaptive_avg_pool2d(x, self.output_size)


def _size(value: int | None) -> int | None:
    return None if value is None else positive("output_size", value)
