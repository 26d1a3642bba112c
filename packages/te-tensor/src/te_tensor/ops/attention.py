"""Attention with a distance bias, in blocks: the scores of all heads are never held at once.

The method is that of FlashAttention (Dao et al., arXiv:2205.14135), for one core's cache: forward
keeps the logarithm of each row's sum, and backward makes the scores anew, block by block.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil, prod, sqrt
from typing import Any, TypeAlias

import numpy as np

from .. import memory, parallel
from ..autograd import sum_to_shape
from ..blas import gemm_batch
from ..dtypes import Array, DType, bool_
from ..operation import Gradients, Operation, Sample
from ._kernels import keep_factors

#: Elements of a block of scores: two such blocks a thread are all that is held.
_BLOCK = 2 * parallel.BLOCK
#: Multiply-adds from which the work is spread over threads.
_PARALLEL_FROM = 1 << 22
#: The exponential of a score goes no higher than e to this power, so that sums of many of them,
#: times values, stay finite.
_HIGHEST = 40.0
#: Columns from which a pass that sums rows is quicker than one more column in a product.
_LONG_ROW = 128
#: A sum of exponentials below this may have lost some: the row's true maximum is needed.
_LOWEST_SUM = 1e-25


@dataclass(frozen=True)
class DistanceFunction:
    """The function phi of a distance bias, with its derivative; both map arrays to arrays."""

    phi: Callable[[Array], Array]
    derivative: Callable[[Array], Array]


def _reciprocal_of_successor(d: Array) -> Array:
    return np.asarray(1 / (1 + d))


#: The distance functions by name.
DISTANCE_FUNCTIONS = {
    "logarithmic": DistanceFunction(np.log1p, _reciprocal_of_successor),
    "gaussian": DistanceFunction(np.square, lambda d: d + d),
}


@dataclass(frozen=True)
class _Block:
    """A range of batch, key heads, query heads to a key head, and query rows."""

    batch: slice
    heads: slice
    group: slice
    rows: slice
    #: Columns that a causal mask leaves in sight.
    columns: slice
    #: Whether this is the whole problem.
    whole: bool

    def of(self, array: Array, *, rows: bool = True, columns: bool = True) -> Array:
        """This block of an array on (B, K, G, rows, columns); axes of length 1 stay whole."""
        if self.whole:
            return array
        wanted = (
            self.batch,
            self.heads,
            self.group,
            self.rows if rows else slice(None),
            self.columns if columns else slice(None),
        )
        return array[
            tuple(w if n > 1 else slice(None) for w, n in zip(wanted, array.shape, strict=True))
        ]


class Attention(Operation):
    """softmax(scale·q·kᵀ + mask - slopes·phi(distance))·v.

    Inputs: q (B, H, S, d), k (B, K, T, d) and v (B, K, T, e), where K divides H, and then those
    that `operands` names.

    Args:
        operands: names of the further inputs, in order: "mask" (S, T) or four axes that
            broadcast to (B, H, S, T), boolean (True: may attend) or additive; "distance"
            (S, T), (B, S, T) or (B, H, S, T), with "slopes" (1, H, 1, 1) or (H,).
        causal: row i attends to columns up to i only.
        bias_function: the name of phi in DISTANCE_FUNCTIONS.
        scale: factor of the products; 1/√d by default.
        dropout: probability of a zero among the attention weights.
        key: what dropout's random numbers follow from.
    """

    one_dtype = ("q", "k", "v")
    samples = (
        Sample((2, 2, 3, 4), (2, 2, 3, 4), (2, 2, 3, 4)),
        Sample(
            *((1, 4, 3, 2), (1, 2, 5, 2), (1, 2, 5, 3), (3, 5), (3, 5), (1, 4, 1, 1)),
            low=0.1,
            kwargs={
                "operands": ("mask", "distance", "slopes"),
                "bias_function": "gaussian",
                "scale": 0.7,
                "causal": True,
            },
        ),
        Sample(
            *((2, 2, 3, 2), (2, 2, 3, 2), (2, 2, 3, 2), (2, 3, 3), (2,)),
            low=0.1,
            kwargs={"operands": ("distance", "slopes"), "dropout": 0.5, "key": (7,)},
        ),
        Sample(
            *((2, 2, 3, 2), (2, 2, 3, 2), (2, 2, 3, 2), (2, 2, 3, 3), (1, 2, 1, 1)),
            inputs=(None, None, None, [[[[True, True, False]]], [[[False] * 3]]], None, None),
            nondiff=(3,),
            low=0.1,
            kwargs={"operands": ("mask", "distance", "slopes")},
        ),
    )

    def __init__(
        self,
        operands: tuple[str, ...] = (),
        causal: bool = False,
        bias_function: str = "logarithmic",
        scale: float | None = None,
        dropout: float = 0.0,
        key: tuple[int, ...] = (),
    ) -> None:
        self.operands = operands
        self.causal = causal
        self.bias_function = bias_function
        self.scale = scale
        self.dropout = dropout
        self.key = key

    def forward(self, q: Array, k: Array, v: Array, *extra: Array) -> Array:
        """The weighted means of v, shape (B, H, S, e), laid out in memory as q is."""
        named = dict(zip(self.operands, extra, strict=True))
        needs = dict(zip(("q", "k", "v", *self.operands), self.needs_grad, strict=True))
        work = _Work(self, needs, q, k, v, **named)
        out = memory.empty_like(q, (*q.shape[:-1], v.shape[-1]))
        log_sums = np.empty((*work.q.shape[:-1], 1), q.dtype)
        grouped = work.group(out)

        def run(index: int) -> None:
            scores = _Buffer(q.dtype)
            for unit, blocks in work.tasks[index].units():
                keys = _Keys(work, unit)
                for block in blocks:
                    work.forward(block, scores, keys, grouped, log_sums)

        parallel.parallel_for(run, len(work.tasks))
        self.save(work, out, log_sums, q, k, v, *extra)
        return out

    def backward(self, grad: Array) -> Gradients:
        """Gradients to all inputs but boolean masks."""
        return self.backward_into(grad, outs=(None,) * len(self.needs_grad))

    def backward_into(self, grad: Array, *, outs: Sequence[Array | None]) -> Gradients:
        """The same, those of q, k and v added to what is given."""
        work, out, log_sums, q, k, v, *extra = self.saved
        needs = dict(zip(("q", "k", "v", *self.operands), self.needs_grad, strict=True))
        into = dict(zip("qkv", outs, strict=False))
        grads = _Grads(work, needs, q, k, v, dict(zip(self.operands, extra, strict=True)), into)
        grouped_grad, grouped_out = work.group(grad), work.group(out)

        def run(index: int) -> None:
            task = work.tasks[index]
            buffers = [_Buffer(q.dtype) for _ in range(3 if self.dropout else 2)]
            for unit, blocks in task.units():
                keys = _Keys(work, unit)
                sums = _KeyGrads(keys)
                for block in blocks:
                    grads.add(task, block, buffers, keys, sums, grouped_grad, grouped_out, log_sums)
                grads.add_keys(task, unit, sums)

        parallel.parallel_for(run, len(work.tasks))
        results = grads.finish()
        return [results.get(name) if needed else None for name, needed in needs.items()]


@dataclass(frozen=True)
class _Task:
    """Blocks that one thread goes through in order; `chunk` tells where sums over rows go."""

    chunk: int
    blocks: list[_Block]

    def units(self) -> Iterator[tuple[_Unit, Iterator[_Block]]]:
        """The blocks that share keys and values, with where these are."""
        yield from itertools.groupby(self.blocks, lambda b: (b.batch, b.heads))


#: A range of batch and one of key heads.
_Unit: TypeAlias = tuple[slice, slice]


class _Buffer:
    """Memory for one block of scores, used again by the next block."""

    def __init__(self, dtype: DType) -> None:
        self.memory = np.empty(0, dtype)

    def __call__(self, shape: tuple[int, ...]) -> Array:
        size = prod(shape)
        if self.memory.size < size:
            self.memory = memory.empty((size,), self.memory.dtype)
        return self.memory[:size].reshape(shape)


class _Work:
    """One problem on five axes (B, K, G, S, T), G query heads to a key head, and its blocks."""

    def __init__(
        self,
        operation: Attention,
        needs: dict[str, bool],
        q: Array,
        k: Array,
        v: Array,
        mask: Array | None = None,
        distance: Array | None = None,
        slopes: Array | None = None,
    ) -> None:
        _check(q, k, v, mask, distance, slopes)
        self.operation = operation
        self.scale = 1 / sqrt(q.shape[-1] or 1) if operation.scale is None else operation.scale
        self.key_heads = k.shape[1]
        self.q = self.group(q)
        self.k, self.v = k[:, :, None], v[:, :, None]
        self.size = (*self.q.shape[:4], k.shape[2])
        self.blocked: Array | None = None
        self.additive: Array | None = None
        #: What a mask adds to whole columns, (B, K, T) or axes of length 1.
        self.of_columns: Array | None = None
        if mask is not None:
            mask = self.group(mask[None, None] if mask.ndim == 2 else mask)
            by_column = mask.shape[2] == mask.shape[3] == 1
            if mask.dtype != bool_:
                self.additive = mask
                self.of_columns = mask[:, :, 0, 0] if by_column else None
            elif by_column:
                hidden = q.dtype.type(-np.inf)
                self.of_columns = np.where(mask[:, :, 0, 0], q.dtype.type(0), hidden)
            else:
                self.blocked = ~mask
        self.distance: Array | None = None
        self.phi: Array | None = None
        self.slopes: Array | None = None
        if distance is not None and slopes is not None:
            self._prepare_distance(distance, slopes)
        self.bias_bound = 0.0 if self.additive is None else float(self.additive.max(initial=0))
        self.bias_is_bounded = self.slopes is None or bool((self.slopes >= 0).all())
        shared = [
            needs[name] and (array.ndim < 4 or array.shape[:2] != q.shape[:2])
            for name, array in (("mask", mask), ("distance", distance))
            if array is not None
        ]
        self.tasks = self._share_out(by_rows=any(shared))

    def _prepare_distance(self, distance: Array, slopes: Array) -> None:
        if distance.size and not distance.min() >= 0:  # the minimum is NaN if any element is
            raise ValueError("distance has negative or NaN entries: expected 0 … +inf")
        self.function = DISTANCE_FUNCTIONS[self.operation.bias_function]
        self.slopes = slopes.reshape(self.key_heads, -1, 1, 1)
        self.unreachable: Array | None = None
        if distance.ndim == 4:  # as large as the scores: phi is made block by block
            self.distance = self.group(distance)
            return
        held = distance[None, None, None] if distance.ndim == 2 else distance[:, None, None]
        phi = memory.empty(held.shape, held.dtype)
        parallel.elementwise(lambda o, d: np.copyto(o, self.function.phi(d)), phi, held)
        self.distance, self.phi, self.unreachable = _reachable(held, phi)

    def group(self, array: Array) -> Array:
        """(B, H, …) as (B, K, G, …), without copying; a single head that broadcasts gives 1, 1."""
        heads = array.shape[1]
        split = (1, 1) if heads == 1 else (self.key_heads, heads // self.key_heads)
        return array.reshape(array.shape[0], *split, *array.shape[2:])

    def _share_out(self, by_rows: bool) -> list[_Task]:
        """The blocks, shared out.

        A task holds all blocks of some key heads, so that sums over rows need no lock. Where
        sums over heads are wanted too (`by_rows`), a task holds some rows of all heads instead.
        """
        batch, heads, group, rows, columns = self.size
        if 0 in self.size[:4]:
            return []
        head_size = group * rows * columns
        work = batch * heads * head_size * self.q.shape[-1]
        threads = parallel.get_num_threads() if work >= _PARALLEL_FROM else 1
        per_unit = max(1, _BLOCK // max(head_size, 1))
        if per_unit >= heads:
            batches = parallel.split(
                batch, max(ceil(batch * heads / per_unit), min(threads, batch))
            )
            units = [(b, slice(0, heads)) for b in batches]
        else:
            pieces = parallel.split(heads, ceil(heads / per_unit))
            units = [(slice(b, b + 1), h) for b in range(batch) for h in pieces]
        if by_rows:
            chunks = parallel.split(rows, threads)
            return [
                _Task(c, [block for unit in units for block in self._blocks(*unit, chunk)])
                for c, chunk in enumerate(chunks)
            ]
        chunks = parallel.split(rows, ceil(threads / len(units)))
        return [
            _Task(c, list(self._blocks(*unit, chunk)))
            for unit in units
            for c, chunk in enumerate(chunks)
        ]

    def _blocks(self, batch: slice, heads: slice, chunk: slice) -> Iterator[_Block]:
        _, heads_of_all, group, _, columns = self.size
        count = (batch.stop - batch.start) * (heads.stop - heads.start)
        rows = chunk.stop - chunk.start
        whole = count * group * rows * columns <= _BLOCK
        alone = whole and count * rows == self.size[0] * heads_of_all * self.size[3]
        groups = [slice(0, group)] if whole else [slice(g, g + 1) for g in range(group)]
        height = max(16, _BLOCK // max(count * columns, 1))
        pieces = parallel.split(rows, 1 if whole else ceil(rows / height))
        for g in groups:
            for piece in pieces:
                span = slice(chunk.start + piece.start, chunk.start + piece.stop)
                seen = min(span.stop, columns) if self.operation.causal else columns
                yield _Block(batch, heads, g, span, slice(0, seen), alone and seen == columns)

    def scores(
        self, block: _Block, buffer: _Buffer, keys: Array, queries: Array
    ) -> tuple[Array, Any, Any]:
        """The block's scores with all biases and masks, its distances and their phi."""
        keys = keys[..., block.columns, :]
        scores = buffer((*queries.shape[:-1], keys.shape[-2]))
        distance, phi, unreachable = self._distances(block)
        beta = 0.0
        if self.slopes is not None:
            np.multiply(phi, -self._slopes(block), out=scores)
            beta = 1.0
        if self.additive is not None and self.of_columns is None:
            additive = block.of(self.additive)
            if beta:
                np.add(scores, additive, out=scores)
            else:
                np.copyto(scores, additive)
            beta = 1.0
        gemm_batch(queries, keys.swapaxes(-1, -2), scores, beta=beta)
        for hidden in (unreachable, None if self.blocked is None else block.of(self.blocked)):
            if hidden is not None:
                np.copyto(scores, -np.inf, where=hidden)
        if self.operation.causal:  # up to the first row's column, all rows see everything
            row = np.arange(block.rows.start, block.rows.stop)[:, None]
            column = np.arange(block.rows.start, block.columns.stop)
            np.copyto(scores[..., block.rows.start :], -np.inf, where=column > row)
        return scores, distance, phi

    def queries(self, block: _Block, of_rows: Array | float) -> Array:
        """The block's [q·scale, r, 1], to go with `_Keys.keys`."""
        q = block.of(self.q, columns=False)
        queries = memory.empty((*q.shape[:-1], q.shape[-1] + 2), q.dtype)
        np.multiply(q, q.dtype.type(self.scale), out=queries[..., :-2])
        queries[..., -2] = of_rows
        queries[..., -1] = 1
        return queries

    def _highest(self, block: _Block, keys: _Keys) -> Array | None:
        """For each row something that its scores exceed by no more than `_HIGHEST`.

        By Cauchy and Schwarz: no pass over the scores is needed. None where nothing is known.
        """
        if not self.bias_is_bounded:
            return None
        q = block.of(self.q, columns=False)
        lengths = np.sqrt(np.einsum("...d,...d->...", q, q))
        bound = lengths * (keys.longest * q.dtype.type(abs(self.scale)))
        bound += q.dtype.type(self.bias_bound - _HIGHEST)
        return np.maximum(bound, 0, out=bound) if np.isfinite(bound).all() else None

    def _slopes(self, block: _Block) -> Array:
        assert self.slopes is not None
        return self.slopes[block.heads, block.group]

    def _distances(self, block: _Block) -> tuple[Any, Any, Array | None]:
        """The block's distances and their phi, 0 where out of reach, and where that is."""
        if self.distance is None:
            return None, None, None
        distance = block.of(self.distance)
        if self.phi is None:
            return _reachable(distance, self.function.phi(distance))
        hidden = self.unreachable
        return distance, block.of(self.phi), None if hidden is None else block.of(hidden)

    def keep(self, block: _Block, out: Array) -> Array:
        """Dropout's factors of a block: the same in forward and backward, on any thread."""
        ranges = (block.batch, block.heads, block.group, block.rows)
        key = (*self.operation.key, *(r.start for r in ranges))
        return keep_factors(key, self.operation.dropout, out)

    def forward(
        self,
        block: _Block,
        buffer: _Buffer,
        keys: _Keys,
        out: Array,
        log_sums: Array,
    ) -> None:
        """One block of the output."""
        values = keys.values[..., block.columns, :]
        top = self._highest(block, keys)
        product = None
        if top is not None:
            scores, _, _ = self.scores(block, buffer, keys.keys, self.queries(block, -top))
            product, sums = self._weigh(block, np.exp(scores, out=scores), values)
            if sums.size and sums.min() < _LOWEST_SUM:
                product = None
        if top is None or product is None:
            scores, _, _ = self.scores(block, buffer, keys.keys, self.queries(block, 0.0))
            top = scores.max(axis=-1, initial=-np.inf)
            np.copyto(top, 0, where=top == -np.inf)  # a row that may attend to nothing
            np.subtract(scores, top[..., None], out=scores)
            product, sums = self._weigh(block, np.exp(scores, out=scores), values)
            np.copyto(sums, 1, where=sums == 0)
        np.divide(product, sums, out=block.of(out, columns=False))
        np.add(top[..., None], np.log(sums), out=block.of(log_sums, columns=False))

    def _weigh(self, block: _Block, weights: Array, values: Array) -> tuple[Array, Array]:
        """Weights times values, dropout applied, and the sums of the weights before it."""
        if weights.shape[-1] < _LONG_ROW and not self.operation.dropout:
            product = memory.empty((*weights.shape[:-1], values.shape[-1]), weights.dtype)
            gemm_batch(weights, values, product)  # the column of ones brings the sums
            return product[..., :-1], product[..., -1:]
        sums = np.einsum("...t->...", weights)[..., None]
        if self.operation.dropout:
            np.multiply(weights, self.keep(block, np.empty_like(weights)), out=weights)
        product = memory.empty((*weights.shape[:-1], values.shape[-1] - 1), weights.dtype)
        gemm_batch(weights, values[..., :-1], product)
        return product, sums


