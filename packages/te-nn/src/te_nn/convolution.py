"""Convolution layers."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import ClassVar, TypeAlias

import te_tensor as te
from te_tensor import Tensor
from te_tensor.checks import check_switch, per_axis

from . import initialize
from .checks import one_of, positive
from .module import Module

_PerAxis: TypeAlias = int | Sequence[int]
_PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


class _Convolution(Module):
    """What convolutions over one axis and over two share."""

    _axes: ClassVar[int]
    _shown = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation",
              "groups", "padding_mode")  # fmt: skip

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: _PerAxis,
        stride: _PerAxis = 1,
        padding: _PerAxis | str = 0,
        dilation: _PerAxis = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
    ) -> None:
        axes = self._axes
        self.in_channels = positive("in_channels", in_channels)
        self.out_channels = positive("out_channels", out_channels)
        self.groups = positive("groups", groups)
        if in_channels % groups or out_channels % groups:
            raise ValueError(
                f"groups is {groups}: expected a divisor of in_channels {in_channels} and "
                f"out_channels {out_channels}"
            )
        self.kernel_size = per_axis("kernel_size", kernel_size, axes)
        self.stride = per_axis("stride", stride, axes)
        self.dilation = per_axis("dilation", dilation, axes)
        self.padding_mode = one_of("padding_mode", padding_mode, _PADDING_MODES)
        self.padding: tuple[int, ...] | str
        if isinstance(padding, str):
            self.padding = one_of("padding", padding, ("same", "valid"))
            if padding == "same" and max(self.stride) > 1:
                raise ValueError(f"padding is 'same' with stride {stride!r}: expected stride 1")
        else:
            self.padding = per_axis("padding", padding, axes, least=0)
        check_switch("bias", bias)
        shape = (out_channels, in_channels // groups, *self.kernel_size)
        fan_in = prod(shape[1:])
        self.weight = initialize.fan_in_uniform(shape, fan_in)
        self.bias = initialize.fan_in_uniform((out_channels,), fan_in) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Shape (N, in_channels, …) or (in_channels, …), to out_channels and fewer places."""
        convolve = (te.conv1d, te.conv2d)[self._axes - 1]
        return convolve(
            *(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups),
            padding_mode=self.padding_mode,
        )

    def extra_repr(self) -> str:
        """The options, and whether there is a bias."""
        return f"{super().extra_repr()}, bias={self.bias is not None}"


class Conv1D(_Convolution):
    """Cross-correlation of sequences with learnt kernels.

    Args:
        in_channels: channels of x.
        out_channels: channels of the result, a kernel each.
        kernel_size: length of the kernels.
        stride: how far they move.
        padding: places added at each end, "same" for as many as keep the length, or "valid".
        dilation: from one element that a kernel looks at to the next.
        groups: the channels are cut into so many parts, each with kernels of its own.
        bias: whether to add a bias.
        padding_mode: what is added: "zeros", "reflect", "replicate" or "circular".

    Attributes:
        weight: shape (out_channels, in_channels/groups, k), initially even in ±1/√fan_in, where
            fan_in is in_channels/groups · k.
        bias: shape (out_channels,), likewise, or None.

    Raises:
        ValueError: an option that is no such number or name, or groups that don't divide channels.

    Example:
        >>> Conv1D(3, 4, 5, padding="same")(te.ones(2, 3, 10)).shape
        (2, 4, 10)
    """

    _always_the_same = True
    _axes = 1


class Conv2D(_Convolution):
    """Cross-correlation of images with learnt kernels.

    Args:
        in_channels: channels of x.
        out_channels: channels of the result, a kernel each.
        kernel_size: size of the kernels; a number, or one for rows and one for columns, as all
            that follow.
        stride: how far they move.
        padding: places added at each end, "same" for as many as keep the size, or "valid".
        dilation: from one element that a kernel looks at to the next.
        groups: the channels are cut into so many parts, each with kernels of its own.
        bias: whether to add a bias.
        padding_mode: what is added: "zeros", "reflect", "replicate" or "circular".

    Attributes:
        weight: shape (out_channels, in_channels/groups, kh, kw), initially even in ±1/√fan_in,
            where fan_in is in_channels/groups · kh · kw.
        bias: shape (out_channels,), likewise, or None.

    Raises:
        ValueError: an option that is no such number or name, or groups that don't divide channels.

    Example:
        >>> Conv2D(3, 6, 3, stride=2, padding=1)(te.ones(2, 3, 8, 8)).shape
        (2, 6, 4, 4)
    """

    _always_the_same = True
    _axes = 2
