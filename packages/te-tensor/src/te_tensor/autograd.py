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
from .checks import broadcasts_to
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


_place = attrgetter("sequence")
_ndarray = np.ndarray


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


class _Several:
    """Where several gradients come together: at a leaf, or at the operation that made a tensor.

    Attributes:
        left: how many uses of a leaf may still bring one.
        grads: their sums, by output; a leaf has one.
        owned: by output, whether nobody else holds the sum, so that it is added to in place.
    """

    __slots__ = ("grads", "left", "owned")

    def __init__(self, outputs: int, left: int) -> None:
        self.left = left
        self.grads: list[Array | None] = [None] * outputs
        self.owned = [False] * outputs


class _Given(Operation):
    """What stands in for the operation whose backward made the gradients that a walk begins with.

    Args:
        tensors: where they go.
    """

    def __init__(self, tensors: Sequence[Variable]) -> None:
        self.inputs = tuple(tensors)
        self.needs_grad = (True,) * len(tensors)


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
        #: What has come where: nothing yet, the only gradient that is expected, or several.
        self.arrived: dict[Source, Any] = {}
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
        given = [(tensor, grad) for tensor, grad in roots if self._leads(tensor._creator)]
        grads = [grad for _, grad in given]
        self._hand_on(_Given([tensor for tensor, _ in given]), grads, grads)

    def _reachable(self, roots: Sequence[Variable]) -> list[Operation]:
        """All operations that the roots came from, each before all its users."""
        found: list[Operation] = []
        arrived = self.arrived
        edges = [roots]
        for tensors in edges:  # grows as it is read
            for tensor in tensors:
                if not tensor._requires_grad:
                    continue
                creator = tensor._creator
                source: Source = id(tensor) if creator is None else creator
                if source in arrived:
                    several = arrived[source]
                    if several is None:
                        arrived[source] = _Several(1, 2)
                    else:
                        several.left += 1
                elif creator is None:
                    arrived[source] = None
                    if tensor._leaf_hooks is not None:
                        self.hooked.add(source)
                else:
                    inputs, outputs = creator.inputs, creator.output_count
                    if not inputs:
                        raise RuntimeError(
                            f"backward went through {type(creator).__name__} already, and what it "
                            "had saved is freed: pass retain_graph=True to the first backward, or "
                            "run forward again"
                        )
                    arrived[source] = None if outputs == 1 else _Several(outputs, 1)
                    found.append(creator)
                    edges.append(inputs)
        found.sort(key=_place)
        return found

    def _leads(self, operation: Operation | None) -> bool:
        """Whether a gradient is wanted there; leaves (None) are left to the sink."""
        if self.leading is None or operation is None:
            return True
        return operation in self.leading or operation in self.wanted

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
        before = silence.begin(silence.QUIET)  # as in forward: inf and NaN without warnings
        operations, arrived, retain = self.operations, self.arrived, self.retain_graph
        plain = self.leading is None and not self.state.observes and not retain
        try:
            # Few calls: on small tensors this loop and the next one are what an operation costs.
            while operations:
                operation = operations.pop()
                incoming = arrived.pop(operation)
                if (  # the most usual
                    plain
                    and type(incoming) is _ndarray
                    and incoming.dtype is float32
                    and operation._saved_at == storage.clock
                    and operation.hooks is None
                    and operation.backward_into is None
                ):
                    try:
                        outgoing = operation.backward(incoming)
                    except Exception as error:
                        _note(error, operation)
                        raise
                    incoming = (incoming,)
                else:
                    incoming = self._received(operation, incoming)
                    if incoming is None:
                        self._pass_by(operation)
                        continue
                    outgoing = self._step(operation, incoming)
                self._hand_on(operation, incoming, outgoing)
                if not retain:
                    operation.release()
                del incoming, outgoing  # the next backward may have their memory
        finally:
            silence.end(before)

    def _hand_on(
        self, operation: Operation, incoming: Sequence[Any], outgoing: Sequence[Any]
    ) -> None:
        """Take an operation's gradients to where its inputs came from.

        Args:
            operation: the operation.
            incoming: what its backward was given.
            outgoing: what it returned.
        """
        inputs, needs, arrived = operation.inputs, operation.needs_grad, self.arrived
        if len(outgoing) != len(inputs):
            _check_count(operation, outgoing)
        position = -1
        for tensor in inputs:
            position += 1  # quicker than enumerate
            grad, creator = outgoing[position], tensor._creator
            if grad is None or not needs[position]:
                if creator is None:
                    self._count(tensor)
                continue
            like = tensor._array
            usual = type(grad) is _ndarray and grad.dtype is like.dtype
            if not usual or grad.shape != like.shape:
                grad = _fit(operation, grad, like)
            # Nothing is known of a leaf that ceased to need a gradient after forward.
            several = arrived.get(id(tensor) if creator is None else creator)
            if several is None:  # nothing else comes
                if creator is not None:
                    arrived[creator] = grad
                else:
                    self._complete(tensor, grad, _is_fresh(grad, operation, incoming, outgoing))
                continue
            index = tensor._output_index
            total = several.grads[index]
            if several.owned[index]:
                add_to(total, grad)
            elif total is None:
                several.grads[index] = grad
                several.owned[index] = _is_fresh(grad, operation, incoming, outgoing)
            else:
                several.grads[index] = parallel.ufunc(np.add, total, grad)
                several.owned[index] = True
            if creator is None:
                several.left -= 1
                if not several.left:
                    self._complete(tensor, several.grads[0], several.owned[0])

    def _received(self, operation: Operation, arrived: Any) -> list[Any] | None:
        """What has come to an operation, by output, after hooks; None where it goes no further."""
        grads = arrived.grads if type(arrived) is _Several else [arrived]
        if not any([grad is not None for grad in grads]):
            return None
        if operation.hooks is not None:
            for index, hooks in operation.hooks.items():
                grads[index] = _called(hooks, grads[index])
        if self.leading is not None:
            for index in self.wanted.get(operation, ()):
                if grads[index] is not None:
                    self.met[operation, index] = np.array(grads[index])
            if operation not in self.leading:
                return None
        return grads

    def _pass_by(self, operation: Operation) -> None:
        """No gradient came to an operation, or goes on from it."""
        for tensor in operation.inputs:
            if tensor._creator is None:
                self._count(tensor)

    def _step(self, operation: Operation, incoming: list[Any]) -> list[Any]:
        """What an operation's backward returns, but for what it added in place.

        Gradients come as they are computed with; those that nobody wants become None.
        """
        # As in forward: small floats are computed with in float32, and rounded once in _fit.
        for index, grad in enumerate(incoming):
            if grad is not None and grad.dtype in SMALL_FLOATS:
                incoming[index] = grad.astype(float32)
        operation.check_unchanged()
        operation.retains_graph = self.retain_graph
        # In anomaly mode nothing is added in place: each gradient is looked at by itself.
        whole = operation.backward_into is None or self.state.anomaly
        outs = None if whole else self._owned_arrays(operation)
        begin = perf_counter()
        try:
            if outs is not None and operation.backward_into is not None:
                returned = operation.backward_into(*incoming, outs=outs)
            else:
                returned = operation.backward(*incoming)
        except Exception as error:
            _note(error, operation)
            raise
        _check_count(operation, returned)
        outgoing = list(returned)
        if self.state.profile is not None:
            self.state.profile.note(operation, False, perf_counter() - begin, outgoing)
        for position, tensor in enumerate(operation.inputs):
            grad = outgoing[position]
            if grad is None:
                continue
            if outs is not None and grad is outs[position]:
                outgoing[position] = None
            elif self.state.anomaly and operation.needs_grad[position] and np.isnan(grad).any():
                raise FloatingPointError(
                    f"backward of {type(operation).__name__} made a NaN in the gradient of input "
                    f"{position}{operation.origin or ''}"
                )
            if not self._leads(tensor._creator):
                outgoing[position] = None
        return outgoing

    def _count(self, leaf: Variable) -> None:
        """Count that a use of a leaf brought what it brings; after the last one, hand that on."""
        several = self.arrived.get(id(leaf))
        if several is None:
            return
        several.left -= 1
        (grad,) = several.grads
        if not several.left and grad is not None:
            self._complete(leaf, grad, several.owned[0])

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

    def _owned_arrays(self, operation: Operation) -> list[Array | None]:
        """For each input, the array that its gradients are summed in, if there is one already."""
        found: list[Array | None] = [None] * len(operation.inputs)
        for position, tensor in enumerate(operation.inputs):
            creator, index = tensor._creator, tensor._output_index
            several = self.arrived.get(id(tensor) if creator is None else creator)
            if type(several) is not _Several or not operation.needs_grad[position]:
                continue
            if several.owned[index]:
                array = several.grads[index]
                is_small = array is None or array.dtype in SMALL_FLOATS
                if not is_small and not any([array is other for other in found]):  # given twice
                    found[position] = array
        return found


