"""Attention of long rows, an operation by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from .. import memory, parallel
from ..blas_library import uses_tiles
from ..dtypes import Array, float32
from ..machine import Nest, kernel_info
from ._blocks import Block
from ._distance import whole_vectors
from ._long_rows import Band, LongRows
from ._nested import MOST_COLUMNS, MOST_FEATURES, Nested, rows_together

#: Rows from which on it is worth it.
_FEWEST = 64


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
        self._log_sums, total = self._by_row(), self._by_row()
        self._run(lambda rows: rows.forward(self._group(out), self._log_sums, total))

    def backward(
        self, grad: Array, out: Array, needs: dict[str, bool], shapes: dict[str, tuple[int, ...]]
    ) -> dict[str, Array]:
        """As `Nested.backward`; none of the mask, of distances and of rates."""
        batch, heads, _, count, _ = self.size
        grad, out = (self._group(rows_together(x)) for x in (grad, out))
        given = dict(zip("qkv", self.given, strict=True))
        results = {name: memory.empty_like(x) for name, x in given.items() if needs[name]}
        into = {name: (made[:, :, None], False) for name, made in results.items()}
        sums, of_bias = self._by_row(), None

        def nests(rows: LongRows) -> Iterator[Nest]:
            nonlocal of_bias
            if self.bias is not None:
                of_bias = np.zeros((rows.block_count, *sums.shape), float32)
            return rows.backward(grad, out, self._log_sums, sums, into, of_bias)

        self._run(nests)
        if of_bias is not None and needs.get("slopes"):
            by_head = of_bias.reshape(-1, batch, heads, count)
            summed = np.add.reduce(by_head, axis=(0, 1, 3), dtype=float)
            results["slopes"] = (-summed).astype(float32).reshape(shapes["slopes"])
        return results

    def _by_row(self) -> Array:
        return np.empty((*self.size[:4], 1), float32)

    def _run(self, nests: Callable[[LongRows], Iterator[Nest]]) -> None:
        """Run nests; what tiles can't split is made without them."""
        bias, factors = self.bias, None
        if bias is not None:
            self.parts = bias.parts(Block.of_all(self.size))
            self.phi = bias.whole_vectors(self.parts, self.size)
            factors = -bias.slopes[None]
        penalty = partial(self._penalty_of, self._penalty(None))
        for tiles in (uses_tiles(), False):
            rows = LongRows(
                *(self.q, self.k, self.v, self.scale, penalty),
                causal_from=self.causal_from,
                phi=self.phi,
                factors=factors,
                tiles=tiles,
            )
            if all([nest.run() for nest in nests(rows)]):
                break
        self._forget()

    def _penalty_of(self, penalty: Array, band: Band) -> Array:
        """That of a band, with whole vectors; and what causal rows don't see."""
        own = penalty[..., band.rows if penalty.shape[3] > 1 else slice(None), band.columns]
        if band.partly:
            last = np.arange(band.height)[:, None] + ((self.causal_from or 0) + band.first)
            columns = np.arange(band.columns.start, band.columns.stop)
            own = np.where(columns > last, float32.type(np.inf), own)
        return whole_vectors(own, fill=np.inf)
