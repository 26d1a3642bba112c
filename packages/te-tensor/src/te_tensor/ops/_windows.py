"""Windows that slide along the axes of images, for convolution and pooling."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

from .. import memory, parallel
from ..dtypes import Array, DType

#: Images that are brought into lanes together: as many as make a line of the cache, so that lines
#: are written whole while those that are read stay near.
_TILE = 16
#: Elements from which that is spread over threads.
_PARALLEL_FROM = 1 << 18
#: Elements of an image that is small.
SMALL_IMAGE = 1 << 15


@dataclass(frozen=True)
class Window:
    """A kernel that slides along one axis.

    Args:
        length: elements of the axis.
        kernel: how many of them the kernel looks at.
        stride: how far it moves.
        before: padding before the first element; a negative one leaves elements out.
        dilation: from one element that it looks at to the next.
        count: how many places it takes.
    """

    length: int
    kernel: int
    stride: int
    before: int
    dilation: int
    count: int

    @classmethod
    @lru_cache(1024)
    def over(
        cls,
        length: int,
        kernel: int,
        stride: int,
        padding: tuple[int, int],
        dilation: int,
        ceil_mode: bool = False,
    ) -> Window:
        """The window that goes as far as the padded axis does.

        Args:
            length: elements of the axis.
            kernel: how many of them the kernel looks at.
            stride: how far it moves.
            padding: places before the first element and after the last.
            dilation: from one element that it looks at to the next.
            ceil_mode: whether a last place may reach beyond the padding, as long as it begins
                on an element or before it.

        Raises:
            ValueError: the kernel is longer than the padded axis.
        """
        before, after = padding
        span = (kernel - 1) * dilation + 1
        room = length + before + after - span
        if room < 0:
            raise ValueError(
                f"a kernel of {kernel} with dilation {dilation} spans {span} elements: expected at "
                f"most {length + before + after}, the length {length} with padding {padding}"
            )
        count = room // stride + 1
        if ceil_mode and room % stride and count * stride < length + before:
            count += 1
        return cls(length, kernel, stride, before, dilation, count)

    @cached_property
    def reaches(self) -> list[tuple[slice, slice]]:
        """For each of the kernel's elements: the places where it meets elements, and those."""
        return [self._reach(offset * self.dilation - self.before) for offset in range(self.kernel)]

    def _reach(self, shift: int) -> tuple[slice, slice]:
        first = max(0, -(shift // self.stride))
        last = min(self.count, (self.length - 1 - shift) // self.stride + 1)
        if last <= first:
            return slice(0, 0), slice(0, 0)
        begin = first * self.stride + shift
        end = begin + (last - first - 1) * self.stride + 1
        return slice(first, last), slice(begin, end, self.stride)

    def covers(self, places: slice) -> bool:
        """Whether these are all its places."""
        return places == slice(0, self.count)

    def part(self, first: int, last: int) -> Window:
        """The places from `first` up to `last` alone."""
        return replace(self, before=self.before - first * self.stride, count=last - first)

    @cached_property
    def back(self) -> Window:
        """With stride 1: the window from the places back to the elements that were looked at."""
        before = (self.kernel - 1) * self.dilation - self.before
        return replace(self, length=self.count, before=before, count=self.length)

    @property
    def moves_nothing(self) -> bool:
        """Whether place i looks at element i alone."""
        alone = self.kernel == 1 and self.stride == 1 and self.before == 0
        return alone and self.count == self.length

    @property
    def overlaps(self) -> bool:
        """Whether an element may be seen from several places."""
        return self.stride < (self.kernel - 1) * self.dilation + 1

    @property
    def halves(self) -> bool:
        """Whether it looks at one pair of neighbours after the other, but for a last element."""
        pairs = self.kernel == self.stride == 2 and self.dilation == 1 and self.before == 0
        return pairs and self.count == self.length // 2

    @property
    def tiles(self) -> bool:
        """Whether each element is seen from exactly one place."""
        dense = self.dilation == 1 and self.stride == self.kernel and self.before == 0
        return dense and self.count * self.stride == self.length


def as_images(x: Array, axes: int) -> Array:
    """A view (N, C, H, W) of what may lack the batch, or the rows (`axes` is 1).

    Args:
        x: shape (…, C, *spatial), with or without a batch.
        axes: the number of spatial axes, 1 or 2.
    """
    if x.ndim == axes + 1:
        x = x[None]
    return x if axes == 2 else x[:, :, None]


def new_images(shape: tuple[int, ...], dtype: DType, in_lanes: bool) -> Array:
    """An array of this shape, to be filled; `in_lanes` puts the batch innermost in memory.

    It is no view where it needn't be: as a leaf's gradient it is then kept without a copy.
    """
    if not in_lanes:
        return memory.empty(shape, dtype)
    last = len(shape) - 1
    return memory.empty((*shape[1:], shape[0]), dtype).transpose(last, *range(last))


def lies_in_lanes(x: Array) -> bool:
    """Whether the batch, the first axis, lies innermost in memory."""
    innermost = x.transpose(*range(1, x.ndim), 0).flags.c_contiguous
    return innermost and not x.flags.c_contiguous


def to_lanes(images: Array) -> Array:
    """Images (N, C, H, W) as (C, H, W, N), contiguous: a view where memory allows."""
    view = images.transpose(1, 2, 3, 0)
    if view.flags.c_contiguous:
        return view
    made = memory.empty(view.shape, view.dtype)
    tiles = range(0, len(images), _TILE)

    def run(index: int) -> None:
        tile = slice(tiles[index], tiles[index] + _TILE)
        made[..., tile] = view[..., tile]

    if images.size >= _PARALLEL_FROM:
        parallel.parallel_for(run, len(tiles))
    else:
        for index in range(len(tiles)):
            run(index)
    return made


def check_images(name: str, x: Array, axes: int) -> None:
    """Raise ValueError unless the axes are those of images."""
    if x.ndim not in (axes + 1, axes + 2):
        wanted = "(N, C, L) or (C, L)" if axes == 1 else "(N, C, H, W) or (C, H, W)"
        raise ValueError(f"{name} of shape {x.shape}: expected {wanted}")
