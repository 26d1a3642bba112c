"""Functions that backward calls on its way, and the handles that remove them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any, Self

_numbers = itertools.count()


class Hooks:
    """Functions in the order in which they were added."""

    __slots__ = ("_functions", "last")

    def __init__(self) -> None:
        self._functions: dict[int, Callable[..., Any]] = {}
        #: Called after all others.
        self.last: Callable[..., Any] | None = None

    def add(self, function: Callable[..., Any]) -> HookHandle:
        """Add a function after the others."""
        return HookHandle(self._functions, function)

    def __bool__(self) -> bool:
        return bool(self._functions) or self.last is not None

    def __iter__(self) -> Iterator[Callable[..., Any]]:
        yield from list(self._functions.values())  # a hook may remove itself
        if self.last is not None:
            yield self.last


class HookHandle:
    """Removes a hook: by `remove()`, or at the end of a `with` block.

    Args:
        functions: hooks by number, in the order in which they are called.
        function: the new one.
        first: call it before the others, instead of after them.

    Example:
        >>> import te_tensor as te
        >>> x = te.Tensor([1.0, 2.0], requires_grad=True)
        >>> with x.register_hook(lambda grad: grad * 10):
        ...     (x * x).sum().backward()
        >>> x.grad.tolist()
        [20.0, 40.0]
    """

    __slots__ = ("_functions", "_number")

    def __init__(
        self,
        functions: dict[int, Callable[..., Any]],
        function: Callable[..., Any],
        *,
        first: bool = False,
    ) -> None:
        self._functions = functions
        self._number = next(_numbers)
        others = dict(functions) if first else {}
        if first:
            functions.clear()
        functions[self._number] = function
        functions.update(others)

    def remove(self) -> None:
        """Remove the hook; a second time does nothing."""
        self._functions.pop(self._number, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()
