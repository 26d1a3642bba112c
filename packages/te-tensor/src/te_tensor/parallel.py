"""The worker threads, and how work is cut for them.

NumPy's loops and OpenBLAS release the GIL, so threads that each do a chain of such calls on a
block of their own run side by side. The calling thread always works too; the workers wait in
a queue. Inside a parallel region further calls run directly, so nothing nests.
"""

from __future__ import annotations

import contextvars
import itertools
import os
import queue
import threading
from collections.abc import Callable
from functools import partial
from math import ceil
from pathlib import Path
from time import perf_counter, sleep
from typing import TypeAlias

import numpy as np

from . import memory
from .checks import broadcast_shape, check_whole
from .crew import Crew
from .dtypes import Array, DType

#: Elements from which a chain of NumPy calls is spread over threads: below, waiting for the GIL
#: costs more than a second core brings.
PARALLEL_FROM = 1 << 18
#: The same for a single call, of which half must take longer than a worker needs to wake up.
PARALLEL_CALL_FROM = 1 << 20
#: The same for a kernel, which takes some 50 µs for as many.
PARALLEL_KERNEL_FROM = 1 << 19
#: The same where workers wait awake.
SHARED_KERNEL_FROM = 1 << 16

_region = threading.local()


def available_cpus() -> int:
    """How many CPUs this process may use: its affinity, cut by the cgroup's quota."""
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count() or 1
    quota = _cgroup_quota()
    return max(1, count if quota is None else min(count, ceil(quota)))


