"""Attention in a recording: forward and backward of its heads, each of them in cache to its end."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

import numpy as np

from ..dtypes import Array, bool_, float32
from ..machine import LANES, Matrix, Nest, kernel
from ..recorder import Into, Recorder, Unrecorded
from ._nested import (
    MOST_COLUMNS,
    MOST_FEATURES,
    biased_gradient,
    biased_weights,
    plain_gradient,
    plain_weights,
)


@kernel
def _negate(out: Matrix, source: Matrix) -> None:
    out.store(0.0 - source.load())


class RecordedHeads:
    """softmax(scale·q·kᵀ - penalty - slopes·phi)·v.

    Args:
        recorder: where it is written down.
        q: shape (B, S, H·d), as projections leave it.
        k: shape (B, T, K·d).
        v: likewise.
        penalty: shape (b, s, whole vectors of T), b 1 or B, and s 1 or S; see `penalty_of`.
        heads: H.
        kv_heads: K.
        phi: shape (b, S, whole vectors of T), for a distance bias.
        slopes: of H numbers, for it.

    Attributes:
        out: shape (B, S, H·d), the result.

    Raises:
        Unrecorded: it is too large for this, or shapes don't fit.
    """

    def __init__(
        self,
        recorder: Recorder,
        q: Array,
        k: Array,
        v: Array,
        penalty: Array,
        *,
        heads: int,
        kv_heads: int,
        phi: Array | None = None,
        slopes: Array | None = None,
    ) -> None:
        (batch, rows, features), columns = q.shape, k.shape[1]
        width = features // heads
        sides = (batch, columns, kv_heads * width)
        if features % heads or heads % kv_heads or not k.shape == v.shape == sides:
            raise Unrecorded(f"attention of q {q.shape}, k {k.shape} and v {v.shape}")
        if columns > MOST_COLUMNS or width > MOST_FEATURES:
            raise Unrecorded(f"attention to {columns} keys of {width} features")
        self._recorder, self._width = recorder, width
        self._size = batch, kv_heads, heads // kv_heads, rows, columns
        self._scale = width**-0.5
        self.out = recorder.kept(*q.shape)
        self._q, self._k, self._v = map(self._apart, (q, k, v))
        self._penalty = self._stack(penalty[:, None, None])
        self._phi = None if phi is None else self._stack(phi[:, None, None])
        weights = recorder.kept(*self._size[:4], penalty.shape[-1])
        self._weights = self._stack(weights)
        self._write(slopes)
        inputs = (q, k, v) if slopes is None else (q, k, v, slopes)
        recorder.note(inputs, self.out, self._back)

    def _apart(self, x: Array) -> Array:
        """(B, T, heads·d) as a stack of heads (B, K, heads / K, T, d)."""
        split = x.reshape(*x.shape[:2], self._size[1], -1, self._width)
        return self._stack(split.transpose(0, 2, 3, 1, 4))

    def _stack(self, x: Array) -> Array:
        """(B, K, …) with the longer one first: threads share it."""
        batch, kv_heads = self._size[:2]
        return x if batch >= kv_heads else x.swapaxes(0, 1)

    def _nest(self) -> Nest:
        batch, kv_heads, group = self._size[:3]
        return Nest(max(batch, kv_heads), min(batch, kv_heads), group)

    def _write(self, slopes: Array | None) -> None:
        """Forward."""
        recorder, nest = self._recorder, self._nest()
        nest.product(self._q, nest.transposed(self._k), self._weights)
        operands = self._weights, self._penalty
        if slopes is None or self._phi is None:
            nest.kernel(plain_weights, *operands, self._scale)
        else:
            factors = recorder.kept(slopes.size)
            recorder.forward.kernel(_negate, factors.reshape(1, -1), slopes.reshape(1, -1))
            own = self._stack(factors.reshape(1, *self._size[1:3], 1, 1))
            nest.kernel(biased_weights, *operands, self._phi, own, self._scale)
        nest.product(self._weights[..., : self._size[4]], self._v, self._apart(self.out))
        recorder.forward.nest(nest, recorder.kept)

    def _back(self, grad: Array, outs: Sequence[Into | None]) -> None:
        """Backward: what each head needs stays with its thread."""
        recorder, nest = self._recorder, self._nest()
        batch, kv_heads, group, rows, columns = self._size
        upstream = self._apart(grad)
        values = nest.transposed(self._v)
        of_scores = nest.own(rows, columns)
        nest.product(upstream, values, of_scores)
        of_slopes = recorder.passing(batch, kv_heads, group, rows, 1)
        if self._phi is None:
            nest.kernel(plain_gradient, of_scores, self._weights, self._scale)
        else:
            operands = of_scores, self._weights, self._phi, self._stack(of_slopes)
            nest.kernel(biased_gradient, *operands, self._scale)
        of_scores = of_scores.first(columns)
        shares = self._weights[..., :columns].swapaxes(-1, -2)
        for into, a, b in (
            (outs[0], of_scores, self._k),
            (outs[1], of_scores.turned, self._q),
            (outs[2], shares, upstream),
        ):
            if into is None:
                continue
            # A key head's gradient is the sum of those of all heads that it serves.
            add = into.start is not None or (into is not outs[0] and group > 1)
            if into.start is None and add:
                recorder.zeros(into.out, recorder.backward)
            elif into.start is not None and into.start is not into.out:
                recorder.copy(into.start, into.out, recorder.backward)
            nest.product(a, b, self._apart(into.out), add=add)
        recorder.backward.nest(nest, recorder.passing)
        if len(outs) == 4 and outs[3] is not None:
            total = recorder.passing(kv_heads * group * rows)
            by_element = of_slopes.reshape(batch, -1)
            recorder.total(by_element, Into(total, None), recorder.backward)
            recorder.negative_sums(total.reshape(-1, rows), outs[3])


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
    batch, height = (1, 1) if mask is None else mask.shape[:2]
    height = rows if causal else height
    penalty = np.full((batch, height, columns + -columns % LANES), inf, float32)
    seen = penalty[..., :columns]
    if mask is None:
        seen[...] = 0
    elif mask.dtype == bool_:
        np.copyto(seen, np.where(mask, float32.type(0), float32.type(inf)))
    else:
        np.negative(mask, out=seen)
    if causal:
        seen[:, np.triu(np.ones((rows, columns), bool_), 1)] = inf
    return penalty
