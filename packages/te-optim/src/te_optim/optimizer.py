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

    def __init__(self, settings: dict[str, Any], parameters: Parameters | None) -> None:
        self._check(settings)
        self._settings = settings
        self.groups: list[dict[str, Any]] = []
        self._state: list[dict[str, Any]] = []
        self._bound = parameters is not None
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
            if isinstance(value, bool):
                continue
            if not isinstance(value, (int, float, np.number)) or not isfinite(value) or value < 0:
                raise ValueError(f"{name} is {value!r}: expected a number of at least 0")
            if name in ("beta1", "beta2") and value >= 1:
                raise ValueError(f"{name} is {value!r}: expected 0 … below 1")

    # -- parameters -----------------------------------------------------------------------

    def _adopt(self, parameters: Parameters) -> None:
        """Take the parameters over, with fresh state."""
        given: list[Any] = list(parameters)
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
        given = list(parameters)
        if not self.groups:
            self._adopt(given)
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
        self._resolve(parameters)
        position = 0
        for group in self.groups:
            for tensor in group[_KEY]:
                if tensor.grad is not None:
                    grad = tensor.grad.data
                    with tensor.lock() as array:
                        self._update(array, grad, self._state[position], group)
                position += 1

    def zero_grad(self, parameters: Iterable[Tensor] | None = None) -> None:
        """Drop the gradients.

        Args:
            parameters: the parameters, unless they were bound.
        """
        for tensor in self._resolve(parameters):
            tensor.zero_grad()

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
            state: the state.

        Raises:
            ValueError: it is of another kind of optimizer or of other parameters; nothing was
                changed.
        """
        tensors = self._resolve(None)
        if not isinstance(state, Mapping) or set(state) != {"groups", "state"}:
            raise ValueError("no state of an optimizer: expected the keys 'groups' and 'state'")
        layout = [len(group[_KEY]) for group in self.groups]
        given = [len(group[_KEY]) for group in state["groups"]]
        if layout != given:
            raise ValueError(f"the state has groups of {given} parameters: expected {layout}")
        wanted = {*self._settings, _KEY}
        for group in state["groups"]:
            if set(group) != wanted:
                raise ValueError(
                    f"the state's settings are {sorted(group)}: expected {sorted(wanted)}"
                )
            self._check({name: value for name, value in group.items() if name != _KEY})
        if len(state["state"]) != len(tensors):
            raise ValueError(
                f"the state is of {len(state['state'])} parameters: expected {len(tensors)}"
            )
        entries = [
            self._checked_entry(position, entry, tensor)
            for position, (entry, tensor) in enumerate(zip(state["state"], tensors, strict=True))
        ]
        self._state = entries
        for group, loaded in zip(self.groups, state["groups"], strict=True):
            group.update({name: value for name, value in loaded.items() if name != _KEY})

    def _checked_entry(
        self, position: int, entry: Mapping[str, Any], tensor: Tensor
    ) -> dict[str, Any]:
        """One parameter's state, its arrays copied; their names and shapes must fit."""
        copied: dict[str, Any] = {}
        for name, value in entry.items():
            if name in self._arrays:
                array = np.array(value)
                if array.shape != tensor.shape:
                    raise ValueError(
                        f"{name} of parameter {position} has shape {array.shape}: "
                        f"expected {tensor.shape}"
                    )
                copied[name] = array
            elif name == "step":
                copied[name] = int(value)
            else:
                raise ValueError(f"parameter {position} has unknown state {name!r}")
        return copied
