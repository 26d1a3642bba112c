"""How a step is cut into tasks.

Where kernels run, formulas change float32 parameters in a few calls (`direct.py`). The rest takes
many NumPy calls, in blocks: a large parameter is updated where it stands, in blocks that stay in
cache, spread over the engine's threads. Small ones are updated many at a time: they and their
gradients are gathered into one block and written back from there, so that a model of many small
parameters costs a few copies for each of them, and not a dozen NumPy calls. Rules are elementwise:
the bits depend neither on blocks nor on threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import groupby
from math import ceil
from operator import is_
from typing import TypeAlias

import numpy as np

from te_tensor import memory, storage
from te_tensor.dtypes import Array, float32
from te_tensor.machine import runs
from te_tensor.parallel import BLOCK, split

from .arena import MASTER, SMALL, Arena
from .direct import Direct, Task, fair_length
from .formula import Update

#: Changes a block of parameters in place: rule(values, gradient, *state), all of one axis.
Rule: TypeAlias = Callable[..., None]

#: Elements of a block of gathered parameters.
_GATHERED = 1 << 16


@dataclass(slots=True)
class Block:
    """What one call of a rule changes: a part of one parameter, or several small ones.

    Attributes:
        span: its place in the arena's arrays.
        gradients: whose gradients it needs, counted from the first of its run.
        cut: the part of the only one of them; None for whole ones.
        targets: the parameters, or a part of one; flat wherever the memory is in C order.
    """

    span: slice
    gradients: slice
    cut: slice | None
    targets: list[Array]

    def parts(self, gradients: Sequence[Array]) -> Sequence[Array]:
        """Those of the run's flat gradients that belong here."""
        own = gradients[self.gradients]
        return own if self.cut is None else [own[0][self.cut]]

    def gather(self, pieces: Sequence[Array], out: Array) -> Array:
        """Pieces of this block end to end."""
        axis = 0 if pieces[0].ndim == 1 else None
        return np.concatenate(pieces, axis=axis, out=out, casting="same_kind")

    def scatter(self, values: Array) -> None:
        """Write a block's values to where they belong."""
        if len(self.targets) == 1:
            (target,) = self.targets
            target[...] = values.reshape(target.shape)
            return
        start = 0
        for target in self.targets:
            stop = start + target.size
            target[...] = values[start:stop]
            start = stop


def _update(block: Block, rule: Rule, gradients: Sequence[Array], state: Sequence[Array]) -> None:
    """Change a block in the dtype that its parameters have."""
    own, parts = block.parts(gradients), [array[block.span] for array in state]
    if len(block.targets) == 1 and block.targets[0].ndim == 1:
        rule(block.targets[0], own[0], *parts)
        return
    shape, dtype = (block.span.stop - block.span.start,), own[0].dtype
    values = block.gather(block.targets, memory.empty(shape, dtype))
    rule(values, block.gather(own, memory.empty(shape, dtype)), *parts)
    block.scatter(values)


def _update_small(
    block: Block, rule: Rule, gradients: Sequence[Array], state: Sequence[Array], master: Array
) -> None:
    """Change a block of small floats in float32.

    The master copy keeps what rounding takes from the parameters, so that many small steps add
    up. A parameter that isn't what its master rounds to was set in the meantime, and counts.
    """
    own, parts = block.parts(gradients), [array[block.span] for array in state]
    kept = master[block.span]
    given = block.gather(block.targets, np.empty(kept.shape, own[0].dtype))
    bits = f"u{given.itemsize}"
    values = given.astype(kept.dtype)
    np.copyto(values, kept, where=kept.astype(given.dtype).view(bits) == given.view(bits))
    rule(values, block.gather(own, np.empty_like(values)), *parts)
    kept[...] = values
    block.scatter(values)


