"""Recordings: forward and backward of operations as two calls, on memory that each run brings.

A recording holds sizes and distances, but no memory: one serves all layers of a shape, any number
of times at once. `recorder.py` makes them. `Replay` is a run: an operation that stands for all of
them in the graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from . import memory
from .dtypes import Array, float32
from .machine import Relocatable, Steps
from .operation import Gradients, Operation

_ITEM = 4
#: What addresses count from: nothing, the words, memory that forward keeps for backward and that
#: either has for itself, the result, its gradient; then all inputs, then their gradients.
KEPT, PASSING, OUT, GRAD, INPUTS = 2, 3, 4, 5, 6


class Call(NamedTuple):
    """Calls of one direction."""

    steps: Steps
    calls: Relocatable

    @classmethod
    def of(cls, steps: Steps, regions: Sequence[tuple[Array, int, int]]) -> Call:
        """The calls of steps."""
        return cls(steps, steps.relocatable(regions))

    def run(self, addresses: Sequence[int]) -> bool:
        """Make the calls; whether all of them could do their work."""
        return self.steps.run_relocated(self.calls, addresses)

    def reads(self, base: int) -> bool:
        """Whether any address counts from it."""
        return bool((self.calls.bases == base).any())


class Recording:
    """Forward and backward as calls.

    Attributes:
        shape: that of the result.
    """

    def __init__(
        self,
        forward: Call,
        backward: Call,
        sizes: tuple[int, int, int],
        shape: tuple[int, ...],
        grads: list[tuple[int, ...] | None],
    ) -> None:
        self._forward, self._backward = forward, backward
        self._kept, self._brief, self._passing = (size // _ITEM for size in sizes)
        self.shape = shape
        self._grads = grads
        #: The same without tiles: what they can't do it does. It keeps the same for backward, at
        #: the same places.
        self.fallback: Recording | None = None
        self._reads_out = backward.reads(OUT)
        self._reads = [backward.reads(base) for base in range(INPUTS, INPUTS + len(grads))]

    @property
    def may_fail(self) -> bool:
        """Whether tiles make some products, so that there should be a `fallback`."""
        return bool(self._forward.calls.failures or self._backward.calls.failures)

    def is_current(self) -> bool:
        """Whether the engine's threads are those that it was recorded for."""
        return self._forward.steps.is_current()

    def run(self, arrays: Sequence[Array]) -> tuple[Array, list[Array | None]]:
        """The result, and what backward needs.

        Args:
            arrays: the inputs, float32 in C order, of the shapes that were recorded.
        """
        kept, brief = (memory.empty((size,), float32) for size in (self._kept, self._brief))
        out = memory.empty(self.shape, float32)
        places = *map(memory.address, (kept, brief, out)), 0
        if not self._forward.run((*places, *map(memory.address, arrays))):
            return self._other().run(arrays)
        saved = [a if used else None for a, used in zip(arrays, self._reads, strict=True)]
        return out, [kept, out if self._reads_out else None, *saved]

    def run_back(self, grad: Array, saved: Sequence[Array | None]) -> list[Array | None]:
        """The gradients of all inputs, None where none is wanted.

        Args:
            grad: that of the result, float32 in C order.
            saved: what `run` returned.
        """
        passing = memory.empty((self._passing,), float32)
        results = [None if s is None else memory.empty(s, float32) for s in self._grads]
        kept, out, *arrays = map(_place, saved)
        places = kept, memory.address(passing), out, memory.address(grad)
        if not self._backward.run((*places, *arrays, *map(_place, results))):
            return self._other().run_back(grad, saved)
        return results

    def _other(self) -> Recording:
        if self.fallback is None:
            raise RuntimeError("numbers that tiles can't split, and no recording without tiles")
        return self.fallback


def _place(array: Array | None) -> int:
    return 0 if array is None else memory.address(array)


class Replay(Operation):
    """A run of a recording.

    Inputs: the first of those that were recorded.

    Args:
        recording: the recording.
        others: the last of its inputs, which need no gradients.
    """

    is_ours = True

    def __init__(self, recording: Recording, *others: Array) -> None:
        self.recording = recording
        self.others = others

    def forward(self, *arrays: Array) -> Array:
        """The result."""
        out, saved = self.recording.run([*arrays, *self.others])
        self.save(*saved)
        return out

    def backward(self, grad: Array) -> Gradients:
        """The gradients."""
        grad = np.ascontiguousarray(grad)
        return self.recording.run_back(grad, self.saved)[: len(self.inputs)]
