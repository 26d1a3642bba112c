"""Formulas as NumPy calls, a pass over the elements each: for other dtypes and processors.

Both ways round after every step, so in float32 they give the same bits, unless the formula has
fused steps, which only machine code has.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..memory import scratch
from .formula import Formula, Value

_UFUNCS = {
    "add": np.add,
    "subtract": np.subtract,
    "multiply": np.multiply,
    "divide": np.divide,
    "maximum": np.maximum,
    "square_root": np.sqrt,
    "store": np.positive,  # a copy
}
_GIVEN = ("load", "scalar")


class Passes:
    """An elementwise formula as a function of arrays of one dtype and shape.

    Args:
        function: the formula, as a kernel has it.

    Raises:
        TypeError: a step has no NumPy function, or an operand gets what another one held.
    """

    def __init__(self, function: Callable[..., None]) -> None:
        formula = Formula(function)
        constants = [step for step in formula.steps if step.name == "constant"]
        self._constants = [step.number for step in constants]
        #: Where each value is: operands come first, then constants, then spare arrays.
        self._place = {s: s.operand for s in formula.steps if s.name in _GIVEN}
        self._place |= {s: place for place, s in enumerate(constants, len(formula.kinds))}
        self._spares = self._first_spare = len(formula.kinds) + len(constants)
        self._free: list[int] = []
        #: For each value the step that uses it last, and for what is written the operand.
        self._last = {given: step for step in formula.steps for given in step.arguments}
        self._target = {s.arguments[0]: s.operand for s in formula.steps if s.name == "store"}
        self._calls = [
            call for step in formula.steps if step not in self._place for call in self._call(step)
        ]

    def _call(self, step: Value) -> list[tuple[np.ufunc, list[int], int]]:
        """The call of a step, and the places of what it reads and of what it writes."""
        if step.name not in _UFUNCS:
            raise TypeError(f"no NumPy function for {step.name}: expected any of {sorted(_UFUNCS)}")
        sources = [self._place[given] for given in step.arguments]
        self._free += {
            self._place[given]
            for given in step.arguments
            if self._last[given] is step and self._place[given] >= self._first_spare
        }
        if step.name != "store":
            self._place[step] = self._place_for(step)
            return [(_UFUNCS[step.name], sources, self._place[step])]
        if sources[0] == step.operand:
            return []  # made there
        if sources[0] < self._first_spare:
            raise TypeError(f"operand {step.operand} gets what operand {sources[0]} held")
        return [(_UFUNCS[step.name], sources, step.operand)]

    def _place_for(self, step: Value) -> int:
        """Where a value goes: to its operand, if what was there isn't read later; else apart."""
        target = self._target.get(step, -1)
        later = (
            self._last[v].place > step.place
            for v, place in self._place.items()
            if place == target and v in self._last
        )
        if target >= 0 and not any(later):
            return target
        if not self._free:
            self._spares += 1
            return self._spares - 1
        return self._free.pop()

    def __call__(self, *given: Any) -> None:
        """Go through the elements, in place; arrays come first, then scalars."""
        spare = scratch(self._spares - self._first_spare, given[0].shape, given[0].dtype)
        places = [*given, *self._constants, *spare]
        for function, sources, target in self._calls:
            function(*[places[source] for source in sources], out=places[target])
