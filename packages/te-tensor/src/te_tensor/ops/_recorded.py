"""Attention in a recording: forward and backward of its heads, each of them in cache to its end."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import inf

import numpy as np

from .. import memory
from ..dtypes import Array, bool_, float32
from ..machine import LANES, Matrix, Nest, Own, kernel
from ..recorder import Into, Recorder, Unrecorded
from ._nested import (
    MOST_COLUMNS,
    MOST_FEATURES,
    biased_gradient,
    biased_weights,
    plain_gradient,
    plain_weights,
    write_penalty,
)

#: Weights of all heads up to which they are kept for backward.
_MOST_WEIGHTS = 1 << 20


@kernel
def _negate(out: Matrix, source: Matrix) -> None:
    out.store(0.0 - source.load())


def write_negative(recorder: Recorder, numbers: Array, out: Array) -> None:
    """Have forward write numbers with the other sign."""
    recorder.forward.kernel(_negate, out.reshape(1, -1), numbers.reshape(1, -1))


class RecordedHeads:
    """softmax(scale·q·kᵀ - penalty - slopes·phi)·v; arguments are those of `record_heads`.

    Attributes:
        out: shape (B, S, H·d), the result.

    Raises:
        Unrecorded: it is too large for this, or shapes don't fit.
    """

    def __init__(
        self,
        recorder: Recorder,
        given: Array,
        penalty: Array,
        *,
        heads: int,
        kv_heads: int,
        phi: Array | None = None,
        slopes: Array | None = None,
    ) -> None:
        batch, rows, features = given.shape
        width, rest = divmod(features, heads + 2 * kv_heads)
        if rest or heads % kv_heads:
            raise Unrecorded(f"{heads} heads of {features} features, keys with {kv_heads}")
        if rows > MOST_COLUMNS or width > MOST_FEATURES:
            raise Unrecorded(f"attention to {rows} keys of {width} features")
        self._recorder, self._width = recorder, width
        self._size = batch, kv_heads, heads // kv_heads, rows
        self._scale = width**-0.5
        self.out = recorder.kept(batch, rows, heads * width)
        self._given = given
        self._penalty = self._stack(penalty[:, None, None])
        self._phi = None if phi is None else self._stack(phi[:, None, None])
        self._factors: Array | None = None
        whole = penalty.shape[-1]
        #: The weights of all heads; None where backward makes them anew.
        self._weights: Array | None = None
        if batch * heads * rows * whole <= _MOST_WEIGHTS:
            self._weights = self._stack(recorder.kept(*self._size, whole))
        self._write(slopes)
        recorder.note((given,) if slopes is None else (given, slopes), self.out, self._back)

    def _apart(self, x: Array) -> Array:
        """(B, S, heads·d) as a stack of heads (B, K, heads / K, S, d)."""
        split = x.reshape(*x.shape[:2], self._size[1], -1, self._width)
        return self._stack(split.transpose(0, 2, 3, 1, 4))

    def _sides(self, given: Array) -> list[Array]:
        """Queries, keys and values, or their gradients."""
        _, kv_heads, group, _ = self._size
        first = kv_heads * group * self._width
        ends = first, first + kv_heads * self._width
        sides = given[..., : ends[0]], given[..., ends[0] : ends[1]], given[..., ends[1] :]
        return list(map(self._apart, sides))

    def _stack(self, x: Array) -> Array:
        """(B, K, …) with the longer one first: threads share it."""
        batch, kv_heads = self._size[:2]
        return x if batch >= kv_heads else x.swapaxes(0, 1)

    def _nest(self) -> Nest:
        batch, kv_heads, group, _ = self._size
        return Nest(
            *(max(batch, kv_heads), min(batch, kv_heads), group), tiles=self._recorder.tiles
        )

    def _write(self, slopes: Array | None) -> None:
        """Forward."""
        recorder, nest = self._recorder, self._nest()
        if slopes is not None:
            self._factors = recorder.kept(slopes.size)
            write_negative(recorder, slopes, self._factors)
        weights = self._make_weights(nest)
        columns = self._size[3]
        shares = weights.first(columns) if isinstance(weights, Own) else weights[..., :columns]
        nest.product(shares, self._sides(self._given)[2], self._apart(self.out))
        recorder.nests(recorder.forward, [nest])

    def _make_weights(self, nest: Nest) -> Array | Own:
        """Shares that sum to 1 in a row, 0 behind the last column."""
        rows = self._size[3]
        weights = nest.own(rows, rows) if self._weights is None else self._weights
        q, k, _ = self._sides(self._given)
        nest.product(q, k.swapaxes(-1, -2), weights)
        if self._factors is None:
            nest.kernel(plain_weights, weights, self._penalty, self._scale)
        else:
            factors = self._stack(self._factors.reshape(1, *self._size[1:3], 1, 1))
            nest.kernel(biased_weights, weights, self._penalty, self._phi, factors, self._scale)
        return weights

    def _back(self, grad: Array, outs: Sequence[Into | None]) -> None:
        """Backward: what each head needs stays with its thread."""
        recorder, nest = self._recorder, self._nest()
        batch, kv_heads, group, rows = self._size
        q, k, v = self._sides(self._given)
        weights = self._make_weights(nest) if self._weights is None else self._weights
        upstream = self._apart(grad)
        of_scores = nest.own(rows, rows)
        nest.product(upstream, v.swapaxes(-1, -2), of_scores)
        of_slopes = recorder.passing(batch, kv_heads, group, rows, 1)
        if self._phi is None:
            nest.kernel(plain_gradient, of_scores, weights, self._scale)
        else:
            operands = of_scores, weights, self._phi, self._stack(of_slopes)
            nest.kernel(biased_gradient, *operands, self._scale)
        of_scores = of_scores.first(rows)
        if isinstance(weights, Own):
            shares: Array | Own = weights.first(rows).turned
        else:
            shares = weights[..., :rows].swapaxes(-1, -2)
        into = outs[0]
        if into is not None:
            if into.start is not None and into.start is not into.out:
                recorder.copy(into.start, into.out)
            elif into.start is None and group > 1:
                recorder.zeros(into.out)
            # A key head's gradient is the sum of those of all heads that it serves.
            adds = into.start is not None, into.start is not None or group > 1
            to_q, to_k, to_v = self._sides(into.out)
            nest.product(of_scores, k, to_q, add=adds[0])
            nest.product(of_scores.turned, q, to_k, add=adds[1])
            nest.product(shares, upstream, to_v, add=adds[1])
        recorder.nests(recorder.backward, [nest])
        if len(outs) == 2 and outs[1] is not None:
            total = recorder.passing(kv_heads * group * rows)
            recorder.sum_rows(of_slopes.reshape(batch, -1), total)
            recorder.negative_sums(total.reshape(-1, rows), outs[1])


def penalty_of(mask: Array | None, rows: int, columns: int, *, causal: bool) -> Array:
    """What is subtracted from scores: infinity where nothing is seen.

    Args:
        mask: boolean (True: may attend) or added to scores, shape (b, s, T); None to see all.
        rows: S.
        columns: T.
        causal: row i attends to columns up to i only.

    Returns:
        Shape (b, s, T and more, up to a whole vector).
    """
    if mask is None:
        return _penalty_without_mask(rows if causal else 1, columns, causal)
    penalty = _empty_penalty(len(mask), rows if causal else mask.shape[1], columns)
    hidden = np.triu(np.ones((rows, columns), bool_), 1) if causal else None
    write_penalty(penalty[..., :columns], mask, hidden)
    return penalty


@lru_cache(4)  # up to 16 MB each
def _penalty_without_mask(rows: int, columns: int, causal: bool) -> Array:
    penalty = _empty_penalty(1, rows, columns)
    hidden = np.triu(np.ones((rows, columns), bool_), 1) if causal else None
    write_penalty(penalty[..., :columns], None, hidden)
    penalty.flags.writeable = False
    return penalty


def _empty_penalty(batch: int, rows: int, columns: int) -> Array:
    penalty = memory.empty((batch, rows, columns + -columns % LANES), float32)
    penalty.fill(inf)
    return penalty