class Run:
    """Neighbours in an arena that all have gradients and have made equally many steps.

    Args:
        arena: the arena.
        members: which of its parameters.
        arrays: their memory.
        total: the elements of all parameters that are changed in the same step.
    """

    def __init__(self, arena: Arena, members: slice, arrays: Sequence[Array], total: int) -> None:
        self.arena = arena
        self.members = members
        self._arrays = arrays
        self._edges = arena.edges[members.start : members.stop + 1]
        self._total = total
        plain = all(a.dtype is float32 and a.flags.c_contiguous for a in arrays)
        #: Whether kernels can change them where they are, and have anything to change.
        self._plain = plain and any(a.size for a in arrays)
        self._direct: Direct | None = None

    @property
    def step(self) -> int:
        """The number of steps that each of them has made."""
        return int(self.arena.steps[self.members.start])

    def tasks(
        self, rule: Rule, gradients: Sequence[Array | None], initial: Mapping[str, float]
    ) -> list[Task]:
        """What is to be called, in any order and any thread, for one step.

        Args:
            rule: the update rule.
            gradients: those of all of the optimizer's parameters, by place.
            initial: the arrays that the rule is given, by name, and what they begin with.
        """
        arena = self.arena
        places = arena.places[self.members]
        own = [g for place in places if (g := gradients[place]) is not None]
        state = [arena.array(name, value) for name, value in initial.items()]
        if self._plain and isinstance(rule, Update) and runs():
            if self._direct is None or not self._direct.fits(rule, state):
                self._direct = Direct(rule, self._arrays, state, self._edges[0], self._total)
            return self._direct.tasks(rule, own)
        flat = [gradient.reshape(-1) for gradient in own]
        if arena.stores_small:
            master = arena.array(MASTER, 0.0)
            return [partial(_update_small, b, rule, flat, state, master) for b in self._blocks]
        return [partial(_update, block, rule, flat, state) for block in self._blocks]

    @cached_property
    def _blocks(self) -> list[Block]:
        """The blocks: small parameters together, large ones in parts."""
        return list(self._cut())

    def _cut(self) -> Iterator[Block]:
        arrays, edges = self._arrays, self._edges
        start = 0
        while start < len(arrays):
            stop = start
            while (
                stop < len(arrays)
                and arrays[stop].size < SMALL
                and arrays[stop].flags.c_contiguous
                and edges[stop + 1] - edges[start] <= _GATHERED
            ):
                stop += 1
            if stop > start:
                targets = [array.reshape(-1) for array in arrays[start:stop]]
                yield Block(slice(edges[start], edges[stop]), slice(start, stop), None, targets)
            else:
                stop = start + 1
                yield from self._parts(arrays[start], slice(start, stop), edges[start])
            start = stop

    def _parts(self, array: Array, place: slice, edge: int) -> Iterator[Block]:
        """The blocks of one parameter; of memory that isn't in C order, a copy is updated."""
        if not array.flags.c_contiguous:
            yield Block(slice(edge, edge + array.size), place, None, [array])
            return
        flat, length = array.reshape(-1), min(fair_length(self._total), BLOCK)
        for cut in split(array.size, ceil(array.size / length)):
            yield Block(slice(edge + cut.start, edge + cut.stop), place, cut, [flat[cut]])


class Plan:
    """The runs and blocks of the parameters that have gradients, while they stay the same ones.

    Args:
        arenas: all arenas of the optimizer.
        arrays: the memory of every parameter by place, None for those without a gradient.

    Raises:
        ValueError: memory is read-only or is that of two parameters; a shape or dtype has changed.
    """

    def __init__(self, arenas: Iterable[Arena], arrays: list[Array | None]) -> None:
        self.arrays = arrays
        present = [array for array in arrays if array is not None]
        self.check_apart(present)
        self.size = sum(array.size for array in present)
        self.records = storage.records_of(present)
        self.runs = [run for arena in arenas for run in self._runs_of(arena)]

    @staticmethod
    def check_apart(arrays: Sequence[Array]) -> None:
        """Hold that parameters share no memory: what one block read another may have changed.

        Args:
            arrays: the memory of each parameter.

        Raises:
            ValueError: two of them share some.
        """
        bounds = sorted(
            (*np.lib.array_utils.byte_bounds(array), place)
            for place, array in enumerate(arrays)
            if array.size
        )
        end, before = 0, 0
        for start, stop, place in bounds:
            if start < end and np.shares_memory(arrays[before], arrays[place]):
                raise ValueError(
                    f"two parameters, of shapes {arrays[before].shape} and {arrays[place].shape}, "
                    "are on the same memory: expected each once"
                )
            if stop > end:
                end, before = stop, place

    def fits(self, arrays: Sequence[Array | None]) -> bool:
        """Whether it was made for these very arrays."""
        return len(arrays) == len(self.arrays) and all(map(is_, arrays, self.arrays))

    def _runs_of(self, arena: Arena) -> Iterator[Run]:
        own = [self.arrays[place] for place in arena.places]
        for index, array in enumerate(own):
            if array is not None:
                _check_kept(array, arena, index)
        steps = [None if a is None else int(n) for a, n in zip(own, arena.steps, strict=True)]
        start = 0
        for step, group in groupby(steps):
            stop = start + len(list(group))
            if step is not None:
                arrays = [array for array in own[start:stop] if array is not None]
                yield Run(arena, slice(start, stop), arrays, self.size)
            start = stop


def _check_kept(array: Array, arena: Arena, index: int) -> None:
    shape = arena.shapes[index]
    if not array.flags.writeable:
        raise ValueError(f"a parameter of shape {array.shape} has read-only memory")
    if array.shape != shape or array.dtype != arena.dtype:
        raise ValueError(
            f"a parameter has become {array.dtype} of shape {array.shape}: expected {arena.dtype} "
            f"of shape {shape} as before; make a new optimizer"
        )
