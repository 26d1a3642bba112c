"""What processors do differently: width, registers, the last vector of a row, and single steps.

The compiler knows one kind of vector; a `Target` says how long it is, and does with masks what
AVX-512 does with masks and AVX2 with vectors that choose lanes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Final

from .assembler import Assembler, Constant, Memory

#: Bytes of instructions: a > b and neither NaN; to the nearest whole number, ties to even; the
#: significand from 1 to 2, and NaN below 0.
_GREATER, _NEAREST, _FROM_ONE = 0x1E, 0x08, 0x0C

#: Steps of one instruction: its name, and the byte at its end.
_COMMON: Final[dict[str, tuple[str, int | None]]] = {
    "add": ("vaddps", None),
    "subtract": ("vsubps", None),
    "multiply": ("vmulps", None),
    "divide": ("vdivps", None),
    "maximum": ("vmaxps", None),
    "minimum": ("vminps", None),
    "and": ("vandps", None),
    "and_not": ("vandnps", None),
    "or": ("vorps", None),
    "xor": ("vxorps", None),
    "square_root": ("vsqrtps", None),
    "exponent_bits": ("vpsrld", 23),
    "as_exponent": ("vpslld", 23),
}


@dataclass(frozen=True)
class Target(ABC):
    """A kind of processor.

    Args:
        name: as in `set_kernels`.
        vector: bytes of a vector.
        registers: how many vectors it has.
        steps: steps of formulas that are one instruction, and its byte.
        turns: instructions that exchange lanes, half a vector apart, then a quarter, and so on, to
            neighbours, and their bytes.
        repeats: whether a number in memory can be a source, in all lanes.
        masks: what says which lanes a row's last vector has, by how many they are.
        needs: bits that must be set: in leaf 1 of cpuid, ecx; in leaf 7, ebx; and in xgetbv.
    """

    name: str
    vector: int
    registers: int
    steps: dict[str, tuple[str, int | None]]
    turns: tuple[tuple[str, int], ...]
    repeats: bool
    masks: tuple[bytes, ...]
    needs: tuple[int, int, int]

    @property
    def lanes(self) -> int:
        """Elements of a vector."""
        return self.vector // 4

    @abstractmethod
    def begin(self, code: Assembler, mask: Memory) -> None:
        """What a kernel begins with."""

    @abstractmethod
    def load_tail(self, code: Assembler, target: int, source: Memory, mask: Memory) -> None:
        """Load the last elements of a row, and 0 in the other lanes."""

    @abstractmethod
    def store_tail(
        self, code: Assembler, target: Memory, source: int, mask: Memory, spare: int
    ) -> None:
        """Write the last elements of a row, and nothing behind them."""

    @abstractmethod
    def reduce_tail(
        self,
        code: Assembler,
        name: str,
        total: int,
        source: int | Memory | Constant,
        mask: Memory,
        spare: int,
    ) -> None:
        """Add the last elements of a row to a total, or take their maximum into it."""

    @abstractmethod
    def choose(
        self,
        code: Assembler,
        target: int,
        compared: tuple[int, int | Memory | Constant],
        this: int | Memory | Constant,
        other: int,
    ) -> None:
        """`this` where the first one compared is greater, `other` elsewhere.

        The target is none of the other registers.
        """


class _Avx512(Target):
    """16 elements, 32 registers and masks, of which 1 is that of a row's last vector."""

    _TAIL, _CHOICE = 1, 2

    def begin(self, code: Assembler, mask: Memory) -> None:
        code.load_mask(self._TAIL, mask)

    def load_tail(self, code: Assembler, target: int, source: Memory, mask: Memory) -> None:
        code.vector("vmovups", target, source, mask=self._TAIL, zero=True)

    def store_tail(
        self, code: Assembler, target: Memory, source: int, mask: Memory, spare: int
    ) -> None:
        code.store(target, source, self._TAIL)

    def reduce_tail(
        self,
        code: Assembler,
        name: str,
        total: int,
        source: int | Memory | Constant,
        mask: Memory,
        spare: int,
    ) -> None:
        code.vector(name, total, total, source, mask=self._TAIL)

    def choose(
        self,
        code: Assembler,
        target: int,
        compared: tuple[int, int | Memory | Constant],
        this: int | Memory | Constant,
        other: int,
    ) -> None:
        code.vector("vcmpps", self._CHOICE, *compared, immediate=_GREATER)
        code.vector("vblendmps", target, other, this, mask=self._CHOICE)


class _Avx2(Target):
    """8 elements and 16 registers; a mask is a vector, whose negative lanes are chosen."""

    def begin(self, code: Assembler, mask: Memory) -> None:
        pass  # masks are loaded where they are used: registers are few

    def load_tail(self, code: Assembler, target: int, source: Memory, mask: Memory) -> None:
        code.vector("vmovups", target, mask)
        code.vector("vmaskmovps", target, target, source)

    def store_tail(
        self, code: Assembler, target: Memory, source: int, mask: Memory, spare: int
    ) -> None:
        code.vector("vmovups", spare, mask)
        code.store_chosen(target, source, spare)

    def reduce_tail(
        self,
        code: Assembler,
        name: str,
        total: int,
        source: int | Memory | Constant,
        mask: Memory,
        spare: int,
    ) -> None:
        code.vector("vmovups", spare, mask)
        if name == "vaddps":  # 0 behind the row
            code.vector("vandps", spare, spare, source)
        else:  # what is there already
            code.vector("vblendvps", spare, total, source, immediate=spare << 4)
        code.vector(name, total, total, spare)

    def choose(
        self,
        code: Assembler,
        target: int,
        compared: tuple[int, int | Memory | Constant],
        this: int | Memory | Constant,
        other: int,
    ) -> None:
        code.vector("vcmpps", target, *compared, immediate=_GREATER)
        code.vector("vblendvps", target, other, this, immediate=target << 4)


_QUARTER: Final = (("vpermilps", 0x4E), ("vpermilps", 0xB1))

AVX512: Final = _Avx512(
    name="avx512",
    vector=64,
    registers=32,
    steps=_COMMON
    | {
        "round": ("vrndscaleps", _NEAREST),
        "scale": ("vscalefps", None),
        "exponent": ("vgetexpps", None),
        "significand": ("vgetmantps", _FROM_ONE),
    },
    turns=(("vshuff32x4", 0x4E), ("vshuff32x4", 0xB1), *_QUARTER),
    repeats=True,
    masks=tuple(((1 << count) - 1).to_bytes(8, "little") for count in range(16)),
    # F, DQ, BW and VL; the registers of SSE, AVX and AVX-512
    needs=(0, 1 << 16 | 1 << 17 | 1 << 30 | 1 << 31, 0b11100110),
)
AVX2: Final = _Avx2(
    name="avx2",
    vector=32,
    registers=16,
    steps=_COMMON | {"round": ("vroundps", _NEAREST)},
    turns=(("vperm2f128", 0x01), *_QUARTER),
    repeats=False,
    masks=tuple((b"\xff" * 4 * count).ljust(32, b"\0") for count in range(8)),
    # FMA and AVX; AVX2; the registers of SSE and AVX
    needs=(1 << 12 | 1 << 28, 1 << 5, 0b110),
)
#: All of them, the better one first.
TARGETS: Final = {target.name: target for target in (AVX512, AVX2)}
