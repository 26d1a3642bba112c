"""Checkpoints of a job of several ranks: all of them go on from the same step."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

import te_tensor as te
from te_tensor.checks import check_switch

from ..checks import check_count
from .communicator import Communicator, DifferentCallsError
from .launch import world

#: The name under which a checkpoint holds the ranks' random states.
_RANDOM = "ranks"


class Checkpoints(Protocol):
    """Checkpoints of one process; te_io.Checkpointer is one.

    Attributes:
        objects: what is saved, by name.
    """

    objects: dict[str, Any]

    def steps(self) -> list[int]:
        """The steps of which there are complete checkpoints."""
        ...

    def save(self, step: int) -> Any:
        """Save the state of all objects, or raise."""
        ...

    def restore(self, step: int | None = None) -> int | None:
        """Put all objects back to a step, or raise and change nothing."""
        ...


class RandomStates:
    """The states of te_tensor's random numbers, of all ranks.

    Args:
        comm: the ranks.
    """

    def __init__(self, comm: Communicator) -> None:
        self._comm = comm
        self._loaded: list[list[int]] = []

    def state_dict(self) -> dict[str, Any]:
        """Of every rank, in order; all ranks call this together."""
        own = json.dumps(te.get_rng_state()).encode()
        states = self._comm.allgather_bytes(own, "random states")
        return {"states": [json.loads(data) for data in states]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Keep the states for `put_back`."""
        self._loaded = [[int(number) for number in entry] for entry in state["states"]]

    def put_back(self, before: tuple[int, int]) -> None:
        """Go on with what was loaded; with another number of ranks, with `before`."""
        if len(self._loaded) == self._comm.size:
            seed, draws = self._loaded[self._comm.rank]
            before = seed, draws
        te.set_rng_state(before)


class DistributedCheckpointer:
    """Saves a job of several ranks, and restarts it from the newest step that all ranks have.

    After a failure the job is started anew, and goes on from the last checkpoint. It may be
    started with another number of ranks. Ranks are not replaced while the job runs.

    Besides the checkpointer's objects, the random state of every rank is saved. With as many
    ranks as before each goes on with its own; with others, with what it was seeded with.

    Args:
        checkpointer: a `te_io.Checkpointer`, with the same objects on every rank. An object
            "ranks" is added to it.
        comm: the ranks; by default all.
        shared: whether all ranks see the same directory, in which rank 0 then saves for all.
            Otherwise each rank saves, to a directory of its own.

    Raises:
        ValueError: there is an object named "ranks", or shared is neither True nor False.
        RuntimeError: comm is None, and init() wasn't called.

    Example:
        >>> import tempfile
        >>> from te_io import Checkpointer
        >>> from te_optim import SGD
        >>> optimizer = SGD(lr=0.5, parameters=[te.ones(2, requires_grad=True)])
        >>> folder = Checkpointer(tempfile.mkdtemp(), optimizer=optimizer)
        >>> checkpointer = DistributedCheckpointer(folder, Communicator())
        >>> checkpointer.save(10)
        >>> optimizer.lr = 0.1
        >>> checkpointer.restore(), optimizer.lr
        (10, 0.5)
    """

    def __init__(
        self, checkpointer: Checkpoints, comm: Communicator | None = None, *, shared: bool = True
    ) -> None:
        check_switch("shared", shared)
        if _RANDOM in checkpointer.objects:
            raise ValueError(f"an object is named {_RANDOM!r}: expected another name")
        self._checkpointer = checkpointer
        self._comm = comm = comm or world()
        self._shared = shared
        self._random = RandomStates(comm)
        checkpointer.objects[_RANDOM] = self._random

    def save(self, step: int) -> None:
        """Save a checkpoint; all ranks call this together, and go on when it is complete.

        Args:
            step: the number of steps taken.

        Raises:
            ValueError: step is no whole number of at least 0.
            RuntimeError: another rank couldn't save, for the reason that is given. On that rank
                it is the error itself.
            DifferentCallsError: another rank couldn't say what its state is.
            TimeoutError: not all ranks came in time.
        """
        check_count("step", step, 0)
        self._comm.agree(f"save {step}")
        problem: Exception | None = None
        try:
            if self._comm.rank == 0 or not self._shared:
                self._checkpointer.save(step)
            else:
                for thing in self._checkpointer.objects.values():
                    thing.state_dict()  # ranks may have to put it together
        except DifferentCallsError:
            raise
        except Exception as error:
            problem = error
        self._hold_fine(f"save step {step}", problem)

    def latest(self) -> int | None:
        """The newest step of which every rank has a complete checkpoint; None if there is none.

        All ranks call this together.

        Raises:
            TimeoutError: not all ranks came in time.
        """
        own = np.array(self._checkpointer.steps(), np.int64)
        everybody = self._comm.allgather_bytes(own.tobytes(), "steps")
        steps = [set(np.frombuffer(data, np.int64).tolist()) for data in everybody]
        return max(set.intersection(*steps), default=None)

    def restore(self) -> int | None:
        """Put every rank back to the newest step of which all have a complete checkpoint.

        All ranks call this together.

        Returns:
            The step; None if there is none, and nothing was changed.

        Raises:
            RuntimeError: another rank couldn't restore, for the reason that is given. On that
                rank it is the error itself. The job can't go on.
            TimeoutError: not all ranks came in time.
        """
        step = self.latest()
        if step is None:
            return None
        before = te.get_rng_state()
        problem: Exception | None = None
        try:
            self._checkpointer.restore(step)
            self._random.put_back(before)
        except Exception as error:
            problem = error
        self._hold_fine(f"restore step {step}", problem)
        return step

    def _hold_fine(self, what: str, problem: Exception | None) -> None:
        """Hold that no rank had a problem, so that none goes on alone."""
        own = "" if problem is None else f"{type(problem).__name__}: {problem}"
        reports: list[bytes] = []
        try:
            reports = self._comm.allgather_bytes(own.encode(), f"outcomes of {what}")
        except DifferentCallsError:
            if problem is None:  # with one, others may still be putting states together
                raise
        if problem is not None:
            raise problem
        for rank, report in enumerate(reports):
            if report:
                raise RuntimeError(f"rank {rank} couldn't {what}: {report.decode()}")
