"""Kernels: formulas that run as machine code where the processor and the system allow it.

What a chain of NumPy calls does in many passes over a block, a kernel does in one, and a small
array takes one call instead of many. Each operation keeps its chain of NumPy calls, for the other
dtypes, layouts and processors; the tests hold that both agree.
"""

from __future__ import annotations

import ctypes
import os
import struct
import threading
from collections.abc import Callable, Sequence
from typing import Any

from .. import executable, parallel
from ..dtypes import Array, float32
from ..executable import Code
from .compiler import LANES, OPERAND_SIZE, VECTOR, compile_formula
from .formula import Column, Formula, Scalar

#: Elements up to which the GIL is kept: the call takes less time than giving it away.
_KEEP_GIL = 1 << 14
#: Masks of the last vector of a row, by how many elements it has.
_MASKS = [(1 << count) - 1 for count in range(LANES)]

# A function of a leaf (edi), a subleaf (esi) and a place (rdx): cpuid's eax, ebx and ecx go there;
# for the leaf -1 xgetbv's eax does, which tells the registers that the system saves.
_CPUID = bytes.fromhex(
    "53 4989d0 89f8 89f1"  # push rbx; mov r8, rdx; mov eax, edi; mov ecx, esi
    "83ffff 740f"  # cmp edi, -1; je to xor
    "0fa2 418900 41895804 41894808"  # cpuid; mov [r8], eax; mov [r8+4], ebx; mov [r8+8], ecx
    "5b c3"  # pop rbx; ret
    "31c9 0f01d0 418900 5b c3"  # xor ecx, ecx; xgetbv; mov [r8], eax; pop rbx; ret
)
#: Bits of cpuid: the system uses xgetbv (leaf 1, ecx); AVX-512 F, DQ, BW and VL (leaf 7, ebx).
_OSXSAVE, _AVX512 = 1 << 27, 1 << 16 | 1 << 17 | 1 << 30 | 1 << 31
#: Bits of xgetbv: the registers of SSE, AVX and AVX-512 are saved.
_SAVED = 0b11100110


def _processor_fits() -> bool:
    code = Code(_CPUID)
    function = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_int, ctypes.c_void_p)(code.address)
    found = (ctypes.c_uint32 * 3)()

    def ask(leaf: int) -> tuple[int, int, int]:
        function(leaf, 0, ctypes.addressof(found))
        return found[0], found[1], found[2]

    if ask(0)[0] < 7 or not ask(1)[2] & _OSXSAVE:
        return False
    return ask(-1)[0] & _SAVED == _SAVED and ask(7)[1] & _AVX512 == _AVX512


def _machine() -> str:
    """What kernels run as here: "avx512" or "numpy"."""
    if not executable.possible():
        return "numpy"
    try:
        return "avx512" if _processor_fits() else "numpy"
    except OSError:  # such as a system that lets no memory be both written and run
        return "numpy"


_CHOICES = ("auto", "avx512", "numpy")


class _State:
    """What runs, from the first question on; and a lock for compiling."""

    def __init__(self) -> None:
        self.current: str | None = None
        self.guard = threading.Lock()


_state = _State()


def _chosen(choice: str) -> str:
    if choice not in _CHOICES:
        raise ValueError(f"kernels are {choice!r}: expected one of {', '.join(_CHOICES)}")
    found = "numpy" if choice == "numpy" else _machine()
    if choice == "avx512" and found != choice:
        raise OSError("can't run kernels of AVX-512 on this processor and system")
    return found


def set_kernels(choice: str) -> None:
    """Choose how chains of elementwise steps in float32 run, for the whole process.

    The environment variable TE_KERNELS makes the same choice from the start.

    Args:
        choice: "auto", "avx512" (machine code, made at run time, one pass over the elements), or
            "numpy" (NumPy's loops, one after the other).

    Raises:
        ValueError: choice is none of these.
        OSError: the processor or the system can't run it; the earlier choice stays.
    """
    _state.current = _chosen(choice)


def kernel_info() -> dict[str, str]:
    """How chains of elementwise steps run.

    Returns:
        `kernels`: "avx512" or "numpy".

    Example:
        >>> sorted(kernel_info())
        ['kernels']
    """
    return {"kernels": _current()}


def _current() -> str:
    if _state.current is None:
        _state.current = _chosen(os.environ.get("TE_KERNELS", "auto"))
    return _state.current


def runs(*arrays: Array) -> bool:
    """Whether a kernel can be called with these arrays: float32, in C order, on this machine."""
    return (_state.current or _current()) != "numpy" and all(
        a.dtype is float32 and a.flags.c_contiguous for a in arrays
    )


