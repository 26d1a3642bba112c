"""A graph inside a node: `shard` runs one in each thread, `checkpoint` makes one anew in backward.

The function runs on stand-ins for its inputs. Whatever else it reads from outside that needs a
gradient is noticed by `Tensor.apply`, which has the running part put a stand-in in its place: so
the graph inside ends there, and the tensor becomes an input of the node as well. Backward walks
the graph inside and returns what arrived at the stand-ins; only the walk outside touches `grad`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from . import autograd, memory, modes, parallel
from .checks import check_function, check_whole, normalize_axis
from .dtypes import Array
from .operation import Gradients, Operation
from .random import Generator, default_generator
from .tensor import Tensor

#: Elements of all inputs together below which threads cost more than they bring.
_SMALLEST = 1 << 14


class _Seed:
    """The key of a node's random numbers, drawn when the first of them is wanted."""

    def __init__(self) -> None:
        self._generator = default_generator()
        self._guard = threading.Lock()
        self._key: tuple[int, ...] | None = None

    def key(self) -> tuple[int, ...]:
        """The same key every time."""
        with self._guard:
            if self._key is None:
                self._key = self._generator.next_key()
            return self._key


class _PartGenerator(Generator):
    """Draws that follow from seed, call and part, whichever thread comes first."""

    def __init__(self, seed: _Seed, number: int) -> None:
        super().__init__(number)
        self._source = seed

    def next_key(self) -> tuple[int, ...]:
        """The node's key, the part's number and that of the draw."""
        return (*self._source.key(), *super().next_key())


