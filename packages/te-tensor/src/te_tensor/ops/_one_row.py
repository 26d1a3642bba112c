"""Attention of one row a head to keys in memory that has room for more: one token of generation."""

from __future__ import annotations

from itertools import product as pairs

import numpy as np

from ..dtypes import Array, float32
from ..machine import Column, Matrix, Scalar, Steps, exponential, kernel
from ..machine.product import head


@kernel
def _scores(keys: Matrix, query: Matrix, scores: Column) -> None:
    scores.store((keys.load() * query.load()).sum())


@kernel
def _weights(weights: Matrix, scale: Scalar) -> None:
    scores = weights.load() * scale.load()
    shares = weights.keep(exponential(scores - scores.max(), tiny=False))
    weights.store(shares * (1.0 / shares.sum()))


class OneRow:
    """softmax(scale·q·kᵀ)·v, written down as steps for the first `length` keys and values.

    Args:
        steps: where the calls are added.
        q: shape (B, H, d).
        k: shape (B, K, T, d), T the most keys that there may be; features contiguous, as below.
        v: shape (B, K, T, e).
        out: shape (B, H, e); gets the weighted means of v.
        scale: factor of the products.
    """

    def __init__(
        self, steps: Steps, q: Array, k: Array, v: Array, out: Array, scale: float
    ) -> None:
        batch, heads, _ = q.shape
        group = heads // k.shape[1]
        weights = np.empty((batch * heads, k.shape[2]), float32)
        self._weights = weights
        self._features = v.shape[3]
        self._by_row = v.strides[2]
        self._steps = steps
        each = [(b, h, h // group) for b, h in pairs(range(batch), range(heads))]
        rows = [
            steps.kernel(_scores, k[b, key], q[b, h], row[:, None])
            for (b, h, key), row in zip(each, weights, strict=True)
        ]
        self._shares = steps.kernel(_weights, weights, scale)
        nothing = np.zeros(self._features, float32)
        sizes = [
            steps.product(row[None], v[b, key], nothing, out[b, h][None])
            for (b, h, key), row in zip(each, weights, strict=True)
        ]
        #: Where the records say how many keys there are.
        self._rows = np.array(rows)
        self._sizes = np.array(sizes)[:, None] + np.arange(len(self._head(1)))

    def _head(self, length: int) -> tuple[int, ...]:
        return head(1, length, self._features, by_row=self._by_row)

    def set_length(self, length: int) -> None:
        """How many keys there are from now on, at least 1."""
        self._steps.change(self._rows, [length])
        shares = _weights.program().head(len(self._weights), length)
        self._steps.change(slice(self._shares, self._shares + len(shares)), shares)
        self._steps.change(self._sizes, self._head(length))
