"""What a transformer block does with few rows, written down once and done time and again.

For one token, or one short sentence, a block's products are short, and Python around them takes
longer than they do. Where nothing wants to see the operations, a block does its work in one call;
with a cache in two: what comes before the new keys and values are in it, and what comes behind.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
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
from te_tensor.ops.activation import ReLU
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
from .normalization import LayerNorm

if TYPE_CHECKING:
    from .transformer import TransformerBlock

_Array: TypeAlias = npt.NDArray[Any]

#: Rows, and rows of one token each, up to which a plan is the quicker way.
_MOST_ROWS, _MOST_TOKENS = 256, 8
#: Rows of all plans that a thread keeps for a block, each for another shape.
_MOST_KEPT = 2 * _MOST_ROWS
_ACTIVATIONS: dict[str, type[Operation]] = {"gelu": GELU, "relu": ReLU}


class _Layers:
    """A block's layers on memory that stays, as they are written down in a plan.

    Args:
        block: the block.
        shape: that of its input, (B, S, d_model).
    """

    def __init__(self, block: TransformerBlock, shape: tuple[int, ...]) -> None:
        self.arrays = _arrays(block)
        self.x = np.zeros(shape, float32)
        self.pre = block.norm == "pre"

    def holds(self, block: TransformerBlock, *plans: Plan) -> bool:
        """Whether parameters and threads are those that plans were written down for."""
        same = all([a is b for a, b in zip(self.arrays, _arrays(block), strict=True)])
        return same and all([plan.holds() for plan in plans])

    def projections(self, plan: Plan, block: TransformerBlock) -> list[_Array]:
        """Queries, keys and values."""
        attend = block.self_attn
        given = _norm(plan, block.norm1, self.x) if self.pre else self.x
        return [_linear(plan, f, given) for f in (attend.q_proj, attend.k_proj, attend.v_proj)]

    def result(self, plan: Plan, block: TransformerBlock, mixed: _Array) -> _Array:
        """What the block makes of its input and of the mixed values."""
        x = _linear(plan, block.self_attn.o_proj, mixed, self.x)
        if not self.pre:
            x = _norm(plan, block.norm1, x)
        hidden = _linear(plan, block.linear1, _norm(plan, block.norm2, x) if self.pre else x)
        hidden = plan.apply(_ACTIVATIONS[block.activation](), hidden)
        out = _linear(plan, block.linear2, hidden, x)
        return out if self.pre else _norm(plan, block.norm2, out)


class TokenStep:
    """One new token for each of a batch, whose keys and values go into a cache.

    Args:
        block: the block.
        shape: that of the cache, (B, K, max_len, head_dim).

    Raises:
        Unplanned: an operation can't be planned here.
    """

    def __init__(self, block: TransformerBlock, shape: tuple[int, ...]) -> None:
        attend = block.self_attn
        batch, heads, _, width = shape
        self._layers = layers = _Layers(block, (batch, 1, attend.d_model))
        self._before, self._behind = before, behind = Plan(), Plan()
        q, k, v = layers.projections(before, block)
        if not k.shape == v.shape == (batch, 1, heads * width):
            raise Unplanned(f"a cache of {shape} for keys {k.shape} and values {v.shape}")
        self._new = [array.reshape(batch, heads, width) for array in (k, v)]
        core = Attention(heads=attend.num_heads, kv_heads=heads)
        # Untouched memory stands for a cache's, and each run says which one it is.
        memories = [np.empty(shape, float32) for _ in self._new]
        self._out = layers.result(behind, block, behind.apply(core, q, *memories))
        self._addresses = [address(memory) for memory in memories]
        self._places = [behind.operands_in(memory) for memory in memories]

    @classmethod
    def run(cls, block: TransformerBlock, x: Tensor, cache: KVCache) -> Tensor | None:
        """The block's result for tokens, which the cache then has; None to run as usual."""
        shape = cache.shape
        usual = x.shape == (shape[0], 1, block.self_attn.d_model) and shape[0] <= _MOST_TOKENS
        if not usual or cache.memory[0].dtype != float32 or not _is_plain(block, x):
            return None
        step = _kept_plan(block, (shape[0], shape), lambda: cls(block, shape), at_once=True)
        return None if step is None else step._run(x, cache)

    def holds(self, block: TransformerBlock) -> bool:
        """Whether it still stands for the block."""
        return self._layers.holds(block, self._before, self._behind)

    def _run(self, x: Tensor, cache: KVCache) -> Tensor:
        stop = cache.room(1)
        np.copyto(self._layers.x, x.data)
        self._before.run()
        for number, (memory, new) in enumerate(zip(cache.memory, self._new, strict=True)):
            memory[:, :, cache.length] = new
            there = address(memory)
            if there != self._addresses[number]:
                self._behind.move(self._places[number], there - self._addresses[number])
                self._addresses[number] = there
        self._behind.set_length(stop)
        self._behind.run()
        cache.length = stop
        return te.from_numpy(self._out.copy())


