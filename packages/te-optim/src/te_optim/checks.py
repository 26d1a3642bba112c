"""What settings are held to; an error says what was given and what was expected."""

from __future__ import annotations

from collections.abc import Iterable
from math import inf, isfinite
from typing import Any

import numpy as np

from te_tensor import Tensor


def check_number(
    name: str,
    value: object,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
) -> None:
    """Hold that a value is a finite number within bounds.

    Args:
        name: what the value is called.
        value: what was given.
        least: the number may not be less.
        above: the number must be greater.
        most: the number may not be greater; with inf it may be that.
        below: the number must be less.

    Raises:
        ValueError: it isn't such a number.
    """
    number: Any = value
    if (
        isinstance(value, (int, float, np.integer, np.floating))
        and not isinstance(value, bool)
        and (isfinite(value) or (value == inf and most == inf))
        and (least is None or number >= least)
        and (above is None or number > above)
        and (most is None or number <= most)
        and (below is None or number < below)
    ):
        return
    bounds = {"of at least": least, "above": above, "of at most": most, "below": below}
    said = " and ".join(
        f"{words} {bound:g}" for words, bound in bounds.items() if bound is not None
    )
    kind = "a number" if most == inf else "a finite number"
    raise ValueError(f"{name} is {value!r}: expected {kind} {said}".rstrip())


def check_count(name: str, value: object, least: int) -> None:
    """Hold that a value is a whole number.

    Raises:
        ValueError: it isn't, or is less than `least`.
    """
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not whole or value < least:  # type: ignore[operator]
        raise ValueError(f"{name} is {value!r}: expected a whole number of at least {least}")


def check_choice(name: str, value: object, choices: Iterable[str]) -> None:
    """Hold that a value is one of several words.

    Raises:
        ValueError: it is something else.
    """
    known = list(choices)
    if value not in known:
        raise ValueError(f"{name} is {value!r}: expected any of {', '.join(known)}")


def as_tensors(parameters: Iterable[Tensor]) -> list[Tensor]:
    """The parameters of a call as a list; one tensor counts as a list of one.

    Raises:
        TypeError: something isn't a Tensor.
    """
    given = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    for tensor in given:
        if not isinstance(tensor, Tensor):
            raise TypeError(f"a parameter is a {type(tensor).__name__}: expected a Tensor")
    return given
