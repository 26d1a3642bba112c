"""Plans: forwards of operations on memory that stays, written down once and run time and again.

A model that reads one token at a time does little work in many operations, and Python takes most
of the time. A plan has the calls of kernels and products that some of them come to, for inputs of
one shape, and makes them as a single call, without the GIL and on the caller's thread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from . import memory, storage
from .blas import by_tiles, lay_out
from .dtypes import Array, float32
from .machine import (
    LANES,
    LINE,
    Laid,
    Product,
    Steps,
    copy_kernel,
    packed,
    runs_programs,
    share_products,
)
from .operation import Operation

#: Elements of a weight up to which each run copies it, where others may have written to it.
_MOST_COPIED = 1 << 14
#: Rows from which a product with a large weight goes by tiles.
_TILED_ROWS = 48


class Unplanned(Exception):
    """An operation, or its inputs, can't be part of a plan: apply it as usual."""


class Plan(Steps):
    """Forwards of operations, one after the other.

    Arrays stay where they are: who runs a plan writes its inputs into them first, and copies
    what it needs of the results. Weights may change in between; `holds` notices.

    Example:
        >>> import numpy as np
        >>> from te_tensor.ops.gelu import GELU
        >>> from te_tensor.plan import Plan, Unplanned
        >>> plan, x = Plan(), np.zeros((2, 3), np.float32)
        >>> try:
        ...     result = plan.apply(GELU(), x)
        ... except Unplanned:  # a processor without AVX-512
        ...     result = GELU().forward(x)
        >>> plan.run()
        True
        >>> result.shape
        (2, 3)
    """

    def __init__(self) -> None:
        super().__init__()
        self._clock = storage.clock
        #: Weights, what lays them out, and what it made.
        self._layouts: list[tuple[Array, Callable[[Array], Any], Any]] = []
        #: Memory that products by tiles work in, one after the other.
        self._rooms: list[Array] = []
        #: Called with the number of keys that there are now.
        self.lengths: list[Callable[[int], None]] = []

    def apply(self, operation: Operation, *arrays: Array) -> Array:
        """Have an operation's forward made.

        Args:
            operation: a new instance of one that has `prepare`.
            *arrays: its inputs, float32 in C order, which stay where they are.

        Returns:
            Where the result is, after each run.

        Raises:
            Unplanned: there is no such plan, no machine code here, or inputs that don't fit.
        """
        usual = all([array.ndim and array.size for array in arrays])
        if operation.prepare is None or not usual or not runs_programs(*arrays):
            raise Unplanned(type(operation).__name__)
        # Machine code believes what it is told: shapes are those that forward accepts.
        operation.needs_grad = (False,) * len(arrays)
        try:
            with np.errstate(all="ignore"):  # nobody has written to some of them yet
                wanted = operation.forward(*arrays)
        except (TypeError, ValueError) as error:
            raise Unplanned(str(error)) from error
        made: Array = operation.prepare(self, *arrays)
        assert isinstance(wanted, np.ndarray) and made.shape == wanted.shape
        return made

    def linear(self, rows: Array, weight: Array, start: Array, out: Array) -> None:
        """Have out = start + rows @ weightᵀ made.

        Args:
            rows: shape (n, in).
            weight: shape (out, in).
            start: shape (out,), or (n, out), where it may be `out`.
            out: shape (n, out).

        Raises:
            Unplanned: the weight is large, and in memory that others may write to.
        """
        if len(rows) >= _TILED_ROWS and by_tiles(rows, weight.T, out):
            laid = self._layout_of(weight, laid_out)
            if laid is not None:
                product = Product(weight.T, out, start, laid)
                self._rooms = share_products(self, rows, [product], self._room_for_tiles())
                return
        panels = self._layout_of(weight, _packed)
        if panels is not None:
            self.multiply(rows, panels, start, out)
        elif weight.size <= _MOST_COPIED:
            features, width = weight.shape
            columns = np.empty((width, features + -features % LANES), weight.dtype)
            self.turn(weight, columns)
            self.product(rows, columns[:, :features], start, out)
        else:
            raise Unplanned("a large weight in memory that others may write to")

    def _layout_of(self, weight: Array, make: Callable[[Array], Any]) -> Any:
        layout = storage.layout_of(weight, make)
        if layout is None:
            layout = storage.layout_of(weight, make)  # made when it is asked for a second time
        if layout is not None:
            self._layouts.append((weight, make, layout))
        return layout

    def _room_for_tiles(self) -> Callable[[int], Array]:
        """Gives memory that products before worked in, where that is large enough."""
        free = sorted(self._rooms, key=len)

        def room(count: int) -> Array:
            while free:
                found = free.pop(0)
                if len(found) >= count:
                    return found
            made = np.empty(count + LINE // 4, float32)
            return made[-memory.address(made) % LINE // 4 :]

        return room

    def copy(self, source: Array, out: Array) -> int:
        """Have rows copied; returns the place of the address that they are copied to."""
        self.kernel(copy_kernel, out, source)
        return next(place for place, operand in self._operands.items() if operand is out)

    def holds(self) -> bool:
        """Whether the weights are still what they were, and the engine's threads."""
        if not self.is_current():
            return False
        if storage.clock != self._clock:
            clock = storage.clock
            if any([storage.layout_of(w, make) is not found for w, make, found in self._layouts]):
                return False
            self._clock = clock
        return True

    def set_length(self, length: int) -> None:
        """How many keys attentions have from now on, at least 1."""
        for set_length in self.lengths:
            set_length(length)

    def __reduce__(self) -> Any:
        """Hold that it isn't copied: it would go on with the memory of this one."""
        raise TypeError("a plan knows addresses and can't be copied: make another one")


def laid_out(weight: Array) -> Laid:
    """A weight (out, in) as tiles, for products with its transpose."""
    return lay_out(weight.T)


def _packed(weight: Array) -> Array:
    return packed(weight.T)


def panels_of(weight: Array) -> Array | None:
    """A weight (out, in) as `machine.multiply` reads it, from the second call on."""
    return storage.layout_of(weight, _packed)
