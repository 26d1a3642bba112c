"""Checks of constructor arguments."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from te_tensor.checks import check_whole


def positive(name: str, value: int) -> int:
    """A whole number of at least 1.

    Raises:
        ValueError: it's something else.
    """
    return check_whole(name, value, 1)


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