class _Part:
    """One run of the function: its stand-ins, and where its outputs came from."""

    def __init__(self, number: int, given: Sequence[Any], seed: _Seed) -> None:
        self.given = [_stand_in(x) if isinstance(x, Tensor) else x for x in given]
        self.generator = _PartGenerator(seed, number)
        self.own = {id(x) for x in self.given}
        #: Tensors from outside by id, with their stand-ins, in the order of first use.
        self.captured: dict[int, tuple[Tensor, Tensor]] = {}
        self.returned_tuple = False
        self.ends: list[Tensor] = []
        self.grads: dict[int, Array] = {}

    def run(self, function: Callable[..., Any], **values: Any) -> tuple[Tensor, ...]:
        """The function's outputs, made of stand-ins."""
        with modes.modes_set(part=self, generator=self.generator, **values):
            result = function(*self.given)
        self.returned_tuple = isinstance(result, tuple)
        outputs = result if self.returned_tuple else (result,)
        for output in outputs:
            if not isinstance(output, Tensor):
                raise TypeError(
                    f"the function returned a {type(output).__name__}: expected a Tensor or a "
                    "tuple of Tensors"
                )
        outputs = self.localize(outputs)
        self.ends = [_end(output) for output in outputs]
        return outputs

    def localize(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The tensors, with stand-ins in the place of those from outside that need a gradient."""
        return tuple([self._local(t) if getattr(t, "requires_grad", False) else t for t in tensors])

    def _local(self, tensor: Tensor) -> Tensor:
        creator = tensor.creator
        if id(tensor) in self.own or (creator is not None and creator.part is self):
            return tensor
        pair = self.captured.get(id(tensor))
        if pair is None:
            pair = self.captured[id(tensor)] = tensor, _stand_in(tensor)
            self.own.add(id(pair[1]))
        return pair[1]

    def outside(self) -> list[Tensor]:
        """The tensors from outside that were read, in the order of first use."""
        return [tensor for tensor, _ in self.captured.values()]

    def backward(self, grads: Sequence[Array | None], retain_graph: bool) -> None:
        """Walk the graph inside; what arrives at stand-ins is in `grads` by their ids."""
        self.grads = {}
        roots: list[tuple[Any, Array]] = [
            (end, grad)
            for end, grad in zip(self.ends, grads, strict=True)
            if grad is not None and end.requires_grad
        ]
        autograd.backward(roots, self._receive, retain_graph=retain_graph)

    def _receive(self, leaf: Tensor, grad: Array, owned: bool) -> None:
        before = self.grads.get(id(leaf))
        if before is None:
            self.grads[id(leaf)] = grad if owned else np.array(grad)
        else:
            autograd.add_to(before, grad)

    def grad_of(self, tensor: Tensor) -> Array | None:
        """What arrived for a tensor from outside, to be taken once."""
        pair = self.captured.get(id(tensor))
        return None if pair is None else self.grads.pop(id(pair[1]), None)

    def grad_of_given(self, position: int) -> Array | None:
        """What arrived for an input, to be taken once."""
        return self.grads.pop(id(self.given[position]), None)


def _stand_in(tensor: Tensor) -> Tensor:
    """A leaf on the same memory."""
    stand_in = tensor.detach()
    stand_in.requires_grad = tensor.requires_grad
    return stand_in


def _end(output: Tensor) -> Tensor:
    """Where a walk inside starts: the output, but without its elements."""
    if output._creator is None:
        return output
    end = Tensor._wrap(np.broadcast_to(np.zeros((), output.dtype), output.shape))
    end._creator = output._creator
    end._output_index = output._output_index
    end._requires_grad = output._requires_grad
    return end


class _Node(Operation):
    """What `shard` and `checkpoint` put into the graph outside: its result is there already."""

    computes = False
    profiled = False

    def __init__(self, results: tuple[Array, ...]) -> None:
        self.results = results

    def forward(self, *arrays: Array) -> tuple[Array, ...]:
        """The results that the parts made."""
        results, self.results = self.results, ()
        return results


class Shard(_Node):
    """Parts that ran side by side on slices of the inputs.

    Args:
        results: the parts' outputs, joined.
        parts: the parts, in order.
        pieces: the slice of each.
        axis: the axis that was cut.
        positions: the positions of the cut inputs among the function's arguments.
        captured: tensors from outside that the parts read.
    """

    def __init__(
        self,
        results: tuple[Array, ...],
        parts: list[_Part],
        pieces: list[slice],
        axis: int,
        positions: list[int],
        captured: list[Tensor],
    ) -> None:
        super().__init__(results)
        self.parts = parts
        self.pieces = pieces
        self.axis = axis
        self.positions = positions
        self.captured = captured

    def backward(self, *grads: Array | None) -> Gradients:
        """The parts' gradients: joined for the inputs, summed in order for what was captured."""
        cut = len(self.positions)
        joined = [
            memory.empty(tensor.shape, tensor.dtype) if needed else None
            for tensor, needed in zip(self.inputs[:cut], self.needs_grad[:cut], strict=True)
        ]

        def run(index: int) -> None:
            part, piece = self.parts[index], self.pieces[index]
            of_part = [None if g is None else _cut(g, self.axis, piece) for g in grads]
            part.backward(of_part, self.retains_graph)
            for position, whole in zip(self.positions, joined, strict=True):
                if whole is not None:
                    arrived = part.grad_of_given(position)
                    _cut(whole, self.axis, piece)[...] = 0 if arrived is None else arrived

        parallel.run_each(run, len(self.parts))
        return [*joined, *(self._summed(tensor) for tensor in self.captured)]

    def _summed(self, tensor: Tensor) -> Array | None:
        arrived = [part.grad_of(tensor) for part in self.parts]
        summands = [grad for grad in arrived if grad is not None]
        for other in summands[1:]:
            autograd.add_to(summands[0], other)
        return summands[0] if summands else None

    def release(self) -> None:
        """Free the graphs inside, too."""
        super().release()
        self.parts, self.captured = [], []


class Checkpoint(_Node):
    """A function that runs again when backward needs its graph.

    Args:
        results: its outputs.
        function: the function.
        given: its arguments.
        first: the part that made the outputs.
        seed: what its random numbers follow from.
    """

    def __init__(
        self,
        results: tuple[Array, ...],
        function: Callable[..., Any],
        given: Sequence[Any],
        first: _Part,
        seed: _Seed,
    ) -> None:
        super().__init__(results)
        self.function = function
        self.given = given
        self.captured = first.outside()
        self.seed = seed

    def forward(self, *arrays: Array) -> tuple[Array, ...]:
        """The results; the inputs are saved so that a change to them is noticed."""
        self.save(*arrays)
        return super().forward(*arrays)

    def backward(self, *grads: Array | None) -> Gradients:
        """Run the function again, this time with a graph, and walk that."""
        part = _Part(0, self.given, self.seed)
        part.run(self.function, grad=True)
        if any(all(tensor is not known for known in self.captured) for tensor in part.outside()):
            raise RuntimeError(
                "the checkpointed function read other tensors when it ran again: expected it to do "
                "the same each time"
            )
        part.backward(grads, retain_graph=False)
        positions = [p for p, x in enumerate(self.given) if isinstance(x, Tensor)]
        found = [part.grad_of_given(position) for position in positions]
        return [*found, *(part.grad_of(tensor) for tensor in self.captured)]

    def release(self) -> None:
        """Let the function and its arguments go."""
        super().release()
        self.given, self.captured = [], []
        del self.function


def _cut(array: Array, axis: int, piece: slice) -> Array:
    return array[(*(slice(None),) * axis, piece)]


class _Joined:
    """The outputs of all parts in arrays of their full length, which the first part makes."""

    def __init__(self, length: int, axis: int) -> None:
        self.length = length
        self.axis = axis
        self.guard = threading.Lock()
        self.arrays: tuple[Array, ...] | None = None

    def put(self, piece: slice, outputs: tuple[Tensor, ...]) -> None:
        """Copy a part's outputs to their place.

        Raises:
            ValueError: their number, shapes or dtypes don't go with the slice, or differ.
        """
        wanted = piece.stop - piece.start
        for output in outputs:
            if output.ndim <= self.axis or output.shape[self.axis] != wanted:
                raise ValueError(
                    f"the function made shape {output.shape} of a slice of {wanted}: expected "
                    f"that length on axis {self.axis} (no means or losses inside)"
                )
        with self.guard:
            if self.arrays is None:
                self.arrays = tuple(self._whole(output) for output in outputs)
        fits = len(outputs) == len(self.arrays) and all(
            self._whole_shape(output) == array.shape and output.dtype == array.dtype
            for output, array in zip(outputs, self.arrays, strict=True)
        )
        if not fits:
            given = ", ".join(f"{output.shape} {output.dtype}" for output in outputs)
            raise ValueError(
                f"the function made {given} in one shard and something else in another"
            )
        for output, array in zip(outputs, self.arrays, strict=True):
            np.copyto(_cut(array, self.axis, piece), output._array)

    def _whole_shape(self, output: Tensor) -> tuple[int, ...]:
        return (*output.shape[: self.axis], self.length, *output.shape[self.axis + 1 :])

    def _whole(self, output: Tensor) -> Array:
        return memory.empty(self._whole_shape(output), output.dtype)


def shard(
    function: Callable[..., Any], *inputs: Any, axis: int = 0, shards: int | None = None
) -> Any:
    """Run a function on slices of its inputs, a slice in each of the engine's threads.

    For functions that treat the elements along `axis` independently of each other: each thread
    then takes its slice through the whole chain of operations, and backward does the same. The
    result is one node of the graph. Gradients of what the function reads from outside are summed
    in the order of the shards, so the same number of threads gives the same bits.

    Args:
        function: takes what `inputs` holds, and returns a Tensor or a tuple of Tensors, each as
            long on `axis` as its slice. What all slices share it reads from around it.
        *inputs: tensors of equal length on `axis`, which are sliced; anything else is passed on.
        axis: the axis to cut.
        shards: how many slices; by default the number of threads, or one for little work. Their
            sizes differ by at most one.

    Returns:
        What the function returns, for the whole inputs.

    Raises:
        ValueError: inputs of different lengths, or results that don't go with the slices.
        TypeError: no tensor among the inputs, or a result that is none.
        IndexError: there is no such axis.

    Example:
        >>> import te_tensor as te
        >>> w = te.Tensor([[1.0], [2.0]], requires_grad=True)
        >>> x = te.Tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        >>> y = te.shard(lambda rows: rows @ w, x, shards=2)
        >>> y.tolist()
        [[1.0], [2.0], [3.0]]
    """
    check_function("shard", function)
    tensors = [x for x in inputs if isinstance(x, Tensor)]
    length, axis = _common_length(tensors, axis)
    count = _shard_count(tensors, length, shards)
    if count < 2 or parallel.in_parallel() or modes.current().trace:
        return function(*inputs)
    pieces = parallel.split(length, count)
    seed = _Seed()
    parts = [
        _Part(number, [_piece_of(x, axis, piece) for x in inputs], seed)
        for number, piece in enumerate(pieces)
    ]
    joined = _Joined(length, axis)

    def run(index: int) -> None:
        joined.put(pieces[index], parts[index].run(function))

    parallel.run_each(run, count)
    captured: dict[int, Tensor] = {}
    for part in parts:
        captured.update((id(tensor), tensor) for tensor in part.outside())
    positions = [p for p, x in enumerate(inputs) if isinstance(x, Tensor)]
    arrays = joined.arrays or ()
    node = Shard(arrays, parts, pieces, axis, positions, list(captured.values()))
    outputs = Tensor.apply(node, *tensors, *captured.values())
    return outputs if parts[0].returned_tuple else outputs[0]


def checkpoint(function: Callable[..., Any], *inputs: Any) -> Any:
    """Run a function without keeping what its backward needs; backward runs it again.

    Costs a second forward and saves the memory in between. Random operations draw the same
    numbers the second time.

    Args:
        function: takes what `inputs` holds, and returns a Tensor or a tuple of Tensors.
        *inputs: its arguments.

    Returns:
        What the function returns.

    Raises:
        TypeError: the function returns something else.

    Example:
        >>> import te_tensor as te
        >>> x = te.Tensor([0.0, 1.0], requires_grad=True)
        >>> te.checkpoint(lambda x: (x.exp() * x), x).sum().backward()
        >>> [round(g, 4) for g in x.grad.tolist()]
        [1.0, 5.4366]
    """
    check_function("checkpoint", function)
    state = modes.current()
    if state.trace or not state.grad:
        return function(*inputs)
    seed = _Seed()
    part = _Part(0, inputs, seed)
    outputs = part.run(function, grad=False)
    node = Checkpoint(tuple(output._array for output in outputs), function, inputs, part, seed)
    tensors = [x for x in inputs if isinstance(x, Tensor)]
    results = Tensor.apply(node, *tensors, *part.outside())
    return results if part.returned_tuple else results[0]


def _common_length(tensors: Sequence[Tensor], axis: int) -> tuple[int, int]:
    """The length of all tensors on an axis, and the axis counted from the front."""
    if not tensors:
        raise TypeError("shard got no tensor: expected at least one to slice")
    axis = normalize_axis(axis, tensors[0].ndim)
    lengths = [t.shape[axis] if t.ndim > axis else None for t in tensors]
    if any(length is None or length != lengths[0] for length in lengths):
        given = ", ".join(str(t.shape) for t in tensors)
        raise ValueError(f"shard got shapes {given}: expected one length on axis {axis}")
    return tensors[0].shape[axis], axis


def _shard_count(tensors: Sequence[Tensor], length: int, shards: int | None) -> int:
    if shards is None:
        small = sum(t.size for t in tensors) < _SMALLEST
        return 1 if small else min(parallel.get_num_threads(), length)
    return min(check_whole("shards", shards, 1), length)


def _piece_of(given: Any, axis: int, piece: slice) -> Any:
    """A slice of a tensor, as a leaf; anything else as it is."""
    if not isinstance(given, Tensor):
        return given
    part = Tensor._wrap(_cut(given._array, axis, piece))
    part.requires_grad = given.requires_grad
    return part