class _Keys:
    """Keys and values of one unit, laid out for the products.

    Products of [q·scale, r, 1] with [k, 1, c] are scores plus r and c: what is added to whole
    rows (r) and columns (c, from a mask) costs no pass over the scores. Products of weights with
    [v, 1] bring the weights' sums; those of [grad, -delta] with it subtract delta.
    """

    def __init__(self, work: _Work, unit: _Unit) -> None:
        k, v = work.k[unit], work.v[unit]
        self.keys = memory.empty((*k.shape[:-1], k.shape[-1] + 2), k.dtype)
        self.keys[..., :-2] = k
        self.keys[..., -2] = 1
        self.keys[..., -1] = 0
        if work.of_columns is not None:
            self.keys[..., -1] = work.of_columns[
                tuple(
                    part if length > 1 else slice(None)
                    for part, length in zip(unit, work.of_columns.shape, strict=False)
                )
            ][:, :, None]
        self.values = memory.empty((*v.shape[:-1], v.shape[-1] + 1), v.dtype)
        self.values[..., :-1] = v
        self.values[..., -1] = 1

    @functools.cached_property
    def longest(self) -> Array:
        """The length of the longest key of each head, shape (B, K, 1, 1)."""
        k = self.keys[..., :-2]
        squares = np.einsum("...d,...d->...", k, k)
        return np.asarray(np.sqrt(squares.max(axis=-1, keepdims=True, initial=0)))


