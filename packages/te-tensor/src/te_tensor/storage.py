"""Who may write to memory, and when it was last written to.

Tensors share memory: a reshape, a slice and a detached tensor are views of one array. Locks and
change marks therefore belong to the array that owns the memory, and are made on first use.
An operation notes the time at which it saved its arrays; backward asks whether one of them has
changed since. Where nothing has changed since then at all, that question costs one comparison.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import numpy as np

from . import memory
from .dtypes import Array

Layout = TypeVar("Layout")


class Record:
    """What is known of one piece of memory."""

    __slots__ = ("changed_at", "layouts", "lock", "reference")

    def __init__(self, array: Array, key: int) -> None:
        # The record goes when the memory goes, before its id can be used again.
        forget = _records.pop  # bound now: at the interpreter's end the module may be empty
        self.reference = weakref.ref(array, lambda _: forget(key, None))
        self.lock = threading.RLock()
        self.changed_at = 0
        #: Copies of parts of the memory in another layout, by part, each with its time: see
        #: `layout_of`.
        self.layouts: dict[Any, tuple[int, Any]] = {}


_records: dict[int, Record] = {}
_guard = threading.Lock()
#: The number of changes made so far, in the whole process.
clock = 0


def owner(array: Array) -> Array:
    """The array at the end of the chain of views."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def _record(array: Array) -> Record:
    record = _records.get(id(array))  # by the owner's id, which no view has
    return _made(owner(array)) if record is None else record


def _made(array: Array) -> Record:
    with _guard:
        return _records.setdefault(id(array), Record(array, id(array)))


def lock_of(array: Array) -> threading.RLock:
    """The re-entrant lock of the memory under `array`."""
    record = _records.get(id(array))
    return _record(array).lock if record is None else record.lock


def mark_changed(array: Array) -> None:
    """Note that the memory under `array` has been written to."""
    _mark([_record(array)])


def _mark(records: Iterable[Record]) -> None:
    global clock
    with _guard:
        clock += 1
        for record in records:
            record.changed_at = clock


def records_of(arrays: Iterable[Array]) -> list[Record]:
    """What is known of the memory under each array; it holds while the arrays are kept."""
    return [_record(array) for array in arrays]


@contextmanager
def writing(records: Sequence[Record]) -> Iterator[None]:
    """Exclusive access to many pieces of memory at once; leaving marks all of them as changed.

    Args:
        records: as `records_of` gave them; memory may be among them more than once.
    """
    with holding(records):
        try:
            yield
        finally:
            _mark(records)


@contextmanager
def holding(records: Sequence[Record]) -> Iterator[None]:
    """As `writing`, for reading: nothing is marked."""
    _lock(records)
    try:
        yield
    finally:
        for record in records:
            record.lock.release()


def _lock(records: Sequence[Record]) -> None:
    """Take every lock. Nothing waits for a lock while holding others, so nothing deadlocks."""
    contended = records[0] if records else None
    while contended is not None:
        with contended.lock:
            contended = _try_locks(records)


def _try_locks(records: Sequence[Record]) -> Record | None:
    """Take every lock; or none of them, and return one that another thread holds."""
    for place, record in enumerate(records):
        if not record.lock.acquire(False):  # not by keyword: with it, this takes twice as long
            for other in records[:place]:
                other.lock.release()
            return record
    return None


def changed_since(array: Array, time: int) -> bool:
    """Whether the memory under `array` was written to after `time`, as `clock` told it."""
    if time == clock:
        return False
    record = _records.get(id(owner(array)))
    return record is not None and record.changed_at > time


def layout_of(array: Array, make: Callable[[Array], Layout]) -> Layout | None:
    """A copy in another layout that is kept as long as the memory stays as it is.

    It is made when an array is asked for a second time without a change in between: None the first
    time, and always for memory that others than the engine may write to.

    Args:
        array: contiguous.
        make: makes the copy, which mustn't hold the array; the same function each time.
    """
    memory_of = owner(array)
    if not isinstance(memory_of.base, memory.Lease) and memory_of.flags.writeable:
        return None
    record = _record(memory_of)
    key = (memory.address(array), array.shape, make)
    known = record.layouts.get(key)
    if known is None or known[0] < record.changed_at:
        record.layouts[key] = (clock, None)
        return None
    time, copy = known
    if copy is None:
        copy = make(array)
        if record.changed_at > time:  # while it was made
            return None
        record.layouts[key] = (time, copy)
    return cast("Layout", copy)
