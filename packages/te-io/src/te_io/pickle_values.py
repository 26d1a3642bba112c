"""What pickles may hold here, what must not be in them, and how much they may cost."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any

from .errors import FormatError

#: What a tuple costs as a key, in opcodes. Unlike those of texts, the hashes of tuples can be
#: chosen to be equal, and n equal hashes take n² comparisons: this keeps n at some thousands.
_TUPLE_KEY = 400


@dataclass
class Limits:
    """How much a file may cost to read; what is left of it goes down while it is read.

    Args:
        max_memory: bytes that may be taken beside what the file stores as tensors.
        max_depth: how deep containers may be nested.
        max_opcodes: opcodes of pickles, and elements of what they make.

    Raises:
        ValueError: a limit is no whole number above 0.
    """

    max_memory: int
    max_depth: int
    max_opcodes: int

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} is {value!r}: expected a whole number of at least 1")
        self.memory = self.max_memory
        self.opcodes = self.max_opcodes

    def take(self, *, memory: int = 0, opcodes: int = 0) -> None:
        """Count bytes that are about to be used, and steps that are about to be made.

        Raises:
            FormatError: they are too many.
        """
        self.memory -= memory
        self.opcodes -= opcodes
        if self.memory < 0:
            raise FormatError(
                f"needs more than {self.max_memory} bytes beside the tensors that it stores: "
                "max_memory allows more"
            )
        if self.opcodes < 0:
            raise FormatError(
                f"has pickles of more than {self.max_opcodes} steps: max_opcodes allows more"
            )


@dataclass(eq=False, frozen=True, slots=True)
class Name:
    """A name that a pickle may use.

    Args:
        name: the full name, dots included.
        call: what to do with the arguments if it is called; None for names that only stand there.
    """

    name: str
    call: Callable[[tuple[Any, ...]], object] | None = None

    def __repr__(self) -> str:
        return f"<name {self.name}>"


@dataclass(eq=False, slots=True, repr=False)
class OpaqueObject:
    """What stands for an object of a class that isn't read: what was stored of it, nothing run.

    Attributes:
        name: the full name of its class, or of the function that would have made it.
        arguments: what that would have been called with; None where only the name was stored.
        state: what the object would have been given as its attributes: mostly a dict.
        items: what would have been appended to it, for a kind of list or set.
        entries: what would have been set by key, for a kind of dict.

    Example:
        >>> OpaqueObject("torch.nn.modules.linear.Linear", (), {"in_features": 3})
        OpaqueObject('torch.nn.modules.linear.Linear', state: in_features)
    """

    name: str
    arguments: tuple[Any, ...] | None = None
    state: Any = None
    items: list[Any] = field(default_factory=list)
    entries: dict[Any, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        parts = [repr(self.name)]
        if isinstance(self.state, dict):
            names = [str(key)[:40] for key in islice(self.state, 9)]
            parts.append("state: " + ", ".join(names[:8]) + (", …" if names[8:] else ""))
        elif self.state is not None:
            parts.append(f"state: {type(self.state).__name__}")
        for what, values in (("items", self.items), ("entries", self.entries)):
            if values:
                parts.append(f"{len(values)} {what}")
        return f"OpaqueObject({', '.join(parts)})"


class Unfinished:
    """A base for what other objects are made of, and that is no value by itself."""

    __slots__ = ()


def check_key(key: object, limits: Limits) -> None:
    """Raise unless something can be a key of a dict or an element of a set, at a known cost.

    Hashing goes as deep as tuples are nested, without a limit of its own, and whoever chooses
    the numbers can choose equal hashes.

    Args:
        key: the key to be.
        limits: what tuples are counted against.

    Raises:
        FormatError: it is a container, a tuple of other than plain values, or a number past 64
            bits.
    """
    parts = key if isinstance(key, tuple) else (key,)
    if parts is key:
        limits.take(opcodes=_TUPLE_KEY + len(parts))
    for part in parts:
        if part is not None and not isinstance(part, _KEYS):
            raise FormatError(
                f"has a {type(part).__name__} for a key, or inside a tuple that is one: expected a "
                "plain value"
            )
        if isinstance(part, int) and not -(2**63) <= part < 2**64:
            raise FormatError("has a number of more than 64 bits for a key")


#: What keys may be; for anything else equality could be more than a look at plain values.
_KEYS = (str, bytes, int, float, OpaqueObject, Name)


def check_structure(root: object, limits: Limits, *, names: bool = False) -> None:
    """Raise unless whoever walks through a structure comes to an end, and finds only values.

    Args:
        root: what a machine made.
        limits: how deep it may be nested, and how many elements it may have where each place
            that shows a shared container counts.
        names: let bare names stand in it.

    Raises:
        FormatError: it contains itself, is too deep or too large, or holds something that is
            meant for other objects to be made of.
    """
    measures: dict[int, tuple[int, int]] = {}  # of containers by identity: depth and elements
    levels = [_Level((root,))]
    while True:
        level = levels[-1]
        for child in level.children:
            if isinstance(child, (Name, Unfinished)):
                _check_alone(child, names)
            if not isinstance(child, _CONTAINERS):
                level.elements += 1
                continue
            known = measures.get(id(child))
            if known is None:
                measures[id(child)] = _INSIDE
                levels.append(_Level(child))
                break
            if known == _INSIDE:
                raise FormatError(f"has a {type(child).__name__} that contains itself")
            level.add(known)
        else:
            levels.pop()
            if not levels:
                return
            level.check(limits)
            measures[id(level.container)] = (level.depth, level.elements)
            levels[-1].add((level.depth, level.elements))


_CONTAINERS = (list, tuple, set, frozenset, dict, OpaqueObject)
#: The measure of a container whose own elements are being measured.
_INSIDE = (-1, -1)


class _Level:
    """A container whose elements are being measured, and what they come to so far."""

    __slots__ = ("children", "container", "depth", "elements")

    def __init__(self, container: object) -> None:
        self.container = container
        self.children = _children(container)
        self.depth = self.elements = 1

    def add(self, measure: tuple[int, int]) -> None:
        """Count a container in this one."""
        depth, elements = measure
        self.depth = max(self.depth, depth + 1)
        self.elements += elements

    def check(self, limits: Limits) -> None:
        """Raise if it is too much."""
        if self.depth > limits.max_depth:
            raise FormatError(
                f"nests containers more than {limits.max_depth} deep: max_depth allows more"
            )
        if self.elements > limits.max_opcodes:
            raise FormatError(
                "shows the same containers in so many places that it has more than "
                f"{limits.max_opcodes} elements: max_opcodes allows more"
            )


def _children(container: object) -> Iterator[object]:
    match container:
        case OrderedDict():
            return chain(container, container.values(), vars(container).values())
        case dict():
            return chain(container, container.values())
        case OpaqueObject(_, arguments, state, items, entries):
            return chain((arguments, state), items, entries, entries.values())
        case _:
            return iter(container)  # type: ignore[call-overload, no-any-return]


def _check_alone(value: Name | Unfinished, names: bool) -> None:
    if isinstance(value, Unfinished):
        raise FormatError(f"holds a {type(value).__name__} by itself: expected a tensor on it")
    if not names:
        raise FormatError(
            f"holds {value.name} by itself, which is no value: on_unknown='opaque' leaves it there"
        )
