"""The backward walk: from results to leaves, over operations, on ndarrays.

Operations are numbered as they are applied, so going through the reachable ones from the newest
to the oldest meets every operation after all that used its results; no recursion is involved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter
from time import perf_counter
from typing import Any, Protocol

import numpy as np

from . import modes, parallel
from .dtypes import SMALL_FLOATS, Array, float32
from .memory import owns_memory
from .operation import Operation


class Variable(Protocol):
    """What the walk needs to know of a tensor."""

    @property
    def creator(self) -> Operation | None: ...  # noqa: D102
    @property
    def requires_grad(self) -> bool: ...  # noqa: D102
    @property
    def output_index(self) -> int: ...  # noqa: D102
    @property
    def shape(self) -> tuple[int, ...]: ...  # noqa: D102
    @property
    def dtype(self) -> Any: ...  # noqa: D102


#: Receives a leaf, its gradient, and whether the array may be kept as the leaf's own.
Sink = Callable[[Any, Array, bool], None]


class _Pending:
    """The sum, so far, of the gradients of one operation's outputs."""

    __slots__ = ("grads", "owned")

    def __init__(self, outputs: int) -> None:
        self.grads: list[Array | None] = [None] * outputs
        self.owned = [False] * outputs

    def add(self, index: int, grad: Array, owned: bool) -> None:
        """Add a gradient; an array is written to only if nobody else holds it."""
        before = self.grads[index]
        if before is None:
            self.grads[index] = grad
            self.owned[index] = owned
        elif self.owned[index]:
            add_to(before, grad)
        else:
            self.grads[index] = parallel.ufunc(np.add, before, grad)
            self.owned[index] = True


def add_to(total: Array, grad: Array) -> None:
    """Add a gradient in place, a large one in the engine's threads."""
    parallel.elementwise(_add_block, total, grad)


def _add_block(total: Array, grad: Array) -> None:
    np.add(total, grad, out=total)


def backward(
    roots: Iterable[tuple[Variable, Array]], sink: Sink, *, retain_graph: bool = False
) -> None:
    """Walk from the roots to the leaves.

    Args:
        roots: tensors with the gradients to start from.
        sink: is given each leaf's gradients, one by one.
        retain_graph: keep what operations saved, for another walk.

    Raises:
        RuntimeError: the graph has been freed, or a saved array was changed.
        ValueError: an operation returned a gradient of a wrong shape or number.
    """
    pending: dict[Operation, _Pending] = {}
    for tensor, grad in roots:
        if tensor.creator is None:
            sink(tensor, grad, False)
        else:
            _pending_of(pending, tensor.creator).add(tensor.output_index, grad, False)
    with np.errstate(all="ignore"):  # as in forward: inf and NaN without warnings
        for operation in _newest_first(list(pending)):
            operation.retains_graph = retain_graph
            _step(operation, pending.pop(operation), pending, sink)
            if not retain_graph:
                operation.release()


def _pending_of(pending: dict[Operation, _Pending], operation: Operation) -> _Pending:
    slot = pending.get(operation)
    if slot is None:
        slot = pending[operation] = _Pending(operation.output_count)
    return slot


def _newest_first(found: list[Operation]) -> Iterable[Operation]:
    """All operations that the given ones came from, each after all its users.

    The list gives them up one by one, so that the walk frees memory as it goes.
    """
    seen = set(found)
    for operation in found:  # grows as it is read
        if operation.released:
            raise RuntimeError(
                f"backward went through {type(operation).__name__} already, and what it had saved "
                "is freed: pass retain_graph=True to the first backward, or run forward again"
            )
        for tensor in operation.inputs:
            creator = tensor.creator
            if creator is not None and tensor.requires_grad and creator not in seen:
                seen.add(creator)
                found.append(creator)
    found.sort(key=attrgetter("sequence"))
    seen.clear()
    while found:
        yield found.pop()


