"""Convolution by products that read images where they lie (see `machine.correlation`).

What columns would hold many times, a copy with zeros around the images holds once; without
padding there is no copy. The rows of an image lie one behind the other, so that all places of a
block can be one long row for the products, with some between the rows that aren't wanted: narrow
images leave vectors less empty that way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from math import ceil, prod
from typing import Protocol

import numpy as np

from .. import memory, parallel
from ..blas_library import uses_tiles
from ..dtypes import Array, float32, int64
from ..machine import (
    OUTPUTS,
    Call,
    Frame,
    Laid,
    TiledBlock,
    TiledCalls,
    copied_rows,
    correlation,
    correlation_calls,
    places_calls,
    room_for,
    runs_programs,
    sums_over_places,
    surrounded,
)
from ._tiled import run_tiled
from ._units import run_all, run_and_keep, tasks_of, threads_for
from ._windows import Window

#: Elements of a block's images with zeros around them, or of its output.
_BLOCK = 1 << 18
#: Outputs of a group from which products keep the processor busy.
_OUTPUTS = 2
#: Elements of a vector.
_LANES = 16
#: Elements that shouldn't lie between a channel and the next: with multiples of it, what belongs
#: to different channels contends for the same places of the cache.
_UNLUCKY = 128
#: Weights up to which the order of their rows doesn't matter.
_FEW_WEIGHTS = 1 << 14
#: What a row's last vectors cost, in vectors of a whole block: fewer sums wait for each other.
_LAST = (0.0, 2.0, 2.5, 3.2, 4.0)
#: How quick products over one long row are, with what isn't wanted left out by a copy.
_COPIED = 0.95
#: Channels that tiles take together; outputs, and multiply-adds for an image, from which they are
#: ahead; and how much smaller their blocks are, for what is made of an image is larger.
_TOGETHER, _TILED_OUTPUTS, _TILED_FROM, _TILED = 32, 32, 1 << 21, 2
#: What the end of a row costs sums over places, in vectors, and how much of them is to be of use.
_END, _USE = 0.7, 0.7


class Maker(Protocol):
    """What makes calls, now or in a recording, and has memory for what they make."""

    def make(self, call: Call) -> None:
        """Make a call, or have it made."""

    def room(self, count: int) -> Array:
        """Memory for so many numbers, which is the caller's."""

    def scratch(self, shape: tuple[int, ...]) -> Array:
        """Memory for what the next call reads, and nobody else."""


class _Now:
    def make(self, call: Call) -> None:
        call.run()

    def room(self, count: int) -> Array:
        return memory.empty((count,), float32)

    def scratch(self, shape: tuple[int, ...]) -> Array:
        return memory.scratch(1, shape, float32)[0]


#: Makes calls at once.
NOW: Maker = _Now()


