"""Module: what has parameters, buffers and children, found among its attributes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from te_tensor import Tensor, no_grad
from te_tensor.checks import check_switch
from te_tensor.dtypes import FLOATS, as_dtype

from .hooks import HookHandle, note_place
from .loading import numbers, overlap_of, write
from .structure import structure


class Parameter(Tensor):
    """A tensor that a module learns: it needs a gradient unless told otherwise.

    Args:
        data: what `te_tensor.Tensor` takes.
        dtype: the dtype to store.
        requires_grad: whether backward reaches it.

    Example:
        >>> Parameter([1.0, 2.0]).requires_grad
        True
    """

    __slots__ = ()

    def __init__(
        self, data: Any, *, dtype: npt.DTypeLike | None = None, requires_grad: bool = True
    ) -> None:
        super().__init__(data, dtype=dtype, requires_grad=requires_grad)


class StateDictError(ValueError):
    """A state dict that doesn't fit a module; nothing was changed."""


class IncompatibleKeys(NamedTuple):
    """The keys in which a state dict and a module differ."""

    missing: list[str]
    unexpected: list[str]


class Module:
    """The base of layers and models.

    Attributes that are a Parameter or a Module are found by themselves; tensors that belong to
    the state but aren't learnt are named with `register_buffer`. A subclass defines `forward`,
    and calling the module calls it.

    Example:
        >>> import te_tensor as te
        >>> class Scale(Module):
        ...     def __init__(self):
        ...         self.factor = Parameter([2.0])
        ...     def forward(self, x):
        ...         return x * self.factor
        >>> scale = Scale()
        >>> scale(te.ones(2)).tolist(), list(scale.state_dict())
        ([2.0, 2.0], ['factor'])
    """

    #: Whether the module is in training mode (`train`, `eval`).
    training: bool = True
    #: Names of the attributes that are buffers.
    _buffer_names: tuple[str, ...] = ()
    #: Names of the buffers that state dicts leave out.
    _passing_names: frozenset[str] = frozenset()
    #: What is called before `forward`, and after it; a module gets its own with the first.
    _forward_pre_hooks: dict[int, Callable[..., Any]] = {}  # noqa: RUF012
    _forward_hooks: dict[int, Callable[..., Any]] = {}  # noqa: RUF012
    #: Names of constructor settings that `repr` shows.
    _shown: ClassVar[tuple[str, ...]] = ()
    #: Whether `forward` applies the same operations to x and the parameters whatever the numbers
    #: are, so that a `Sequential` may record them. It holds for the class that says it alone.
    _always_the_same: ClassVar[bool] = False
    #: Whether it applies its modules one after the other, likewise.
    _one_by_one: ClassVar[bool] = False

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the module's result; subclasses define it."""
        raise NotImplementedError(f"{type(self).__name__} has no forward")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the module's result: the same as `forward`, with hooks.

        An error on its way out gets a note that names the module it arose in by its path.
        """
        try:
            if self._forward_pre_hooks or self._forward_hooks:
                return self._call_with_hooks(args, kwargs)
            return self.forward(*args, **kwargs)
        except Exception as error:
            note_place(error, self, self._walk(""))
            raise

    def _call_with_hooks(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        for hook in tuple(self._forward_pre_hooks.values()):
            changed = hook(self, args)
            if changed is not None:
                args = changed if isinstance(changed, tuple) else (changed,)
        result = self.forward(*args, **kwargs)
        for hook in tuple(self._forward_hooks.values()):
            changed = hook(self, args, result)
            result = result if changed is None else changed
        return result

    def register_forward_pre_hook(
        self, hook: Callable[..., Any], *, prepend: bool = False
    ) -> HookHandle:
        """Have `hook(module, args)` called before `forward`, when the module is called.

        Args:
            hook: gets the positional arguments as a tuple; what it returns takes their place (a
                tuple, or the only one), None leaves them.
            prepend: call it before the hooks that are there, instead of after them.

        Returns:
            A handle whose `remove()` takes the hook out.

        Raises:
            TypeError: hook can't be called.
            ValueError: prepend is neither True nor False.
        """
        self.__dict__.setdefault("_forward_pre_hooks", {})
        return HookHandle(self._forward_pre_hooks, hook, first=prepend)

    def register_forward_hook(
        self, hook: Callable[..., Any], *, prepend: bool = False
    ) -> HookHandle:
        """Have `hook(module, args, result)` called after `forward`, when the module is called.

        Args:
            hook: gets the positional arguments and the result; what it returns takes the
                result's place, None leaves it.
            prepend: call it before the hooks that are there, instead of after them.

        Returns:
            A handle whose `remove()` takes the hook out.

        Raises:
            TypeError: hook can't be called.
            ValueError: prepend is neither True nor False.

        Example:
            >>> import te_tensor as te
            >>> from te_nn import Linear
            >>> layer, shapes = Linear(2, 3), []
            >>> note = lambda module, args, result: shapes.append(result.shape)
            >>> with layer.register_forward_hook(note):
            ...     y = layer(te.ones(4, 2))
            >>> shapes
            [(4, 3)]
        """
        self.__dict__.setdefault("_forward_hooks", {})
        return HookHandle(self._forward_hooks, hook, first=prepend)

    def is_plainly(self, kind: type[Module]) -> bool:
        """Whether it is of this very class, with its forward and no hooks, to be done elsewhere."""
        observed = self._forward_pre_hooks or self._forward_hooks
        return type(self) is kind and not observed and "forward" not in self.__dict__

    def has_hooks(self) -> bool:
        """Whether this module or one below it has hooks, which want to see the whole batch."""
        return any(m._forward_hooks or m._forward_pre_hooks for m in self.modules())

    def __setattr__(self, name: str, value: Any) -> None:
        before = self.__dict__.get(name)
        learnt = isinstance(before, Parameter) and not isinstance(value, (Parameter, type(None)))
        stored = name in self._buffer_names and not isinstance(value, Tensor)
        if learnt or stored:
            kind, wanted = ("parameter", "a Parameter") if learnt else ("buffer", "a Tensor")
            raise TypeError(
                f"{kind} {name} of {type(self).__name__} assigned a {type(value).__name__}: "
                f"expected {wanted}"
            )
        object.__setattr__(self, name, value)
        structure.note()

    def __delattr__(self, name: str) -> None:
        object.__delattr__(self, name)
        structure.note()
        self._buffer_names = tuple(n for n in self._buffer_names if n != name)

    def register_buffer(self, name: str, tensor: Tensor, persistent: bool = True) -> None:
        """Make `tensor` an attribute that is part of the state but not learnt.

        Args:
            name: the attribute's name, without dots.
            tensor: its value.
            persistent: whether state dicts hold it; False for what can be made again.

        Raises:
            ValueError: the name has a dot, or is taken, or persistent is neither True nor False.
            TypeError: it's no Tensor.
        """
        check_switch("persistent", persistent)
        if "." in name or not name:
            raise ValueError(f"buffer name is {name!r}: expected a name without dots")
        if hasattr(self, name) and name not in self._buffer_names:
            raise ValueError(f"{type(self).__name__} has an attribute {name!r} already")
        if not isinstance(tensor, Tensor):
            raise TypeError(f"buffer {name} is a {type(tensor).__name__}: expected a Tensor")
        object.__setattr__(self, name, tensor)
        if name not in self._buffer_names:
            self._buffer_names = (*self._buffer_names, name)
        passing = self._passing_names - {name}
        self._passing_names = passing if persistent else passing | {name}

    # -- what it holds --------------------------------------------------------------------

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """The modules that are attributes of this one, with their names."""
        for name, value in vars(self).items():
            if isinstance(value, Module):
                yield name, value

    def children(self) -> Iterator[Module]:
        """The modules that are attributes of this one."""
        return (value for value in vars(self).values() if isinstance(value, Module))

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """This module and all below it, each once, with their paths ("" for this one)."""
        seen: set[int] = set()
        for path, module in self._walk(prefix):
            if id(module) not in seen:
                seen.add(id(module))
                yield path, module

    def modules(self) -> Iterator[Module]:
        """This module and all below it, each once."""
        return (module for _, module in self.named_modules())

    def _walk(self, path: str) -> Iterator[tuple[str, Module]]:
        """Every path to a module, those to a shared one included."""
        yield path, self
        for name, child in self.named_children():
            yield from child._walk(_join(path, name))

    def _own(self) -> Iterator[tuple[str, Tensor]]:
        """This module's own parameters, then its buffers."""
        for name, value in vars(self).items():
            if isinstance(value, Parameter):
                yield name, value
        for name in self._buffer_names:
            yield name, getattr(self, name)

    def _entries(self, prefix: str) -> Iterator[tuple[str, Module, str, Tensor]]:
        """Every parameter and buffer: its key, its module, its name there, the tensor."""
        for path, module in self._walk(prefix):
            for name, tensor in module._own():
                yield _join(path, name), module, name, tensor

    def named_parameters(self, prefix: str = "") -> Iterator[tuple[str, Parameter]]:
        """The parameters of this module and all below it, each once, with their paths."""
        seen: set[int] = set()
        for key, _, _, tensor in self._entries(prefix):
            if isinstance(tensor, Parameter) and id(tensor) not in seen:
                seen.add(id(tensor))
                yield key, tensor

    def parameters(self) -> Iterator[Parameter]:
        """The parameters of this module and all below it, each once."""
        return (parameter for _, parameter in self.named_parameters())

    def named_buffers(self, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
        """The buffers of this module and all below it, each once, with their paths."""
        seen: set[int] = set()
        for key, _, _, tensor in self._entries(prefix):
            if not isinstance(tensor, Parameter) and id(tensor) not in seen:
                seen.add(id(tensor))
                yield key, tensor

    def buffers(self) -> Iterator[Tensor]:
        """The buffers of this module and all below it, each once."""
        return (buffer for _, buffer in self.named_buffers())

    # -- state ----------------------------------------------------------------------------

    def state_dict(self, prefix: str = "") -> dict[str, Tensor]:
        """All parameters and buffers by path, as tensors on the same memory.

        Tied tensors are listed under every path.

        Args:
            prefix: a path to put before every name.

        Returns:
            A dict in the order of definition: a module's parameters, its buffers, its children.
        """
        return {
            key: module._stored(name, tensor)
            for key, module, name, tensor in self._entries(prefix.rstrip("."))
            if name not in module._passing_names
        }

    def load_state_dict(
        self, state: Mapping[str, Tensor | npt.ArrayLike], strict: bool = True
    ) -> IncompatibleKeys:
        """Copy values into the parameters and buffers, cast to their dtypes.

        Args:
            state: values by path, as `state_dict` gives them.
            strict: hold that the keys are exactly those of this module.

        Returns:
            The missing and the unexpected keys.

        Raises:
            StateDictError: keys or shapes don't fit; all of them are listed, and nothing was
                changed.
            ValueError: strict is neither True nor False.
        """
        check_switch("strict", strict)
        entries = [entry for entry in self._entries("") if entry[2] not in entry[1]._passing_names]
        keys = {key for key, *_ in entries}
        missing = [key for key, *_ in entries if key not in state]
        unexpected = [key for key in state if key not in keys]
        problems = []
        if strict:
            problems += [f"missing: {key}" for key in missing]
            problems += [f"unexpected: {key}" for key in unexpected]
        accepted: list[tuple[Tensor, npt.NDArray[Any]]] = []
        overlaps = overlap_of([tensor.data for _, _, _, tensor in entries])
        for key, module, name, tensor in entries:
            if key not in state:
                continue
            try:
                value = module._accept(name, tensor, numbers(state[key]))
                # A copy where the state is on the memory that is about to be written.
                with np.errstate(over="ignore"):
                    accepted.append(
                        (tensor, np.array(value, tensor.dtype, copy=overlaps(value) or None))
                    )
            except ValueError as error:
                problems.append(f"{key}: {error}")
            if not tensor.writable:
                problems.append(f"{key}: its memory is read-only")
        if problems:
            listed = "\n  ".join(problems)
            raise StateDictError(f"the state dict doesn't fit {type(self).__name__}:\n  {listed}")
        write(accepted)
        return IncompatibleKeys(missing, unexpected)

    def _stored(self, name: str, tensor: Tensor) -> Tensor:
        """What state dicts hold of the own tensor `name`."""
        return tensor.detach()

    def _accept(self, name: str, tensor: Tensor, value: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """What of `value` goes into the own tensor `name`; a ValueError says why nothing does."""
        if value.shape != tensor.shape:
            raise ValueError(f"shape {value.shape}, expected {tensor.shape}")
        return value

    # -- modes ----------------------------------------------------------------------------

    def train(self, mode: bool = True) -> Self:
        """Put this module and all below it in training mode; returns it.

        Args:
            mode: False for evaluation mode.

        Raises:
            ValueError: mode is neither True nor False.
        """
        mode = check_switch("mode", mode)
        for module in self.modules():
            module.training = mode
        return self

    def eval(self) -> Self:
        """Put this module and all below it in evaluation mode; returns it."""
        return self.train(False)

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Set whether backward reaches the parameters; returns the module.

        Args:
            requires_grad: whether it does.

        Raises:
            ValueError: requires_grad is neither True nor False.
        """
        requires_grad = check_switch("requires_grad", requires_grad)
        for parameter in self.parameters():
            parameter.requires_grad = requires_grad
        return self

    def to(self, dtype: npt.DTypeLike) -> Self:
        """Store the floats among parameters and buffers in another dtype; returns the module.

        Parameters stay the objects that they are, so ties and optimizers hold; gradients are
        dropped.

        Args:
            dtype: a float dtype, such as "bfloat16" or "float16".

        Raises:
            TypeError: it is none.

        Example:
            >>> from te_nn import Linear
            >>> Linear(2, 1).to("bfloat16").weight.dtype
            dtype(bfloat16)
        """
        wanted = as_dtype(dtype)
        if wanted not in FLOATS:
            raise TypeError(f"a module to {wanted}: expected a float dtype")
        for _, _, _, tensor in self._entries(""):
            if tensor.dtype in FLOATS and tensor.dtype != wanted:
                with no_grad():
                    tensor._array = tensor.detach().astype(wanted)._array
                structure.note()
                tensor.zero_grad()
        return self

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for parameter in self.parameters():
            parameter.zero_grad()

    def apply(self, function: Callable[[Module], None]) -> Self:
        """Call `function` on all modules below this one, then on itself; returns the module."""
        seen: set[int] = set()

        def visit(module: Module) -> None:
            if id(module) not in seen:
                seen.add(id(module))
                for child in module.children():
                    visit(child)
                function(module)

        visit(self)
        return self

    # -- how it looks ---------------------------------------------------------------------

    def extra_repr(self) -> str:
        """What `repr` shows between the brackets of this module itself."""
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in self._shown)

    def __repr__(self) -> str:
        children = [
            f"  ({name}): " + repr(child).replace("\n", "\n  ")
            for name, child in self.named_children()
        ]
        head = f"{type(self).__name__}({self.extra_repr()}"
        return "\n".join([head, *children, ")"]) if children else f"{head})"

    def __reduce__(self) -> Any:
        raise TypeError(
            f"{type(self).__name__} can't be pickled: save its state_dict(), for example with "
            "te_io.save_safetensors, and load that into a module made anew"
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        for name, value in vars(self).items():
            object.__setattr__(copied, name, deepcopy(value, memo))
        return copied


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
