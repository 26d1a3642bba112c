"""Functions of the distance: two with a name of their own, and those that users register."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, TypeAlias

import numpy.typing as npt

import te_tensor as te
from te_tensor.checks import check_whole, is_whole

_Array: TypeAlias = npt.NDArray[Any]


class BiasFunction(IntEnum):
    """The function phi of the distance: how fast attention falls off.

    `register_bias_function` makes others known.
    """

    #: phi(d) = ln(1 + d)
    LOGARITHMIC = 0
    #: phi(d) = d²
    GAUSSIAN = 1

    @classmethod
    def parse(cls, value: BiasFunctionLike) -> BiasFunction | RegisteredFunction:
        """The function for its value, or its name in any case.

        Raises:
            ValueError: there is none.

        Example:
            >>> BiasFunction.parse("Gaussian")
            <BiasFunction.GAUSSIAN: 1>
        """
        if isinstance(value, str):
            wanted = value.lower()
            found = [f for f in _known() if f.name.lower() == wanted]
        elif isinstance(value, RegisteredFunction):
            found = [f for f in _known() if f is value]
        elif is_whole(value):
            found = [f for f in _known() if f.value == value]
        else:
            found = []
        if found:
            return found[0]
        known = ", ".join(f"{f.name.lower()} ({f.value})" for f in _known())
        raise ValueError(f"bias function is {value!r}: expected one of {known}")


@dataclass(frozen=True)
class RegisteredFunction:
    """A function of the distance beside those of BiasFunction.

    Attributes:
        name: its name.
        value: its code in state dicts.
    """

    name: str
    value: int


#: A function, its code, or its name in any case.
BiasFunctionLike: TypeAlias = BiasFunction | RegisteredFunction | int | str

#: phi(d) = d, the function of ALiBi; codes below 100 are the engine's own.
_ALIBI = RegisteredFunction("alibi", 10)
_registered: list[RegisteredFunction] = [_ALIBI]
#: Codes of users' functions begin here.
_FIRST_CODE = 100


def _known() -> list[BiasFunction | RegisteredFunction]:
    return [*BiasFunction, *_registered]


def register_bias_function(
    name: str,
    phi: Callable[[_Array], _Array],
    derivative: Callable[[_Array], _Array],
    code: int,
) -> RegisteredFunction:
    """Make a function of the distance known, by name and by code.

    Models that were saved with it load where the same function is registered under the same code.

    Args:
        name: a name that isn't taken, in any case.
        phi: maps distances (an array, at least 0) to an array of their shape; it may run in
            several threads at once. +inf means "may not attend".
        derivative: the derivative of phi, likewise.
        code: what state dicts hold for it: a whole number of at least 100 that isn't taken.

    Returns:
        The function, which layers take as well as its name or its code.

    Raises:
        ValueError: name or code is taken or isn't allowed, or results have another shape.
        TypeError: phi or derivative can't be called.

    Example:
        >>> import numpy as np
        >>> from te_nn import NLOOB
        >>> root = register_bias_function(
        ...     "root", lambda d: np.sqrt(d + 1), lambda d: 0.5 / np.sqrt(d + 1), code=2024
        ... )
        >>> NLOOB(2, "root").config.item()
        2024
    """
    check_whole("code", code, _FIRST_CODE)
    for known in _known():
        if isinstance(name, str) and known.name.lower() == name.lower():
            raise ValueError(f"a bias function named {name!r} is there already")
        if known.value == code:
            raise ValueError(f"code {code} is that of the bias function {known.name.lower()!r}")
    te.register_distance_function(str(name).lower(), phi, derivative)
    made = RegisteredFunction(name, int(code))
    _registered.append(made)
    return made
