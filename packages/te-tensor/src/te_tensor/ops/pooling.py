"""Pooling: what windows of images come to.

Rows are brought together before columns. Kernels work on planes (P, H, W, L), in blocks: an image's
channel each, or the channel of all images at once, as lanes, where the batch lies innermost in
memory as convolutions of small images leave it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from math import ceil

import numpy as np

from .. import memory, parallel
from ..dtypes import Array
from ..machine import Call, maxima, runs_programs, to_winners
from ..operation import Gradients, Operation, Sample
from ..recorder import Backward, Into, Recorder, Unrecorded
from ._windows import Window, as_images, check_images, lies_in_lanes, new_images, to_lanes

_ONE_ROW = Window(1, 1, 1, 0, 1, 1)
#: Elements of a row up to which all rows are made, and strides up to which that isn't wasteful.
_SHORT_ROW, _LONG_STRIDE = 256, 3


class _Planes:
    """How an array (…, C, *spatial) becomes planes, and planes such an array.

    Args:
        name: what is done, for errors.
        x: the array.
        axes: the number of spatial axes.
    """

    def __init__(self, name: str, x: Array, axes: int) -> None:
        check_images(name, x, axes)
        self.axes, self.shape = axes, x.shape
        images = as_images(x, axes)
        self.lengths = images.shape[2:]
        if 0 in images.shape[1:]:
            raise ValueError(f"{name} of shape {x.shape}: expected no empty axis but the batch")
        self.in_lanes = lies_in_lanes(images)

    def of(self, x: Array) -> Array:
        """A view (P, H, W, L), or a copy where memory doesn't allow one."""
        images = as_images(x, self.axes)
        if self.in_lanes:
            return to_lanes(images)
        return np.ascontiguousarray(images).reshape(-1, *images.shape[2:], 1)

    def new(self, x: Array, rows: int, columns: int) -> Array:
        """An array as x with so many rows and columns, to be filled."""
        shape = (*x.shape[: -self.axes], *(rows, columns)[-self.axes :])
        return new_images(shape, x.dtype, self.in_lanes)


class _Pool(Operation, abstract=True):
    """A pooling with windows that are all alike.

    Args:
        kernel: lengths of the window.
        stride: how far it moves.
        padding: places before and after each axis that count as missing.
        dilation: from one element that it looks at to the next.
        ceil_mode: whether a last window may reach beyond the padding.
    """

    name = ""

    def __init__(
        self,
        kernel: tuple[int, ...],
        stride: tuple[int, ...],
        padding: tuple[int, ...],
        dilation: tuple[int, ...],
        ceil_mode: bool,
    ) -> None:
        self.kernel = kernel
        self.stride = stride
        self.padding = padding
        self.dilation = dilation
        self.ceil_mode = ceil_mode

    def begin_with(self, x: Array) -> Array:
        """Find the windows; returns the planes of x."""
        axes = len(self.kernel)
        self.planes = _Planes(f"{self.name}{axes}d", x, axes)
        self._find_windows(x)
        return self.planes.of(x)

    def _find_windows(self, x: Array) -> None:
        axes = len(self.kernel)
        *rows, self.columns = (
            Window.over(length, kernel, stride, (padding, padding), dilation, self.ceil_mode)
            for length, kernel, stride, padding, dilation in zip(
                x.shape[-axes:], self.kernel, self.stride, self.padding, self.dilation, strict=True
            )
        )
        self.rows = rows[0] if rows else _ONE_ROW

    def fold(self, function: np.ufunc, start: float, planes: Array, out: Array) -> None:
        """Fill `out` with the function of all that each window looks at."""
        narrow = planes
        if _suits_sliding(planes, self.rows):
            narrow = _slide(function, planes, self.rows)
        elif not self.rows.moves_nothing:
            shape = (len(planes), self.rows.count, *planes.shape[2:])
            narrow = memory.empty(shape, planes.dtype)
            _fold(function, start, planes, self.rows, 1, narrow)
        _fold(function, start, narrow, self.columns, 2, out)


def _in_parts(call: Callable[..., Call], *arrays: Array) -> None:
    """Make calls on matching parts of arrays' first axes, one for each thread."""
    if arrays[0].size < parallel.PARALLEL_KERNEL_FROM:
        call(*arrays).run()
        return
    parts = parallel.split(len(arrays[0]), parallel.get_num_threads())
    parallel.parallel_for(lambda index: call(*(a[parts[index]] for a in arrays)).run(), len(parts))


