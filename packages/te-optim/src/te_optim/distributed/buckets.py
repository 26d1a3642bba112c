"""Gradients end to end in flat arrays: a few large sums over ranks cost less than many small."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import accumulate

import numpy as np

from te_tensor import Tensor, storage
from te_tensor.dtypes import Array, DType
from te_tensor.tensor import arrays_of

from ..arena import wide_dtype


class Bucket:
    """Room for the gradients of some parameters, and for what is summed along with them.

        [gradient, …, weight of this rank, whether each parameter was used, …, padding]

    Because the weights are in the same sum, a weighted mean needs no other message. Gradients of
    small floats are summed in float32.

    Args:
        tensors: parameters that are summed in one dtype, by their places among all.
        ranks: the number of ranks; the padding makes the length a multiple of it.

    Attributes:
        tensors: the parameters.
        places: their places.
        edges: where each gradient begins, and where the last one ends.
        flat: the array.
        missing: how many gradients haven't been put in.
    """

    def __init__(self, tensors: Mapping[int, Tensor], ranks: int) -> None:
        self.tensors = list(tensors.values())
        self.places = list(tensors)
        self.edges = [0, *accumulate(tensor.size for tensor in self.tensors)]
        length = self.edges[-1] + 1 + len(tensors)
        self.flat = np.zeros(-(-length // ranks) * ranks, wide_dtype(self.tensors[0].dtype))
        self._weight = self.flat[self.edges[-1] : self.edges[-1] + 1]
        self._used = self.flat[self.edges[-1] + 1 : length]
        self._grads: list[Tensor | None] = []
        self._put_at: list[int] = []
        self.clear()

    def clear(self) -> None:
        """Begin anew."""
        self.missing = len(self.tensors)
        self._grads = [None] * len(self.tensors)
        self._put_at = [0] * len(self.tensors)
        self.flat[self.edges[-1] :] = 0

    def part(self, index: int) -> Array:
        """The room of one gradient, in the parameter's shape."""
        span = slice(*self.edges[index : index + 2])
        return self.flat[span].reshape(self.tensors[index].shape)

    def holds(self, index: int) -> bool:
        """Whether this parameter's gradient was put in."""
        return self._grads[index] is not None

    def put(self, index: int, grad: Tensor, weight: float) -> None:
        """Put a gradient in, times this rank's weight.

        Args:
            index: the parameter's place in the bucket.
            grad: the gradient; it must stay as it is until the mean is there.
            weight: the weight; at 0 the gradient isn't looked at.
        """
        part = self.part(index)
        if weight:
            part[...] = grad.data
            if weight != 1:
                part *= part.dtype.type(weight)
            self._used[index] = 1
        else:
            part[...] = 0
        self._grads[index] = grad
        self._put_at[index] = storage.clock
        self.missing -= 1

    def close(self, weight: float) -> None:
        """Put in all that never came: gradients of an earlier backward, or zeros."""
        for index, tensor in enumerate(self.tensors):
            if not self.holds(index):
                if tensor.grad is not None:
                    self.put(index, tensor.grad, weight)
                else:
                    self.part(index)[...] = 0
        self._weight[0] = weight

    def changed(self) -> Iterator[int]:
        """The places of parameters whose gradients aren't what was put in any more."""
        for place, tensor, grad, time in zip(
            self.places, self.tensors, self._grads, self._put_at, strict=True
        ):
            if grad is not None and (
                tensor.grad is not grad or storage.changed_since(grad.data, time)
            ):
                yield place

    def write_back(self) -> None:
        """Make the means the gradients of all parameters that any rank has used.

        Raises:
            ValueError: the weights of all ranks are 0.
        """
        total = self._weight[0]
        if not total > 0:
            raise ValueError(f"the weights of all ranks come to {total:g}: expected more than 0")
        for index, tensor in enumerate(self.tensors):
            if self._used[index] and tensor.grad is None:
                tensor.grad = np.zeros(tensor.shape, tensor.dtype)
        used = [i for i in range(len(self.tensors)) if self._used[i]]
        grads = arrays_of(g for i in used if (g := self.tensors[i].grad) is not None)
        with storage.writing(storage.records_of(grads)), np.errstate(all="ignore"):
            for index, grad in zip(used, grads, strict=True):
                np.divide(self.part(index), total, out=grad, casting="unsafe")


def buckets_of(tensors: Mapping[int, Tensor], most: float, ranks: int) -> list[Bucket]:
    """Buckets in the order in which backward fills them, more or less: from the last parameter on.

    Args:
        tensors: parameters by their places.
        most: bytes of a bucket; a larger parameter has one of its own.
        ranks: the number of ranks.
    """
    found: list[dict[int, Tensor]] = []
    filling: dict[DType, tuple[dict[int, Tensor], int]] = {}  # by dtype: a bucket, and its bytes
    for place, tensor in reversed(list(tensors.items())):
        dtype = wide_dtype(tensor.dtype)
        size = tensor.size * dtype.itemsize
        bucket, filled = filling.get(dtype, ({}, 0))
        if not bucket or filled + size > most:
            bucket, filled = {}, 0
            found.append(bucket)
        bucket[place] = tensor
        filling[dtype] = bucket, filled + size
    return [Bucket(bucket, ranks) for bucket in found]
