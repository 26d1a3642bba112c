"""The arguments of a forward that is exported: their names, examples and batch axes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from te_tensor import Tensor, as_tensor
from te_tensor.dtypes import Array

from .script_writing import is_plain

#: What stands for an argument of a forward; a tuple for one that is a tuple.
Example: TypeAlias = "Tensor | Array | tuple[Example, ...]"
#: What names already stand for in the code.
_TAKEN = ("self", "batch", "torch", "ops", "CONSTANTS", "annotate", "getattr", "float", "List")


@dataclass(frozen=True)
class Arguments:
    """The arguments of a forward, and the tensors in them."""

    #: The types of the arguments in TorchScript, by name.
    types: Mapping[str, str]
    #: Code for each tensor: `x`, or `state[0]` in a tuple.
    places: Sequence[str]
    #: An example of each.
    examples: Sequence[Tensor]
    #: Calls the module with other tensors.
    call: Callable[[Sequence[Tensor]], Any]

    def axes(self, given: int | Sequence[int | None] | None, default: int) -> list[int | None]:
        """The batch axis of each tensor.

        Args:
            given: the axis of all, or one for each, or None for those that have the default axis
                and are as long there as the first.
            default: that axis.

        Raises:
            ValueError: the examples don't have these axes, or several batch sizes.
        """
        shapes = [x.shape for x in self.examples]
        axes: list[int | None]
        if given is None:
            size = shapes[0][default : default + 1]
            axes = [default if size and s[default : default + 1] == size else None for s in shapes]
        else:
            axes = [given] * len(shapes) if isinstance(given, int) else list(given)
        sizes = {
            s[a] if -len(s) <= a < len(s) else None
            for a, s in zip(axes, shapes, strict=False)
            if a is not None
        }
        if len(axes) != len(shapes) or len(sizes) > 1 or not sizes.isdisjoint({0, None}):
            raise ValueError(
                f"batch_axes are {axes} for examples of shapes {', '.join(map(str, shapes))}: "
                "expected one for each, an axis or None, along which all have one length, which "
                "isn't 0"
            )
        return axes


def arguments_of(
    module: Callable[..., Any], given: Example | Sequence[Example] | Mapping[str, Example]
) -> Arguments:
    """The arguments that examples stand for.

    Args:
        module: what they are passed to; its `forward` tells their names.
        given: an example, several in order, or a dict of those that are passed by name.

    Raises:
        TypeError: the examples are something else.
    """
    if isinstance(given, (Tensor, np.ndarray)):
        given = (given,)
    if not isinstance(given, (Mapping, tuple, list)) or not given:
        raise TypeError(
            f"example_inputs are {given!r}: expected a Tensor or an array, several in a tuple, or "
            "a dict of them by name"
        )
    by_name = isinstance(given, Mapping)
    values = list(given.values() if isinstance(given, Mapping) else given)
    names = list(given) if isinstance(given, Mapping) else _names(module, len(values))
    for number, name in enumerate(names):
        # Underscores begin the names of variables.
        if not is_plain(name) or name.startswith("_") or name in _TAKEN:
            names[number] = f"input{number}"
    found = [pair for n, v in zip(names, values, strict=True) for pair in _tensors(n, v)]

    def call(tensors: Sequence[Tensor]) -> Any:
        remaining = iter(tensors)
        filled = [_filled(value, remaining) for value in values]
        return module(**dict(zip(given, filled, strict=True))) if by_name else module(*filled)

    return Arguments(
        {name: _type(value) for name, value in zip(names, values, strict=True)},
        [place for place, _ in found],
        [tensor for _, tensor in found],
        call,
    )


def _names(module: Callable[..., Any], count: int) -> list[str]:
    """What the module's forward calls its arguments in order, as far as it says."""
    signature = inspect.signature(getattr(module, "forward", module))
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = [p.name for p in signature.parameters.values() if p.kind in kinds]
    return [*names, *(f"input{number}" for number in range(len(names), count))][:count]


def _tensors(place: str, value: Example) -> Iterator[tuple[str, Tensor]]:
    """The tensors in an example, with code for where they are."""
    if isinstance(value, (tuple, list)):
        for number, part in enumerate(value):
            yield from _tensors(f"{place}[{number}]", part)
    elif isinstance(value, (Tensor, np.ndarray)):
        yield place, as_tensor(value)
    else:
        raise TypeError(
            f"the example of {place} is a {type(value).__name__}: expected a Tensor or an array, "
            "or a tuple of such"
        )


def _filled(value: Example, tensors: Iterator[Tensor]) -> Any:
    """An example with other tensors in it."""
    if isinstance(value, (tuple, list)):
        return tuple(_filled(part, tensors) for part in value)
    return next(tensors)


def _type(value: Example) -> str:
    if isinstance(value, (tuple, list)):
        return f"Tuple[{', '.join(map(_type, value))}]"
    return "Tensor"
