"""What kernels look at, laid side by side as the columns of matrices.

The elements under a kernel's columns are copied side by side, kw copies of an image: the product
with row i of the kernel is then one with the same matrix, begun i rows further on, and the
products add up in the output. That is a kernel's height less than im2col copies. With few
channels such products are too thin, and on small images too many; there the kernel's rows are
laid side by side as well.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from math import ceil

from .. import memory, parallel
from ..dtypes import Array, DType
from ._windows import Window

#: Elements of a block of columns: half of a CPU's share of the last-level cache.
_BLOCK = 4 * parallel.BLOCK
#: Rows of a product's matrix up to which the kernel's rows are stacked too.
_THIN = 32

#: Elements up to which filling all with zeros is quicker than each border.
_SMALL = 1 << 17

_Slices = tuple[slice | int, ...]


class Columns:
    """How the columns of images (C, H, W, L) lie in memory. It is the same for images alike.

    Args:
        rows: the window along the rows.
        columns: the window along the columns.
        channels: of the images.
        lanes: of the images.
        groups: of the channels; each has a matrix of its own.
        stacked: lay the kernel's rows side by side, whatever the channels.
    """

    def __init__(
        self, rows: Window, columns: Window, channels: int, lanes: int, groups: int, stacked: bool
    ) -> None:
        self.rows, self.columns = rows, columns
        self.channels, self.lanes, self.groups = channels, lanes, groups
        thin = channels // groups * columns.kernel <= _THIN
        self.stacked = rows.kernel > 1 and (stacked or thin)
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
        still = rows.stride == 1 and rows.before == 0 and not self.stacked
        inside = rows.count + self.further <= rows.length
        #: Whether an image is such a matrix already.
        self.as_they_are = still and inside and columns.moves_nothing
        #: The kernel's rows of each product.
        self.products = [slice(i, i + self.copies) for i in range(0, rows.kernel, self.copies)]
        self._blocks: dict[tuple[int, int], list[Block]] = {}

    def blocks(self, pieces: int) -> list[Block]:
        """At least so many blocks of output rows, each small enough for the cache."""
        found = self._blocks.get((pieces, _BLOCK))
        if found is None:
            phases = 1 if self.stacked else len(self.phases)
            row = self.channels * self.copies * self.columns.kernel * phases * self.width
            fitting = self.rows.count if self.as_they_are else max(1, _BLOCK // max(row, 1))
            parts = parallel.split(self.rows.count, max(pieces, ceil(self.rows.count / fitting)))
            found = [Block(self, part.start, part.stop) for part in parts]
            self._blocks[pieces, _BLOCK] = found
        return found

    def weights(self, kernels: Array) -> list[Array]:
        """Kernels (O, C/groups, kh, kw): a matrix (groups, O/groups, inner) for each product."""
        grouped = kernels.reshape(self.groups, -1, *kernels.shape[1:])
        shape = (*grouped.shape[:2], -1)
        return [grouped[:, :, :, rows].reshape(shape) for rows in self.products]


#: `Columns`, kept: a network meets the same few again and again.
columns_of = lru_cache(256)(Columns)


class Block:
    """The columns of some rows of the output.

    Args:
        layout: of the columns.
        first: the first row.
        last: the row after the last.
    """

    def __init__(self, layout: Columns, first: int, last: int) -> None:
        self.layout, self.first, self.last = layout, first, last
        count = last - first
        #: Rows of the image, or of a phase of them, that lie together.
        self.height = count if layout.stacked else count + layout.further
        rows = len(layout.phases) * self.height if not layout.stacked else count
        kernel = layout.columns.kernel
        lead = (layout.channels, layout.copies, kernel, rows)
        self.shape = (*lead, layout.columns.count, layout.lanes)
        self.inner = layout.channels // layout.groups * layout.copies * kernel
        #: Which part of the columns is which part of the image.
        self.pairs: list[tuple[_Slices, _Slices]] = []
        #: The parts of the columns that padding stands in.
        self.borders: list[_Slices] = []
        self._lay_out()
        self.places = slice(first * layout.width, last * layout.width)
        self.products = [slice(b, b + count * layout.width) for b in self._begins()]

    def _lay_out(self) -> None:
        every = slice(None)
        for copy, begin, (to_rows, rows) in self._copies():
            lower, upper = begin + to_rows.start, begin + to_rows.stop
            for part in (slice(begin, lower), slice(upper, begin + self.height)):
                if part.stop > part.start:
                    self.borders.append((every, copy, every, part))
            inside = slice(lower, upper)
            for j, (to_columns, columns) in enumerate(self.layout.columns.reaches):
                self.pairs.append(
                    ((every, copy, j, inside, to_columns), (every, rows, columns)),
                )
                for part in (slice(0, to_columns.start), slice(to_columns.stop, None)):
                    if part.start != (part.stop or self.layout.columns.count):
                        self.borders.append((every, copy, j, inside, part))

    def _copies(self) -> list[tuple[int, int, tuple[slice, slice]]]:
        """(number of the copy, the row it begins at, which rows of the image stand where)."""
        layout = self.layout
        rows = layout.rows.part(self.first, self.last)
        if layout.stacked:
            return [(number, 0, reach) for number, reach in enumerate(rows.reaches)]
        found = []
        for number, phase in enumerate(layout.phases):
            window = replace(rows, kernel=1, before=rows.before - phase, count=self.height)
            found.append((0, number * self.height, window.reaches[0]))
        return found

    def _begins(self) -> list[int]:
        """Where the matrix of each product begins among the columns."""
        layout = self.layout
        if layout.stacked:
            return [0]
        stride = layout.rows.stride
        places = [layout.phases.index(step % stride) * self.height for step in layout.steps]
        further = [step // stride for step in layout.steps]
        return [(a + b) * layout.width for a, b in zip(places, further, strict=True)]

    def empty(self, dtype: DType) -> Array:
        """Memory for the columns: (C, copies, kw, rows, W', L)."""
        return memory.empty(self.shape, dtype)

    def gather(self, image: Array) -> Array:
        """The columns."""
        if self.layout.as_they_are:
            return image[:, self.first : self.last + self.layout.further]
        made = self.empty(image.dtype)
        if made.size < _SMALL:
            made.fill(0)
        else:
            for border in self.borders:
                made[border] = 0
        for to, elements in self.pairs:
            made[to] = image[elements]
        return made

    def scatter(self, columns: Array, image: Array) -> None:
        """The reverse of `gather`: add the columns to the elements that they came from."""
        for to, elements in self.pairs:
            image[elements] += columns[to]

    def matrices(self, columns: Array) -> list[Array]:
        """A view (groups, inner, places) for each product."""
        flat = columns.reshape(self.layout.groups, self.inner, -1)
        return [flat[:, :, part] for part in self.products]

    def of_output(self, output: Array) -> Array:
        """The places of these rows in an output (O, H', W', L): (groups, O/groups, places)."""
        groups = self.layout.groups
        return output.reshape(groups, len(output) // groups, -1)[:, :, self.places]
