"""Convolution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from ..checks import per_axis
from ..ops.convolution import Convolution
from ..tensor import Tensor, as_tensor
from ._common import Like, apply, floats
from .padding import pad

_PerAxis: TypeAlias = int | Sequence[int]
#: Names of padding modes, with those of `pad`.
_MODES = {"zeros": "constant", **{name: name for name in ("reflect", "replicate", "circular")}}


def conv1d(
    x: Like,
    weight: Like,
    bias: Like | None = None,
    stride: _PerAxis = 1,
    padding: _PerAxis | str = 0,
    dilation: _PerAxis = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
) -> Tensor:
    """Cross-correlation of sequences with kernels.

    Args:
        x: shape (N, C, L), or (C, L) for one.
        weight: shape (O, C/groups, k).
        bias: shape (O,).
        stride: how far the kernel moves.
        padding: places added at each end, "same" for as many as keep the length, or "valid".
        dilation: from one element that the kernel looks at to the next.
        groups: the channels are cut into so many parts, each with kernels of its own.
        padding_mode: what is added: "zeros", "reflect", "replicate" or "circular".

    Returns:
        Shape (N, O, L') or (O, L') with L' = ⌊(L + 2·padding - dilation·(k-1) - 1) / stride⌋ + 1.

    Raises:
        ValueError: shapes or options that don't fit, or a kernel longer than the padded input.
        TypeError: no floats, or different float widths.

    Example:
        >>> import te_tensor as te
        >>> te.conv1d(te.ones(2, 3, 10), te.ones(4, 3, 5), padding="same").shape
        (2, 4, 10)
    """
    return _convolve(1, x, weight, bias, stride, padding, dilation, groups, padding_mode)


def conv2d(
    x: Like,
    weight: Like,
    bias: Like | None = None,
    stride: _PerAxis = 1,
    padding: _PerAxis | str = 0,
    dilation: _PerAxis = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
) -> Tensor:
    """Cross-correlation of images with kernels.

    Args:
        x: shape (N, C, H, W), or (C, H, W) for one.
        weight: shape (O, C/groups, kh, kw).
        bias: shape (O,).
        stride: how far the kernel moves; a number, or one for rows and one for columns.
        padding: places added at each end, likewise; "same" for as many as keep the size, or
            "valid".
        dilation: from one element that the kernel looks at to the next, likewise.
        groups: the channels are cut into so many parts, each with kernels of its own.
        padding_mode: what is added: "zeros", "reflect", "replicate" or "circular".

    Returns:
        Shape (N, O, H', W') or (O, H', W'), with
        H' = ⌊(H + 2·padding - dilation·(kh-1) - 1) / stride⌋ + 1 and likewise W'. The images of a
        batch of small ones may lie innermost in memory.

    Raises:
        ValueError: shapes or options that don't fit, or a kernel larger than the padded input.
        TypeError: no floats, or different float widths.

    Example:
        >>> import te_tensor as te
        >>> te.conv2d(te.ones(1, 3, 8, 8), te.ones(6, 3, 3, 3), stride=2, padding=1).shape
        (1, 6, 4, 4)
    """
    return _convolve(2, x, weight, bias, stride, padding, dilation, groups, padding_mode)


def _convolve(
    axes: int,
    x: Like,
    weight: Like,
    bias: Like | None,
    stride: _PerAxis,
    padding: _PerAxis | str,
    dilation: _PerAxis,
    groups: int,
    padding_mode: str,
) -> Tensor:
    name = f"conv{axes}d"
    x, weight = floats(name, x), floats(f"{name} with weight", weight)
    strides = per_axis("stride", stride, axes)
    dilations = per_axis("dilation", dilation, axes)
    (groups,) = per_axis("groups", groups, 1)
    if padding_mode not in _MODES:
        raise ValueError(f"padding_mode is {padding_mode!r}: expected one of {', '.join(_MODES)}")
    pairs = _pairs(padding, weight.shape[2:], strides, dilations)
    if padding_mode != "zeros":
        x = pad(x, pairs, _MODES[padding_mode])
        pairs = ((0, 0),) * axes
    extra = None if bias is None else as_tensor(bias)
    return apply(Convolution(strides, pairs, dilations, groups), x, weight, extra)


def _pairs(
    padding: _PerAxis | str,
    kernel: tuple[int, ...],
    strides: tuple[int, ...],
    dilations: tuple[int, ...],
) -> tuple[tuple[int, int], ...]:
    """The padding before and after each axis."""
    if isinstance(padding, str):
        if padding not in ("same", "valid"):
            raise ValueError(f"padding is {padding!r}: expected whole numbers, 'same' or 'valid'")
        if padding == "valid":
            return ((0, 0),) * len(strides)
        if max(strides) > 1:
            raise ValueError(f"padding is 'same' with stride {strides}: expected stride 1")
        # Where the sum is odd, the place more is after the elements.
        sums = [d * (k - 1) for k, d in zip(kernel, dilations, strict=False)]
        return tuple((total // 2, total - total // 2) for total in sums)
    return tuple((n, n) for n in per_axis("padding", padding, len(strides), least=0))
