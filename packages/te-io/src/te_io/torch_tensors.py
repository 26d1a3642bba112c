"""Tensors of PyTorch files: views of the storages that they share."""

from __future__ import annotations

import reprlib
from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from typing import Any, TypeAlias

import numpy as np

from te_tensor import Tensor, dtypes, from_numpy
from te_tensor.dtypes import Array, DType

from .errors import FormatError
from .pickle_values import Limits, Name, OpaqueObject, Unfinished

#: The greatest length that NumPy and PyTorch can give an axis, a stride or a tensor in bytes.
_GREATEST = 2**63 - 1
_MOST_AXES = 64


@dataclass(eq=False)
class Memory:
    """Bytes that tensors of a file share.

    Args:
        data: the bytes, one axis of uint8; tensors are views of it.
        swapped: whether the bytes of an element are in the order of other machines.
    """

    data: Array
    swapped: bool = False
    _has_bools: bool = False
    _variants: dict[tuple[DType, bool, bool], Array] = field(default_factory=dict)

    def elements(self, dtype: DType, *, conjugate: bool = False, negative: bool = False) -> Array:
        """Bytes of which `dtype` makes elements: the same ones for tensors that share them.

        Those of conjugate or negative views, which PyTorch computes when they are read, are
        copies: they share memory with each other, and no longer with the plain ones.

        Args:
            dtype: what the elements are.
            conjugate: give their conjugates.
            negative: give their negatives.
        """
        if not ((self.swapped and dtype.itemsize > 1) or conjugate or negative):
            return self.data
        key = (dtype, conjugate, negative)
        if key not in self._variants:
            self._variants[key] = self._computed(dtype, conjugate, negative)
        return self._variants[key]

    def check_bools(self) -> None:
        """Raise unless the bytes are 0 and 1; NumPy goes wrong with others.

        Raises:
            FormatError: one isn't.
        """
        if not self._has_bools and self.data.max(initial=0) > 1:
            raise FormatError(f"has a bool of {self.data.max()}: expected 0 or 1")
        self._has_bools = True

    def _computed(self, dtype: DType, conjugate: bool, negative: bool) -> Array:
        copy = self.data[: self.data.size - self.data.size % dtype.itemsize].copy()
        if self.swapped and dtype.itemsize > 1:
            width = 4 if dtype == dtypes.complex64 else dtype.itemsize
            copy.view(f"u{width}").byteswap(inplace=True)
        values = copy.view(dtype)
        if conjugate:
            np.conjugate(values, out=values)
        if negative:
            np.negative(values, out=values)
        return copy


@dataclass(eq=False, slots=True)
class Storage(Unfinished):
    """A part of some memory, and what it holds.

    Args:
        memory: the memory.
        dtype: its elements; None for bytes, whose tensors say themselves what they are.
        start: the byte of the memory that it starts at.
        size: how many bytes it has.
    """

    memory: Memory
    dtype: DType | None
    start: int
    size: int


def _rebuild_tensor(limits: Limits, arguments: tuple[Any, ...]) -> Tensor:
    match arguments:
        case (Storage() as storage, int(offset), tuple(size), tuple(stride)):
            return _tensor(limits, storage, storage.dtype, offset, size, stride)
    raise wrong_arguments("torch._utils._rebuild_tensor", arguments)


def _rebuild_tensor_v2(limits: Limits, arguments: tuple[Any, ...]) -> Tensor:
    match arguments:
        case (Storage() as storage, int(offset), tuple(size), tuple(stride), bool(grad), _, *more):
            tensor = _tensor(limits, storage, storage.dtype, offset, size, stride, *more)
            return _with_grad(tensor, grad)
    raise wrong_arguments("torch._utils._rebuild_tensor_v2", arguments)


def _rebuild_tensor_v3(limits: Limits, arguments: tuple[Any, ...]) -> Tensor:
    match arguments:
        case (
            Storage() as storage,
            int(offset),
            tuple(size),
            tuple(stride),
            bool(grad),
            _,
            dtype,
            *more,
        ):
            if isinstance(dtype, Name):
                raise FormatError(f"has dtype {dtype.name}: te-tensor has no such dtype")
            if isinstance(dtype, np.dtype):
                tensor = _tensor(limits, storage, dtype, offset, size, stride, *more)
                return _with_grad(tensor, grad)
    raise wrong_arguments("torch._utils._rebuild_tensor_v3", arguments)


