"""Where the time goes: calls, seconds and bytes of every kind of operation."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from . import modes
from .operation import Operation


@dataclass
class OperationProfile:
    """What a kind of operation did, in one direction.

    Attributes:
        calls: how often it ran.
        seconds: time inside it, summed over threads.
        nbytes: bytes of what it made: outputs forward, gradients backward.
    """

    calls: int = 0
    seconds: float = 0.0
    nbytes: int = 0


class Profile:
    """What `profile()` gives: a record by operation name, and a table of it when printed."""

    def __init__(self) -> None:
        self.forward: dict[str, OperationProfile] = {}
        self.backward: dict[str, OperationProfile] = {}
        #: Seconds from entering the context to leaving it.
        self.seconds = 0.0
        self._guard = threading.Lock()

    def note(
        self, operation: Operation, forward: bool, seconds: float, made: Sequence[Any]
    ) -> None:
        """Add one call; the engine does."""
        if not operation.profiled:
            return
        direction = self.forward if forward else self.backward
        with self._guard:
            record = direction.setdefault(type(operation).__name__, OperationProfile())
            record.calls += 1
            record.seconds += seconds
            record.nbytes += sum(array.nbytes for array in made if array is not None)

    def __str__(self) -> str:
        names = {*self.forward, *self.backward}
        none = OperationProfile()

        def total(name: str) -> float:
            return sum(d.get(name, none).seconds for d in (self.forward, self.backward))

        head = f"{'':<20}{'forward':^32}{'backward':^32}"
        columns = f"{'calls':>8}{'ms':>12}{'MB':>12}"
        lines = [head, f"{'operation':<20}{columns}{columns}"]
        for name in sorted(names, key=total, reverse=True):
            line = f"{name:<20}"
            for direction in (self.forward, self.backward):
                record = direction.get(name, none)
                line += (
                    f"{record.calls:>8}{record.seconds * 1e3:>12.3f}{record.nbytes / 1e6:>12.2f}"
                )
            lines.append(line)
        inside = sum(total(name) for name in names)
        lines.append(
            f"{inside * 1e3:.3f} ms inside operations, summed over threads; "
            f"{self.seconds * 1e3:.3f} ms in all"
        )
        return "\n".join(lines)


class profile:
    """Record what operations do while the context holds, in all of the engine's threads.

    Example:
        >>> import te_tensor as te
        >>> x = te.ones(3, requires_grad=True)
        >>> with te.profile() as found:
        ...     (x.exp() * x).sum().backward()
        >>> found.forward["Exp"].calls, found.backward["Mul"].calls
        (1, 1)
    """

    def __init__(self) -> None:
        self._profile = Profile()
        self._setting = modes.modes_set(profile=self._profile)

    def __enter__(self) -> Profile:
        self._begin = perf_counter()
        self._setting.__enter__()
        return self._profile

    def __exit__(self, *exception: object) -> None:
        self._setting.__exit__(*exception)
        self._profile.seconds += perf_counter() - self._begin
