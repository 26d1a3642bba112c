"""Convolution by matrix products on shifted views of the images (see `_columns`).

Each product adds to the output. Backward multiplies with matrices that are made the same way: of
the gradient, for the input; of the input, for the weight.

Kernels work on arrays (U, C, H, W, L): units of channels, rows, columns and lanes. A large image
is a unit with one lane. The images of a batch of small ones are the lanes of one unit, and lie so
in the result: the innermost loops are long, and calls are few.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TypeAlias

import numpy as np

from .. import parallel
from ..blas import gemm, gemm_batch
from ..dtypes import Array
from ..machine import Column, Matrix, kernel, runs
from ..operation import Gradients, Operation, Sample
from ..recorder import Backward, Into, Recorder, Unrecorded
from ._columns import Block, Columns, columns_of
from ._direct import DirectBlock, direct
from ._kernels import as_rows
from ._recorded_images import recorded
from ._units import run_all, run_and_keep, tasks_of, threads_for
from ._windows import SMALL_IMAGE, Window, as_images, check_images, new_images, to_lanes

#: An image is small, and the batch goes into lanes, up to so many multiply-adds, and elements
#: (`SMALL_IMAGE`): calls for each image would cost more than its products, and bringing it into
#: lanes doesn't.
_SMALL_WORK = 1 << 21
#: Elements under all places of the kernel up to which one product is quicker than a few.
_FEW_COLUMNS = 1 << 18


#: What forward made of the images, for backward: columns, or what is read directly.
_Made: TypeAlias = tuple[Block | DirectBlock, Array]


class Convolution(Operation):
    """The cross-correlation of images with kernels, over one spatial axis or two.

    Inputs: x (N, C, *spatial) or (C, *spatial), weight (O, C/groups, *kernel), and optionally
    bias (O,).

    Args:
        stride: how far the kernel moves, per spatial axis.
        padding: zeros before and after each axis.
        dilation: from one element that the kernel looks at to the next, per axis.
        groups: the channels are cut into so many parts, each with kernels of its own.
    """

    one_dtype = ("x", "weight", "bias")
    samples = (
        Sample((2, 3, 5, 4), (4, 3, 3, 2), (4,)),
        Sample(
            *((2, 4, 7, 8), (6, 2, 3, 2), (6,)),
            kwargs={
                "stride": (2, 3),
                "padding": ((1, 0), (2, 1)),
                "dilation": (2, 1),
                "groups": 2,
            },
        ),
        Sample((3, 9), (2, 3, 4), args=((1,), ((3, 3),), (2,))),
        Sample((2, 3, 9), (3, 1, 2), (3,), args=((3,), ((1, 0),), (1,), 3)),
    )

    def __init__(
        self,
        stride: tuple[int, ...] = (1, 1),
        padding: tuple[tuple[int, int], ...] = ((0, 0), (0, 0)),
        dilation: tuple[int, ...] = (1, 1),
        groups: int = 1,
    ) -> None:
        self.stride = stride
        self.padding = padding
        self.dilation = dilation
        self.groups = groups
        self.in_lanes = False

    @property
    def axes(self) -> int:
        """The number of spatial axes."""
        return len(self.stride)

    def windows(self, images: Array, kernels: Array) -> tuple[Window, Window]:
        """The windows along rows and along columns; one row where there is one axis."""
        lengths, kernel = images.shape[-self.axes :], kernels.shape[-self.axes :]
        *rows, columns = (
            Window.over(lengths[i], kernel[i], self.stride[i], self.padding[i], self.dilation[i])
            for i in range(self.axes)
        )
        return rows[0] if rows else Window(1, 1, 1, 0, 1, 1), columns

    def multiply_adds(self) -> int:
        """Those of the kernels at every place, padding included."""
        x, weight = (tensor.data for tensor in self.inputs[:2])
        images = as_images(x, self.axes)
        rows, columns = self.windows(images, as_images(weight, self.axes))
        return int(len(images) * rows.count * columns.count * weight.size)

    def forward(self, x: Array, weight: Array, *bias: Array) -> Array:
        """The correlation, shape (N, O, *spatial)."""
        _check(self, x, weight, *bias)
        images, kernels = as_images(x, self.axes), as_images(weight, self.axes)
        rows, columns = self.windows(images, kernels)
        size = (len(kernels), rows.count, columns.count)
        self.in_lanes = len(images) > 1 and _is_small(images[0].size, prod(size), kernels)
        shape = (*x.shape[: -self.axes - 1], len(kernels), *size[-self.axes :])
        out = new_images(shape, x.dtype, self.in_lanes)
        units, places = self._units(x), self._units(out)
        made = _correlate(units, kernels, places, (rows, columns), self.groups, *bias)
        self.save(x, weight, made if self.in_lanes else None)
        return out

    def backward(self, grad: Array) -> Gradients:
        """Of x: the gradient correlated with the turned kernels; of weight: with x."""
        x, weight, made = self.saved
        kernels = as_images(weight, self.axes)
        windows = self.windows(as_images(x, self.axes), kernels)
        grads = self._units(grad)
        grad_x = grad_weight = grad_bias = None
        if self.needs_grad[0]:
            grad_x = new_images(x.shape, x.dtype, self.in_lanes)
            _of_input(grads, kernels, self._units(grad_x), windows, self.groups)
        if self.needs_grad[1]:
            grad_weight = np.empty(weight.shape, weight.dtype)
            out = as_images(grad_weight, self.axes)
            _of_weight(grads, self._units(x), out, windows, self.groups, made)
        if True in self.needs_grad[2:]:
            grad_bias = _of_bias(grads)
        return (grad_x, grad_weight, grad_bias)[: len(self.needs_grad)]

    records_lanes = "wanted"

    def record(
        self, recorder: Recorder, x: Array, weight: Array, *bias: Array
    ) -> tuple[Array, Backward, int | None]:
        """Both directions, in a recording: of small images, in lanes."""
        if x.ndim != self.axes + 2:
            raise Unrecorded("no batch of images")
        _check(self, x, weight, *bias)
        kernels = as_images(weight, self.axes)
        windows = self.windows(as_images(x, self.axes), kernels)
        size = (len(kernels), *(window.count for window in windows))
        if not _is_small(x[0].size, prod(size), kernels):
            raise Unrecorded("large images")

        def apart(lanes: Array) -> Array:
            """(C, H, W, L)."""
            return lanes if self.axes == 2 else lanes[:, None]

        units = apart(recorder.memory_of(x))
        made = recorder.kept(len(kernels), *size[-self.axes :], units.shape[-1])
        plan = recorded(units, len(kernels), windows, self.groups)
        if recorder.needs_grad(weight) and not plan.suits_places(kernels):
            raise Unrecorded("rows that are too short")
        start = bias[0] if bias else np.zeros(len(kernels), x.dtype)
        arrays = units, kernels, start, apart(made)
        read = plan.correlate(recorder, recorder.forward, *arrays)

        def back(grad: Array, outs: Sequence[Into | None]) -> None:
            to_x, to_weight, *to_bias = outs
            upstream = apart(recorder.memory_of(grad))
            if to_x is not None:
                around = recorded(upstream, len(units), [w.back for w in windows], self.groups)
                with recorder.adding(to_x) as out:
                    around.correlate_back(recorder, upstream, kernels, apart(out))
            if to_weight is not None:
                plan.correlate_places(recorder, read, upstream, to_weight)
            if to_bias and to_bias[0] is not None:
                with recorder.adding(to_bias[0]) as out:
                    rows = upstream.reshape(len(upstream), -1)
                    recorder.backward.rows(_row_sum, rows, out.reshape(-1, 1))

        return recorder.images(made, len(x)), back, None

    def _units(self, x: Array) -> Array:
        """Images as (U, C, H, W, L), a view where they lie so."""
        images = as_images(x, self.axes)
        return to_lanes(images)[None] if self.in_lanes else images[..., None]


def _check(op: Convolution, x: Array, weight: Array, *bias: Array) -> None:
    name = f"conv{op.axes}d"
    check_images(name, x, op.axes)
    kernel = "(O, C/groups, kernel)" if op.axes == 1 else "(O, C/groups, kh, kw)"
    if weight.ndim != op.axes + 2 or 0 in weight.shape:
        raise ValueError(f"{name} got weight {weight.shape}: expected {kernel}")
    outputs, channels = len(weight), x.shape[-op.axes - 1]
    if outputs % op.groups or channels != weight.shape[1] * op.groups:
        raise ValueError(
            f"{name} got x {x.shape}, weight {weight.shape} and groups {op.groups}: expected "
            f"weight {kernel} for {channels} channels, and O to be a multiple of groups"
        )
    if any(b.shape != (outputs,) for b in bias):
        raise ValueError(f"{name} got bias {bias[0].shape}: expected ({outputs},)")


def _is_small(elements: int, places: int, kernels: Array) -> bool:
    """Whether images of so many elements, in and out, go into lanes."""
    return max(elements, places) <= SMALL_IMAGE and places * kernels[0].size <= _SMALL_WORK


def _layout(units: Array, windows: tuple[Window, Window], groups: int) -> Columns:
    channels, lanes = units.shape[1], units.shape[-1]
    places = windows[0].count * windows[1].count * lanes
    few = lanes > 1 and channels * windows[0].kernel * windows[1].kernel * places <= _FEW_COLUMNS
    return columns_of(*windows, channels, lanes, groups, stacked=few)


def _correlate(
    units: Array,
    kernels: Array,
    out: Array,
    windows: tuple[Window, Window],
    groups: int,
    bias: Array | None = None,
) -> _Made | None:
    """Fill out (U, O, H', W', L) with the correlation of units (U, C, H, W, L).

    Returns:
        What was made of the units, if they are a single block.
    """
    plan = direct(units, len(kernels), windows, groups)
    if plan:
        return plan.correlate(units, kernels, bias, out)
    work = out.size * kernels[0].size
    layout = _layout(units, windows, groups)
    weights = layout.weights(kernels)
    tasks = tasks_of(layout, len(units), work)
    # Filled with zeros too: adding to what is in cache is quicker than writing what isn't.
    start: Array | float = 0.0 if bias is None else bias.reshape(groups, -1, 1)

    def compute(index: int) -> _Made:
        unit, block = tasks[index]
        target = block.of_output(out[unit])
        columns = block.gather(units[unit])
        target[...] = start
        for weight, matrix in zip(weights, block.matrices(columns), strict=True):
            _add_product(weight, matrix, target)
        return block, columns

    return run_and_keep(compute, len(tasks), work)


def _of_input(
    grads: Array, kernels: Array, out: Array, windows: tuple[Window, Window], groups: int
) -> None:
    """Fill out (U, C, H, W, L) with the gradient of the input."""
    if all(window.stride == 1 for window in windows):
        back = windows[0].back, windows[1].back
        turned = kernels.reshape(groups, -1, *kernels.shape[1:])[..., ::-1, ::-1]
        turned = turned.swapaxes(1, 2).reshape(out.shape[1], -1, *kernels.shape[2:])
        _correlate(grads, turned, out, back, groups)
        return
    layout = _layout(out, windows, groups)
    weights = [weight.swapaxes(1, 2) for weight in layout.weights(kernels)]
    blocks = layout.blocks(1)

    def run(unit: int) -> None:
        grad = np.ascontiguousarray(grads[unit])
        out[unit] = 0
        for block in blocks:
            columns = block.empty(out.dtype)
            columns[...] = 0
            places = block.of_output(grad)
            for weight, matrix in zip(weights, block.matrices(columns), strict=True):
                _add_product(weight, places, matrix)
            block.scatter(columns, out[unit])

    run_all(run, len(out), grads.size * kernels[0].size)


def _of_weight(
    grads: Array,
    units: Array,
    out: Array,
    windows: tuple[Window, Window],
    groups: int,
    made: _Made | None,
) -> None:
    """Fill out (O, C/groups, kh, kw) with the gradient of the weight, summed in a fixed order.

    `made` is what `_correlate` returned for these units.
    """
    plan = direct(units, len(out), windows, groups)
    if plan and plan.suits_places(out):
        ready = made[1] if made and isinstance(made[0], DirectBlock) else None
        plan.correlate_places(units, grads, out, ready)
        return
    ready = made[1] if made and isinstance(made[0], Block) else None
    work = grads.size * out[0].size
    layout = _layout(units, windows, groups)
    tasks = tasks_of(layout, len(units), work)
    shares = parallel.split(len(tasks), threads_for(work))
    # As (inner, O/groups): OpenBLAS is quicker when the longer axis comes first.
    shape = (groups, out[0, :, : layout.copies].size, len(out) // groups)
    sums = [[np.zeros(shape, grads.dtype) for _ in layout.products] for _ in shares]

    def run(index: int) -> None:
        for unit, block in tasks[shares[index]]:
            grad = block.of_output(np.ascontiguousarray(grads[unit])).swapaxes(1, 2)
            columns = block.gather(units[unit]) if ready is None else ready
            for total, matrix in zip(sums[index], block.matrices(columns), strict=True):
                _add_product(matrix, grad, total)

    run_all(run, len(shares), work)
    for share in sums[1:]:
        for total, part in zip(sums[0], share, strict=True):
            total += part
    for total, rows in zip(sums[0], layout.products, strict=True):
        part = out[:, :, rows]
        part[...] = total.swapaxes(1, 2).reshape(part.shape)


@kernel
def _row_sum(rows: Matrix, sums: Column) -> None:
    sums.store(rows.load().sum())


def _of_bias(grads: Array) -> Array:
    """The gradient of the bias, shape (O,): sums of units."""
    units, outputs = grads.shape[:2]
    sums = np.empty((units, outputs, 1), grads.dtype)
    if runs(grads):
        _row_sum.rows(as_rows(grads, grads.ndim - 2), sums.reshape(-1, 1))
        return sums.reshape(outputs) if units == 1 else np.asarray(sums.sum(axis=(0, 2)))
    ones = np.ones((prod(grads.shape[2:]), 1), grads.dtype)

    def run(unit: int) -> None:  # products with ones, which read memory at its own speed
        gemm(grads[unit].reshape(outputs, -1), ones, sums[unit])

    run_all(run, units, grads.size)
    return np.asarray(sums.sum(axis=(0, 2)))


def _add_product(a: Array, b: Array, out: Array) -> None:
    """out += a @ b, for each group."""
    if len(out) == 1:
        gemm(a[0], b[0], out[0], beta=1.0)
    else:
        gemm_batch(a, b, out, beta=1.0)
