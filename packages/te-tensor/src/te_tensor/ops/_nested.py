"""Attention of many small heads as a nest of machine code: each head stays in cache to its end."""

from __future__ import annotations

from math import inf, prod

import numpy as np

from .. import memory
from ..autograd import sum_to_shape
from ..dtypes import Array, bool_, float32
from ..machine import (
    LANES,
    Column,
    Matrix,
    Nest,
    Scalar,
    Value,
    exponential,
    kernel,
    kernel_info,
    logarithm,
    maximum,
    times_plus,
    where_greater,
)
from ._blocks import Block, grouped
from ._distance import DistanceBias, DistanceGrads, Part, whole_vectors
from ._weights import LARGEST

#: Columns and features up to which a head's matrices stay in the first-level cache.
MOST_COLUMNS, MOST_FEATURES = 256, 128
_TINY = float(np.finfo(float32).tiny)
#: Scores below which a nest takes longer to set up than NumPy's calls take.
_LEAST_SCORES = 1 << 14


def nests(q: Array, k: Array, v: Array) -> bool:
    """Whether a small problem is made as a nest."""
    return (
        q.dtype is float32
        and prod(q.shape[:3]) * k.shape[2] >= _LEAST_SCORES
        and 0 < k.shape[2] <= MOST_COLUMNS
        and 0 < q.shape[3] <= MOST_FEATURES
        and 0 < v.shape[3] <= MOST_FEATURES
        and all(x.strides[-1] == x.itemsize and x.strides[-2] for x in (q, k, v))
        and kernel_info()["kernels"] == "avx512"
    )


def _write_weights(weights: Matrix, scores: Value, penalty: Matrix) -> None:
    """The softmax of a row, zeros where all of it is hidden."""
    seen = weights.keep(_seen(scores, penalty))
    top = maximum(-LARGEST, seen.max())
    shares = weights.keep(exponential(seen - top, tiny=False))
    weights.store(shares * (1.0 / maximum(_TINY, shares.sum())))


def _seen(scores: Value, penalty: Matrix) -> Value:
    off = penalty.load()
    return where_greater(off, LARGEST, -inf, scores - off)


def _write_some_weights(
    weights: Matrix, scores: Value, penalty: Matrix, top: Column, total: Column, factor: Column
) -> None:
    """Some columns of a softmax before it is divided by the row's sum, as far as it is known.

    So Milakov and Gimelshein do it, "Online normalizer calculation for softmax" (2018).
    """
    seen = weights.keep(_seen(scores, penalty))
    before = top.load()
    now = maximum(before, seen.max())
    shares = weights.keep(exponential(seen - now, tiny=False))
    weights.store(shares)
    share = exponential(before - now, tiny=False)
    factor.store(share)
    total.store(times_plus(total.load(), share, shares.sum()))
    top.store(now)


def _write_weights_again(weights: Matrix, scores: Value, penalty: Matrix, log_sums: Column) -> None:
    """The softmax in one sweep, with the logarithms of rows' sums."""
    weights.store(exponential(_seen(scores, penalty) - log_sums.load(), tiny=False))


def _biased(weights: Matrix, phi: Matrix, bias: Column, scale: Scalar) -> Value:
    """Scores of products, with phi times a factor for each row."""
    return times_plus(phi.load(), bias.load(), weights.load() * scale.load())


@kernel
def plain_weights(weights: Matrix, penalty: Matrix, scale: Scalar) -> None:
    """Turn products of queries and keys into shares, what is hidden into 0."""
    _write_weights(weights, weights.load() * scale.load(), penalty)


@kernel
def biased_weights(
    weights: Matrix, penalty: Matrix, phi: Matrix, bias: Column, scale: Scalar
) -> None:
    """The same with a distance bias: phi times a factor for each row."""
    _write_weights(weights, _biased(weights, phi, bias, scale), penalty)


@kernel
def plain_weights_so_far(
    weights: Matrix, penalty: Matrix, top: Column, total: Column, factor: Column, scale: Scalar
) -> None:
    """As `plain_weights`, of some columns, yet to be divided by the sums of rows.

    The largest number so far and the sum so far are brought up to date; what earlier columns gave
    is to be multiplied with the factor.
    """
    scores = weights.load() * scale.load()
    _write_some_weights(weights, scores, penalty, top, total, factor)


@kernel
def biased_weights_so_far(
    weights: Matrix,
    penalty: Matrix,
    phi: Matrix,
    bias: Column,
    top: Column,
    total: Column,
    factor: Column,
    scale: Scalar,
) -> None:
    """The same with a distance bias."""
    scores = _biased(weights, phi, bias, scale)
    _write_some_weights(weights, scores, penalty, top, total, factor)


@kernel
def multiply_rows(out: Matrix, factor: Column) -> None:
    """Multiply each row with a number."""
    out.store(out.load() * factor.load())


