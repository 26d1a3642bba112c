"""A transformer block's work on one new token, written down once and done time and again.

In generation each token goes through the same few products of a row, and Python around them takes
longer than they do. Where nothing wants to see the operations, a block does its work in two calls:
what comes before the new key and value are put into the cache, and what comes behind.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

import te_tensor as te
from te_tensor import Tensor, modes
from te_tensor.dtypes import float32
from te_tensor.operation import Operation
from te_tensor.ops.activation import ReLU
from te_tensor.ops.attention import Attention
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

_Array = npt.NDArray[Any]

#: More rows than these are quicker in the engine's threads.
_MOST_ROWS = 8
_ACTIVATIONS: dict[str, type[Operation]] = {"gelu": GELU, "relu": ReLU}


class TokenStep:
    """The plans of one block and one cache; `TokenStep.of` finds them, or makes them.

    Args:
        block: the block.
        cache: its cache.

    Raises:
        Unplanned: an operation can't be planned here.
    """

    def __init__(self, block: TransformerBlock, cache: KVCache) -> None:
        attend = block.self_attn
        batch, heads, _, width = cache.shape
        self.block = block
        self.arrays = _arrays(block)
        self._before, self._behind = before, behind = Plan(), Plan()
        self._x = x = np.zeros((batch, 1, attend.d_model), float32)
        pre = block.norm == "pre"
        given = _norm(before, block.norm1, x) if pre else x
        layers = (attend.q_proj, attend.k_proj, attend.v_proj)
        q, k, v = (_linear(before, layer, given) for layer in layers)
        self._new = [array.reshape(batch, heads, width) for array in (k, v)]
        core = Attention(heads=attend.num_heads, kv_heads=heads)
        mixed = behind.apply(core, q, *cache.memory)
        x = _linear(behind, attend.o_proj, mixed, x)
        if not pre:
            x = _norm(behind, block.norm1, x)
        given = _norm(behind, block.norm2, x) if pre else x
        hidden = _linear(behind, block.linear1, given)
        hidden = behind.apply(_ACTIVATIONS[block.activation](), hidden)
        out = _linear(behind, block.linear2, hidden, x)
        self._out = out if pre else _norm(behind, block.norm2, out)

    @classmethod
    def of(cls, block: TransformerBlock, x: Tensor, cache: KVCache) -> TokenStep | None:
        """The plans for a block and its cache, or None where the block has to run as usual."""
        state = modes.current()
        observed = state.grad or state.trace or state.observes or state.part is not None
        if observed or x.ndim != 3 or x.shape[1] != 1 or len(x) > _MOST_ROWS:
            return None
        fits = len(x) == cache.shape[0] and x.shape[2] == block.self_attn.d_model
        if not fits or not x.dtype == cache.memory[0].dtype == float32 or not _is_plain(block):
            return None
        step = cache.step
        if not (isinstance(step, cls) and step.block is block and step._holds()):
            try:
                step = cls(block, cache)
            except Unplanned:
                step = None
            cache.step = step
        return step

    def _holds(self) -> bool:
        same = all([a is b for a, b in zip(self.arrays, _arrays(self.block), strict=True)])
        return same and self._before.holds() and self._behind.holds()

    def run(self, x: Tensor, cache: KVCache) -> Tensor:
        """The block's result for one token of each of the batch; the cache then has them, too."""
        stop = cache.room(1)
        np.copyto(self._x, x.data)
        self._before.run()
        for memory, new in zip(cache.memory, self._new, strict=True):
            memory[:, :, cache.length] = new
        self._behind.set_length(stop)
        self._behind.run()
        cache.length = stop
        return te.from_numpy(self._out.copy())


def _linear(plan: Plan, layer: Linear, x: _Array, residual: _Array | None = None) -> _Array:
    parameters = arrays_of([p for p in (layer.weight, layer.bias) if p is not None])
    residuals = [] if residual is None else [residual]
    return plan.apply(LinearMap(residual is not None), x, *parameters, *residuals)


def _norm(plan: Plan, layer: LayerNorm, x: _Array) -> _Array:
    affine = arrays_of([p for p in (layer.weight, layer.bias) if p is not None])
    return plan.apply(Normalization(len(layer.normalized_shape), layer.eps), x, *affine)


def _is_plain(block: TransformerBlock) -> bool:
    """Whether the block's parts are those that it is made with, and do nothing else."""
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


def _arrays(block: TransformerBlock) -> list[_Array]:
    """The memory of all parameters that a plan knows."""
    layers = [*_linear_layers(block), block.norm1, block.norm2]
    parameters = [p for layer in layers for p in (layer.weight, layer.bias) if p is not None]
    return arrays_of(parameters)