class Kernel:
    """A formula as a function of arrays; made with the decorator `kernel`.

    Callers see to it that `runs` says yes, and that outputs are writable and of the right size.
    """

    def __init__(self, function: Callable[..., None]) -> None:
        self.function = function
        self._held: Any = self._compile_and_run
        self._released: Any = self._compile_and_run
        self._code: Code | None = None
        formula = Formula(function)
        kinds = formula.kinds
        self._adds = formula.adds
        arrays = [kind for kind in kinds if kind is not Scalar]
        if arrays != kinds[: len(arrays)]:
            raise TypeError(f"kernel {function.__name__} has scalars before arrays")
        #: How many operands are arrays.
        self.arrays = len(arrays)
        self._columns = [kind is Column for kind in arrays]
        self.scalars = len(kinds) - len(arrays)
        scalars = f"{self.scalars}f"
        self._one_row = struct.Struct(f"=3q{f'q{OPERAND_SIZE - 8}x' * len(arrays)}{scalars}").pack
        self._many_rows = struct.Struct(f"=3q{2 * len(arrays)}q{scalars}").pack

    def _compile_and_run(self, record: bytes) -> None:
        """The first call; later ones go to the code."""
        self._compile()
        self._released(record)

    def _compile(self) -> None:
        with _state.guard:
            if self._code is None:
                code = Code(compile_formula(Formula(self.function)))
                self._released = ctypes.CFUNCTYPE(None, ctypes.c_char_p)(code.address)
                self._held = ctypes.PYFUNCTYPE(None, ctypes.c_char_p)(code.address)
                self._code = code

    @property
    def address(self) -> int:
        """Where the code begins."""
        if self._code is None:
            self._compile()
        assert self._code is not None
        return self._code.address

    @staticmethod
    def head(rows: int, columns: int) -> tuple[int, int, int]:
        """The first words of a record, for matrices of this size."""
        whole, rest = divmod(columns, LANES)
        return rows, whole * VECTOR, _MASKS[rest]

    def record(
        self, rows: int, columns: int, places: Sequence[int], scalars: Sequence[float] = ()
    ) -> bytes:
        """What the code gets, for matrices of this size.

        Args:
            rows: how many.
            columns: how many.
            places: for each array the address of its object, and the bytes from row to row.
            scalars: the numbers.
        """
        return self._many_rows(*self.head(rows, columns), *places, *scalars)

    def flat(self, *given: Any) -> None:
        """Run over whole arrays of equally many elements, as one row; scalars come last.

        Large arrays are cut over the engine's threads, a part for each: elements don't depend on
        each other, and a kernel goes over them only once.
        """
        size = given[0].size
        if not size:
            return
        count = self.arrays
        if size >= parallel.PARALLEL_KERNEL_FROM and (parts := _parts(size)):
            arrays = [array.reshape(-1) for array in given[:count]]

            def run(index: int) -> None:
                self.flat(*[array[parts[index]] for array in arrays], *given[count:])

            parallel.parallel_for(run, len(parts))
            return
        whole, rest = divmod(size, LANES)
        call = self._held if size <= _KEEP_GIL else self._released
        addresses = map(id, given[:count])
        call(self._one_row(1, whole * VECTOR, _MASKS[rest], *addresses, *given[count:]))

    def rows(self, *given: Any) -> None:
        """Run over the rows of matrices.

        The first one sets the size. A vector in place of a matrix serves for every row, and so
        isn't one to write to but by `add`; what has one number a row is a vector, or a matrix of
        one column. Many rows are cut over the engine's threads, unless sums over rows are made.
        """
        rows, columns = given[0].shape
        if not rows:
            return
        count = self.arrays
        if rows * columns >= parallel.PARALLEL_KERNEL_FROM and not self._adds:
            parts = _parts(rows)
            if parts:
                self._rows_in_parts(parts, given)
                return
        whole, rest = divmod(columns, LANES)
        places: list[int] = []
        for array, column in zip(given, self._columns, strict=False):
            places.append(id(array))
            places.append(array.strides[0] if column or array.ndim == 2 else 0)
        call = self._held if rows * columns <= _KEEP_GIL else self._released
        call(self._many_rows(rows, whole * VECTOR, _MASKS[rest], *places, *given[count:]))

    def _rows_in_parts(self, parts: list[slice], given: tuple[Any, ...]) -> None:
        cut = [column or a.ndim == 2 for a, column in zip(given, self._columns, strict=False)]
        scalars = given[self.arrays :]

        def run(index: int) -> None:
            arrays = zip(given, cut, strict=False)
            self.rows(*[a[parts[index]] if c else a for a, c in arrays], *scalars)

        parallel.parallel_for(run, len(parts))


def _parts(length: int) -> list[slice] | None:
    """A part for each of the engine's threads; None where they are at work already."""
    threads = parallel.get_num_threads()
    return None if threads == 1 or parallel.in_parallel() else parallel.split(length, threads)


def kernel(function: Callable[..., None]) -> Kernel:
    """A function of operands as a kernel.

    Args:
        function: takes `Matrix` and `Column` operands, then `Scalar` ones, by annotation; reads
            some and writes others.
    """
    return Kernel(function)