@kernel
def divide_by_sums(out: Matrix, total: Column, top: Column) -> None:
    """Divide rows by their sums, and add the logarithms of these to the largest numbers."""
    known = maximum(_TINY, total.load())
    out.store(out.load() * (1.0 / known))
    top.store(top.load() + logarithm(known))


def _of_scores(of_scores: Matrix, weights: Matrix) -> Value:
    upstream, shares = of_scores.load(), weights.load()
    return shares * (upstream - (shares * upstream).sum())


@kernel
def plain_gradient(of_scores: Matrix, weights: Matrix, scale: Scalar) -> None:
    """Turn gradients of shares into those of products."""
    of_scores.store(_of_scores(of_scores, weights) * scale.load())


@kernel
def biased_gradient(
    of_scores: Matrix, weights: Matrix, phi: Matrix, of_bias: Column, scale: Scalar
) -> None:
    """The same, with what the row adds to the gradient of its slope."""
    found = _of_scores(of_scores, weights)
    of_scores.store(found * scale.load())
    of_bias.store((found * phi.load()).sum())


@kernel
def plain_weights_and_gradient(
    weights: Matrix,
    of_scores: Matrix,
    penalty: Matrix,
    log_sums: Column,
    sums: Column,
    scale: Scalar,
) -> None:
    """As `plain_weights` and `plain_gradient`, of some columns.

    For whole rows, the logarithms of their sums are known, and the sums of weights times gradients.
    """
    _write_weights_again(weights, weights.load() * scale.load(), penalty, log_sums)
    found = weights.load() * (of_scores.load() - sums.load())
    of_scores.store(found * scale.load())


@kernel
def biased_weights_and_gradient(
    weights: Matrix,
    of_scores: Matrix,
    penalty: Matrix,
    phi: Matrix,
    bias: Column,
    log_sums: Column,
    sums: Column,
    of_bias: Column,
    scale: Scalar,
) -> None:
    """The same with a distance bias; and what the row adds to the gradient of its slope."""
    _write_weights_again(weights, _biased(weights, phi, bias, scale), penalty, log_sums)
    found = weights.load() * (of_scores.load() - sums.load())
    of_scores.store(found * scale.load())
    of_bias.store((found * phi.load()).sum())


@kernel
def row_products(a: Matrix, b: Matrix, sums: Column) -> None:
    """The sums of products of two rows."""
    sums.store((a.load() * b.load()).sum())


