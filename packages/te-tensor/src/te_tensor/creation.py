"""Functions that make tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from . import memory
from .checks import check_number, check_switch, check_whole, is_whole
from .conversion import as_array
from .dtypes import ALL, FLOATS, Array, as_dtype, float32, int64
from .random import Generator, generator_or_default
from .tensor import Like, Tensor, as_tensor


def _shape(given: tuple[int | Sequence[int], ...]) -> tuple[int, ...]:
    """`f(2, 3)` and `f((2, 3))` alike."""
    lengths = given[0] if len(given) == 1 and isinstance(given[0], Sequence) else given
    for n in lengths:
        if not is_whole(n) or n < 0:  # type: ignore[operator]
            raise ValueError(f"shape is {tuple(lengths)}: expected whole numbers of at least 0")
    return tuple(int(n) for n in lengths)  # type: ignore[arg-type]


def _tensor(array: Array, requires_grad: bool) -> Tensor:
    tensor = Tensor._wrap(array)
    tensor.requires_grad = requires_grad
    return tensor


def zeros(
    *shape: int | Sequence[int], dtype: npt.DTypeLike = float32, requires_grad: bool = False
) -> Tensor:
    """A tensor of zeros: `zeros(2, 3)` or `zeros((2, 3))`."""
    return _tensor(np.zeros(_shape(shape), as_dtype(dtype)), requires_grad)


def ones(
    *shape: int | Sequence[int], dtype: npt.DTypeLike = float32, requires_grad: bool = False
) -> Tensor:
    """A tensor of ones."""
    return _tensor(np.ones(_shape(shape), as_dtype(dtype)), requires_grad)


def full(
    shape: int | Sequence[int],
    fill_value: float,
    *,
    dtype: npt.DTypeLike | None = None,
    requires_grad: bool = False,
) -> Tensor:
    """A tensor of one value.

    Args:
        shape: its shape.
        fill_value: the value.
        dtype: by default float32, int64 or bool after the value.
        requires_grad: whether backward leaves a gradient here.

    Raises:
        ValueError: the shape is none, or the value is no single number.
        TypeError: the value is no number.
        OverflowError: the dtype can't hold it.
    """
    element = Tensor(fill_value, dtype=dtype)
    if element.ndim:
        raise ValueError(f"full with a value of shape {element.shape}: expected a number")
    return _tensor(np.full(_shape((shape,)), element.data), requires_grad)


def eye(
    n: int,
    m: int | None = None,
    *,
    k: int = 0,
    dtype: npt.DTypeLike = float32,
    requires_grad: bool = False,
) -> Tensor:
    """An n by m matrix (m = n by default) with ones on a diagonal: the k-th above the main one."""
    rows, columns = _shape((n, n if m is None else m))
    array = np.eye(rows, columns, check_whole("eye k", k), dtype=as_dtype(dtype))
    return _tensor(array, requires_grad)


def arange(
    start: float, stop: float | None = None, step: float = 1, *, dtype: npt.DTypeLike | None = None
) -> Tensor:
    """Evenly spaced values from `start` (0 if only one is given) up to, not including, `stop`.

    Args:
        start: the first value.
        stop: where they end.
        step: from one to the next.
        dtype: by default int64 for whole numbers alone, else float32.

    Raises:
        TypeError: something that is no number.
        ValueError: a number that is infinite or NaN, or a step of 0.
        OverflowError: values that the dtype can't hold.
    """
    first, last = (0, start) if stop is None else (start, stop)
    for name, number in (("start", first), ("stop", last), ("step", step)):
        check_number(f"arange {name}", number)
    if step == 0:
        raise ValueError("arange with step 0: expected another step")
    whole = all(is_whole(n) for n in (first, last, step))
    wanted = as_dtype((int64 if whole else float32) if dtype is None else dtype)
    return Tensor._wrap(_stored("arange", np.arange(first, last, step), wanted))


def linspace(
    start: float,
    stop: float,
    num: int,
    *,
    dtype: npt.DTypeLike = float32,
    endpoint: bool = True,
) -> Tensor:
    """`num` evenly spaced values from `start` to `stop`.

    Args:
        start: the first value.
        stop: where they end.
        num: how many.
        dtype: what to store them as.
        endpoint: whether `stop` is the last of them.

    Raises:
        TypeError: start or stop is no number.
        ValueError: start or stop is infinite or NaN, num is no whole number of at least 0, or
            endpoint is neither True nor False.
        OverflowError: values that the dtype can't hold.
    """
    check_number("linspace start", start), check_number("linspace stop", stop)
    included = check_switch("linspace endpoint", endpoint)
    values = np.linspace(start, stop, _shape((num,))[0], endpoint=included)
    return Tensor._wrap(_stored("linspace", values, as_dtype(dtype)))


def _stored(name: str, values: Array, dtype: np.dtype[Any]) -> Array:
    """The values in another dtype; integers must fit."""
    if dtype.kind in "iu" and values.size:
        limits, low, high = np.iinfo(dtype), values.min(), values.max()
        if low < limits.min or high > limits.max:
            raise OverflowError(
                f"{name} from {low} to {high} in {dtype}: expected {limits.min} … {limits.max}"
            )
    with np.errstate(over="ignore"):
        return values.astype(dtype)


def rand(
    *shape: int | Sequence[int],
    dtype: npt.DTypeLike = float32,
    generator: Generator | None = None,
    requires_grad: bool = False,
) -> Tensor:
    """Values drawn evenly from [0, 1)."""
    wanted = _random_float(dtype)
    draws = generator_or_default(generator).stream()
    if wanted.itemsize >= 4:
        drawn = draws.random(dtype=wanted, out=memory.empty(_shape(shape), wanted))
        return _tensor(drawn, requires_grad)
    below_one = 1 - 0.5 * float(ml_dtypes.finfo(wanted).eps)  # type: ignore[no-untyped-call]
    array = draws.random(_shape(shape), float32).astype(wanted)
    array[array == 1] = below_one  # what rounding took out of the range
    return _tensor(array, requires_grad)


def randn(
    *shape: int | Sequence[int],
    dtype: npt.DTypeLike = float32,
    generator: Generator | None = None,
    requires_grad: bool = False,
) -> Tensor:
    """Values drawn from the normal distribution with mean 0 and variance 1."""
    wanted = _random_float(dtype)
    draws = generator_or_default(generator).stream()
    width = wanted if wanted.itemsize >= 4 else float32
    array = draws.standard_normal(dtype=width, out=memory.empty(_shape(shape), width))
    return _tensor(array.astype(wanted, copy=False), requires_grad)


def _random_float(dtype: npt.DTypeLike) -> np.dtype[Any]:
    wanted = as_dtype(dtype)
    if wanted not in FLOATS:
        raise TypeError(f"random values in {wanted}: expected a float; randint gives integers")
    return wanted


def randint(
    low: int,
    high: int,
    shape: int | Sequence[int],
    *,
    dtype: npt.DTypeLike = int64,
    generator: Generator | None = None,
) -> Tensor:
    """Whole numbers drawn evenly from low … high-1.

    Args:
        low: the least.
        high: one more than the greatest.
        shape: the shape of the result.
        dtype: what to store them as.
        generator: what to draw from; by default the one in force.

    Raises:
        ValueError: low, high or the shape is no whole number, low isn't below high, or numbers
            outside int64.
        OverflowError: numbers that the dtype can't hold.
    """
    check_whole("randint low", low), check_whole("randint high", high)
    if low >= high:
        raise ValueError(f"randint from {low} to {high}: expected low < high")
    draws = generator_or_default(generator).stream()
    limits = np.iinfo(int64)
    if low < limits.min or high - 1 > limits.max:
        raise ValueError(f"randint from {low} to {high}: expected numbers in int64")
    values = draws.integers(low, high, _shape((shape,)))
    return Tensor._wrap(_stored("randint", values, as_dtype(dtype)))


def zeros_like(x: Like, *, dtype: npt.DTypeLike | None = None) -> Tensor:
    """Zeros in the shape and dtype of `x`."""
    x = as_tensor(x)
    return zeros(x.shape, dtype=x.dtype if dtype is None else dtype)


def ones_like(x: Like, *, dtype: npt.DTypeLike | None = None) -> Tensor:
    """Ones in the shape and dtype of `x`."""
    x = as_tensor(x)
    return ones(x.shape, dtype=x.dtype if dtype is None else dtype)


def full_like(x: Like, fill_value: float, *, dtype: npt.DTypeLike | None = None) -> Tensor:
    """One value in the shape and dtype of `x`."""
    x = as_tensor(x)
    return full(x.shape, fill_value, dtype=x.dtype if dtype is None else dtype)


def rand_like(x: Like, *, generator: Generator | None = None) -> Tensor:
    """Values drawn evenly from [0, 1), in the shape and dtype of `x`."""
    x = as_tensor(x)
    return rand(x.shape, dtype=x.dtype, generator=generator)


def randn_like(x: Like, *, generator: Generator | None = None) -> Tensor:
    """Normally distributed values in the shape and dtype of `x`."""
    x = as_tensor(x)
    return randn(x.shape, dtype=x.dtype, generator=generator)


def randint_like(
    x: Like,
    low: int,
    high: int,
    *,
    dtype: npt.DTypeLike | None = None,
    generator: Generator | None = None,
) -> Tensor:
    """Whole numbers drawn evenly from low … high-1, in the shape and dtype of `x`.

    Args:
        x: a tensor or an array.
        low: the least.
        high: one more than the greatest.
        dtype: another dtype.
        generator: what to draw from; by default the one in force.

    Raises:
        ValueError: low or high is no whole number, or low isn't below high.
        OverflowError: numbers that the dtype can't hold.

    Example:
        >>> import te_tensor as te
        >>> te.randint_like(te.zeros(2), 3, 4).tolist()
        [3.0, 3.0]
    """
    x = as_tensor(x)
    wanted = x.dtype if dtype is None else dtype
    return randint(low, high, x.shape, dtype=wanted, generator=generator)


def from_numpy(array: Array) -> Tensor:
    """A tensor on the memory of a NumPy array: changes to one show in the other.

    Args:
        array: an ndarray of a dtype that the engine knows.

    Raises:
        TypeError: it is something else.
    """
    if not isinstance(array, np.ndarray):
        raise TypeError(f"from_numpy got {type(array).__name__}: expected an ndarray")
    if array.dtype not in ALL:
        as_dtype(array.dtype)
        raise TypeError(f"from_numpy got {array.dtype.str}: expected this machine's byte order")
    return Tensor._wrap(as_array(array))


def from_dlpack(source: Any) -> Tensor:
    """A tensor on the memory of another library's CPU array.

    Args:
        source: anything with `__dlpack__`.

    Raises:
        TypeError: it has none, or a dtype that the engine doesn't know.
    """
    if not hasattr(source, "__dlpack__"):
        raise TypeError(f"from_dlpack got {type(source).__name__}: expected a __dlpack__ method")
    return from_numpy(np.from_dlpack(source))
