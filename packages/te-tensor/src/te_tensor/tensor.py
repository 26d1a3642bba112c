"""Tensor: an array with a gradient and a lineage."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any, Never, Self, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from . import autograd, execution, modes, storage
from .checks import (
    Axis,
    broadcast_shape,
    check_function,
    check_keepdims,
    check_switch,
    normalize_axes,
    normalize_axis,
)
from .conversion import as_array, described, index_of, lengths, part_lengths, scalar, to_array
from .dtypes import (
    FLOATS,
    INTEGERS,
    SMALL_FLOATS,
    Array,
    DType,
    as_dtype,
    bool_,
    complex64,
    float32,
    int64,
    meet,
)
from .execution import UNUSUAL
from .hooks import HookHandle, Hooks
from .modes import current
from .operation import Operation, next_place
from .ops._kernels import copied
from .ops.activation import LeakyReLU, ReLU, Sigmoid, SiLU, Tanh
from .ops.arithmetic import Add, Div, Mul, Pow, Sub
from .ops.cast import Cast
from .ops.elementwise import Abs, Cos, Erf, Exp, Log, Log1p, Neg, Sin, Sqrt
from .ops.gelu import GELU
from .ops.indexing import Gather, Slice
from .ops.linalg import MatMul
from .ops.reduction import Max, Mean, Min, Std, Sum, Var
from .ops.scan import CumSum
from .ops.selection import Clip, Maximum, Minimum, Where
from .ops.shape import Expand, Permute, Reshape, Split
from .ops.softmax import LogSoftmax, Softmax
from .silence import QUIET, begin, end

_new = object.__new__
_ndarray = np.ndarray

#: What a function takes where it expects a tensor.
Like: TypeAlias = "Tensor | Array"
#: What stands on the other side of an operator.
Operand: TypeAlias = "Tensor | Array | np.generic | float"


class Tensor:
    """An n-dimensional array that knows how it was made.

    Args:
        data: a nested list, a scalar, an ndarray, or anything with `__array__` or `__dlpack__`;
            copied. Python numbers become float32 or int64; arrays keep their dtype.
        shape: the shape to give the elements, in C order.
        dtype: the dtype to store; by default that of the data.
        requires_grad: whether backward leaves a gradient here; floats only.

    Raises:
        TypeError: the data is no array of a known dtype, or integers should have gradients.
        ValueError: lists of uneven lengths, or a shape that doesn't fit.

    Example:
        >>> import te_tensor as te
        >>> x = te.Tensor([1, 2, 3, 4], [2, 2], dtype="float32", requires_grad=True)
        >>> (x * x).sum().backward()
        >>> x.grad.tolist()
        [[2.0, 4.0], [6.0, 8.0]]
    """

    __slots__ = (
        "__weakref__",
        "_array",
        "_creator",
        "_grad",
        "_leaf_hooks",
        "_output_index",
        "_requires_grad",
    )
    #: NumPy leaves `ndarray * Tensor` to the Tensor, instead of detaching it silently.
    __array_ufunc__ = None

    _array: Array
    _grad: Tensor | None
    _creator: Operation | None
    _output_index: int
    _requires_grad: bool
    _leaf_hooks: autograd.LeafHooks | None

    def __init__(
        self,
        data: Any,
        shape: int | Sequence[int] | None = None,
        *,
        dtype: npt.DTypeLike | None = None,
        requires_grad: bool = False,
    ) -> None:
        array = to_array(data, None if dtype is None else as_dtype(dtype))
        if shape is not None:
            array = Reshape(lengths((shape,))).forward(array)
        self._array = array
        self._grad = self._creator = self._leaf_hooks = None
        self._output_index = 0
        self._requires_grad = False
        self.requires_grad = requires_grad

    @classmethod
    def _wrap(cls, array: Array) -> Self:
        """A tensor on this very array."""
        tensor: Self = _new(cls)
        tensor._array = array
        tensor._grad = tensor._creator = tensor._leaf_hooks = None
        tensor._output_index = 0
        tensor._requires_grad = False
        return tensor

    # -- the graph ------------------------------------------------------------------------

    @staticmethod
    def apply(operation: Operation, *inputs: Tensor) -> Any:
        """Run an operation, and record it where a gradient will be needed.

        Args:
            operation: a new instance.
            *inputs: the tensors to run it on.

        Returns:
            A Tensor, or a tuple of Tensors where forward returned several arrays.

        Raises:
            TypeError: an input is no Tensor.
            RuntimeError: the operation was applied before.
        """
        state = current()
        if state.part is not None:
            inputs = state.part.localize(inputs)
        arrays: list[Array] = []
        needs: list[bool] = []
        usual = True
        try:
            for tensor in inputs:
                array = tensor._array
                arrays.append(array)
                needs.append(tensor._requires_grad)
                if array.dtype is not float32:
                    usual = False
        except AttributeError:
            kinds = ", ".join(type(x).__name__ for x in inputs)
            raise TypeError(f"apply got inputs of types ({kinds}): expected Tensors") from None
        if not isinstance(operation, Operation):
            given = getattr(operation, "__name__", type(operation).__name__)
            raise TypeError(f"apply got {given}: expected an instance of an Operation")
        rounding = None
        if not usual:
            if operation.one_dtype:
                execution.check_one_dtype(operation, arrays)
            if operation.computes and any([array.dtype in UNUSUAL for array in arrays]):
                weak = [isinstance(tensor, _Scalar) for tensor in inputs]
                arrays, rounding = execution.widen(operation, arrays, weak)
        return _run(state, operation, inputs, arrays, tuple(needs), rounding)

    def backward(
        self,
        grad: Tensor | npt.ArrayLike | None = None,
        retain_graph: bool = False,
        create_graph: bool = False,
    ) -> None:
        """Add the gradient of this tensor with respect to every leaf to the leaf's `grad`.

        The graph is freed on the way: operations drop what they saved, and their inputs.

        Args:
            grad: what to start from, in this tensor's shape; may be left out for one element.
            retain_graph: keep the graph for another backward.
            create_graph: not supported: gradients are first order.

        Raises:
            RuntimeError: no gradient is needed here; grad is missing; the graph was freed;
                something that backward needs was changed.
            ValueError: grad has another shape, or an option is neither True nor False.
            NotImplementedError: create_graph is set.
        """
        if retain_graph is not False:
            retain_graph = check_switch("backward retain_graph", retain_graph)
        if create_graph is not False and check_switch("backward create_graph", create_graph):
            raise NotImplementedError(
                "create_graph=True: backward works on plain arrays, gradients are first order only"
            )
        if not self._requires_grad:
            raise RuntimeError(
                "backward on a tensor that needs no gradient: expected requires_grad=True on it, "
                "or on something it was computed from outside no_grad()"
            )
        first = self._first_grad(grad)
        autograd.backward([(self, first)], _accumulate, retain_graph=retain_graph)

    def _first_grad(self, grad: Tensor | npt.ArrayLike | None) -> Array:
        if grad is None:
            if self.size != 1:
                raise RuntimeError(
                    f"backward on shape {self.shape} without a gradient: expected one element, or "
                    "backward(grad) with a gradient of that shape"
                )
            return np.ones(self.shape, self.dtype)
        return self._as_gradient(grad).astype(self.dtype, copy=False)

    def _as_gradient(self, grad: Any) -> Array:
        """An array of real numbers in this tensor's shape."""
        array = as_tensor(grad)._array
        if array.dtype == complex64:
            raise TypeError(f"gradient of {array.dtype} for a tensor of {self.dtype}")
        if array.shape != self.shape:
            raise ValueError(f"gradient has shape {array.shape}: expected {self.shape}")
        return array

    def register_hook(self, function: Callable[[Tensor], Tensor | None]) -> HookHandle:
        """Have a function called with this tensor's gradient whenever backward has all of it.

        Args:
            function: takes the gradient; what it returns, unless None, takes its place for all
                that follows. What it is given can't be written to.

        Returns:
            A handle whose `remove()` removes the hook.

        Raises:
            RuntimeError: no gradient is needed here.

        Example:
            >>> import te_tensor as te
            >>> x = te.Tensor([3.0], requires_grad=True)
            >>> handle = x.register_hook(lambda grad: grad / 5)
            >>> (x * 5).backward()
            >>> x.grad.tolist()
            [1.0]
        """
        self._must_need_grad("register_hook")
        check_function("register_hook", function)

        def on_arrays(grad: Array) -> Array:
            view = grad.view()
            view.flags.writeable = False  # others may hold it
            result = function(Tensor._wrap(view))
            return grad if result is None else self._fitting(result, grad)

        hooks = self._hooks_of_leaf().arriving if self._creator is None else self._hooks()
        return hooks.add(on_arrays)

    @staticmethod
    def _fitting(result: Any, grad: Array) -> Array:
        """What a hook returned, in the place of the gradient."""
        if not isinstance(result, Tensor):
            raise TypeError(f"a hook returned {type(result).__name__}: expected a Tensor or None")
        if result.shape != grad.shape:
            raise ValueError(
                f"a hook returned shape {result.shape}: expected the gradient's, {grad.shape}"
            )
        return result._array.astype(grad.dtype, copy=False)

    def register_post_accumulate_grad_hook(self, function: Callable[[Tensor], Any]) -> HookHandle:
        """Have a function called with this leaf when backward has added all of its gradient.

        It is called during the walk, as soon as `grad` is complete.

        Args:
            function: takes the tensor.

        Returns:
            A handle whose `remove()` removes the hook.

        Raises:
            RuntimeError: this is no leaf, or it needs no gradient.
        """
        self._must_need_grad("register_post_accumulate_grad_hook")
        if self._creator is not None:
            raise RuntimeError(
                "register_post_accumulate_grad_hook on the result of an operation: expected a "
                "leaf; register_hook sees the gradients of results"
            )
        check_function("register_post_accumulate_grad_hook", function)
        leaf = weakref.ref(self)  # so that no circle keeps the tensor alive

        def on_leaf() -> None:
            tensor = leaf()
            if tensor is not None:
                function(tensor)

        return self._hooks_of_leaf().accumulated.add(on_leaf)

    def retain_grad(self) -> None:
        """Have backward leave the gradient in `grad` here too, on the result of an operation.

        Raises:
            RuntimeError: no gradient is needed here.
        """
        self._must_need_grad("retain_grad")
        if self._creator is None:
            return
        result = weakref.ref(self)

        def keep(grad: Array) -> Array:
            tensor = result()
            if tensor is not None:
                _accumulate(tensor, grad, False)
            return grad

        self._hooks().last = keep

    def _must_need_grad(self, method: str) -> None:
        if not self._requires_grad:
            raise RuntimeError(
                f"{method} on a tensor that needs no gradient: expected requires_grad=True"
            )

    def _hooks(self) -> Hooks:
        """The hooks of this result of an operation."""
        assert self._creator is not None
        if self._creator.hooks is None:
            self._creator.hooks = {}
        return self._creator.hooks.setdefault(self._output_index, Hooks())

    def _hooks_of_leaf(self) -> autograd.LeafHooks:
        if self._leaf_hooks is None:
            self._leaf_hooks = autograd.LeafHooks()
        return self._leaf_hooks

    @property
    def creator(self) -> Operation | None:
        """The operation that made this tensor, None for leaves."""
        return self._creator

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """What the creator was applied to; () for leaves and once backward has freed the graph."""
        return () if self._creator is None else self._creator.inputs

    @property
    def output_index(self) -> int:
        """Which of the creator's outputs this is."""
        return self._output_index

    @property
    def is_leaf(self) -> bool:
        """Whether no operation that backward goes through made this tensor."""
        return self._creator is None or not self._requires_grad

    @property
    def requires_grad(self) -> bool:
        """Whether backward reaches this tensor; settable on leaves.

        Raises:
            TypeError: it is set on something else than floats.
            RuntimeError: it is taken from the result of an operation.
            ValueError: it is set to what is neither True nor False.
        """
        return self._requires_grad

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        if value is not False:
            value = check_switch("requires_grad", value)
        if value and self.dtype not in FLOATS:
            raise TypeError(f"requires_grad on {self.dtype}: only floats can have gradients")
        if not value and not self.is_leaf:
            raise RuntimeError("requires_grad=False on the result of an operation: use detach()")
        if value and self.is_leaf:
            self._creator = None  # a traced result becomes a leaf of its own
        self._requires_grad = value

    @property
    def grad(self) -> Tensor | None:
        """The gradient that backward left, summed over calls; settable."""
        return self._grad

    @grad.setter
    def grad(self, value: Tensor | npt.ArrayLike | None) -> None:
        if value is None:
            self._grad = None
            return
        array = self._as_gradient(value)
        self._grad = Tensor._wrap(array.astype(self.dtype, order="C"))  # backward adds in place

    def zero_grad(self) -> None:
        """Drop the gradient: `grad` becomes None."""
        self._grad = None

    def detach(self) -> Tensor:
        """A tensor on the same memory that needs no gradient and has no lineage."""
        return Tensor._wrap(self._array)

    def clone(self) -> Tensor:
        """A copy; gradients flow through it."""
        return self._unary(Cast(self.dtype))

    # -- memory ---------------------------------------------------------------------------

    @contextmanager
    def lock(self, write: bool = True) -> Iterator[Array]:
        """Exclusive access to the memory, for this thread.

        Tensors that share memory share its lock. Leaving a writing lock counts as a change: a
        backward that needs the former values then raises instead of using the new ones.

        Args:
            write: give a writable array; False gives a read-only one and changes nothing.

        Returns:
            A context manager that gives the array.

        Raises:
            ValueError: the memory can't be written to, or write is neither True nor False.

        Example:
            >>> import te_tensor as te
            >>> t = te.Tensor([1.0, 2.0])
            >>> with t.lock() as array:
            ...     array *= 2
            >>> t.tolist()
            [2.0, 4.0]
        """
        if write is not True:
            write = check_switch("lock write", write)
        if write:
            self._must_be_writable("lock() for writing")
        with storage.lock_of(self._array):
            try:
                yield self._array.view() if write else self.data
            finally:
                if write:
                    storage.mark_changed(self._array)

    def _must_be_writable(self, action: str) -> None:
        if not self._array.flags.writeable:
            raise ValueError(f"{action}: this tensor's memory is read-only; clone() it")

    @property
    def writable(self) -> bool:
        """Whether `lock` can give writable access."""
        return self._array.flags.writeable

    @property
    def data(self) -> Array:
        """The array, as a read-only view; `lock` gives writable access."""
        view = self._array.view()
        view.flags.writeable = False
        return view

    def numpy(self) -> Array:
        """The array, as a read-only view of the same memory."""
        return self.data

    get_data = numpy

    def item(self) -> Any:
        """The only element, as a Python number.

        Raises:
            ValueError: there are several, or none.
        """
        if self.size != 1:
            raise ValueError(f"item() on shape {self.shape}: expected one element")
        return self._array.item()

    def tolist(self) -> Any:
        """The elements as nested lists of Python numbers; a number for no axes."""
        return self._array.tolist()

    def __array__(self, dtype: DType | None = None, copy: bool | None = None) -> Array:
        """For NumPy: a read-only view, or a copy where one is asked for or needed."""
        if copy or (dtype is not None and dtype != self.dtype):
            if copy is False:
                raise ValueError(f"can't give {self.dtype} as {dtype} without a copy")
            return self._array.astype(dtype or self.dtype)
        return self.data

    def __dlpack__(self, **options: Any) -> Any:
        """For other array libraries: the same memory."""
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[Any, Any]:
        """The CPU."""
        return self._array.__dlpack_device__()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle a leaf: its values and whether it needs a gradient, not the gradient."""
        self._refuse_lineage("pickled")
        return _rebuild, (type(self), self._array, self._requires_grad)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """A copy of a leaf, gradient included."""
        self._refuse_lineage("deep-copied")
        copied = type(self)._wrap(self._array.copy())
        copied._requires_grad = self._requires_grad
        memo[id(self)] = copied
        if self._grad is not None:
            copied._grad = Tensor._wrap(self._grad._array.copy())
        return copied

    def _refuse_lineage(self, action: str) -> None:
        if not self.is_leaf:
            raise RuntimeError(f"only leaves can be {action}: this tensor has a graph; detach() it")

    # -- what it is -----------------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, ...]:
        """The length of each axis."""
        shape: tuple[int, ...] = self._array.shape
        return shape

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return self._array.ndim

    @property
    def size(self) -> int:
        """The number of elements."""
        return self._array.size

    @property
    def dtype(self) -> DType:
        """The dtype, a NumPy dtype."""
        return self._array.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of the elements."""
        return self._array.nbytes

    def __len__(self) -> int:
        if not self.ndim:
            raise TypeError("len() of a tensor without axes")
        return len(self._array)

    def __iter__(self) -> Iterator[Tensor]:
        return (self[index] for index in range(len(self)))

    def __bool__(self) -> bool:
        if self.size != 1:
            raise ValueError(f"truth of a tensor of shape {self.shape}: expected one element")
        return bool(self._array)

    def __index__(self) -> int:
        if self.dtype not in INTEGERS:
            raise TypeError(f"a {self.dtype} tensor as an index: expected an integer dtype")
        return int(self.item())

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if spec else repr(self)

    def __repr__(self) -> str:
        values = np.array2string(self._array, separator=", ", prefix="Tensor(")
        parts = [values, f"dtype={self.dtype}"]
        if not self.size:
            parts.append(f"shape={self.shape}")
        if self._creator is not None:
            parts.append(f"creator={type(self._creator).__name__}")
        elif self._requires_grad:
            parts.append("requires_grad=True")
        return f"Tensor({', '.join(parts)})"

    # -- operators ------------------------------------------------------------------------

    def _unary(self, operation: Operation) -> Tensor:
        array, state = self._array, current()
        if array.dtype is float32 and state.part is None:  # the most usual
            made: Tensor = _run(state, operation, (self,), (array,), (self._requires_grad,))
            return made
        result: Tensor = Tensor.apply(operation, self)
        return result

    def _float(self, operation: Operation) -> Tensor:
        """Apply to floats; integers and bool become float32 first."""
        dtype = self._array.dtype
        if dtype is float32 or dtype in FLOATS:
            return self._unary(operation)
        return self.astype(meet(dtype, float32))._unary(operation)

    def __add__(self, other: Operand) -> Tensor:
        return _binary(Add, self, other)

    def __radd__(self, other: Operand) -> Tensor:
        return _binary(Add, other, self)

    def __sub__(self, other: Operand) -> Tensor:
        return _binary(Sub, self, other)

    def __rsub__(self, other: Operand) -> Tensor:
        return _binary(Sub, other, self)

    def __mul__(self, other: Operand) -> Tensor:
        return _binary(Mul, self, other)

    def __rmul__(self, other: Operand) -> Tensor:
        return _binary(Mul, other, self)

    def __truediv__(self, other: Operand) -> Tensor:
        return _binary(Div, self, other, floats=True)

    def __rtruediv__(self, other: Operand) -> Tensor:
        return _binary(Div, other, self, floats=True)

    def __pow__(self, other: Operand) -> Tensor:
        return _binary(Pow, self, other)

    def __rpow__(self, other: Operand) -> Tensor:
        return _binary(Pow, other, self)

    def __matmul__(self, other: Tensor | Array) -> Tensor:
        return _matmul(self, other)

    def __rmatmul__(self, other: Tensor | Array) -> Tensor:
        return _matmul(other, self)

    def __neg__(self) -> Tensor:
        return self._unary(Neg())

    def __abs__(self) -> Tensor:
        return self._unary(Abs())

    def __eq__(self, other: object) -> Tensor:  # type: ignore[override]
        return _compare(np.equal, self, other)

    def __ne__(self, other: object) -> Tensor:  # type: ignore[override]
        return _compare(np.not_equal, self, other)

    def __lt__(self, other: Operand) -> Tensor:
        return _compare(np.less, self, other)

    def __le__(self, other: Operand) -> Tensor:
        return _compare(np.less_equal, self, other)

    def __gt__(self, other: Operand) -> Tensor:
        return _compare(np.greater, self, other)

    def __ge__(self, other: Operand) -> Tensor:
        return _compare(np.greater_equal, self, other)

    __hash__ = object.__hash__

    def add(self, other: Operand) -> Tensor:
        """`self + other`, broadcast."""
        return self + other

    def sub(self, other: Operand) -> Tensor:
        """`self - other`, broadcast."""
        return self - other

    def mul(self, other: Operand) -> Tensor:
        """`self * other`, broadcast."""
        return self * other

    def div(self, other: Operand) -> Tensor:
        """`self / other`, broadcast; integers are divided in float32."""
        return self / other

    def pow(self, other: Operand) -> Tensor:
        """`self ** other`, broadcast."""
        return self**other

    def neg(self) -> Tensor:
        """`-self`."""
        return -self

    def matmul(self, other: Tensor | Array) -> Tensor:
        """`self @ other`: 1-D operands are vectors, leading axes broadcast."""
        return self @ other

    # -- mathematics ----------------------------------------------------------------------

    def abs(self) -> Tensor:
        """The absolute value, elementwise; gradient 0 at 0."""
        return abs(self)

    def exp(self) -> Tensor:
        """e to the power of each element."""
        return self._float(Exp())

    def log(self) -> Tensor:
        """The natural logarithm of each element; -inf at 0, NaN below."""
        return self._float(Log())

    def log1p(self) -> Tensor:
        """ln(1 + x), elementwise, exact also near 0; -inf at -1, NaN below."""
        return self._float(Log1p())

    def sqrt(self) -> Tensor:
        """The square root of each element; NaN below 0."""
        return self._float(Sqrt())

    def sin(self) -> Tensor:
        """The sine of each element, in radians."""
        return self._float(Sin())

    def cos(self) -> Tensor:
        """The cosine of each element, in radians."""
        return self._float(Cos())

    def erf(self) -> Tensor:
        """The error function 2/√π · ∫₀ˣ e^(-t²) dt of each element."""
        return self._float(Erf())

    def clip(self, min: Operand | None = None, max: Operand | None = None) -> Tensor:
        """Limited to min … max, each a number, a tensor or None; `max` wins where they cross.

        As in PyTorch the gradient reaches elements within the limits or on one, else the limit.
        """
        return _clip(self, min, max)

    def maximum(self, other: Operand) -> Tensor:
        """The greater of each two elements, broadcast; equal ones get half the gradient each."""
        return _extreme(Maximum, self, other)

    def minimum(self, other: Operand) -> Tensor:
        """The lesser of each two elements, broadcast; equal ones get half the gradient each."""
        return _extreme(Minimum, self, other)

    def where(self, condition: Tensor | Array | bool, other: Operand) -> Tensor:
        """These elements where the condition holds, those of `other` elsewhere; broadcast."""
        return where(condition, self, other)

    def sum(self, axis: Axis = None, keepdims: bool = False) -> Tensor:
        """The sum over an axis, several, or all; of integers and bool, in int64."""
        return self._unary(Sum(axis, keepdims))

    def mean(self, axis: Axis = None, keepdims: bool = False) -> Tensor:
        """The mean over an axis, several, or all; of integers, in float32."""
        return self._unary(Mean(axis, keepdims))

    def max(self, axis: Axis = None, keepdims: bool = False) -> Tensor:
        """The maximum over an axis, several, or all; equal ones share the gradient."""
        return self._unary(Max(axis, keepdims))

    def min(self, axis: Axis = None, keepdims: bool = False) -> Tensor:
        """The minimum over an axis, several, or all; equal ones share the gradient."""
        return self._unary(Min(axis, keepdims))

    def var(self, axis: Axis = None, keepdims: bool = False, *, correction: float = 0.0) -> Tensor:
        """The variance Σ (x - mean)² / (n - correction) over an axis, several, or all."""
        return self._float(Var(axis, keepdims, correction))

    def std(self, axis: Axis = None, keepdims: bool = False, *, correction: float = 0.0) -> Tensor:
        """The square root of `var`; its gradient is 0 where it is 0."""
        return self._float(Std(axis, keepdims, correction))

    def argmax(self, axis: int | None = None, keepdims: bool = False) -> Tensor:
        """Where the first of the greatest (or the first NaN) is, along an axis or among all."""
        return _argument(np.argmax, self, axis, keepdims)

    def argmin(self, axis: int | None = None, keepdims: bool = False) -> Tensor:
        """Where the first of the least (or the first NaN) is, along an axis or among all."""
        return _argument(np.argmin, self, axis, keepdims)

    def cumsum(self, axis: int | None = None) -> Tensor:
        """The sums of the first 1, 2, … elements along an axis, or of all in C order."""
        return self.flatten().cumsum(0) if axis is None else self._unary(CumSum(axis))

    def relu(self) -> Tensor:
        """max(x, 0), elementwise."""
        return self._unary(ReLU())

    def leaky_relu(self, alpha: float = 0.01) -> Tensor:
        """x above 0, alpha·x elsewhere."""
        return self._float(LeakyReLU(alpha))

    def sigmoid(self) -> Tensor:
        """1 / (1 + e^-x), elementwise."""
        return self._float(Sigmoid())

    def tanh(self) -> Tensor:
        """The hyperbolic tangent, elementwise."""
        return self._float(Tanh())

    def gelu(self, approximate: str = "none") -> Tensor:
        """x·Φ(x), elementwise; approximate="tanh" for the form with tanh instead of erf."""
        return self._float(GELU(approximate))

    def silu(self) -> Tensor:
        """x / (1 + e^-x), elementwise."""
        return self._float(SiLU())

    def softmax(self, axis: int = -1) -> Tensor:
        """e^x / Σ e^x along an axis."""
        return self._float(Softmax(axis))

    def log_softmax(self, axis: int = -1) -> Tensor:
        """x - ln Σ e^x along an axis."""
        return self._float(LogSoftmax(axis))

    # -- shapes and dtypes ----------------------------------------------------------------

    def reshape(self, *shape: int | Sequence[int]) -> Tensor:
        """The same elements under another shape: `reshape(2, 3)` or `reshape([2, 3])`, with -1."""
        return self._unary(Reshape(lengths(shape)))

    def transpose(self, *axes: int) -> Tensor:
        """All axes reversed, or two axes exchanged: `transpose()`, `transpose(0, 1)`.

        Raises:
            ValueError: another number of axes.
            IndexError: there is no such axis.
        """
        order = list(range(self.ndim))
        if not axes:
            return self._unary(Permute(tuple(reversed(order))))
        if len(axes) != 2:
            raise ValueError(f"transpose{axes}: expected no axes, or two; permute takes them all")
        first, second = (normalize_axis(a, self.ndim) for a in axes)
        order[first], order[second] = order[second], order[first]
        return self._unary(Permute(tuple(order)))

    def permute(self, *axes: int | Sequence[int]) -> Tensor:
        """The axes in another order: `permute(2, 0, 1)` or `permute((2, 0, 1))`."""
        return self._unary(Permute(lengths(axes)))

    @property
    def T(self) -> Tensor:
        """All axes reversed."""
        return self.transpose()

    def flatten(self, start: int = 0, end: int = -1) -> Tensor:
        """The axes from `start` to `end` (included) as one.

        Raises:
            IndexError: there is no such axis.
            ValueError: end lies before start.
        """
        if not self.ndim:
            normalize_axis(start, 1), normalize_axis(end, 1)
            return self.reshape(1)
        first, last = (normalize_axis(axis, self.ndim) for axis in (start, end))
        if first > last:
            raise ValueError(
                f"flatten from axis {start} to {end} of {self.ndim}: expected an order"
            )
        joined = prod(self.shape[first : last + 1])
        return self.reshape(*self.shape[:first], joined, *self.shape[last + 1 :])

    def squeeze(self, axis: Axis = None) -> Tensor:
        """Without axes of length 1: all of them, or those named.

        Raises:
            IndexError: there is no such axis.
            ValueError: an axis of another length, or one that is named twice.
        """
        if axis is None:
            return self.reshape([n for n in self.shape if n != 1])
        places = normalize_axes(axis, self.ndim)
        if any([self.shape[place] != 1 for place in places]):
            raise ValueError(f"squeeze of axis {axis} of {self.shape}: expected length 1")
        return self.reshape([n for place, n in enumerate(self.shape) if place not in places])

    def unsqueeze(self, axis: int) -> Tensor:
        """With an axis of length 1 at `axis` of the result."""
        place = normalize_axis(axis, self.ndim + 1)
        return self.reshape([*self.shape[:place], 1, *self.shape[place:]])

    def expand(self, *shape: int | Sequence[int]) -> Tensor:
        """Axes of length 1 repeated without copying; -1 keeps an axis."""
        return self._unary(Expand(lengths(shape)))

    def split(self, size: int | Sequence[int], axis: int = 0) -> tuple[Tensor, ...]:
        """Contiguous parts along an axis, as views.

        `size` is the length of each, the last perhaps shorter; or the lengths of all.
        """
        parts: tuple[Tensor, ...] = Tensor.apply(Split(part_lengths(size), axis), self)
        return parts

    def astype(self, dtype: npt.DTypeLike) -> Tensor:
        """The same values in another dtype; the gradient is cast back."""
        return self._unary(Cast(as_dtype(dtype)))

    to = astype

    def __getitem__(self, index: Any) -> Tensor:
        """Basic slicing is a view; integer and boolean arrays select copies."""
        try:
            part, advanced = index_of(index)
            return self._unary(Gather(part) if advanced else Slice(part))
        except (IndexError, TypeError, ValueError) as error:
            given = f"index {described(index)} of shape {self.shape}"
            raise type(error)(f"{given}: {error}") from None

    def __setitem__(self, index: Any, value: Any) -> None:
        """Write into the memory; not recorded, and a change to what backward may need."""
        if not self.is_leaf and modes.is_grad_enabled():
            raise RuntimeError(
                "item assignment to the result of an operation would not be recorded: "
                "detach() or clone().detach() it first"
            )
        if modes.is_grad_enabled() and isinstance(value, Tensor) and value.requires_grad:
            raise RuntimeError(
                "item assignment of a tensor that needs a gradient would lose it: detach() it, "
                "or build the tensor with concat, stack or arithmetic"
            )
        self._must_be_writable("item assignment")
        part, _ = index_of(index)
        elements = value._array if isinstance(value, Tensor) else value
        with storage.lock_of(self._array), np.errstate(over="ignore", invalid="ignore"):
            if not isinstance(elements, _ndarray) or elements.dtype.kind in "OSUMm":
                elements = np.asarray(elements, self.dtype)  # what fails does so before any write
            self._array[part] = elements
            storage.mark_changed(self._array)


