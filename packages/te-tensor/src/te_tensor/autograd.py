"""The backward walk: from results to leaves, over operations, on ndarrays.

Operations are numbered as they are applied, so going through the reachable ones from the newest
to the oldest meets every operation after all that used its results; no recursion is involved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter
from time import perf_counter
from typing import Any, Protocol, TypeAlias

import numpy as np

from . import modes, parallel, silence, storage
from .dtypes import SMALL_FLOATS, Array, float32
from .hooks import Hooks
from .memory import owns_memory
from .operation import Operation


class Variable(Protocol):
    """What the walk needs to know of a tensor."""

    _array: Array
    _creator: Operation | None
    _output_index: int
    _requires_grad: bool
    _leaf_hooks: LeafHooks | None


#: Where a gradient goes: to the operation that made a tensor, or to a leaf, by its id.
Source: TypeAlias = Operation | int
#: Receives a leaf, its gradient, and whether the array may be kept as the leaf's own.
Sink = Callable[[Any, Array, bool], None]


class LeafHooks:
    """What is called with a leaf's gradient: before it is added to `grad`, and after."""

    __slots__ = ("accumulated", "arriving")

    def __init__(self) -> None:
        self.arriving = Hooks()
        self.accumulated = Hooks()


def add_to(total: Array, grad: Array) -> None:
    """Add a gradient in place, a large one in the engine's threads."""
    if total.size < parallel.PARALLEL_CALL_FROM:
        np.add(total, grad, total)
    else:
        parallel.elementwise(_add_block, total, grad)


def _add_block(total: Array, grad: Array) -> None:
    np.add(total, grad, out=total)


def backward(
    roots: Iterable[tuple[Variable, Array]], sink: Sink, *, retain_graph: bool = False
) -> None:
    """Walk from the roots to the leaves.

    Args:
        roots: tensors with the gradients to start from.
        sink: is given each leaf's gradient when all of it is there.
        retain_graph: keep what operations saved, for another walk.

    Raises:
        RuntimeError: the graph has been freed, or a saved array was changed.
        ValueError: an operation returned a gradient of a wrong shape or number.
    """
    _Walk(list(roots), sink, retain_graph).run()


def gradients(
    roots: Iterable[tuple[Variable, Array]],
    targets: Sequence[Variable],
    *,
    retain_graph: bool = False,
) -> list[Array | None]:
    """The gradients of the targets, leaves or not, None where a target wasn't used.

    Args:
        roots: tensors with the gradients to start from.
        targets: the tensors whose gradients are wanted.
        retain_graph: keep what operations saved, for another walk.

    Raises:
        RuntimeError: the graph has been freed, or a saved array was changed.
        ValueError: an operation returned a gradient of a wrong shape or number.
    """
    found: dict[int, Array] = {}

    def sink(leaf: Any, grad: Array, owned: bool) -> None:
        before = found.get(id(leaf))
        if before is not None:
            add_to(before, grad)
        elif any(leaf is target for target in targets):
            found[id(leaf)] = grad if owned else np.array(grad)

    walk = _Walk(list(roots), sink, retain_graph, targets)
    walk.run()
    for target in targets:
        grad = walk.met.get((target._creator, target._output_index))
        if grad is not None:
            found[id(target)] = grad
    grads = [found.get(id(target)) for target in targets]
    for place, target in enumerate(targets):
        if grads[place] is not None and any(target is other for other in targets[:place]):
            grads[place] = np.array(grads[place])  # whoever gets it may write to it
    return grads


