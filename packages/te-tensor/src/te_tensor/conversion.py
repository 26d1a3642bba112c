"""Data and indices as arrays: what a Tensor is made of, and what stands between its brackets."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from . import memory
from .dtypes import (
    ALL,
    FLOATS,
    SMALL_FLOATS,
    Array,
    DType,
    as_dtype,
    bool_,
    complex64,
    float32,
    int64,
)


def to_array(data: Any, dtype: DType | None) -> Array:
    """A C-contiguous copy of anything array-like.

    Raises:
        TypeError: it holds no numbers, or masked ones.
        ValueError: lists of uneven lengths, or numbers that the dtype doesn't have.
        OverflowError: numbers out of the dtype's range.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        if isinstance(data, (np.ndarray, np.generic)) or hasattr(data, "__array__"):
            refuse_masked(data)
            array = np.asarray(data)
        elif hasattr(data, "__dlpack__"):
            array = np.from_dlpack(data)
        else:
            array = _from_numbers(data, dtype)
        if array.dtype.kind in "OSUMm":
            kind = type(data).__name__
            raise TypeError(f"data of type {kind} holds no numbers ({array.dtype})")
        copy = memory.empty(array.shape, dtype or as_dtype(array.dtype))
        np.copyto(copy, array, casting="unsafe")
        return copy


def as_array(data: Array) -> Array:
    """The same memory as a plain array, where its dtype is one of the engine's; else a copy."""
    if data.dtype not in ALL:
        return to_array(data, as_dtype(data.dtype))  # of the other byte order
    if type(data) is np.ndarray:
        return data
    refuse_masked(data)
    return np.asarray(data)


def refuse_masked(data: Any) -> None:
    """Raise TypeError for a masked array, of which only the numbers would be kept."""
    if isinstance(data, np.ma.MaskedArray):
        raise TypeError(
            f"a masked array of shape {data.shape}: tensors have no mask; expected its filled()"
        )


def _from_numbers(data: Any, dtype: DType | None) -> Array:
    """Nested lists and scalars: float32, int64, bool or complex64, or the dtype given."""
    try:
        array = np.array(data)
        if dtype is None and _may_be_out_of_range(array, data) and _all_whole(data):
            raise OverflowError
        if array.dtype.kind in "fc" or (array.dtype.kind in "iu" and dtype is not None):
            # straight to the dtype wanted, not through float64; integers must fit
            default = float32 if array.dtype.kind == "f" else complex64
            return np.array(data, dtype or default)
        if array.dtype.kind == "O" and _all_whole(data):
            return np.array(data, dtype or int64)  # too large for NumPy's own choice
    except ValueError as error:
        raise ValueError(f"data is no array: {error}") from None
    except OverflowError:
        raise OverflowError(f"data is out of the range of {dtype or int64}") from None
    return array


def _may_be_out_of_range(array: Array, data: Any) -> bool:
    """Whether NumPy may have left int64 for Python integers that it can't hold."""
    if array.dtype.kind not in "uf":
        return False
    while isinstance(data, (list, tuple)) and data:
        data = data[0]
    # Most floats end here, as they should: the rest takes as long as making a small tensor.
    return isinstance(data, int) and bool((np.abs(array) >= 2.0**63).any())


def _all_whole(data: Any) -> bool:
    """Whether nested lists hold Python integers alone."""
    return all(isinstance(value, int) for value in np.array(data, object).flat)


_GREATEST = float(np.finfo(np.float32).max)


def scalar(value: bool | int | float, beside: DType) -> Array:
    """A number in the dtype in which it meets a tensor: the tensor's, where it can hold it.

    Beside a small float it is float32, so that only the result is rounded.

    Raises:
        OverflowError: the tensor holds integers, and the number is out of their range.
    """
    if beside is float32 and -_GREATEST < value < _GREATEST:  # the most usual
        return np.asarray(value, float32)
    if beside in SMALL_FLOATS:
        return np.asarray(value, float32)
    if beside not in FLOATS:
        if isinstance(value, float):
            beside = float32
        elif beside == bool_ and not isinstance(value, bool):
            beside = int64
    if beside == float32 and not -_GREATEST < value < _GREATEST:
        with np.errstate(over="ignore"):  # becomes inf, as in the tensor's own arithmetic
            return np.asarray(value, beside)
    try:
        return np.asarray(value, beside)
    except OverflowError:
        raise OverflowError(f"{value} beside a tensor of {beside}: out of its range") from None


def lengths(given: Sequence[int | Sequence[int]]) -> tuple[int, ...]:
    """`f(2, 3)` and `f([2, 3])` alike.

    Raises:
        TypeError: something else than whole numbers.
    """
    if len(given) == 1 and not isinstance(given[0], (int, str)):
        # tuples and lists need no search
        given = given[0] if isinstance(given[0], (tuple, list, Sequence)) else given
    if bool not in map(type, given):
        try:
            return tuple(map(operator.index, given))  # type: ignore[arg-type]
        except TypeError:
            pass
    raise TypeError(f"got {given}: expected whole numbers")


def part_lengths(size: int | Sequence[int]) -> int | tuple[int, ...]:
    """Of `split`: one length, or several."""
    return lengths([size])[0] if hasattr(size, "__index__") else lengths([size])


def index_of(index: Any) -> tuple[Any, bool]:
    """What NumPy takes for what stands between brackets, and whether it selects copies."""
    if not isinstance(index, tuple):
        part = _index_part(index)
        return part, isinstance(part, (np.ndarray, bool, np.bool_))
    parts = tuple([_index_part(part) for part in index])
    return parts, any([isinstance(p, (np.ndarray, bool, np.bool_)) for p in parts])


def _index_part(part: Any) -> Any:
    """A copy of what may change, since backward needs the index as it is now."""
    if isinstance(part, np.generic) or not (isinstance(part, list) or hasattr(part, "__array__")):
        return part
    array = np.array(part, np.intp if isinstance(part, list) and not part else None)
    return array.astype(np.intp) if array.dtype.kind in "iu" else array


def described(index: Any) -> str:
    """An index in an error: arrays by their shape and dtype."""
    if isinstance(index, tuple):
        return f"({', '.join(map(described, index))})"
    if hasattr(index, "__array__") and not isinstance(index, np.generic):
        return f"{type(index).__name__} {index.shape} {index.dtype}"
    return repr(index)
