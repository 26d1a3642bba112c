"""What stands around an operation's forward: dtypes that it doesn't compute in, and observers."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from . import modes
from .dtypes import FLOATS, SMALL_FLOATS, STORAGE_ONLY, Array, DType, bool_, float32, meet
from .operation import Operation, Outputs

#: Dtypes that operations don't compute with as they are stored.
UNUSUAL = SMALL_FLOATS | STORAGE_ONLY


def check_one_dtype(operation: Operation, arrays: Sequence[Array]) -> None:
    """Raise TypeError if inputs differ in dtype that the operation wants to be one."""
    named = list(zip(operation.one_dtype, arrays, strict=False))
    if any(array.dtype != arrays[0].dtype for _, array in named):
        given = ", ".join(f"{name} {array.dtype}" for name, array in named)
        raise TypeError(
            f"{type(operation).__name__.lower()} got different dtypes ({given}): "
            "cast them to one with astype"
        )


def widen(
    operation: Operation, arrays: Sequence[Array], weak: Sequence[bool]
) -> tuple[list[Array], DType | None]:
    """Small floats as float32, and the dtype to round results to (None for float32 or wider).

    Args:
        operation: what will compute with them.
        arrays: its inputs.
        weak: which of them are numbers that take no part in promotion.

    Raises:
        TypeError: an input is for storage only.
    """
    common: DType = bool_
    for array in [array for array, is_weak in zip(arrays, weak, strict=True) if not is_weak]:
        if array.dtype in STORAGE_ONLY:
            raise TypeError(
                f"{array.dtype} is for storage only, but {type(operation).__name__} computes: "
                "cast it with astype"
            )
        if array.dtype in FLOATS:
            common = meet(common, array.dtype)
    widened = [a.astype(float32) if a.dtype in SMALL_FLOATS else a for a in arrays]
    return widened, common if common in SMALL_FLOATS else None


@np.errstate(over="ignore", invalid="ignore")
def rounded(results: Outputs, dtype: DType) -> Outputs:
    """What was made of widened inputs, in the small float."""
    if isinstance(results, tuple):
        return tuple([_rounded(array, dtype) for array in results])
    return _rounded(results, dtype)


def _rounded(array: Array, dtype: DType) -> Array:
    return array.astype(dtype) if array.dtype == float32 else array


def observed_forward(operation: Operation, arrays: Sequence[Array]) -> Outputs:
    """Forward under a profile, in anomaly mode, or both."""
    state = modes.current()
    if state.anomaly:
        operation.origin = _origin()
    begin = perf_counter()
    result = operation.forward(*arrays)
    seconds = perf_counter() - begin
    made: Sequence[Any] = result if isinstance(result, tuple) else (result,)
    if state.profile is not None:
        state.profile.note(operation, True, seconds, made)
    if state.anomaly:
        for array in made:
            _check_nan(operation, arrays, np.asarray(array))
    return result


def _origin() -> str:
    """The line outside this package that applied an operation."""
    package = str(Path(__file__).parent)
    for frame in reversed(traceback.extract_stack()):
        if not frame.filename.startswith(package):
            return f", applied at {frame.filename}:{frame.lineno} ({frame.line})"
    return ""


def _check_nan(operation: Operation, given: Sequence[Array], made: Array) -> None:
    if not _has_nan(made):
        return
    name, where = type(operation).__name__, operation.origin or ""
    for position, array in enumerate(given):
        if _has_nan(array):  # no operation made it: the first one would have raised
            raise FloatingPointError(
                f"forward of {name} was given a NaN as input {position}, which no operation under "
                f"detect_anomaly made{where}"
            )
    raise FloatingPointError(f"forward of {name} made a NaN{where}")


def _has_nan(array: Array) -> bool:
    return array.dtype in FLOATS and bool(np.isnan(array).any())