class Direct:
    """How images (C, H, W, L) are read, with a stride of 1. It is the same for images alike.

    Args:
        rows: the window along the rows.
        columns: the window along the columns.
        channels: of the images.
        lanes: of the images.
        groups: of the channels.
        outputs: of the kernels.
    """

    def __init__(
        self,
        rows: Window,
        columns: Window,
        channels: int,
        lanes: int,
        groups: int,
        outputs: int,
    ) -> None:
        self.rows, self.columns = rows, columns
        self.channels, self.lanes, self.groups = channels, lanes, groups
        self.outputs = outputs
        #: Elements of a row of the output.
        self.width = columns.count * lanes
        self.reach = _reach(columns)
        longest = max(channels * self.reach, outputs * columns.count) * lanes
        self._fitting = max(1, _BLOCK // longest)
        self._blocks: dict[tuple[int, bool], list[DirectBlock]] = {}
        vectors = ceil(self.width / _LANES)
        blocks, last = divmod(vectors - 1, len(_LAST) - 1)
        #: How much of the work on rows, one by one, is of use.
        self.use = self.width / _LANES / (blocks * _LAST[-1] + _LAST[last + 1])
        #: Whether sums over places are of use enough, row by row.
        self._fills_rows = self.width / _LANES / (vectors + _END) >= _USE

    def blocks(self, pieces: int, *, tiled: bool = False) -> list[DirectBlock]:
        """At least so many blocks of output rows, where there are as many rows."""
        found = self._blocks.get((pieces, tiled))
        if found is None:
            count = self.rows.count
            fitting = max(1, self._fitting // _TILED if tiled else self._fitting)
            parts = parallel.split(count, max(pieces, ceil(count / fitting)))
            found = [DirectBlock(self, part) for part in parts]
            self._blocks[pieces, tiled] = found
        return found

    def correlate(
        self, units: Array, kernels: Array, bias: Array | None, out: Array
    ) -> tuple[DirectBlock, Array] | None:
        """Fill out (U, O, H', W', L) with the correlation of units (U, C, H, W, L).

        Args:
            units: the images.
            kernels: shape (O, C/groups, kh, kw).
            bias: shape (O,).
            out: the output.

        Returns:
            What was made of the units, if they are a single block.
        """
        work = out.size * kernels[0].size
        start = np.zeros(out.shape[1], out.dtype) if bias is None else np.ascontiguousarray(bias)
        by_tiles = self._suits_tiles(kernels)
        if by_tiles:
            tasks = self._correlate_by_tiles(units, kernels, start, out)
        else:
            tasks = tasks_of(self, len(units), work)
        weights = lru_cache(1)(lambda: _straight(kernels, self.groups))

        def compute(index: int) -> tuple[DirectBlock, Array]:
            unit, block = tasks[index]
            made = block.surround(units[unit])
            block.correlate(made, weights(), start, out[unit])
            return block, made

        made = run_and_keep(compute, len(tasks), work)
        return None if by_tiles else made

    def suits_places(self, kernels: Array) -> bool:
        """Whether `correlate_places` is quick for the gradient of kernels (O, C/groups, kh, kw)."""
        # For a kernel of one element a product with the images themselves is quicker.
        larger = self.rows.kernel * self.columns.kernel > 1
        return larger and (self._fills_rows or self._places_suit_tiles(kernels))

    def _places_suit_tiles(self, kernels: Array) -> bool:
        return len(kernels) % _TOGETHER == 0 and self._suits_tiles(kernels)

    def _suits_tiles(self, kernels: Array) -> bool:
        """Whether tiles are ahead with kernels (O, C, kh, kw)."""
        outputs, channels = kernels.shape[:2]
        return (
            self.groups == 1
            and channels % _TOGETHER == 0
            and outputs >= _TILED_OUTPUTS
            and self.width >= _LANES
            and outputs * kernels[0].size * self.rows.count * self.width >= _TILED_FROM
            and uses_tiles()
        )

    def _tiled_tasks(self, units: int, threads: int) -> list[tuple[int, DirectBlock]]:
        blocks = self.blocks(ceil(threads / max(units, 1)), tiled=True)
        return [(unit, block) for unit in range(units) for block in blocks]

    def _correlate_by_tiles(
        self, units: Array, kernels: Array, bias: Array, out: Array
    ) -> list[tuple[int, DirectBlock]]:
        """As `correlate`; returns what tiles couldn't do."""
        work = out.size * kernels[0].size
        threads = threads_for(work)
        rows = np.ascontiguousarray(kernels.transpose(0, 2, 3, 1)).reshape(len(kernels), -1)
        laid = Laid(rows.T)
        image, place, start = map(memory.address, (units, out, bias))

        def bases(_: int, chosen: Array) -> list[Array | int]:
            of_units = image + chosen * units.strides[0], place + chosen * out.strides[0]
            return [*of_units, start, laid.address, laid.found]

        tasks = self._tiled_tasks(len(units), threads)
        return run_tiled(tasks, threads, correlation_calls, bases, work)

    def correlate_places(self, units: Array, grads: Array, out: Array, ready: Array | None) -> None:
        """Fill out (O, C/groups, kh, kw) with the gradient of the kernels, in a fixed order.

        Args:
            units: the images.
            grads: the gradient of the output, (U, O, H', W', L).
            out: the gradient of the kernels, contiguous.
            ready: what `surround` made of the units, if they are a single block.
        """
        if self._places_suit_tiles(out):
            self._places_by_tiles(units, np.ascontiguousarray(grads), out)
            return
        work = grads.size * out[0].size
        tasks = tasks_of(self, len(units), work)
        shares = parallel.split(len(tasks), threads_for(work))
        sums = out.reshape(1, len(out), -1)
        if len(shares) > 1:
            sums = np.empty((len(shares), *sums.shape[1:]), out.dtype)

        def run(index: int) -> None:
            target = total = sums[index]
            for unit, block in tasks[shares[index]]:
                made = block.surround(units[unit]) if ready is None else ready
                block.correlate_places(made, np.ascontiguousarray(grads[unit]), target)
                if target is total:
                    target = np.empty_like(total)
                else:
                    total += target

        if not tasks:
            sums.fill(0)
        run_all(run, len(shares), work)
        if len(shares) > 1:
            np.add.reduce(sums, axis=0, out=out.reshape(sums.shape[1:]))

    def _places_by_tiles(self, units: Array, grads: Array, out: Array) -> None:
        work = grads.size * out[0].size
        threads = threads_for(work)
        outputs, channels = out.shape[:2]
        sums = np.zeros((threads, out[0, 0].size, channels, outputs), out.dtype)
        image, grad, total = map(memory.address, (units, grads, sums))

        def bases(share: int, chosen: Array) -> list[Array | int]:
            of_units = image + chosen * units.strides[0], grad + chosen * grads.strides[0]
            return [*of_units, total + share * sums.strides[0]]

        tasks = self._tiled_tasks(len(units), threads)
        left = run_tiled(tasks, threads, places_calls, bases, work)
        flat = out.reshape(outputs, -1)
        np.copyto(flat, sums.sum(0).transpose(2, 1, 0).reshape(flat.shape))
        part = np.empty_like(flat)
        for unit, block in left:
            block.correlate_places(block.surround(units[unit]), grads[unit], part)
            flat += part


class DirectBlock:
    """Some rows of the output.

    Args:
        layout: of the images.
        part: the rows.
    """

    def __init__(self, layout: Direct, part: slice) -> None:
        self.layout, self.part = layout, part
        rows, columns, lanes = layout.rows.part(part.start, part.stop), layout.columns, layout.lanes
        lengths = _reach(rows), layout.reach
        pairs = [_overlap(w, n) for w, n in zip((rows, columns), lengths, strict=True)]
        (to_rows, of_rows), (to_columns, of_columns) = pairs
        self.of = slice(None), of_rows, of_columns
        whole_line, whole_plane = columns.length * lanes, rows.length * columns.length * lanes
        inside = to_rows == slice(0, lengths[0]) and to_columns == slice(0, lengths[1])
        #: Whether neither zeros are needed nor another distance between channels.
        self.as_they_are = inside and whole_plane % _UNLUCKY != 0
        self.shape = (layout.channels, *lengths, lanes)
        #: Elements from one row to the next.
        self.line = whole_line if self.as_they_are else lengths[1] * lanes
        plane = whole_plane
        if not self.as_they_are:
            plane = lengths[0] * self.line
            plane += _LANES if plane % _UNLUCKY == 0 else 0
        #: How the rows of an image are read, and where they come.
        self.frame = Frame(
            rows=of_rows.stop - of_rows.start,
            length=(of_columns.stop - of_columns.start) * lanes,
            source_row=whole_line,
            source_plane=whole_plane,
            first=to_rows.start * self.line + to_columns.start * lanes,
            line=self.line,
            plane=plane,
        )
        down = np.arange(rows.kernel)[:, None] * (rows.dilation * self.line)
        along = np.arange(columns.kernel) * (columns.dilation * lanes)
        #: How far each element of the kernel looks ahead in a channel.
        self.looks_ahead = (down + along).astype(int64).reshape(-1)
        channels = np.arange(layout.channels // layout.groups)[:, None] * plane
        #: The same for all channels of a group, in bytes of float32.
        self.offsets = (4 * (channels + self.looks_ahead)).reshape(-1)
        copied = 1.0 if self.line == layout.width else _COPIED
        self.in_one_row = rows.count == 1 or layout.width / self.line * copied > layout.use
        self._calls: dict[Callable[..., TiledCalls], TiledCalls] = {}

    def calls(self, make: Callable[[TiledBlock], TiledCalls]) -> TiledCalls:
        """What tiles do of these rows."""
        made = self._calls.get(make)
        if made is None:
            made = self._calls[make] = make(self._tiled())
        return made

    def _tiled(self) -> TiledBlock:
        layout, frame = self.layout, self.frame
        if self.as_they_are:  # from the first number to the last
            length = (frame.rows - 1) * frame.line + frame.length
            frame = frame._replace(rows=1, length=length, plane=length)
        _, rows, columns = self.of
        return TiledBlock(
            channels=layout.channels,
            outputs=layout.outputs,
            frame=frame,
            source=rows.start * self.frame.source_row + columns.start * layout.lanes,
            rows=self.part.stop - self.part.start,
            width=layout.width,
            out_plane=layout.rows.count * layout.width,
            out=self.part.start * layout.width,
            offsets=tuple(self.looks_ahead.tolist()),
        )

    def surround(self, image: Array, maker: Maker = NOW) -> Array:
        """What products read: shape (C, H', W', L)."""
        source = image[self.of]
        if self.as_they_are:
            return source
        count, plane = len(source), self.frame.plane
        if source.size:
            made = maker.room(room_for(count, self.frame))
            maker.make(surrounded(source, self.frame, made))
            planes = made[: count * plane].reshape(count, plane)
        else:
            planes = np.zeros((count, plane), image.dtype)
        _, *inner = self.shape
        return planes[:, : prod(inner)].reshape(self.shape)

    def correlate(
        self,
        made: Array,
        weights: Array | Sequence[Array],
        bias: Array,
        out: Array,
        maker: Maker = NOW,
        *,
        offsets: Array | None = None,
    ) -> None:
        """Fill these rows of out (O, H, W, L).

        Args:
            made: what `surround` made.
            weights: for each group, as `_straight` makes them.
            bias: shape (O,).
            out: the whole output.
            maker: makes it.
            offsets: as the block's own, for weights in another order.
        """
        width, line, count = self.layout.width, self.line, self.part.stop - self.part.start
        target = out.reshape(len(out), -1, width)[:, self.part]
        wanted = target
        if self.in_one_row:  # as one long row
            if line == width:
                wanted = target.reshape(len(out), 1, -1)
            else:
                long = maker.scratch((len(out), count, line))
                wanted = long.reshape(len(out), 1, -1)[:, :, : (count - 1) * line + width]
        groups = self.layout.groups
        channels, outputs = len(made) // groups, len(out) // groups
        for group in range(groups):
            own = slice(group * outputs, (group + 1) * outputs)
            image = made[group * channels :]
            ahead = self.offsets if offsets is None else offsets
            maker.make(correlation(image, ahead, weights[group], bias[own], wanted[own]))
        if self.in_one_row and line != width:
            maker.make(copied_rows(long[:, :, :width], target))

    def correlate_places(self, made: Array, grad: Array, out: Array, maker: Maker = NOW) -> None:
        """Fill out (O, elements of a kernel) with the gradient of the kernels by these rows.

        Args:
            made: what `surround` made.
            grad: the gradient of the whole output, (O, H, W, L), contiguous.
            out: the sums over the places of these rows.
            maker: makes it.
        """
        places = grad.reshape(len(grad), -1, self.layout.width)[:, self.part]
        groups = self.layout.groups
        channels, outputs = len(made) // groups, len(grad) // groups
        for group in range(groups):
            own = slice(group * outputs, (group + 1) * outputs)
            image = made[group * channels :]
            maker.make(sums_over_places(image, self.offsets, places[own], out[own]))


def _reach(window: Window) -> int:
    """Elements from the first to the last that it looks at."""
    return window.count + (window.kernel - 1) * window.dilation


def _overlap(window: Window, length: int) -> tuple[slice, slice]:
    """Where elements lie in an axis of this length that begins as the window does; and which."""
    begin, first = max(0, window.before), max(0, -window.before)
    count = max(0, min(length - begin, window.length - first))
    return slice(begin, begin + count), slice(first, first + count)


def _straight(kernels: Array, groups: int) -> Array:
    """Kernels (O, C/groups, kh, kw) as `correlate` reads them, for each group."""
    grouped = kernels.reshape(groups, len(kernels) // groups, -1)
    return _in_blocks(grouped)


def _in_blocks(weights: Array) -> Array:
    """Weights (groups, O, K) as (groups, blocks, K, OUTPUTS); beyond O anything may stand.

    Of large ones each block lies together; making that takes longer.
    """
    groups, outputs, elements = weights.shape
    blocks = ceil(outputs / OUTPUTS)
    if outputs * elements <= _FEW_WEIGHTS:
        rows = np.empty((groups, elements, blocks * OUTPUTS), weights.dtype)
        rows[:, :, :outputs] = weights.swapaxes(1, 2)
        return rows.reshape(groups, elements, blocks, OUTPUTS).swapaxes(1, 2)
    made = np.empty((groups, blocks, elements, OUTPUTS), weights.dtype)
    for block in range(blocks):
        part = weights[:, block * OUTPUTS : (block + 1) * OUTPUTS]
        made[:, block, :, : part.shape[1]] = part.swapaxes(1, 2)
    return made


layout_of = lru_cache(256)(Direct)


def direct(
    units: Array, outputs: int, windows: tuple[Window, Window], groups: int
) -> Direct | None:
    """How to read images (U, C, H, W, L); None where columns are the better way."""
    rows, columns = windows
    if (
        rows.stride * columns.stride > 1
        or outputs < _OUTPUTS * groups
        or columns.count * rows.count * units.shape[-1] < 2 * _LANES
        or not runs_programs(units)
    ):
        return None
    return layout_of(rows, columns, units.shape[1], units.shape[-1], groups, outputs)
