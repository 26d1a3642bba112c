"""What modules one after the other do while they train, both directions as two calls.

Small layers take less time than Python takes around them. Where nothing wants to see the
operations, a `Sequential` of layers that always apply the same ones is a single node of the graph.
Which operations these are is seen from what the layers make of the first input of a shape.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias
from weakref import WeakKeyDictionary

import te_tensor as te
from te_tensor import Tensor, modes
from te_tensor.dtypes import Array, float32
from te_tensor.machine import runs_programs
from te_tensor.operation import Operation
from te_tensor.recorder import Recorder, Unrecorded
from te_tensor.recording import Recording, Replay
from te_tensor.tensor import arrays_of

from .module import Module, Parameter
from .recordings import is_known, recording_of
from .structure import structure

if TYPE_CHECKING:
    from .container import Sequential

#: Recordings that modules get before any is run, and runs that are worth one more: making one takes
#: as long as some ten of them.
_FIRST, _RUNS = 8, 8
#: Operations in the order in which they are applied, with what they are given, and the result.
_Trace: TypeAlias = "tuple[list[tuple[Operation, Tensor]], Tensor, Tensor]"


class _Known:
    """What is known of modules in a row, until the structure of any module changes."""

    def __init__(self, sequence: Sequential) -> None:
        self.changes = structure.changes
        self.layers = list(_layers(sequence))
        # In the order in which their gradients come, so that hooks are called as layer by layer.
        parameters = [p for m in reversed(self.layers) for p in m.parameters()]
        self.parameters = list(dict.fromkeys(parameters))
        #: What the operations depend on; None where modules may apply others.
        self.settings: Hashable = None
        if len(self.layers) > 1 and all(map(_is_recorded, self.layers)):
            order = {id(p): number for number, p in enumerate(self.parameters)}
            settings = [_settings(layer, order) for layer in self.layers]
            if None not in settings:
                self.settings = tuple(settings)


def _layers(sequence: Sequential) -> Iterator[Module]:
    for module in sequence.children():
        # A class that inherits may do something else.
        if vars(type(module)).get("_one_by_one", False) and module.is_plainly(type(module)):
            yield from _layers(module)  # type: ignore[arg-type]
        else:
            yield module


def _is_recorded(layer: Module) -> bool:
    return layer.is_plainly(type(layer)) and vars(type(layer)).get("_always_the_same", False)


def _settings(layer: Module, order: dict[int, int]) -> tuple[Any, ...] | None:
    """The class, and all that a module's attributes say; None where they say more than settings."""
    found: list[Any] = [type(layer)]
    for name, value in sorted(vars(layer).items()):
        if isinstance(value, Parameter):
            found.append((name, order[id(value)], value.shape))
        elif name.startswith("_forward"):  # hooks, of which there are none
            continue
        elif _is_setting(value):
            found.append((name, value))
        else:  # somebody added it; a key mustn't keep it alive
            return None
    return tuple(found)


def _is_setting(value: object) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_setting, value))
    return value is None or isinstance(value, (bool, int, float, str, frozenset))


_known: WeakKeyDictionary[Sequential, _Known] = WeakKeyDictionary()
#: How many recordings were made for modules, and how often one was run.
_uses: WeakKeyDictionary[Sequential, Counter[str]] = WeakKeyDictionary()


def run_recorded(sequence: Sequential, x: object) -> Tensor | None:
    """What modules in a row make of an input, or None where they have to run as usual.

    Args:
        sequence: the modules.
        x: the input.
    """
    state = modes.current()
    if not state.grad or state.trace or state.observes or state.part is not None:
        return None
    if not isinstance(x, Tensor) or x.dtype != float32 or x.ndim < 2 or not x.size:
        return None
    known = _known.get(sequence)
    if known is None or known.changes != structure.changes:
        known = _known[sequence] = _Known(sequence)
    tensors = [*known.parameters, x]
    needs = tuple([tensor.requires_grad for tensor in tensors])
    if known.settings is None or True not in needs or not runs_programs(*arrays_of(tensors)):
        return None
    what, uses = (known.settings, x.shape, needs), _uses.setdefault(sequence, Counter())
    if not is_known(what):
        if uses["made"] >= _FIRST + uses["run"] // _RUNS:
            return None  # inputs of ever new shapes
        uses["made"] += 1
    recording = recording_of(what, partial(_record, known, x, needs))
    if recording is None:
        return None
    uses["run"] += 1
    result: Tensor = Tensor.apply(Replay(recording), *tensors)
    return result


def _record(known: _Known, x: Tensor, needs: tuple[bool, ...], tiles: bool) -> Recording:
    try:
        operations, first, last = _trace(known.layers, x)
    except (TypeError, ValueError) as error:  # what the layers raise
        raise Unrecorded(str(error)) from error
    recorder = Recorder(tiles=tiles)
    tensors = *known.parameters, first
    arrays: dict[int, Array] = {
        id(tensor): recorder.input(tensor.shape, needs_grad=needed)
        for tensor, needed in zip(tensors, needs, strict=True)
    }
    for operation, result in operations:
        given = [arrays.get(id(tensor)) for tensor in operation.inputs]
        known_inputs = [array for array in given if array is not None]
        if len(known_inputs) < len(given):
            raise Unrecorded(f"{type(operation).__name__} of something else")
        arrays[id(result)] = recorder.apply(operation, *known_inputs)
    return recorder.finish(arrays[id(last)])


def _trace(layers: list[Module], x: Tensor) -> _Trace:
    """What layers apply to a copy of x, which is returned too."""
    first = result = Tensor(x.numpy().copy(), requires_grad=True)
    with te.enable_grad():
        for layer in layers:
            result = layer.forward(result)
    found: dict[int, tuple[Operation, Tensor]] = {}
    waiting = [result]
    while waiting:
        tensor = waiting[-1]
        given = [] if tensor.creator is None else tensor.creator.inputs
        unseen = [t for t in given if t.creator is not None and id(t) not in found]
        if unseen:
            waiting += unseen
            continue
        waiting.pop()
        if tensor.creator is not None:
            found[id(tensor)] = tensor.creator, tensor
    return list(found.values()), first, result
