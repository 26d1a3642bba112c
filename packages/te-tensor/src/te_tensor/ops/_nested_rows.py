"""Attention of long rows as nests of machine code: some rows of a head at a time.

Their scores stay with a thread, in its cache, and are made anew in backward: nothing is held that
grows with rows times columns, as in FlashAttention (Dao et al., arXiv:2205.14135).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided

from .. import memory, parallel
from ..blas_library import uses_tiles
from ..dtypes import Array, float32
from ..machine import LANES, Nest, Own, fill_kernel, kernel_info
from ._blocks import Block
from ._distance import whole_vectors
from ._nested import (
    MOST_COLUMNS,
    MOST_FEATURES,
    Nested,
    biased_weights_and_gradient,
    biased_weights_so_far,
    divide_by_sums,
    multiply_rows,
    plain_weights_and_gradient,
    plain_weights_so_far,
    row_products,
    rows_together,
)
from ._weights import LARGEST

#: Rows from which on it is worth it.
_FEWEST = 64
#: Rows and columns that are made together; and rows that see some of the columns only.
_LOW, _WIDE, _HIGH = 128, 1024, 256
#: What the columns that causal rows see are a multiple of: calls are written down for each number.
_STEP = 256


def nests_rows(q: Array, k: Array, v: Array) -> bool:
    """Whether a problem of long rows is made so: it has a key head for each, and one a thread."""
    batch, heads, rows, width = q.shape
    return (
        q.dtype is float32
        and heads == k.shape[1]
        and max(batch, heads) >= (1 if parallel.in_parallel() else parallel.get_num_threads())
        and k.shape[2] > MOST_COLUMNS
        and rows >= _FEWEST
        and 0 < width <= MOST_FEATURES
        and 0 < v.shape[3] <= MOST_FEATURES
        and all(x.strides[-1] == x.itemsize and x.strides[-2] for x in (q, k, v))
        and kernel_info()["kernels"] == "avx512"
    )


class _Band(NamedTuple):
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


class _Block(NamedTuple):
    """Columns, and bands of the rows that see some of them."""

    columns: slice
    bands: list[_Band]


class NestedRows(Nested):
    """softmax(scale·q·kᵀ + mask - bias)·v of long rows; as `Nested`, with a key head for each head.

    All rows see the columns of a block, and then those of the next one: what belongs to a block
    stays in the second-level cache.

    Args:
        q: shape (B, H, S, d).
        k: shape (B, H, T, d).
        v: shape (B, H, T, e).
        scale: factor of the products.
        mask: broadcasts to (B, H, S, T), boolean or additive.
        bias: what goes by distances, the same for all heads but for slopes.
        causal_from: the column that row 0 stands at, where rows see no column behind their own.
    """

    #: The logarithms of rows' sums, shape (B, H, 1, S, 1), once `mix` was called.
    _log_sums: Array

    def mix(self, out: Array) -> None:
        """Write the weighted means of v, shape (B, H, S, e)."""
        grouped = self._group(out)
        top, total = (np.empty((*self.size[:4], 1), float32) for _ in range(2))

        def begin(nest: Nest, columns: slice) -> None:
            if columns.start == 0:
                nest.kernel(fill_kernel, self._stacked(top), -LARGEST, first=True)
                nest.kernel(fill_kernel, self._stacked(total), 0.0, first=True)

        def write(band: _Band, nest: Nest, penalty: Array) -> None:
            weights, factor = nest.own(band.height, band.width), nest.own(band.height, 1).first(1)
            self._multiply_with_keys(nest, band, weights)
            last = self._rows(top, band), self._rows(total, band), factor, self.scale
            seen, target = self._penalty_of(band, penalty), self._rows(grouped, band)
            if self.bias is None:
                nest.kernel(plain_weights_so_far, weights, seen, *last)
            else:
                operands = self._phi_of(band), self._slopes()
                nest.kernel(biased_weights_so_far, weights, seen, *operands, *last)
            further = band.columns.start > 0
            if further:
                nest.kernel(multiply_rows, target, factor)
            values = nest.lay(self._keys(self.v, band), band.height)
            nest.product(weights.first(band.width), values, target, add=further)

        self._run(self._blocks(), write, begin)
        nest = Nest(*self._stacked(top).shape[:3])
        nest.kernel(divide_by_sums, *map(self._stacked, (grouped, total, top)))
        nest.run()
        self._log_sums = top

    def backward(
        self, grad: Array, out: Array, needs: dict[str, bool], shapes: dict[str, tuple[int, ...]]
    ) -> dict[str, Array]:
        """As `Nested.backward`; none of the mask, of distances and of rates."""
        batch, heads, _, rows, _ = self.size
        grad, blocks = self._group(rows_together(grad)), self._blocks()
        sums = self._products_of_rows(grad, self._group(rows_together(out)))
        of_bias = np.zeros((len(blocks), batch, heads, 1, rows, 1), float32)
        given = dict(zip("qkv", self.given, strict=True))
        results = {name: memory.empty_like(x) for name, x in given.items() if needs[name]}
        grouped = {name: made[:, :, None] for name, made in results.items()}

        def write(band: _Band, nest: Nest, penalty: Array) -> None:
            upstream, scores = self._rows(grad, band), self._penalty_of(band, penalty)
            weights, of_scores = (nest.own(band.height, band.width) for _ in range(2))
            self._multiply_with_keys(nest, band, weights)
            values = nest.lay(self._keys(self.v, band).swapaxes(-1, -2), band.height)
            nest.product(upstream, values, of_scores)
            known = self._rows(self._log_sums, band), self._rows(sums, band)
            made = weights, of_scores, scores
            if self.bias is None:
                nest.kernel(plain_weights_and_gradient, *made, *known, self.scale)
            else:
                number = band.columns.start // _WIDE
                operands = self._phi_of(band), self._slopes(), *known
                into = self._rows(of_bias[number], band)
                nest.kernel(biased_weights_and_gradient, *made, *operands, into, self.scale)
            of_scores, shares = of_scores.first(band.width), weights.first(band.width)
            if "q" in results:
                keys, target = self._keys(self.k, band), self._rows(grouped["q"], band)
                nest.product(
                    of_scores, nest.lay(keys, band.height), target, add=band.columns.start > 0
                )
            for name, left, right in (
                ("k", of_scores, self._rows(self.q, band)),
                ("v", shares, upstream),
            ):
                if name in results:  # each row adds to all columns that it sees
                    nest.product(left.turned, right, self._keys(grouped[name], band), add=True)

        def begin(nest: Nest, columns: slice) -> None:
            for name in {"k", "v"} & results.keys():
                target = self._stacked(grouped[name][..., columns, :])
                nest.kernel(fill_kernel, target, 0.0, first=True)

        self._run(blocks, write, begin)
        if needs.get("slopes"):
            summed = np.add.reduce(
                of_bias.reshape(-1, batch, heads, rows), axis=(0, 1, 3), dtype=float
            )
            results["slopes"] = (-summed).astype(float32).reshape(shapes["slopes"])
        return results

    # -- some rows at a time ---------------------------------------------------------------------

    def _run(
        self,
        blocks: list[_Block],
        write: Callable[[_Band, Nest, Array], None],
        begin: Callable[[Nest, slice], None],
    ) -> None:
        """Go through blocks of bands; what tiles can't split is made without them.

        Args:
            blocks: the blocks.
            write: writes down what makes a band, with what is subtracted from all scores.
            begin: writes down what comes first in a block.
        """
        batch, heads = self.size[:2]
        if self.bias is not None:
            self.parts = self.bias.parts(Block.of_all(self.size))
            self.phi = self.bias.whole_vectors(self.parts, self.size)
        penalty = self._penalty(None)  # what causal rows don't see a band adds

        def run(block: _Block, tiles: bool) -> bool:
            nests = [
                Nest(max(batch, heads), min(batch, heads), times, tiles=tiles)
                for times in [band.times for band in block.bands] or [1]
            ]
            begin(nests[0], block.columns)
            for band, nest in zip(block.bands, nests, strict=False):
                write(band, nest, penalty)
            return all([nest.run() for nest in nests])

        for tiles in (uses_tiles(), False):
            if all([run(block, tiles) for block in blocks]):
                break
        self._forget()

    def _blocks(self) -> list[_Block]:
        rows, columns = self.size[3:]
        blocks = []
        for start in range(0, columns, _WIDE):
            seen = slice(start, min(start + _WIDE, columns))
            some = every = 0  # the first rows that see some of them, and all of them
            if self.causal_from is not None:
                some, every = (
                    min(rows, max(0, column - self.causal_from)) for column in (start, seen.stop)
                )
            bands = [self._causal_band(part, seen) for part in _parts(some, every, _HIGH)]
            blocks.append(_Block(seen, bands + _cut(slice(every, rows), _LOW, seen)))
        return blocks

    def _causal_band(self, rows: range, columns: slice) -> _Band:
        """Rows with those columns that any of them sees, and few others."""
        seen = (self.causal_from or 0) + rows.stop
        seen = min(columns.stop, seen + -seen % _STEP)
        return _Band(rows.start, len(rows), 1, slice(columns.start, seen), partly=True)

    def _products_of_rows(self, a: Array, b: Array) -> Array:
        """Their sums, shape (B, H, 1, S, 1)."""
        sums = np.empty((*a.shape[:4], 1), float32)
        nest = Nest(*self._stacked(sums).shape[:3])
        nest.kernel(row_products, *map(self._stacked, (a, b, sums)))
        nest.run()
        return sums

    def _multiply_with_keys(self, nest: Nest, band: _Band, scores: Own) -> None:
        keys = nest.lay(self._keys(self.k, band).swapaxes(-1, -2), band.height)
        nest.product(self._rows(self.q, band), keys, scores)

    def _penalty_of(self, band: _Band, penalty: Array) -> Array:
        """That of the band, with whole vectors; and what causal rows don't see."""
        rows = penalty[..., band.rows if penalty.shape[3] > 1 else slice(None), band.columns]
        if band.partly:
            last = np.arange(band.height)[:, None] + ((self.causal_from or 0) + band.first)
            columns = np.arange(band.columns.start, band.columns.stop)
            rows = np.where(columns > last, float32.type(np.inf), rows)
        return self._rows(whole_vectors(rows, fill=np.inf), band)

    def _phi_of(self, band: _Band) -> Array:
        assert self.phi is not None
        whole = band.width + -band.width % LANES
        columns = slice(band.columns.start, band.columns.start + whole)
        return self._rows(self.phi[..., band.rows, columns], band)

    def _slopes(self) -> Array:
        assert self.bias is not None
        return self._stacked(-self.bias.slopes[None])

    def _rows(self, x: Array, band: _Band) -> Array:
        """The band's rows of an array on five axes, (B, H, how often, how many, n)."""
        if x.shape[3] > 1 or self.size[3] == 1:
            start = 0 if x.shape[3] == band.height * band.times else band.first
            by_row = x.strides[3]
            shape = (*x.shape[:2], band.times, band.height, x.shape[4])
            strides = (*x.strides[:2], band.height * by_row, by_row, x.strides[4])
            x = as_strided(x[:, :, :, start:], shape, strides)
        return self._stacked(x)

    def _keys(self, x: Array, band: _Band) -> Array:
        """The band's columns of keys or values, or of their gradients."""
        return self._stacked(x[..., band.columns, :])

    def _stacked(self, x: Array) -> Array:
        """(B, H, …) with the longer one first: threads share it."""
        batch, heads = self.size[:2]
        return x if batch >= heads else x.swapaxes(0, 1)


def _parts(start: int, stop: int, length: int) -> list[range]:
    return [range(first, min(first + length, stop)) for first in range(start, stop, length)]


def _cut(rows: slice, height: int, columns: slice) -> list[_Band]:
    """Rows in bands of a height, and what is left."""
    count, rest = divmod(rows.stop - rows.start, height)
    bands = [_Band(rows.start, height, count, columns)] if count else []
    return bands + ([_Band(rows.stop - rest, rest, 1, columns)] if rest else [])