def _run(
    state: modes.Modes,
    operation: Operation,
    inputs: tuple[Tensor, ...],
    arrays: Sequence[Array],
    needs: tuple[bool, ...],
    rounding: DType | None = None,
) -> Any:
    """What forward makes of arrays, as tensors that know their lineage where that is wanted.

    Args:
        state: the modes in force.
        operation: as in `Tensor.apply`.
        inputs: likewise.
        arrays: what forward gets: those of the inputs, in a dtype that it computes in.
        needs: for each input, whether it needs a gradient, where gradients are on.
        rounding: the dtype of the results, where it isn't forward's.
    """
    # One function and few calls: on small tensors this is what an operation costs.
    if operation.sequence >= 0:
        raise RuntimeError(
            f"this {type(operation).__name__} has been applied already: make one per application"
        )
    operation.sequence = next_place()
    if not state.grad:
        needs = (False,) * len(needs)
    operation.needs_grad = needs
    operation._saved_at = storage.clock
    before = begin(QUIET)
    try:
        if state.observes:
            result = execution.observed_forward(operation, arrays)
        else:
            result = operation.forward(*arrays)
    finally:
        end(before)
    if rounding is not None:
        result = execution.rounded(result, rounding)
    records = True in needs
    creator = None
    if records or state.trace:
        creator, operation.inputs = operation, inputs
        if state.part is not None:
            operation.part = state.part
    if type(result) is not tuple:
        return _output(result, creator, records)
    operation.output_count = len(result)
    return tuple([_output(a, creator, records, i) for i, a in enumerate(result)])


