"""The base of optimizers: parameters, groups, both calling styles, state."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import count
from operator import is_
from typing import Any, TypeAlias

import numpy as np

from te_tensor import Tensor, storage
from te_tensor.checks import check_switch
from te_tensor.dtypes import FLOATS, Array, DType
from te_tensor.tensor import arrays_of

from .arena import MASTER, Arena
from .checks import as_tensors, check_count, check_number
from .direct import carry_out
from .gradients import check_finite
from .plan import Plan
from .plan import Rule as Rule

#: Parameters, or groups of them with settings of their own under the settings' names.
Parameters: TypeAlias = Iterable[Tensor] | Sequence[Mapping[str, Any]]
#: Takes a number to an array without axes, the quickest operand there is.
Scalar: TypeAlias = Callable[[float], Array]
#: What a group holds besides its settings.
KEY = "parameters"


class Optimizer:
    """Changes parameters after their gradients.

    Either bind the parameters, `SGD(lr=0.1, parameters=model.parameters())`, and call `step()`
    and `zero_grad()`; or give them with each call, `step(model.parameters())`. They must be the
    same ones in the same order every time.

    A subclass names its settings and its state, and defines `_rule`; SGD is a short one to read.

    Args:
        settings: the settings of groups that have none of their own, by name.
        parameters: tensors, or groups: dicts with "parameters" and any of the settings.

    Attributes:
        groups: a dict for each group, with its settings and its "parameters", a tuple. Settings
            may be changed between steps.
        base_lrs: the groups' learning rates before the first schedule; None without a schedule,
            or after `lr` was set.

    Raises:
        TypeError: a parameter is no Tensor.
        ValueError: a setting is out of range, or unknown; there are no parameters, one stands
            twice, or one is no leaf or of no floats.

    Example:
        >>> import te_tensor as te
        >>> class SignDescent(Optimizer):
        ...     def __init__(self, lr, *, parameters=None):
        ...         super().__init__({"lr": lr}, parameters)
        ...     def _rule(self, settings, step, scalar):
        ...         lr = scalar(settings["lr"])
        ...         def rule(values, gradient):
        ...             values -= lr * np.sign(gradient)
        ...         return rule
        >>> w = te.Tensor([1.0, -1.0], requires_grad=True)
        >>> optimizer = SignDescent(0.25, parameters=[w])
        >>> (w * w).sum().backward()
        >>> optimizer.step()
        >>> w.tolist()
        [0.75, -0.75]
    """

    #: Names of the arrays that a subclass keeps, a value for each of a parameter's.
    _arrays: tuple[str, ...] = ()
    #: Names of settings that are True or False.
    _switches: tuple[str, ...] = ()
    #: Names of settings that are shares, from 0 to below 1.
    _shares: tuple[str, ...] = ()

    def __init__(self, settings: dict[str, Any], parameters: Parameters | None) -> None:
        self._check(settings)
        self._settings = settings
        self.groups: list[dict[str, Any]] = []
        #: The groups as they were when their settings were last checked.
        self._checked: list[dict[str, Any]] = []
        self.base_lrs: list[float] | None = None
        self._arenas: list[Arena] = []
        self._tensors: list[Tensor] = []
        self._plan: Plan | None = None
        #: A state that was loaded before there were parameters.
        self._waiting: Mapping[str, Any] | None = None
        if parameters is not None:
            self._adopt(parameters)

    # -- settings -------------------------------------------------------------------------

    @property
    def lr(self) -> float:
        """The learning rate of the first group, at least 0; setting it sets that of all groups."""
        first: float = (self.groups[0] if self.groups else self._settings)["lr"]
        return first

    @lr.setter
    def lr(self, value: float) -> None:
        self._check({**self._settings, "lr": value})
        self._settings["lr"] = value
        self.base_lrs = None
        for group in self.groups:
            group["lr"] = value

    def _check(self, settings: Mapping[str, Any]) -> None:
        """Hold that settings, all of them by name, are in their ranges."""
        for name, value in settings.items():
            if name in self._switches:
                check_switch(name, value)
            elif name in self._shares:
                check_number(name, value, least=0, below=1)
            else:
                check_number(name, value, least=0)

    # -- parameters -----------------------------------------------------------------------

    def _adopt(self, parameters: Parameters) -> None:
        """Take the parameters over, with fresh state."""
        given: list[Any] = [parameters] if isinstance(parameters, Tensor) else list(parameters)
        grouped = bool(given) and all(isinstance(group, Mapping) for group in given)
        groups = [self._group(group) for group in (given if grouped else [{KEY: given}])]
        tensors = [tensor for group in groups for tensor in group[KEY]]
        if not tensors:
            raise ValueError("the optimizer got no parameters: expected at least one tensor")
        if len({id(tensor) for tensor in tensors}) < len(tensors):
            raise ValueError("a parameter was given twice: expected each once")
        Plan.check_apart(arrays_of(tensors))
        shapes: dict[tuple[int, DType], dict[int, tuple[int, ...]]] = {}
        places = count()
        for number, group in enumerate(groups):
            for tensor in group[KEY]:
                shapes.setdefault((number, tensor.dtype), {})[next(places)] = tensor.shape
        self._arenas = [Arena(number, own, dtype) for (number, dtype), own in shapes.items()]
        self._tensors = tensors
        self.groups = groups

    def _group(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """A group with all its settings."""
        if KEY not in given:
            raise ValueError(f"a group has the keys {sorted(given)}: expected {KEY!r} among them")
        unknown = sorted(set(given) - {KEY, *self._settings})
        if unknown:
            known = ", ".join(self._settings)
            raise ValueError(f"a group has unknown settings {unknown}: expected any of {known}")
        group = {**self._settings, **given, KEY: tuple(as_tensors(given[KEY]))}
        self._check(_settings_of(group))
        for tensor in group[KEY]:
            if not tensor.is_leaf:
                raise ValueError("a parameter is the result of an operation: expected a leaf")
            if tensor.dtype not in FLOATS:
                raise ValueError(f"a parameter is of {tensor.dtype}: expected floats")
        return group

    def _resolve(self, parameters: Iterable[Tensor] | None) -> list[Tensor]:
        """The parameters of a call: those bound, or those given, which mustn't change."""
        if parameters is None:
            if not self.groups:
                raise ValueError(
                    "no parameters: bind them with parameters=…, or give them to every call"
                )
            given = [tensor for group in self.groups for tensor in group[KEY]]
        else:
            given = as_tensors(parameters)
        if not self.groups:
            self._begin(given)
        own = self._tensors
        if len(own) != len(given) or not all(map(is_, own, given)):
            raise ValueError(
                f"the parameters changed: got {len(given)} tensors, expected the same {len(own)} "
                "as before, in the same order; make a new optimizer for others"
            )
        return own

    def _begin(self, given: list[Tensor]) -> None:
        """Adopt the parameters of the first call, with the state that was loaded for them."""
        self._adopt(given)
        if self._waiting is not None:
            try:
                self.load_state_dict(self._waiting)
            except ValueError:
                self.groups, self._arenas, self._tensors = [], [], []
                raise
            self._waiting = None

    # -- the two calls --------------------------------------------------------------------

    def step(
        self, parameters: Iterable[Tensor] | None = None, *, error_if_nonfinite: bool = False
    ) -> None:
        """Change every parameter that has a gradient.

        Args:
            parameters: the parameters, unless they were bound.
            error_if_nonfinite: raise where a gradient has an inf or a NaN, instead of using it.

        Raises:
            ValueError: there are none, or others than before; a setting is out of range; a
                parameter can't be written to, or is on the memory of another. Nothing was changed.
            FloatingPointError: a gradient isn't finite, and that was to raise; nothing was changed.
        """
        tensors = self._resolve(parameters)
        if self.groups != self._checked:
            for group in self.groups:
                self._check(_settings_of(group))
            self._checked = [dict(group) for group in self.groups]
        grads = [tensor.grad for tensor in tensors]
        present = [grad for grad in grads if grad is not None]
        gradients: list[Array | None] = [*arrays_of(present)]
        arrays: list[Array | None] = [*arrays_of(tensors)]
        if len(present) < len(grads):
            found = iter(gradients)
            gradients = [None if grad is None else next(found) for grad in grads]
            arrays = [None if g is None else a for g, a in zip(grads, arrays, strict=True)]
        if error_if_nonfinite:
            check_finite(gradients)
        if self._plan is None or not self._plan.fits(arrays):
            self._plan = Plan(self._arenas, arrays)
        with storage.writing(self._plan.records), np.errstate(all="ignore"):
            self._carry_out(self._plan, gradients)

    def _carry_out(self, plan: Plan, gradients: Sequence[Array | None]) -> None:
        tasks = []
        for run in plan.runs:
            group, arena = self.groups[run.arena.group], run.arena
            scalar = partial(np.array, dtype=arena.wide)
            initial = {name: self._initial(name, group) for name in self._arrays_for(group)}
            rule = self._rule(group, run.step + 1, scalar)
            tasks += run.tasks(rule, gradients, initial)
        carry_out(tasks, plan.size)
        for run in plan.runs:
            if run.arena.state:  # without any state there is nothing to count for
                run.arena.steps[run.members] += 1

    def zero_grad(self, parameters: Iterable[Tensor] | None = None) -> None:
        """Drop the gradients.

        Args:
            parameters: the parameters, unless they were bound.
        """
        for tensor in self._resolve(parameters):
            tensor.zero_grad()

    # -- what a subclass defines ----------------------------------------------------------

    def _rule(self, settings: Mapping[str, Any], step: int, scalar: Scalar) -> Rule:
        """The update rule of one step.

        Args:
            settings: those of the group.
            step: the number of the step, from 1.
            scalar: takes a number to the dtype that the rule works in.

        Returns:
            A function of flat arrays: the values, which it changes in place, their gradient,
            which it doesn't, and the arrays of `_arrays_for`, which it changes in place. A
            `formula` gives one that can run as machine code.
        """
        raise NotImplementedError(f"{type(self).__name__} has no update rule")

    def _arrays_for(self, settings: Mapping[str, Any]) -> tuple[str, ...]:
        """The names of the arrays, a value for each of a parameter's, that these settings need."""
        return self._arrays

    def _initial(self, name: str, settings: Mapping[str, Any]) -> float:
        """What the array of this name begins with."""
        return 0.0

    # -- state ----------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What resuming needs, the parameters themselves excepted.

        Returns:
            "optimizer": the kind; "groups": the settings of each group with the positions of its
            parameters; "state": for each parameter, in order, a dict of Tensors and "step", or {}
            where there is nothing to keep. Where a loaded state still waits for its parameters,
            that state.
        """
        if self._waiting is not None:
            return copy.deepcopy(dict(self._waiting))
        positions = iter(range(len(self._tensors)))
        groups = [
            {**_settings_of(group), KEY: [next(positions) for _ in group[KEY]]}
            for group in self.groups
        ]
        state: list[dict[str, Any]] = [{} for _ in self._tensors]
        for arena in self._arenas:
            for index, place in enumerate(arena.places):
                state[place] = {
                    name: Tensor(value) if isinstance(value, np.ndarray) else value
                    for name, value in arena.entry(index).items()
                }
        return {"optimizer": type(self).__name__, "groups": groups, "state": state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state that `state_dict` gave, with parameters of the same shapes.

        Args:
            state: the state. Where parameters are given with each call, it is taken over, and
                checked against them, when they first are.

        Raises:
            ValueError: it is of another kind of optimizer or of other parameters; nothing was
                changed.
        """
        groups, entries = self._parts_of(state)
        if not self.groups:
            self._waiting = copy.deepcopy(dict(state))
            return
        layout = [len(group[KEY]) for group in self.groups]
        given = [len(group[KEY]) for group in groups]
        if layout != given:
            raise ValueError(f"the state has groups of {given} parameters: expected {layout}")
        for group in groups:
            self._check(_settings_of(group))
        if len(entries) != sum(layout):
            raise ValueError(f"the state is of {len(entries)} parameters: expected {sum(layout)}")
        checked = [
            [
                self._checked_entry(arena, index, entries[place], groups[arena.group])
                for index, place in enumerate(arena.places)
            ]
            for arena in self._arenas
        ]
        for group, loaded in zip(self.groups, groups, strict=True):
            group.update(_settings_of(loaded))
        for arena, filling in zip(self._arenas, checked, strict=True):
            arena.fill(filling, partial(self._initial, settings=self.groups[arena.group]))
        self._plan = None

    def _parts_of(self, state: Any) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
        """The groups and the parameters' states, if it is a state of such an optimizer at all."""
        kind = type(self).__name__
        if not isinstance(state, Mapping) or set(state) != {"optimizer", "groups", "state"}:
            keys = sorted(map(str, state)) if isinstance(state, Mapping) else state
            raise ValueError(f"got {keys!r}: expected the keys optimizer, groups and state")
        if state["optimizer"] != kind:
            raise ValueError(f"the state is of {state['optimizer']}: expected one of {kind}")
        wanted = {*self._settings, KEY}
        for name, keys in (("groups", wanted), ("state", None)):
            if not isinstance(state[name], (list, tuple)):
                raise ValueError(f"the state's {name} is {state[name]!r}: expected a list")
            for entry in state[name]:
                if not isinstance(entry, Mapping) or keys not in (None, set(entry)):
                    given = sorted(entry) if isinstance(entry, Mapping) else entry
                    raise ValueError(f"the state's settings are {given}: expected {sorted(wanted)}")
        return list(state["groups"]), list(state["state"])

    def _checked_entry(
        self, arena: Arena, index: int, entry: Mapping[str, Any], settings: Mapping[str, Any]
    ) -> dict[str, Any]:
        """One parameter's state as numbers and arrays: nothing, or all that the settings need."""
        place, shape = arena.places[index], arena.shapes[index]
        master = (MASTER,) if arena.stores_small else ()
        known = {"step", *self._arrays, *master}
        needed = {"step", *self._arrays_for(settings), *master}
        if entry and not needed <= set(entry) <= known:
            raise ValueError(
                f"parameter {place} has the state {sorted(entry)}: expected {sorted(needed)}"
            )
        checked: dict[str, Any] = {}
        for name, value in entry.items():
            if name == "step":
                check_count(f"step of parameter {place}", value, least=1)
                checked[name] = int(value)
                continue
            array = np.asarray(value)
            if array.shape != shape or array.dtype.kind != "f":
                raise ValueError(
                    f"{name} of parameter {place} is {array.dtype} of shape {array.shape}: "
                    f"expected floats of shape {shape}"
                )
            checked[name] = array
        return checked

    def __getstate__(self) -> dict[str, Any]:
        """For copies: all but the plan, which knows the memory of these parameters."""
        return {**vars(self), "_plan": None}


def _settings_of(group: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name != KEY}
