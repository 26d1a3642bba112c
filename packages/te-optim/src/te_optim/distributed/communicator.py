"""A group of ranks, and what they do together."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b
from typing import Any

import numpy as np
import numpy.typing as npt

from te_tensor.dtypes import SMALL_FLOATS, Array

from ..checks import check_choice, check_count
from .library import load_mpi
from .waiting import Call

#: How numbers of all ranks become one, and what MPI calls it.
OPS = {"sum": "SUM", "max": "MAX", "min": "MIN"}


class DifferentCallsError(ValueError):
    """Ranks that must make the same call make different ones; raised on all of them."""


class Communicator:
    """A group of ranks; `init` makes the one of all ranks.

    All ranks of a group make the same calls in the same order. Those that wait first hold that
    they do: a rank that makes another call, or has another shape, is an error on all of them.
    Every wait has a deadline.

    Args:
        group: MPI's communicator, for this object alone; None for a process on its own.
        timeout: seconds that a wait may take.
        local_rank: this rank's number among those of the group on the same machine.

    Attributes:
        rank: this process's number in the group, from 0.
        size: the number of ranks.
        local_rank: as above.
        timeout: as above.

    Example:
        >>> comm = Communicator()
        >>> comm.rank, comm.size, comm.allreduce([1.0, 2.0]).tolist()
        (0, 1, [1.0, 2.0])
    """

    def __init__(
        self, group: Any | None = None, timeout: float = 300.0, local_rank: int = 0
    ) -> None:
        self.rank: int = 0 if group is None else group.rank
        self.size: int = 1 if group is None else group.size
        self.local_rank = local_rank
        self.timeout = timeout
        self._group = None if self.size == 1 else group

    def __repr__(self) -> str:
        return f"<Communicator: rank {self.rank} of {self.size}>"

    # -- numbers --------------------------------------------------------------------------

    def allreduce(self, array: npt.ArrayLike, op: str = "sum") -> Array:
        """The sum, maximum or minimum over ranks, element by element.

        Args:
            array: numbers of the same shape and dtype on every rank; float16 and bfloat16 are
                added in float32.
            op: "sum", "max" or "min".

        Returns:
            A new array of that shape and dtype, the same on every rank.

        Raises:
            ValueError: op is unknown, these aren't numbers, or ranks disagree about the call.
            TimeoutError: not all ranks came in time.
        """
        given = np.asarray(array)
        wide = np.float32 if given.dtype in SMALL_FLOATS else given.dtype
        total = np.array(given, wide, order="C")
        self.agree(f"allreduce {op} of {describe(given)}")
        self.iallreduce(total, op).wait()
        return total.astype(given.dtype, copy=False)

    def iallreduce(self, array: Array, op: str = "sum") -> Call:
        """Begin to put the sum, maximum or minimum over ranks in an array's place.

        The array is MPI's until the call is done. Ranks begin such calls in one order, with equal
        shapes and dtypes: nothing holds them to it here. Nor is there progress in the background:
        `test()` now and then, as backward's hooks do, keeps it going.

        Args:
            array: float32, float64 or integers, writable and in C order.
            op: "sum", "max" or "min".

        Returns:
            The call, with `test()` and `wait()`.

        Raises:
            ValueError: op is unknown, or the array isn't such a one.
        """
        check_choice("op", op, OPS)
        _check_memory(array)
        _check_numbers(array)

        def begin(group: Any, mpi: Any) -> Any:
            return group.Iallreduce(mpi.IN_PLACE, array, getattr(mpi, OPS[op]))

        return self._begin(f"allreduce {op} of {describe(array)}", begin, array)

    def reduce_scatter(self, array: npt.ArrayLike, op: str = "sum") -> Array:
        """This rank's part of the sum, maximum or minimum over ranks.

        Args:
            array: numbers of one shape and dtype on every rank; the first axis is cut into as
                many equal parts as there are ranks.
            op: "sum", "max" or "min".

        Returns:
            The part; on rank r the r-th.

        Raises:
            ValueError: the first axis can't be cut so, op is unknown, these aren't numbers, or
                ranks disagree about the call.
            TimeoutError: not all ranks came in time.
        """
        check_choice("op", op, OPS)
        given = np.asarray(array)
        if not given.ndim or len(given) % self.size:
            raise ValueError(
                f"reduce_scatter over {self.size} ranks of shape {given.shape}: expected a first "
                "axis that is a multiple of the ranks"
            )
        wide = np.float32 if given.dtype in SMALL_FLOATS else given.dtype
        whole = np.array(given, wide, order="C")
        part = np.array(whole[: len(whole) // self.size])

        def begin(group: Any, mpi: Any) -> Any:
            return group.Ireduce_scatter_block(whole, part, getattr(mpi, OPS[op]))

        name = f"reduce_scatter {op} of {describe(given)}"
        self.agree(name)
        _check_numbers(whole)
        self._begin(name, begin, whole, part).wait()
        return part.astype(given.dtype, copy=False)

    def allgather(self, array: npt.ArrayLike) -> Array:
        """The arrays of all ranks, in their order.

        Args:
            array: of one shape and dtype on every rank.

        Returns:
            Shape (size, *shape).

        Raises:
            ValueError: ranks disagree about the call.
            TimeoutError: not all ranks came in time.
        """
        given = np.asarray(array)
        gathered = np.empty((self.size, *given.shape), given.dtype)
        gathered[self.rank] = given
        self.agree(f"allgather of {describe(given)}")
        self.iallgather(gathered).wait()
        return gathered

    def iallgather(self, array: Array) -> Call:
        """Begin to fill an array with the parts of all ranks; `iallreduce` says what holds.

        Args:
            array: writable and in C order, cut into as many equal parts as there are ranks along
                its memory; the r-th is rank r's.

        Returns:
            The call.
        """
        _check_memory(array)
        flat = array.reshape(-1).view(np.uint8)

        def begin(group: Any, mpi: Any) -> Any:
            return group.Iallgather(mpi.IN_PLACE, flat)

        return self._begin(f"allgather of {describe(array)}", begin, array)

    def ialltoall(self, array: Array) -> tuple[Array, Call]:
        """Begin to bring the r-th part of each rank's array to rank r; `iallreduce` as above.

        Args:
            array: one axis, a multiple of the ranks long, in C order.

        Returns:
            Shape (size, len(array) / size), a row a rank, filled when the call is done; the call.
        """
        received = np.array(array.reshape(self.size, -1))
        sent, filled = array.view(np.uint8), received.reshape(-1).view(np.uint8)

        def begin(group: Any, _: Any) -> Any:
            return group.Ialltoall(sent, filled)

        name = f"alltoall of {describe(array)}"
        return received, self._begin(name, begin, array, received)

    def broadcast(self, array: npt.ArrayLike, root: int = 0) -> Array:
        """One rank's array, on every rank.

        Args:
            array: of one shape and dtype on every rank; only the root's values count.
            root: which rank.

        Returns:
            A new array.

        Raises:
            ValueError: there is no such rank, or ranks disagree about the call.
            TimeoutError: not all ranks came in time.
        """
        self.check_root(root)
        values = np.array(array, order="C")
        name = f"broadcast from {root} of {describe(values)}"
        self.agree(name)
        self._broadcast(values, root, name)
        return values

    # -- bytes ----------------------------------------------------------------------------

    def allgather_bytes(self, data: bytes, what: str = "bytes") -> list[bytes]:
        """The bytes of all ranks, of any lengths, in the ranks' order.

        Args:
            data: this rank's.
            what: what they are, for errors.

        Raises:
            ValueError: ranks disagree about the call.
            TimeoutError: not all ranks came in time.
        """
        self.agree(f"allgather of {what}")
        return self._exchange(data)

    def broadcast_bytes(self, data: bytes, root: int = 0) -> bytes:
        """One rank's bytes, on every rank; what others give isn't looked at.

        Raises:
            ValueError: there is no such rank, or ranks disagree about the call.
            TimeoutError: not all ranks came in time.
        """
        self.check_root(root)
        name = f"broadcast_bytes from {root}"
        self.agree(name)
        length = np.array(len(data))
        self._broadcast(length, root, name)
        values = np.frombuffer(data, np.uint8) if self.rank == root else np.empty(length, np.uint8)
        self._broadcast(values, root, name)
        return values.tobytes()

    # -- groups ---------------------------------------------------------------------------

    def barrier(self) -> None:
        """Wait until all ranks are here.

        Raises:
            ValueError: another rank is elsewhere.
            TimeoutError: not all ranks came in time.
        """
        self.agree("barrier")

    def split(self, color: int, key: int = 0) -> Communicator:
        """Groups of the ranks that give the same color.

        Args:
            color: which group this rank goes to, at least 0.
            key: ranks stand in the order of their keys; of equal ones, as they stand here.

        Returns:
            The group that this rank is in.

        Raises:
            ValueError: color is no such number.
            TimeoutError: not all ranks came in time.
        """
        check_count("color", color, 0)
        self.agree("split")
        if self._group is None:
            return Communicator(None, self.timeout)
        return on_machines(self._group.Split(color, key), self.timeout)

    def duplicate(self) -> Communicator:
        """The same ranks again, whose calls are in an order of their own.

        Raises:
            ValueError: ranks disagree about the call.
            TimeoutError: not all ranks came in time.
        """
        self.agree("duplicate")
        if self._group is None:
            return Communicator(None, self.timeout)
        group, request = self._group.Idup()  # Dup would spin while it waits
        self._begin("duplicate", lambda *_: request).wait()
        return Communicator(group, self.timeout, self.local_rank)

    # -- what these stand on --------------------------------------------------------------

    def check_root(self, root: int) -> None:
        """Hold that a root is a rank.

        Raises:
            ValueError: it isn't.
        """
        check_count("root", root, 0)
        if root >= self.size:
            raise ValueError(f"root is {root}: expected a rank below {self.size}")

    def agree(self, call: str) -> None:
        """Wait for all ranks, and hold that they are about to make the same call.

        Args:
            call: all that must be the same on every rank, in words.

        Raises:
            DifferentCallsError: ranks differ; the error says who is where.
            TimeoutError: not all ranks came in time.
        """
        if self._group is None:
            return
        number = int.from_bytes(blake2b(call.encode(), digest_size=7).digest(), "big")
        bounds = np.array([number, -number])

        def begin(group: Any, mpi: Any) -> Any:
            return group.Iallreduce(mpi.IN_PLACE, bounds, mpi.MAX)

        self._begin(call, begin, bounds).wait()
        if bounds[0] != -bounds[1]:
            calls = [data.decode() for data in self._exchange(call.encode())]
            listed = "; ".join(f"rank {rank}: {what}" for rank, what in enumerate(calls))
            raise DifferentCallsError(f"ranks make different calls: {listed}")

    def _begin(self, name: str, begin: Callable[[Any, Any], Any], *arrays: Array) -> Call:
        request = None if self._group is None else begin(self._group, load_mpi())
        return Call(request, name, f"rank {self.rank} of {self.size}", self.timeout, *arrays)

    def _exchange(self, data: bytes) -> list[bytes]:
        lengths = np.full(self.size, len(data))
        self.iallgather(lengths).wait()
        padded = np.zeros((self.size, lengths.max()), np.uint8)
        padded[self.rank, : len(data)] = np.frombuffer(data, np.uint8)
        self.iallgather(padded).wait()
        return [row[:n].tobytes() for row, n in zip(padded, lengths, strict=True)]

    def _broadcast(self, array: Array, root: int, name: str) -> None:
        flat = array.reshape(-1).view(np.uint8)
        self._begin(name, lambda group, _: group.Ibcast(flat, root), array).wait()


def on_machines(group: Any, timeout: float) -> Communicator:
    """A communicator of MPI's group, which knows which of its ranks share a machine."""
    machine = group.Split_type(load_mpi().COMM_TYPE_SHARED)
    local_rank = machine.rank
    machine.Free()
    return Communicator(group, timeout, local_rank)


def describe(array: Array) -> str:
    """Dtype and shape, for errors."""
    return f"{array.dtype} {array.shape}"


def _check_numbers(array: Array) -> None:
    if array.dtype.kind not in "iuf" or array.dtype in SMALL_FLOATS:
        raise ValueError(
            f"an array over ranks is of {array.dtype}: expected float32, float64 or integers"
        )


def _check_memory(array: Array) -> None:
    if not array.flags.c_contiguous or not array.flags.writeable:
        raise ValueError(
            f"an array of shape {array.shape} isn't in C order, or is read-only: expected memory "
            "that can be filled"
        )