class Nested:
    """softmax(scale·q·kᵀ + mask - bias)·v, a head at a time.

    Args:
        q: shape (B, H, S, d).
        k: shape (B, K, T, d).
        v: shape (B, K, T, e).
        scale: factor of the products.
        mask: broadcasts to (B, H, S, T), boolean or additive.
        bias: what goes by distances.
        causal_from: the column that row 0 stands at, where rows see no column behind their own.
        keep: keep the weights of all heads, for backward; without, memory for those of one head
            serves all of them, on one thread.
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
        *,
        keep: bool = True,
    ) -> None:
        self.given = q, k, v
        self.scale, self.mask, self.bias = scale, mask, bias
        self.causal_from, self.keep = causal_from, keep
        self.key_heads = k.shape[1]
        self.q = self._group(q)
        self.k, self.v = k[:, :, None], v[:, :, None]
        self.size = (*self.q.shape[:4], k.shape[2])
        #: Shares that sum to 1 in a row, 0 behind the last column; those of the last head that was
        #: gone through, where they aren't kept.
        self.weights = np.empty(0, float32)
        self.parts: list[Part] = []
        self.phi: Array | None = None

    def _begin(self) -> Nest:
        """A nest that makes the weights."""
        bias = self.bias
        self.parts = [] if bias is None else bias.parts(Block.of_all(self.size))
        self.phi = None if bias is None else bias.whole_vectors(self.parts, self.size)
        penalty = whole_vectors(self._penalty(self.causal_from), fill=inf)
        lead = self.size[:3] if self.keep else (1, 1, 1)
        self.weights = memory.empty((*lead, self.size[3], penalty.shape[-1]), float32)
        nest = Nest(*self.size[:3], alone=not self.keep)
        nest.product(self.q, self.k.swapaxes(-1, -2), self.weights)
        if bias is None:
            nest.kernel(plain_weights, self.weights, penalty, self.scale)
        else:
            slopes = -bias.slopes[None]
            nest.kernel(biased_weights, self.weights, penalty, self.phi, slopes, self.scale)
        return nest

    def _group(self, x: Array) -> Array:
        return grouped(x, self.key_heads)

    def _penalty(self, causal_from: int | None) -> Array:
        """What is subtracted from scores, on five axes of which the last one is T long."""
        rows, columns = self.size[3:]
        penalty = np.zeros((1, 1, 1, 1, columns), float32)
        hidden = [_on_heads(part, part.hidden, self.size) for part in self.parts]
        mask = self.mask
        if mask is not None:
            mask = self._group(mask[None, None] if mask.ndim == 2 else mask)
            if mask.dtype == bool_:
                hidden.append(~mask)
            else:
                penalty = penalty - mask
        if causal_from is not None:
            last = np.arange(causal_from, causal_from + rows)[:, None]
            hidden.append((np.arange(columns) > last)[None, None, None])
        for where in hidden:
            if where is not None:
                penalty = np.where(where, float32.type(inf), penalty)
        return penalty

    def mix(self, out: Array) -> None:
        """Write the weighted means of v, shape (B, H, S, e)."""
        nest = self._begin()
        nest.product(self.weights[..., : self.size[4]], self.v, self._group(out))
        nest.run()
        if not self.keep:
            self._forget()

    def _forget(self) -> None:
        """Let go of what the next pass makes anew."""
        self.weights, self.parts, self.phi = np.empty(0, float32), [], None

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
        batch, _, _, rows, columns = self.size
        grad = self._group(rows_together(grad))
        nest = Nest(*self.size[:3]) if self.keep else self._begin()
        whole = any(map(needs.get, ("mask", "distance", "rates")))
        lead = self.size[:3] if whole else (batch if self.keep else 1, 1, 1)
        of_vectors = memory.empty((*lead, rows, columns + -columns % LANES), float32)
        of_scores = of_vectors[..., :columns]
        factor = 1.0 if whole else self.scale
        of_bias = np.empty((*self.size[:4], 1), float32)
        nest.product(grad, self.v.swapaxes(-1, -2), of_vectors)
        if self.phi is None or not needs["slopes"]:
            nest.kernel(plain_gradient, of_vectors, self.weights, factor)
        else:
            nest.kernel(biased_gradient, of_vectors, self.weights, self.phi, of_bias, factor)
        results = {}
        if needs["q"]:
            results["q"] = memory.empty_like(self.given[0])
            nest.product(of_scores, self.k, self._group(results["q"]))
        for name, given, a, b in (
            ("k", self.given[1], of_scores, self.q),
            ("v", self.given[2], self.weights[..., :columns], grad),
        ):
            if needs[name]:
                results[name] = self._over_group(nest, given, a, b)
        nest.run()
        if not self.keep:
            self._forget()
        if whole:
            for name in {"q", "k"} & results.keys():
                results[name] *= float32.type(self.scale)
            results |= self._of_scores(of_scores, needs, shapes)
        elif needs.get("slopes"):
            summed = np.add.reduce(of_bias.reshape(batch, -1), axis=0, dtype=np.float64)
            of_slopes = -summed.reshape(self.size[1] * self.size[2], -1).sum(axis=1)
            results["slopes"] = of_slopes.astype(float32).reshape(shapes["slopes"])
        return results

    def _over_group(self, nest: Nest, like: Array, a: Array, b: Array) -> Array:
        """aᵀ·b, summed over the query heads that share a key head."""
        result = memory.empty_like(like)
        shared = self.size[2] > 1
        if shared:
            result[...] = 0
        nest.product(a.swapaxes(-1, -2), b, result[:, :, None], add=shared)
        return result

    def _of_scores(
        self, of_scores: Array, needs: dict[str, bool], shapes: dict[str, tuple[int, ...]]
    ) -> dict[str, Array]:
        """What needs the gradient of all scores at once."""
        results = {}
        if needs.get("mask"):
            batch, keys, group, rows, columns = self.size
            shape = (1,) * (4 - len(shapes["mask"])) + shapes["mask"]
            of_mask = sum_to_shape(of_scores.reshape(batch, keys * group, rows, columns), shape)
            results["mask"] = of_mask.reshape(shapes["mask"])
        if self.bias is not None and any(map(needs.get, ("distance", "slopes", "rates"))):
            grads = DistanceGrads(self.bias, needs, self.size[:3], 1)
            grads.add(Block.of_all(self.size), 0, self.parts, of_scores)
            results |= grads.finish(shapes)
        return results


def rows_together(x: Array) -> Array:
    """An array whose rows are contiguous and a distance apart, itself where it is so."""
    fits = x.strides[-1] == x.itemsize and 0 not in x.strides
    return x if fits or not x.size else np.ascontiguousarray(x)


def _on_heads(part: Part, of_part: Array | None, size: tuple[int, ...]) -> Array | None:
    """What a part has for its heads, on all of them."""
    if of_part is None or part.place == (slice(None),) * 3:
        return of_part
    whole = np.zeros(size, of_part.dtype)
    whole[part.place] = of_part
    return whole


def write_penalty(penalty: Array, mask: Array | None, hidden: Array | None) -> None:
    """Write what is subtracted from scores: infinity where nothing is seen.

    Args:
        penalty: shape (b, s, T).
        mask: boolean (True: may attend) or added to scores, broadcast to it; None to see all.
        hidden: where nothing is seen besides, shape (s, T); None for nowhere.
    """
    if mask is None:
        penalty[...] = 0
    elif mask.dtype == bool_:
        np.copyto(penalty, np.where(mask, float32.type(0), float32.type(inf)))
    else:
        np.negative(mask, out=penalty)
    if hidden is not None:
        penalty[:, hidden] = inf