def _output(array: Any, creator: Operation | None, records: bool, index: int = 0) -> Tensor:
    """What an operation returned; without a creator where nothing is recorded."""
    if type(array) is not _ndarray:
        array = np.asarray(array)
    output = _new(Tensor)
    output._array = array
    output._creator = creator
    output._output_index = index
    output._requires_grad = records and (array.dtype is float32 or array.dtype in FLOATS)
    output._grad = output._leaf_hooks = None
    return output


def _accumulate(tensor: Tensor, grad: Array, owned: bool) -> None:
    """Add to a leaf's gradient, which owns its memory."""
    with storage.lock_of(tensor._array):
        if tensor._grad is None:
            tensor._grad = Tensor._wrap(grad if owned else copied(grad))
        else:
            autograd.add_to(tensor._grad._array, grad)


def arrays_of(tensors: Iterable[Tensor]) -> list[Array]:
    """The tensors' own arrays, for work on many at once.

    Whoever writes to them does so under `storage.writing`.
    """
    return [tensor._array for tensor in tensors]


def _rebuild(kind: type[Tensor], array: Array, requires_grad: bool) -> Tensor:
    tensor = kind._wrap(array)
    tensor._requires_grad = requires_grad
    return tensor


def as_tensor(value: Any) -> Tensor:
    """The tensor itself, or a new one of anything that `Tensor` takes; arrays are not copied."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, np.ndarray):
        return Tensor._wrap(as_array(value))
    return Tensor(value)


class _Scalar(Tensor):
    """A Python number beside a small float: it takes no part in promotion."""

    __slots__ = ()


def _operand(value: Any, like: Tensor) -> Tensor:
    """The other side of an operator: scalars take the tensor's dtype where it can hold them."""
    if isinstance(value, np.generic):
        value = value.item()
    if not isinstance(value, (float, int)):
        return as_tensor(value)
    dtype = like._array.dtype
    kind = _Scalar if dtype is not float32 and dtype in SMALL_FLOATS else Tensor
    return kind._wrap(scalar(value, dtype))


