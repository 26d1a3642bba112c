"""The unit of the engine: an operation with its forward and backward, on plain ndarrays."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np

from . import storage
from .dtypes import Array
from .hooks import Hooks

#: Takes a place in the order in which operations are applied.
next_place = itertools.count().__next__

#: What `forward` returns.
Outputs: TypeAlias = Array | tuple[Array, ...]
#: What `backward` returns: one gradient per input, None where none is needed.
Gradients: TypeAlias = Sequence[Array | None]

#: Every operation of the engine, by class name.
REGISTRY: dict[str, type[Operation]] = {}


#: The attributes that an instance gets when it is applied, saves, and is walked through.
_SET_ON_THE_WAY = (
    *("sequence", "needs_grad", "saved", "_saved_at", "inputs", "part", "output_count"),
    *("hooks", "origin", "retains_graph"),
)


class Sample:
    """Inputs on which the gradient check runs an operation, clear of its kinks.

    Args:
        *shapes: one shape per input, drawn evenly from [low, high) in float64.
        args: positional arguments of the operation's constructor.
        kwargs: its keyword arguments.
        low: lower bound of the drawn values.
        high: upper bound.
        inputs: arrays to use instead of drawing; a None among them is drawn from its shape.
        nondiff: positions of inputs that have no gradient, such as labels and masks.
        seed: seed of the draw.
    """

    def __init__(
        self,
        *shapes: tuple[int, ...],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        low: float = -1.0,
        high: float = 1.0,
        inputs: Sequence[Any] | None = None,
        nondiff: tuple[int, ...] = (),
        seed: int = 0,
    ) -> None:
        self.shapes = shapes
        self.args = args
        self.kwargs = kwargs or {}
        self.low = low
        self.high = high
        self.inputs = inputs
        self.nondiff = nondiff
        self.seed = seed

    def arrays(self) -> list[Array]:
        """The inputs, float64 unless given otherwise."""
        rng = np.random.default_rng(self.seed)
        given = self.inputs if self.inputs is not None else [None] * len(self.shapes)
        shapes = iter(self.shapes)
        return [
            rng.uniform(self.low, self.high, next(shapes)) if array is None else np.array(array)
            for array in given
        ]

    def __repr__(self) -> str:
        call = [str(shape) for shape in self.shapes]
        call += [f"args={self.args}"] if self.args else []
        call += [f"kwargs={self.kwargs}"] if self.kwargs else []
        return f"Sample({', '.join(call)})"


class Operation:
    """A differentiable function: one instance per application.

    A subclass holds its own parameters, computes `forward` from ndarrays, saves what `backward`
    needs, and lists samples for the gradient check. It never writes into the arrays it is given.
    An instance that has been applied is a node of the graph.

    Example:
        >>> import numpy as np
        >>> import te_tensor as te
        >>> class Square(te.Operation):
        ...     def forward(self, x):
        ...         self.save(x)
        ...         return x * x
        ...     def backward(self, grad):
        ...         (x,) = self.saved
        ...         return (2 * x * grad,)
        >>> x = te.Tensor([3.0], requires_grad=True)
        >>> te.Tensor.apply(Square(), x).backward()
        >>> x.grad.tolist()
        [6.0]
    """

    #: The walk sums gradients back to the shapes of inputs that were broadcast.
    broadcasts: ClassVar[bool] = False
    #: Elements are computed with. Operations that only move or cast them take every dtype as it
    #: is stored; for the others small floats are widened, and storage-only dtypes raise.
    computes: ClassVar[bool] = True
    #: Names of the first inputs, which must have one dtype.
    one_dtype: ClassVar[tuple[str, ...]] = ()
    #: One of the engine's own: the gradients that it returns are new arrays, or those it was
    #: given or saved; what others return may be held anywhere.
    is_ours: ClassVar[bool] = False
    #: Profiles list it; not what only holds other operations.
    profiled: ClassVar[bool] = True
    #: Inputs of the gradient check.
    samples: ClassVar[Sequence[Sample]] = ()

    #: One per input: whether backward must return a gradient for it. Set before forward.
    needs_grad: tuple[bool, ...] = ()
    #: What `save` kept.
    saved: tuple[Any, ...] = ()
    #: The tensors it was applied to (the graph's edges), () once backward has freed them.
    inputs: tuple[Any, ...] = ()
    #: Rises with every application: inputs are always older than what is made of them.
    sequence: int = -1
    #: The part of a sub-graph that it belongs to.
    part: Any = None
    #: Whether the walk that goes through now keeps the graph.
    retains_graph: bool = False
    #: How many outputs forward returned.
    output_count: int = 1
    #: What is called with an output's whole gradient, by the output's index; see
    #: `Tensor.register_hook`.
    hooks: dict[int, Hooks] | None = None
    #: The line that applied it, noted in anomaly mode.
    origin: str | None = None
    _saved_at: int = 0

    def __init_subclass__(cls, abstract: bool = False, **kwargs: Any) -> None:
        """Register the engine's own operations; each must bring samples."""
        super().__init_subclass__(**kwargs)
        cls.is_ours = cls.__module__.startswith("te_tensor.")
        cls._lay_out()
        if abstract or not cls.__module__.startswith("te_tensor.ops."):
            return
        if not cls.samples:
            raise TypeError(f"operation {cls.__name__} has no samples for the gradient check")
        if cls.__name__ in REGISTRY:
            raise TypeError(f"an operation named {cls.__name__} is registered already")
        REGISTRY[cls.__name__] = cls

    @classmethod
    def _lay_out(cls) -> None:
        """Have an instance with all attributes that instances get on their way.

        Python lays instances out alike, for quick access, by what the first thirty or so of a class
        have. Those that backward sets come later than that.
        """
        first = object.__new__(cls)
        for name in _SET_ON_THE_WAY:
            object.__setattr__(first, name, getattr(cls, name))

    def forward(self, *arrays: Any, **unused: Any) -> Outputs:
        """Compute the result, or a tuple of results, from the inputs' arrays."""
        raise NotImplementedError(f"{type(self).__name__} has no forward")

    def backward(self, *grads: Any, **unused: Any) -> Gradients:
        """Compute one gradient per input from one gradient (or None) per output."""
        raise NotImplementedError(f"{type(self).__name__} has no backward")

    #: Optional: as `backward`, with the argument `outs`: for each input an array that the walk
    #: owns, to which the gradient is added and which is then returned in its place, or None.
    backward_into: Callable[..., Gradients] | None = None

    #: Optional: as `forward`, written down in a plan, its first argument; see `plan.py`. Inputs and
    #: the result are memory that stays.
    prepare: Callable[..., Array] | None = None

    #: Optional: forward and backward written down by a recorder, its first argument; see
    #: `recorder.py`. Returns the result, what writes backward down, and which input's gradient
    #: is that of the result, or None. Raises as `forward` for shapes that don't fit.
    record: Callable[..., tuple[Array, Any, int | None]] | None = None

    #: Whether what `record` writes down of backward can write the gradient of the first input where
    #: that of the result is.
    gradient_in_place: ClassVar[bool] = False
    #: What `record` wants of images: their batch innermost in memory, or it takes either; else they
    #: are in C order.
    records_lanes: ClassVar[Literal["wanted", "taken"] | None] = None

    def save(self, *values: Any) -> None:
        """Keep what backward needs; keeps nothing when no input needs a gradient."""
        if True in self.needs_grad:
            self.saved = values

    def check_unchanged(self) -> None:
        """Raise if an array that was saved has been written to since.

        Raises:
            RuntimeError: it has.
        """
        if self._saved_at == storage.clock:
            return
        for value in self.saved:
            if isinstance(value, np.ndarray) and storage.changed_since(value, self._saved_at):
                raise RuntimeError(
                    f"an array of shape {value.shape} that {type(self).__name__} saved for "
                    "backward was changed after it was used: make the change before the forward "
                    "pass, or work on a clone()"
                )

    def release(self) -> None:
        """Free what was saved, and the edges."""
        self.saved = self.inputs = ()