def _cgroup_quota() -> float | None:
    """CPUs' worth of time that the cgroup grants (v2, then v1), or None for no limit."""
    try:
        limit, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            folder = Path("/sys/fs/cgroup/cpu")
            limit = (folder / "cpu.cfs_quota_us").read_text().strip()
            period = (folder / "cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    if limit in ("max", "-1"):
        return None
    return int(limit) / int(period)


def _block_size() -> int:
    """Elements of a block that a chain of NumPy calls goes through before the next one.

    Some eight float32 arrays of this size per CPU fill the last-level cache. Smaller blocks, in
    the second-level cache, have no quicker passes, but threads wait for the GIL after each call.
    """
    size = (1 << 20) * available_cpus()  # where the system doesn't say
    for level in ("index3", "index2"):
        try:
            text = Path(f"/sys/devices/system/cpu/cpu0/cache/{level}/size").read_text().strip()
            size = int(text.removesuffix("K")) * 1024
            break
        except (OSError, ValueError):
            continue
    fitting = size // available_cpus() // (8 * 4)
    return min(max(fitting, 1 << 15), 1 << 18)


BLOCK = _block_size()


def _initial_threads() -> int:
    given = os.environ.get("TE_NUM_THREADS")
    if given is None:
        return available_cpus()
    if not given.isdecimal() or int(given) < 1:
        raise ValueError(f"TE_NUM_THREADS is {given!r}: expected a whole number of at least 1")
    return int(given)


_threads = _initial_threads()


def get_num_threads() -> int:
    """The number of threads that the engine works with, the caller's included."""
    return _threads


def set_num_threads(count: int) -> None:
    """Set the number of threads that the engine works with.

    The same number gives the same bits; another number may differ by rounding.

    Args:
        count: at least 1; 1 keeps all work in the calling thread.

    Raises:
        ValueError: count is not a whole number of at least 1.
    """
    global _threads
    _threads = check_whole("number of threads", count, 1)


def in_parallel() -> bool:
    """Whether the calling thread is inside a parallel region."""
    return getattr(_region, "active", False)


class _Job:
    """The indices 0 … count-1, taken one by one by whichever threads come."""

    def __init__(self, function: Callable[[int], None], count: int) -> None:
        self.function = function
        self.count = count
        self.indices = itertools.count()
        self.finished = 0
        self.failures: list[tuple[int, BaseException]] = []
        self.guard = threading.Lock()
        self.done = threading.Event()

    def work(self) -> None:
        """Take indices until none is left."""
        before, _region.active = in_parallel(), True
        try:
            while (index := next(self.indices)) < self.count:
                self._run(index)
        finally:
            _region.active = before

    def work_on(self, index: int) -> None:
        """Run this one index."""
        before, _region.active = in_parallel(), True
        try:
            self._run(index)
        finally:
            _region.active = before

    def _run(self, index: int) -> None:
        failure = None
        try:
            self.function(index)
        except BaseException as error:  # raised again by the caller, in order
            failure = error
        with self.guard:
            if failure is not None:
                self.failures.append((index, failure))
            self.finished += 1
            if self.finished == self.count:
                self.done.set()

    def wait(self) -> None:
        """Until every index is done; then raise the lowest index's failure, if any."""
        self.done.wait()
        # A worker that hasn't come yet still has the job in its queue, but nobody's arrays.
        del self.function
        if self.failures:
            raise min(self.failures, key=lambda pair: pair[0])[1]


_Queue: TypeAlias = "queue.SimpleQueue[tuple[contextvars.Context, Callable[[], None]]]"


class _Pool:
    """Threads with a queue each; started when first needed, and anew after a fork."""

    def __init__(self) -> None:
        self.queues: list[_Queue] = []
        self.guard = threading.Lock()
        self.crew = _new_crew()

    def give(self, worker: int, work: Callable[[], None]) -> None:
        """Have a worker do something, in a copy of the caller's context."""
        if worker >= len(self.queues):
            with self.guard:
                while worker >= len(self.queues):
                    self._start()
        self.queues[worker].put((contextvars.copy_context(), work))
        if self.crew:
            self.crew.recall(worker)

    def wake(self, worker: int) -> None:
        """Have a worker wait awake, unless it has something to do."""
        if worker >= len(self.queues) or self.queues[worker].empty():
            self.give(worker, _nothing)

    def _start(self) -> None:
        own: _Queue = queue.SimpleQueue()
        number = len(self.queues)
        name = f"te-worker-{number + 1}"
        threading.Thread(target=self._serve, args=(own, number), name=name, daemon=True).start()
        self.queues.append(own)

    def _serve(self, own: _Queue, number: int) -> None:
        while True:
            context, work = own.get()
            context.run(work)
            del context, work  # a waiting worker keeps nobody's arrays alive
            if self.crew and number < _MOST_AWAKE:
                self.crew.serve(number)


#: Workers that wait awake for a moment; more than these only sleep.
_MOST_AWAKE = 63


def _new_crew() -> Crew | None:
    try:
        return Crew(_MOST_AWAKE)
    except OSError:
        return None


_pool = _Pool()


def crew() -> Crew | None:
    """The workers that wait awake, and can be given machine code; None where there are none."""
    return _pool.crew


def parts() -> int:
    """How many threads of the engine may share work: 1 where they are at work already."""
    return 1 if in_parallel() else min(_threads, _MOST_AWAKE + 1)


def share(work: list[tuple[int, bytes]], *, short: bool) -> None:
    """Have machine code called, spread over the threads of the engine that wait awake.

    Where one of them sleeps, it is woken: for short work that is for the next time, and the caller
    does its part now.

    Args:
        work: at most `parts()`: addresses of functions, and the records that they get.
        short: whether all of it takes less than some 100 µs; the caller then keeps the GIL.
    """
    pool = _pool
    crew = pool.crew
    assert crew is not None
    asleep = [worker for worker in range(len(work) - 1) if not crew.awake(worker)]
    if asleep and not short:
        parallel_for(lambda index: crew.share(work[index : index + 1], keep_gil=False), len(work))
        return
    for worker in asleep:
        pool.wake(worker)
    crew.share(work, keep_gil=short and not asleep)  # who wakes up needs the GIL first


#: Seconds that `wake` waits at the most; to wake a thread takes some 40 µs.
_WAKING = 100e-6


def wake(helpers: int, *, wait: bool) -> None:
    """Have the first workers wait awake, for work that is to come.

    Args:
        helpers: how many.
        wait: wait for them a moment.
    """
    pool = _pool
    crew = pool.crew
    if crew is None:
        return
    asleep = [worker for worker in range(helpers) if not crew.awake(worker)]
    for worker in asleep:
        pool.wake(worker)
    until = perf_counter() + _WAKING
    while wait and asleep and perf_counter() < until:
        sleep(0)  # who wakes up needs the GIL
        asleep = [worker for worker in asleep if not crew.awake(worker)]


def _nothing() -> None:
    """What a worker is woken for."""


def _renew_pool() -> None:
    global _pool
    if _pool.crew is not None:
        _pool.crew.forget_workers()  # recordings may still know them
    _pool = _Pool()
    _region.active = False


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_pool)