def pair(first: Any, second: Any, floats: bool = False) -> tuple[Tensor, Tensor]:
    """Both sides of an operator, one of them a tensor, as tensors of one dtype."""
    if not isinstance(first, Tensor):
        first = _operand(first, second)
    elif not isinstance(second, Tensor):
        second = _operand(second, first)
    a, b = first._array.dtype, second._array.dtype
    if a is float32 is b:  # the most usual
        return first, second
    if isinstance(first, _Scalar) or isinstance(second, _Scalar):
        return first, second
    if a != b or (floats and a not in FLOATS):
        common = meet(a, b)
        if floats and common not in FLOATS:
            common = float32
        first = first if a == common else first.astype(common)
        second = second if b == common else second.astype(common)
    else:
        meet(a, b)
    return first, second


#: What an operator takes; for anything else it lets Python ask the other side.
_OPERANDS = (Tensor, float, int, np.ndarray, np.generic)
_UNSUPPORTED = cast(Tensor, NotImplemented)


def _broadcast_error(name: str, first: Tensor, second: Tensor, error: Exception) -> Never:
    try:
        broadcast_shape(first.shape, second.shape)
    except ValueError:
        raise ValueError(
            f"{name} of shapes {first.shape} and {second.shape}: expected lengths that are equal "
            "or 1, counted from the last axis"
        ) from None
    raise error


