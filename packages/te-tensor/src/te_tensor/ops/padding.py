"""Padding: elements added at the ends of axes."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..dtypes import Array
from ..operation import Gradients, Operation, Sample

#: Our names of the modes, and NumPy's.
MODES = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


class Pad(Operation):
    """Elements added before and after the last axes.

    Args:
        padding: how many before and after, per axis, for the last axes in order.
        mode: "constant"; "reflect" mirrors without repeating the edge, "replicate" repeats it,
            "circular" goes on at the other end.
        value: what "constant" adds.
    """

    computes = False
    samples = (
        Sample((2, 3), args=(((1, 2),),)),
        Sample((4, 3), args=(((0, 2), (1, 0)),), kwargs={"value": 2.0}),
        *(Sample((2, 4, 3), args=(((2, 3), (1, 2)), m)) for m in ("reflect", "replicate")),
        Sample((2, 4, 3), args=(((4, 3), (1, 2)), "circular")),
    )

    def __init__(
        self, padding: tuple[tuple[int, int], ...], mode: str = "constant", value: float = 0.0
    ) -> None:
        self.padding = padding
        self.mode = mode
        self.value = value
        self.shape: tuple[int, ...] = ()

    def forward(self, x: Array) -> Array:
        """The larger array."""
        self.shape = x.shape
        self._check()
        if self.mode != "constant":
            for axis, ends in self._ends():
                x = x.take(self._sources(axis, ends), axis=axis)
            return x
        lengths = list(x.shape)
        for axis, (before, after) in self._ends():
            lengths[axis] += before + after
        out = np.full(lengths, self.value, x.dtype)
        out[self._inside()] = x
        return out

    def backward(self, grad: Array) -> Gradients:
        """The gradient of what was inside, plus that of each copy."""
        if self.mode == "constant":
            return (grad[self._inside()],)
        for axis, (before, after) in self._ends():
            places = np.moveaxis(grad, axis, 0)
            sources = self._sources(axis, (before, after))
            total = places[before : before + self.shape[axis]].copy()
            for place in (*range(before), *range(len(places) - after, len(places))):
                total[sources[place]] += places[place]
            grad = np.moveaxis(total, 0, axis)
        return (grad,)

    def _check(self) -> None:
        if len(self.padding) > len(self.shape):
            raise ValueError(f"pad by {self.padding} of shape {self.shape}: more pairs than axes")
        for axis, ends in self._ends():
            length = self.shape[axis]
            # What mirrors and wraps is there once; beyond it there is nothing to copy.
            most = {"reflect": max(length - 1, 0), "circular": length}.get(self.mode)
            if self.mode == "replicate" and not length:
                most = 0
            if most is not None and max(ends) > most:
                raise ValueError(
                    f"pad by {ends} with mode {self.mode!r} along axis {axis} of shape "
                    f"{self.shape}: expected at most {most} at each end"
                )

    def _ends(self) -> list[tuple[int, tuple[int, int]]]:
        """The axes that grow, with how much."""
        return list(enumerate(self.padding, start=len(self.shape) - len(self.padding)))

    def _inside(self) -> tuple[slice, ...]:
        """Where the input stands in the output."""
        inside = [slice(None)] * len(self.shape)
        for axis, (before, _) in self._ends():
            inside[axis] = slice(before, before + self.shape[axis])
        return tuple(inside)

    def _sources(self, axis: int, ends: tuple[int, int]) -> Array:
        """For each place along the axis, the element that stands there."""
        if not self.shape[axis]:
            return np.arange(0)
        mode: Any = MODES[self.mode]
        return np.asarray(np.pad(np.arange(self.shape[axis]), ends, mode=mode))
