"""What transformer blocks do with few rows, written down once and done time and again.

For one token, or one short sentence, the products of a block are short, and Python around them
takes longer than they do. Where nothing wants to see the operations, all blocks of a stack do their
work in one call.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from operator import is_
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

import te_tensor as te
from te_tensor import Tensor, modes
from te_tensor.dtypes import bool_, float32
from te_tensor.machine import runs_programs
from te_tensor.memory import address
from te_tensor.operation import Operation
from te_tensor.ops.activation import ReLU, SiLU
from te_tensor.ops.attention import Attention, PlannedHeads
from te_tensor.ops.gelu import GELU
from te_tensor.ops.linalg import Linear as LinearMap
from te_tensor.ops.normalization import LayerNorm as Normalization
from te_tensor.plan import Plan, Unplanned
from te_tensor.tensor import arrays_of

from .attention import MultiHeadAttention
from .cache import KVCache
from .dropout import Dropout
from .linear import Linear
from .module import Module
from .nl_oob import NLOOB
from .normalization import LayerNorm
from .structure import structure

if TYPE_CHECKING:
    from .transformer import TransformerBlock

_Array: TypeAlias = npt.NDArray[Any]

#: Rows, and rows of one token each, up to which a plan is the quicker way.
_MOST_ROWS, _MOST_TOKENS = 256, 8
#: Rows of all plans that a thread keeps for a module, each for another shape.
_MOST_KEPT = 2 * _MOST_ROWS
_ACTIVATIONS: dict[str, type[Operation]] = {"gelu": GELU, "relu": ReLU, "silu": SiLU}


class _Parts:
    """What plans of plain blocks depend on, beside values: memory of parameters, and settings."""

    def __init__(self, blocks: Sequence[TransformerBlock], norm: LayerNorm | None) -> None:
        self._arrays = _arrays(blocks, norm)
        self._settings = _settings(blocks, norm)

    def are_those_of(self, blocks: Sequence[TransformerBlock], norm: LayerNorm | None) -> bool:
        """Whether plain blocks and a norm have the same."""
        arrays = _arrays(blocks, norm)
        same = len(arrays) == len(self._arrays) and all(map(is_, arrays, self._arrays))
        return same and _settings(blocks, norm) == self._settings


def _arrays(blocks: Sequence[TransformerBlock], norm: LayerNorm | None) -> list[_Array]:
    """The memory of all parameters that a plan knows."""
    layers: list[Linear | LayerNorm] = [] if norm is None else [norm]
    for block in blocks:
        layers += [*_linear_layers(block), block.norm1, block.norm2]
    parameters = [p for layer in layers for p in (layer.weight, layer.bias) if p is not None]
    return arrays_of(parameters)


def _settings(
    blocks: Sequence[TransformerBlock], norm: LayerNorm | None
) -> list[tuple[Any, ...] | None]:
    found: list[tuple[Any, ...] | None] = [None if norm is None else _settings_of_norm(norm)]
    for block in blocks:
        attend = block.self_attn
        found.append((block.norm, block.activation, block.causal))
        found.append((attend.d_model, attend.num_heads, attend.kv_heads, attend.head_dim))
        found += [_settings_of_norm(block.norm1), _settings_of_norm(block.norm2)]
    return found


def _settings_of_norm(norm: LayerNorm) -> tuple[Any, ...]:
    return norm.normalized_shape, norm.eps, norm.weight is None, norm.bias is None


class _Stack:
    """Blocks one after the other on memory that stays, and a norm behind them.

    Args:
        blocks: the blocks.
        norm: the norm, or None.
        shape: that of the input, (B, S, d_model).
        attend: writes attention down: is given the block's number, and its queries, keys and
            values; returns where the mixed values are.
    """

    def __init__(
        self,
        blocks: Sequence[TransformerBlock],
        norm: LayerNorm | None,
        shape: tuple[int, ...],
        attend: Callable[[Plan, int, _Array, _Array, _Array], _Array],
    ) -> None:
        self.plan = plan = Plan()
        self._changes = structure.changes
        self._parts = _Parts(blocks, norm)
        self._x = x = np.zeros(shape, float32)
        for number, block in enumerate(blocks):
            given = _norm(plan, block.norm1, x) if block.norm == "pre" else x
            attention = block.self_attn
            layers = (attention.q_proj, attention.k_proj, attention.v_proj)
            mixed = attend(plan, number, *[_linear(plan, layer, given) for layer in layers])
            x = _linear(plan, attention.o_proj, mixed, x)
            x = _feed_forward(plan, block, x)
        self._out = x if norm is None else _norm(plan, norm, x)

    def holds(self, blocks: Sequence[TransformerBlock], norm: LayerNorm | None) -> bool:
        """Whether it still does what these do."""
        changes = structure.changes
        if changes != self._changes:
            if not _are_plain(blocks, norm) or not self._parts.are_those_of(blocks, norm):
                return False
            self._changes = changes
        return self.plan.holds()

    def run(self, x: Tensor) -> Tensor:
        """The result for an input."""
        np.copyto(self._x, x.data)
        self.plan.run()
        return te.from_numpy(self._out.copy())


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

        def attend(plan: Plan, number: int, q: _Array, k: _Array, v: _Array) -> _Array:
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

        self.stack = _Stack(blocks, norm, shape, attend)

    def run(
        self,
        blocks: Sequence[TransformerBlock],
        x: Tensor,
        mask: _Array | None,
        distance: te.PreparedDistance | None,
    ) -> Tensor:
        """The result.

        Raises:
            Unplanned: some distances are infinite.
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
    few = len(size) == 3 and 0 < size[0] * size[1] <= _MOST_ROWS
    if not few or not _is_usual(x, blocks):
        return None
    masked = None if mask is None else _usual_mask(mask, size)
    prepared = None if distance is None else _usual_distance(blocks, distance, size)
    if (mask is None) != (masked is None) or (distance is None) != (prepared is None):
        return None
    shape = None if masked is None else masked.shape[:2]
    distances = 0 if prepared is None else prepared.tensor.size // size[1] ** 2
    make = partial(RowsPlan, blocks, norm, size, shape, distances)
    key = (size[0] * size[1], size, shape, distances)
    plan = _kept_plan(owner, blocks, norm, key, make)
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

        def attend(plan: Plan, number: int, q: _Array, k: _Array, v: _Array) -> _Array:
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
        self.stack = _Stack(blocks, norm, size, attend)
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

    def __init__(self, memory: _Array) -> None:
        self.memory = memory
        self.new = 0
        self._start = address(memory)
        self._row = memory.strides[2]
        self._places: list[int] = []

    def find(self, plan: Plan) -> None:
        """Find the addresses, once all are written down."""
        self._places = [p for p in plan.operands_in(self.memory) if p != self.new]

    def move(self, plan: Plan, memory: _Array, length: int) -> None:
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
    if not few or not _is_usual(x, blocks) or len({id(cache) for cache in caches}) < len(caches):
        return None
    first = caches[0].length, batch, shapes[0][2]
    for cache, shape in zip(caches, shapes, strict=True):
        usual = type(cache) is KVCache and all(m.flags.c_contiguous for m in cache.memory)
        alike = (cache.length, shape[0], shape[2]) == first
        if not usual or not alike or cache.memory[0].dtype != float32:
            return None
    make = partial(TokensPlan, blocks, norm, shapes)
    plan = _kept_plan(owner, blocks, norm, (batch, *shapes), make, at_once=True)
    return None if plan is None else plan.run(x, caches)


