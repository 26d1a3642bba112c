"""What transformer blocks do with few rows, written down once and done time and again.

For one token, or one short sentence, the products of a block are short, and Python around them
takes longer than they do. Where nothing wants to see the operations, all blocks of a stack do their
work in one call.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

import te_tensor as te
from te_tensor import Tensor
from te_tensor.dtypes import bool_, float32
from te_tensor.memory import address
from te_tensor.ops.attention import Attention, PlannedHeads
from te_tensor.plan import Plan, Unplanned

from .cache import KVCache
from .module import Module
from .nl_oob import NLOOB
from .normalization import LayerNorm
from .stack_plan import MOST_ROWS, Floats, Stack, is_usual, kept_plan

if TYPE_CHECKING:
    from .transformer import TransformerBlock

#: Rows of one token each up to which a plan is the quicker way.
_MOST_TOKENS = 8


class RowsPlan:
    """All rows at once, for inputs of one shape; see `run_rows`."""

    def __init__(
        self,
        blocks: Sequence[TransformerBlock],
        norm: LayerNorm | None,
        shape: tuple[int, ...],
        mask: tuple[int, int] | None,
        distances: int,
    ) -> None:
        self._heads: list[PlannedHeads] = []

        def attend(plan: Plan, number: int, q: Floats, k: Floats, v: Floats) -> Floats:
            attention = blocks[number].self_attn
            heads = PlannedHeads(
                plan,
                q,
                k,
                v,
                heads=attention.num_heads,
                kv_heads=attention.kv_heads,
                mask=mask,
                causal=blocks[number].causal,
                distances=distances,
            )
            self._heads.append(heads)
            return heads.out

        self.stack = Stack(blocks, norm, shape, attend)

    def run(
        self,
        blocks: Sequence[TransformerBlock],
        x: Tensor,
        mask: Floats | None,
        distance: te.PreparedDistance | None,
    ) -> Tensor:
        """The result.

        Raises:
            Unplanned: some distances are infinite, or numbers that tiles can't split.
        """
        for heads, block in zip(self._heads, blocks, strict=True):
            if mask is not None:
                heads.set_mask(mask)
            bias = block.self_attn.nl_oob
            if distance is not None and bias is not None:
                function = te.distance_function(bias.function.name.lower())
                heads.set_bias(distance.prepared, function, bias.factors()[0].data)
        return self.stack.run(x)


def run_rows(
    owner: Module,
    blocks: Sequence[TransformerBlock],
    norm: LayerNorm | None,
    x: Tensor,
    mask: Any,
    distance: Any,
) -> Tensor | None:
    """What blocks make of few rows, or None where they have to run as usual.

    Args:
        owner: the module that they belong to, with which their plans go.
        blocks: the blocks.
        norm: a norm behind them.
        x: shape (B, S, d_model).
        mask: as blocks take it.
        distance: likewise.
    """
    size = x.shape
    few = len(size) == 3 and 0 < size[0] * size[1] <= MOST_ROWS
    if not few or not is_usual(x, blocks):
        return None
    masked = None if mask is None else usual_mask(mask, size)
    prepared = None if distance is None else usual_distance(blocks, distance, size)
    if (mask is None) != (masked is None) or (distance is None) != (prepared is None):
        return None
    shape = None if masked is None else masked.shape[:2]
    distances = 0 if prepared is None else prepared.tensor.size // size[1] ** 2
    make = partial(RowsPlan, blocks, norm, size, shape, distances)
    key = (size[0] * size[1], size, shape, distances)
    plan = kept_plan(owner, blocks, norm, key, make)
    try:
        return None if plan is None else plan.run(blocks, x, masked, prepared)
    except Unplanned:
        return None


class TokensPlan:
    """One new token for each of a batch, whose keys and values go into caches; see `run_tokens`."""

    def __init__(
        self,
        blocks: Sequence[TransformerBlock],
        norm: LayerNorm | None,
        shapes: Sequence[tuple[int, ...]],
    ) -> None:
        self._memories: list[_Moving] = []

        def attend(plan: Plan, number: int, q: Floats, k: Floats, v: Floats) -> Floats:
            batch, heads, room, width = shape = shapes[number]
            if not k.shape == v.shape == (batch, 1, heads * width):
                raise Unplanned(f"a cache of {shape} for keys {k.shape} and values {v.shape}")
            # Untouched memory stands for that of a cache: each run says which one it is.
            own = [_Moving(np.empty(shape, float32)) for _ in (k, v)]
            for moving, new in zip(own, (k, v), strict=True):
                rows = moving.memory.reshape(-1, room, width)[:, 0]
                moving.new = plan.copy(new.reshape(-1, width), rows)
            core = Attention(heads=blocks[number].self_attn.num_heads, kv_heads=heads)
            mixed = plan.apply(core, q, *[moving.memory for moving in own])
            self._memories += own
            return mixed

        size = (shapes[0][0], 1, blocks[0].self_attn.d_model)
        self.stack = Stack(blocks, norm, size, attend)
        for moving in self._memories:
            moving.find(self.stack.plan)

    def run(self, x: Tensor, caches: Sequence[KVCache]) -> Tensor:
        """The result; the caches then have the tokens, too."""
        plan, start, stop = self.stack.plan, caches[0].length, caches[0].room(1)
        memories = [memory for cache in caches for memory in cache.memory]
        for moving, memory in zip(self._memories, memories, strict=True):
            moving.move(plan, memory, start)
        plan.set_length(stop)
        result = self.stack.run(x)
        for cache in caches:
            cache.length = stop
        return result


class _Moving:
    """Addresses in a plan that lead to the memory of one cache or another.

    Args:
        memory: shape (B, K, max_len, head_dim).

    Attributes:
        new: the place of the address that a new row is written to.
    """

    def __init__(self, memory: Floats) -> None:
        self.memory = memory
        self.new = 0
        self._start = address(memory)
        self._row = memory.strides[2]
        self._places: list[int] = []

    def find(self, plan: Plan) -> None:
        """Find the addresses, once all are written down."""
        self._places = [p for p in plan.operands_in(self.memory) if p != self.new]

    def move(self, plan: Plan, memory: Floats, length: int) -> None:
        """Have them lead to other memory of this shape, which holds so many rows."""
        start = address(memory)
        if start != self._start:
            plan.move(self._places, start - self._start)
            self._start = start
        plan.change(self.new, start + length * self._row)


def run_tokens(
    owner: Module,
    blocks: Sequence[TransformerBlock],
    norm: LayerNorm | None,
    x: Tensor,
    caches: Sequence[KVCache],
) -> Tensor | None:
    """As `run_rows`, for one token each of a batch, and a cache for each block."""
    shapes = [cache.shape for cache in caches]
    batch = shapes[0][0]
    few = x.ndim == 3 and x.shape[:2] == (batch, 1) and batch <= _MOST_TOKENS
    if not few or not is_usual(x, blocks) or len({id(cache) for cache in caches}) < len(caches):
        return None
    first = caches[0].length, batch, shapes[0][2]
    for cache, shape in zip(caches, shapes, strict=True):
        usual = type(cache) is KVCache and all(m.flags.c_contiguous for m in cache.memory)
        alike = (cache.length, shape[0], shape[2]) == first
        if not usual or not alike or cache.memory[0].dtype != float32:
            return None
    make = partial(TokensPlan, blocks, norm, shapes)
    plan = kept_plan(owner, blocks, norm, (batch, *shapes), make, at_once=True)
    return None if plan is None else plan.run(x, caches)


def usual_mask(mask: Any, size: tuple[int, ...]) -> Floats | None:
    """A mask for all heads as (b, s, T); None where it is another one."""
    if not isinstance(mask, (Tensor, np.ndarray)) or mask.dtype not in (bool_, float32):
        return None
    array = mask.data if isinstance(mask, Tensor) else mask
    if array.ndim == 2:
        array = array[None, None]
    batch, rows, _ = size
    fits = array.ndim == 4 and array.shape[0] in (1, batch) and array.shape[1] == 1
    return array[:, 0] if fits and array.shape[2] in (1, rows) and array.shape[3] == rows else None


def usual_distance(
    blocks: Sequence[TransformerBlock], distance: Any, size: tuple[int, ...]
) -> te.PreparedDistance | None:
    """Distances with phi of them; None where there are others for each head, or rates."""
    names = usual_functions(blocks, distance, size)
    return None if names is None else te.prepare_distance(distance, *sorted(names))


def usual_functions(
    blocks: Sequence[TransformerBlock], distance: Any, size: tuple[int, ...]
) -> set[str] | None:
    """The names of blocks' distance functions; None where distances aren't usual."""
    names = set()
    for block in blocks:
        bias, shape = block.self_attn.nl_oob, (1, block.self_attn.num_heads, 1, 1)
        if type(bias) is not NLOOB or bias.rates is not None or bias.slopes.shape != shape:
            return None
        if len(set(bias.functions)) > 1:
            return None
        names.add(bias.function.name.lower())
    batch, rows, _ = size
    given = distance.shape if hasattr(distance, "shape") else np.shape(distance)
    fits = given in ((rows, rows), (1, rows, rows), (batch, rows, rows))
    return names if fits else None
