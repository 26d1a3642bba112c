"""Sums whose bits depend on the order of the ranks alone."""

from __future__ import annotations

import numpy as np

from te_tensor.dtypes import Array

from .communicator import Communicator
from .waiting import Pending


class RankOrderSum:
    """The sum over ranks of a flat array in its place, added from rank 0 on.

    An allreduce adds in an order that depends on the library, the number of ranks and the place
    of an element in the message. Here each rank gets its part of everybody's array, adds, and
    gives the sum to all: the same traffic as of a ring, in two calls.

    Args:
        flat: the array, a multiple of the ranks long.
        parts: for the first call.
        sums: for the second; it begins when the first is done, which other ranks' first calls may
            come before or after, so it needs an order of its own.
    """

    def __init__(self, flat: Array, parts: Communicator, sums: Communicator) -> None:
        self._flat = flat
        self._sums = sums
        self._received, self._parting = parts.ialltoall(flat)
        self._gathering: Pending | None = None

    def test(self) -> bool:
        """Whether the sum is there; asking moves it on."""
        if self._gathering is None:
            if not self._parting.test():
                return False
            self._gathering = self._add()
        return self._gathering.test()

    def wait(self) -> None:
        """Wait for the sum.

        Raises:
            TimeoutError: not all ranks came in time.
        """
        if self._gathering is None:
            self._parting.wait()
            self._gathering = self._add()
        self._gathering.wait()

    def _add(self) -> Pending:
        first, *others = self._received
        with np.errstate(all="ignore"):
            for part in others:
                first += part
        length = len(first)
        self._flat[self._sums.rank * length : (self._sums.rank + 1) * length] = first
        return self._sums.iallgather(self._flat)