class _KeyGrads:
    """The gradients of one unit's keys and values, side by side in memory as products like it."""

    def __init__(self, keys: _Keys) -> None:
        k, v = keys.keys[:, :, 0], keys.values[:, :, 0]
        self.k = memory.empty((*k.shape[:-1], k.shape[-1] - 2), k.dtype)
        self.v = memory.empty((*v.shape[:-1], v.shape[-1] - 1), v.dtype)
        self.k[...] = 0
        self.v[...] = 0


def _reachable(distance: Array, phi: Array) -> tuple[Array, Array, Array | None]:
    """Distances and phi with 0 where either is infinite, and where that is (None: nowhere)."""
    hidden = np.isinf(phi) | np.isinf(distance)
    if not hidden.any():
        return distance, phi, None
    zero = distance.dtype.type(0)
    return np.where(hidden, zero, distance), np.where(hidden, zero, phi), hidden


def _zeros_like(array: Array) -> Array:
    zeros = memory.empty_like(array)
    zeros[...] = 0
    return zeros


class _Grads:
    """The gradients of one problem, as the blocks add to them."""

    def __init__(
        self,
        work: _Work,
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
        self.slopes = np.zeros((chunks, *work.q.shape[:3]))
        self.mask: list[Array] | None = None
        self.distance: Array | None = None
        if work.additive is not None and needs["mask"]:
            # With an axis of rows, every chunk adds to rows of its own.
            places = chunks if work.additive.shape[3] == 1 else 1
            self.mask = [np.zeros(work.additive.shape, q.dtype) for _ in range(places)]
        if work.distance is not None and needs["distance"]:
            self.distance = np.zeros(work.distance.shape, q.dtype)

    def add(
        self,
        task: _Task,
        block: _Block,
        buffers: list[Any],
        keys: _Keys,
        sums: _KeyGrads,
        grad: Array,
        out: Array,
        log_sums: Array,
    ) -> None:
        """One block's part of every gradient."""
        work = self.work
        queries = work.queries(block, -block.of(log_sums, columns=False)[..., 0])
        scores, distance, phi = work.scores(block, buffers[0], keys.keys, queries)
        weights = np.exp(scores, out=scores)
        grad = block.of(grad, columns=False)
        # Σ_j weights·(grad·v) of a row is grad·out: no pass over the block is needed for it.
        out = block.of(out, columns=False)
        delta = np.einsum("...e,...e->...", grad, out)
        values = keys.values[..., block.columns, :].swapaxes(-1, -2)
        slope = buffers[1](weights.shape)
        grad_k, grad_v = sums.k[..., block.columns, :], sums.v[..., block.columns, :]
        if work.operation.dropout:
            keep = work.keep(block, buffers[2](weights.shape))
            gemm_batch(grad, values[..., :-1, :], slope)
            np.multiply(slope, keep, out=slope)
            np.subtract(slope, delta[..., None], out=slope)
            np.multiply(keep, weights, out=keep)
            _add_over_group(keep, grad, grad_v)
        else:
            extended = memory.empty((*grad.shape[:-1], grad.shape[-1] + 1), grad.dtype)
            extended[..., :-1] = grad
            np.negative(delta, out=extended[..., -1])  # meets the column of ones
            _add_over_group(weights, extended[..., :-1], grad_v)
            gemm_batch(extended, values, slope)
        np.multiply(slope, weights, out=slope)  # the gradient of the scores
        gemm_batch(
            *(slope, keys.keys[..., block.columns, :-2], block.of(self.q, columns=False)),
            alpha=work.scale,
            beta=1.0 if self.into_q else 0.0,
        )
        _add_over_group(slope, queries[..., :-2], grad_k)
        if self.mask is not None:
            target = block.of(self.mask[task.chunk % len(self.mask)])
            target += sum_to_shape(slope, target.shape)
        if work.slopes is not None and self.needs["slopes"]:
            by_row = np.einsum("...t,...t->...", slope, np.broadcast_to(phi, slope.shape))
            place = self.slopes[task.chunk, block.batch, block.heads, block.group]
            place -= by_row.sum(axis=-1, dtype=np.float64)
        if self.distance is not None:
            target = block.of(self.distance)
            np.multiply(slope, -work._slopes(block), out=slope)
            target += sum_to_shape(slope, target.shape) * work.function.derivative(distance)

    def add_keys(self, task: _Task, unit: _Unit, sums: _KeyGrads) -> None:
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
        if "slopes" in self.shapes:
            total = self.slopes.sum(axis=(0, 1)).astype(self.q.dtype)
            results["slopes"] = total.reshape(self.shapes["slopes"])
        if self.mask is not None:
            results["mask"] = self.mask[0].reshape(self.shapes["mask"])
        if self.distance is not None:
            results["distance"] = self.distance.reshape(self.shapes["distance"])
        return results


def _add_over_group(scores: Array, rows: Array, out: Array) -> None:
    """out += scoresᵀ·rows, summed over the query heads that share a key head."""
    for g in range(scores.shape[2]):
        gemm_batch(scores[:, :, g].swapaxes(-1, -2), rows[:, :, g], out, beta=1.0)


def _check(
    q: Array,
    k: Array,
    v: Array,
    mask: Array | None,
    distance: Array | None,
    slopes: Array | None,
) -> None:
    """Hold the shapes and dtypes that `Attention` documents."""
    fits = (
        q.ndim == k.ndim == v.ndim == 4
        and q.shape[0] == k.shape[0] == v.shape[0]
        and q.shape[3] == k.shape[3]
        and k.shape[1:3] == v.shape[1:3]
        and (k.shape[1] and q.shape[1] % k.shape[1] == 0)
    )
    if not fits:
        raise ValueError(
            f"attention got q {q.shape}, k {k.shape}, v {v.shape}: expected q (B, H, S, d), "
            "k (B, K, T, d), v (B, K, T, e), where K divides H"
        )
    (batch, heads, rows), columns = q.shape[:3], k.shape[2]
    full = (batch, heads, rows, columns)
    if mask is not None:
        broadcasts = mask.ndim in (2, 4) and all(
            n in (1, f) for n, f in zip(mask.shape[::-1], full[::-1], strict=False)
        )
        if not broadcasts:
            raise ValueError(
                f"attention mask has shape {mask.shape}: expected ({rows}, {columns}), or four "
                f"axes that broadcast to {full}"
            )
    if distance is None or slopes is None:
        return
    lead = distance.shape[:-2]
    fits = distance.shape[-2:] == (rows, columns) and (
        not lead
        or (len(lead) == 1 and lead[0] in (1, batch))
        or (len(lead) == 2 and lead[0] in (1, batch) and lead[1] in (1, heads))
    )
    if not fits:
        raise ValueError(
            f"distance has shape {distance.shape}: expected ({rows}, {columns}), "
            f"({batch}, {rows}, {columns}) or {full}"
        )
    if slopes.shape not in ((1, heads, 1, 1), (heads,)):
        raise ValueError(f"slopes have shape {slopes.shape}: expected (1, {heads}, 1, 1)")
