"""Blocks one after the other, written down in a plan on memory that stays; what plans are kept."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from operator import is_
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

import te_tensor as te
from te_tensor import Tensor, modes
from te_tensor.dtypes import float32
from te_tensor.machine import runs_programs
from te_tensor.operation import Operation
from te_tensor.ops.activation import ReLU, SiLU
from te_tensor.ops.gelu import GELU
from te_tensor.ops.linalg import Linear as LinearMap
from te_tensor.ops.normalization import LayerNorm as Normalization
from te_tensor.plan import Plan, Unplanned
from te_tensor.tensor import arrays_of

from .attention import MultiHeadAttention
from .dropout import Dropout
from .linear import Linear
from .module import Module
from .normalization import LayerNorm
from .structure import structure

if TYPE_CHECKING:
    from .transformer import TransformerBlock

Floats: TypeAlias = npt.NDArray[Any]

#: Rows up to which a plan is the quicker way.
MOST_ROWS = 256
#: Plans that a thread keeps for a module, each for another shape, and the rows of all of them.
_MOST_PLANS, _MOST_KEPT = 16, 2 * MOST_ROWS
ACTIVATIONS: dict[str, type[Operation]] = {"gelu": GELU, "relu": ReLU, "silu": SiLU}


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


def _arrays(blocks: Sequence[TransformerBlock], norm: LayerNorm | None) -> list[Floats]:
    """The memory of all parameters that a plan knows."""
    layers: list[Linear | LayerNorm] = [] if norm is None else [norm]
    for block in blocks:
        layers += layers_of(block)
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


class Stack:
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
        attend: Callable[[Plan, int, Floats, Floats, Floats], Floats],
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
        """The result for an input.

        Raises:
            Unplanned: numbers that tiles can't split.
        """
        np.copyto(self._x, x.data)
        if not self.plan.run():
            raise Unplanned("numbers that tiles can't split")
        return te.from_numpy(self._out.copy())


def _linear(plan: Plan, layer: Linear, x: Floats, residual: Floats | None = None) -> Floats:
    parameters = arrays_of([p for p in (layer.weight, layer.bias) if p is not None])
    residuals = [] if residual is None else [residual]
    return plan.apply(LinearMap(residual is not None), x, *parameters, *residuals)


def _norm(plan: Plan, layer: LayerNorm, x: Floats) -> Floats:
    affine = arrays_of([p for p in (layer.weight, layer.bias) if p is not None])
    return plan.apply(Normalization(len(layer.normalized_shape), layer.eps), x, *affine)


def _feed_forward(plan: Plan, block: TransformerBlock, x: Floats) -> Floats:
    """What a block makes of the sum of its input and of its attention."""
    given = x if block.norm == "pre" else _norm(plan, block.norm1, x)
    hidden = _linear(plan, block.linear1, _norm(plan, block.norm2, x) if given is x else given)
    hidden = plan.apply(ACTIVATIONS[block.activation](), hidden)
    out = _linear(plan, block.linear2, hidden, given)
    return out if block.norm == "pre" else _norm(plan, block.norm2, out)


def is_usual(x: Tensor, blocks: Sequence[TransformerBlock]) -> bool:
    """Whether nothing looks at operations, and machine code runs on such an input."""
    state = modes.current()
    observed = state.grad or state.trace or state.observes or state.part is not None
    if observed or x.dtype != float32 or not runs_programs():
        return False
    return all([block.self_attn.d_model == x.shape[2] for block in blocks])


def _are_plain(blocks: Sequence[TransformerBlock], norm: LayerNorm | None) -> bool:
    """Whether nothing looks at the parts of blocks, and these do what they are made for."""
    return (norm is None or norm.is_plainly(LayerNorm)) and all(map(is_plain, blocks))


def is_plain(block: TransformerBlock) -> bool:
    """Whether nothing looks at the parts of a block, and these do what they are made for."""
    attend, dropout = block.self_attn, block.dropout
    return (
        block.activation in ACTIVATIONS
        and attend.is_plainly(MultiHeadAttention)
        and attend.rope is None
        and dropout.is_plainly(Dropout)
        and not (dropout.training and dropout.p)
        and not (attend.training and attend.dropout)
        and all(
            [
                layer.is_plainly(type(layer)) and type(layer) in (Linear, LayerNorm)
                for layer in layers_of(block)
            ]
        )
    )


def layers_of(block: TransformerBlock) -> list[Linear | LayerNorm]:
    """The layers with parameters, but for a distance bias, in the order of use."""
    attend = block.self_attn
    projections = [attend.q_proj, attend.k_proj, attend.v_proj, attend.o_proj]
    return [block.norm1, *projections, block.norm2, block.linear1, block.linear2]


#: This thread's plans, by module, number of rows and what else they are for.
_kept = threading.local()


class _Kept(Protocol):
    stack: Stack


_Kind = TypeVar("_Kind", bound=_Kept)


class _Never:
    """Stands for a plan that can't be made, so that it isn't tried again and again.

    Args:
        parts: what it can't be made of.
    """

    def __init__(self, parts: _Parts) -> None:
        self.parts = parts


def kept_plan(
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
    while len(plans) > _MOST_PLANS or sum(rows for rows, *_ in plans) > _MOST_KEPT:
        plans.popitem(last=False)
    return None if isinstance(found, _Never) else found
