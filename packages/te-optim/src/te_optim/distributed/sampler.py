"""Which examples each rank learns from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from ..checks import check_choice, check_count
from .communicator import Communicator
from .launch import world

#: What becomes of a batch that can't be shared out evenly.
UNEVEN = ("pad", "drop", "weighted")


class DistributedSampler:
    """Batches of all ranks together, in a new order every epoch, and each rank's share of them.

    The order of epoch e is `numpy.random.default_rng((seed, e)).permutation(n)`, for any number
    of ranks: several ranks learn from the same batches as one process. Of a batch, rank r takes
    the examples r, r + size, r + 2·size, …

    Every rank gets the same number of batches. Where one, as a rule the last of an epoch, doesn't
    part evenly:

    - "pad" fills it up with the first examples of the epoch, which then count twice;
    - "drop" leaves out what is over;
    - "weighted" gives some ranks an example more, and maybe some none at all. Set
      `optimizer.weight = len(share)`: gradients are then the mean over all examples, as in one
      process.

    Args:
        n: the number of examples.
        seed: of the orders.
        uneven: one of these.
        batch: the number of examples in a batch of all ranks together; with "pad" and "drop" a
            multiple of the ranks. By default as many as there are ranks.
        comm: the ranks; by default all.

    Raises:
        ValueError: a number is out of range, or uneven is unknown.

    Example:
        >>> sampler = DistributedSampler(5, seed=0, batch=2, comm=Communicator())
        >>> len(sampler), [len(share) for share in sampler.batches(epoch=0)]
        (3, [2, 2, 1])
    """

    def __init__(
        self,
        n: int,
        seed: int = 0,
        uneven: str = "pad",
        *,
        batch: int | None = None,
        comm: Communicator | None = None,
    ) -> None:
        check_count("n", n, 1)
        check_count("seed", seed, 0)
        check_choice("uneven", uneven, UNEVEN)
        comm = comm or world()
        batch = comm.size if batch is None else batch
        check_count("batch", batch, 1)
        if uneven != "weighted" and batch % comm.size:
            raise ValueError(
                f"batch is {batch}: expected a multiple of the {comm.size} ranks, or "
                "uneven='weighted'"
            )
        if uneven == "drop" and n < comm.size:
            raise ValueError(
                f"n is {n}: expected at least one example for each of {comm.size} ranks"
            )
        self.n, self.seed, self.uneven, self.batch = n, seed, uneven, batch
        self._rank, self._size = comm.rank, comm.size

    def __len__(self) -> int:
        """The number of batches in an epoch, the same on every rank."""
        whole, over = divmod(self.n, self.batch)
        return whole + (over >= (self._size if self.uneven == "drop" else 1))

    def batches(self, epoch: int) -> Iterator[npt.NDArray[np.int64]]:
        """This rank's shares of an epoch's batches: numbers of examples, from 0.

        Args:
            epoch: which epoch, from 0.

        Raises:
            ValueError: epoch is no such number.
        """
        check_count("epoch", epoch, 0)
        return self._shares(np.random.default_rng((self.seed, epoch)).permutation(self.n))

    def _shares(self, order: npt.NDArray[Any]) -> Iterator[npt.NDArray[np.int64]]:
        for start in range(0, len(self) * self.batch, self.batch):
            chosen = order[start : start + self.batch]
            over = len(chosen) % self._size
            if over and self.uneven == "drop":
                chosen = chosen[:-over]
            elif over and self.uneven == "pad":
                # from the beginning again, more than once where there are more ranks than examples
                chosen = np.concatenate([chosen, np.resize(order, self._size - over)])
            yield chosen[self._rank :: self._size]
