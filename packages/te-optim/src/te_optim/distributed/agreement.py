"""What must be the same on every rank: held to it at set-up, or sent from one to all."""

from __future__ import annotations

import pickle
import zlib
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from itertools import zip_longest
from typing import Any, Protocol

import numpy as np

from te_tensor import Tensor

from ..optimizer import Optimizer
from .communicator import Communicator, describe
from .launch import world


class Model(Protocol):
    """Anything with a state dict of tensors, such as a module of te-nn."""

    def state_dict(self) -> Mapping[str, Tensor]:
        """The tensors by name, on the model's own memory."""
        ...


def hold_equal(comm: Communicator, what: str, lines: Sequence[str]) -> None:
    """Hold that all ranks have the same lines; a hash of them is what is compared.

    Args:
        comm: the ranks.
        what: what the lines describe, for the error.
        lines: a description of it.

    Raises:
        ValueError: ranks differ; the error, raised on all of them, names the first difference.
        TimeoutError: not all ranks came in time.
    """
    text = "\n".join(lines).encode()
    digests = comm.allgather_bytes(sha256(text).digest(), what)
    if len(set(digests)) == 1:
        return
    texts = comm.allgather_bytes(text, what)
    rank = next(rank for rank, other in enumerate(texts) if other != texts[0])
    first, other = (texts[r].decode().splitlines() for r in (0, rank))
    pairs = zip_longest(first, other, fillvalue="nothing more")
    here, there = next((a, b) for a, b in pairs if a != b)
    raise ValueError(f"ranks differ in {what}: rank 0 has {here}, and rank {rank} {there}")


def described(tensors: Mapping[str, Tensor]) -> list[str]:
    """A line for each tensor: name, dtype and shape."""
    return [f"{name}: {describe(tensor.data)}" for name, tensor in tensors.items()]


def checksum(tensors: Iterable[Tensor]) -> str:
    """A checksum of the values of all tensors."""
    total = 0
    for tensor in tensors:
        values = np.ascontiguousarray(tensor.data).reshape(-1).view(np.uint8)
        total = zlib.crc32(values.data, total)
    return f"{total:08x}"


def broadcast_parameters(
    model: Model | Mapping[str, Tensor], root: int = 0, *, comm: Communicator | None = None
) -> None:
    """Give all ranks one rank's parameters and buffers.

    Args:
        model: a module, or tensors by name; names, shapes and dtypes are the same on every rank.
        root: the rank whose values count.
        comm: the ranks; by default all.

    Raises:
        ValueError: ranks have other names, shapes or dtypes; there is no such rank; a tensor's
            memory is read-only. Nothing was changed.
        RuntimeError: comm is None, and init() wasn't called.
        TimeoutError: not all ranks came in time.

    Example:
        >>> import te_tensor as te
        >>> init = Communicator()
        >>> broadcast_parameters({"weight": te.ones(2)}, comm=init)
    """
    comm = comm or world()
    comm.check_root(root)
    tensors = dict(model if isinstance(model, Mapping) else model.state_dict())
    fixed = [name for name, tensor in tensors.items() if not tensor.writable]
    lines = [*described(tensors), *(f"{name} is read-only" for name in fixed)]
    hold_equal(comm, "the model", lines)
    if fixed:
        raise ValueError(f"the memory of {fixed[0]} is read-only: expected one to write to")
    for tensor in _apart(tensors.values()):
        with tensor.lock() as memory:
            memory[...] = comm.broadcast(memory, root)


def _apart(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Each piece of memory once: tied tensors are listed under several names."""
    return list({_place(tensor): tensor for tensor in tensors}.values())


def _place(tensor: Tensor) -> tuple[Any, ...]:
    data = tensor.data
    return data.ctypes.data, data.shape, data.strides, data.dtype


def broadcast_optimizer_state(
    optimizer: Optimizer, root: int = 0, *, comm: Communicator | None = None
) -> None:
    """Give all ranks the state and the settings of one rank's optimizer.

    An optimizer whose state is in parts, `shard_state=True`, gets this before it is wrapped, or
    has its state loaded on every rank.

    Args:
        optimizer: of the same kind and parameters on every rank.
        root: the rank whose state counts.
        comm: the ranks; by default all.

    Raises:
        ValueError: the state is in parts, or doesn't fit; there is no such rank. Nothing was
            changed.
        RuntimeError: comm is None, and init() wasn't called.
        TimeoutError: not all ranks came in time.

    Example:
        >>> import te_tensor as te
        >>> from te_optim import Adam
        >>> optimizer = Adam(lr=0.1, parameters=[te.ones(2, requires_grad=True)])
        >>> broadcast_optimizer_state(optimizer, comm=Communicator())
    """
    comm = comm or world()
    if getattr(optimizer, "shard_state", False):
        raise ValueError(
            "the optimizer's state is in parts: broadcast it before wrapping, or load it on all "
            "ranks"
        )
    # A pickle among the ranks of one job, none of which trusts the others less than itself.
    own = pickle.dumps(optimizer.state_dict()) if comm.rank == root else b""
    state = comm.broadcast_bytes(own, root)
    if comm.rank != root:
        optimizer.load_state_dict(pickle.loads(state))
