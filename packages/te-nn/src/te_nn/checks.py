"""Checks of constructor arguments."""

from __future__ import annotations

import numpy as np


def positive(name: str, value: int) -> int:
    """A whole number of at least 1.

    Raises:
        ValueError: it's something else.
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise ValueError(f"{name} is {value!r}: expected a whole number of at least 1")
    return int(value)


def probability(name: str, value: float) -> float:
    """A number from 0 to 1.

    Raises:
        ValueError: it's something else.
    """
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is {value!r}: expected 0 … 1")
    return value
