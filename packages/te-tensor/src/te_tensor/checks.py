"""Checks of arguments: what is wrong raises, and the error says what was given and expected."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import inf
from typing import Any, TypeAlias

import numpy as np

Axis: TypeAlias = int | tuple[int, ...] | None


def broadcast_shape(*shapes: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that shapes broadcast to; np.broadcast_shapes takes no more than 32 axes.

    Raises:
        ValueError: lengths that are neither equal nor 1.
    """
    result = [1] * max(map(len, shapes))
    for shape in shapes:
        for place, length in enumerate(shape, len(result) - len(shape)):
            if length != 1:
                if result[place] not in (1, length):
                    raise ValueError(f"shapes {', '.join(map(str, shapes))} don't broadcast")
                result[place] = length
    return tuple(result)


def broadcasts_to(shape: tuple[int, ...], larger: tuple[int, ...]) -> bool:
    """Whether broadcasting takes the one shape to the other."""
    return len(shape) <= len(larger) and all(
        n in (1, m) for n, m in zip(reversed(shape), reversed(larger), strict=False)
    )


def is_whole(value: Any) -> bool:
    """Whether it is a whole number; True and False are none."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def check_whole(name: str, value: Any, least: int | None = None) -> int:
    """A whole number.

    Raises:
        ValueError: it is none, or less than `least`.
    """
    if not is_whole(value) or (least is not None and value < least):
        limits = "" if least is None else f" of at least {least}"
        raise ValueError(f"{name} is {value!r}: expected a whole number{limits}")
    return int(value)


def per_axis(name: str, value: int | Sequence[int], axes: int, least: int = 1) -> tuple[int, ...]:
    """An option as a tuple with a number for each spatial axis.

    Args:
        name: its name, for errors.
        value: a whole number, or one per axis.
        axes: the number of spatial axes.
        least: the smallest that is allowed.

    Raises:
        ValueError: it's something else.
    """
    numbers: tuple[Any, ...] = tuple(value) if isinstance(value, (tuple, list)) else (value,) * axes
    if len(numbers) != axes or not all(is_whole(n) and n >= least for n in numbers):
        several = "" if axes == 1 else f", or {axes} of them"
        raise ValueError(
            f"{name} is {value!r}: expected a whole number of at least {least}{several}"
        )
    return tuple(int(n) for n in numbers)


def check_number(name: str, value: Any, least: float = -inf, most: float = inf) -> float:
    """A finite number in least … most.

    Raises:
        TypeError: it is no number.
        ValueError: it is out of range, infinite or NaN.
    """
    if type(value) is not float and (
        isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating))
    ):
        raise TypeError(f"{name} is {value!r}: expected a number")
    if not (least <= value <= most and -inf < value < inf):
        limits = "a finite number"
        if least > -inf:
            limits = f"at least {least}" if most == inf else f"{least} … {most}"
        raise ValueError(f"{name} is {value!r}: expected {limits}")
    return value  # type: ignore[return-value]


def check_switch(name: str, value: Any) -> bool:
    """True or False.

    Raises:
        ValueError: it's something else, which might be meant as either.
    """
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"{name} is {value!r}: expected True or False")
    return bool(value)


def check_function(name: str, value: Any) -> None:
    """Raise TypeError unless it can be called."""
    if not callable(value):
        raise TypeError(f"{name} got a {type(value).__name__}: expected a function")


def check_each(name: str, values: Iterable[Any], kind: type) -> None:
    """Raise TypeError unless each is of a kind."""
    for place, value in enumerate(values):
        if not isinstance(value, kind):
            raise TypeError(
                f"{name} {place} is of type {type(value).__name__}: expected a {kind.__name__}"
            )


def normalize_axis(axis: int, ndim: int) -> int:
    """An axis counted from the front.

    Raises:
        IndexError: there is no such axis.
        TypeError: axis is not a whole number.
    """
    if not is_whole(axis):
        raise TypeError(f"axis is {axis!r}: expected a whole number")
    if not -ndim <= axis < ndim:
        if not ndim:
            raise IndexError(f"axis is {axis}: expected none, for shape ()")
        raise IndexError(f"axis is {axis}: expected -{ndim} … {ndim - 1} for {ndim} axes")
    return int(axis) % ndim


def normalize_axes(axis: Axis, ndim: int) -> tuple[int, ...]:
    """The axes, counted from the front and in order; None means all of them.

    Raises:
        IndexError: there is no such axis.
        ValueError: an axis is given twice.
    """
    if axis is None:
        return tuple(range(ndim))
    axes = axis if isinstance(axis, (tuple, list)) else (axis,)
    found = sorted(normalize_axis(a, ndim) for a in axes)
    if len(set(found)) != len(found):
        raise ValueError(f"axis is {axis}: an axis is named twice")
    return tuple(found)


def check_keepdims(keepdims: bool) -> bool:
    """Raise TypeError unless it is a bool: a number may be meant as a second axis."""
    if not isinstance(keepdims, (bool, np.bool_)):
        raise TypeError(f"keepdims is {keepdims!r}: expected a bool; several axes are a tuple")
    return bool(keepdims)


REDUCTIONS = ("mean", "sum", "none")


def check_reduction(reduction: str) -> str:
    """The reduction of a loss.

    Raises:
        ValueError: there is no such reduction.
    """
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction is {reduction!r}: expected one of {', '.join(REDUCTIONS)}")
    return reduction
