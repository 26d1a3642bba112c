"""Optimizer state in parts, each on one rank (ZeRO, stage 1: Rajbhandari et al., 2020)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from te_tensor import Tensor, storage
from te_tensor.dtypes import Array
from te_tensor.tensor import arrays_of

from ..optimizer import KEY, Optimizer
from .buckets import Bucket
from .communicator import Communicator


@dataclass(frozen=True)
class Piece:
    """What this rank updates of one parameter.

    Attributes:
        bucket: where the parameter's gradient goes.
        index: its place there.
        cut: the elements, of the parameter in C order.
        values: a tensor on their memory.
    """

    bucket: Bucket
    index: int
    cut: slice
    values: Tensor

    @property
    def parameter(self) -> Tensor:
        """The whole parameter."""
        return self.bucket.tensors[self.index]

    @property
    def place(self) -> int:
        """The parameter's place among all."""
        return self.bucket.places[self.index]

    @property
    def span(self) -> slice:
        """The place of the piece in the bucket's array."""
        edge = self.bucket.edges[self.index]
        return slice(edge + self.cut.start, edge + self.cut.stop)

    def of(self, array: Array) -> Array:
        """This piece of something that has the parameter's shape."""
        return array.reshape(-1)[self.cut]


class Shards:
    """Has an optimizer update only this rank's pieces; the values then go to all ranks.

    Rank r's pieces are the r-th part of every bucket, so a parameter may be cut anywhere: update
    rules are elementwise. Between steps, the buckets' arrays carry values and state as well.

    Args:
        optimizer: the optimizer; from now on its parameters are the pieces.
        parameters: its parameters.
        buckets: those that need gradients, in buckets.
        comm: the ranks.

    Raises:
        ValueError: a parameter isn't in C order, or there are too few elements for the ranks.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        parameters: Sequence[Tensor],
        buckets: Sequence[Bucket],
        comm: Communicator,
    ) -> None:
        self._optimizer = optimizer
        self._parameters = parameters
        self._buckets = buckets
        self._comm = comm
        self._arrays = arrays_of(parameters)
        counts = iter(range(len(parameters)))
        #: The places of each group's parameters.
        self._groups = [[next(counts) for _ in group[KEY]] for group in optimizer.groups]
        for place, array in enumerate(self._arrays):
            if not array.flags.c_contiguous:
                raise ValueError(f"parameter {place} isn't in C order: shard_state needs it to be")
        pieces = {piece.place: piece for bucket in buckets for piece in self._cut(bucket)}
        if comm.allreduce(len(pieces), "min") == 0:
            raise ValueError(f"there are too few parameters to shard over {comm.size} ranks")
        #: In the optimizer's order.
        self.pieces = [
            pieces[place] for group in self._groups for place in group if place in pieces
        ]
        state = optimizer.state_dict()
        optimizer._adopt(
            [
                {KEY: [pieces[place].values for place in places if place in pieces]}
                for places in self._groups
            ]
        )
        self.load_state_dict(state)  # with the groups' settings

    def _cut(self, bucket: Bucket) -> list[Piece]:
        """This rank's pieces of a bucket's parameters."""
        length = len(bucket.flat) // self._comm.size
        own = slice(self._comm.rank * length, (self._comm.rank + 1) * length)
        found = []
        for index, tensor in enumerate(bucket.tensors):
            edge, end = bucket.edges[index : index + 2]
            cut = slice(max(own.start, edge) - edge, min(own.stop, end) - edge)
            if cut.start < cut.stop:
                values = tensor.detach().reshape(-1)[cut]
                found.append(Piece(bucket, index, cut, values))
        return found

    # -- a step ---------------------------------------------------------------------------

    def step(self) -> None:
        """Update the pieces, and make everybody's the parameters' values.

        Raises:
            RuntimeError: a parameter has got other memory.
            TimeoutError: not all ranks came in time.
        """
        for place, (array, now) in enumerate(
            zip(self._arrays, arrays_of(self._parameters), strict=True)
        ):
            if array is not now:
                raise RuntimeError(
                    f"parameter {place} has got other memory since it was sharded: make a new "
                    "DistributedOptimizer"
                )
        for piece in self.pieces:
            grad = piece.parameter.grad
            piece.values.grad = None if grad is None else piece.of(grad.data)
        self._optimizer.step()
        for piece in self.pieces:
            piece.values.grad = None
            piece.bucket.flat[piece.span] = piece.values.data
        under_way = [self._comm.iallgather(bucket.flat) for bucket in self._buckets]
        for bucket, call in zip(self._buckets, under_way, strict=True):
            call.wait()
            arrays = arrays_of(bucket.tensors)
            with storage.writing(storage.records_of(arrays)):
                for index, array in enumerate(arrays):
                    array[...] = bucket.part(index)

    # -- state ----------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The whole state, as one process has it; all ranks call this together.

        Raises:
            ValueError: ranks make different calls.
            TimeoutError: not all ranks came in time.
        """
        own = self._optimizer.state_dict()
        parts = dict(zip((piece.place for piece in self.pieces), own["state"], strict=True))
        known = self._known(parts)
        state: list[dict[str, Any]] = [{} for _ in self._parameters]
        for place, (step, _) in known.items():
            state[place]["step"] = step
        for bucket in self._buckets:
            for name in sorted({name for p in bucket.places if p in known for name in known[p][1]}):
                self._gather(bucket, {place: part.get(name) for place, part in parts.items()})
                for index, place in enumerate(bucket.places):
                    if place in known and name in known[place][1]:
                        state[place][name] = Tensor(np.array(bucket.part(index)))
        groups = [
            {**group, KEY: places}
            for group, places in zip(own["groups"], self._groups, strict=True)
        ]
        return {"optimizer": own["optimizer"], "groups": groups, "state": state}

    def _known(self, parts: Mapping[int, Mapping[str, Any]]) -> dict[int, tuple[int, list[str]]]:
        """Which parameters have made how many steps, and the names of their arrays."""
        own = {p: (part["step"], sorted(set(part) - {"step"})) for p, part in parts.items() if part}
        everybody = self._comm.allgather_bytes(json.dumps(own).encode(), "optimizer state")
        return {
            int(place): (step, names)
            for data in everybody
            for place, (step, names) in json.loads(data).items()
        }

    def _gather(self, bucket: Bucket, parts: Mapping[int, Tensor | None]) -> None:
        """Fill a bucket's array with what all ranks hold of it."""
        for piece in self.pieces:
            values = parts[piece.place]
            if piece.bucket is bucket and values is not None:
                bucket.flat[piece.span] = values.data
        self._comm.iallgather(bucket.flat).wait()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take this rank's pieces of a whole state.

        Raises:
            ValueError: it doesn't fit; nothing was changed.
        """
        groups, entries = self._optimizer._parts_of(state)
        given = [len(group[KEY]) for group in groups]
        layout = [len(places) for places in self._groups]
        if given != layout or len(entries) != len(self._parameters):
            raise ValueError(f"the state has groups of {given} parameters: expected {layout}")
        for place, entry in enumerate(entries):
            for name, value in entry.items():
                shape = self._parameters[place].shape
                if name != "step" and np.shape(np.asarray(value)) != shape:
                    raise ValueError(
                        f"{name} of parameter {place} has shape {np.shape(np.asarray(value))}: "
                        f"expected {shape}"
                    )
        own = iter(range(len(self.pieces)))
        places = {piece.place for piece in self.pieces}
        loaded = [
            {**group, KEY: [next(own) for place in mine if place in places]}
            for group, mine in zip(groups, self._groups, strict=True)
        ]
        cut = [
            {
                name: value if name == "step" else piece.of(np.asarray(value))
                for name, value in entries[piece.place].items()
            }
            for piece in self.pieces
        ]
        kind = state["optimizer"]
        self._optimizer.load_state_dict({"optimizer": kind, "groups": loaded, "state": cut})
