"""Modules that hold modules: Sequential, ModuleList, and Flatten to stand between layers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, overload

from te_tensor import Tensor

from .module import Module


def _checked(module: Any) -> Module:
    if not isinstance(module, Module):
        raise TypeError(f"got a {type(module).__name__}: expected a Module")
    return module


class ModuleList(Module):
    """Modules in a list, under the names "0", "1", ….

    Args:
        modules: the modules.

    Example:
        >>> from te_nn import Linear
        >>> len(ModuleList(Linear(2, 2) for _ in range(3)))
        3
    """

    def __init__(self, modules: Iterable[Module] = ()) -> None:
        for module in modules:
            self.append(module)

    def append(self, module: Module) -> None:
        """Add a module at the end."""
        last = max((int(name) for name, _ in self.named_children()), default=-1)
        setattr(self, str(last + 1), _checked(module))

    def __len__(self) -> int:
        return sum(1 for _ in self.children())

    def __iter__(self) -> Iterator[Module]:
        return self.children()

    @overload
    def __getitem__(self, index: int) -> Module: ...
    @overload
    def __getitem__(self, index: slice) -> list[Module]: ...
    def __getitem__(self, index: int | slice) -> Module | list[Module]:
        return list(self.children())[index]


class Sequential(ModuleList):
    """Modules applied one after the other.

    Args:
        *modules: the modules, in order.

    Example:
        >>> import te_tensor as te
        >>> from te_nn import Linear, ReLU
        >>> Sequential(Linear(4, 8), ReLU(), Linear(8, 2))(te.ones(3, 4)).shape
        (3, 2)
    """

    def __init__(self, *modules: Module) -> None:
        super().__init__(modules)

    def forward(self, x: Any) -> Any:
        """What the last module makes of what the first was given."""
        for module in self.children():
            x = module(x)
        return x


class Flatten(Module):
    """Several axes as one.

    Args:
        start_axis: the first axis.
        end_axis: the last axis, included.
    """

    _shown = ("start_axis", "end_axis")

    def __init__(self, start_axis: int = 1, end_axis: int = -1) -> None:
        self.start_axis = start_axis
        self.end_axis = end_axis

    def forward(self, x: Tensor) -> Tensor:
        """With the axes from start to end as one."""
        return x.flatten(self.start_axis, self.end_axis)
