"""The base of optimizers: parameters, groups, both calling styles, state."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import isfinite
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from te_tensor import Tensor

Array: TypeAlias = npt.NDArray[Any]
#: Parameters, or groups of them with settings of their own under the settings' names.
Parameters: TypeAlias = Iterable[Tensor] | Sequence[Mapping[str, Any]]
#: What a group holds besides its settings.
_KEY = "parameters"


class Optimizer:
    """Changes parameters after their gradients.

    Either bind the parameters, `SGD(lr=0.1, parameters=model.parameters())`, and call `step()`
    and `zero_grad()`; or give them with each call, `step(model.parameters())`. They must be the
    same ones in the same order every time.

    A subclass lists its settings and updates one parameter.

    Args:
        settings: the settings of groups that have none of their own, by name.
        parameters: tensors, or groups: dicts with "parameters" and any of the settings.
    """

    #: Names of the arrays that a subclass keeps for each parameter.
    _arrays: tuple[str, ...] = ()
    #: Whether it counts the steps of each parameter.
    _counts_steps: bool = False
    #: Names of settings that are True or False.
    _switches: tuple[str, ...] = ()

    def __init__(self, settings: dict[str, Any], parameters: Parameters | None) -> None:
        self._settings: dict[str, Any] = {}
        self._check(settings)
        self._settings = settings
        self.groups: list[dict[str, Any]] = []
        self._state: list[dict[str, Any]] = []
        #: A state that was loaded before there were parameters.
        self._waiting: Mapping[str, Any] | None = None
        if parameters is not None:
            self._adopt(parameters)

    # -- settings -------------------------------------------------------------------------

    @property
    def lr(self) -> float:
        """The learning rate of the first group; setting it sets that of all groups."""
        first: float = (self.groups[0] if self.groups else self._settings)["lr"]
        return first

    @lr.setter
    def lr(self, value: float) -> None:
        self._check({"lr": value})
        self._settings["lr"] = value
        for group in self.groups:
            group["lr"] = value

    def _check(self, settings: Mapping[str, Any]) -> None:
        """Hold that settings are in their ranges."""
        for name, value in settings.items():
            if name in self._switches:
                if not isinstance(value, bool):
                    raise ValueError(f"{name} is {value!r}: expected True or False")
                continue
            number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
            if not number or not isfinite(value) or value < 0:
                raise ValueError(f"{name} is {value!r}: expected a number of at least 0")
            if name in ("beta1", "beta2") and value >= 1:
                raise ValueError(f"{name} is {value!r}: expected 0 … below 1")

    # -- parameters -----------------------------------------------------------------------

    def _adopt(self, parameters: Parameters) -> None:
        """Take the parameters over, with fresh state."""
        given: list[Any] = [parameters] if isinstance(parameters, Tensor) else list(parameters)
        grouped = bool(given) and all(isinstance(group, Mapping) for group in given)
        groups = [dict(group) for group in given] if grouped else [{_KEY: given}]
        for group in groups:
            self._check_group(group)
        tensors = [tensor for group in groups for tensor in group[_KEY]]
        if not tensors:
            raise ValueError("the optimizer got no parameters: expected at least one tensor")
        if len({id(tensor) for tensor in tensors}) < len(tensors):
            raise ValueError("a parameter was given twice: expected each once")
        self.groups = [{**self._settings, **group} for group in groups]
        self._state = [{} for _ in tensors]

    def _check_group(self, group: dict[str, Any]) -> None:
        if _KEY not in group:
            raise ValueError(f"a group has the keys {sorted(group)}: expected {_KEY!r} among them")
        unknown = sorted(set(group) - {_KEY, *self._settings})
        if unknown:
            known = ", ".join(self._settings)
            raise ValueError(f"a group has unknown settings {unknown}: expected any of {known}")
        self._check({name: value for name, value in group.items() if name != _KEY})
        tensors = group[_KEY]
        group[_KEY] = [tensors] if isinstance(tensors, Tensor) else list(tensors)
        for tensor in group[_KEY]:
            if not isinstance(tensor, Tensor):
                raise TypeError(f"a parameter is a {type(tensor).__name__}: expected a Tensor")
            if not tensor.is_leaf:
                raise ValueError("a parameter is the result of an operation: expected a leaf")

    def _tensors(self) -> list[Tensor]:
        return [tensor for group in self.groups for tensor in group[_KEY]]

    def _resolve(self, parameters: Iterable[Tensor] | None) -> list[Tensor]:
        """The parameters of a call: those bound, or those given, which mustn't change."""
        if parameters is None:
            if not self.groups:
                raise ValueError(
                    "no parameters: bind them with parameters=…, or give them to every call"
                )
            return self._tensors()
        given = [parameters] if isinstance(parameters, Tensor) else list(parameters)
        if not self.groups:
            self._adopt(given)
            if self._waiting is not None:
                waiting, self._waiting = self._waiting, None
                self.load_state_dict(waiting)
        own = self._tensors()
        if len(own) != len(given) or any(a is not b for a, b in zip(own, given, strict=True)):
            raise ValueError(
                f"the parameters changed: got {len(given)} tensors, expected the same {len(own)} "
                "as before, in the same order; make a new optimizer for others"
            )
        return given

    # -- the two calls --------------------------------------------------------------------

    def step(self, parameters: Iterable[Tensor] | None = None) -> None:
        """Change every parameter that has a gradient.

        Args:
            parameters: the parameters, unless they were bound.

        Raises:
            ValueError: there are none, or others than before.
        """
        for tensor in self._resolve(parameters):
            if tensor.grad is not None and not tensor.writable:
                raise ValueError(f"a parameter of shape {tensor.shape} has read-only memory")
        states = iter(self._state)
        with np.errstate(all="ignore"):
            for group in self.groups:
                for tensor, state in zip(group[_KEY], states, strict=False):
                    if tensor.grad is not None:
                        grad = tensor.grad.data
                        with tensor.lock() as array:
                            self._update_wide(array, grad, state, group)

    def zero_grad(self, parameters: Iterable[Tensor] | None = None) -> None:
        """Drop the gradients.

        Args:
            parameters: the parameters, unless they were bound.
        """
        for tensor in self._resolve(parameters):
            tensor.zero_grad()

    def _update_wide(
        self, array: Array, grad: Array, state: dict[str, Any], group: dict[str, Any]
    ) -> None:
        """Update in float32 or float64; a parameter that is stored small is rounded once."""
        wide = state_dtype(array.dtype)
        if wide == array.dtype:
            self._update(array, grad, state, group)
            return
        work = array.astype(wide)
        self._update(work, grad.astype(wide), state, group)
        array[...] = work

    def _update(
        self, array: Array, grad: Array, state: dict[str, Any], group: dict[str, Any]
    ) -> None:
        """Change one parameter in place; a subclass defines it."""
        raise NotImplementedError(f"{type(self).__name__} has no update rule")

    # -- state ----------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What resuming needs, the parameters themselves excepted.

        Returns:
            "groups": the settings of each group with the positions of its parameters;
            "state": for each parameter, in order, a dict of Tensors and numbers.
        """
        groups = []
        start = 0
        for group in self.groups:
            count = len(group[_KEY])
            settings = {name: value for name, value in group.items() if name != _KEY}
            groups.append({**settings, _KEY: list(range(start, start + count))})
            start += count
        state = [
            {k: Tensor(v) if isinstance(v, np.ndarray) else v for k, v in entry.items()}
            for entry in self._state
        ]
        return {"groups": groups, "state": state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state that `state_dict` gave, with parameters of the same shapes.

        Args:
            state: the state. Where parameters are given with each call, it is taken over, and
                checked, when they first are.

        Raises:
            ValueError: it is of another kind of optimizer or of other parameters; nothing was
                changed.
        """
        if not self.groups:
            self._waiting = state
            return
        tensors = self._tensors()
        groups, entries = self._parts_of(state)
        layout = [len(group[_KEY]) for group in self.groups]
        given = [len(group[_KEY]) for group in groups]
        if layout != given:
            raise ValueError(f"the state has groups of {given} parameters: expected {layout}")
        for group in groups:
            self._check({name: value for name, value in group.items() if name != _KEY})
        if len(entries) != len(tensors):
            raise ValueError(f"the state is of {len(entries)} parameters: expected {len(tensors)}")
        settings = [group for group in groups for _ in group[_KEY]]
        checked = [
            self._checked_entry(position, *each)
            for position, each in enumerate(zip(entries, tensors, settings, strict=True))
        ]
        self._state = checked
        for group, loaded in zip(self.groups, groups, strict=True):
            group.update({name: value for name, value in loaded.items() if name != _KEY})

    def _parts_of(self, state: Any) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
        """The groups and the parameters' states, if it is such a state at all."""
        if not isinstance(state, Mapping) or set(state) != {"groups", "state"}:
            raise ValueError("no state of an optimizer: expected the keys 'groups' and 'state'")
        wanted = {*self._settings, _KEY}
        for name, keys in (("groups", wanted), ("state", None)):
            if not isinstance(state[name], (list, tuple)):
                raise ValueError(f"the state's {name} is {state[name]!r}: expected a list")
            for entry in state[name]:
                if not isinstance(entry, Mapping) or keys not in (None, set(entry)):
                    given = sorted(entry) if isinstance(entry, Mapping) else entry
                    raise ValueError(f"the state's settings are {given}: expected {sorted(wanted)}")
        return list(state["groups"]), list(state["state"])

    def _arrays_for(self, settings: Mapping[str, Any]) -> tuple[str, ...]:
        """The names of the arrays that these settings need."""
        return self._arrays

    def _checked_entry(
        self, position: int, entry: Mapping[str, Any], tensor: Tensor, settings: Mapping[str, Any]
    ) -> dict[str, Any]:
        """One parameter's state, its arrays copied; nothing, or all that the settings need."""
        needed = {*self._arrays_for(settings), *(("step",) if self._counts_steps else ())}
        if entry and set(entry) != needed:
            raise ValueError(
                f"parameter {position} has the state {sorted(entry)}: expected {sorted(needed)}"
            )
        copied: dict[str, Any] = {}
        for name, value in entry.items():
            if name == "step":
                if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
                    raise ValueError(
                        f"step of parameter {position} is {value!r}: expected 1 or more"
                    )
                copied[name] = int(value)
                continue
            array = np.array(value)
            if array.shape != tensor.shape or array.dtype.kind != "f":
                raise ValueError(
                    f"{name} of parameter {position} is {array.dtype} of shape {array.shape}: "
                    f"expected floats of shape {tensor.shape}"
                )
            copied[name] = array.astype(state_dtype(tensor.dtype))
        return copied


def state_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype of a parameter's state: float32 for parameters that are stored small."""
    return dtype if dtype.itemsize >= 4 else np.dtype(np.float32)