class _Walk:
    """One walk, and what has arrived where.

    Args:
        roots: tensors with the gradients to start from.
        sink: receives the leaves' gradients.
        retain_graph: keep what operations saved.
        targets: go only where these came from; None to go everywhere.
    """

    def __init__(
        self,
        roots: list[tuple[Variable, Array]],
        sink: Sink,
        retain_graph: bool,
        targets: Sequence[Variable] | None = None,
    ) -> None:
        self.sink = sink
        self.retain_graph = retain_graph
        self.state = modes.current()
        #: How many gradients may still come to a leaf.
        self.uses: dict[Source, int] = {}
        #: What has come, by output; a leaf has one.
        self.pending: dict[Source, list[Array | None]] = {}
        #: Where several gradients come: whether nobody else holds what has come, by output, so
        #: that others can be added to it in place.
        self.owned: dict[Source, list[bool]] = {}
        #: The leaves that have hooks; those that get some on the way are left to the next walk.
        self.hooked: set[Source] = set()
        #: The operations to go through, the newest last.
        self.operations = self._reachable([tensor for tensor, _ in roots])
        #: Gradients of targets that are no leaves, by creator and index of the output.
        self.met: dict[tuple[Operation | None, int], Array] = {}
        self.wanted: dict[Operation, list[int]] = {}
        self.leading: set[Operation] | None = None
        if targets is not None:
            for target in targets:
                if target._creator is not None:
                    self.wanted.setdefault(target._creator, []).append(target._output_index)
            self.leading = self._leading_to(targets)
        for tensor, grad in roots:
            if tensor._creator is None or self._leads(tensor._creator):
                self._arrive(tensor, grad)

    def _reachable(self, roots: Sequence[Variable]) -> list[Operation]:
        """All operations that the roots came from, each before all its users."""
        found: list[Operation] = []
        seen: set[Operation] = set()
        uses, owned = self.uses, self.owned
        edges = [roots]
        for tensors in edges:  # grows as it is read
            for tensor in tensors:
                if not tensor._requires_grad:
                    continue
                creator = tensor._creator
                if creator is None:
                    leaf = id(tensor)
                    count = uses[leaf] = uses.get(leaf, 0) + 1
                    if count == 2:
                        owned[leaf] = [False]
                    elif count == 1 and tensor._leaf_hooks is not None:
                        self.hooked.add(leaf)
                elif creator in seen:
                    owned[creator] = [False] * creator.output_count
                elif creator.released:
                    raise RuntimeError(
                        f"backward went through {type(creator).__name__} already, and what it had "
                        "saved is freed: pass retain_graph=True to the first backward, or run "
                        "forward again"
                    )
                else:
                    seen.add(creator)
                    found.append(creator)
                    edges.append(creator.inputs)
        found.sort(key=attrgetter("sequence"))
        return found

    def _leads(self, operation: Operation) -> bool:
        """Whether a gradient is wanted there."""
        return self.leading is None or operation in self.leading or operation in self.wanted

    def _leading_to(self, targets: Sequence[Variable]) -> set[Operation]:
        """The operations whose backward brings something nearer to a target."""
        leaves = {id(target) for target in targets if target._creator is None}
        leading: set[Operation] = set()
        for operation in self.operations:  # the oldest first
            for tensor in operation.inputs:
                creator = tensor._creator
                if creator in leading or creator in self.wanted or id(tensor) in leaves:
                    leading.add(operation)
                    break
        return leading

    def run(self) -> None:
        """Go through the operations, the newest first; memory is freed on the way."""
        before = silence.begin()  # as in forward: inf and NaN without warnings
        operations, pending = self.operations, self.pending
        try:
            while operations:
                operation = operations.pop()
                incoming = pending.pop(operation, None)
                self.owned.pop(operation, None)
                if incoming is None:
                    self._pass_by(operation)
                    continue
                if operation.hooks is not None:
                    for index, hooks in operation.hooks.items():
                        incoming[index] = _called(hooks, incoming[index])
                if self.leading is not None:
                    self._meet(operation, incoming)
                    if operation not in self.leading:
                        continue
                operation.retains_graph = self.retain_graph
                self._step(operation, incoming)
                if not self.retain_graph:
                    operation.release()
        finally:
            silence.end(before)

    def _pass_by(self, operation: Operation) -> None:
        """No gradient came to an operation: none comes from it."""
        for tensor in operation.inputs:
            if tensor._creator is None:
                self._count_use(tensor)

    def _meet(self, operation: Operation, incoming: list[Array | None]) -> None:
        """Keep the gradients of targets among an operation's outputs."""
        for index in self.wanted.get(operation, ()):
            grad = incoming[index]
            if grad is not None:
                self.met[operation, index] = np.array(grad)

    def _step(self, operation: Operation, incoming: list[Any]) -> None:
        """One operation's backward, its gradients handed on to where its inputs came from."""
        # One loop and few calls: on small tensors this method is what an operation costs.
        outs = None if operation.backward_into is None else self._owned_arrays(operation)
        outgoing = self._outgoing(operation, incoming, outs)
        needs_grad, leading = operation.needs_grad, self.leading
        for position, tensor in enumerate(operation.inputs):
            creator, grad = tensor._creator, outgoing[position]
            if (
                grad is None
                or not needs_grad[position]
                or (outs is not None and grad is outs[position])  # it was added to what had come
            ):
                if creator is None:
                    self._count_use(tensor)
                continue
            like = tensor._array
            usual = type(grad) is np.ndarray and grad.dtype is like.dtype
            if not usual or grad.shape != like.shape:
                grad = _fit(operation, grad, like)
            if self.state.anomaly and np.isnan(grad).any():
                raise FloatingPointError(
                    f"backward of {type(operation).__name__} made a NaN in the gradient of input "
                    f"{position}{operation.origin or ''}"
                )
            if creator is None or leading is None or self._leads(creator):
                self._arrive(tensor, grad, operation, incoming, outgoing)

    def _outgoing(
        self, operation: Operation, incoming: list[Any], outs: list[Array | None] | None
    ) -> Sequence[Array | None]:
        """What the operation's backward returns."""
        # As in forward: small floats are computed with in float32, and rounded once in _fit.
        for index, grad in enumerate(incoming):
            if grad is not None and grad.dtype is not float32 and grad.dtype in SMALL_FLOATS:
                incoming[index] = grad.astype(float32)
        if operation._saved_at != storage.clock:
            operation.check_unchanged()
        profile = self.state.profile
        begin = 0.0 if profile is None else perf_counter()
        try:
            if outs is not None and operation.backward_into is not None:
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

    def _arrive(
        self,
        tensor: Variable,
        grad: Array,
        operation: Operation | None = None,
        incoming: Sequence[Any] = (),
        outgoing: Sequence[Any] = (),
    ) -> None:
        """Add to what has come; an array is written to only if nobody else holds it.

        Args:
            tensor: what the gradient is of.
            grad: the gradient.
            operation: whose backward made it; None where the caller did.
            incoming: what that backward was given.
            outgoing: what it returned.
        """
        creator = tensor._creator
        source: Source = id(tensor) if creator is None else creator
        owned = self.owned.get(source)
        if owned is None:  # nothing else comes
            if creator is None:
                self._complete(tensor, grad, _is_fresh(grad, operation, incoming, outgoing))
            else:
                outputs: list[Array | None] = [None] * creator.output_count
                outputs[tensor._output_index] = grad
                self.pending[creator] = outputs
            return
        index, grads = tensor._output_index, self.pending.get(source)
        if grads is None:
            grads = self.pending[source] = [None] * len(owned)
        before = grads[index]
        if before is None:
            grads[index] = grad
            owned[index] = _is_fresh(grad, operation, incoming, outgoing)
        elif not owned[index]:
            grads[index] = parallel.ufunc(np.add, before, grad)
            owned[index] = True
        else:
            add_to(before, grad)
        if creator is None:
            self._count_use(tensor)

    def _count_use(self, leaf: Variable) -> None:
        """Count that a use of a leaf brought what it brings; after the last one, hand that on."""
        source = id(leaf)
        uses = self.uses.get(source, 1) - 1  # 1 where it ceased to need a gradient after forward
        self.uses[source] = uses
        if uses or source not in self.pending:
            return
        (grad,) = self.pending.pop(source)
        if grad is not None:
            self._complete(leaf, grad, self.owned[source][0])

    def _complete(self, leaf: Variable, grad: Array, fresh: bool) -> None:
        """All of a leaf's gradient is there: call its hooks, and hand it on."""
        hooks = leaf._leaf_hooks if id(leaf) in self.hooked else None
        if hooks is None:
            self.sink(leaf, grad, fresh)
            return
        fresh = fresh and not hooks.arriving  # a hook may keep what it is given
        self.sink(leaf, _called(hooks.arriving, grad), fresh)
        if self.leading is None:
            for hook in hooks.accumulated:
                hook()

    def _owned_arrays(self, operation: Operation) -> list[Array | None] | None:
        """For each input, the array that its gradients are summed in, if there is one already."""
        found: list[Array | None] | None = None
        for position, tensor in enumerate(operation.inputs):
            source = id(tensor) if tensor._creator is None else tensor._creator
            index = tensor._output_index
            owned = self.owned.get(source)
            if owned is not None and owned[index] and operation.needs_grad[position]:
                array = self.pending[source][index]
                if array is None or array.dtype in SMALL_FLOATS:
                    continue
                if found is None:
                    found = [None] * len(operation.inputs)
                if not any(array is other for other in found):  # a tensor that is given twice
                    found[position] = array
        return found


