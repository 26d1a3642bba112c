"""How convolutions spread over threads: units of images, cut into blocks of output rows."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil
from typing import Protocol, TypeVar

from .. import parallel

#: Multiply-adds from which the work is spread over threads.
_PARALLEL_FROM = 1 << 22

Block = TypeVar("Block")
Made = TypeVar("Made")


class Layout(Protocol[Block]):
    """How images are read, or copied, for products."""

    def blocks(self, pieces: int) -> list[Block]:
        """At least so many blocks of output rows, where there are as many rows."""


def threads_for(work: int) -> int:
    """Threads for so many multiply-adds."""
    return parallel.get_num_threads() if work >= _PARALLEL_FROM else 1


def tasks_of(layout: Layout[Block], units: int, work: int) -> list[tuple[int, Block]]:
    """Units and blocks of them that can be done side by side."""
    blocks = layout.blocks(ceil(threads_for(work) / max(units, 1)))
    return [(unit, block) for unit in range(units) for block in blocks]


def run_all(function: Callable[[int], None], count: int, work: int) -> None:
    """function(0) … function(count-1), in the engine's threads where the work is worth it."""
    if work >= _PARALLEL_FROM:
        parallel.parallel_for(function, count)
    else:
        for index in range(count):
            function(index)


def run_and_keep(compute: Callable[[int], Made], count: int, work: int) -> Made | None:
    """As `run_all`; what a single call returns is kept."""
    if count == 1:
        return compute(0)

    def run(index: int) -> None:
        compute(index)

    run_all(run, count, work)
    return None
