"""What holds for the code that runs now: gradients, anomaly checks, tracing, the generator.

All modes are one immutable value in one context variable: an operation reads it once, threads
and coroutines have their own, and the engine's workers run in copies of the caller's context.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from contextvars import ContextVar, Token
from dataclasses import dataclass, field, replace
from typing import Any, Self, TypeVar

_F = TypeVar("_F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Modes:
    """The modes of a context."""

    #: Whether operations on tensors that need gradients record their lineage.
    grad: bool = True
    #: Whether every result is searched for NaN.
    anomaly: bool = False
    #: Whether every operation records its lineage, gradients needed or not.
    trace: bool = False
    #: What random operations draw from; None for the process-wide generator.
    generator: Any = None
    #: What notes the time of every operation.
    profile: Any = None
    #: The part of a sub-graph that runs now, which tensors from outside go through.
    part: Any = None
    #: Whether something looks at each operation: the search for NaN, or a profile.
    observes: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "observes", self.anomaly or self.profile is not None)


_defaults = Modes()
_modes: ContextVar[Modes] = ContextVar("te_tensor.modes", default=_defaults)

#: The modes in force.
current = _modes.get


class Setting:
    """A context manager and decorator under which some modes have other values."""

    _values: dict[str, Any]

    def __new__(cls, *args: Any, **values: Any) -> Any:
        """A setting; given a function, `@no_grad` without brackets, that function decorated."""
        if len(args) == 1 and inspect.isroutine(args[0]):
            return cls()(args[0])
        return super().__new__(cls)

    def __init__(self) -> None:
        self._tokens: list[Token[Modes]] = []

    def __enter__(self) -> Self:
        self._tokens.append(_modes.set(replace(current(), **self._values)))
        return self

    def __exit__(self, *exception: object) -> None:
        _modes.reset(self._tokens.pop())

    def _fresh(self) -> Setting:
        """A setting of the same kind, for one call of a decorated function."""
        return type(self)()

    def __call__(self, function: _F) -> _F:
        """Decorate a function: the setting holds while it runs.

        Raises:
            TypeError: the function is a generator or a coroutine, which runs when it is left.
        """
        kinds = (
            inspect.isgeneratorfunction,
            inspect.iscoroutinefunction,
            inspect.isasyncgenfunction,
        )
        if any(is_kind(function) for is_kind in kinds):
            raise TypeError(
                f"{type(self).__name__} can't decorate {function.__name__}, a generator or a "
                "coroutine: use it as a context manager inside"
            )

        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            with self._fresh():
                return function(*args, **kwargs)

        return wrapper  # type: ignore[return-value]


class no_grad(Setting):
    """Nothing records its lineage: results need no gradient. Context manager and decorator.

    Example:
        >>> import te_tensor as te
        >>> x = te.Tensor([1.0], requires_grad=True)
        >>> with te.no_grad():
        ...     y = x * 2
        >>> y.requires_grad
        False
    """

    _values = {"grad": False}  # noqa: RUF012


class enable_grad(Setting):
    """Operations record their lineage again, inside `no_grad`. Context manager and decorator."""

    _values = {"grad": True}  # noqa: RUF012


class detect_anomaly(Setting):
    """Raise at the first operation, forward or backward, whose result has a NaN, naming it.

    Where that was given a NaN that no operation made, as one among data, the error says so. Costs
    a pass over every result: for finding a fault, not for training.
    """

    _values = {"anomaly": True}  # noqa: RUF012


class trace(Setting):
    """Every operation records creator and inputs, whether or not gradients are needed.

    Example:
        >>> import te_tensor as te
        >>> with te.trace():
        ...     y = te.Tensor([1.0]).exp()
        >>> type(y.creator).__name__
        'Exp'
    """

    _values = {"trace": True}  # noqa: RUF012


class modes_set(Setting):
    """Some modes have other values.

    Args:
        **values: values by the modes' names.
    """

    def __init__(self, **values: Any) -> None:
        super().__init__()
        self._values = values

    def _fresh(self) -> Setting:
        return type(self)(**self._values)


def is_grad_enabled() -> bool:
    """Whether operations record what backward needs."""
    return current().grad