class MaxPool(_Pool):
    """The maximum of each window; NaN where it sees one. The first maximum gets the gradient.

    Input: x (N, C, *spatial) or (C, *spatial).

    Args:
        kernel: lengths of the window, per spatial axis.
        stride: how far it moves; the kernel's length by default.
        padding: places before and after each axis that are never the maximum.
        dilation: from one element that it looks at to the next.
        ceil_mode: whether a last window may reach beyond the padding.
    """

    name = "max_pool"
    samples = (
        Sample((2, 3, 4, 6), args=((2, 2),)),
        Sample(
            *((2, 2, 7, 8),),
            args=((3, 2), (2, 3), (1, 1), (2, 1)),
            kwargs={"ceil_mode": True},
        ),
        Sample((3, 9), args=((3,), (2,), (1,))),
    )

    def __init__(
        self,
        kernel: tuple[int, ...],
        stride: tuple[int, ...] | None = None,
        padding: tuple[int, ...] | None = None,
        dilation: tuple[int, ...] | None = None,
        ceil_mode: bool = False,
    ) -> None:
        axes = len(kernel)
        super().__init__(
            kernel, stride or kernel, padding or (0,) * axes, dilation or (1,) * axes, ceil_mode
        )

    def forward(self, x: Array) -> Array:
        """The maxima."""
        planes = self.begin_with(x)
        out = self.planes.new(x, self.rows.count, self.columns.count)
        filled = self.planes.of(out)
        quick = runs_programs(planes) and self.rows.halves and self.columns.halves
        if not self.needs_grad[0]:
            if quick:
                _in_parts(maxima, planes, filled)
            else:
                parallel.rowwise(self._maxima, planes, filled)
            return out
        number = np.min_scalar_type(self.rows.kernel * self.columns.kernel)
        winners = np.empty(filled.shape, number)
        if quick:
            _in_parts(maxima, planes, filled, winners)
        else:
            parallel.rowwise(self._maxima_and_winners, planes, filled, winners)
        self.save(winners)
        return out

    def backward(self, grad: Array) -> Gradients:
        """Each window's gradient where its maximum was."""
        (winners,) = self.saved
        out = new_images(self.planes.shape, grad.dtype, self.planes.in_lanes)
        target, given = self.planes.of(out), self.planes.of(grad)
        if runs_programs(given) and self.rows.halves and self.columns.halves:
            target[:, 2 * self.rows.count :] = 0
            target[:, :, 2 * self.columns.count :] = 0
            _in_parts(to_winners, given, winners, target)
        else:
            parallel.rowwise(self._give, target, given, winners)
        return (out,)

    records_lanes = "wanted"

    def record(self, recorder: Recorder, x: Array) -> tuple[Array, Backward, int | None]:
        """Both directions, in a recording: of images in lanes, by windows of 2 × 2."""
        if len(self.kernel) != 2 or x.ndim != 4:
            raise Unrecorded("not a batch of images")
        self._find_windows(x)
        if not (self.rows.halves and self.columns.halves and self.rows.count * self.columns.count):
            raise Unrecorded("other windows than 2 × 2")
        images = recorder.memory_of(x)
        made = recorder.kept(len(images), self.rows.count, self.columns.count, images.shape[-1])
        winners = recorder.kept(-(-made.size // 4)).view(np.uint8)[: made.size].reshape(made.shape)
        steps = recorder.forward
        steps.share_whole(
            lambda own: steps.program(maxima(images[own], made[own], winners[own])), made
        )

        def back(grad: Array, outs: Sequence[Into | None]) -> None:
            (to_x,) = outs
            assert to_x is not None
            steps, given = recorder.backward, recorder.memory_of(grad)

            def write(own: slice) -> None:
                steps.program(to_winners(given[own], winners[own], out[own]))

            with recorder.adding(to_x) as out:
                _, height, width, _ = out.shape
                if height % 2 or width % 2:  # what belongs to no window
                    recorder.zeros(out)
                steps.share_whole(write, given)

        return recorder.images(made, len(x)), back, None

    def _maxima(self, planes: Array, out: Array) -> None:
        self.fold(np.maximum, -np.inf, planes, out)

    def _maxima_and_winners(self, planes: Array, out: Array, winners: Array) -> None:
        """Winners are numbers of offsets: how many of them come before the first maximum."""
        self._maxima(planes, out)
        missed = np.ones(out.shape, bool)
        winners[...] = 0
        offsets = _offsets(self.rows, self.columns)
        for places, elements in offsets[:-1]:
            missed[places] &= planes[elements] != out[places]
            winners += missed.view(np.uint8)
        if np.isnan(out).any():  # as in PyTorch, the last NaN wins
            for number, (places, elements) in enumerate(offsets):
                winners[places][np.isnan(planes[elements])] = number

    def _give(self, out: Array, grad: Array, winners: Array) -> None:
        overlap = self.rows.overlaps or self.columns.overlaps
        if not (self.rows.tiles and self.columns.tiles):
            out[...] = 0
        for number, (places, elements) in enumerate(_offsets(self.rows, self.columns)):
            won = winners[places] == number
            if overlap:
                out[elements] += _keep(grad[places], won, np.empty(won.shape, grad.dtype))
            else:
                _keep(grad[places], won, out[elements])


def _keep(values: Array, chosen: Array, out: Array) -> Array:
    """The values that are chosen, else 0: bits times 0 or 1, so that inf and NaN go too.

    It takes no branches, which random masks make slow, and one pass.
    """
    bits = np.dtype(f"u{values.itemsize}")
    np.multiply(values.view(bits), chosen, out=out.view(bits))
    return out


_Part = tuple[slice, ...]


@lru_cache(256)
def _offsets(rows: Window, columns: Window) -> list[tuple[_Part, _Part]]:
    """For each offset in a window, in order: which windows see an element there, and those."""
    every = slice(None)
    return [
        ((every, row_places, column_places), (every, row_elements, column_elements))
        for row_places, row_elements in rows.reaches
        for column_places, column_elements in columns.reaches
    ]


class AvgPool(_Pool):
    """The mean of each window.

    Input: x (N, C, *spatial) or (C, *spatial).

    Args:
        kernel: lengths of the window, per spatial axis.
        stride: how far it moves; the kernel's length by default.
        padding: zeros before and after each axis.
        ceil_mode: whether a last window may reach beyond the padding.
        count_include_pad: whether the padding counts in the mean.
        divisor: what sums are divided by, instead of the number of elements.
    """

    name = "avg_pool"
    samples = (
        Sample((2, 3, 4, 6), args=((2, 2),)),
        Sample((2, 2, 7, 8), args=((3, 2), (2, 3), (1, 1)), kwargs={"ceil_mode": True}),
        Sample((2, 5, 6), args=((3, 3), (1, 2), (1, 1)), kwargs={"count_include_pad": False}),
        Sample((3, 9), args=((3,),), kwargs={"divisor": 2}),
    )

    def __init__(
        self,
        kernel: tuple[int, ...],
        stride: tuple[int, ...] | None = None,
        padding: tuple[int, ...] | None = None,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor: int | None = None,
    ) -> None:
        axes = len(kernel)
        none = (0,) * axes
        super().__init__(kernel, stride or kernel, padding or none, (1,) * axes, ceil_mode)
        self.count_include_pad = count_include_pad
        self.divisor = divisor

    def forward(self, x: Array) -> Array:
        """The means."""
        planes = self.begin_with(x)
        rows, columns = self._counts(self.rows), self._counts(self.columns)
        counts = (rows[:, None] * columns)[..., None]
        # One number where they are all the same, which is quicker to divide by.
        same = counts.min() == counts.max()
        divisors = counts.flat[0] if same else counts
        divisors = np.asarray(self.divisor or divisors, x.dtype)
        out = self.planes.new(x, self.rows.count, self.columns.count)

        def block(planes: Array, out: Array) -> None:
            self.fold(np.add, 0.0, planes, out)
            np.divide(out, divisors, out=out)

        parallel.rowwise(block, planes, self.planes.of(out))
        self.save(divisors)
        return out

    def _counts(self, window: Window) -> Array:
        """How many elements the window has in each place."""
        begin = np.arange(window.count) * window.stride - window.before
        padding = window.before if self.count_include_pad else 0
        end = np.minimum(begin + window.kernel, window.length + padding)
        return end - (begin if self.count_include_pad else np.maximum(begin, 0))

    def backward(self, grad: Array) -> Gradients:
        """Each window's gradient, divided, for all its elements."""
        (divisors,) = self.saved
        out = new_images(self.planes.shape, grad.dtype, self.planes.in_lanes)

        def block(out: Array, grad: Array) -> None:
            wide = memory.empty((*grad.shape[:2], *out.shape[2:]), out.dtype)
            _unfold(grad / divisors, self.columns, 2, wide)
            _unfold(wide, self.rows, 1, out)

        parallel.rowwise(block, self.planes.of(out), self.planes.of(grad))
        return (out,)


def _along(axis: int, part: slice) -> tuple[slice, ...]:
    return (*[slice(None)] * axis, part)


def _fold(
    function: np.ufunc, start: float, source: Array, window: Window, axis: int, out: Array
) -> None:
    """Along one axis, the function of all that each place of the window looks at."""
    # What reaches all places goes first: then nothing needs to be filled in before.
    reaches = sorted(window.reaches, key=lambda reach: not window.covers(reach[0]))
    whole = [source[_along(axis, e)] for places, e in reaches if window.covers(places)][:2]
    if len(whole) == 2:
        function(*whole, out=out)
    else:
        out[...] = whole[0] if whole else start
    for places, elements in reaches[len(whole) :]:
        part = out[_along(axis, places)]
        function(part, source[_along(axis, elements)], out=part)


def _suits_sliding(planes: Array, window: Window) -> bool:
    """Whether rows are so short that NumPy's loops over one at a time cost more than elements."""
    short = planes.shape[2] * planes.shape[3] <= _SHORT_ROW
    inside = all(window.covers(places) for places, _ in window.reaches)
    few = window.stride <= _LONG_STRIDE and window.kernel > 1 and window.count > 0
    return short and few and inside and planes.flags.c_contiguous


def _slide(function: np.ufunc, planes: Array, window: Window) -> Array:
    """As `_fold` along the rows, by long calls: for each row, and of these the ones wanted.

    A call goes over all planes in one line, from row to row and from plane to plane. What is made
    of the rows of two planes isn't among those that are wanted.
    """
    row = planes.shape[2] * planes.shape[3]
    (made,) = memory.scratch(1, planes.shape, planes.dtype)
    line, result = planes.reshape(-1), made.reshape(-1)
    source = line
    for offset in range(1, window.kernel):
        ahead = offset * window.dilation * row
        function(source[: line.size - ahead], line[ahead:], out=result[: line.size - ahead])
        source = result
    return made[:, window.reaches[0][1]]


def _unfold(source: Array, window: Window, axis: int, out: Array) -> None:
    """The reverse of a sum by `_fold`: add each place to all elements that it looked at."""
    if not window.tiles:
        out[...] = 0
    for places, elements in window.reaches:
        if window.overlaps:
            out[_along(axis, elements)] += source[_along(axis, places)]
        else:
            out[_along(axis, elements)] = source[_along(axis, places)]


class AdaptiveAvgPool(Operation):
    """Means of windows that divide each axis as evenly as whole numbers allow.

    Window i of n goes from ⌊i·length/n⌋ to ⌈(i+1)·length/n⌉. Input: x (N, C, *spatial) or
    (C, *spatial).

    Args:
        size: the number of windows, per spatial axis; None keeps an axis.
    """

    samples = (
        Sample((2, 3, 5, 7), args=((2, 3),)),
        Sample((3, 4, 3), args=((None, 5),)),
        Sample((2, 3, 7), args=((2,),)),
    )

    def __init__(self, size: Sequence[int | None]) -> None:
        self.size = tuple(size)

    def forward(self, x: Array) -> Array:
        """The means."""
        self.planes = _Planes(f"adaptive_avg_pool{len(self.size)}d", x, len(self.size))
        size = (1, *self.size)[-2:]
        self.rows, self.columns = (
            _even_parts(length, length if count is None else count)
            for length, count in zip(self.planes.lengths, size, strict=True)
        )
        lengths = [np.array([p.stop - p.start for p in axis]) for axis in (self.rows, self.columns)]
        counts = (lengths[0][:, None] * lengths[1])[..., None].astype(x.dtype)
        planes = self.planes.of(x)
        out = self.planes.new(x, len(self.rows), len(self.columns))

        def block(planes: Array, out: Array) -> None:
            narrow = memory.empty((*out.shape[:2], *planes.shape[2:]), x.dtype)
            for number, part in enumerate(self.rows):
                np.add.reduce(planes[:, part], axis=1, out=narrow[:, number])
            for number, part in enumerate(self.columns):
                np.add.reduce(narrow[:, :, part], axis=2, out=out[:, :, number])
            np.divide(out, counts, out=out)

        parallel.rowwise(block, planes, self.planes.of(out))
        self.save(counts)
        return out

    def backward(self, grad: Array) -> Gradients:
        """Each window's gradient, divided, for all its elements."""
        (counts,) = self.saved
        out = new_images(self.planes.shape, grad.dtype, self.planes.in_lanes)

        def block(out: Array, grad: Array) -> None:
            share = grad / counts
            wide = np.zeros((*grad.shape[:2], *out.shape[2:]), out.dtype)
            for number, part in enumerate(self.columns):
                wide[:, :, part] += share[:, :, number, None]
            out[...] = 0
            for number, part in enumerate(self.rows):
                out[:, part] += wide[:, number, None]

        parallel.rowwise(block, self.planes.of(out), self.planes.of(grad))
        return (out,)


def _even_parts(length: int, count: int) -> list[slice]:
    return [slice(i * length // count, ceil((i + 1) * length / count)) for i in range(count)]
