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
from ..machine import LANES, Nest, Own, kernel_info
from ._blocks import Block
from ._distance import whole_vectors
from ._nested import (
    MOST_COLUMNS,
    MOST_FEATURES,
    Nested,
    biased_gradient,
    biased_weights_again,
    biased_weights_and_sums,
    plain_gradient,
    plain_weights_again,
    plain_weights_and_sums,
    rows_together,
)

#: Scores that are made together, and how many rows they have at least and at most.
_SCORES, _FEWEST, _MOST = 1 << 19, 64, 256
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
    """Rows that are made alike: from where, how many, how many times, and columns they see."""

    first: int
    height: int
    times: int
    columns: int


class NestedRows(Nested):
    """softmax(scale·q·kᵀ + mask - bias)·v of long rows; as `Nested`, with a key head for each head.

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
        self._log_sums = np.empty((*self.size[:4], 1), float32)

        def write(nest: Nest, band: _Band, weights: Own) -> None:
            shares = weights.first(band.columns)
            nest.product(shares, self._keys(self.v, band), self._rows(grouped, band))

        self._run(write, again=False)

    def backward(
        self, grad: Array, out: Array, needs: dict[str, bool], shapes: dict[str, tuple[int, ...]]
    ) -> dict[str, Array]:
        """As `Nested.backward`; none of the mask, of distances and of rates."""
        batch, heads, _, rows, _ = self.size
        grad = self._group(rows_together(grad))
        of_bias = np.empty((batch, heads, 1, rows, 1), float32)
        given = dict(zip("qkv", self.given, strict=True))
        results = {name: memory.empty_like(x) for name, x in given.items() if needs[name]}
        grouped = {name: made[:, :, None] for name, made in results.items()}
        with_slopes = self.bias is not None and needs["slopes"]

        def begin() -> None:
            for name in {"k", "v"} & results.keys():
                results[name][...] = 0

        def write(nest: Nest, band: _Band, weights: Own) -> None:
            upstream, columns = self._rows(grad, band), band.columns
            of_scores = nest.own(band.height, columns)
            nest.product(upstream, self._keys(self.v, band).swapaxes(-1, -2), of_scores)
            if with_slopes:
                operands = of_scores, weights, self._phi_of(band), self._rows(of_bias, band)
                nest.kernel(biased_gradient, *operands, self.scale)
            else:
                nest.kernel(plain_gradient, of_scores, weights, self.scale)
            of_scores, shares = of_scores.first(columns), weights.first(columns)
            if "q" in results:
                target = self._rows(grouped["q"], band)
                nest.product(of_scores, self._keys(self.k, band), target)
            for name, left, right in (
                ("k", of_scores, self._rows(self.q, band)),
                ("v", shares, upstream),
            ):
                if name in results:  # each row adds to all columns that it sees
                    nest.product(left.turned, right, self._keys(grouped[name], band), add=True)

        self._run(write, begin, again=True)
        if needs.get("slopes"):
            summed = np.add.reduce(of_bias.reshape(batch, heads, rows), axis=(0, 2), dtype=float)
            results["slopes"] = (-summed).astype(float32).reshape(shapes["slopes"])
        return results

    # -- rows, some at a time --------------------------------------------------------------------

    def _run(
        self,
        write: Callable[[Nest, _Band, Own], None],
        begin: Callable[[], None] = lambda: None,
        *,
        again: bool,
    ) -> None:
        """Go through all bands; what tiles can't split is made without them.

        Args:
            write: has done what a band's weights are for.
            begin: what comes first.
            again: the logarithms of rows' sums are known.
        """
        if self.bias is not None:
            self.parts = self.bias.parts(Block.of_all(self.size))
            self.phi = self.bias.whole_vectors(self.parts, self.size)
        penalty = self._penalty(None)  # what causal rows don't see a band adds
        for tiles in (uses_tiles(), False):
            begin()
            if all([self._band(band, penalty, tiles, write, again) for band in self._bands()]):
                break
        self._forget()

    def _bands(self) -> list[_Band]:
        rows, columns = self.size[3:]
        height = min(rows, max(_FEWEST, min(_MOST, _SCORES // columns // 32 * 32)))
        if self.causal_from is None:
            count, rest = divmod(rows, height)
            tail = [_Band(rows - rest, rest, 1, columns)] if rest else []
            return [_Band(0, height, count, columns), *tail]
        heights = [(first, min(height, rows - first)) for first in range(0, rows, height)]
        bands = []
        for first, high in heights:
            seen = self.causal_from + first + high
            bands.append(_Band(first, high, 1, min(columns, seen + -seen % _STEP)))
        return bands

    def _band(
        self,
        band: _Band,
        penalty: Array,
        tiles: bool,
        write: Callable[[Nest, _Band, Own], None],
        again: bool,
    ) -> bool:
        """Whether tiles could split all numbers."""
        batch, heads = self.size[:2]
        nest = Nest(max(batch, heads), min(batch, heads), band.times, tiles=tiles)
        weights = nest.own(band.height, band.columns)
        keys = self._keys(self.k, band).swapaxes(-1, -2)
        nest.product(self._rows(self.q, band), keys, weights)
        seen = self._rows(self._penalty_of(band, penalty), band)
        last = self._rows(self._log_sums, band), self.scale
        if self.bias is None:
            plain = plain_weights_again if again else plain_weights_and_sums
            nest.kernel(plain, weights, seen, *last)
        else:
            biased = biased_weights_again if again else biased_weights_and_sums
            slopes = self._stacked(-self.bias.slopes[None])
            nest.kernel(biased, weights, seen, self._phi_of(band), slopes, *last)
        write(nest, band, weights)
        return nest.run()

    def _penalty_of(self, band: _Band, penalty: Array) -> Array:
        """That of the band's rows on five axes, with whole vectors, and what later columns add."""
        columns = band.columns
        if penalty.shape[3] > 1:
            rows = penalty[..., band.first : band.first + band.height * band.times, :columns]
        else:
            rows = penalty[..., :columns]
        if self.causal_from is not None:
            last = np.arange(band.height)[:, None] + (self.causal_from + band.first)
            rows = np.where(np.arange(columns) > last, float32.type(np.inf), rows)
        return whole_vectors(rows, fill=np.inf)

    def _phi_of(self, band: _Band) -> Array:
        assert self.phi is not None
        rows = self.phi[..., band.first : band.first + band.height * band.times, :]
        return self._rows(rows[..., : band.columns + -band.columns % LANES], band)

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
        """The columns that a band sees of keys or values, or of their gradients."""
        return self._stacked(x[..., : band.columns, :])

    def _stacked(self, x: Array) -> Array:
        """(B, H, …) with the longer one first: threads share it."""
        batch, heads = self.size[:2]
        return x if batch >= heads else x.swapaxes(0, 1)
