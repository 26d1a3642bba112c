"""Attention of long rows as nests of machine code: some rows and columns of a head at a time.

Their scores stay with a thread, in its cache, and are made anew in backward: nothing is held that
grows with rows times columns, as in FlashAttention (Dao et al., arXiv:2205.14135).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from numpy.lib.stride_tricks import as_strided

from ..dtypes import Array
from ..machine import LANES, Nest, Own, fill_kernel
from ._nested import (
    biased_weights_and_gradient,
    biased_weights_so_far,
    divide_by_sums,
    multiply_rows,
    plain_weights_and_gradient,
    plain_weights_so_far,
    row_products,
)
from ._weights import LARGEST

#: Rows and columns that are made together; and rows that see some of the columns only.
_LOW, _WIDE, _HIGH = 128, 1024, 256
#: What the columns that causal rows see are a multiple of: calls are written down for each number.
_STEP = 256


class Band(NamedTuple):
    """Rows that are made alike, with some of the columns.

    Attributes:
        first: the first row.
        height: how many rows are made together.
        times: how many times.
        columns: which columns.
        partly: whether a causal row may see some of them only.
    """

    first: int
    height: int
    times: int
    columns: slice
    partly: bool = False

    @property
    def rows(self) -> slice:
        """All of its rows."""
        return slice(self.first, self.first + self.height * self.times)

    @property
    def width(self) -> int:
        """How many columns it has."""
        return int(self.columns.stop - self.columns.start)

    @property
    def whole_columns(self) -> slice:
        """Its columns, and those behind them up to a whole vector."""
        return slice(self.columns.start, self.columns.stop + -self.width % LANES)


class _Block(NamedTuple):
    """Columns, and bands of the rows that see some of them."""

    columns: slice
    bands: list[Band]


class LongRows:
    """softmax(scale·q·kᵀ - penalty + factors·phi)·v of long rows.

    All rows see the columns of a block, and then those of the next one: what belongs to a block
    stays in the second-level cache.

    Args:
        q: shape (B, H, 1, S, d); contiguous rows, as all others.
        k: shape (B, H, 1, T, d).
        v: shape (B, H, 1, T, e).
        scale: factor of the products.
        penalty: of a band what is subtracted from its scores, on five axes that broadcast to
            (B, H, 1, rows, columns), with whole vectors.
        causal_from: the column that row 0 stands at, where rows see no column behind their own.
        phi: that of distances, shape (b, 1, 1, S, whole vectors of T), for a distance bias.
        factors: of heads, shape (1, H, 1, 1, 1), for it.
        tiles: make large products by tiles.
    """

    def __init__(
        self,
        q: Array,
        k: Array,
        v: Array,
        scale: float,
        penalty: Callable[[Band], Array],
        *,
        causal_from: int | None,
        phi: Array | None,
        factors: Array | None,
        tiles: bool,
    ) -> None:
        self._q, self._k, self._v, self._scale = q, k, v, scale
        self._penalty, self._causal_from = penalty, causal_from
        self._phi, self._factors, self._tiles = phi, factors, tiles
        self._batch, self._heads = q.shape[:2]

    def forward(self, out: Array, top: Array, total: Array) -> Iterator[Nest]:
        """What writes the weighted means of v, to be run one after the other.

        Args:
            out: them, shape (B, H, 1, S, e).
            top: the logarithms of rows' sums, shape (B, H, 1, S, 1).
            total: memory of the same shape.
        """
        nest = self._nest(1)
        nest.kernel(fill_kernel, self._stacked(top), -LARGEST)
        nest.kernel(fill_kernel, self._stacked(total), 0.0)
        yield nest
        for block in self._blocks():
            for band in block.bands:
                nest = self._nest(band.times)
                self._mix(nest, band, out, top, total)
                yield nest
        nest = self._nest(1)
        nest.kernel(divide_by_sums, *map(self._stacked, (out, total, top)))
        yield nest

    def _mix(self, nest: Nest, band: Band, out: Array, top: Array, total: Array) -> None:
        weights, factor = nest.own(band.height, band.width), nest.own(band.height, 1).first(1)
        self._multiply_with_keys(nest, band, weights)
        given = weights, self._rows(self._penalty(band), band)
        known = self._rows(top, band), self._rows(total, band), factor, self._scale
        if self._phi is None or self._factors is None:
            nest.kernel(plain_weights_so_far, *given, *known)
        else:
            bias = self._phi_of(self._phi, band), self._stacked(self._factors)
            nest.kernel(biased_weights_so_far, *given, *bias, *known)
        target, further = self._rows(out, band), band.columns.start > 0
        if further:
            nest.kernel(multiply_rows, target, factor)
        values = nest.lay(self._keys(self._v, band), band.height)
        nest.product(weights.first(band.width), values, target, add=further)

    def backward(
        self,
        grad: Array,
        out: Array,
        log_sums: Array,
        sums: Array,
        into: dict[str, tuple[Array, bool]],
        of_bias: Array | None,
    ) -> Iterator[Nest]:
        """What writes gradients, to be run one after the other.

        Args:
            grad: that of the weighted means.
            out: these.
            log_sums: what forward left in `top`.
            sums: memory of that shape.
            into: by "q", "k" and "v", for those that are wanted, where they go, and whether they
                are added to what is there.
            of_bias: with a distance bias where it goes what rows add to the gradients of factors;
                shape (`block_count`, B, H, 1, S, 1), zeros where rows don't see all columns.
        """
        nest = self._nest(1)
        nest.kernel(row_products, *map(self._stacked, (grad, out, sums)))
        yield nest
        for number, block in enumerate(self._blocks()):
            nests = [self._nest(band.times) for band in block.bands] or [self._nest(1)]
            for name in {"k", "v"} & into.keys():
                target, adds = into[name]
                if not adds:
                    columns = self._stacked(target[..., block.columns, :])
                    nests[0].kernel(fill_kernel, columns, 0.0, first=True)
            for band, nest in zip(block.bands, nests, strict=False):
                bias = None if of_bias is None else self._rows(of_bias[number], band)
                self._go_back(nest, band, grad, log_sums, sums, into, bias)
            yield from nests

    def _go_back(
        self,
        nest: Nest,
        band: Band,
        grad: Array,
        log_sums: Array,
        sums: Array,
        into: dict[str, tuple[Array, bool]],
        of_bias: Array | None,
    ) -> None:
        weights, of_scores = (nest.own(band.height, band.width) for _ in range(2))
        self._multiply_with_keys(nest, band, weights)
        values = nest.lay(self._keys(self._v, band).swapaxes(-1, -2), band.height)
        nest.product(self._rows(grad, band), values, of_scores)
        given = weights, of_scores, self._rows(self._penalty(band), band)
        known = self._rows(log_sums, band), self._rows(sums, band)
        if self._phi is None or self._factors is None or of_bias is None:
            nest.kernel(plain_weights_and_gradient, *given, *known, self._scale)
        else:
            bias = self._phi_of(self._phi, band), self._stacked(self._factors)
            nest.kernel(biased_weights_and_gradient, *given, *bias, *known, of_bias, self._scale)
        shares, of_scores = weights.first(band.width), of_scores.first(band.width)
        if "q" in into:
            target, adds = into["q"]
            keys = nest.lay(self._keys(self._k, band), band.height)
            adds |= band.columns.start > 0
            nest.product(of_scores, keys, self._rows(target, band), add=adds)
        for name, left, right in (("k", of_scores, self._q), ("v", shares, grad)):
            if name in into:  # each row adds to all columns that it sees
                target = self._keys(into[name][0], band)
                nest.product(left.turned, self._rows(right, band), target, add=True)

    @property
    def block_count(self) -> int:
        """How many blocks of columns there are."""
        return len(self._blocks())

    # -- some rows and columns ------------------------------------------------------------------

    def _nest(self, times: int) -> Nest:
        return Nest(
            max(self._batch, self._heads), min(self._batch, self._heads), times, tiles=self._tiles
        )

    def _blocks(self) -> list[_Block]:
        rows, columns = self._q.shape[3], self._k.shape[3]
        blocks = []
        for start in range(0, columns, _WIDE):
            seen = slice(start, min(start + _WIDE, columns))
            some = every = 0  # the first rows that see some of them, and all of them
            if self._causal_from is not None:
                some, every = (
                    min(rows, max(0, column - self._causal_from)) for column in (start, seen.stop)
                )
            bands = [self._causal_band(part, seen) for part in _parts(some, every, _HIGH)]
            blocks.append(_Block(seen, bands + _cut(slice(every, rows), _LOW, seen)))
        return blocks

    def _causal_band(self, rows: range, columns: slice) -> Band:
        """Rows with those columns that any of them sees, and few others."""
        seen = (self._causal_from or 0) + rows.stop
        seen = min(columns.stop, seen + -seen % _STEP)
        return Band(rows.start, len(rows), 1, slice(columns.start, seen), partly=True)

    def _multiply_with_keys(self, nest: Nest, band: Band, scores: Own) -> None:
        keys = nest.lay(self._keys(self._k, band).swapaxes(-1, -2), band.height)
        nest.product(self._rows(self._q, band), keys, scores)

    def _phi_of(self, phi: Array, band: Band) -> Array:
        return self._rows(phi[..., band.rows, band.whole_columns], band)

    def _rows(self, x: Array, band: Band) -> Array:
        """The band's rows of an array on five axes, (B, H, how often, how many, n)."""
        if x.shape[3] > 1 or self._q.shape[3] == 1:
            start = 0 if x.shape[3] == band.height * band.times else band.first
            by_row = x.strides[3]
            shape = (*x.shape[:2], band.times, band.height, x.shape[4])
            strides = (*x.strides[:2], band.height * by_row, by_row, x.strides[4])
            x = as_strided(x[:, :, :, start:], shape, strides)
        return self._stacked(x)

    def _keys(self, x: Array, band: Band) -> Array:
        """The band's columns of keys or values, or of their gradients."""
        return self._stacked(x[..., band.columns, :])

    def _stacked(self, x: Array) -> Array:
        """(B, H, …) with the longer one first: threads share it."""
        return x if self._batch >= self._heads else x.swapaxes(0, 1)


def _parts(start: int, stop: int, length: int) -> list[range]:
    return [range(first, min(first + length, stop)) for first in range(start, stop, length)]


def _cut(rows: slice, height: int, columns: slice) -> list[Band]:
    """Rows in bands of a height, and what is left."""
    count, rest = divmod(rows.stop - rows.start, height)
    bands = [Band(rows.start, height, count, columns)] if count else []
    return bands + ([Band(rows.stop - rest, rest, 1, columns)] if rest else [])
