"""Attention of a large problem, block by block: the scores of all heads are never held at once.

The method is that of FlashAttention (Dao et al., arXiv:2205.14135), for one core's cache: forward
keeps the logarithm of each row's sum, and backward makes the scores anew.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil, prod
from typing import TypeAlias

import numpy as np

from .. import memory, parallel
from ..blas import gemm_batch
from ..dtypes import Array, bool_
from ._at_once import HIGHEST, LOWEST_SUM, hide_later
from ._blocks import Block, Buffer, cut, grouped
from ._distance import DistanceBias, Part
from ._kernels import EXPONENT_OF_E, EXPONENTIAL, keep_factors
from ._weights import exponentials, runs_in_kernels

#: Elements of a block of scores: two such blocks a thread are all that is held.
_BLOCK = 2 * parallel.BLOCK
#: Multiply-adds from which the work is spread over threads. Below, calls are so short that threads
#: mostly wait for the GIL.
_PARALLEL_FROM = 1 << 26
#: Columns from which a pass that sums rows is quicker than one more column in a product.
_LONG_ROW = 128


def is_small(q: Array, k: Array) -> bool:
    """Whether the scores are one block that a thread makes quicker than several would."""
    scores = prod(q.shape[:3]) * k.shape[2]
    return bool(0 < scores <= _BLOCK and scores * q.shape[3] < _PARALLEL_FROM)


@dataclass(frozen=True)
class Settings:
    """What attention was made with; `scale` is the factor of the products."""

    scale: float
    causal: bool
    offset: int
    dropout: float
    key: tuple[int, ...]


@dataclass(frozen=True)
class Task:
    """Blocks that one thread goes through in order; `chunk` tells where sums over rows go."""

    chunk: int
    blocks: list[Block]

    def units(self) -> Iterator[tuple[Unit, Iterator[Block]]]:
        """The blocks that share keys and values, with where these are."""
        yield from itertools.groupby(self.blocks, lambda b: (b.batch, b.heads))


#: A range of batch and one of key heads.
Unit: TypeAlias = tuple[slice, slice]


class Work:
    """One problem on five axes (B, K, G, S, T), G query heads to a key head, and its blocks.

    Scores, and logarithms of their sums, are times `unit` from the start: EXPONENT_OF_E where NumPy
    makes the exponentials, so that EXPONENTIAL of them is e to the power of the scores.

    Args:
        settings: what attention was made with.
        needs: which of the inputs, by name, need gradients.
        q: shape (B, H, S, d).
        k: shape (B, K, T, d).
        v: shape (B, K, T, e).
        mask: (S, T), or four axes that broadcast to (B, H, S, T); boolean or additive.
        bias: what goes by distances.
    """

    def __init__(
        self,
        settings: Settings,
        needs: dict[str, bool],
        q: Array,
        k: Array,
        v: Array,
        mask: Array | None,
        bias: DistanceBias | None,
    ) -> None:
        self.settings = settings
        #: Whether kernels make the exponentials, and add the distance bias on their way.
        self.in_kernels = runs_in_kernels(q)
        self.unit = q.dtype.type(1 if self.in_kernels else EXPONENT_OF_E)
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
                self.of_columns = mask[:, :, 0, 0] * self.unit if by_column else None
            elif by_column:
                hidden = q.dtype.type(-np.inf)
                self.of_columns = np.where(mask[:, :, 0, 0], q.dtype.type(0), hidden)
            else:
                self.blocked = ~mask
        self.bias = bias
        self.highest_mask = 0.0 if self.additive is None else float(self.additive.max(initial=0))
        self.bias_lowers = self.bias is None or self.bias.lowers
        summed = {"mask": mask, "distance": None if bias is None else bias.distance}
        shared = [
            needs[name] and array.shape[:3] != self.size[:3]
            for name, array in summed.items()
            if array is not None
        ]
        self.tasks = self._share_out(by_rows=any(shared))

    def group(self, array: Array) -> Array:
        """(B, H, …) as (B, K, G, …), without copying."""
        return grouped(array, self.key_heads)

    def _share_out(self, by_rows: bool) -> list[Task]:
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
                Task(c, [block for unit in units for block in self._blocks(*unit, chunk)])
                for c, chunk in enumerate(chunks)
            ]
        chunks = parallel.split(rows, ceil(threads / len(units)))
        return [
            Task(c, list(self._blocks(*unit, chunk)))
            for unit in units
            for c, chunk in enumerate(chunks)
        ]

    def _blocks(self, batch: slice, heads: slice, chunk: slice) -> Iterator[Block]:
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
                seen = (
                    min(self.settings.offset + span.stop, columns)
                    if self.settings.causal
                    else columns
                )
                yield Block(batch, heads, g, span, slice(0, seen), alone and seen == columns)

    def scores(
        self, block: Block, buffer: Buffer, keys: Array, queries: Array
    ) -> tuple[Array, list[Part]]:
        """The block's scores, and what the distance bias is made of, which kernels add later."""
        keys = keys[..., block.columns, :]
        scores = buffer((*queries.shape[:-1], keys.shape[-2]))
        parts = [] if self.bias is None else self.bias.parts(block)
        beta = 0.0
        for part in [] if self.in_kernels else parts:
            np.multiply(part.phi, part.slopes * -self.unit, out=scores[part.place])
            beta = 1.0
        if self.additive is not None and self.of_columns is None:
            additive = block.of(self.additive)
            if beta:
                np.add(scores, additive * self.unit, out=scores)
            else:
                np.multiply(additive, self.unit, out=scores)
            beta = 1.0
        gemm_batch(queries, keys.swapaxes(-1, -2), scores, beta=beta)
        for part in parts:
            if part.hidden is not None:
                np.copyto(scores[part.place], -np.inf, where=part.hidden)
        if self.blocked is not None:
            np.copyto(scores, -np.inf, where=block.of(self.blocked))
        if self.settings.causal:  # up to the first row's column, all rows see everything
            hide_later(scores, self.settings.offset + block.rows.start)
        return scores, parts

    def queries(self, block: Block, of_rows: Array | float) -> Array:
        """The block's [q·scale·unit, r, 1], to go with `Keys.keys`."""
        q = block.of(self.q, columns=False)
        queries = memory.empty((*q.shape[:-1], q.shape[-1] + 2), q.dtype)
        np.multiply(q, self.unit * q.dtype.type(self.settings.scale), out=queries[..., :-2])
        queries[..., -2] = of_rows
        queries[..., -1] = 1
        return queries

    def _highest(self, block: Block, keys: Keys) -> Array | None:
        """For each row something that its scores exceed by no more than `HIGHEST`.

        By Cauchy and Schwarz: no pass over the scores is needed. None where nothing is known.
        """
        if not self.bias_lowers:
            return None
        q = block.of(self.q, columns=False)
        lengths = np.sqrt(np.einsum("...d,...d->...", q, q))
        bound = lengths * (keys.longest * q.dtype.type(abs(self.settings.scale)))
        bound += q.dtype.type(self.highest_mask - HIGHEST)
        np.maximum(bound, 0, out=bound)
        bound *= self.unit
        return bound if np.isfinite(bound).all() else None

    def keep(self, block: Block, out: Array) -> Array:
        """Dropout's factors of a block: the same in forward and backward, on any thread."""
        ranges = (block.batch, block.heads, block.group, block.rows)
        key = (*self.settings.key, *(r.start for r in ranges))
        return keep_factors(key, self.settings.dropout, out)

    def forward(
        self,
        block: Block,
        buffer: Buffer,
        keys: Keys,
        out: Array,
        log_sums: Array,
    ) -> None:
        """One block of the output."""
        values = keys.values[..., block.columns, :]
        if self.in_kernels:
            scores, parts = self.scores(block, buffer, keys.keys, self.queries(block, 0.0))
            row_sums, highest = exponentials(scores, parts)
            mixed, _ = self._weigh(block, scores, values, row_sums)
            self._finish(block, mixed, row_sums, highest, out, log_sums)
            return
        top = self._highest(block, keys)
        product = None
        if top is not None:
            scores, _ = self.scores(block, buffer, keys.keys, self.queries(block, -top))
            product, sums = self._weigh(block, EXPONENTIAL(scores, out=scores), values)
            if sums.size and sums.min() < LOWEST_SUM:
                product = None
        if top is None or product is None:
            scores, _ = self.scores(block, buffer, keys.keys, self.queries(block, 0.0))
            top = scores.max(axis=-1, initial=-np.inf)
            np.copyto(top, 0, where=top == -np.inf)  # a row that may attend to nothing
            np.subtract(scores, top[..., None], out=scores)
            product, sums = self._weigh(block, EXPONENTIAL(scores, out=scores), values)
        self._finish(block, product, sums, top[..., None], out, log_sums)

    def _finish(
        self, block: Block, product: Array, sums: Array, top: Array, out: Array, log_sums: Array
    ) -> None:
        """Write means of values, and what backward needs to know of the weights' sums."""
        nothing = sums == 0  # a row that may attend to nothing
        np.copyto(sums, 1, where=nothing)
        np.copyto(top, 0, where=nothing)
        np.divide(product, sums, out=block.of(out, columns=False))
        np.add(top, self.unit * np.log(sums), out=block.of(log_sums, columns=False))

    def _weigh(
        self, block: Block, weights: Array, values: Array, sums: Array | None = None
    ) -> tuple[Array, Array]:
        """Weights times values, dropout applied, and the sums of the weights before it."""
        if sums is None and weights.shape[-1] < _LONG_ROW and not self.settings.dropout:
            product = memory.empty((*weights.shape[:-1], values.shape[-1]), weights.dtype)
            gemm_batch(weights, values, product)  # the column of ones brings the sums
            return product[..., :-1], product[..., -1:]
        if sums is None:
            sums = np.einsum("...t->...", weights)[..., None]
        if self.settings.dropout:
            np.multiply(weights, self.keep(block, np.empty_like(weights)), out=weights)
        product = memory.empty((*weights.shape[:-1], values.shape[-1] - 1), weights.dtype)
        gemm_batch(weights, values[..., :-1], product)
        return product, sums


