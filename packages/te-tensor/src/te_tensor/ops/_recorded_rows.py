"""Attention of long rows in a recording."""

from __future__ import annotations

from collections.abc import Sequence

from .. import parallel
from ..dtypes import Array
from ..recorder import Into, Recorder, Unrecorded
from ._long_rows import Band, LongRows
from ._nested import MOST_COLUMNS, MOST_FEATURES
from ._recorded import RecordedHeads, write_negative

#: Rows up to which there are recordings: one is written down for each length.
_MOST_ROWS = 2048


def records_heads(batch: int, rows: int, heads: int, kv_heads: int, width: int) -> bool:
    """Whether `record_heads` takes problems of a size."""
    if not batch or not 0 < rows <= _MOST_ROWS or not 0 < width <= MOST_FEATURES:
        return False
    # Threads get whole heads of long rows, each with keys of its own.
    return rows <= MOST_COLUMNS or (heads == kv_heads and max(batch, heads) >= parallel.parts())


def record_heads(
    recorder: Recorder,
    given: Array,
    penalty: Array,
    *,
    heads: int,
    kv_heads: int,
    causal: bool = False,
    phi: Array | None = None,
    slopes: Array | None = None,
) -> Array:
    """Have softmax(scale·q·kᵀ - penalty - slopes·phi)·v written down.

    Args:
        recorder: where it is written down.
        given: queries, keys and values side by side, shape (B, S, (H + 2·K)·d).
        penalty: shape (b, s, whole vectors of S), b 1 or B, and s 1 or S; see `penalty_of`.
        heads: H.
        kv_heads: K.
        causal: row i attends to columns up to i only; the penalty says so, too.
        phi: shape (b, S, whole vectors of S), for a distance bias.
        slopes: of H numbers, for it.

    Returns:
        Shape (B, S, H·d), the result.

    Raises:
        Unrecorded: it is too large for this, or shapes don't fit.
    """
    if given.shape[1] <= MOST_COLUMNS:
        sizes = {"heads": heads, "kv_heads": kv_heads}
        return RecordedHeads(recorder, given, penalty, **sizes, phi=phi, slopes=slopes).out
    if heads != kv_heads or given.shape[2] % (3 * heads):
        raise Unrecorded(f"{heads} heads of {given.shape[2]} features, keys with {kv_heads}")
    return _RecordedRows(recorder, given, penalty, heads, causal, phi, slopes).out


class _RecordedRows:
    """As `record_heads` says, of long rows.

    Attributes:
        out: the result.
    """

    def __init__(
        self,
        recorder: Recorder,
        given: Array,
        penalty: Array,
        heads: int,
        causal: bool,
        phi: Array | None,
        slopes: Array | None,
    ) -> None:
        batch, rows, features = given.shape
        self._recorder, self._heads = recorder, heads
        self._by_row = batch, heads, 1, rows, 1
        self._penalty = penalty[:, None, None]
        factors = None
        if slopes is not None:
            factors = recorder.kept(1, heads, 1, 1, 1)
            write_negative(recorder, slopes, factors)
        q, k, v = self._sides(given)
        self._rows = LongRows(
            *(q, k, v, q.shape[-1] ** -0.5, self._penalty_of),
            causal_from=0 if causal else None,
            phi=None if phi is None else phi[:, None, None],
            factors=factors,
            tiles=recorder.tiles,
        )
        self.out = recorder.kept(batch, rows, features // 3)
        self._log_sums, total = recorder.kept(*self._by_row), recorder.brief(*self._by_row)
        nests = self._rows.forward(self._apart(self.out), self._log_sums, total)
        recorder.nests(recorder.forward, list(nests))
        recorder.release(total)
        recorder.done(self._log_sums)
        recorder.note((given,) if slopes is None else (given, slopes), self.out, self._back)

    def _apart(self, x: Array) -> Array:
        """(B, S, H·d) as (B, H, 1, S, d)."""
        return x.reshape(*x.shape[:2], self._heads, -1).transpose(0, 2, 1, 3)[:, :, None]

    def _sides(self, given: Array) -> list[Array]:
        """Queries, keys and values, or their gradients."""
        width = given.shape[2] // 3
        return [self._apart(given[..., at : at + width]) for at in range(0, 3 * width, width)]

    def _penalty_of(self, band: Band) -> Array:
        rows = band.rows if self._penalty.shape[3] > 1 else slice(None)
        return self._penalty[..., rows, band.whole_columns]

    def _back(self, grad: Array, outs: Sequence[Into | None]) -> None:
        """Backward, for which weights are made anew."""
        recorder, into, targets = self._recorder, outs[0], {}
        if into is not None:
            if into.start is not None and into.start is not into.out:
                recorder.copy(into.start, into.out)
            adds = into.start is not None
            targets = {n: (x, adds) for n, x in zip("qkv", self._sides(into.out), strict=True)}
        sums, of_bias, blocks = recorder.passing(*self._by_row), None, self._rows.block_count
        if len(outs) == 2:
            of_bias = recorder.passing(blocks, *self._by_row)
            recorder.zeros(of_bias)  # some rows don't see all columns
        given = self._apart(grad), self._apart(self.out), self._log_sums, sums
        recorder.nests(recorder.backward, list(self._rows.backward(*given, targets, of_bias)))
        if of_bias is not None and outs[1] is not None:
            batch, heads, _, rows, _ = self._by_row
            total = recorder.passing(heads * rows)
            recorder.sum_rows(of_bias.reshape(blocks * batch, -1), total)
            recorder.negative_sums(total.reshape(heads, rows), outs[1])
