"""Memory that is used again: a bounded pool of the buffers under large arrays.

Fresh pages cost about as much as a pass over them. A large array made here stands on a buffer
that returns to the pool when the array and every view of it are gone, whoever held them, and
not earlier: what anybody can still see is never used again.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import threading
from collections import OrderedDict
from math import prod
from typing import Any

import numpy as np

from .dtypes import WIDE_FLOATS, Array, DType

#: Arrays from this many bytes on come from the pool; NumPy's allocator is quick with the others.
_SMALLEST = 1 << 16
#: Buffers come in so many sizes between a power of two and the next: batches that differ a little
#: share them, and at most an eighth is wasted.
_SIZES_PER_OCTAVE = 8
#: Arrays start at multiples of this: a line of the cache, and the widest register.
_ALIGNMENT = 64


#: Bytes before an object's own fields.
_HEAD = object.__basicsize__


def _address_in_object(array: Array) -> int:
    # The first field of an array object, as NumPy's C interface has it.
    return ctypes.c_void_p.from_address(id(array) + _HEAD).value or 0


def _data_comes_first() -> bool:
    """Whether array objects begin with the address of their data."""
    if sys.implementation.name != "cpython":
        return False
    array = np.zeros(1)
    return _address_in_object(array) == array.ctypes.data


#: Whether array objects begin, behind their head, with the address of their data.
DATA_COMES_FIRST = _data_comes_first()


def address(array: Array) -> int:
    """Where an array's data begin: `array.ctypes.data` in a sixth of its time."""
    return _address_in_object(array) if DATA_COMES_FIRST else array.ctypes.data


def _default_limit() -> int:
    """An eighth of the machine's memory, at most 1 GiB."""
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # not on Windows
        return 1 << 28
    return min(1 << 30, memory // 8)


class _Pool:
    """Buffers that nobody uses, by size; those used longest ago go first."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.free: OrderedDict[int, list[Array]] = OrderedDict()
        self.held = 0
        self.lent = 0
        self.reused = 0
        self.made = 0
        # Re-entrant: freeing an object while the lock is held may give a buffer back.
        self.guard = threading.RLock()

    def take(self, size: int) -> Array:
        """A buffer of this size, from the pool if there is one."""
        with self.guard:
            self.lent += size
            buffers = self.free.get(size)
            if buffers:
                self.held -= size
                self.reused += 1
                return buffers.pop()
            self.made += 1
        return np.empty(size, np.uint8)

    def give_back(self, buffer: Array) -> None:
        """Keep a buffer, and let older ones go while there are too many bytes."""
        with self.guard:
            self.lent -= buffer.size
            self.held += buffer.size
            self.free.setdefault(buffer.size, []).append(buffer)
            self.free.move_to_end(buffer.size)
            while self.held > self.limit:
                self._drop_oldest()

    def _drop_oldest(self) -> None:
        size, buffers = next(iter(self.free.items()))
        if buffers:
            buffers.pop()
            self.held -= size
        if not buffers:
            del self.free[size]

    def clear(self) -> None:
        """Let all free buffers go."""
        with self.guard:
            self.free.clear()
            self.held = 0


_pool = _Pool(_default_limit())


class Lease:
    """A buffer lent to one array: the array's base, so views of the array keep it too."""

    __slots__ = ("__array_interface__", "_buffer")

    def __init__(self, buffer: Array, shape: tuple[int, ...], dtype: DType) -> None:
        self._buffer = buffer
        start = address(buffer)
        self.__array_interface__ = {
            "shape": shape,
            "typestr": dtype.str,
            "data": (start + -start % _ALIGNMENT, False),
            "version": 3,
        }

    def __del__(self, pool: _Pool = _pool) -> None:  # bound here: it outlives the module's names
        pool.give_back(self._buffer)


def _renew_guard() -> None:
    _pool.guard = threading.RLock()  # another thread may have held it at the fork


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_guard)


def empty(shape: tuple[int, ...], dtype: DType) -> Array:
    """An array whose elements are yet to be written, in C order.

    Args:
        shape: its shape.
        dtype: its dtype; only large arrays of float32 and float64 come from the pool.
    """
    size = prod(shape) * dtype.itemsize
    if size < _SMALLEST or dtype not in WIDE_FLOATS:
        return np.empty(shape, dtype)
    step = (1 << (size.bit_length() - 1)) // _SIZES_PER_OCTAVE
    size += -size % step + _ALIGNMENT
    return np.asarray(Lease(_pool.take(size), shape, dtype))


def reserve(shape: tuple[int, ...], dtype: DType) -> Array:
    """An array that stands for memory: addresses that nobody else has, and no memory behind them.

    The system's allocator would have large ones in the midst of what is used, and couldn't give
    that back.

    Args:
        shape: its shape.
        dtype: its dtype.
    """
    size = prod(shape) * dtype.itemsize
    if size < _SMALLEST:
        return np.empty(shape, dtype)
    return np.frombuffer(mmap.mmap(-1, size), dtype, prod(shape)).reshape(shape)


def empty_like(array: Array, shape: tuple[int, ...] | None = None) -> Array:
    """`empty` in the dtype of `array`, its axes in the same order in memory.

    Args:
        array: the example.
        shape: another shape of as many axes.
    """
    shape = array.shape if shape is None else shape
    if array.flags.c_contiguous:
        return empty(shape, array.dtype)
    order = order_of(array)
    packed = empty(tuple(shape[axis] for axis in order), array.dtype)
    return packed.transpose([order.index(axis) for axis in range(array.ndim)])


def order_of(array: Array) -> list[int]:
    """Its axes in the order in which they lie in memory, the one with the longest steps first."""
    return sorted(range(array.ndim), key=array.strides.__getitem__, reverse=True)


_scratch = threading.local()
#: Elements of a scratch array from which it isn't kept.
_LARGEST_SCRATCH = 1 << 19


def scratch(count: int, shape: tuple[int, ...], dtype: DType) -> list[Array]:
    """Arrays for a kernel's intermediate results on one block, kept by the thread.

    They hold until the thread asks for scratch again: a kernel asks once, and hands none of
    them out.

    Args:
        count: how many.
        shape: their shape.
        dtype: their dtype.
    """
    size = prod(shape)
    if size > _LARGEST_SCRATCH:
        return [np.empty(shape, dtype) for _ in range(count)]
    kept: list[Array] = _scratch.__dict__.setdefault(dtype.char, [])
    while len(kept) < count:
        kept.append(np.empty(0, dtype))
    arrays = []
    for place in range(count):
        if kept[place].size < size:
            kept[place] = np.empty(size, dtype)
        arrays.append(kept[place][:size].reshape(shape))
    return arrays


def owns_memory(array: Array) -> bool:
    """Whether the array is no view of another."""
    return array.base is None or isinstance(array.base, Lease)


def memory_info() -> dict[str, Any]:
    """What the pool of buffers holds, in bytes.

    Returns:
        `held` (free, for use again), `lent` (under arrays that are alive), `limit` (the most that
        is held), and how many buffers were `made` and `reused`.

    Example:
        >>> sorted(memory_info())
        ['held', 'lent', 'limit', 'made', 'reused']
    """
    with _pool.guard:
        return {name: getattr(_pool, name) for name in ("held", "lent", "limit", "made", "reused")}


def empty_cache() -> None:
    """Give the free buffers back to the system."""
    _pool.clear()
