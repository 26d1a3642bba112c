"""Kernels: formulas that run as machine code where the processor and the system allow it.

What a chain of NumPy calls does in many passes over a block, a kernel does in one, and a small
array takes one call instead of many. Each operation keeps its chain of NumPy calls, for the other
dtypes, layouts and processors; the tests hold that both agree.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
import threading
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from .. import executable, parallel
from ..dtypes import Array, float32
from ..executable import Code
from .compiler import OPERAND_SIZE, compile_formula
from .formula import Column, Formula, Matrix, Scalar
from .target import TARGETS, Target

#: Each thread has a multiple of so many elements or rows.
_UNIT = 16
#: Elements up to which the GIL is kept: the call takes less time than giving it away.
_KEEP_GIL = 1 << 14

# A function of a leaf (edi), a subleaf (esi) and a place (rdx): cpuid's eax, ebx, ecx and edx go
# there; for the leaf -1 xgetbv's eax does, which tells the registers that the system saves.
_CPUID = bytes.fromhex(
    "53 4989d0 89f8 89f1"  # push rbx; mov r8, rdx; mov eax, edi; mov ecx, esi
    "83ffff 7413"  # cmp edi, -1; je to xor
    "0fa2 418900 41895804"  # cpuid; mov [r8], eax; mov [r8+4], ebx
    "41894808 4189500c"  # mov [r8+8], ecx; mov [r8+12], edx
    "5b c3"  # pop rbx; ret
    "31c9 0f01d0 418900 5b c3"  # xor ecx, ecx; xgetbv; mov [r8], eax; pop rbx; ret
)
#: The bit of cpuid's leaf 1, ecx, that says that there is xgetbv.
_XGETBV = 1 << 27


def _features() -> tuple[int, int, int, int]:
    """What processor and system can do, in bits: leaf 1, ecx; leaf 7, ebx; xgetbv; leaf 7, edx."""
    code = Code(_CPUID)
    function = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_int, ctypes.c_void_p)(code.address)
    found = (ctypes.c_uint32 * 4)()

    def ask(leaf: int) -> tuple[int, int, int, int]:
        function(leaf, 0, ctypes.addressof(found))
        return found[0], found[1], found[2], found[3]

    leaves, more = ask(0)[0], ask(1)[2]
    if leaves < 7 or not more & _XGETBV:
        return 0, 0, 0, 0
    _, first, _, second = ask(7)
    return more, first, ask(-1)[0], second


def _fitting() -> list[str]:
    """The targets that run here, the best one first."""
    if not executable.possible():
        return []
    try:
        found = _features()
    except OSError:  # such as a system that lets no memory be both written and run
        return []
    return [
        target.name
        for target in TARGETS.values()
        if all(has & need == need for has, need in zip(found, target.needs, strict=False))
    ]


#: Bits that tiles of bfloat16 need, beside those of AVX-512: of xgetbv, and of leaf 7, edx.
_TILE_REGISTERS, _TILE_FEATURES = 1 << 17 | 1 << 18, 1 << 22 | 1 << 24
#: The system call by which Linux on x86-64 grants a process registers, what is asked of it, and
#: the registers: the contents of tiles.
_ARCH_PRCTL, _REQUEST, _CONTENTS = 158, 0x1023, 18


@cache
def _tiles_granted() -> bool:
    """Whether processor and system have tiles for this process; Linux has to be asked first."""
    if not sys.platform.startswith("linux") or not executable.possible():
        return False
    try:
        *_, registers, features = _features()
    except OSError:
        return False
    if (
        registers & _TILE_REGISTERS != _TILE_REGISTERS
        or features & _TILE_FEATURES != _TILE_FEATURES
    ):
        return False
    return bool(ctypes.CDLL(None).syscall(_ARCH_PRCTL, _REQUEST, _CONTENTS) == 0)


def has_tiles() -> bool:
    """Whether machine code may use tiles: kernels are of AVX-512, and the processor has tiles."""
    return (_state.current or _current()) == "avx512" and _tiles_granted()


_CHOICES = ("auto", *TARGETS, "numpy")


class _State:
    """What runs, from the first question on; and a lock for compiling.

    `target` stays when NumPy is chosen: a call may be on its way.
    """

    def __init__(self) -> None:
        self.current: str | None = None
        self.target: str | None = None
        self.guard = threading.Lock()

    def choose(self, name: str) -> str:
        if name != "numpy":
            self.target = name
        self.current = name
        return name


_state = _State()


def _chosen(choice: str) -> str:
    if choice not in _CHOICES:
        raise ValueError(f"kernels are {choice!r}: expected one of {', '.join(_CHOICES)}")
    if choice == "numpy":
        return choice
    fitting = _fitting()
    if choice == "auto":
        return fitting[0] if fitting else "numpy"
    if choice not in fitting:
        raise OSError(
            f"kernels of {choice} don't run on this processor and system: "
            f"{' and '.join([*fitting, 'numpy'])} would"
        )
    return choice


def set_kernels(choice: str) -> None:
    """Choose how chains of elementwise steps in float32 run, for the whole process.

    The environment variable TE_KERNELS makes the same choice from the start.

    Args:
        choice: "avx512" or "avx2" (machine code, made at run time, one pass over the elements),
            "numpy" (NumPy's loops, one after the other), or "auto", the first of them that runs.

    Raises:
        ValueError: choice is none of these.
        OSError: the processor or the system can't run it; the earlier choice stays.
    """
    _state.choose(_chosen(choice))


def kernel_info() -> dict[str, str]:
    """How chains of elementwise steps run.

    Returns:
        `kernels`: "avx512", "avx2" or "numpy".

    Example:
        >>> sorted(kernel_info())
        ['kernels']
    """
    return {"kernels": _current()}


def _current() -> str:
    if _state.current is None:
        return _state.choose(_chosen(os.environ.get("TE_KERNELS", "auto")))
    return _state.current


def runs(*arrays: Array) -> bool:
    """Whether a kernel can be called with these arrays: float32, in C order, on this machine."""
    return (_state.current or _current()) != "numpy" and all(
        a.dtype is float32 and a.flags.c_contiguous for a in arrays
    )


class Program:
    """A kernel's machine code for one target, and how records for it are packed.

    Attributes:
        address: where the code begins.
        held: the function of a record, called with the GIL.
        released: the same one, called without it.
        one_row: packs a record for a single row.
        many_rows: packs one with the bytes from row to row.
    """

    def __init__(self, formula: Formula, target: Target) -> None:
        self._lanes, self._vector = target.lanes, target.vector
        words = struct.Struct(f"={len(target.masks[0]) // 8}q")
        self._masks = [words.unpack(mask) for mask in target.masks]
        arrays = sum(kind is not Scalar for kind in formula.kinds)
        head, scalars = f"={2 + len(self._masks[0])}q", f"{len(formula.kinds) - arrays}f"
        address = f"q{OPERAND_SIZE - 8}x"
        self.one_row = struct.Struct(f"{head}{address * arrays}{scalars}").pack
        self.many_rows = struct.Struct(f"{head}{2 * arrays}q{scalars}").pack
        self.address = Code(compile_formula(formula, target)).address
        self.held: Any = ctypes.PYFUNCTYPE(None, ctypes.c_char_p)(self.address)
        self.released: Any = ctypes.CFUNCTYPE(None, ctypes.c_char_p)(self.address)

    def head(self, rows: int, columns: int) -> tuple[int, ...]:
        """The first words of a record, for matrices of this size."""
        whole, rest = divmod(columns, self._lanes)
        return rows, whole * self._vector, *self._masks[rest]


class Kernel:
    """A formula as a function of arrays; made with the decorator `kernel`.

    Callers see to it that `runs` says yes, and that outputs are writable and of the right size.
    """

    def __init__(self, function: Callable[..., None]) -> None:
        self.function = function
        self._programs: dict[str | None, Program] = {}
        formula = Formula(function)
        kinds = formula.kinds
        self._adds = formula.adds
        arrays = [kind for kind in kinds if kind is not Scalar]
        if arrays != kinds[: len(arrays)]:
            raise TypeError(f"kernel {function.__name__} has scalars before arrays")
        #: How many operands are arrays, and how many scalars.
        self.arrays, self.scalars = len(arrays), len(kinds) - len(arrays)
        self._columns = [kind is Column for kind in arrays]
        self._elementwise = all(kind is Matrix for kind in arrays) and not formula.reduces

    def formula(self, target: Target) -> Formula:
        """The formula, in steps that the target has."""
        return Formula(self.function, target.steps)

    def program(self) -> Program:
        """The code for what runs now; the first call makes it."""
        return self._programs.get(_state.target) or self._compile()

    def _compile(self) -> Program:
        name = _state.target
        if name is None:
            raise RuntimeError(f"kernel {self.function.__name__}: `runs` has to be asked first")
        with _state.guard:
            if name not in self._programs:
                target = TARGETS[name]
                self._programs[name] = Program(self.formula(target), target)
        return self._programs[name]

    def flat(self, *given: Any) -> None:
        """Run over whole arrays of equally many elements, as one row; scalars come last.

        Large arrays are cut over the engine's threads, a part for each: elements don't depend on
        each other, and a kernel goes over them only once.
        """
        size = given[0].size
        if not size:
            return
        count = self.arrays
        program = self._programs.get(_state.target) or self._compile()
        parts = _parts(size, size) if self._elementwise else None
        if parts is not None:
            arrays = [array.reshape(-1) for array in given[:count]]
            views = [[array[part] for array in arrays] for part in parts]
            records = [
                program.one_row(*program.head(1, own[0].size), *map(id, own), *given[count:])
                for own in views
            ]
            _share(program, records, size)
            return
        call = program.held if size <= _KEEP_GIL else program.released
        call(program.one_row(*program.head(1, size), *map(id, given[:count]), *given[count:]))

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
        program = self._programs.get(_state.target) or self._compile()
        size = rows * columns
        parts = None if self._adds else _parts(rows, size)
        if parts is not None:
            cut = [column or a.ndim == 2 for a, column in zip(given, self._columns, strict=False)]
            views = [
                [a[part] if c else a for a, c in zip(given, cut, strict=False)] for part in parts
            ]
            records = [self._record(program, own, given[count:]) for own in views]
            _share(program, records, size)
            return
        call = program.held if size <= _KEEP_GIL else program.released
        call(self._record(program, given[:count], given[count:]))

    def _record(self, program: Program, arrays: Sequence[Array], scalars: Sequence[float]) -> bytes:
        places: list[int] = []
        for array, column in zip(arrays, self._columns, strict=True):
            places.append(id(array))
            places.append(array.strides[0] if column or array.ndim == 2 else 0)
        return program.many_rows(*program.head(*arrays[0].shape), *places, *scalars)


def _parts(length: int, size: int) -> list[slice] | None:
    """A part for each of the engine's threads; None where none is to be shared out.

    Args:
        length: what is cut, rows or elements.
        size: how many elements there are.
    """
    if size < parallel.SHARED_KERNEL_FROM:
        return None
    if size < parallel.PARALLEL_KERNEL_FROM and parallel.crew() is None:
        return None
    count = parallel.parts()
    if count == 1 or length < count * _UNIT:
        return None
    units = parallel.split(-(-length // _UNIT), count)
    return [slice(part.start * _UNIT, min(part.stop * _UNIT, length)) for part in units]


def _share(program: Program, records: list[bytes], size: int) -> None:
    if parallel.crew() is None:
        parallel.parallel_for(lambda index: program.released(records[index]), len(records))
    else:
        short = size <= parallel.PARALLEL_KERNEL_FROM
        parallel.share([(program.address, record) for record in records], short=short)


def as_words(scalars: Sequence[float]) -> tuple[int, ...]:
    """Numbers of float32, two to a word."""
    words = -(-len(scalars) // 2)
    packed = struct.pack(f"={len(scalars)}f", *scalars)
    return struct.unpack(f"={words}q", packed.ljust(8 * words, b"\0"))


def kernel(function: Callable[..., None]) -> Kernel:
    """A function of operands as a kernel.

    Args:
        function: takes `Matrix` and `Column` operands, then `Scalar` ones, by annotation; reads
            some and writes others.
    """
    return Kernel(function)