def parallel_for(function: Callable[[int], None], count: int) -> None:
    """Call function(0) … function(count-1), spread over the engine's threads.

    Calls run in any order and must write to places of their own; each runs in a copy of the
    caller's context. When calls fail, those already begun finish, and the failure with the
    lowest index is raised.
    """
    helpers = min(_threads, count) - 1
    if helpers < 1 or in_parallel():
        for index in range(count):
            function(index)
        return
    job = _Job(function, count)
    for worker in range(helpers):
        _pool.give(worker, job.work)  # one that comes too late finds nothing left
    job.work()
    job.wait()


def run_each(function: Callable[[int], None], count: int) -> None:
    """Call function(0) … function(count-1), each in a thread of its own.

    The caller runs 0 and worker i runs i, always: what a call leaves in a core's cache, the next
    one finds there. All calls finish, whether or not some fail; then the failure with the lowest
    index is raised, with a note.
    """
    if count < 2 or in_parallel():
        for index in range(count):
            function(index)
        return
    job = _Job(function, count)
    for index in range(1, count):
        _pool.give(index - 1, partial(job.work_on, index))
    job.work_on(0)
    try:
        job.wait()
    except BaseException as error:
        error.add_note(f"in one of {count} shards, run in {count} threads")
        raise


#: How many items the helper of a relay is ahead.
_AHEAD = 2


def relay(
    ahead: Callable[[int], None],
    step: Callable[[int], None],
    after: Callable[[int], None],
    count: int,
    *,
    helped: bool,
) -> None:
    """For each of the items 0 … count-1, in order: ahead(i), then step(i), then after(i).

    With help, the steps run in the calling thread and the others in a second one, which is up to
    two items ahead: for a chain of steps that must follow each other, and work around it that
    must not. The order in each thread is fixed, whatever the timing.

    Args:
        ahead: prepares an item; must not depend on steps.
        step: the link of the chain.
        after: what an item's step leaves to do.
        count: how many items.
        helped: use the second thread, where there is one.
    """
    if not helped or count < 2 or _threads < 2 or in_parallel():
        for item in range(count):
            ahead(item)
            step(item)
            after(item)
        return
    prepared: queue.SimpleQueue[bool] = queue.SimpleQueue()  # False: the other side failed
    stepped: queue.SimpleQueue[bool] = queue.SimpleQueue()

    def lead() -> None:
        try:
            for item in range(count):
                if not prepared.get():
                    return
                step(item)
                stepped.put(True)
        except BaseException:
            stepped.put(False)
            raise

    def help_out() -> None:
        try:
            for item in range(count + _AHEAD):
                if item < count:
                    ahead(item)
                    prepared.put(True)
                if item >= _AHEAD:
                    if not stepped.get():
                        return
                    after(item - _AHEAD)
        except BaseException:
            prepared.put(False)
            raise

    run_each(lambda index: help_out() if index else lead(), 2)


