"""The libraries that make matrix products: OpenBLAS through ctypes, or NumPy where there is none.

A pointer and a leading dimension address any strided 2-D view, so transposes, heads inside
`(B, S, H, d)` and column ranges are read and written in place; only zero, negative or odd strides
are copied. OpenBLAS always runs with one thread: its own pool is one for the process, behind a
lock, and its workers spin after each call.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import importlib.util
import itertools
import os
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from . import memory, parallel
from .dtypes import Array
from .machine.kernel import has_tiles

#: Multiply-adds up to which a call of ours costs more than its product, so that NumPy makes it, or
#: a whole batch of them. Up to here its own BLAS uses no threads either. (OpenBLAS's batched
#: functions are no faster, and crash in many versions.)
SMALL = 1 << 18
#: Rows up to which a product with a transposed matrix is made transposed, and copied: its kernels
#: are up to a third quicker.
_FEW_ROWS = 64
_ROW_MAJOR, _NO_TRANSPOSE, _TRANSPOSE = 101, 111, 112


class NumPyBlas:
    """Products by NumPy, with the meaning of BLAS: out = alpha * a @ b + beta * out."""

    library = "numpy"
    version = np.__version__
    kernel = "numpy"
    path: str | None = None

    def gemm(
        self, a: Array, b: Array, out: Array, alpha: float, beta: float, parts: int = 1
    ) -> None:
        """One product, or a whole batch of them; NumPy's BLAS has threads of its own."""
        if alpha != 1.0:
            a = a * out.dtype.type(alpha)
        if beta == 0.0 and out.strides[-1] == out.itemsize:
            np.matmul(a, b, out=out)
            return
        product = np.matmul(a, b, out=memory.empty(out.shape, out.dtype))
        if beta == 0.0:
            out[...] = product
        else:
            if beta != 1.0:
                out *= out.dtype.type(beta)
            out += product

    gemm_batch = gemm

    def stepwise(self, a: Array, b: Array, out: Array, beta: float) -> Callable[[int], None]:
        """Products of the matrices of 3-D stacks, one at a time."""
        return lambda step: self.gemm(a[step], b[step], out[step], 1.0, beta)


def _layout(matrix: Array) -> tuple[int, int] | None:
    """(transpose flag, leading dimension) of a 2-D view, or None if BLAS can't address it."""
    rows, columns = matrix.shape
    row_stride, column_stride = matrix.strides
    item = matrix.itemsize
    if column_stride == item or columns == 1:
        if rows == 1:
            return _NO_TRANSPOSE, columns
        if row_stride >= columns * item and row_stride % item == 0:
            return _NO_TRANSPOSE, row_stride // item
    if row_stride == item or rows == 1:
        if columns == 1:
            return _TRANSPOSE, rows
        if column_stride >= rows * item and column_stride % item == 0:
            return _TRANSPOSE, column_stride // item
    return None


#: Places of the two floating-point numbers among the arguments of a product, and of one with a
#: vector; the others are integers and addresses.
_PRODUCT, _VECTOR = (6, 11), (4, 9)
#: Multiply-adds up to which a call is short, some 50 µs, and keeps the GIL.
_SHORT = 1 << 22


class _Function:
    """A function of BLAS, called once or for several parts in as many threads.

    Args:
        function: its arguments declared.
        dtype: that of its floating-point numbers.
        scalars: their places.
    """

    def __init__(self, function: Any, dtype: np.dtype[Any], scalars: tuple[int, int]) -> None:
        function.restype = None
        self.function = function
        self.address = ctypes.cast(function, ctypes.c_void_p).value
        self._first, self._second = scalars
        integers = len(function.argtypes) - 2
        #: A record for `Crew.caller`: places on the stack that are left over are 0.
        number = "f4x" if dtype.itemsize == 4 else "d"
        self.pack = struct.Struct(f"={1 + integers}q{8 * (12 - integers)}x{2 * number}").pack

    def __call__(self, calls: list[tuple[Any, ...]], work: int) -> None:
        """Call it with each of the arguments; the work is in multiply-adds, of all calls."""
        crew = parallel.crew()
        if crew is None:
            parallel.parallel_for(lambda index: self.function(*calls[index]), len(calls))
            return
        records = [self.record(call) for call in calls]
        if len(calls) > 1:
            parallel.share([(crew.caller, r) for r in records], short=work <= _SHORT)
        elif work <= _SHORT:
            crew.call_held(records[0])
        else:
            crew.call(records[0])

    def record(self, arguments: tuple[Any, ...]) -> bytes:
        """What `Crew.caller` is given."""
        first, second = self._first, self._second
        integers = arguments[:first] + arguments[first + 1 : second] + arguments[second + 1 :]
        return self.pack(self.address, *integers, arguments[first], arguments[second])