def _called(hooks: Hooks, grad: Any) -> Any:
    """What hooks make of a gradient, if it is there."""
    if grad is not None:
        for hook in hooks:
            grad = hook(grad)
    return grad


def _fit(operation: Operation, grad: Array, like: Array) -> Array:
    """The gradient in the shape and dtype of its input."""
    if not isinstance(grad, np.ndarray):
        grad = np.asarray(grad)
    if grad.shape != like.shape:
        if not operation.broadcasts or not _stretches(like.shape, grad.shape):
            raise ValueError(
                f"backward of {type(operation).__name__} returned a gradient of shape {grad.shape} "
                f"for an input of shape {like.shape}"
            )
        grad = sum_to_shape(grad, like.shape)
    return grad if grad.dtype == like.dtype else grad.astype(like.dtype)


def _stretches(shape: tuple[int, ...], larger: tuple[int, ...]) -> bool:
    """Whether broadcasting takes the one shape to the other."""
    return len(shape) <= len(larger) and all(
        n in (1, m) for n, m in zip(reversed(shape), reversed(larger), strict=False)
    )


def _is_fresh(
    grad: Array, operation: Operation | None, incoming: Iterable[Any], outgoing: Iterable[Any]
) -> bool:
    """Whether nobody else holds this array: a leaf may then keep it without a copy."""
    if operation is None or not (owns_memory(grad) and grad.flags.writeable):
        return False
    held = 0  # and stays 0 where _fit made it
    for other in (*outgoing, *incoming, *operation.saved):
        if other is grad:
            held += 1
    return held == 0 or (held == 1 and operation.is_ours)


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
