"""Attention of few rows in a plan: its heads one after the other, each in cache to its end."""

from __future__ import annotations

from functools import partial
from math import inf

import numpy as np

from .. import parallel
from ..dtypes import Array, bool_, float32
from ..machine import LANES
from ..plan import Plan, Unplanned
from ._distance import DistanceFunction, Prepared
from ._nested import MOST_COLUMNS, MOST_FEATURES, biased_weights, plain_weights, write_penalty

#: What products start from that add to nothing.
_NOTHING = np.zeros(max(MOST_COLUMNS, MOST_FEATURES), float32)


class PlannedHeads:
    """softmax(scale·q·kᵀ + mask - slopes·phi)·v, with masks and distances that each run may set.

    Args:
        plan: where it is written down.
        q: shape (B, S, H·d), as projections leave it.
        k: shape (B, T, K·d).
        v: likewise.
        heads: H.
        kv_heads: K.
        mask: the shape of masks, (b, s), each 1 or B, and 1 or S; None for no mask.
        causal: row i attends to columns up to i only.
        distances: how many distances there are, 1 or B; 0 for none.

    Attributes:
        out: shape (B, S, H·d), where the result is.

    Raises:
        Unplanned: it is too large for this, or shapes don't fit.
    """

    def __init__(
        self,
        plan: Plan,
        q: Array,
        k: Array,
        v: Array,
        *,
        heads: int,
        kv_heads: int,
        mask: tuple[int, int] | None = None,
        causal: bool = False,
        distances: int = 0,
    ) -> None:
        self._plan = plan
        (batch, rows, features), columns = q.shape, k.shape[1]
        width = features // heads
        sides = (batch, columns, kv_heads * width)
        if features % heads or heads % kv_heads or not k.shape == v.shape == sides:
            raise Unplanned(f"attention of q {q.shape}, k {k.shape} and v {v.shape}")
        if columns > MOST_COLUMNS or width > MOST_FEATURES:
            raise Unplanned(f"attention to {columns} keys of {width} features")
        self._q = q.reshape(batch, rows, heads, width)
        self._k, self._v = (x.reshape(batch, columns, kv_heads, width) for x in (k, v))
        self.out = np.empty(q.shape, q.dtype)
        self._scale = width**-0.5
        self._columns = columns
        whole = columns + -columns % LANES
        shape = (1, 1) if mask is None else mask
        # Behind the last column nothing is seen.
        self._penalty = np.full((shape[0], rows if causal else shape[1], whole), inf, float32)
        self._hidden: Array | None = None
        if causal:
            self._hidden = np.triu(np.ones((rows, columns), bool_), 1)
        self._phi = np.zeros((distances, rows, whole), float32)
        self._factors = np.zeros((heads, 1), float32)
        self._known: Array | None = None
        self.set_mask(None)
        pieces = parallel.split(batch * kv_heads, plan.threads)
        plan.side_by_side([partial(self._write, piece) for piece in pieces])

    def set_mask(self, mask: Array | None) -> None:
        """Boolean (True: may attend) or added to scores, shape (b, s, T); None to see all."""
        write_penalty(self._penalty[..., : self._columns], mask, self._hidden)

    def set_bias(self, prepared: Prepared, function: DistanceFunction, slopes: Array) -> None:
        """Distances, phi of them, and slopes, one a head.

        Raises:
            Unplanned: some distances are infinite.
        """
        _, hidden = prepared.phi(function)
        if hidden is not None:
            raise Unplanned("infinite distances")
        phi = prepared.whole_vectors(function)
        if phi is not self._known:
            np.copyto(self._phi, phi[:, 0, 0])
            self._known = phi
        np.negative(slopes.reshape(-1, 1), out=self._factors)

    def _write(self, units: slice) -> None:
        """The calls for some pairs of an element of the batch and a key head."""
        q, k, v, out = (
            x.transpose(0, 2, 1, 3)
            for x in (self._q, self._k, self._v, self.out.reshape(self._q.shape))
        )
        plan, columns, whole = self._plan, self._columns, self._penalty.shape[-1]
        rows, width = q.shape[2:]
        key_heads = k.shape[1]
        group = q.shape[1] // key_heads
        keys = np.zeros((width, whole + LANES), float32)[:, :whole]  # its lines apart in the cache
        weights = np.empty((rows, whole), float32)
        for unit in range(units.start, units.stop):
            batch, key = divmod(unit, key_heads)
            plan.turn(k[batch, key], keys)
            penalty = self._penalty[batch % len(self._penalty)]
            penalty = penalty[0] if len(penalty) == 1 else penalty
            for head in range(key * group, (key + 1) * group):
                plan.product(q[batch, head], keys, _NOTHING[:whole], weights)
                if len(self._phi):
                    phi = self._phi[batch % len(self._phi)]
                    factor = np.broadcast_to(self._factors[head], (rows, 1))
                    plan.kernel(biased_weights, weights, penalty, phi, factor, self._scale)
                else:
                    plan.kernel(plain_weights, weights, penalty, self._scale)
                values = v[batch, key]
                start = _NOTHING[: values.shape[1]]
                plan.product(weights[:, :columns], values, start, out[batch, head])