def _binary(kind: type[Operation], a: Any, b: Any, floats: bool = False) -> Tensor:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        x, y = a._array, b._array
        if x.dtype is float32 is y.dtype:  # the most usual
            state = current()
            if state.part is None:
                needs = a._requires_grad, b._requires_grad
                try:
                    result: Tensor = _run(state, kind(), (a, b), (x, y), needs)
                except ValueError as error:
                    _broadcast_error(kind.__name__, a, b, error)
                return result
    elif not (isinstance(a, _OPERANDS) and isinstance(b, _OPERANDS)):
        return _UNSUPPORTED
    a, b = pair(a, b, floats)
    try:
        result = Tensor.apply(kind(), a, b)
    except ValueError as error:
        _broadcast_error(kind.__name__, a, b, error)
    return result


def _extreme(kind: type[Operation], a: Tensor, b: Any) -> Tensor:
    """What has no operator: Python asks no other side, so that only `_binary`'s own will do."""
    result = _binary(kind, a, b)
    if result is _UNSUPPORTED:
        name = kind.__name__.lower()
        raise TypeError(f"{name} of a Tensor and a {type(b).__name__}: expected a tensor or number")
    return result


def _compare(function: np.ufunc, a: Tensor, b: object) -> Tensor:
    if not isinstance(b, _OPERANDS):
        return _UNSUPPORTED
    if isinstance(b, (bool, int, float, np.generic)):
        # NumPy compares with numbers that the dtype can't hold; small floats it would widen.
        number = b.item() if isinstance(b, np.generic) else b
        other = np.asarray(number, a.dtype) if a.dtype in SMALL_FLOATS else number
        meet(a.dtype, bool_)
        return Tensor._wrap(np.asarray(function(a._array, other)))
    first, second = pair(a, b)
    try:
        return Tensor._wrap(np.asarray(function(first._array, second._array)))
    except ValueError as error:
        _broadcast_error(function.__name__, first, second, error)


