"""Modules that hold modules: Sequential, ModuleList and ModuleDict; Flatten between layers."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Self, overload

import te_tensor as te
from te_tensor import Tensor
from te_tensor.checks import check_whole

from .module import Module
from .sequence_recording import run_recorded


def _checked(module: Any) -> Module:
    if not isinstance(module, Module):
        raise TypeError(f"got a {type(module).__name__}: expected a Module")
    return module


def _add(container: Module, modules: Mapping[str, Module]) -> None:
    """Make modules attributes of those names, all or none of them."""
    kind = type(container).__name__
    for name, module in modules.items():
        if not isinstance(name, str) or not name or "." in name:
            raise ValueError(f"module name is {name!r}: expected text without dots")
        if not _holds(container, name) and hasattr(container, name):
            raise ValueError(f"module name is {name!r}: {kind} has an attribute of that name")
        _checked(module)
    for name, module in modules.items():
        setattr(container, name, module)


def _holds(container: Module, name: object) -> bool:
    return isinstance(vars(container).get(name), Module) if isinstance(name, str) else False


class ModuleList(Module):
    """Modules in a list, under the names "0", "1", ….

    Args:
        modules: the modules.

    Raises:
        TypeError: something that is no Module.

    Example:
        >>> from te_nn import Linear
        >>> len(ModuleList(Linear(2, 2) for _ in range(3)))
        3
    """

    def __init__(self, modules: Iterable[Module] = ()) -> None:
        self.extend(modules)

    def append(self, module: Module) -> Self:
        """Add a module at the end; returns the container."""
        return self.extend((module,))

    def extend(self, modules: Iterable[Module]) -> Self:
        """Add modules at the end; returns the container."""
        added = [_checked(module) for module in modules]
        taken = [int(name) for name, _ in self.named_children() if name.isdecimal()]
        for name, module in enumerate(added, max(taken, default=-1) + 1):
            setattr(self, str(name), module)
        return self

    def insert(self, index: int, module: Module) -> None:
        """Add a module before the one at a place; those from there on move, and are named anew."""
        modules = list(self.children())
        modules.insert(index, _checked(module))
        self._hold(modules)

    def _hold(self, modules: Iterable[Module]) -> None:
        """Hold these modules instead, under names from "0" on."""
        for name, _ in list(self.named_children()):
            delattr(self, name)
        self.extend(modules)

    def __len__(self) -> int:
        return sum(1 for _ in self.children())

    def __iter__(self) -> Iterator[Module]:
        return self.children()

    @overload
    def __getitem__(self, index: int) -> Module: ...
    @overload
    def __getitem__(self, index: slice) -> Self: ...
    def __getitem__(self, index: int | slice) -> Module | Self:
        found = list(self.children())[index]
        return type(self)(found) if isinstance(found, list) else found

    def __setitem__(self, index: int, module: Module) -> None:
        names = [name for name, _ in self.named_children()]
        setattr(self, names[operator.index(index)], _checked(module))

    def __delitem__(self, index: int | slice) -> None:
        modules = list(self.children())
        del modules[index]
        self._hold(modules)


class Sequential(ModuleList):
    """Modules applied one after the other.

    Args:
        *modules: the modules, in order; or one mapping of names to modules.

    Raises:
        TypeError: something that is no Module.
        ValueError: a name that can't be one.

    Example:
        >>> import te_tensor as te
        >>> from te_nn import Linear, ReLU
        >>> Sequential(Linear(4, 8), ReLU(), Linear(8, 2))(te.ones(3, 4)).shape
        (3, 2)
        >>> list(Sequential({"first": Linear(4, 8), "last": ReLU()}).state_dict())
        ['first.weight', 'first.bias']
    """

    _one_by_one = True

    def __init__(self, *modules: Module | Mapping[str, Module]) -> None:
        if len(modules) == 1 and isinstance(modules[0], Mapping):
            _add(self, modules[0])
        else:
            super().__init__(modules)  # type: ignore[arg-type]

    @overload
    def __getitem__(self, index: int) -> Module: ...
    @overload
    def __getitem__(self, index: slice) -> Self: ...
    def __getitem__(self, index: int | slice) -> Module | Self:
        found = list(self.named_children())[index]
        return type(self)(dict(found)) if isinstance(found, list) else found[1]

    def forward(self, x: Any) -> Any:
        """What the last module makes of what the first was given."""
        recorded = run_recorded(self, x)
        if recorded is not None:
            return recorded
        for module in self.children():
            x = module(x)
        return x


class ModuleDict(Module):
    """Modules by name.

    Args:
        modules: the modules; names are text without dots that no method or attribute has.

    Raises:
        ValueError: a name that can't be one.
        TypeError: something that is no Module.

    Example:
        >>> from te_nn import Linear
        >>> heads = ModuleDict({"energy": Linear(4, 1), "charge": Linear(4, 1)})
        >>> list(heads.state_dict())[:2], "charge" in heads
        (['energy.weight', 'energy.bias'], True)
    """

    def __init__(self, modules: Mapping[str, Module] | None = None) -> None:
        self.update(modules or {})

    def update(self, modules: Mapping[str, Module]) -> None:
        """Add modules, or put them in the place of those of the same names."""
        _add(self, modules)

    def pop(self, name: str) -> Module:
        """Take a module out, and return it.

        Raises:
            KeyError: there is none of that name.
        """
        module = self[name]
        delattr(self, name)
        return module

    def __getitem__(self, name: str) -> Module:
        if name not in self:
            known = ", ".join(self.keys()) or "none"
            raise KeyError(f"no module {name!r}: there are {known}")
        module: Module = getattr(self, name)
        return module

    def __setitem__(self, name: str, module: Module) -> None:
        self.update({name: module})

    def __delitem__(self, name: str) -> None:
        self.pop(name)

    def __contains__(self, name: object) -> bool:
        return _holds(self, name)

    def __len__(self) -> int:
        return sum(1 for _ in self.children())

    def __iter__(self) -> Iterator[str]:
        return iter(list(self.keys()))

    def keys(self) -> Iterator[str]:
        """The names, in the order in which they were added."""
        return (name for name, _ in self.named_children())

    def values(self) -> Iterator[Module]:
        """The modules."""
        return self.children()

    def items(self) -> Iterator[tuple[str, Module]]:
        """Names and modules."""
        return self.named_children()


class Flatten(Module):
    """Several axes as one.

    Args:
        start_axis: the first axis.
        end_axis: the last axis, included.

    Raises:
        ValueError: an axis is no whole number.
    """

    _shown = ("start_axis", "end_axis")
    _always_the_same = True

    def __init__(self, start_axis: int = 1, end_axis: int = -1) -> None:
        self.start_axis = check_whole("start_axis", start_axis)
        self.end_axis = check_whole("end_axis", end_axis)

    def forward(self, x: Tensor) -> Tensor:
        """With the axes from start to end as one."""
        return te.flatten(x, self.start_axis, self.end_axis)