#: This thread's plans, by module, number of rows and what else they are for.
_kept = threading.local()
_Kind = TypeVar("_Kind", RowsPlan, TokensPlan)


class _Never:
    """Stands for a plan that can't be made, so that it isn't tried again and again.

    Args:
        parts: what it can't be made of.
    """

    def __init__(self, parts: _Parts) -> None:
        self.parts = parts


def _kept_plan(
    owner: Module,
    blocks: Sequence[TransformerBlock],
    norm: LayerNorm | None,
    key: tuple[Any, ...],
    make: Callable[[], _Kind],
    *,
    at_once: bool = False,
) -> _Kind | None:
    """This thread's plan for some blocks; None where there is none, or not yet.

    Args:
        owner: the module that they belong to.
        blocks: the blocks.
        norm: the norm behind them.
        key: the number of rows, and what else it is for.
        make: makes it.
        at_once: make it when it is asked for the first time, not the second.
    """
    if not hasattr(_kept, "plans"):
        _kept.plans = WeakKeyDictionary()
    plans: OrderedDict[Any, Any] = _kept.plans.setdefault(owner, OrderedDict())
    known = at_once or key in plans
    found: _Kind | _Never | None = plans.pop(key, None)
    if isinstance(found, _Never):
        plain = _are_plain(blocks, norm)
        found = found if plain and found.parts.are_those_of(blocks, norm) else None
    elif found is not None and not found.stack.holds(blocks, norm):
        found = None
    if known and found is None and _are_plain(blocks, norm):
        try:
            found = make()
        except Unplanned:
            found = _Never(_Parts(blocks, norm))
    plans[key] = found
    while sum(rows for rows, *_ in plans) > _MOST_KEPT:
        plans.popitem(last=False)
    return None if isinstance(found, _Never) else found