class Keys:
    """Keys and values of one unit, laid out for the products.

    Products of [q·scale, r, 1] with [k, 1, c] are scores plus r and c: what is added to whole
    rows (r) and columns (c, from a mask) costs no pass over the scores. Products of weights with
    [v, 1] bring the weights' sums; those of [grad, -delta] with it subtract delta.
    """

    def __init__(self, work: Work, unit: Unit) -> None:
        k, v = work.k[unit], work.v[unit]
        self.keys = memory.empty((*k.shape[:-1], k.shape[-1] + 2), k.dtype)
        self.keys[..., :-2] = k
        self.keys[..., -2] = 1
        self.keys[..., -1] = 0
        if work.of_columns is not None:
            self.keys[..., -1] = cut(work.of_columns, unit)[:, :, None]
        self.values = memory.empty((*v.shape[:-1], v.shape[-1] + 1), v.dtype)
        self.values[..., :-1] = v
        self.values[..., -1] = 1

    @functools.cached_property
    def longest(self) -> Array:
        """The length of the longest key of each head, shape (B, K, 1, 1)."""
        k = self.keys[..., :-2]
        squares = np.einsum("...d,...d->...", k, k)
        return np.asarray(np.sqrt(squares.max(axis=-1, keepdims=True, initial=0)))
