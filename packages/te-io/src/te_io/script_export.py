"""Modules as TorchScript archives, which PyTorch runs, made without PyTorch."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from te_tensor import Tensor

from .atomic import replacing
from .errors import FormatError
from .script_arguments import Example, arguments_of
from .script_code import Code
from .script_rules import RULES
from .script_trace import record
from .script_writing import Forward, StateTensor, memory_of, write_script


class Exportable(Protocol):
    """A module, as far as an export knows it."""

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        """Run it."""
        ...

    def state_dict(self) -> Mapping[str, Tensor]:
        """Parameters and buffers by name."""
        ...

    def named_parameters(self) -> Iterable[tuple[str, Tensor]]:
        """The parameters by name."""
        ...


def export_torchscript(
    module: Exportable,
    example_inputs: Example | Sequence[Example] | Mapping[str, Example],
    path: str | os.PathLike[str],
    *,
    batch_axes: int | Sequence[int | None] | None = None,
) -> None:
    """Write a module as a TorchScript archive: `torch.jit.load(path)(x)` gives what it gives.

    The forward runs at batch sizes 2, 3 and 5 and is recorded with `te_tensor.trace()`. Its inputs
    are made of the examples: their rows in another order, floats a little smaller each time. What
    grows with the batch follows `x.size(0)`; all other lengths stay those of the examples.
    Parameters and buffers have their names in the state dict of what PyTorch loads. The module
    isn't changed; call `eval()` on it first, since what only training does can't be exported.

    Only operations are recorded. What else is made of values, by NumPy, comparisons or argmax, is
    a constant of the archive, and branches are those that were taken; it is refused where the runs
    differ in it, so give examples in which they do.

    The archive doesn't check its inputs as te_tensor does: negative distances of an attention,
    for one, don't raise.

    Args:
        module: what to export; something with `state_dict` and `named_parameters`, whose call
            returns a Tensor, or tuples, lists and dicts of such.
        example_inputs: the arguments of the call: one, several in order, or a dict for those that
            are passed by name; an argument may be a tuple, such as an LSTM's state. What the
            archive takes has their order and names.
        path: the file to write, atomically.
        batch_axes: the axis of the batch, or one for each tensor among the arguments (None for
            those that have none). By default axis 0 (axis 1 of a module whose `batch_first` is
            False) of the first, and of the others that are as long there.

    Raises:
        TypeError: the module or the examples are something else.
        ValueError: batch axes that the examples don't have, or of several lengths.
        FormatError: an operation without a rule (`te_io.script_rules` has them), a forward that
            depends on values or on the batch size in another way, or that changes the module.
        OSError: the file can't be written.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import te_tensor as te
        >>> from te_io import load_torchscript
        >>> class Scale:
        ...     def __init__(self):
        ...         self.weight = te.ones(3)
        ...     def __call__(self, x):
        ...         return (x * self.weight).sum(axis=1)
        ...     def state_dict(self):
        ...         return {"weight": self.weight}
        ...     def named_parameters(self):
        ...         return [("weight", self.weight)]
        >>> path = Path(tempfile.mkdtemp(), "scale.pt")
        >>> export_torchscript(Scale(), te.ones(4, 3), path)
        >>> list(load_torchscript(path).parameters)
        ['weight']
    """
    _check_module(module)
    file = os.fspath(path)
    arguments = arguments_of(module, example_inputs)
    axes = arguments.axes(batch_axes, 0 if getattr(module, "batch_first", True) else 1)
    state = _state(module)

    def call(tensors: Sequence[Tensor]) -> Any:
        with _unchanged(state, file):
            return arguments.call(tensors)

    arrays = {name: tensor.array for name, tensor in state.items()}
    graph = record(call, arguments.examples, axes, arrays, file)
    batched = next((i for i, axis in enumerate(axes) if axis is not None), 0)
    size = f"torch.size({arguments.places[batched]}, {axes[batched]})"
    code = Code(graph, arguments.places, size, RULES, file)
    forward = Forward(arguments.types, code.result_type, code.lines)
    with replacing(path) as opened:
        write_script(opened, type(module).__name__, state, forward, code.constants, file)


def _check_module(module: object) -> None:
    missing = [n for n in ("state_dict", "named_parameters") if not hasattr(module, n)]
    if missing or not callable(module):
        raise TypeError(
            f"got {type(module).__name__}: expected a module that can be called and has "
            "state_dict and named_parameters"
        )


def _state(module: Exportable) -> dict[str, StateTensor]:
    """Parameters and buffers by name, as the forward uses them.

    A state dict may hold something else than what is learnt (the softplus of it); the code
    computes with what is learnt.
    """
    parameters = dict(module.named_parameters())
    by_memory = {memory_of(tensor.data): tensor for tensor in parameters.values()}
    state = {}
    for name, stored in module.state_dict().items():
        learnt = parameters[name] if name in parameters else by_memory.get(memory_of(stored.data))
        tensor = stored if learnt is None else learnt
        state[name] = StateTensor(tensor, learnt is not None)
    return state


@contextmanager
def _unchanged(state: Mapping[str, StateTensor], file: str) -> Iterator[None]:
    """What changes a buffer is undone, and refused."""
    before = {name: t.array.copy() for name, t in state.items() if not t.is_parameter}
    changed = []
    try:
        yield
    finally:
        for name, array in before.items():
            if array.tobytes() != state[name].array.tobytes():
                changed.append(name)
                with state[name].tensor.lock() as memory:
                    memory[...] = array
    if changed:
        raise FormatError(
            "forward changes it (it is as before again): call eval() on the module",
            file=file,
            tensor=changed[0],
        )
