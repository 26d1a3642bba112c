"""What a transformer block does while it trains, both directions as two calls.

A small block takes less time than Python takes around it. Where nothing wants to see the
operations, it is one node of the graph, and a recording of its shape does the work.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

import te_tensor as te
from te_tensor import Tensor, modes, storage
from te_tensor.blas_library import uses_tiles
from te_tensor.dtypes import float32
from te_tensor.machine import Product, runs_programs
from te_tensor.ops.attention import penalty_of, record_heads, records_heads
from te_tensor.ops.linalg import Linear as LinearMap
from te_tensor.ops.normalization import LayerNorm as Normalization
from te_tensor.plan import laid_out
from te_tensor.recorder import Recorder
from te_tensor.recording import Recording, Replay
from te_tensor.tensor import arrays_of

from .block_plan import usual_functions, usual_mask
from .linear import Linear
from .recordings import recording_of
from .stack_plan import ACTIVATIONS, Floats, is_plain, layers_of
from .structure import structure

if TYPE_CHECKING:
    from .transformer import TransformerBlock

#: Multiply-adds of a block's linear maps from which a recording has to call a BLAS.
_MOST_WORK = 1 << 29
#: Multiply-adds of the largest product from which weights that stay are laid out once.
_LAID_FROM = 1 << 25


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
        self.is_plain = is_plain(block) and _fits(block)
        if not self.is_plain:
            return
        attention = block.self_attn
        parameters = [p for layer in layers_of(block) for p in (layer.weight, layer.bias)]
        self.parameters: list[Tensor] = [p for p in parameters if p is not None]
        self.size = sum(p.size for p in self.parameters)
        self.settings = _Settings(
            *(block.norm, block.activation, attention.num_heads, attention.kv_heads),
            (block.norm1.eps, block.norm2.eps),
            tuple(None if p is None else p.shape for p in parameters),
        )


def _fits(block: TransformerBlock) -> bool:
    """Whether the layers' shapes go together: else they raise as usual."""
    attention, hidden = block.self_attn, block.linear1.weight.shape[0]
    width = attention.d_model
    heads, kv_heads = (n * attention.head_dim for n in (attention.num_heads, attention.kv_heads))
    projections = ((heads, width), (kv_heads, width), (kv_heads, width), (width, heads))
    feed_forward = ((hidden, width), (width, hidden))
    wanted = [(width,), *projections, (width,), *feed_forward]
    return all(
        layer.weight is not None
        and layer.weight.shape == shape
        and (layer.bias is None or layer.bias.shape == shape[:1])
        and getattr(layer, "normalized_shape", (width,)) == (width,)
        for layer, shape in zip(layers_of(block), wanted, strict=True)
    )


_known: WeakKeyDictionary[TransformerBlock, _Known] = WeakKeyDictionary()


def run_recorded(block: TransformerBlock, x: Tensor, mask: Any, distance: Any) -> Tensor | None:
    """What a block makes of its input, or None where it has to run as usual.

    Args:
        block: the block.
        x: shape (B, S, d_model).
        mask: as the block takes it.
        distance: likewise.
    """
    if not _is_usual(block, x, mask, distance):
        return None
    known, rows = _known_of(block), x.shape[1]
    seen = None if mask is None else usual_mask(mask, x.shape)
    others: list[Floats] = [penalty_of(seen, rows, rows, causal=block.causal)]
    tensors = [x, *known.parameters]
    bias = block.self_attn.nl_oob
    if distance is not None and bias is not None:
        function = te.distance_function(bias.function.name.lower())
        prepared = te.prepare_distance(distance, function)
        if prepared.tensor.requires_grad or prepared.prepared.phi(function)[1] is not None:
            return None  # gradients of distances, or infinite ones
        others.append(prepared.prepared.whole_vectors(function)[:, 0, 0])
        tensors.append(bias.factors()[0])
    if not runs_programs(*arrays_of(tensors), *others):
        return None
    grad = modes.current().grad
    needs = tuple([grad and tensor.requires_grad for tensor in tensors])
    if True not in needs:
        others += _laid_out(block, x.shape[0] * rows)
    sizes = known.settings, block.causal, x.shape, tuple([other.shape for other in others]), needs
    recording = recording_of(sizes, partial(_record, *sizes))
    if recording is None:
        return None
    result: Tensor = Tensor.apply(Replay(recording, *others), *tensors)
    return result


def _laid_out(block: TransformerBlock, rows: int) -> list[Floats]:
    """Tiles, and what was found, of weights that stay laid out; nothing where they don't.

    Args:
        block: the block.
        rows: that products with the weights have.
    """
    found: list[Floats] = []
    if not uses_tiles() or rows * block.linear1.weight.size < _LAID_FROM:
        return found
    linears = [layer for layer in layers_of(block) if isinstance(layer, Linear)]
    for weight in arrays_of([layer.weight for layer in linears]):
        # It is made when it is asked for a second time.
        storage.layout_of(weight, laid_out)
        laid = storage.layout_of(weight, laid_out)
        if laid is None:  # in memory that others may write to
            return []
        found += laid.tiles, laid.facts
    return found


