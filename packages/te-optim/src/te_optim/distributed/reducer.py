"""Means of gradients over ranks, made while backward goes on."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from te_tensor import HookHandle, Tensor

from .buckets import buckets_of
from .communicator import Communicator
from .rank_order import RankOrderSum
from .waiting import Pending


class Reducer:
    """Fills buckets as backward makes gradients, and sums each as soon as it is full.

    Buckets are begun in one order, the same on every rank, in whatever order gradients come: a
    full one waits for those before it. MPI makes no progress in the background; the hooks of
    later gradients keep it going. A thread could too, but it would take a processor from the
    ranks, which share a machine as a rule, and the GIL from backward.

    Args:
        tensors: parameters that need gradients by their places, the same on every rank.
        comm: the ranks.
        bucket_bytes: the size of a bucket.
        deterministic: add in the order of the ranks.
        names: the names of parameters by their places, for errors.

    Attributes:
        weight: what this rank's gradients count for in the mean.
        paused: whether gradients only add up on each rank.
    """

    def __init__(
        self,
        tensors: Mapping[int, Tensor],
        comm: Communicator,
        bucket_bytes: float,
        deterministic: bool,
        names: Sequence[str],
    ) -> None:
        self.buckets = buckets_of(tensors, bucket_bytes, comm.size)
        self._names = names
        self.weight = 1.0
        self.paused = False
        # Calls of their own order: whatever else ranks do between two buckets is no matter.
        self._sums = comm.duplicate()
        self._parts = comm.duplicate() if deterministic else None
        self._begun: list[Pending] = []
        self._finished = False
        handles = list(self._hooks())
        weakref.finalize(self, _remove, handles)

    def _hooks(self) -> Iterator[HookHandle]:
        own = weakref.ref(self)  # the parameters may outlive this
        for number, bucket in enumerate(self.buckets):
            for index, tensor in enumerate(bucket.tensors):

                def arrived(leaf: Tensor, number: int = number, index: int = index) -> None:
                    reducer = own()
                    if reducer is not None:
                        reducer._arrived(leaf, number, index)

                yield tensor.register_post_accumulate_grad_hook(arrived)

    @property
    def busy(self) -> bool:
        """Whether there are gradients of a backward that no step has used yet."""
        return bool(self._begun) or any(b.missing < len(b.tensors) for b in self.buckets)

    @property
    def begun(self) -> int:
        """How many buckets are being summed, or are."""
        return len(self._begun)

    def _arrived(self, tensor: Tensor, number: int, index: int) -> None:
        """Backward has made a gradient: put it in, and begin what is full."""
        if self.paused:
            return
        bucket = self.buckets[number]
        if self._finished or bucket.holds(index) or number < self.begun:
            raise RuntimeError(
                "backward twice without a step() between: put all but the last one in "
                "`with optimizer.no_sync():`, so that gradients add up before they are summed over "
                "ranks"
            )
        assert tensor.grad is not None
        bucket.put(index, tensor.grad, self.weight)
        while self.begun < len(self.buckets) and not self.buckets[self.begun].missing:
            self._begin_next()
        self._progress()

    def _begin_next(self) -> None:
        bucket = self.buckets[self.begun]
        bucket.close(self.weight)
        if self._parts is None:
            self._begun.append(self._sums.iallreduce(bucket.flat))
        else:
            self._begun.append(RankOrderSum(bucket.flat, self._parts, self._sums))

    def _progress(self) -> None:
        """Move on the oldest sum that isn't done; MPI moves all others on as well."""
        for pending in self._begun:
            if not pending.test():
                return

    def finish(self) -> None:
        """Sum what isn't yet, wait, and make the means the parameters' gradients.

        Raises:
            RuntimeError: a gradient was changed after backward.
            ValueError: the weights of all ranks are 0.
            TimeoutError: not all ranks came in time.
        """
        if self._finished:
            return
        for bucket in self.buckets:
            for place in bucket.changed():
                raise RuntimeError(
                    f"the gradient of {self._names[place]} was changed after backward: call "
                    "synchronize() first, and change (clip, scale) the mean"
                )
        self._begin_all()
        for bucket, pending in zip(self.buckets, self._begun, strict=True):
            pending.wait()
            bucket.write_back()
        self._finished = True

    def _begin_all(self) -> None:
        while self.begun < len(self.buckets):
            self._begin_next()

    def reset(self) -> None:
        """Begin anew; what is under way is waited for, and dropped unless `finish` was called.

        Raises:
            TimeoutError: not all ranks came in time.
        """
        if self.busy:
            self._begin_all()
            for pending in self._begun:
                pending.wait()
        self._begun = []
        self._finished = False
        for bucket in self.buckets:
            bucket.clear()

    @contextmanager
    def pausing(self) -> Iterator[None]:
        """A context in which gradients only add up on each rank."""
        before, self.paused = self.paused, True
        try:
            yield
        finally:
            self.paused = before


def _remove(handles: list[HookHandle]) -> None:
    for handle in handles:
        handle.remove()
