"""Options of convolution and pooling that are one number for all spatial axes, or one for each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..checks import is_whole


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
