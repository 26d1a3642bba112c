"""Exponential moving averages of parameters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from te_tensor import Tensor, storage
from te_tensor.checks import check_switch
from te_tensor.dtypes import FLOATS, Array
from te_tensor.machine import Value, runs
from te_tensor.parallel import elementwise
from te_tensor.tensor import arrays_of

from .arena import wide_dtype
from .checks import as_tensors, check_count, check_number
from .direct import Direct, carry_out
from .formula import formula


class EMA:
    """Averages of parameters over the steps, which often predict better than the last ones.

    average = decay·average + (1 - decay)·parameter (Polyak and Juditsky, 1992, averaged all steps
    alike). Averages of float16 and bfloat16 are kept in float32.

    Args:
        parameters: tensors; the averages begin with their values.
        decay: the share of the average that an update keeps.
        warmup: decay no more than (1 + n)/(10 + n) at update n, so that the first values don't
            stay for long.

    Raises:
        ValueError: decay is out of range; there are no parameters, or one twice.
        TypeError: a parameter is no Tensor, or not of floats.

    Example:
        >>> import te_tensor as te
        >>> w = te.Tensor([0.0], requires_grad=True)
        >>> ema = EMA([w], decay=0.75)
        >>> w[0] = 4.0
        >>> ema.update()
        >>> with ema.average_parameters():
        ...     print(w.item())
        1.0
        >>> w.item()
        4.0
    """

    def __init__(
        self, parameters: Iterable[Tensor], decay: float = 0.999, *, warmup: bool = False
    ) -> None:
        check_number("decay", decay, least=0, below=1)
        check_switch("warmup", warmup)
        self.decay = decay
        self.warmup = warmup
        self.updates = 0
        self._tensors = as_tensors(parameters)
        if not self._tensors:
            raise ValueError("EMA got no parameters: expected at least one tensor")
        if len({id(tensor) for tensor in self._tensors}) < len(self._tensors):
            raise ValueError("a parameter was given twice: expected each once")
        for tensor in self._tensors:
            if tensor.dtype not in FLOATS:
                raise TypeError(f"a parameter is of {tensor.dtype}: expected floats")
        self._averages = [np.array(t.data, wide_dtype(t.dtype), order="C") for t in self._tensors]
        self._stored: list[Array] | None = None
        self._total = sum(average.size for average in self._averages)
        self._direct: Direct | None = None

    def update(self) -> None:
        """Take the parameters as they are now into the averages; call it after each step.

        Raises:
            ValueError: a parameter has another shape than it had; nothing was changed.
        """
        arrays = arrays_of(self._tensors)
        shapes, wanted = ([a.shape for a in each] for each in (arrays, self._averages))
        if shapes != wanted:
            raise ValueError(f"the parameters have the shapes {shapes}: expected {wanted}")
        decay = self.decay
        if self.warmup:
            decay = min(decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1

        update = _averaged("average", "value", share=1 - decay)
        with storage.holding(storage.records_of(arrays)), np.errstate(all="ignore"):
            if self._total and runs(*self._averages):
                if self._direct is None or not self._direct.fits(update, []):
                    self._direct = Direct(update, self._averages, [], 0, self._total)
                carry_out(self._direct.tasks(update, arrays), self._total)
                return
            for average, values in zip(self._averages, arrays, strict=True):
                elementwise(update, average, values)

    def store(self) -> None:
        """Keep a copy of the parameters, for `restore`."""
        self._stored = [np.array(tensor.data) for tensor in self._tensors]

    def copy_to(self) -> None:
        """Set the parameters to the averages.

        Raises:
            ValueError: a parameter has read-only memory; nothing was changed.
        """
        self._write(self._averages)

    def restore(self) -> None:
        """Set the parameters to what `store` kept, and let go of the copy.

        Raises:
            RuntimeError: nothing is stored.
        """
        if self._stored is None:
            raise RuntimeError("restore() without parameters that are stored: call store() before")
        self._write(self._stored)
        self._stored = None

    @contextmanager
    def average_parameters(self) -> Iterator[None]:
        """A context in which the parameters are the averages; afterwards they are as before."""
        self.store()
        try:
            self.copy_to()
            yield
        finally:
            self.restore()

    def _write(self, arrays: Iterable[Array]) -> None:
        for tensor in self._tensors:
            if not tensor.writable:
                raise ValueError(f"a parameter of shape {tensor.shape} has read-only memory")
        with np.errstate(all="ignore"):
            for tensor, array in zip(self._tensors, arrays, strict=True):
                with tensor.lock() as memory:
                    memory[...] = array

    def state_dict(self) -> dict[str, Any]:
        """What resuming needs: "decay", "updates" and copies of the "averages", in order."""
        averages = [Tensor(average) for average in self._averages]
        return {"decay": self.decay, "updates": self.updates, "averages": averages}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state that `state_dict` gave.

        Args:
            state: the state, with averages of the parameters' shapes.

        Raises:
            ValueError: it doesn't fit; nothing was changed.
        """
        if not isinstance(state, Mapping) or set(state) != {"decay", "updates", "averages"}:
            given = sorted(map(str, state)) if isinstance(state, Mapping) else state
            raise ValueError(f"got {given!r}: expected the keys averages, decay and updates")
        check_number("decay", state["decay"], least=0, below=1)
        check_count("updates", state["updates"], least=0)
        arrays = [np.asarray(value) for value in state["averages"]]
        shapes, wanted = ([a.shape for a in each] for each in (arrays, self._averages))
        if shapes != wanted or any(array.dtype.kind != "f" for array in arrays):
            raise ValueError(f"averages have the shapes {shapes}: expected floats of {wanted}")
        self.decay, self.updates = float(state["decay"]), int(state["updates"])
        self._averages = [
            np.array(array, own.dtype, order="C")
            for array, own in zip(arrays, self._averages, strict=True)
        ]
        self._direct = None

    def __getstate__(self) -> dict[str, Any]:
        """For copies: all but what knows the memory of these averages."""
        return {**vars(self), "_direct": None}


@formula
def _averaged(average: Value, value: Value, *, share: Value) -> tuple[Value]:
    return (average + (value - average) * share,)
