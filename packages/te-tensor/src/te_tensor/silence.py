"""Arithmetic in which inf and NaN make no warnings, as IEEE 754 has it.

What `np.errstate(all="ignore")` does is to set a variable of the context. Finding out which one and
what to, once, leaves two calls to each operation, where entering and leaving np.errstate takes
longer than to add four numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import copy_context
from functools import partial
from typing import Any

import numpy as np


def _switches() -> tuple[Callable[[], Any], Callable[[Any], None]]:
    """What begins silence, and what ends it, given what the beginning returned."""
    outside = copy_context()
    with np.errstate(all="ignore"):
        inside = copy_context()
    for variable, value in inside.items():
        if outside.get(variable) is not value:
            return partial(variable.set, value), variable.reset
    return _enter, _leave  # a NumPy that keeps it elsewhere


def _enter() -> np.errstate:
    state = np.errstate(all="ignore")
    state.__enter__()
    return state


def _leave(state: np.errstate) -> None:
    state.__exit__(None, None, None)


#: `token = begin()`, and in a `finally` clause `end(token)`: what was before holds again.
begin, end = _switches()
