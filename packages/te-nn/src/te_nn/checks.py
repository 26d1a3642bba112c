"""Checks of constructor arguments."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np


def positive(name: str, value: int) -> int:
    """A whole number of at least 1.

    Raises:
        ValueError: it's something else.
    """
    if not _is_whole(value) or value < 1:
        raise ValueError(f"{name} is {value!r}: expected a whole number of at least 1")
    return int(value)


def per_axis(name: str, value: int | Sequence[int], axes: int, least: int = 1) -> tuple[int, ...]:
    """An option as a tuple with a number for each spatial axis.

    Args:
        name: its name, for errors.
        value: a whole number, or one per axis.
        axes: the number of spatial axes.
        least: the smallest number that is allowed.

    Raises:
        ValueError: it's something else.
    """
    numbers: tuple[object, ...] = (value,) * axes
    if isinstance(value, (tuple, list)):
        numbers = tuple(value)
    found = tuple(int(n) for n in numbers if _is_whole(n) and n >= least)  # type: ignore[operator, call-overload]
    if not len(found) == len(numbers) == axes:
        several = "" if axes == 1 else f", or {axes} of them"
        raise ValueError(
            f"{name} is {value!r}: expected a whole number of at least {least}{several}"
        )
    return found


def probability(name: str, value: float) -> float:
    """A number from 0 to 1.

    Raises:
        ValueError: it's something else.
    """
    if not _is_number(value) or not 0 <= value <= 1:
        raise ValueError(f"{name} is {value!r}: expected 0 … 1")
    return value


def at_least_zero(name: str, value: float) -> float:
    """A finite number of at least 0.

    Raises:
        ValueError: it's something else.
    """
    if not _is_number(value) or not 0 <= value < float("inf"):
        raise ValueError(f"{name} is {value!r}: expected a number of at least 0")
    return value


def one_of(name: str, value: str, choices: Iterable[str]) -> str:
    """One of several names.

    Raises:
        ValueError: it's something else.
    """
    known = list(choices)
    if value not in known:
        raise ValueError(f"{name} is {value!r}: expected one of {', '.join(known)}")
    return value


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool)


def _is_whole(value: object) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)
