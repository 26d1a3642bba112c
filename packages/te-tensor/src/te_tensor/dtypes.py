"""The dtypes of the engine, and the one rule that says what two of them make together.

Every dtype is a NumPy dtype; bfloat16 and the 8-bit floats come from ml_dtypes, which
registers them with NumPy.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import ml_dtypes
import numpy as np
import numpy.typing as npt

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
DType: TypeAlias = np.dtype[Any]

bool_ = np.dtype(np.bool_)
int8 = np.dtype(np.int8)
int16 = np.dtype(np.int16)
int32 = np.dtype(np.int32)
int64 = np.dtype(np.int64)
uint8 = np.dtype(np.uint8)
uint16 = np.dtype(np.uint16)
uint32 = np.dtype(np.uint32)
uint64 = np.dtype(np.uint64)
float16 = np.dtype(np.float16)
float32 = np.dtype(np.float32)
float64 = np.dtype(np.float64)
bfloat16 = np.dtype(ml_dtypes.bfloat16)
float8_e4m3fn = np.dtype(ml_dtypes.float8_e4m3fn)
float8_e5m2 = np.dtype(ml_dtypes.float8_e5m2)
float8_e8m0fnu = np.dtype(ml_dtypes.float8_e8m0fnu)
complex64 = np.dtype(np.complex64)

#: Floats that are stored small: arithmetic widens them to float32 and rounds once.
SMALL_FLOATS: frozenset[DType] = frozenset({float16, bfloat16, float8_e4m3fn, float8_e5m2})
#: Floats that the engine computes in.
WIDE_FLOATS: frozenset[DType] = frozenset({float32, float64})
FLOATS: frozenset[DType] = SMALL_FLOATS | WIDE_FLOATS
INTEGERS: frozenset[DType] = frozenset({int8, int16, int32, int64, uint8})
#: Loaded, saved and cast, but never computed with.
STORAGE_ONLY: frozenset[DType] = frozenset({uint16, uint32, uint64, complex64, float8_e8m0fnu})
ALL: frozenset[DType] = FLOATS | INTEGERS | STORAGE_ONLY | frozenset({bool_})

_BY_NAME = {dtype.name: dtype for dtype in ALL}
#: NumPy makes other objects of equal dtypes; these are the ones that `is` finds.
_SAME = {dtype: dtype for dtype in ALL}


def as_dtype(dtype: npt.DTypeLike) -> DType:
    """The engine's dtype for what NumPy or a user calls it.

    Args:
        dtype: a NumPy dtype, a scalar type such as `np.float32`, or a name such as "bfloat16".

    Returns:
        The NumPy dtype.

    Raises:
        TypeError: the engine has no such dtype.

    Example:
        >>> as_dtype("bfloat16").itemsize
        2
    """
    if isinstance(dtype, str) and dtype in _BY_NAME:
        return _BY_NAME[dtype]
    try:
        known = _SAME.get(np.dtype(dtype).newbyteorder("=")) if dtype is not None else None
    except TypeError:
        known = None
    if known is None:
        raise TypeError(f"unknown dtype {dtype!r}: expected one of {', '.join(sorted(_BY_NAME))}")
    return known


def promote(a: npt.DTypeLike, b: npt.DTypeLike) -> DType:
    """The dtype in which `a` and `b` meet in arithmetic.

    Equal dtypes stay; bool gives way to anything; of two wide floats the wider wins; a wide
    float wins over a small one; two different small floats, or a small float and an integer,
    meet in float32; float32 and float64 win over integers; integers follow NumPy.

    Raises:
        TypeError: one of them is unknown, or for storage only.

    Example:
        >>> promote("bfloat16", "int64")
        dtype('float32')
    """
    return meet(as_dtype(a), as_dtype(b))


def meet(a: DType, b: DType) -> DType:
    """`promote` for dtypes that are the engine's.

    Raises:
        TypeError: one of them is for storage only.
    """
    if a in STORAGE_ONLY or b in STORAGE_ONLY:
        culprit = a if a in STORAGE_ONLY else b
        raise TypeError(f"{culprit} is for storage only: cast it with astype before arithmetic")
    if a == b or b == bool_:
        return a
    if a == bool_:
        return b
    if a in FLOATS or b in FLOATS:
        if float64 in (a, b):
            return float64
        return float32
    return np.promote_types(a, b)
