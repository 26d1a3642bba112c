"""Operations that move elements or make views: Reshape Permute Expand Concat Stack Split."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..checks import normalize_axis
from ..dtypes import Array
from ..operation import Gradients, Operation, Sample
from ..recorder import Backward, Into, Recorder


class Reshape(Operation):
    """The same elements in C order under another shape; a view where memory allows.

    Args:
        shape: the new shape; one length may be -1 and follows from the others.
    """

    computes = False
    samples = (Sample((2, 6), args=((3, -1),)), Sample((), args=((1, 1),)))

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape
        self.before: tuple[int, ...] = ()

    def forward(self, x: Array) -> Array:
        """The reshaped array."""
        self.before = x.shape
        try:
            if min(self.shape, default=0) >= -1:
                return x.reshape(self.shape)
        except ValueError:
            pass
        raise ValueError(f"can't reshape {x.shape} ({x.size} elements) to {self.shape}")

    def record(self, recorder: Recorder, x: Array) -> tuple[Array, Backward, int | None]:
        """Both directions, in a recording."""
        out = self.forward(x)

        def back(grad: Array, outs: Sequence[Into | None]) -> None:
            (to_x,) = outs
            assert to_x is not None
            terms = [grad] if to_x.start is None else [grad, to_x.start]
            flat = [term.reshape(1, -1) for term in (to_x.out, *terms)]
            recorder.backward.add_up(flat[0], flat[1:])

        return out, back, None

    def backward(self, grad: Array) -> Gradients:
        """The gradient under the old shape."""
        return (grad.reshape(self.before),)


class Permute(Operation):
    """The axes in another order; a view.

    Args:
        axes: for each axis of the result, which axis of the input it is.
    """

    computes = False
    samples = (Sample((2, 3, 4), args=((2, 0, 1),)),)

    def __init__(self, axes: tuple[int, ...]) -> None:
        self.axes = axes
        self.order: tuple[int, ...] = ()

    def forward(self, x: Array) -> Array:
        """The permuted view."""
        self.order = tuple(normalize_axis(a, x.ndim) for a in self.axes)
        if sorted(self.order) != list(range(x.ndim)):
            raise ValueError(f"axes are {self.axes}: expected each of {x.ndim} axes once")
        return x.transpose(self.order)

    def backward(self, grad: Array) -> Gradients:
        """The gradient, permuted back."""
        return (grad.transpose(np.argsort(self.order)),)


class Expand(Operation):
    """Axes of length 1 repeated to a larger shape, without copying; a read-only view.

    Args:
        shape: the shape to broadcast to; -1 keeps an axis as it is.
    """

    computes = False
    broadcasts = True
    samples = (Sample((3, 1), args=((2, 3, 4),)), Sample((2, 1), args=((-1, 3),)))

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def forward(self, x: Array) -> Array:
        """The broadcast view."""
        added = len(self.shape) - x.ndim
        target = tuple(
            x.shape[a - added] if n == -1 and a >= added else n for a, n in enumerate(self.shape)
        )
        try:
            return np.broadcast_to(x, target)
        except ValueError:
            raise ValueError(f"can't expand {x.shape} to {self.shape}") from None

    def backward(self, grad: Array) -> Gradients:
        """The gradient; the walk sums it back."""
        return (grad,)


class Concat(Operation):
    """Arrays joined along an axis they have.

    Args:
        axis: the axis that grows.
    """

    computes = False
    samples = (
        Sample((2, 3), (1, 3)),
        Sample((2, 3), (2, 1), (2, 0), kwargs={"axis": -1}),
    )

    def __init__(self, axis: int = 0) -> None:
        self.axis = axis
        self.edges: Array = np.empty(0, np.intp)

    def forward(self, *arrays: Array) -> Array:
        """The joined array."""
        self.axis = normalize_axis(self.axis, arrays[0].ndim)
        shapes = [a.shape for a in arrays]
        rest = {(len(s), *s[: self.axis], None, *s[self.axis + 1 :]) for s in shapes}
        if len(rest) > 1:
            listed = ", ".join(map(str, shapes))
            raise ValueError(f"can't concat shapes {listed} along axis {self.axis}")
        self.edges = np.cumsum([s[self.axis] for s in shapes])[:-1]
        return np.concatenate(arrays, axis=self.axis)

    def backward(self, grad: Array) -> Gradients:
        """A view of the gradient for each part."""
        return np.split(grad, self.edges, axis=self.axis)


class Stack(Operation):
    """Arrays of one shape joined along a new axis.

    Args:
        axis: where the new axis stands in the result.
    """

    computes = False
    samples = (Sample((2, 3), (2, 3)), Sample((2,), (2,), (2,), kwargs={"axis": -1}))

    def __init__(self, axis: int = 0) -> None:
        self.axis = axis

    def forward(self, *arrays: Array) -> Array:
        """The joined array."""
        self.axis = normalize_axis(self.axis, arrays[0].ndim + 1)
        if len({a.shape for a in arrays}) > 1:
            listed = ", ".join(str(a.shape) for a in arrays)
            raise ValueError(f"can't stack shapes {listed}: expected equal ones")
        return np.stack(arrays, axis=self.axis)

    def backward(self, grad: Array) -> Gradients:
        """A view of the gradient for each part."""
        return tuple(np.moveaxis(grad, self.axis, 0))


class Split(Operation):
    """Contiguous parts along an axis; views.

    Args:
        size: the length of each part but the last, which may be shorter; or the lengths of all.
        axis: the axis that is cut.
    """

    computes = False
    samples = (
        Sample((2, 5), args=(2, 1)),
        Sample((5, 2), args=((1, 0, 4),), kwargs={"axis": -2}),
    )

    def __init__(self, size: int | tuple[int, ...], axis: int = 0) -> None:
        self.size = size
        self.axis = axis
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, x: Array) -> tuple[Array, ...]:
        """The parts."""
        self.axis = normalize_axis(self.axis, x.ndim)
        lengths = self._lengths(x.shape[self.axis])
        parts = np.split(x, np.cumsum(lengths)[:-1], axis=self.axis)
        self.shapes = [part.shape for part in parts]
        return tuple(parts)

    def _lengths(self, total: int) -> list[int]:
        if isinstance(self.size, int):
            if self.size < 1:
                raise ValueError(f"split into parts of length {self.size}: expected at least 1")
            starts = range(0, max(total, 1), self.size)
            return [min(self.size, total - start) for start in starts]
        if sum(self.size) != total or any(n < 0 for n in self.size) or not self.size:
            raise ValueError(
                f"split into lengths {self.size} along axis {self.axis}: expected a sum of {total}"
            )
        return list(self.size)

    def backward(self, *grads: Array | None) -> Gradients:
        """The gradients joined, zeros for parts that led nowhere."""
        dtype = next(grad.dtype for grad in grads if grad is not None)
        joined = [
            np.zeros(shape, dtype) if grad is None else grad
            for shape, grad in zip(self.shapes, grads, strict=True)
        ]
        return (np.concatenate(joined, axis=self.axis),)
