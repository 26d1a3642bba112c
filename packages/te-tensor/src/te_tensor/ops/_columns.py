"""What kernels look at, laid side by side as the columns of matrices.

The elements under a kernel's columns are copied side by side, kw copies of an image: the product
with row i of the kernel is then one with the same matrix, begun i rows further on, and the
products add up in the output. That is a kernel's height less than im2col copies. With few
channels such products are too thin; there the kernel's rows are laid side by side as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import ceil

import numpy as np

from .. import memory, parallel
from ..dtypes import Array, DType
from ._windows import Window

#: Elements of a block of columns: half of a CPU's share of the last-level cache.
_BLOCK = 4 * parallel.BLOCK
#: Rows of a product's matrix up to which the kernel's rows are stacked too.
_THIN = 32


class Columns:
    """How the columns of images (C, H, W, L) lie in memory, block by block of output rows.

    Args:
        rows: the window along the rows.
        columns: the window along the columns.
        channels: of the images.
        lanes: of the images.
        groups: of the channels; each has a matrix of its own.
    """

    def __init__(
        self, rows: Window, columns: Window, channels: int, lanes: int, groups: int
    ) -> None:
        self.rows, self.columns = rows, columns
        self.channels, self.lanes, self.groups = channels, lanes, groups
        self.stacked = rows.kernel > 1 and channels // groups * columns.kernel <= _THIN
        #: How often a row is there; the kernel rows of one product are as many.
        self.copies = rows.kernel if self.stacked else 1
        #: What the kernel's rows look at lies so far from where the kernel begins.
        self.steps = [i * rows.dilation for i in range(rows.kernel)]
        #: A row's phase is its number modulo the stride: rows of one phase lie together.
        self.phases = sorted({step % rows.stride for step in self.steps})
        #: Rows of a phase that a block needs beyond its own.
        self.further = self.steps[-1] // rows.stride
        #: Columns that come of one row of the output.
        self.width = columns.count * lanes

    @property
    def as_they_are(self) -> bool:
        """Whether an image is such a matrix already."""
        rows = self.rows
        still = rows.stride == 1 and rows.before == 0 and not self.stacked
        inside = rows.count + self.further <= rows.length
        return still and inside and self.columns.moves_nothing

    def blocks(self, pieces: int) -> list[tuple[int, int]]:
        """(first, last) output rows of at least so many blocks, each small enough for the cache."""
        phases = 1 if self.stacked else len(self.phases)
        row = self.channels * self.copies * self.columns.kernel * phases * self.width
        fitting = self.rows.count if self.as_they_are else max(1, _BLOCK // max(row, 1))
        count = max(pieces, ceil(self.rows.count / max(fitting, 1)))
        return [(piece.start, piece.stop) for piece in parallel.split(self.rows.count, count)]

    def empty(self, count: int, dtype: DType) -> Array:
        """Memory for the columns of `count` output rows: (C, copies, kw, rows, W', L)."""
        rows = count if self.stacked else len(self.phases) * (count + self.further)
        shape = (self.channels, self.copies, self.columns.kernel, rows)
        return memory.empty((*shape, self.columns.count, self.lanes), dtype)

    def gather(self, image: Array, first: int, last: int) -> Array:
        """The columns of the output rows from `first` up to `last`."""
        if self.as_they_are:
            return image[:, first : last + self.further]
        made = self.empty(last - first, image.dtype)
        for part, (to_rows, rows), (to_columns, columns) in self._parts(made, first, last):
            part[:, to_rows, to_columns] = image[:, rows, columns]
            for border in (
                part[:, : to_rows.start],
                part[:, to_rows.stop :],
                part[:, to_rows, : to_columns.start],
                part[:, to_rows, to_columns.stop :],
            ):
                if border.size:
                    border[...] = 0
        return made

    def scatter(self, gathered: Array, image: Array, first: int, last: int) -> None:
        """The reverse of `gather`: add the columns to the elements that they came from."""
        for part, (to_rows, rows), (to_columns, columns) in self._parts(gathered, first, last):
            image[:, rows, columns] += part[:, to_rows, to_columns]

    def _parts(
        self, gathered: Array, first: int, last: int
    ) -> Iterator[tuple[Array, tuple[slice, slice], tuple[slice, slice]]]:
        """Views (C, rows, W', L), each with where in it which of an image's rows, columns lie."""
        rows = self.rows.part(first, last)
        for number in range(self.copies if self.stacked else len(self.phases)):
            if self.stacked:
                view, along = gathered[:, number], rows.reach(number)
            else:
                count = rows.count + self.further
                view = gathered[:, 0, :, number * count : (number + 1) * count]
                before = rows.before - self.phases[number]
                along = replace(rows, before=before, count=count).reach(0)
            for j in range(self.columns.kernel):
                yield view[:, j], along, self.columns.reach(j)

    def matrices(self, gathered: Array, first: int, last: int) -> list[Array]:
        """A view (groups, inner, places) for each product."""
        inner = self.channels // self.groups * self.copies * self.columns.kernel
        flat = gathered.reshape(self.groups, inner, -1)
        if self.stacked:
            return [flat]
        stride, count = self.rows.stride, last - first + self.further
        begins = [self.phases.index(s % stride) * count + s // stride for s in self.steps]
        width = self.width
        return [flat[:, :, b * width : (b + last - first) * width] for b in begins]

    def weights(self, kernels: Array) -> list[Array]:
        """Kernels (O, C/groups, kh, kw): a matrix (groups, O/groups, inner) for each product."""
        grouped = kernels.reshape(self.groups, -1, *kernels.shape[1:])
        shape = (*grouped.shape[:2], -1)
        edges = range(0, self.rows.kernel, self.copies)
        return [grouped[:, :, :, i : i + self.copies].reshape(shape) for i in edges]

    def kernels(self, weights: list[Array]) -> Array:
        """The reverse of `weights`: (groups, O/groups, C/groups, kh, kw)."""
        shape = (*weights[0].shape[:2], -1, self.copies, self.columns.kernel)
        return np.concatenate([w.reshape(shape) for w in weights], axis=3)

    def places(self, output: Array, first: int, last: int) -> Array:
        """The places of these rows in an output (O, H', W', L): (groups, O/groups, places)."""
        flat = output.reshape(self.groups, len(output) // self.groups, -1)
        return flat[:, :, first * self.width : last * self.width]