def check_shapes(name: str, *tensors: Tensor) -> None:
    """Raise ValueError unless tensors broadcast together."""
    shapes = [t.shape for t in tensors]
    try:
        broadcast_shape(*shapes)
    except ValueError:
        raise ValueError(
            f"{name} of shapes {', '.join(map(str, shapes))}: expected lengths that are equal or "
            "1, counted from the last axis"
        ) from None


def _broadcast(name: str, operation: Operation, *tensors: Tensor) -> Tensor:
    """Apply to tensors that must broadcast together."""
    check_shapes(name, *tensors)
    result: Tensor = Tensor.apply(operation, *tensors)
    return result


def _clip(x: Tensor, low: Any, high: Any) -> Tensor:
    limits = {n: v for n, v in (("low", low), ("high", high)) if v is not None}
    if not limits:
        return x.clone()
    for value in limits.values():
        x, _ = pair(x, value)  # in the dtype in which all meet
    tensors = [pair(x, value)[1] for value in limits.values()]
    return _broadcast("clip", Clip(tuple(limits)), x, *tensors)


def where(condition: Any, a: Any, b: Any) -> Tensor:
    """The elements of a where the condition holds, of b elsewhere; broadcast.

    Args:
        condition: bool.
        a: a tensor, an array or a number.
        b: likewise.

    Returns:
        The shape that the three broadcast to.

    Raises:
        TypeError: the condition isn't bool.
        ValueError: shapes that don't broadcast.

    Example:
        >>> import te_tensor as te
        >>> x = te.Tensor([-1.0, 2.0])
        >>> te.where(x > 0, x, 0.5).tolist()
        [0.5, 2.0]
    """
    if not isinstance(a, Tensor) and not isinstance(b, Tensor):
        a = as_tensor(a)
    return _broadcast("where", Where(), as_tensor(condition), *pair(a, b))


def _argument(function: Callable[..., Any], x: Tensor, axis: int | None, keepdims: bool) -> Tensor:
    """The place of an extreme, int64."""
    meet(x.dtype, bool_)  # raises for what is stored only
    check_keepdims(keepdims)
    place = None if axis is None else normalize_axis(axis, x.ndim)
    if (x.size if place is None else x.shape[place]) == 0:
        raise ValueError(
            f"{function.__name__} over axis {axis} of shape {x.shape}: there is no element"
        )
    found = function(x._array, axis=place, keepdims=keepdims)
    return Tensor._wrap(np.asarray(found, int64))


def _matmul(a: Any, b: Any) -> Tensor:
    if not (isinstance(a, _OPERANDS) and isinstance(b, _OPERANDS)):
        return _UNSUPPORTED
    tensor: Any = a if isinstance(a, Tensor) else b
    first, second = (x if isinstance(x, Tensor) else _operand(x, tensor) for x in (a, b))
    result: Tensor = Tensor.apply(MatMul(), first, second)
    return result
