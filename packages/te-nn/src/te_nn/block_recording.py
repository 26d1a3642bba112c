"""What a transformer block does while it trains, both directions as two calls.

A small block takes less time than Python takes around it. Where nothing wants to see the
operations, it is one node of the graph, and a recording of its shape does the work.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

import te_tensor as te
from te_tensor import Tensor, modes
from te_tensor.dtypes import float32
from te_tensor.machine import runs_programs
from te_tensor.ops.attention import RecordedHeads, penalty_of
from te_tensor.ops.linalg import Linear as LinearMap
from te_tensor.ops.normalization import LayerNorm as Normalization
from te_tensor.recorder import Recorder, Recording, Replay, Unrecorded
from te_tensor.tensor import arrays_of

from .block_plan import usual_distance, usual_mask
from .stack_plan import ACTIVATIONS, Floats, is_plain, layers_of
from .structure import structure

if TYPE_CHECKING:
    from .transformer import TransformerBlock

#: Multiply-adds of a block's linear maps up to which a recording is the quicker way.
_MOST_WORK = 1 << 28
#: Recordings that are kept, each for other sizes.
_MOST_RECORDINGS = 64


class _Settings(NamedTuple):
    """What a recording depends on, beside the sizes of what blocks are given."""

    norm: str
    activation: str
    heads: int
    kv_heads: int
    epsilons: tuple[float, ...]
    #: Of each layer's parameters; None for a bias that isn't there.
    shapes: tuple[tuple[int, ...] | None, ...]


class _Known:
    """What is known of a block, until the structure of any module changes."""

    def __init__(self, block: TransformerBlock) -> None:
        self.changes = structure.changes
        self.is_plain = is_plain(block)
        self.work = 0
        if not self.is_plain:
            return
        attention = block.self_attn
        parameters = [p for layer in layers_of(block) for p in (layer.weight, layer.bias)]
        self.parameters: list[Tensor] = [p for p in parameters if p is not None]
        self.settings = _Settings(
            *(block.norm, block.activation, attention.num_heads, attention.kv_heads),
            (block.norm1.eps, block.norm2.eps),
            tuple(None if p is None else p.shape for p in parameters),
        )
        self.work = sum(p.size for p in self.parameters)


_known: WeakKeyDictionary[TransformerBlock, _Known] = WeakKeyDictionary()
_recordings: OrderedDict[Any, Recording | None] = OrderedDict()
_guard = threading.Lock()


def run_recorded(block: TransformerBlock, x: Tensor, mask: Any, distance: Any) -> Tensor | None:
    """What a block makes of its input, or None where it has to run as usual.

    Args:
        block: the block.
        x: shape (B, S, d_model).
        mask: as the block takes it.
        distance: likewise.
    """
    state = modes.current()
    if not state.grad or state.trace or state.observes or x.ndim != 3 or x.dtype != float32:
        return None
    known = _known.get(block)
    if known is None or known.changes != structure.changes:
        known = _known[block] = _Known(block)
    batch, rows, features = x.shape
    if not known.is_plain or not 0 < batch * rows * known.work <= _MOST_WORK:
        return None
    if features != block.self_attn.d_model or any(
        getattr(g, "requires_grad", False) for g in (mask, distance)
    ):
        return None
    seen = None if mask is None else usual_mask(mask, x.shape)
    prepared = None if distance is None else usual_distance([block], distance, x.shape)
    if (mask is None) != (seen is None) or (distance is None) != (prepared is None):
        return None
    if prepared is not None and prepared.tensor.requires_grad:
        return None
    others: list[Floats] = [penalty_of(seen, rows, rows, causal=block.causal)]
    tensors = [x, *known.parameters]
    bias = block.self_attn.nl_oob
    if prepared is not None and bias is not None:
        function = te.distance_function(bias.function.name.lower())
        if prepared.prepared.phi(function)[1] is not None:
            return None  # infinite distances
        others.append(prepared.prepared.whole_vectors(function)[:, 0, 0])
        tensors.append(bias.factors()[0])
    needs = tuple([tensor.requires_grad for tensor in tensors])
    if True not in needs or not runs_programs(*arrays_of(tensors), *others):
        return None
    recording = _recording(known.settings, x.shape, tuple([o.shape for o in others]), needs)
    if recording is None:
        return None
    result: Tensor = Tensor.apply(Replay(recording, *others), *tensors)
    return result


def _recording(
    settings: _Settings,
    size: tuple[int, ...],
    others: tuple[tuple[int, ...], ...],
    needs: tuple[bool, ...],
) -> Recording | None:
    """The recording for some sizes; None where there can't be one."""
    key = settings, size, others, needs, te.get_num_threads(), te.parallel.in_parallel()
    with _guard:
        known = key in _recordings
        found = _recordings.pop(key, None)
        if not known or (found is not None and not found.is_current()):
            try:
                found = _record(settings, size, others, needs)
            except Unrecorded:
                found = None
        _recordings[key] = found
        if len(_recordings) > _MOST_RECORDINGS:
            _recordings.popitem(last=False)
    return found


def _record(
    settings: _Settings,
    size: tuple[int, ...],
    others: Sequence[tuple[int, ...]],
    needs: Sequence[bool],
) -> Recording:
    recorder, needed = Recorder(), iter(needs)
    x = recorder.input(size, needs_grad=next(needed))
    given = [
        None if shape is None else recorder.input(shape, needs_grad=next(needed))
        for shape in settings.shapes
    ]
    slopes = None
    if len(others) == 2:
        slopes = recorder.input((1, settings.heads, 1, 1), needs_grad=next(needed))
    penalty, *phi = [recorder.input(shape, needs_grad=False) for shape in others]
    layers: Iterator[list[Floats]] = iter(
        [[p for p in given[at : at + 2] if p is not None] for at in range(0, len(given), 2)]
    )
    norm1, q, k, v, o, norm2, linear1, linear2 = layers
    pre = settings.norm == "pre"

    def normed(x: Floats, layer: list[Floats], eps: float) -> Floats:
        return recorder.apply(Normalization(1, eps), x, *layer)

    def linear(x: Floats, layer: list[Floats], *residual: Floats) -> Floats:
        return recorder.apply(LinearMap(bool(residual)), x, *layer, *residual)

    read = normed(x, norm1, settings.epsilons[0]) if pre else x
    # Queries, keys and values are one product, of their weights joined.
    projections = list(map(recorder.join, zip(q, k, v, strict=True)))
    heads = RecordedHeads(
        recorder,
        *(linear(read, projections), penalty),
        heads=settings.heads,
        kv_heads=settings.kv_heads,
        phi=phi[0] if phi else None,
        slopes=slopes,
    )
    x = linear(heads.out, o, x)
    if pre:
        read = normed(x, norm2, settings.epsilons[1])
    else:
        read = x = normed(x, norm1, settings.epsilons[0])
    hidden = recorder.apply(ACTIVATIONS[settings.activation](), linear(read, linear1))
    x = linear(hidden, linear2, x)
    return recorder.finish(x if pre else normed(x, norm2, settings.epsilons[1]))
