"""The state of parameters, end to end in flat arrays: one for each group and dtype."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from math import prod
from typing import Any

import numpy as np

from te_tensor.dtypes import Array, DType

#: A parameter of fewer elements is small: copying it costs less than calls of its own would.
SMALL = 1 << 14
#: What parameters of small floats have besides the rule's state: their values in float32.
MASTER = "master"


def wide_dtype(dtype: DType) -> DType:
    """What a parameter is updated in: float32 where it is stored smaller."""
    return dtype if dtype.itemsize >= 4 else np.dtype(np.float32)


class Arena:
    """The state of the parameters that share a group and a dtype.

    Args:
        group: which of the optimizer's groups.
        shapes: the parameters' shapes, by their places among all of the optimizer's parameters.
        dtype: the parameters' dtype.

    Attributes:
        places: the parameters' places; small ones come first, so that they are neighbours.
        edges: where each begins in the flat arrays, and where the last one ends.
        steps: how many steps each has made.
        state: the flat arrays by name.
    """

    def __init__(self, group: int, shapes: Mapping[int, tuple[int, ...]], dtype: DType) -> None:
        self.group = group
        self.dtype = dtype
        self.wide = wide_dtype(dtype)
        self.places = sorted(shapes, key=lambda place: prod(shapes[place]) >= SMALL)
        self.shapes = [shapes[place] for place in self.places]
        self.edges = [0, *accumulate(map(prod, self.shapes))]
        self.steps = np.zeros(len(shapes), np.int64)
        self.state: dict[str, Array] = {}

    @property
    def stores_small(self) -> bool:
        """Whether parameters are stored in fewer bits than they are updated in."""
        return self.dtype != self.wide

    def array(self, name: str, initial: float) -> Array:
        """The flat array of this name, made when it is first needed."""
        found = self.state.get(name)
        if found is None:
            # Zeros take no memory before they are written to.
            found = self.state[name] = np.zeros(self.edges[-1], self.wide)
            if initial:
                found[...] = initial
        return found

    def entry(self, index: int) -> dict[str, Any]:
        """The state of one parameter: "step", and views in its shape; {} before the first step."""
        if not self.steps[index]:
            return {}
        span = slice(*self.edges[index : index + 2])
        views = {name: a[span].reshape(self.shapes[index]) for name, a in self.state.items()}
        return {"step": int(self.steps[index]), **views}

    def fill(
        self, entries: Sequence[Mapping[str, Any]], initial_of: Callable[[str], float]
    ) -> None:
        """Take over the state of every parameter, in the form that `entry` gives."""
        self.state = {}
        for index, entry in enumerate(entries):
            self.steps[index] = entry.get("step", 0)
            span = slice(*self.edges[index : index + 2])
            for name, value in entry.items():
                if name != "step":
                    begin = 0.0 if name == MASTER else initial_of(name)
                    self.array(name, begin)[span] = value.reshape(-1)
