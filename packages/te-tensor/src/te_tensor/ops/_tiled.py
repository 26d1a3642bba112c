"""Blocks of images that go by tiles: each thread does its share of them in a single call."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Generic, Protocol, TypeAlias, TypeVar

import numpy as np

from .. import memory, parallel
from ..dtypes import Array, float32, int64
from ..machine import LINE, SHAPES, ZEROS, TiledCalls, run_calls

#: Multiply-adds up to which a call is short, and keeps the GIL.
_SHORT = 1 << 24


class _Block(Protocol):
    def calls(self, make: Callable[..., TiledCalls]) -> TiledCalls:
        """What tiles do of a part of an image."""


Block = TypeVar("Block", bound=_Block)
#: Addresses for a share's number and its images' numbers: what calls have in front of memory to
#: work in.
Bases: TypeAlias = Callable[[int, Array], list[Array | int]]


class _Share(Generic[Block]):
    """The calls for a thread's blocks of images: for each block, one image after the other."""

    def __init__(
        self,
        tasks: list[tuple[int, Block]],
        make: Callable[..., TiledCalls],
        bases: Callable[[Array], list[Array | int]],
    ) -> None:
        by_block: dict[Block, list[int]] = {}
        for unit, block in tasks:
            by_block.setdefault(block, []).append(unit)
        self._groups = [(block, units, block.calls(make)) for block, units in by_block.items()]
        size = max(calls.size for _, _, calls in self._groups)
        self._work = memory.empty(((size + LINE) // 4,), float32)
        work = memory.address(self._work)
        behind = [work + -work % LINE, memory.address(ZEROS), memory.address(SHAPES)]
        words = []
        self.count = 0
        for _, units, calls in self._groups:
            given = [*bases(np.array(units)), *behind]
            table = np.empty((len(units), len(given)), int64)
            for column, base in enumerate(given):
                table[:, column] = base
            words.append(calls.calls.at_each(table))
            self.count += len(units) * calls.calls.count
        self.words = np.concatenate([part.reshape(-1) for part in words])

    def left_out(self) -> list[tuple[int, Block]]:
        """What tiles couldn't do, once the calls are made."""
        left, place = [], 0
        for block, units, calls in self._groups:
            size = calls.calls.words.size
            flags = self.words[place + calls.skipped :: size][: len(units)]
            left += [(units[number], block) for number in np.flatnonzero(flags).tolist()]
            place += len(units) * size
        return left


def run_tiled(
    tasks: list[tuple[int, Block]],
    threads: int,
    make: Callable[..., TiledCalls],
    bases: Bases,
    work: int,
) -> list[tuple[int, Block]]:
    """Do blocks of images by tiles.

    Args:
        tasks: numbers of images, and blocks of them.
        threads: that share the tasks, in their order.
        make: gives the calls for a block.
        bases: what these have from one image to another.
        work: multiply-adds of all tasks.

    Returns:
        The tasks that aren't done.
    """
    if not tasks:
        return []
    pieces = parallel.split(len(tasks), threads)
    shares = [
        _Share(tasks[piece], make, partial(bases, index)) for index, piece in enumerate(pieces)
    ]
    run_calls([(share.words, share.count) for share in shares], short=work <= _SHORT)
    return [task for share in shares for task in share.left_out()]