def split(total: int, parts: int) -> list[slice]:
    """Contiguous slices of range(total) whose sizes differ by at most one, none empty."""
    parts = max(1, min(parts, total))
    small, larger = divmod(total, parts)
    edges = [0, *itertools.accumulate([small + 1] * larger + [small] * (parts - larger))]
    return [slice(a, b) for a, b in itertools.pairwise(edges)]


def fixed_blocks(size: int) -> list[slice]:
    """Slices of range(size) whose edges depend on nothing but the size, for sums and draws."""
    return split(size, ceil(size / (1 << 15))) if size else []


def rowwise(function: Callable[..., object], *arrays: Array) -> None:
    """Call `function` on matching blocks of the arrays' first axes, in the engine's threads.

    Blocks are small enough for a chain of passes to stay in cache. The first array sets the
    rows (it is usually written to); an array of as many axes and rows is cut with it, others
    are passed whole and broadcast. Small work is one call in the calling thread.
    """
    first = arrays[0]
    if first.size < PARALLEL_FROM:
        function(*arrays)
        return
    rows = len(first)
    cut = [a.ndim == first.ndim and len(a) == rows for a in arrays]
    count = ceil(first.size / BLOCK)
    blocks = split(rows, count if in_parallel() else max(count, _threads))

    def run(index: int) -> None:
        block = blocks[index]
        function(*(a[block] if c else a for a, c in zip(arrays, cut, strict=True)))

    parallel_for(run, len(blocks))


def elementwise(function: Callable[..., object], *arrays: Array) -> None:
    """As `rowwise`, for a function to which each element is a row of its own."""
    if arrays[0].size < PARALLEL_FROM:
        function(*arrays)
        return
    if all(a.shape == arrays[0].shape and a.flags.c_contiguous for a in arrays):
        arrays = tuple(a.reshape(-1) for a in arrays)
    rowwise(function, *arrays)


def _once(function: Callable[..., object], *arrays: Array) -> None:
    """As `elementwise`, for a single pass: in as many parts as threads, for whom nothing stays."""
    if in_parallel() or not arrays[0].ndim:
        function(*arrays)
        return
    if all(a.shape == arrays[0].shape and a.flags.c_contiguous for a in arrays):
        arrays = tuple(a.reshape(-1) for a in arrays)
    first = arrays[0]
    parts = split(len(first), _threads)
    cut = [a.ndim == first.ndim and len(a) == len(first) for a in arrays]

    def run(index: int) -> None:
        function(*[a[parts[index]] if c else a for a, c in zip(arrays, cut, strict=True)])

    parallel_for(run, len(parts))


def ufunc(
    function: np.ufunc, a: Array, b: Array | None = None, dtype: DType | None = None
) -> Array:
    """A NumPy ufunc of one or two arrays of a dtype, in the engine's threads where worth it.

    Args:
        function: the ufunc.
        a: its first input.
        b: its second, if it has two.
        dtype: the result's, where it isn't that of the inputs.
    """
    if a.size < PARALLEL_CALL_FROM and (b is None or b.size < PARALLEL_CALL_FROM):
        result = function(a) if b is None else function(a, b)
        return result if type(result) is np.ndarray else np.asarray(result)  # a scalar for 0-d
    return _ufunc_in_threads(function, [a] if b is None else [a, b], dtype or a.dtype)


def _ufunc_in_threads(function: np.ufunc, arrays: list[Array], dtype: DType) -> Array:
    out = memory.empty(broadcast_shape(*(array.shape for array in arrays)), dtype)
    _once(lambda out, *inputs: function(*inputs, out=out), out, *arrays)
    return out


def copy(array: Array) -> Array:
    """A copy, in the engine's threads and in C order where it is large."""
    if array.size < PARALLEL_CALL_FROM:
        return np.array(array)
    out = memory.empty(array.shape, array.dtype)
    _once(np.copyto, out, array)
    return out