class BlockPlan:
    """All rows at once, for inputs of one shape.

    Args:
        block: the block.
        shape: that of the input, (B, S, d_model).
        mask: that of masks, (b, s); None for none.
        distances: how many distances there are, 1 or B; 0 for none.

    Raises:
        Unplanned: an operation can't be planned here.
    """

    def __init__(
        self,
        block: TransformerBlock,
        shape: tuple[int, ...],
        mask: tuple[int, int] | None,
        distances: int,
    ) -> None:
        self._layers = layers = _Layers(block, shape)
        self._plan = plan = Plan()
        q, k, v = layers.projections(plan, block)
        self._heads = PlannedHeads(
            plan,
            q,
            k,
            v,
            heads=block.self_attn.num_heads,
            kv_heads=block.self_attn.kv_heads,
            mask=mask,
            causal=block.causal,
            distances=distances,
        )
        self._out = layers.result(plan, block, self._heads.out)

    @classmethod
    def run(cls, block: TransformerBlock, x: Tensor, mask: Any, distance: Any) -> Tensor | None:
        """The block's result, or None where it has to run as usual."""
        size = x.shape
        if len(size) != 3 or not 0 < size[0] * size[1] <= _MOST_ROWS or not _is_plain(block, x):
            return None
        masked = None if mask is None else _usual_mask(mask, size)
        prepared = None if distance is None else _usual_distance(block, distance, size)
        if (mask is None) != (masked is None) or (distance is None) != (prepared is None):
            return None
        shape = None if masked is None else masked.shape[:2]
        distances = 0 if prepared is None else prepared.tensor.size // size[1] ** 2
        plan = _kept_plan(
            block,
            (size[0] * size[1], size, shape, distances),
            lambda: cls(block, size, shape, distances),
        )
        if plan is None:
            return None
        try:
            plan._set(block, masked, prepared)
        except Unplanned:
            return None
        np.copyto(plan._layers.x, x.data)
        plan._plan.run()
        return te.from_numpy(plan._out.copy())

    def holds(self, block: TransformerBlock) -> bool:
        """Whether it still stands for the block."""
        return self._layers.holds(block, self._plan)

    def _set(
        self, block: TransformerBlock, mask: _Array | None, distance: te.PreparedDistance | None
    ) -> None:
        if mask is not None:
            self._heads.set_mask(mask)
        bias = block.self_attn.nl_oob
        if distance is not None and bias is not None:
            function = te.distance_function(bias.function.name.lower())
            self._heads.set_bias(distance.prepared, function, bias.factors()[0].data)


class _Never:
    """Stands for a plan that can't be made, so that it isn't tried again and again."""


_NEVER = _Never()
#: This thread's plans, by block, number of rows and what else they are for.
_kept = threading.local()
_Kind = TypeVar("_Kind", TokenStep, BlockPlan)


def _kept_plan(
    block: TransformerBlock,
    key: tuple[Any, ...],
    make: Callable[[], _Kind],
    *,
    at_once: bool = False,
) -> _Kind | None:
    """This thread's plan for a block; None where there is none, or not yet.

    Args:
        block: the block.
        key: the number of rows, and what else it is for.
        make: makes it.
        at_once: make it when it is asked for the first time, not the second.
    """
    if not hasattr(_kept, "plans"):
        _kept.plans = WeakKeyDictionary()
    plans: OrderedDict[Any, Any] = _kept.plans.setdefault(block, OrderedDict())
    known = at_once or key in plans
    plan: _Kind | _Never | None = plans.pop(key, None)
    if isinstance(plan, (TokenStep, BlockPlan)) and not plan.holds(block):
        plan = None
    if known and plan is None:
        try:
            plan = make()
        except Unplanned:
            plan = _NEVER
    plans[key] = plan
    while sum(rows for rows, *_ in plans) > _MOST_KEPT:
        plans.popitem(last=False)
    return None if isinstance(plan, _Never) else plan


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
    block: TransformerBlock, distance: Any, size: tuple[int, ...]
) -> te.PreparedDistance | None:
    """Distances with phi of them; None where there are others for each head, or rates."""
    bias = block.self_attn.nl_oob
    if bias is None or bias.rates is not None or len(set(bias.functions)) > 1:
        return None
    batch, rows, _ = size
    if np.shape(distance) not in ((rows, rows), (1, rows, rows), (batch, rows, rows)):
        return None
    return te.prepare_distance(distance, bias.function.name.lower())


def _linear(plan: Plan, layer: Linear, x: _Array, residual: _Array | None = None) -> _Array:
    parameters = arrays_of([p for p in (layer.weight, layer.bias) if p is not None])
    residuals = [] if residual is None else [residual]
    return plan.apply(LinearMap(residual is not None), x, *parameters, *residuals)


def _norm(plan: Plan, layer: LayerNorm, x: _Array) -> _Array:
    affine = arrays_of([p for p in (layer.weight, layer.bias) if p is not None])
    return plan.apply(Normalization(len(layer.normalized_shape), layer.eps), x, *affine)


def _is_plain(block: TransformerBlock, x: Tensor) -> bool:
    """Whether nothing looks at the block's parts, and these do what they are made for."""
    state = modes.current()
    if state.grad or state.trace or state.observes or state.part is not None:
        return False
    attend, dropout = block.self_attn, block.dropout
    return (
        runs_programs()
        and x.dtype == float32
        and x.shape[-1] == attend.d_model
        and block.activation in _ACTIVATIONS
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


def _arrays(block: TransformerBlock) -> list[_Array]:
    """The memory of all parameters that a plan knows."""
    layers: list[Linear | LayerNorm] = [*_linear_layers(block), block.norm1, block.norm2]
    parameters = [p for layer in layers for p in (layer.weight, layer.bias) if p is not None]
    return arrays_of(parameters)
