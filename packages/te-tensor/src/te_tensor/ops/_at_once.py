"""Attention of a small problem as one block, whose weights are kept for backward."""

from __future__ import annotations

import numpy as np

from .. import memory
from ..autograd import sum_to_shape
from ..blas import gemm_batch
from ..dtypes import Array, bool_
from ._blocks import Block
from ._distance import DistanceBias, DistanceGrads

#: The exponential of a score goes no higher than e to this power, so that sums of many of them,
#: times values, stay finite.
HIGHEST = 40.0
#: A sum of exponentials below this may have lost some: the row's true maximum is needed.
LOWEST_SUM = 1e-25


def hide_later(scores: Array, first: int) -> None:
    """A causal mask on rows of which the first stands at column `first`."""
    if first + 1 >= scores.shape[-1]:
        return
    row = np.arange(first, first + scores.shape[-2])[:, None]
    column = np.arange(first, scores.shape[-1])
    np.copyto(scores[..., first:], -np.inf, where=column > row)


class AtOnce:
    """softmax(scale·q·kᵀ + mask - bias)·v in as few calls as it takes.

    Args:
        q: shape (B, H, S, d).
        k: shape (B, K, T, d).
        v: shape (B, K, T, e).
        scale: factor of the products.
        mask: broadcasts to (B, H, S, T), boolean or additive.
        bias: what goes by distances.
        causal_from: the column that row 0 stands at, where rows see no column behind their own.
    """

    def __init__(
        self,
        q: Array,
        k: Array,
        v: Array,
        scale: float,
        mask: Array | None,
        bias: DistanceBias | None,
        causal_from: int | None,
    ) -> None:
        self.k, self.v, self.mask, self.bias = k, v, mask, bias
        self.scale = q.dtype.type(scale)
        batch, heads, rows, width = self.shape = q.shape
        keys, columns = k.shape[1:3]
        self.full = (batch, heads, rows, columns)
        # The rows of all query heads that share a key head are one matrix.
        self.by_key = (batch, keys, heads // keys * rows)
        self.queries = (q * self.scale).reshape(*self.by_key, width)
        #: Exponentials of the scores, (B, K, H/K·S, T), and their sums, (B, H, S, 1).
        self.weights = memory.empty((*self.by_key, columns), q.dtype)
        self.parts = [] if bias is None else bias.parts(self._whole())
        scores = self._scores(causal_from)
        # Along short rows NumPy is slow to find each one's maximum, so that is the second try.
        self.sums = np.empty(0)
        if scores.max(initial=0) < HIGHEST:
            self.sums = self._exponentials(scores)
            if self.sums.min(initial=1) >= LOWEST_SUM:
                return
            scores = self._scores(causal_from)
        # A row that may attend to nothing has a finite maximum too, and a sum that isn't 0.
        top = np.maximum.reduce(scores, axis=-1, keepdims=True, initial=np.finfo(q.dtype).min)
        self.sums = self._exponentials(np.subtract(scores, top, out=scores))
        self.sums[self.sums == 0] = 1

    def _whole(self) -> Block:
        batch, heads, rows, columns = self.full
        return Block.of_all((batch, self.by_key[1], heads // self.by_key[1], rows, columns))

    def _scores(self, causal_from: int | None) -> Array:
        """The scores with bias and masks, shape (B, H, S, T), in the memory of the weights."""
        products = gemm_batch(self.queries, self.k.swapaxes(-1, -2), self.weights)
        scores = products.reshape(self.full)
        by_group = scores.reshape(*self.by_key[:2], -1, *self.full[2:])
        for part in self.parts:
            place = by_group[part.place]
            bias = memory.empty(place.shape, scores.dtype)
            place -= np.multiply(part.phi, part.slopes, out=bias)
            if part.hidden is not None:
                np.copyto(place, -np.inf, where=part.hidden)
        if self.mask is not None and self.mask.dtype == bool_:
            np.copyto(scores, -np.inf, where=~self.mask)
        elif self.mask is not None:
            scores += self.mask
        if causal_from is not None:
            hide_later(scores, causal_from)
        return scores

    def _exponentials(self, scores: Array) -> Array:
        """The sums of rows of exponentials, which take the scores' place."""
        np.exp(scores, out=scores)
        sums: Array = np.einsum("...t->...", scores)[..., None]
        return sums

    def mix(self, out: Array) -> None:
        """Write the weighted means of v, shape (B, H, S, e)."""
        product = np.empty((*self.by_key, self.v.shape[3]), out.dtype)
        gemm_batch(self.weights, self.v, product)
        np.divide(product.reshape(out.shape), self.sums, out=out)

    def backward(
        self, grad: Array, out: Array, needs: dict[str, bool], shapes: dict[str, tuple[int, ...]]
    ) -> dict[str, Array]:
        """Gradients by the inputs' names.

        Args:
            grad: shape (B, H, S, e).
            out: what `mix` wrote.
            needs: whether an input needs one.
            shapes: those of the mask and of what the bias is made of.
        """
        grad = grad / self.sums
        # Σ_j weights·(grad·v) of a row is grad·out
        delta = np.einsum("...e,...e->...", grad, out).reshape(*self.by_key, 1)
        grad = grad.reshape(*self.by_key, grad.shape[3])
        of_scores = memory.empty_like(self.weights)
        gemm_batch(grad, self.v.swapaxes(-1, -2), of_scores)
        np.subtract(of_scores, delta, out=of_scores)
        np.multiply(of_scores, self.weights, out=of_scores)
        results = {}
        if needs["v"]:
            results["v"] = np.empty(self.v.shape, grad.dtype)
            gemm_batch(self.weights.swapaxes(-1, -2), grad, results["v"])
        if needs["k"]:
            results["k"] = np.empty(self.k.shape, grad.dtype)
            gemm_batch(of_scores.swapaxes(-1, -2), self.queries, results["k"])
        if needs["q"]:
            of_queries = gemm_batch(of_scores, self.k, np.empty_like(self.queries))
            results["q"] = np.multiply(of_queries, self.scale, out=of_queries).reshape(self.shape)
        if needs.get("mask"):
            shape = (1,) * (4 - len(shapes["mask"])) + shapes["mask"]
            of_mask = sum_to_shape(of_scores.reshape(self.full), shape)
            results["mask"] = of_mask.reshape(shapes["mask"])
        if self.bias is not None and any(map(needs.get, ("distance", "slopes", "rates"))):
            results |= self._of_bias(of_scores, needs, shapes)
        return results

    def _of_bias(
        self, of_scores: Array, needs: dict[str, bool], shapes: dict[str, tuple[int, ...]]
    ) -> dict[str, Array]:
        assert self.bias is not None
        batch, heads, rows, columns = self.full
        size = (batch, self.by_key[1], heads // self.by_key[1])
        grads = DistanceGrads(self.bias, needs, size, 1)
        grads.add(self._whole(), 0, self.parts, of_scores.reshape(*size, rows, columns))
        return grads.finish(shapes)
