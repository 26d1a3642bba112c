"""Values of a state dict on their way into a module's tensors."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib.array_utils import byte_bounds

from te_tensor import Tensor, storage
from te_tensor.parallel import parallel_for

#: Bytes from which a state is copied by several threads.
_PARALLEL_FROM = 1 << 22


def numbers(value: Any) -> npt.NDArray[Any]:
    """A value of a state dict as an array of real numbers.

    Raises:
        ValueError: it holds something else.
    """
    array = np.asarray(value)
    if array.dtype.kind in "OSUMmc":
        raise ValueError(f"values of dtype {array.dtype}, expected real numbers")
    return array


def write(values: list[tuple[Tensor, npt.NDArray[Any]]]) -> None:
    """Copy values into tensors, in the engine's threads where it is worth it."""
    shared: dict[int, list[tuple[Tensor, npt.NDArray[Any]]]] = {}
    for tensor, value in values:  # what lies on the same memory is written in order
        shared.setdefault(id(storage.owner(tensor.data)), []).append((tensor, value))
    parts = list(shared.values())

    def write(number: int) -> None:
        for tensor, value in parts[number]:
            with tensor.lock() as array:
                array[...] = value

    if sum(value.nbytes for _, value in values) >= _PARALLEL_FROM:
        parallel_for(write, len(parts))
    else:
        for number in range(len(parts)):
            write(number)


def overlap_of(arrays: list[npt.NDArray[Any]]) -> Callable[[npt.NDArray[Any]], bool]:
    """Whether an array may share memory with one of these, by where they begin and end."""
    bounds = sorted(byte_bounds(array) for array in arrays)
    begins = [begin for begin, _ in bounds]
    # the furthest end of all that begin so far: some may lie inside others
    ends = list(accumulate((end for _, end in bounds), max))

    def overlaps(array: npt.NDArray[Any]) -> bool:
        begin, end = byte_bounds(array)
        before = bisect_left(begins, end)
        return before > 0 and ends[before - 1] > begin

    return overlaps
