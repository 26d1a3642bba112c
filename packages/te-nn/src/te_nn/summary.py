"""What a model is made of: layers, shapes, parameters, bytes and multiply-adds, as a table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from te_tensor import Tensor, modes

from .module import Module


@dataclass
class LayerSummary:
    """One module of a model, with all below it.

    Attributes:
        path: its path, "" for the model.
        kind: the name of its class.
        output_shape: the shape of its last result (a tuple of shapes for several tensors); None
            where it wasn't called.
        parameters: how many numbers it can learn, shared ones once; frozen ones included.
        nbytes: bytes of parameters and buffers.
        multiply_adds: those of matrix products, attention, convolutions and recurrent layers.
    """

    path: str
    kind: str
    output_shape: tuple[Any, ...] | None = None
    parameters: int = 0
    nbytes: int = 0
    multiply_adds: int = 0


@dataclass
class Summary:
    """What `summary` found; printed, a table.

    Attributes:
        layers: the model first, then what is below it, in order.
        trainable: how many of the parameters are learnt.
    """

    layers: list[LayerSummary]
    trainable: int

    @property
    def parameters(self) -> int:
        """How many parameters the model has."""
        return self.layers[0].parameters

    @property
    def nbytes(self) -> int:
        """Bytes of the model's parameters and buffers."""
        return self.layers[0].nbytes

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of one forward pass."""
        return self.layers[0].multiply_adds

    def __str__(self) -> str:
        head = ("layer", "output shape", "parameters", "bytes", "multiply-adds")
        rows = [head, *(_cells(layer) for layer in self.layers)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
        lines = [
            "  ".join(
                cell.ljust(width) if column < 2 else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]
        lines.insert(1, "-" * max(map(len, lines)))
        frozen = self.parameters - self.trainable
        lines.append(
            f"{self.parameters:,} parameters ({frozen:,} of them frozen), {self.nbytes:,} bytes, "
            f"{self.multiply_adds:,} multiply-adds"
        )
        return "\n".join(lines)


def _cells(layer: LayerSummary) -> tuple[str, ...]:
    depth = layer.path.count(".") + 1 if layer.path else 0
    name = layer.path.rpartition(".")[2]
    label = f"{'  ' * depth}{name} ({layer.kind})" if name else layer.kind
    shape = "" if layer.output_shape is None else str(layer.output_shape)
    numbers = (layer.parameters, layer.nbytes, layer.multiply_adds)
    return (label, shape, *(f"{number:,}" for number in numbers))


@dataclass
class _Recorder:
    """Notes every operation with the modules that were running then."""

    running: list[Module] = field(default_factory=list)
    applied: list[tuple[Any, list[Module]]] = field(default_factory=list)
    shapes: dict[int, tuple[Any, ...] | None] = field(default_factory=dict)

    def note(self, operation: Any, forward: bool, seconds: float, made: Sequence[Any]) -> None:
        """The engine calls it with each operation."""
        self.applied.append((operation, list(self.running)))

    def enter(self, module: Module, args: tuple[Any, ...]) -> None:
        self.running.append(module)

    def leave(self, module: Module, args: tuple[Any, ...], result: Any) -> None:
        self.running.pop()
        self.shapes[id(module)] = _shape(result)

    def multiply_adds(self) -> dict[int, int]:
        """Those of each module, by id."""
        counts: dict[int, int] = {}
        for operation, running in self.applied:
            if not hasattr(operation, "multiply_adds"):
                continue
            count = operation.multiply_adds()
            for module in {id(module): module for module in running}.values():
                counts[id(module)] = counts.get(id(module), 0) + count
        return counts


def summary(module: Module, *example: Any, **options: Any) -> Summary:
    """Run a model on an example, and list its layers.

    The model runs in evaluation mode without gradients, and is left as it was.

    Args:
        module: the model.
        *example: what it is called with.
        **options: keyword arguments of the call.

    Returns:
        The layers with output shapes, parameters, bytes and multiply-adds; printed, a table.

    Raises:
        TypeError: module is something else.

    Example:
        >>> import te_tensor as te
        >>> from te_nn import Linear, ReLU, Sequential
        >>> print(summary(Sequential(Linear(4, 8), ReLU()), te.ones(2, 4)))
        layer         output shape  parameters  bytes  multiply-adds
        ------------------------------------------------------------
        Sequential    (2, 8)                40    160             64
          0 (Linear)  (2, 8)                40    160             64
          1 (ReLU)    (2, 8)                 0      0              0
        40 parameters (0 of them frozen), 160 bytes, 64 multiply-adds
    """
    if not isinstance(module, Module):
        raise TypeError(f"summary got a {type(module).__name__}: expected a Module")
    recorder = _Recorder()
    listed = list(module.named_modules())
    with ExitStack() as stack:
        stack.enter_context(_evaluating(listed))
        for _, each in listed:
            stack.enter_context(each.register_forward_pre_hook(recorder.enter, prepend=True))
            stack.enter_context(each.register_forward_hook(recorder.leave))
        stack.enter_context(modes.modes_set(profile=recorder, trace=True, grad=False))
        module(*example, **options)
    counts = recorder.multiply_adds()
    layers = []
    for path, each in listed:
        parameters = list(each.parameters())
        stored = [*parameters, *each.buffers()]
        layers.append(
            LayerSummary(
                path,
                type(each).__name__,
                recorder.shapes.get(id(each)),
                sum(parameter.size for parameter in parameters),
                sum(tensor.nbytes for tensor in stored),
                counts.get(id(each), 0),
            )
        )
    trainable = sum(p.size for p in module.parameters() if p.requires_grad)
    return Summary(layers, trainable)


@contextmanager
def _evaluating(listed: Sequence[tuple[str, Module]]) -> Iterator[None]:
    before = [module.training for _, module in listed]
    for _, module in listed:
        module.training = False
    try:
        yield
    finally:
        for (_, module), training in zip(listed, before, strict=True):
            module.training = training


def _shape(result: Any) -> tuple[Any, ...] | None:
    if isinstance(result, Tensor):
        return result.shape
    if isinstance(result, (tuple, list)):
        return tuple(_shape(part) for part in result)
    return None