class OpenBlas:
    """An OpenBLAS library, its symbols looked up and its arguments declared once."""

    def __init__(self, name: str, path: str) -> None:
        self.library = name
        self.path = path
        library = ctypes.CDLL(path)
        prefix, suffix = self._naming(library)
        # With the suffix the interface counts in 64 bits, and so it needs no limit of ours.
        self._integer: type[ctypes.c_int] | type[ctypes.c_int64]
        self._integer = ctypes.c_int64 if suffix else ctypes.c_int
        self._limit = 2 ** (63 if suffix else 31) - 1
        self._fallback = NumPyBlas()

        def symbol(base: str) -> Any:
            function = getattr(library, f"{prefix}{base}{suffix}", None)
            if function is None:
                raise OSError(f"{path} has no {prefix}{base}{suffix}")
            return function

        single_thread = symbol("openblas_set_num_threads")
        single_thread.argtypes, single_thread.restype = [ctypes.c_int], None
        single_thread(1)
        self.kernel = _text(symbol("openblas_get_corename"))
        words = _text(symbol("openblas_get_config")).split()
        self.version = words[1] if len(words) > 1 else "unknown"
        self._gemm, self._gemv = {}, {}
        for letter, scalar in (("s", ctypes.c_float), ("d", ctypes.c_double)):
            dtype = np.dtype(scalar)
            self._gemm[dtype] = self._declare_gemm(symbol(f"cblas_{letter}gemm"), scalar)
            self._gemv[dtype] = self._declare_gemv(symbol(f"cblas_{letter}gemv"), scalar)

    @staticmethod
    def _naming(library: ctypes.CDLL) -> tuple[str, str]:
        for prefix in ("scipy_", ""):
            for suffix in ("", "64_", "_64"):
                if hasattr(library, f"{prefix}cblas_sgemm{suffix}"):
                    return prefix, suffix
        raise OSError(f"{library._name} has no cblas_sgemm under any known name")

    def _declare_gemm(self, function: Any, scalar: Any) -> _Function:
        integer, pointer = self._integer, ctypes.c_void_p
        function.argtypes = [
            *[ctypes.c_int] * 3,
            *[integer] * 3,
            *(scalar, pointer, integer, pointer, integer),
            *(scalar, pointer, integer),
        ]
        return _Function(function, np.dtype(scalar), _PRODUCT)

    def _declare_gemv(self, function: Any, scalar: Any) -> _Function:
        integer, pointer = self._integer, ctypes.c_void_p
        function.argtypes = [
            *[ctypes.c_int] * 2,
            *[integer] * 2,
            *(scalar, pointer, integer, pointer, integer),
            *(scalar, pointer, integer),
        ]
        return _Function(function, np.dtype(scalar), _VECTOR)

    def gemm(
        self, a: Array, b: Array, out: Array, alpha: float, beta: float, parts: int = 1
    ) -> None:
        """One product of 2-D views of one wide float dtype, cut into parts for as many threads."""
        target = _layout(out)
        if target is None:
            whole = np.ascontiguousarray(out)
            self.gemm(a, b, whole, alpha, beta, parts)
            out[...] = whole
            return
        if target[0] == _TRANSPOSE:  # outᵀ = bᵀ aᵀ has rows that BLAS can write
            a, b, out = b.T, a.T, out.T
        a, (flag_a, lead_a) = _addressable(a)
        b, (flag_b, lead_b) = _addressable(b)
        lead_out = target[1]
        rows, inner = a.shape
        columns = b.shape[1]
        few = flag_b == _TRANSPOSE and 1 < rows <= _FEW_ROWS and columns >= 4 * rows
        if few and beta in (0.0, 1.0):
            turned = memory.empty((columns, rows), out.dtype)
            self.gemm(b.T, a.T, turned, alpha, 0.0, parts)
            if beta:
                np.add(out, turned.T, out=out)
            else:
                np.copyto(out, turned.T)
            return
        if max(rows, columns, inner, lead_a, lead_b, lead_out) > self._limit:
            self._fallback.gemm(a, b, out, alpha, beta)  # ctypes would wrap silently
            return
        if rows == 1:  # gemm would copy the matrix, and take several times as long
            self._matrix_vector(b, flag_b, lead_b, True, a[0], out[0], alpha, beta, parts)
            return
        if columns == 1:
            self._matrix_vector(a, flag_a, lead_a, False, b[:, 0], out[:, 0], alpha, beta, parts)
            return
        item, places = out.itemsize, [memory.address(matrix) for matrix in (a, b, out)]
        by_rows = rows >= columns  # each thread lays out the whole of the other matrix for itself
        row_of_a = lead_a if flag_a == _NO_TRANSPOSE else 1
        column_of_b = 1 if flag_b == _NO_TRANSPOSE else lead_b
        calls = []
        for piece in _cuts(rows if by_rows else columns, parts):
            first, count = piece.start * item, piece.stop - piece.start
            at_a, at_b, at_out = places
            if by_rows:
                at_a, at_out = at_a + first * row_of_a, at_out + first * lead_out
            else:
                at_b, at_out = at_b + first * column_of_b, at_out + first
            size = (count, columns, inner) if by_rows else (rows, count, inner)
            calls.append(
                (
                    *(_ROW_MAJOR, flag_a, flag_b, *size),
                    *(alpha, at_a, lead_a, at_b, lead_b),
                    *(beta, at_out, lead_out),
                )
            )
        self._gemm[out.dtype](calls, rows * columns * inner)

    def _matrix_vector(
        self,
        matrix: Array,
        flag: int,
        lead: int,
        transposed: bool,
        vector: Array,
        out: Array,
        alpha: float,
        beta: float,
        parts: int,
    ) -> None:
        """out = alpha * matrix @ vector + beta * out, or with the matrix transposed."""
        rows, columns = matrix.shape if flag == _NO_TRANSPOSE else matrix.shape[::-1]
        as_stored = (flag == _NO_TRANSPOSE) != transposed
        item = out.itemsize
        step, step_out = (x.strides[0] // item if len(x) > 1 else 1 for x in (vector, out))
        at, at_vector, at_out = (memory.address(array) for array in (matrix, vector, out))
        calls = []
        for piece in _cuts(len(out), parts):  # each some elements of the result
            first, count = piece.start * item, piece.stop - piece.start
            calls.append(
                (
                    *(_ROW_MAJOR, _NO_TRANSPOSE if as_stored else _TRANSPOSE),
                    *((count, columns) if as_stored else (rows, count)),
                    *(alpha, at + first * (lead if as_stored else 1), lead, at_vector, step),
                    *(beta, at_out + first * step_out, step_out),
                )
            )
        self._gemv[out.dtype](calls, rows * columns)

    def as_call(
        self, a: Array, b: Array, out: Array, beta: float
    ) -> tuple[list[int], dict[int, Array]] | None:
        """A product out = a @ b + beta * out as what `Crew.caller` is given.

        Args:
            a: shape (rows, k), float32 as the others.
            b: shape (k, columns).
            out: shape (rows, columns), contiguous rows.
            beta: 0 or 1.

        Returns:
            The words, and the matrices by the places of their addresses; None where BLAS can't
            address them.
        """
        layouts = [_layout(matrix) for matrix in (a, b, out)]
        if None in layouts or layouts[2][0] == _TRANSPOSE:  # type: ignore[index]
            return None
        (flag_a, lead_a), (flag_b, lead_b), (_, lead_out) = layouts  # type: ignore[misc]
        size = (*out.shape, a.shape[1])
        if max(*size, lead_a, lead_b, lead_out) > self._limit:
            return None
        function = self._gemm[out.dtype]
        places = [memory.address(matrix) for matrix in (a, b, out)]
        record = function.record(
            (
                *(_ROW_MAJOR, flag_a, flag_b, *size),
                *(1.0, places[0], lead_a, places[1], lead_b),
                *(beta, places[2], lead_out),
            )
        )
        words = list(struct.unpack(f"={len(record) // 8}q", record))
        return words, {words.index(at): x for at, x in zip(places, (a, b, out), strict=True)}

    def stepwise(self, a: Array, b: Array, out: Array, beta: float) -> Callable[[int], None]:
        """Products of the matrices of 3-D stacks, one at a time."""
        if out.shape[2] == 1:  # gemm knows what is quicker for one column
            return lambda step: self.gemm(a[step], b[step], out[step], 1.0, beta)
        layouts = [_layout(stack[0]) for stack in (a, b, out)]
        lengths = [*out.shape[1:], *a.shape[1:], *(layout[1] for layout in layouts if layout)]
        if None in layouts or layouts[2][0] == _TRANSPOSE or max(lengths) > self._limit:  # type: ignore[index]
            return lambda step: self.gemm(a[step], b[step], out[step], 1.0, beta)
        (flag_a, lead_a), (flag_b, lead_b), (_, lead_out) = layouts  # type: ignore[misc]
        rows, columns = out.shape[1:]
        fixed = (_ROW_MAJOR, flag_a, flag_b, rows, columns, a.shape[2], 1.0)
        function = self._gemm[out.dtype].function
        (at_a, at_b, at_out), (by_a, by_b, by_out) = zip(
            *((memory.address(stack), stack.strides[0]) for stack in (a, b, out)), strict=True
        )

        def product(step: int, stacks: tuple[Array, ...] = (a, b, out)) -> None:
            function(
                *fixed,
                *(at_a + step * by_a, lead_a, at_b + step * by_b, lead_b),
                *(beta, at_out + step * by_out, lead_out),
            )

        return product

    def gemm_batch(self, a: Array, b: Array, out: Array, alpha: float, beta: float) -> None:
        """Many products, of N-D views with equal leading axes; a and b may repeat, out not."""
        rows, columns = out.shape[-2:]
        if rows * columns * a.shape[-1] <= SMALL:
            self._fallback.gemm(a, b, out, alpha, beta)
            return
        for index in np.ndindex(out.shape[:-2]):
            self.gemm(a[index], b[index], out[index], alpha, beta)


#: Where products are cut, in rows or columns: as many as the kernels of BLAS take together.
_UNIT = 16


def _cuts(length: int, parts: int) -> list[slice]:
    if parts == 1:
        return [slice(0, length)]
    units = parallel.split(-(-length // _UNIT), parts)
    return [slice(unit.start * _UNIT, min(unit.stop * _UNIT, length)) for unit in units]


def _text(function: Any) -> str:
    function.argtypes, function.restype = [], ctypes.c_char_p
    return (function() or b"unknown").decode()


def _addressable(matrix: Array) -> tuple[Array, tuple[int, int]]:
    layout = _layout(matrix)
    if layout is None:
        matrix = np.ascontiguousarray(matrix)
        layout = _NO_TRANSPOSE, matrix.shape[1]
    return matrix, layout


_CHOICES = ("auto", "openblas", "scipy-openblas32", "system", "numpy")
_current: OpenBlas | NumPyBlas | None = None
#: Whether nobody asked for a library, so that large products go by tiles where there are some.
_automatic = False
_guard = threading.Lock()


def _wheel_libraries() -> Iterator[tuple[str, str]]:
    """The library inside the wheel, found without importing it (that costs 50 ms)."""
    spec = importlib.util.find_spec("scipy_openblas32")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for path in sorted(Path(folder).rglob("*openblas*")):
            if path.suffix in (".so", ".dylib", ".dll"):
                yield "scipy-openblas32", str(path)


def _system_libraries() -> Iterator[tuple[str, str]]:
    for name in ("openblas", "openblas64_", "openblas64"):
        path = ctypes.util.find_library(name)
        if path is not None:
            yield "system", path


def _load(choice: str) -> OpenBlas | NumPyBlas:
    sources = {
        "auto": (_wheel_libraries, _system_libraries),
        "openblas": (_wheel_libraries, _system_libraries),
        "scipy-openblas32": (_wheel_libraries,),
        "system": (_system_libraries,),
        "numpy": (),
    }
    if choice not in sources:
        raise ValueError(f"BLAS is {choice!r}: expected one of {', '.join(_CHOICES)}")
    tried = []
    for name, path in itertools.chain.from_iterable(find() for find in sources[choice]):
        try:
            return OpenBlas(name, path)
        except OSError as error:
            tried.append(str(error))
    if choice in ("auto", "numpy"):
        return NumPyBlas()
    found = "; ".join(tried) or "no library was found"
    raise OSError(f"can't load the BLAS {choice!r}: {found}. `pip install scipy-openblas32`?")


def library() -> OpenBlas | NumPyBlas:
    """What makes products now; loaded when first asked for."""
    global _current, _automatic
    if _current is None:
        with _guard:
            if _current is None:
                choice = os.environ.get("TE_BLAS", "auto")
                _automatic = choice == "auto"
                _current = _load(choice)
    return _current


def uses_tiles() -> bool:
    """Whether large products of float32 are made by the processor's tiles."""
    library()
    return _automatic and has_tiles()


def set_blas(choice: str) -> None:
    """Choose what computes matrix products, for the whole process.

    The environment variable TE_BLAS makes the same choice before the first product.

    Args:
        choice: "auto", "openblas" (the wheel's or the system's), "scipy-openblas32", "system",
            or "numpy". With "auto", the processor's tiles (AMX) make large products of float32,
            where it has them, and OpenBLAS the others.

    Raises:
        ValueError: choice is none of these.
        OSError: the library isn't there or can't be used; the earlier choice stays.
    """
    global _current, _automatic
    loaded = _load(choice)
    with _guard:
        _current, _automatic = loaded, choice == "auto"


def blas_info() -> dict[str, Any]:
    """What computes matrix products.

    Returns:
        `library` ("scipy-openblas32", "system" or "numpy"), `version`, `kernel` (the processor
        that OpenBLAS chose its loops for), `threads` (the engine's; OpenBLAS itself has one),
        `path`, and `tiles` (whether the processor's tiles make large products of float32).

    Example:
        >>> sorted(blas_info())
        ['kernel', 'library', 'path', 'threads', 'tiles', 'version']
    """
    blas = library()
    return {
        "library": blas.library,
        "version": blas.version,
        "kernel": blas.kernel,
        "threads": parallel.get_num_threads(),
        "path": blas.path,
        "tiles": uses_tiles(),
    }