def _note(error: Exception, operation: Operation) -> None:
    """Say on an error whose backward it comes from."""
    error.add_note(f"in the backward of {type(operation).__name__}")


def _check_count(operation: Operation, outgoing: Sequence[Any]) -> None:
    """Raise ValueError unless backward returned a gradient for each input."""
    if len(outgoing) != len(operation.inputs):
        raise ValueError(
            f"backward of {type(operation).__name__} returned {len(outgoing)} gradients "
            f"for {len(operation.inputs)} inputs"
        )


def _called(hooks: Hooks, grad: Any) -> Any:
    """What hooks make of a gradient, if it is there."""
    if grad is not None:
        for hook in hooks:
            grad = hook(grad)
    return grad


def _fit(operation: Operation, grad: Array, like: Array) -> Array:
    """The gradient in the shape and dtype of its input."""
    if not isinstance(grad, np.ndarray):
        grad = np.array(np.asarray(grad))  # what it stands for may be somebody's
    if grad.shape != like.shape:
        if not operation.broadcasts or not broadcasts_to(like.shape, grad.shape):
            raise ValueError(
                f"backward of {type(operation).__name__} returned a gradient of shape {grad.shape} "
                f"for an input of shape {like.shape}"
            )
        grad = sum_to_shape(grad, like.shape)
    return grad if grad.dtype == like.dtype else grad.astype(like.dtype)


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
