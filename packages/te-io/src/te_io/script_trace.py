"""A module's forward as a graph that holds for every batch size.

The forward runs at several batch sizes under `te_tensor.trace()`. The graphs must agree in their
operations and in how these hang together; lengths that differ must follow from the batch size as
`factor·batch + rest`. The last run holds what the first two gave: with as many unknowns as runs,
a length that grows as the square would pass for another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

import te_tensor as te
from te_tensor import Tensor
from te_tensor.dtypes import FLOATS, Array
from te_tensor.operation import Operation

from .errors import FormatError
from .script_writing import memory_of

#: The batch sizes that a forward is recorded at. Neither is 1, at which axes would broadcast.
SIZES = (2, 3, 5)
#: What an example is multiplied with at each of them: a number that was taken out of it, and not
#: computed in the graph, then differs. Signs, infinities and the range 0 … 1 are kept.
_FACTORS = (1.0, 0.9375, 0.875)


@dataclass(frozen=True)
class Input:
    """A tensor among the arguments of the forward."""

    index: int


@dataclass(frozen=True)
class State:
    """A parameter or a buffer."""

    name: str


@dataclass(frozen=True)
class Result:
    """An output of an operation: the operation's place in the order, and the output's."""

    step: int
    output: int


@dataclass(frozen=True, eq=False)
class Constant:
    """An array that the forward brings, as it was in each run."""

    arrays: tuple[Array, ...]


#: Where a tensor comes from.
Source: TypeAlias = Input | State | Result | Constant


@dataclass(frozen=True)
class Step:
    """An operation, as it was in each run, and where its inputs come from."""

    operations: tuple[Operation, ...]
    sources: tuple[Source, ...]
    #: The tensors that came out, by output; those that nothing uses are missing.
    outputs: tuple[Mapping[int, Tensor], ...]


@dataclass(frozen=True)
class Graph:
    """What all runs have in common."""

    steps: list[Step]
    #: What forward returned, with sources in the place of tensors.
    result: Any
    #: The batch size of each run; all the same where no argument has a batch axis.
    sizes: tuple[int, ...]


def vary(example: Tensor, axis: int | None, run: int) -> Tensor:
    """An example at the batch size of a run.

    Args:
        example: the example.
        axis: its batch axis, None where it has none.
        run: the run's number. Rows are repeated or left out, and begin with another one each
            time; floats are made a little smaller.
    """
    array = example.data
    if axis is not None:
        array = array.take((np.arange(SIZES[run]) + run) % array.shape[axis], axis=axis)
    if array.dtype in FLOATS:
        array = (array * array.dtype.type(_FACTORS[run])).astype(array.dtype)
    return Tensor(array)


def record(
    call: Callable[[Sequence[Tensor]], Any],
    examples: Sequence[Tensor],
    axes: Sequence[int | None],
    state: dict[str, Array],
    path: str,
) -> Graph:
    """Run a forward at several batch sizes, and find what holds for all.

    Args:
        call: the forward, of the tensors among its arguments.
        examples: an example of each.
        axes: their batch axes, None for those that have none.
        state: parameters and buffers by name.
        path: the file's name, for errors.

    Raises:
        FormatError: the runs differ in more than lengths.
    """
    names = {memory_of(array): State(name) for name, array in reversed(state.items())}
    runs = []
    for number, size in enumerate(SIZES):
        arguments = [vary(x, axis, number) for x, axis in zip(examples, axes, strict=True)]
        try:
            with te.no_grad(), te.trace():
                result = call(arguments)
        except Exception as error:
            error.add_note(
                f"this was the forward on inputs of batch size {size}, made of the examples to "
                f"export it to {path}; batch_axes say which axes are the batch's"
            )
            raise
        runs.append(_Run(arguments, result, names, path))
    return _merged(runs, SIZES if any(a is not None for a in axes) else (1,) * len(SIZES), path)


class _Run:
    """One forward: its operations in order, and where tensors come from."""

    def __init__(
        self,
        arguments: list[Tensor],
        result: Any,
        names: Mapping[object, State],
        path: str,
    ) -> None:
        self.arguments = arguments
        self.result = result
        self.leaves: dict[object, Source] = {
            **names,
            **{memory_of(x.data): Input(index) for index, x in enumerate(arguments)},
        }
        self.made: dict[int, dict[int, Tensor]] = {}
        found: dict[int, Operation] = {}
        waiting = list(tensors_in(result, path))
        while waiting:
            tensor = waiting.pop()
            creator = tensor.creator
            if creator is None:
                continue
            self.made.setdefault(id(creator), {})[tensor.output_index] = tensor
            if id(creator) not in found:
                found[id(creator)] = creator
                waiting += creator.inputs
        self.operations = sorted(found.values(), key=lambda operation: operation.sequence)
        self.places = {id(operation): i for i, operation in enumerate(self.operations)}

    def source(self, tensor: Tensor) -> Source:
        """Where a tensor comes from."""
        if tensor.creator is not None:
            return Result(self.places[id(tensor.creator)], tensor.output_index)
        return self.leaves.get(memory_of(tensor.data)) or Constant((tensor.data,))


def tensors_in(result: Any, path: str) -> Iterable[Tensor]:
    """The tensors in what a forward returned.

    Raises:
        FormatError: there is something that is neither a tensor nor a tuple, list or dict of such.
    """
    if isinstance(result, Tensor):
        yield result
        return
    named = isinstance(result, Mapping) and all(isinstance(key, str) for key in result)
    if not result or not (named or isinstance(result, (tuple, list))):
        raise FormatError(
            f"forward returned {type(result).__name__}: expected a Tensor, or a tuple, a list or "
            "a dict of Tensors by name",
            file=path,
        )
    for part in result.values() if isinstance(result, Mapping) else result:
        yield from tensors_in(part, path)


def _merged(runs: list[_Run], sizes: tuple[int, ...], path: str) -> Graph:
    first = runs[0]
    constants: dict[object, Constant] = {}

    def together(tensors: Sequence[Tensor]) -> Source:
        sources = [run.source(x) for run, x in zip(runs, tensors, strict=True)]
        if all(isinstance(source, Constant) for source in sources):
            made = Constant(tuple(x.data for x in tensors))
            return constants.setdefault(memory_of(tensors[0].data), made)
        if any(source != sources[0] for source in sources):
            raise FormatError(_different("what an operation works on", sizes), file=path)
        return sources[0]

    for run in runs[1:]:
        kinds = [[type(op) for op in r.operations] for r in (first, run)]
        if kinds[0] != kinds[1]:
            pairs = zip(*kinds, strict=False)
            pair = next((p for p in pairs if p[0] is not p[1]), None)
            names = " or ".join(k.__name__ for k in pair) if pair else "the number of operations"
            raise FormatError(_different(names, sizes), file=path)
    steps = []
    for operations in zip(*(run.operations for run in runs), strict=True):
        counts = {len(operation.inputs) for operation in operations}
        if len(counts) > 1:
            name = type(operations[0]).__name__
            raise FormatError(_different(f"the inputs of {name}", sizes), file=path)
        sources = tuple(map(together, zip(*(op.inputs for op in operations), strict=True)))
        outputs = tuple(r.made[id(op)] for r, op in zip(runs, operations, strict=True))
        steps.append(Step(operations, sources, outputs))
    result = _result([run.result for run in runs], together, sizes, path)
    return Graph(steps, result, sizes)


def _different(what: str, sizes: tuple[int, ...]) -> str:
    return (
        f"the forward depends on the batch size or on values: {what} differs between runs at batch "
        f"sizes {', '.join(map(str, sizes))}"
    )


def _result(
    results: Sequence[Any],
    together: Callable[[Sequence[Tensor]], Source],
    sizes: tuple[int, ...],
    path: str,
) -> Any:
    """What was returned, in the same form, with sources in the place of tensors."""
    first = results[0]
    if all(isinstance(r, Tensor) for r in results):
        return together(results)
    forms = {(type(r), tuple(r) if isinstance(r, Mapping) else len(r)) for r in results}
    if len(forms) > 1:
        raise FormatError(_different("what is returned", sizes), file=path)
    if isinstance(first, Mapping):
        return {k: _result([r[k] for r in results], together, sizes, path) for k in first}
    parts = [_result(p, together, sizes, path) for p in zip(*results, strict=True)]
    return tuple(parts) if isinstance(first, tuple) else parts


def length(values: Sequence[int], sizes: Sequence[int]) -> tuple[int, int] | None:
    """The factor and the rest that give a length for each batch size, None if none do.

    Example:
        >>> length((8, 12, 20), (2, 3, 5)), length((7, 7, 7), (2, 3, 5)), length((4, 9, 25), SIZES)
        ((4, 0), (0, 7), None)
    """
    steps = sizes[1] - sizes[0]
    factor = (values[1] - values[0]) // steps if steps else 0
    rest = values[0] - factor * sizes[0]
    fits = all(v == factor * size + rest for v, size in zip(values, sizes, strict=True))
    return (factor, rest) if fits else None
