"""Gradients of attention in blocks, which makes the scores of each block anew."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import memory
from ..autograd import sum_to_shape
from ..blas import gemm_batch
from ..dtypes import Array
from ._blocks import Block
from ._distance import DistanceGrads
from ._in_blocks import Keys, Task, Unit, Work
from ._kernels import EXPONENTIAL
from ._weights import score_gradients


class KeyGrads:
    """The gradients of one unit's keys and values, side by side in memory as products like it."""

    def __init__(self, keys: Keys) -> None:
        k, v = keys.keys[:, :, 0], keys.values[:, :, 0]
        self.k = memory.empty((*k.shape[:-1], k.shape[-1] - 2), k.dtype)
        self.v = memory.empty((*v.shape[:-1], v.shape[-1] - 1), v.dtype)
        self.k[...] = 0
        self.v[...] = 0


def _zeros_like(array: Array) -> Array:
    zeros = memory.empty_like(array)
    zeros[...] = 0
    return zeros


#: Inputs that the distance bias is made of.
_OF_BIAS = ("distance", "slopes", "rates")


class Grads:
    """The gradients of one problem, as the blocks add to them."""

    def __init__(
        self,
        work: Work,
        needs: dict[str, bool],
        q: Array,
        k: Array,
        v: Array,
        extra: dict[str, Array],
        into: dict[str, Array | None],
    ) -> None:
        self.work = work
        self.needs = needs
        self.shapes = {name: array.shape for name, array in extra.items()}
        # Sums over rows have a place per chunk of rows, added up at the end.
        chunks = 1 + max((task.chunk for task in work.tasks), default=0)
        self.into_q = into["q"] is not None
        self.whole_q = memory.empty_like(q) if into["q"] is None else into["q"]
        self.q = work.group(self.whole_q)
        self.k, self.v = (
            [_zeros_like(like) if first is None else first]
            + [_zeros_like(like) for _ in range(chunks - 1)]
            for like, first in ((k, into["k"]), (v, into["v"]))
        )
        self.bias: DistanceGrads | None = None
        self.mask: list[Array] | None = None
        if work.additive is not None and needs["mask"]:
            # With an axis of rows, every chunk adds to rows of its own.
            places = chunks if work.additive.shape[3] == 1 else 1
            self.mask = [np.zeros(work.additive.shape, q.dtype) for _ in range(places)]
        if work.bias is not None and any(needs.get(name) for name in _OF_BIAS):
            self.bias = DistanceGrads(work.bias, needs, work.q.shape[:3], chunks)

    def add(
        self,
        task: Task,
        block: Block,
        buffers: list[Any],
        keys: Keys,
        sums: KeyGrads,
        grad: Array,
        out: Array,
        log_sums: Array,
    ) -> None:
        """One block's part of every gradient."""
        work = self.work
        queries = work.queries(block, -block.of(log_sums, columns=False)[..., 0])
        weights, parts = work.scores(block, buffers[0], keys.keys, queries)
        grad = block.of(grad, columns=False)
        # Σ_j weights·(grad·v) of a row is grad·out: no pass over the block is needed for it.
        out = block.of(out, columns=False)
        delta = np.einsum("...e,...e->...", grad, out)
        values = keys.values[..., block.columns, :].swapaxes(-1, -2)
        slope = buffers[1](weights.shape)
        grad_k, grad_v = sums.k[..., block.columns, :], sums.v[..., block.columns, :]
        keep = None
        if work.settings.dropout:
            keep = work.keep(block, buffers[2](weights.shape))
            gemm_batch(grad, values[..., :-1, :], slope)
            np.multiply(slope, keep, out=slope)
            np.subtract(slope, delta[..., None], out=slope)
        else:
            extended = memory.empty((*grad.shape[:-1], grad.shape[-1] + 1), grad.dtype)
            extended[..., :-1] = grad
            np.negative(delta, out=extended[..., -1])  # meets the column of ones
            gemm_batch(extended, values, slope)
        sums_of_phi = None
        if work.in_kernels:
            sums_of_phi = score_gradients(weights, slope, parts)
        else:
            EXPONENTIAL(weights, out=weights)
            np.multiply(slope, weights, out=slope)
        kept = weights if keep is None else np.multiply(keep, weights, out=keep)
        _add_over_group(kept, grad, grad_v)
        gemm_batch(
            *(slope, keys.keys[..., block.columns, :-2], block.of(self.q, columns=False)),
            alpha=work.settings.scale,
            beta=1.0 if self.into_q else 0.0,
        )
        _add_over_group(slope, queries[..., :-2], grad_k, alpha=1 / float(work.unit))
        if self.mask is not None:
            target = block.of(self.mask[task.chunk % len(self.mask)])
            target += sum_to_shape(slope, target.shape)
        if self.bias is not None:
            self.bias.add(block, task.chunk, parts, slope, sums_of_phi)

    def add_keys(self, task: Task, unit: Unit, sums: KeyGrads) -> None:
        """Add a unit's sums to the gradients of k and v."""
        for total, part in ((self.k, sums.k), (self.v, sums.v)):
            place = total[task.chunk][unit]
            np.add(place, part, out=place)

    def finish(self) -> dict[str, Array]:
        """All gradients, in the inputs' shapes."""
        for partial in (self.k, self.v, self.mask or []):
            for other in partial[1:]:
                partial[0] += other
        results = {"q": self.whole_q, "k": self.k[0], "v": self.v[0]}
        if self.mask is not None:
            results["mask"] = self.mask[0].reshape(self.shapes["mask"])
        if self.bias is not None:
            results |= self.bias.finish(self.shapes)
        return results


def _add_over_group(scores: Array, rows: Array, out: Array, alpha: float = 1.0) -> None:
    """out += alpha·scoresᵀ·rows, summed over the query heads that share a key head."""
    for g in range(scores.shape[2]):
        gemm_batch(scores[:, :, g].swapaxes(-1, -2), rows[:, :, g], out, alpha=alpha, beta=1.0)
