"""Parameters that a kernel changes where they are, many in one call.

A kernel goes through all arrays of a parameter once, so nothing is won by blocks that stay in
cache, nor by gathering small parameters: what costs is how often Python is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import accumulate
from math import ceil
from operator import is_
from typing import TypeAlias

import numpy as np

from te_tensor import get_num_threads
from te_tensor.dtypes import Array, float32
from te_tensor.machine import Batch
from te_tensor.parallel import parallel_for, split

from .formula import Update

Task: TypeAlias = Callable[[], None]

#: Elements from which work is spread over threads.
PARALLEL_FROM = 1 << 18
#: Elements that take longer to change than a task takes to begin.
SHORTEST = 1 << 16


class Direct:
    """The calls of a kernel for many parameters, and the tasks that they are cut into.

    Args:
        update: the formula, with the numbers of any step.
        targets: the parameters, float32 in C order; one at least has elements.
        state: the flat arrays of their state, which are end to end there.
        begin: where the first parameter begins in these.
        total: the elements that are changed at the same time, of others too.
    """

    def __init__(
        self,
        update: Update,
        targets: Sequence[Array],
        state: Sequence[Array],
        begin: int,
        total: int,
    ) -> None:
        length = fair_length(total) if total >= PARALLEL_FROM else max(total, 1)
        self._state = state
        #: The parts of parameters that a call each is for: whose, and which elements of it.
        self._parts = [
            (index, cut)
            for index, target in enumerate(targets)
            if target.size
            for cut in split(target.size, ceil(target.size / length))
        ]
        #: Whether each call is for a whole parameter, and none is empty.
        self._whole = len(self._parts) == len(targets) == len({i for i, _ in self._parts})
        edges = list(accumulate((target.size for target in targets), initial=begin))
        spans = [slice(edges[i] + cut.start, edges[i] + cut.stop) for i, cut in self._parts]
        flat = [target.reshape(-1) for target in targets]
        parts = [flat[index][cut] for index, cut in self._parts]
        self._batch = Batch(
            update.kernel, [parts, None, *([array[span] for span in spans] for array in state)]
        )
        self._tasks = list(_tasks(self._batch.sizes, length))

    def fits(self, update: Update, state: Sequence[Array]) -> bool:
        """Whether it was made for this formula, as code for what runs now, and for this state."""
        same = update.kernel.program() is self._batch.program
        return same and all(map(is_, state, self._state))

    def tasks(self, update: Update, gradients: Sequence[Array]) -> list[Task]:
        """What is to be called, in any order and any thread, for one step.

        Args:
            update: the formula with this step's numbers.
            gradients: those of the parameters, in order.
        """
        given = [
            g if g.dtype is float32 and g.flags.c_contiguous else np.ascontiguousarray(g, float32)
            for g in gradients
        ]
        if not self._whole:
            given = [given[index].reshape(-1)[cut] for index, cut in self._parts]
        return [partial(self._batch.run, t, given[t], update.numbers) for t in self._tasks]


def fair_length(total: int) -> int:
    """The elements of a task: a few tasks for each thread, so that none waits long for another."""
    return max(total // (4 * get_num_threads()), SHORTEST)


def carry_out(tasks: Sequence[Task], total: int) -> None:
    """Call all tasks, in the engine's threads where they have many elements in total."""
    if total >= PARALLEL_FROM and len(tasks) > 1:
        parallel_for(lambda index: tasks[index](), len(tasks))
        return
    for task in tasks:
        task()


def _tasks(sizes: Sequence[int], length: int) -> Iterator[slice]:
    """Neighbours that have so many elements together."""
    start = total = 0
    for stop, size in enumerate(sizes, 1):
        total += size
        if total >= length or stop == len(sizes):
            yield slice(start, stop)
            start, total = stop, 0