def _tensor(
    limits: Limits,
    storage: Storage,
    dtype: DType | None,
    offset: int,
    size: tuple[Any, ...],
    stride: tuple[Any, ...],
    flags: object = None,
    *rest: object,
) -> Tensor:
    """A view of a storage; offset and strides are in elements."""
    if dtype is None:
        raise FormatError("has a storage of bytes and no dtype")
    conjugate, negative = _checked_flags(flags, rest, dtype)
    if len(size) != len(stride) or len(size) > _MOST_AXES:
        raise FormatError(
            f"has a shape of {len(size)} axes and {len(stride)} strides: expected as many, and at "
            f"most {_MOST_AXES}"
        )
    numbers = (offset, *size, *stride)
    if any(type(number) is not int or not 0 <= number <= _GREATEST for number in numbers):
        raise FormatError(
            f"has offset {_shown(offset)}, shape {_shown(size)} and strides {_shown(stride)}: "
            "expected whole numbers from 0 up"
        )
    width, count = dtype.itemsize, prod(size)
    if any(length * width > _GREATEST for length in (prod(n or 1 for n in size), *stride)):
        raise FormatError(f"has shape {_shown(size)} and strides {_shown(stride)}: too large")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    stored = storage.size // width
    if last >= stored if count else offset > stored:
        raise FormatError(
            f"has offset {offset}, shape {_shown(size)} and strides {_shown(stride)}: reaches past "
            f"the {stored} elements of its storage"
        )
    if count > stored:  # expanded: costs nothing until someone copies it
        limits.take(memory=count * width)
    if dtype == dtypes.bool_:
        storage.memory.check_bools()
    if not count:
        return from_numpy(np.empty(size, dtype))
    data = storage.memory.elements(dtype, conjugate=conjugate, negative=negative)
    strides = tuple(step * width for step in stride)
    return from_numpy(np.ndarray(size, dtype, data, storage.start + offset * width, strides))


def _checked_flags(flags: object, rest: tuple[object, ...], dtype: DType) -> tuple[bool, bool]:
    """Whether a tensor is to be read as its conjugate, and whether as its negative."""
    if flags is None and not rest:
        return False, False
    if not isinstance(flags, dict) or rest or not flags.keys() <= {"conj", "neg"}:
        raise FormatError("has further properties that this reader doesn't know")
    conjugate, negative = flags.get("conj", False), flags.get("neg", False)
    if type(conjugate) is not bool or type(negative) is not bool:
        raise FormatError("has marks for conjugate and negative that are no bools")
    if conjugate and dtype != dtypes.complex64:
        raise FormatError(f"is marked as the conjugate of {dtype}")
    if negative and dtype not in _WITH_SIGN:
        raise FormatError(f"is marked as the negative of {dtype}")
    return conjugate, negative


#: Dtypes that PyTorch has gradients for.
_WITH_GRADIENT = dtypes.FLOATS | {dtypes.complex64, dtypes.float8_e8m0fnu}
_WITH_SIGN = dtypes.FLOATS | dtypes.INTEGERS - {dtypes.uint8} | {dtypes.complex64}


def _with_grad(tensor: Tensor, grad: bool) -> Tensor:
    """Marked as needing a gradient where te-tensor has gradients: not for complex64."""
    if grad and tensor.dtype not in _WITH_GRADIENT:
        raise FormatError(f"needs a gradient and is of {tensor.dtype}: only floats can have one")
    tensor.requires_grad = grad and tensor.dtype in dtypes.FLOATS
    return tensor


def _rebuild_parameter(limits: Limits, arguments: tuple[Any, ...]) -> Tensor:
    """A parameter is a tensor that needs a gradient; attributes that it was given are left out."""
    match arguments:
        case (Tensor() as tensor, bool(grad), _) | (Tensor() as tensor, bool(grad), _, _):
            return _with_grad(tensor.detach(), grad)
    raise wrong_arguments("torch._utils._rebuild_parameter", arguments)


def rebuild_from_type(limits: Limits, arguments: tuple[Any, ...]) -> object:
    """A tensor with attributes, which are left out, or of a subclass, which stays opaque.

    Args:
        limits: how much may be used.
        arguments: name of a maker, name of a type, arguments for the maker, and the attributes.

    Raises:
        FormatError: they are something else.
    """
    match arguments:
        case (Name(name=maker), kind, tuple(values), state) if maker in TENSOR_MAKERS:
            tensor = TENSOR_MAKERS[maker](limits, values)
            match kind:
                case Name(name="torch.Tensor"):
                    return tensor
                case OpaqueObject(name=name):
                    return OpaqueObject(name, (tensor,), state)
    raise wrong_arguments("torch._tensor._rebuild_from_type_v2", arguments)


def wrong_arguments(name: str, arguments: tuple[Any, ...]) -> FormatError:
    """The error of a function that is called with what it doesn't take.

    Args:
        name: the function.
        arguments: what it is called with.
    """
    kinds = ", ".join(type(value).__name__ for value in arguments[:10])
    return FormatError(f"calls {name} with ({kinds}), which it doesn't take")


def _shown(number: object) -> str:
    return reprlib.repr(number)


#: Makes a value from what a pickle gives to a function.
Make: TypeAlias = Callable[[Limits, tuple[Any, ...]], object]

#: What makes tensors, by the full names that pickles use.
TENSOR_MAKERS: dict[str, Make] = {
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor_v2,
    "torch._utils._rebuild_tensor_v3": _rebuild_tensor_v3,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": _rebuild_parameter,
}