def are_recorded(blocks: Sequence[TransformerBlock], x: Tensor, mask: Any, distance: Any) -> bool:
    """Whether blocks that follow each other run by recordings, unless distances are infinite."""
    return all([_is_usual(block, x, mask, distance) for block in blocks])


def _known_of(block: TransformerBlock) -> _Known:
    known = _known.get(block)
    if known is None or known.changes != structure.changes:
        known = _known[block] = _Known(block)
    return known


def _is_usual(block: TransformerBlock, x: Tensor, mask: Any, distance: Any) -> bool:
    """Whether nothing looks at operations, and there are recordings for such inputs."""
    state = modes.current()
    if state.trace or state.observes or x.ndim != 3 or x.dtype != float32:
        return False
    known, attention = _known_of(block), block.self_attn
    batch, rows, features = x.shape
    if not known.is_plain or features != attention.d_model or not runs_programs():
        return False
    heads = attention.num_heads, attention.kv_heads, attention.head_dim
    if not records_heads(batch, rows, *heads):
        return False
    if batch * rows * known.size > _MOST_WORK and te.parallel.crew() is None:
        return False
    if mask is not None and (
        getattr(mask, "requires_grad", False) or usual_mask(mask, x.shape) is None
    ):
        return False
    return distance is None or usual_functions([block], distance, x.shape) is not None


def _record(
    settings: _Settings,
    causal: bool,
    size: tuple[int, ...],
    others: Sequence[tuple[int, ...]],
    needs: Sequence[bool],
    tiles: bool,
) -> Recording:
    recorder, needed = Recorder(tiles=tiles, backward=True in needs), iter(needs)
    x = recorder.input(size, needs_grad=next(needed))
    given = [
        None if shape is None else recorder.input(shape, needs_grad=next(needed))
        for shape in settings.shapes
    ]
    slopes = None
    if len(others) % 2 == 0:  # what is laid out are pairs
        slopes = recorder.input((1, settings.heads, 1, 1), needs_grad=next(needed))
    penalty, *rest = [recorder.input(shape, needs_grad=False) for shape in others]
    phi, laid = ([], rest) if slopes is None else (rest[:1], rest[1:])
    layers: Iterator[list[Floats]] = iter(
        [[p for p in given[at : at + 2] if p is not None] for at in range(0, len(given), 2)]
    )
    norm1, q, k, v, o, norm2, linear1, linear2 = layers
    if laid:
        weights = [weight for weight, *_ in (q, k, v, o, linear1, linear2)]
        for weight, tiles_of, facts in zip(weights, laid[::2], laid[1::2], strict=True):
            recorder.lay(weight, tiles_of, facts)
    pre = settings.norm == "pre"

    def normed(x: Floats, layer: list[Floats], eps: float) -> Floats:
        return recorder.apply(Normalization(1, eps), x, *layer)

    def linear(x: Floats, layer: list[Floats], *residual: Floats) -> Floats:
        return recorder.apply(LinearMap(bool(residual)), x, *layer, *residual)

    read = normed(x, norm1, settings.epsilons[0]) if pre else x
    projected = _projected(recorder, read, (q, k, v)) if laid else None
    if projected is None:  # one product, of the weights joined
        projections = list(map(recorder.join, zip(q, k, v, strict=True)))
        projected = linear(read, projections)
        recorder.done(*projections)
    recorder.done(read)
    mixed = record_heads(
        recorder,
        *(projected, penalty),
        heads=settings.heads,
        kv_heads=settings.kv_heads,
        causal=causal,
        phi=phi[0] if phi else None,
        slopes=slopes,
    )
    recorder.done(projected)
    x = linear(mixed, o, x)
    recorder.done(mixed)
    if pre:
        read = normed(x, norm2, settings.epsilons[1])
    else:
        read = x = normed(x, norm1, settings.epsilons[0])
    inner = recorder.pass_on(linear(read, linear1))
    hidden = recorder.apply(ACTIVATIONS[settings.activation](), inner)
    recorder.done(inner)
    x = linear(hidden, linear2, x)
    recorder.done(hidden)
    return recorder.finish(x if pre else normed(x, norm2, settings.epsilons[1]))


def _projected(recorder: Recorder, x: Floats, layers: Sequence[Sequence[Floats]]) -> Floats | None:
    """Queries, keys and values side by side, by weights that are laid out; None without tiles."""
    ends = list(accumulate(len(weight) for weight, *_ in layers))
    out = recorder.kept(*x.shape[:2], ends[-1])
    rows, matrix = x.reshape(-1, x.shape[2]), out.reshape(-1, ends[-1])
    products = []
    for end, (weight, *bias) in zip(ends, layers, strict=True):
        own, start = matrix[:, end - len(weight) : end], bias[0] if bias else None
        products.append(Product(weight.T, own, start, recorder.laid(weight)))
    return out if recorder.multiply_each(recorder.forward, rows, products) else None