def _usual_mask(mask: Any, size: tuple[int, ...]) -> _Array | None:
    """A mask for all heads as (b, s, T); None where it is another one."""
    if not isinstance(mask, (Tensor, np.ndarray)) or mask.dtype not in (bool_, float32):
        return None
    array = mask.data if isinstance(mask, Tensor) else mask
    if array.ndim == 2:
        array = array[None, None]
    batch, rows, _ = size
    fits = array.ndim == 4 and array.shape[0] in (1, batch) and array.shape[1] == 1
    return array[:, 0] if fits and array.shape[2] in (1, rows) and array.shape[3] == rows else None


def _usual_distance(
    blocks: Sequence[TransformerBlock], distance: Any, size: tuple[int, ...]
) -> te.PreparedDistance | None:
    """Distances with phi of them; None where there are others for each head, or rates."""
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
    if given not in ((rows, rows), (1, rows, rows), (batch, rows, rows)):
        return None
    return te.prepare_distance(distance, *sorted(names))


def _linear(plan: Plan, layer: Linear, x: _Array, residual: _Array | None = None) -> _Array:
    parameters = arrays_of([p for p in (layer.weight, layer.bias) if p is not None])
    residuals = [] if residual is None else [residual]
    return plan.apply(LinearMap(residual is not None), x, *parameters, *residuals)


def _norm(plan: Plan, layer: LayerNorm, x: _Array) -> _Array:
    affine = arrays_of([p for p in (layer.weight, layer.bias) if p is not None])
    return plan.apply(Normalization(len(layer.normalized_shape), layer.eps), x, *affine)


def _feed_forward(plan: Plan, block: TransformerBlock, x: _Array) -> _Array:
    """What a block makes of the sum of its input and of its attention."""
    given = x if block.norm == "pre" else _norm(plan, block.norm1, x)
    hidden = _linear(plan, block.linear1, _norm(plan, block.norm2, x) if given is x else given)
    hidden = plan.apply(_ACTIVATIONS[block.activation](), hidden)
    out = _linear(plan, block.linear2, hidden, given)
    return out if block.norm == "pre" else _norm(plan, block.norm2, out)


def _is_usual(x: Tensor, blocks: Sequence[TransformerBlock]) -> bool:
    """Whether nothing looks at operations, and machine code runs on such an input."""
    state = modes.current()
    observed = state.grad or state.trace or state.observes or state.part is not None
    if observed or x.dtype != float32 or not runs_programs():
        return False
    return all([block.self_attn.d_model == x.shape[2] for block in blocks])


def _are_plain(blocks: Sequence[TransformerBlock], norm: LayerNorm | None) -> bool:
    """Whether nothing looks at the parts of blocks, and these do what they are made for."""
    return (norm is None or norm.is_plainly(LayerNorm)) and all(map(_is_plain, blocks))


def _is_plain(block: TransformerBlock) -> bool:
    attend, dropout = block.self_attn, block.dropout
    return (
        block.activation in _ACTIVATIONS
        and attend.is_plainly(MultiHeadAttention)
        and attend.rope is None
        and dropout.is_plainly(Dropout)
        and not (dropout.training and dropout.p)
        and not (attend.training and attend.dropout)
        and all([layer.is_plainly(Linear) for layer in _linear_layers(block)])
        and block.norm1.is_plainly(LayerNorm)
        and block.norm2.is_plainly(LayerNorm)
    )


def _linear_layers(block: TransformerBlock) -> list[Linear]:
    attend = block.self_attn
    projections = [attend.q_proj, attend.k_proj, attend.v_proj, attend.o_proj]
    return [*projections, block.linear1, block.linear2]
