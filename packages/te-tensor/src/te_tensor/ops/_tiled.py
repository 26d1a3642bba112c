"""Which blocks of images a thread does by tiles, in a single call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

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


def run_tiled(
    tasks: list[tuple[int, Block]],
    threads: int,
    make: Callable[..., TiledCalls],
    bases: Callable[[int, Array], list[Array | int]],
    work: int,
) -> list[tuple[int, Block]]:
    """Do blocks of images by tiles.

    Args:
        tasks: numbers of images, and blocks of them.
        threads: that share the tasks, in their order.
        make: gives the calls for a block.
        bases: addresses for a share's number and its images' numbers: what calls have in front of
            memory to work in.
        work: multiply-adds of all tasks.

    Returns:
        The tasks that aren't done.
    """
    shares, found, kept = [], [], []
    for index, share in enumerate(parallel.split(len(tasks), threads)):
        by_block: dict[int, list[int]] = {}
        blocks = {}
        for unit, block in tasks[share]:
            by_block.setdefault(id(block), []).append(unit)
            blocks[id(block)] = block
        made = {key: block.calls(make) for key, block in blocks.items()}
        size = max(calls.size for calls in made.values())
        memory_to_work_in = memory.empty(((size + LINE) // 4,), float32)
        at = memory.address(memory_to_work_in)
        at += -at % LINE
        kept.append(memory_to_work_in)
        parts, count = [], 0
        for key, calls in made.items():
            units = np.array(by_block[key])
            given = [*bases(index, units), at, memory.address(ZEROS), memory.address(SHAPES)]
            table = np.empty((len(units), len(given)), int64)
            for column, base in enumerate(given):
                table[:, column] = base
            words = calls.calls.at_each(table)
            parts.append(words.reshape(-1))
            count += len(units) * calls.calls.count
        whole = np.concatenate(parts)
        shares.append((whole, count))
        place = 0
        for part, key in zip(parts, made, strict=True):
            rows = whole[place : place + part.size].reshape(len(by_block[key]), -1)
            found.append((rows[:, made[key].skipped], by_block[key], blocks[key]))
            place += part.size
    run_calls(shares, short=work <= _SHORT)
    return [
        (unit, block)
        for flags, units, block in found
        for flag, unit in zip(flags.tolist(), units, strict=True)
        if flag
    ]
