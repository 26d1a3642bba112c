"""Selecting elements: Slice (views), Gather (integer and boolean arrays), Embedding."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..dtypes import INTEGERS, Array
from ..operation import Gradients, Operation, Sample


class Slice(Operation):
    """Basic indexing with integers, slices, None and Ellipsis; a view.

    Args:
        index: what stands between the brackets.
    """

    computes = False
    samples = (
        Sample((4, 5), args=((slice(1, 3), 2),)),
        Sample((4, 5), args=((Ellipsis, None, slice(None, None, -2)),)),
    )

    def __init__(self, index: Any) -> None:
        self.index = index
        self.shape: tuple[int, ...] = ()

    def forward(self, x: Array) -> Array:
        """The selected view."""
        self.shape = x.shape
        return np.asarray(x[self.index])

    def backward(self, grad: Array) -> Gradients:
        """The gradient in its place among zeros."""
        whole = np.zeros(self.shape, grad.dtype)
        whole[self.index] = grad
        return (whole,)


class Gather(Operation):
    """Indexing with integer or boolean arrays; repeated elements sum their gradients.

    Args:
        index: what stands between the brackets.
    """

    computes = False
    samples = (
        Sample((4, 5), args=((np.array([0, 2, 2]),),)),
        Sample((2, 3), args=(np.array([[True, False, True], [False, False, True]]),)),
    )

    def __init__(self, index: Any) -> None:
        self.index = index
        self.shape: tuple[int, ...] = ()

    def forward(self, x: Array) -> Array:
        """A copy of the selected elements."""
        self.shape = x.shape
        return np.asarray(x[self.index])

    def backward(self, grad: Array) -> Gradients:
        """The gradient added up where it came from."""
        whole = np.zeros(self.shape, grad.dtype)
        parts = self.index if isinstance(self.index, tuple) else (self.index,)
        arrays = [part for part in parts if isinstance(part, np.ndarray)]
        if not any(array.dtype in INTEGERS for array in arrays):
            whole[self.index] = grad  # masks choose nothing twice
        elif len(parts) == 1:
            rows = arrays[0].reshape(-1) % max(self.shape[0], 1)
            _add_rows(whole, rows, grad.reshape(rows.size, *self.shape[1:]))
        else:
            np.add.at(whole, self.index, grad)
        return (whole,)


def _add_rows(table: Array, rows: Array, grads: Array) -> None:
    """Add to rows of the table, some of them perhaps several times."""
    # Sorted by row, equal rows stand together and one pass sums each group.
    order = np.argsort(rows, kind="stable")
    if order.size:
        chosen, starts = np.unique(rows[order], return_index=True)
        table[chosen] = np.add.reduceat(grads[order], starts, axis=0)


class Embedding(Operation):
    """Rows of a table, chosen by integers.

    Args:
        padding_idx: a row whose gradient is zero.
    """

    samples = (
        Sample((4, 3), inputs=(None, [[0, 3, 3], [1, 0, 0]]), nondiff=(1,)),
        Sample(
            (4, 3),
            inputs=(None, [1, 3]),
            nondiff=(1,),
            kwargs={"padding_idx": 2},
        ),
    )

    def __init__(self, padding_idx: int | None = None) -> None:
        self.padding_idx = padding_idx

    def forward(self, weight: Array, indices: Array) -> Array:
        """The rows, shape (*indices.shape, *row shape)."""
        if indices.dtype not in INTEGERS:
            raise TypeError(f"embedding indices are {indices.dtype}: expected integers")
        count = len(weight)
        if indices.size and not (indices.min() >= 0 and indices.max() < count):
            wrong = indices[(indices < 0) | (indices >= count)].flat[0]
            raise IndexError(f"embedding index {wrong}: expected 0 … {count - 1}")
        self.save(indices, weight.shape)
        return weight[indices]

    def backward(self, grad: Array) -> Gradients:
        """Gradients added up by row."""
        indices, shape = self.saved
        table = np.zeros(shape, grad.dtype)
        _add_rows(table, indices.reshape(-1), grad.reshape(indices.size, *shape[1:]))
        if self.padding_idx is not None:
            table[self.padding_idx] = 0
        return table, None
