"""Arithmetic in which inf and NaN make no warnings, as IEEE 754 has it.

What `np.errstate(all="ignore")` does is to set a variable of the context. Finding out which one and
what to, once, leaves two calls to each operation, where entering and leaving np.errstate takes
longer than to add four numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import copy_context
from typing import Any

import numpy as np


def _switches() -> tuple[Callable[[Any], Any], Callable[[Any], None], Any]:
    """What begins silence, what ends it, and what the beginning is given."""
    outside = copy_context()
    with np.errstate(all="ignore"):
        inside = copy_context()
    for variable, value in inside.items():
        if outside.get(variable) is not value:
            return variable.set, variable.reset, value
    return _enter, _leave, None  # a NumPy that keeps it elsewhere


def _enter(_: None) -> np.errstate:
    state = np.errstate(all="ignore")
    state.__enter__()
    return state


def _leave(state: np.errstate) -> None:
    state.__exit__(None, None, None)


#: `token = begin(QUIET)`, and in a `finally` clause `end(token)`: what was before holds again.
begin, end, QUIET = _switches()
