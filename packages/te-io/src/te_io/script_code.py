"""TorchScript code for a graph: its lines, and what rules for operations ask and say."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from te_tensor import dtypes
from te_tensor.dtypes import SMALL_FLOATS, Array, DType
from te_tensor.operation import Operation

from .errors import FormatError
from .script_trace import Constant, Graph, Input, Result, Source, State, Step, length
from .script_writing import attribute, has_marks, quoted

#: PyTorch's numbers of the dtypes, c10/core/ScalarType.h.
_NUMBERS: dict[DType, int] = {
    dtypes.uint8: 0,
    dtypes.int8: 1,
    dtypes.int16: 2,
    dtypes.int32: 3,
    dtypes.int64: 4,
    dtypes.float16: 5,
    dtypes.float32: 6,
    dtypes.float64: 7,
    dtypes.complex64: 9,
    dtypes.bool_: 11,
    dtypes.bfloat16: 15,
    dtypes.float8_e5m2: 23,
    dtypes.float8_e4m3fn: 24,
}

#: The code for an operation: an expression for its output, or one for each.
Rule: TypeAlias = "Callable[[Call], str | Sequence[str]]"


class Code:
    """The body of `forward`.

    Args:
        graph: what it computes.
        arguments: code for each tensor among the arguments.
        batch: code for the batch size.
        rules: the rules, by operation.
        path: the file's name, for errors.
    """

    def __init__(
        self,
        graph: Graph,
        arguments: Sequence[str],
        batch: str,
        rules: Mapping[type[Operation], Rule],
        path: str,
    ) -> None:
        self.sizes = graph.sizes
        self.path = path
        self.lines: list[str] = []
        self.constants: list[Array] = []
        self._arguments = arguments
        self._count = 0
        self._places: dict[object, int] = {}
        self._names: dict[Source, str] = {}
        if len(set(graph.sizes)) > 1:
            self.lines.append(f"batch = {batch}")
        for place, step in enumerate(graph.steps):
            self._add(place, step, rules)
        text, self.result_type = self._returned(graph.result)
        self.lines.append(f"return {text}")

    def let(self, expression: str) -> str:
        """A new variable for the value of an expression; returns its name."""
        name = f"_{self._count}"
        self._count += 1
        self.lines.append(f"{name} = {expression}")
        return name

    def constant(self, array: Array) -> str:
        """Code for an array that the archive holds, equal ones once."""
        key = (array.dtype, array.shape, array.tobytes())
        place = self._places.setdefault(key, len(self.constants))
        if place == len(self.constants):
            self.constants.append(array)
        return f"CONSTANTS.c{place}"

    def dtype(self, dtype: DType) -> int:
        """PyTorch's number of a dtype.

        Raises:
            FormatError: it has none.
        """
        if dtype not in _NUMBERS:
            raise FormatError(
                f"forward computes {dtype}, which TorchScript doesn't have", file=self.path
            )
        return _NUMBERS[dtype]

    def number(self, values: Sequence[int], what: str) -> str:
        """Code for a whole number, from its values in all runs.

        Raises:
            FormatError: it doesn't follow from the batch size.
        """
        found = length(values, self.sizes)
        if found is None:
            raise FormatError(
                f"{what} is {', '.join(map(str, values))} at batch sizes "
                f"{', '.join(map(str, self.sizes))}: expected factor·batch + rest",
                file=self.path,
            )
        factor, rest = found
        if not factor:
            return str(rest)
        product = "batch" if factor == 1 else f"batch * {factor}"
        return f"{product} + {rest}" if rest > 0 else f"{product} - {-rest}" if rest else product

    def shape(self, shapes: Sequence[Sequence[int]], what: str) -> list[str]:
        """Code for lengths, from those in all runs."""
        return [self.number(values, what) for values in zip(*shapes, strict=True)]

    def _add(self, place: int, step: Step, rules: Mapping[type[Operation], Rule]) -> None:
        call = Call(self, step, tuple(self.name_of(source) for source in step.sources))
        rule = rules.get(type(step.operations[0]))
        if rule is None:
            raise call.error(
                "has no rule that says what it is in TorchScript (te_io.script_rules); call eval() "
                "on the module to leave out what only training needs"
            )
        made = rule(call)
        for output, expression in enumerate([made] if isinstance(made, str) else made):
            if output in step.outputs[0]:
                dtype = step.outputs[0][output].dtype
                if call.rounds and dtype in SMALL_FLOATS:
                    expression = f"torch.to({self.let(expression)}, {self.dtype(dtype)})"
                is_name = expression.isidentifier()
                self._names[Result(place, output)] = expression if is_name else self.let(expression)

    def name_of(self, source: Source) -> str:
        """The variable that holds what comes from a source."""
        if isinstance(source, Input):
            return self._arguments[source.index]
        if source not in self._names:
            if isinstance(source, State):
                text = "self"
                for part in source.name.split("."):
                    text = attribute(text, part)
                self._names[source] = self.let(text)
            else:
                assert isinstance(source, Constant)
                self._names[source] = self._constant(source.arrays)
        return self._names[source]

    def _constant(self, arrays: Sequence[Array]) -> str:
        """An array that is the same in all runs, or has equal rows, as many as the batch has."""
        first = arrays[0]
        shapes = [array.shape for array in arrays]
        what = f"the shape of a constant ({', '.join(map(str, shapes))})"
        if len({len(shape) for shape in shapes}) == 1:
            lengths = self.shape(shapes, what)
            grows = [len(set(of_axis)) > 1 for of_axis in zip(*shapes, strict=True)]
            row = np.asarray(first[tuple(slice(0, 1) if g else slice(None) for g in grows)])
            if all(_same(array, np.broadcast_to(row, array.shape)) for array in arrays):
                name = self.constant(row)
                if any(grows):
                    name = self.let(f"torch.expand({name}, {listed(lengths)}, implicit=False)")
                return name
        raise FormatError(
            f"forward uses an array of shape {first.shape} that isn't computed by operations, and "
            "differs between runs on other batch sizes and values: expected constants, and "
            "operations on Tensors (comparisons and argmax are none)",
            file=self.path,
        )

    def _returned(self, result: Any) -> tuple[str, str]:
        """Code for what is returned, and its type."""
        if isinstance(result, dict):
            parts = {key: self._returned(part) for key, part in result.items()}
            wrong = next(filter(has_marks, result), None)
            if wrong is not None:
                raise FormatError(
                    f"forward returned a dict with the key {wrong!r}: expected no quotes, "
                    "backslashes and control characters",
                    file=self.path,
                )
            kinds = {kind for _, kind in parts.values()}
            text = ", ".join(f"{quoted(key)}: {text}" for key, (text, _) in parts.items())
            return f"{{{text}}}", f"Dict[str, {self._one(kinds)}]"
        if isinstance(result, list):
            items = [self._returned(part) for part in result]
            kind = self._one({kind for _, kind in items})
            return f"[{', '.join(text for text, _ in items)}]", f"List[{kind}]"
        if isinstance(result, tuple):
            items = [self._returned(part) for part in result]
            text = "".join(f"{text}, " for text, _ in items)
            return f"({text})", f"Tuple[{', '.join(kind for _, kind in items)}]"
        return self.name_of(result), "Tensor"

    def _one(self, kinds: set[str]) -> str:
        if len(kinds) > 1:
            raise FormatError(
                f"forward returned a list or dict of {', '.join(sorted(kinds))}: expected one type",
                file=self.path,
            )
        return next(iter(kinds))


class Call:
    """An operation for which a rule gives the code.

    Args:
        code: the code so far.
        step: the operation.
        inputs: the variables that hold its inputs.
    """

    def __init__(self, code: Code, step: Step, inputs: tuple[str, ...]) -> None:
        self.code = code
        self.step = step
        self.operation: Any = step.operations[0]
        #: Whether small floats are computed with as float32, and rounded at the end.
        self.rounds = bool(self.operation.computes)
        self.inputs = tuple(
            self._wide(name, tensor.dtype)
            for name, tensor in zip(inputs, self.operation.inputs, strict=True)
        )
        self.let = code.let
        self.constant = code.constant

    def _wide(self, name: str, dtype: DType) -> str:
        if self.rounds and dtype in SMALL_FLOATS:
            return self.code.let(f"torch.to({name}, {self.code.dtype(dtypes.float32)})")
        return name

    def error(self, reason: str) -> FormatError:
        """An error about this operation."""
        name = type(self.operation).__name__
        return FormatError(f"operation {name} {reason}", file=self.code.path)

    def ndim(self, index: int = 0) -> int:
        """The number of axes of an input."""
        return int(self.operation.inputs[index].ndim)

    def dtype(self, index: int = 0) -> DType:
        """The dtype that an input is computed with."""
        dtype: DType = self.operation.inputs[index].dtype
        return dtypes.float32 if self.rounds and dtype in SMALL_FLOATS else dtype

    def shape(self, index: int = 0) -> list[str]:
        """Code for the lengths of an input."""
        shapes = [operation.inputs[index].shape for operation in self.step.operations]
        return self.code.shape(shapes, self._what("the shape of an input"))

    def result_shape(self, output: int = 0) -> list[str]:
        """Code for the lengths of an output that is used."""
        shapes = [outputs[output].shape for outputs in self.step.outputs]
        return self.code.shape(shapes, self._what("the shape of the result"))

    def lengths(self, index: int = 0) -> tuple[tuple[int, ...], ...]:
        """The shapes of an input in all runs."""
        return tuple(operation.inputs[index].shape for operation in self.step.operations)

    def fixed(self, index: int, axis: int) -> int:
        """A length of an input that the batch size may not change.

        Raises:
            FormatError: it does.
        """
        values = {shape[axis] for shape in self.lengths(index)}
        if len(values) > 1:
            raise self.error(f"works along axis {axis}, whose length depends on the batch size")
        return int(values.pop())

    def runs(self, name: str) -> list[Any]:
        """What the operation was made with, in each run."""
        return [getattr(operation, name) for operation in self.step.operations]

    def attribute(self, name: str) -> Any:
        """What the operation was made with.

        Raises:
            FormatError: it differs between runs.
        """
        values = self.runs(name)
        if not all(_same(value, values[0]) for value in values[1:]):
            raise self.error(f"has another {name} at other batch sizes or for other values")
        return values[0]

    def number(self, values: Sequence[int]) -> str:
        """Code for a whole number, from its values in all runs."""
        return self.code.number(values, self._what("a number"))

    def _what(self, what: str) -> str:
        return f"{what} of {type(self.operation).__name__}"


def listed(parts: Sequence[object]) -> str:
    """Code for a list.

    Example:
        >>> listed(["batch", 2])
        '[batch, 2]'
    """
    return f"[{', '.join(map(str, parts))}]"


def real(number: float) -> str:
    """Code for a float.

    Example:
        >>> real(1), real(float("-inf"))
        ('1.0', 'float("-inf")')
    """
    number = float(number)
    return repr(number) if math.isfinite(number) else f'float("{number}")'


def _same(a: Any, b: Any) -> bool:
    """Whether two values are equal, arrays bit by bit."""
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()
    if isinstance(a, (tuple, list)) and isinstance(b, (tuple, list)):
        return len(a) == len(b) and all(map(_same, a, b))
    return type(a) is type(b) and bool(a == b)
