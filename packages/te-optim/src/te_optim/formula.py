"""Update rules as formulas: written once, run as machine code or as NumPy calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from inspect import Parameter, Signature, signature
from typing import Any, TypeAlias

import numpy as np

from te_tensor.dtypes import Array
from te_tensor.machine import Kernel, Matrix, Passes, Scalar, Value, kernel, runs

#: A formula's function: elements to new elements, None for those that aren't there.
Function: TypeAlias = Callable[..., "tuple[Value | None, ...]"]


class Update:
    """A formula with its numbers: changes arrays of equally many elements in place.

    Args:
        kernel: the formula as machine code.
        passes: the formula as NumPy calls.
        numbers: its numbers, in order.
    """

    __slots__ = ("kernel", "numbers", "passes")

    def __init__(self, kernel: Kernel, passes: Passes, numbers: Sequence[float]) -> None:
        self.kernel, self.passes, self.numbers = kernel, passes, numbers

    def __call__(self, *arrays: Array) -> None:
        """Change the arrays, all but the second one, which is read."""
        if runs(*arrays):
            self.kernel.flat(*arrays, *self.numbers)
            return
        dtype = arrays[0].dtype  # arrays without axes are the quickest numbers that NumPy takes
        self.passes(*arrays, *(np.array(number, dtype) for number in self.numbers))


class Formula:
    """What an update makes of each element; made with the decorator `formula`."""

    def __init__(self, function: Function) -> None:
        self.function = function

    def __call__(self, *arrays: str, **numbers: float | None) -> Update:
        """The update of the arrays of these names.

        Args:
            arrays: names of the function's arguments, in the order in which arrays are given.
            numbers: the function's keyword arguments; None leaves one out.
        """
        given = {name: number for name, number in numbers.items() if number is not None}
        return Update(*_variant(self.function, arrays, tuple(given)), tuple(given.values()))


@cache
def _variant(
    function: Function, arrays: tuple[str, ...], numbers: tuple[str, ...]
) -> tuple[Kernel, Passes]:
    """A formula for some of its arguments."""
    changed, _, *others = _arrays_of(function)

    def run(*operands: Any) -> None:
        at = dict(zip((*arrays, *numbers), operands, strict=True))
        new = function(**{name: operand.load() for name, operand in at.items()})
        for name, value in zip((changed, *others), new, strict=True):
            if name in at:
                at[name].store(value)

    kinds = {**dict.fromkeys(arrays, Matrix), **dict.fromkeys(numbers, Scalar)}
    run.__name__ = function.__name__
    run.__signature__ = Signature(  # type: ignore[attr-defined]
        [Parameter(n, Parameter.POSITIONAL_ONLY, annotation=kind) for n, kind in kinds.items()]
    )
    return kernel(run), Passes(run)


def _arrays_of(function: Function) -> list[str]:
    parameters = signature(function).parameters.values()
    return [p.name for p in parameters if p.kind is not Parameter.KEYWORD_ONLY]


def formula(function: Function) -> Formula:
    """An update rule that is written as arithmetic on elements.

    Args:
        function: takes an element of each array, and numbers by keyword; those with the default
            None may be left out. Returns the new elements of all arrays but the second one, which
            is only read, in order.

    Example:
        >>> @formula
        ... def _averaged(average, value, *, share):
        ...     return (average + (value - average) * share,)
        >>> average = np.zeros(3, np.float32)
        >>> _averaged("average", "value", share=0.25)(average, np.full(3, 4, np.float32))
        >>> average.tolist()
        [1.0, 1.0, 1.0]
    """
    return Formula(function)
