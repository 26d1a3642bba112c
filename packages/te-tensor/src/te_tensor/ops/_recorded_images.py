"""Convolution of small images in a recording: they lie in lanes, and are read where they lie."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import prod
from typing import TypeAlias

import numpy as np

from .. import parallel
from ..dtypes import Array
from ..machine import LANES, OUTPUTS, Call, Steps
from ..recorder import Into, Recorder, Unrecorded
from ._direct import Direct, DirectBlock, layout_of
from ._windows import Window

#: Multiply-adds from which threads share an image's rows.
_SHARED_FROM = 1 << 18


#: A block of an image's rows, and what was made of the image for it.
_Read: TypeAlias = "tuple[DirectBlock, Array]"


class _Written:
    """A maker of calls that are written down.

    Args:
        steps: where they are.
        take: gives memory for what is made.
        take_briefly: gives memory for what the next call reads, and nobody else.
    """

    def __init__(
        self, steps: Steps, take: Callable[..., Array], take_briefly: Callable[..., Array]
    ) -> None:
        self._steps, self._take, self._take_briefly = steps, take, take_briefly
        #: What it took.
        self.made: list[Array] = []
        self.brief: list[Array] = []

    def make(self, call: Call) -> None:
        self._steps.program(call)

    def room(self, count: int) -> Array:
        self.made.append(self._take(count))
        return self.made[-1]

    def scratch(self, shape: tuple[int, ...]) -> Array:
        self.brief.append(self._take_briefly(*shape))
        return self.brief[-1]


class RecordedImages:
    """A way to read images in lanes, in a recording.

    Args:
        plan: the way.
    """

    def __init__(self, plan: Direct) -> None:
        self._plan = plan

    def suits_places(self, kernels: Array) -> bool:
        """Whether `correlate_places` is quick for the gradient of kernels (O, C/groups, kh, kw)."""
        return self._plan.suits_places(kernels)

    def correlate(
        self,
        recorder: Recorder,
        steps: Steps,
        images: Array,
        kernels: Array,
        bias: Array,
        out: Array,
    ) -> list[_Read]:
        """Have out (O, H', W', L) filled with the correlation of images (C, H, W, L), in forward.

        Returns:
            What was made of the images, for each block of rows: `correlate_places` reads it.
        """
        outputs, elements = len(kernels), kernels[0].size
        turned = [
            self._turn(recorder.brief, steps, [own])
            for own in kernels.reshape(self._plan.groups, -1, elements)
        ]
        weights = [_in_blocks(rows, outputs // self._plan.groups) for rows in turned]
        maker = _Written(steps, recorder.kept, recorder.brief)
        made = self._write(maker, steps, images, weights, bias, out)
        recorder.release(*turned, *maker.brief)
        return made

    def correlate_back(
        self, recorder: Recorder, grads: Array, kernels: Array, target: Array
    ) -> None:
        """Have the gradient of images (C, H, W, L) found, in backward.

        Args:
            recorder: the recorder.
            grads: that of the output, shape (O, H', W', L).
            kernels: shape (O, C/groups, kh, kw).
            target: where it goes.
        """
        outputs, channels, *window = kernels.shape
        places, groups = prod(window), self._plan.groups
        # Instead of turning kernels upside down, their elements are taken from the other end.
        turned = [
            self._turn(recorder.passing, recorder.backward, own)
            for own in kernels.reshape(groups, outputs // groups, channels, places)
        ]
        weights = [_in_blocks(rows, channels) for rows in turned]
        nothing = np.zeros(len(target), target.dtype)
        maker = _Written(recorder.backward, recorder.passing, recorder.passing)
        arrays = grads, weights, nothing, target
        self._write(maker, recorder.backward, *arrays, flipped=places)
        recorder.release(*turned, *maker.made, *maker.brief)

    def correlate_places(
        self, recorder: Recorder, made: Sequence[_Read], grads: Array, into: Into
    ) -> None:
        """Have the gradient of kernels (O, C/groups, kh, kw) found, in backward.

        Args:
            recorder: the recorder.
            made: what `correlate` returned.
            grads: that of the output, shape (O, H', W', L).
            into: where it goes.
        """
        steps, outputs = recorder.backward, len(grads)
        parts = recorder.passing(len(made), outputs, into.out[0].size)
        maker = _Written(steps, recorder.passing, recorder.passing)
        self._share(
            steps,
            [
                partial(block.correlate_places, read, grads, own, maker)
                for (block, read), own in zip(made, parts, strict=True)
            ],
        )
        recorder.add_up(parts, into)
        recorder.release(parts)

    @staticmethod
    def _turn(take: Callable[..., Array], steps: Steps, matrices: Sequence[Array] | Array) -> Array:
        """Matrices (m, n) turned, one below the other: rows of m numbers, up to a whole vector."""
        rows, columns = matrices[0].shape
        turned = take(len(matrices) * columns, rows + -rows % LANES)
        for number, matrix in enumerate(matrices):
            steps.turn(matrix, turned[number * columns : (number + 1) * columns])
        return turned

    def _write(
        self,
        maker: _Written,
        steps: Steps,
        images: Array,
        weights: Sequence[Array],
        bias: Array,
        out: Array,
        flipped: int = 1,
    ) -> list[_Read]:
        """As `correlate`; of each `flipped` elements of the kernel the last one comes first."""
        blocks = self._plan.blocks(steps.threads if self._is_large(out, weights) else 1)
        made: list[_Read] = []

        def write(block: DirectBlock) -> None:
            read = block.surround(images, maker)
            made.append((block, read))
            # Machine code reads them one behind the other.
            offsets = np.ascontiguousarray(block.offsets.reshape(-1, flipped)[:, ::-1]).reshape(-1)
            block.correlate(read, weights, bias, out, maker, offsets=offsets)

        self._share(steps, [partial(write, block) for block in blocks])
        return made

    def _is_large(self, out: Array, weights: Sequence[Array]) -> bool:
        """Whether threads share the rows."""
        return bool(out.size * weights[0].shape[1] >= _SHARED_FROM)

    @staticmethod
    def _share(steps: Steps, pieces: Sequence[Callable[[], object]]) -> None:
        """Have blocks cut over the threads."""

        def write(own: slice) -> None:
            for piece in pieces[own]:
                piece()

        shares = parallel.split(len(pieces), min(steps.threads, len(pieces)))
        steps.side_by_side([partial(write, own) for own in shares])


def recorded(images: Array, outputs: int, windows: Sequence[Window], groups: int) -> RecordedImages:
    """How to read images (C, H, W, L) in lanes.

    Raises:
        Unrecorded: a stride, with which no products read images where they lie.
    """
    rows, columns = windows
    channels, *_, lanes = images.shape
    if rows.stride * columns.stride > 1:
        raise Unrecorded("a stride")
    return RecordedImages(layout_of(rows, columns, channels, lanes, groups, outputs))


def _in_blocks(rows: Array, outputs: int) -> Array:
    """Weights (K, whole vectors of O) as `correlation` reads them: (⌈O / 6⌉, K, 6), a view."""
    by_row, by_output = rows.strides
    shape = -(-outputs // OUTPUTS), len(rows), OUTPUTS
    return np.lib.stride_tricks.as_strided(rows, shape, (OUTPUTS * by_output, by_row, by_output))
