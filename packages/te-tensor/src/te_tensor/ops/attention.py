"""Attention with a distance bias: small problems at once, large ones in blocks."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod, sqrt
from typing import TypeAlias

import numpy as np

from .. import memory, parallel
from ..dtypes import Array, bool_
from ..operation import Gradients, Operation, Sample
from ..plan import Plan, Unplanned
from ._at_once import AtOnce
from ._block_grads import Grads, KeyGrads
from ._blocks import Buffer
from ._distance import DistanceBias, DistanceFunction, Prepared, distance_function
from ._in_blocks import Keys, Settings, Work, is_small
from ._nested import Nested, nests
from ._nested_rows import NestedRows, nests_rows
from ._one_row import OneRow
from ._planned import PlannedHeads as PlannedHeads
from ._recorded import penalty_of as penalty_of
from ._recorded_rows import record_heads as record_heads
from ._recorded_rows import records_heads as records_heads

#: A distance function, or its name.
FunctionLike: TypeAlias = str | DistanceFunction


class Attention(Operation):
    """softmax(scale·q·kᵀ + mask - slopes·phi(distance))·v.

    Inputs: q (B, H, S, d), k (B, K, T, d) and v (B, K, T, e), where K divides H, and then those
    that `operands` names. Each of the first three may come with its heads side by side in one
    axis, as projections leave them: (B, S, H·d).

    Args:
        operands: names of the further inputs, in order: "mask" (S, T) or four axes that
            broadcast to (B, H, S, T), boolean (True: may attend) or additive; "distance"
            (S, T), (B, S, T) or (B, H, S, T), with "slopes" (1, H, 1, 1) or (H,), and "rates" of
            their shape, which the distances are multiplied with inside phi.
        causal: row i attends to columns up to offset + i only.
        bias_function: phi or its name; or a tuple of them, one a head.
        scale: factor of the products; 1/√d by default.
        dropout: probability of a zero among the attention weights.
        key: what dropout's random numbers follow from.
        offset: columns that stand before the one that row 0 stands at.
        heads: H, for a q of three axes; the result then has three axes as well.
        kv_heads: K, for a k or v of three axes.
    """

    #: The distances with phi of them, where they were made before: they are used by several.
    prepared: Prepared | None = None
    #: Which of q, k and v have their heads side by side.
    joined: tuple[bool, ...] = (False, False, False)

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
        Sample(
            *((1, 4, 3, 2), (1, 2, 5, 2), (1, 2, 5, 2), (3, 5), (4,), (4,)),
            low=0.1,
            kwargs={
                "operands": ("distance", "slopes", "rates"),
                "bias_function": ("gaussian", "logarithmic", "logarithmic", "gaussian"),
                "causal": True,
                "offset": 2,
            },
        ),
        Sample(
            *((2, 2, 3, 2), (2, 2, 3, 2), (2, 2, 3, 2), (2, 3, 3), (2,)),
            low=0.1,
            kwargs={
                "operands": ("distance", "slopes"),
                "bias_function": ("gaussian", "logarithmic"),
            },
        ),
        Sample(*((2, 3, 8), (2, 5, 4), (2, 5, 6)), kwargs={"heads": 4, "kv_heads": 2}),
    )

    def __init__(
        self,
        operands: tuple[str, ...] = (),
        causal: bool = False,
        bias_function: FunctionLike | tuple[FunctionLike, ...] = "logarithmic",
        scale: float | None = None,
        dropout: float = 0.0,
        key: tuple[int, ...] = (),
        offset: int = 0,
        heads: int = 0,
        kv_heads: int = 0,
    ) -> None:
        self.operands = operands
        self.causal = causal
        self.bias_function = bias_function
        self.scale = scale
        self.dropout = dropout
        self.key = key
        self.offset = offset
        self.heads = heads
        self.kv_heads = kv_heads

    def functions(self) -> tuple[DistanceFunction, ...]:
        """Phi of all heads, or of each."""
        given = self.bias_function
        each = given if isinstance(given, tuple) else (given,)
        return tuple(distance_function(f) for f in each)

    def multiply_adds(self) -> int:
        """Those of both products, masked ones included."""
        q, k, v = self.apart(*(np.empty(x.shape, bool_) for x in self.inputs[:3]))
        return int(prod(q.shape[:3]) * k.shape[2] * (q.shape[3] + v.shape[3]))

    def apart(self, q: Array, k: Array, v: Array) -> tuple[Array, Array, Array]:
        """q, k and v on four axes."""
        return (
            _heads_apart(q, self.heads),
            _heads_apart(k, self.kv_heads),
            _heads_apart(v, self.kv_heads),
        )

    def _scale(self, q: Array) -> float:
        return 1 / sqrt(q.shape[-1] or 1) if self.scale is None else self.scale

    def forward(self, q: Array, k: Array, v: Array, *extra: Array) -> Array:
        """The weighted means of v, shape (B, H, S, e), laid out in memory as q is."""
        self.joined = (q.ndim == 3, k.ndim == 3, v.ndim == 3)
        q, k, v = self.apart(q, k, v)
        named = dict(zip(self.operands, extra, strict=True))
        _check(self, q, k, v, **named)
        mask, bias = named.get("mask"), None
        if "distance" in named:
            prepared = self.prepared or Prepared(named["distance"])
            factors = named["slopes"], named.get("rates")
            bias = DistanceBias(prepared, *factors, self.functions(), k.shape[1])
        small = not self.dropout and is_small(q, k)
        if small or self._streams(q, k, v, mask, bias):
            return self._at_once(q, k, v, mask, bias, extra, keep=small)
        if nests_rows(q, k, v) and self._is_alike(mask, bias):
            return self._at_once(q, k, v, mask, bias, extra, keep=False)
        out = self._in_blocks(q, k, v, mask, bias, extra)
        return _side_by_side(out) if self.joined[0] else out

    def _at_once(
        self,
        q: Array,
        k: Array,
        v: Array,
        mask: Array | None,
        bias: DistanceBias | None,
        extra: tuple[Array, ...],
        *,
        keep: bool,
    ) -> Array:
        """A small problem as one block, whose weights are kept for backward; or head by head."""
        given = q, k, v, self._scale(q), mask, bias, self.offset if self.causal else None
        work: Nested | AtOnce
        if nests(q, k, v):
            work = Nested(*given, keep=keep)
        else:
            work = AtOnce(*given) if keep else NestedRows(*given, keep=False)
        result, out = self._empty(q, v)
        work.mix(out)
        self.save(work, out, None, q, k, v, *extra)
        return result

    def _empty(self, q: Array, v: Array) -> tuple[Array, Array]:
        """Memory for the result, and that on four axes."""
        if not self.joined[0]:
            out = memory.empty_like(q, (*q.shape[:3], v.shape[3]))
            return out, out
        batch, heads, rows, _ = q.shape
        result = memory.empty((batch, rows, heads * v.shape[3]), q.dtype)
        return result, _heads_apart(result, heads)

    def _streams(
        self, q: Array, k: Array, v: Array, mask: Array | None, bias: DistanceBias | None
    ) -> bool:
        """Whether one thread goes through head after head, keeping nothing of their scores."""
        alone = parallel.in_parallel() or parallel.get_num_threads() == 1
        return alone and nests(q, k, v) and self._is_alike(mask, bias)

    def _is_alike(self, mask: Array | None, bias: DistanceBias | None) -> bool:
        """Whether heads differ in slopes alone, and nothing needs all scores at once."""
        if self.dropout:
            return False
        # What needs gradients of all scores at once, or differs by head, goes in blocks.
        needs = dict(zip(self.operands, self.needs_grad[3:], strict=True))
        by_head = mask is not None and mask.ndim == 4 and mask.shape[1] > 1
        shared = bias is None or bias.phi_is_shared
        return shared and not by_head and not any(map(needs.get, ("mask", "distance", "rates")))

    def _in_blocks(
        self,
        q: Array,
        k: Array,
        v: Array,
        mask: Array | None,
        bias: DistanceBias | None,
        extra: tuple[Array, ...],
    ) -> Array:
        """A large problem, of whose scores backward finds the logarithms of their sums."""
        needs = dict(zip(("q", "k", "v", *self.operands), self.needs_grad, strict=True))
        settings = Settings(self._scale(q), self.causal, self.offset, self.dropout, self.key)
        work = Work(settings, needs, q, k, v, mask, bias)
        out = memory.empty_like(q, (*q.shape[:-1], v.shape[-1]))
        log_sums = np.empty((*work.q.shape[:-1], 1), q.dtype)
        grouped = work.group(out)

        def run(index: int) -> None:
            scores = Buffer(q.dtype)
            for unit, blocks in work.tasks[index].units():
                keys = Keys(work, unit)
                for block in blocks:
                    work.forward(block, scores, keys, grouped, log_sums)

        parallel.parallel_for(run, len(work.tasks))
        self.save(work, out, log_sums, q, k, v, *extra)
        return out

    def prepare(self, plan: Plan, q: Array, k: Array, v: Array, *extra: Array) -> Array:
        """The same in a plan, of one row a head to the first keys in memory that has room for more.

        `Plan.set_length` says how many there are; all of them are behind a causal row's mask.
        """
        if extra or self.dropout or q.shape[-2] != 1 or q.ndim != 3 or k.ndim != 4:
            raise Unplanned("attention of several rows, or with a mask, distances or dropout")
        apart = _heads_apart(q, self.heads)
        _check(self, apart, k, v)
        out = np.empty((len(q), 1, self.heads * v.shape[3]), q.dtype)
        mixed = _heads_apart(out, self.heads)
        row = OneRow(plan, apart[:, :, 0], k, v, mixed[:, :, 0], self._scale(apart))
        plan.lengths.append(row.set_length)
        return out

    def backward(self, grad: Array) -> Gradients:
        """Gradients to all inputs but boolean masks."""
        return self.backward_into(grad, outs=(None,) * len(self.needs_grad))

    def backward_into(self, grad: Array, *, outs: Sequence[Array | None]) -> Gradients:
        """The same, those of q, k and v of a large problem added to what is given."""
        work, out, log_sums, q, k, v, *extra = self.saved
        needs = dict(zip(("q", "k", "v", *self.operands), self.needs_grad, strict=True))
        if isinstance(work, AtOnce | Nested):
            return self._backward_at_once(work, grad, out, needs, extra)
        given = dict(zip("qkv", outs, strict=False))
        split = dict(zip("qkv", (self.heads, self.kv_heads, self.kv_heads), strict=True))
        into = {name: _into(out, split[name]) for name, out in given.items()}
        grad = _heads_apart(grad, self.heads)
        grads = Grads(work, needs, q, k, v, dict(zip(self.operands, extra, strict=True)), into)
        grouped_grad, grouped_out = work.group(grad), work.group(out)

        def run(index: int) -> None:
            task = work.tasks[index]
            buffers = [Buffer(q.dtype) for _ in range(3 if self.dropout else 2)]
            for unit, blocks in task.units():
                keys = Keys(work, unit)
                sums = KeyGrads(keys)
                for block in blocks:
                    grads.add(task, block, buffers, keys, sums, grouped_grad, grouped_out, log_sums)
                grads.add_keys(task, unit, sums)

        parallel.parallel_for(run, len(work.tasks))
        results = grads.finish()
        for name, is_joined in zip("qkv", self.joined, strict=True):
            added_to = given.get(name)
            if added_to is not None and into[name] is not None:
                results[name] = added_to
            elif is_joined:
                results[name] = _side_by_side(results[name])
        return [results.get(name) if needed else None for name, needed in needs.items()]

    def _backward_at_once(
        self,
        work: AtOnce | Nested,
        grad: Array,
        out: Array,
        needs: dict[str, bool],
        extra: Sequence[Array],
    ) -> Gradients:
        shapes = {name: array.shape for name, array in zip(self.operands, extra, strict=True)}
        results = work.backward(_heads_apart(grad, self.heads), out, needs, shapes)
        for name, is_joined in zip("qkv", self.joined, strict=True):
            if is_joined and name in results:
                results[name] = _side_by_side(results[name])
        return [results.get(name) if needed else None for name, needed in needs.items()]


def _heads_apart(x: Array, heads: int) -> Array:
    """(B, S, heads·d) as (B, heads, S, d), a view; four axes stay."""
    if x.ndim != 3 or not heads or x.shape[2] % heads:
        return x
    batch, length, width = x.shape
    return x.reshape(batch, length, heads, width // heads).transpose(0, 2, 1, 3)


def _into(out: Array | None, heads: int) -> Array | None:
    """What is added to, on four axes; None where that would be a copy."""
    if out is None or out.ndim == 4:
        return out
    return _heads_apart(out, heads) if out.flags.c_contiguous else None


def _side_by_side(x: Array) -> Array:
    """(B, heads, S, d) as (B, S, heads·d), a view where the heads lie inside rows."""
    batch, heads, length, width = x.shape
    return x.transpose(0, 2, 1, 3).reshape(batch, length, heads * width)


def _check(
    operation: Attention,
    q: Array,
    k: Array,
    v: Array,
    mask: Array | None = None,
    distance: Array | None = None,
    slopes: Array | None = None,
    rates: Array | None = None,
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
    full = (*q.shape[:3], k.shape[2])
    if mask is not None:
        _check_mask(mask, full)
    if distance is not None and slopes is not None:
        _check_bias(distance, slopes, rates, len(operation.functions()), full)


def _check_mask(mask: Array, full: tuple[int, ...]) -> None:
    broadcasts = mask.ndim in (2, 4) and all(
        n in (1, f) for n, f in zip(mask.shape[::-1], full[::-1], strict=False)
    )
    if not broadcasts:
        raise ValueError(
            f"attention mask has shape {mask.shape}: expected {full[2:]}, or four axes that "
            f"broadcast to {full}"
        )


def _check_bias(
    distance: Array,
    slopes: Array,
    rates: Array | None,
    functions: int,
    full: tuple[int, ...],
) -> None:
    batch, heads, rows, columns = full
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
    for name, factors in (("slopes", slopes), ("rates", rates)):
        if factors is not None and factors.shape not in ((1, heads, 1, 1), (heads,)):
            raise ValueError(f"{name} have shape {factors.shape}: expected (1, {heads}, 1, 1)")
    if rates is not None and not (rates > 0).all():
        raise ValueError("rates have entries that aren't above 0: expected numbers above 0")
    if functions not in (1, heads):
        raise ValueError(f"got {functions} bias functions: expected one, or one for each head")