def _step(
    operation: Operation, slot: _Pending, pending: dict[Operation, _Pending], sink: Sink
) -> None:
    """One operation's backward, its gradients handed on to where its inputs came from."""
    # As in forward: small floats are computed with in float32, and rounded once in _fit.
    incoming = [
        g.astype(float32) if g is not None and g.dtype in SMALL_FLOATS else g for g in slot.grads
    ]
    operation.check_unchanged()
    outs = _owned_arrays(operation, pending)
    outgoing = _outgoing(operation, incoming, outs)
    for position, tensor in enumerate(operation.inputs):
        given = outgoing[position]
        if given is None or not operation.needs_grad[position] or given is outs[position]:
            continue
        grad = _fit(operation, given, tensor)
        if modes.current().anomaly and np.isnan(grad).any():
            raise FloatingPointError(
                f"backward of {type(operation).__name__} made a NaN in the gradient of input "
                f"{position}{operation.origin or ''}"
            )
        fresh = grad is not given or _is_fresh(given, operation, incoming, outgoing)
        owned = fresh and owns_memory(grad) and grad.flags.writeable
        if tensor.creator is None:
            sink(tensor, grad, owned)
        else:
            _pending_of(pending, tensor.creator).add(tensor.output_index, grad, owned)


def _owned_arrays(operation: Operation, pending: dict[Operation, _Pending]) -> list[Array | None]:
    """For each input, the array that its gradients are summed in, if there is one already."""
    found: list[Array | None] = [None] * len(operation.inputs)
    if operation.backward_into is None:
        return found
    for position, tensor in enumerate(operation.inputs):
        slot = pending.get(tensor.creator) if operation.needs_grad[position] else None
        if slot is not None and slot.owned[tensor.output_index]:
            array = slot.grads[tensor.output_index]
            taken = any(array is other for other in found)  # a tensor that is given twice
            if array is not None and array.dtype not in SMALL_FLOATS and not taken:
                found[position] = array
    return found


def _outgoing(
    operation: Operation, incoming: list[Any], outs: list[Array | None]
) -> Sequence[Array | None]:
    """What the operation's backward returns."""
    profile = modes.current().profile
    begin = perf_counter()
    try:
        if operation.backward_into is not None and any(out is not None for out in outs):
            outgoing = operation.backward_into(*incoming, outs=outs)
        else:
            outgoing = operation.backward(*incoming)
    except Exception as error:
        error.add_note(f"in the backward of {type(operation).__name__}")
        raise
    if profile is not None:
        profile.note(operation, False, perf_counter() - begin, outgoing)
    if len(outgoing) != len(operation.inputs):
        raise ValueError(
            f"backward of {type(operation).__name__} returned {len(outgoing)} gradients "
            f"for {len(operation.inputs)} inputs"
        )
    return outgoing


def _fit(operation: Operation, grad: Array, tensor: Variable) -> Array:
    """The gradient in the shape and dtype of its input."""
    if not isinstance(grad, np.ndarray):
        grad = np.asarray(grad)
    if grad.shape != tensor.shape:
        if not operation.broadcasts or not _stretches(tensor.shape, grad.shape):
            raise ValueError(
                f"backward of {type(operation).__name__} returned a gradient of shape {grad.shape} "
                f"for an input of shape {tensor.shape}"
            )
        grad = sum_to_shape(grad, tensor.shape)
    return grad if grad.dtype == tensor.dtype else grad.astype(tensor.dtype)


def _stretches(shape: tuple[int, ...], larger: tuple[int, ...]) -> bool:
    """Whether broadcasting takes the one shape to the other."""
    return len(shape) <= len(larger) and all(
        n in (1, m) for n, m in zip(reversed(shape), reversed(larger), strict=False)
    )


def _is_fresh(
    grad: Array, operation: Operation, incoming: Iterable[Any], outgoing: Iterable[Any]
) -> bool:
    """Whether nobody else holds this array: a leaf may then keep it without a copy.

    The engine's own operations return arrays that they made, were given or saved; what others
    return may be held anywhere.
    """
    return (
        type(operation).__module__.startswith("te_tensor.")
        and not any(grad is other for other in (*incoming, *operation.saved))
        and sum(grad is other for other in outgoing) == 1
    )


def sum_to_shape(grad: Array, shape: tuple[int, ...]) -> Array:
    """Undo broadcasting: sum over the axes that were added or stretched."""
    added = tuple(range(grad.ndim - len(shape)))
    stretched = tuple(
        axis + len(added)
        for axis, length in enumerate(shape)
        if length == 1 and grad.shape[axis + len(added)] != 1
    )
    summed = np.asarray(grad.sum(axis=added + stretched, keepdims=True))
    return summed.reshape(shape)
