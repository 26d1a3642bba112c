"""An optimizer whose gradients are means over ranks."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from operator import is_
from typing import Any

from te_tensor import Tensor
from te_tensor.checks import check_switch
from te_tensor.tensor import arrays_of

from ..checks import as_tensors, check_number
from ..gradients import check_finite
from ..optimizer import KEY, Optimizer
from .agreement import checksum, described, hold_equal
from .communicator import Communicator
from .launch import world
from .reducer import Reducer
from .shards import Shards


class DistributedOptimizer(Optimizer):
    """Wraps an optimizer: the same step on every rank, with gradients that are means over ranks.

    Each rank runs forward and backward on examples of its own. Gradients are summed over ranks
    in buckets, while backward goes on; `step()` waits for the sums, then updates. A parameter
    without a gradient on this rank counts as one of zeros; one that no rank has used is passed
    over, as in one process. Schedules are made on this optimizer, or on the wrapped one.

    Args:
        optimizer: any optimizer of this package, with bound parameters. Parameters that need no
            gradient now are left out, and mustn't need one later.
        comm: the ranks; by default all.
        bucket_mb: the size of the sums, in MB. Smaller ones begin sooner, larger ones take less
            time in all.
        deterministic: add in the order of the ranks, so that the bits of the sums depend neither
            on the MPI library nor on the buckets.
        shard_state: keep 1/size of the optimizer's state on each rank. A step then sends the
            updated values too. `state_dict()` gives the whole state, and is a call that all ranks
            make together.
        named_parameters: names for the parameters, as `model.named_parameters()` gives them;
            without names, places are compared and named in errors.

    Attributes:
        optimizer: the wrapped optimizer.
        comm: the ranks.
        shard_state: as above.

    Raises:
        TypeError: the optimizer is something else.
        ValueError: the parameters, their values, the settings or the options aren't the same on
            every rank, a setting is out of range, or no parameter is bound or needs a gradient.
        RuntimeError: comm is None, and init() wasn't called.
        TimeoutError: not all ranks came in time.

    Example:
        >>> import te_tensor as te
        >>> from te_optim import SGD
        >>> w = te.Tensor([1.0, 2.0], requires_grad=True)
        >>> optimizer = DistributedOptimizer(SGD(lr=0.5, parameters=[w]), Communicator())
        >>> (w * w).sum().backward()
        >>> optimizer.step()
        >>> w.tolist()
        [0.0, 0.0]
    """

    def __init__(
        self,
        optimizer: Optimizer,
        comm: Communicator | None = None,
        bucket_mb: float = 25,
        deterministic: bool = False,
        shard_state: bool = False,
        *,
        named_parameters: Iterable[tuple[str, Tensor]] | None = None,
    ) -> None:
        check_number("bucket_mb", bucket_mb, above=0)
        check_switch("deterministic", deterministic)
        check_switch("shard_state", shard_state)
        if not isinstance(optimizer, Optimizer) or isinstance(optimizer, DistributedOptimizer):
            raise TypeError(f"got a {type(optimizer).__name__}: expected an optimizer to wrap")
        if not optimizer.groups:
            raise ValueError("the optimizer has no parameters yet: bind them with parameters=…")
        self.optimizer = optimizer
        self.comm = comm = comm or world()
        self.shard_state = shard_state
        self._all = [tensor for group in optimizer.groups for tensor in group[KEY]]
        self._names = self._named(named_parameters)
        options = f"bucket_mb={bucket_mb}, {deterministic=}, {shard_state=}"
        self._hold_equal(options)
        trained = {p: tensor for p, tensor in enumerate(self._all) if tensor.requires_grad}
        if not trained:
            raise ValueError("no parameter needs a gradient: expected at least one")
        self._left_out = [p for p in range(len(self._all)) if p not in trained]
        self._reducer = Reducer(trained, comm, bucket_mb * 1e6, deterministic, self._names)
        self._shards = (
            Shards(optimizer, self._all, self._reducer.buckets, comm) if shard_state else None
        )

    def _named(self, named: Iterable[tuple[str, Tensor]] | None) -> list[str]:
        """A name for each parameter."""
        names = {} if named is None else {id(tensor): name for name, tensor in named}
        return [names.get(id(t), f"parameter {place}") for place, t in enumerate(self._all)]

    def _hold_equal(self, options: str) -> None:
        """Hold that ranks have the same model, optimizer and options."""
        hold_equal(self.comm, "the options", [options])
        kind = type(self.optimizer).__name__
        settings = [
            f"{kind} with "
            + ", ".join(f"{k}={v!r}" for k, v in group.items() if k != KEY)
            + f" for {len(group[KEY])} parameters"
            for group in self.optimizer.groups
        ]
        hold_equal(self.comm, "the optimizer", settings)
        tensors = dict(enumerate(self._all))
        lines = described({self._names[p]: tensor for p, tensor in tensors.items()})
        needs = [" that needs a gradient" * tensor.requires_grad for tensor in self._all]
        hold_equal(self.comm, "the model", [f"{a}{b}" for a, b in zip(lines, needs, strict=True)])
        try:
            hold_equal(self.comm, "the parameters' values", [checksum(self._all)])
        except ValueError as error:
            error.add_note("broadcast_parameters(model) makes them the same")
            raise

    # -- what is the wrapped optimizer's --------------------------------------------------

    @property
    def groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The groups of the wrapped optimizer; with `shard_state`, of this rank's pieces."""
        return self.optimizer.groups

    @property
    def base_lrs(self) -> list[float] | None:
        """The groups' learning rates before the first schedule."""
        return self.optimizer.base_lrs

    @base_lrs.setter
    def base_lrs(self, value: list[float] | None) -> None:
        self.optimizer.base_lrs = value

    @property
    def lr(self) -> float:
        """The learning rate of the first group; setting it sets that of all groups."""
        return self.optimizer.lr

    @lr.setter
    def lr(self, value: float) -> None:
        self.optimizer.lr = value

    # -- a step ---------------------------------------------------------------------------

    @property
    def weight(self) -> float:
        """What this rank's gradients count for in the mean, 1 at first; set it before backward.

        Where it is the number of examples whose mean loss a rank goes back from, the gradients
        are those of the mean over all examples; a mean of means isn't. A rank with weight 0 may
        leave backward out.

        Raises:
            ValueError: it is set to what is no finite number of at least 0.
            RuntimeError: it is set after backward.
        """
        return self._reducer.weight

    @weight.setter
    def weight(self, value: float) -> None:
        check_number("weight", value, least=0)
        if self._reducer.busy:
            raise RuntimeError("weight was set after backward: set it before")
        self._reducer.weight = float(value)

    def no_sync(self) -> AbstractContextManager[None]:
        """A context whose backward passes only add to the gradients of this rank.

        Put all parts of a batch but the last in it; the last one's backward sums what was added
        up over ranks.
        """
        return self._reducer.pausing()

    def synchronize(self) -> None:
        """Wait until every gradient is the mean over ranks; `step()` does, if it wasn't done.

        Clip gradients, or look at them, after this.

        Raises:
            RuntimeError: a gradient was changed after backward, or a parameter that was left out
                has one.
            ValueError: the weights of all ranks are 0.
            TimeoutError: not all ranks came in time.
        """
        for place in self._left_out:
            if self._all[place].grad is not None:
                raise RuntimeError(
                    f"{self._names[place]} has a gradient, but needed none when the "
                    "DistributedOptimizer was made: make a new one"
                )
        self._reducer.finish()

    def step(
        self, parameters: Iterable[Tensor] | None = None, *, error_if_nonfinite: bool = False
    ) -> None:
        """Wait for the gradients' means, then change every parameter that has one.

        Args:
            parameters: the parameters, as they were bound.
            error_if_nonfinite: raise where a mean has an inf or a NaN, on every rank, instead of
                using it.

        Raises:
            ValueError: the parameters aren't those that were bound, a setting is out of range, or
                the weights of all ranks are 0; nothing was changed.
            RuntimeError: as `synchronize`.
            FloatingPointError: a mean isn't finite, and that was to raise; nothing was changed.
            TimeoutError: not all ranks came in time.
        """
        self._hold_own(parameters)
        self.synchronize()
        if error_if_nonfinite:
            found = iter(arrays_of(t.grad for t in self._all if t.grad is not None))
            check_finite([None if t.grad is None else next(found) for t in self._all])
        if self._shards is None:
            self.optimizer.step()
        else:
            self._shards.step()
        self._reducer.reset()

    def zero_grad(self, parameters: Iterable[Tensor] | None = None) -> None:
        """Drop the gradients; on every rank, where a backward is not followed by a step.

        Args:
            parameters: the parameters, as they were bound.
        """
        self._hold_own(parameters)
        self._reducer.reset()
        for tensor in self._all:
            tensor.zero_grad()

    def _hold_own(self, parameters: Iterable[Tensor] | None) -> None:
        if parameters is not None:
            given = as_tensors(parameters)
            if len(given) != len(self._all) or not all(map(is_, given, self._all)):
                raise ValueError(
                    f"got {len(given)} tensors: expected the {len(self._all)} bound parameters"
                )

    # -- state ----------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The state of the wrapped optimizer, whole; with `shard_state`, all ranks call this.

        It fits any number of ranks, and the wrapped optimizer in one process.
        """
        return self.optimizer.state_dict() if self._shards is None else self._shards.state_dict()

    def load_state_dict(self, state: Any) -> None:
        """Go on from a whole state; every rank loads it.

        Raises:
            ValueError: it doesn't fit; nothing was changed.
        """
        (self.optimizer if self._shards is None else self._shards).load_state_dict(state)
