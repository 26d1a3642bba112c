"""x86-64 instructions as bytes: those that kernels are made of, and no others.

Vector instructions are EVEX-encoded with 512-bit registers (AVX-512 F and DQ) or VEX-encoded with
256-bit ones (AVX2 and FMA); those of tiles (AMX) are VEX-encoded. The source is Intel's Software
Developer's Manual, volume 2; tests compare each instruction with what the GNU assembler makes of
it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

#: General registers by number.
RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8, R9, R10, R11, R12, R13, R14, R15 = range(16)
#: Registers that a function must leave as it found them (System V ABI).
CALLEE_SAVED: Final = (RBX, RBP, R12, R13, R14, R15)

#: Bytes 0F, 0F 38 and 0F 3A before an opcode, by their number in a prefix.
_0F, _0F38, _0F3A = 1, 2, 3
#: The prefixes "none", 66, F3 and F2, by their number.
_NONE, _66, _F3, _F2 = 0, 1, 2, 3


@dataclass(frozen=True, slots=True)
class Memory:
    """[base + index + offset]; index RSP means none.

    With `broadcast`, one number there stands for all lanes.
    """

    base: int
    index: int = RSP
    offset: int = 0
    broadcast: bool = False


@dataclass(frozen=True, slots=True)
class Constant:
    """A number of the pool behind the code, in all lanes."""

    value: float


@dataclass(frozen=True, slots=True)
class _Form:
    """How an instruction is encoded.

    Args:
        prefix: by number.
        map: by number.
        opcode: the byte.
        unary: there is one source.
        extension: three bits of the opcode that stand in place of a register, or -1.
        size: bytes in memory, where it isn't a vector.
    """

    prefix: int
    map: int
    opcode: int
    unary: bool = False
    extension: int = -1
    size: int = 0


_FORMS: Final = {
    "vaddps": _Form(_NONE, _0F, 0x58),
    "vmulps": _Form(_NONE, _0F, 0x59),
    "vsubps": _Form(_NONE, _0F, 0x5C),
    "vminps": _Form(_NONE, _0F, 0x5D),
    "vdivps": _Form(_NONE, _0F, 0x5E),
    "vmaxps": _Form(_NONE, _0F, 0x5F),
    "vsqrtps": _Form(_NONE, _0F, 0x51, unary=True),
    "vandps": _Form(_NONE, _0F, 0x54),
    "vandnps": _Form(_NONE, _0F, 0x55),
    "vorps": _Form(_NONE, _0F, 0x56),
    "vxorps": _Form(_NONE, _0F, 0x57),
    "vmovups": _Form(_NONE, _0F, 0x10, unary=True),
    "vbroadcastss": _Form(_66, _0F38, 0x18, unary=True, size=4),
    "vfmadd213ps": _Form(_66, _0F38, 0xA8),
    "vfmadd231ps": _Form(_66, _0F38, 0xB8),
    "vfnmadd213ps": _Form(_66, _0F38, 0xAC),
    "vfnmadd231ps": _Form(_66, _0F38, 0xBC),
    "vcmpps": _Form(_NONE, _0F, 0xC2),
    "vpermilps": _Form(_66, _0F3A, 0x04, unary=True),
    "vunpcklps": _Form(_NONE, _0F, 0x14),
    "vunpckhps": _Form(_NONE, _0F, 0x15),
    "vshufps": _Form(_NONE, _0F, 0xC6),
    "vpaddd": _Form(_66, _0F, 0xFE),
    "vcvtps2dq": _Form(_66, _0F, 0x5B, unary=True),
    "vcvtdq2ps": _Form(_NONE, _0F, 0x5B, unary=True),
    "vpslld": _Form(_66, _0F, 0x72, unary=True, extension=6),
    "vpsrld": _Form(_66, _0F, 0x72, unary=True, extension=2),
    # of AVX-512 alone
    "vscalefps": _Form(_66, _0F38, 0x2C),
    "vgetexpps": _Form(_66, _0F38, 0x42, unary=True),
    "vgetmantps": _Form(_66, _0F3A, 0x26, unary=True),
    "vblendmps": _Form(_66, _0F38, 0x65),
    "vrangeps": _Form(_66, _0F3A, 0x50),
    "vpternlogd": _Form(_66, _0F3A, 0x25),
    "vcvtne2ps2bf16": _Form(_F2, _0F38, 0x72),
    "vrndscaleps": _Form(_66, _0F3A, 0x08, unary=True),
    "vshuff32x4": _Form(_66, _0F3A, 0x23),
    "vpermt2ps": _Form(_66, _0F38, 0x7F),
    "vpmovzxbd": _Form(_66, _0F38, 0x31, unary=True, size=16),
    # of AVX2 alone; the immediate of vblendvps is the number of its third source, times 16
    "vblendvps": _Form(_66, _0F3A, 0x4A),
    "vroundps": _Form(_66, _0F3A, 0x08, unary=True),
    "vmaskmovps": _Form(_66, _0F38, 0x2C),
    "vperm2f128": _Form(_66, _0F3A, 0x06),
}
_STORE: Final = _Form(_NONE, _0F, 0x11, unary=True)
_STORE_LOWEST: Final = _Form(_F3, _0F, 0x11, unary=True, size=4)
_STORE_BYTES: Final = _Form(_F3, _0F38, 0x31, unary=True, size=16)
_STORE_CHOSEN: Final = _Form(_66, _0F38, 0x2E)


class Assembler:
    """Code as it grows; `finish` puts the pool of constants behind it.

    Args:
        vector: bytes of a vector: 64 for EVEX, or 32 for VEX, which knows no masks and reads whole
            vectors of constants.
    """

    def __init__(self, vector: int = 64) -> None:
        self._vector = vector
        self._code = bytearray()
        self._uses: list[tuple[int, int, float]] = []

    # -- vectors --------------------------------------------------------------------------

    def vector(
        self,
        name: str,
        target: int,
        *sources: int | Memory | Constant,
        mask: int = 0,
        zero: bool = False,
        immediate: int | None = None,
    ) -> None:
        """A vector instruction; the last source may be in memory.

        Args:
            name: the instruction.
            target: register that is written; a mask register, of a comparison in EVEX.
            sources: those of the manual, in its order.
            mask: the mask register that chooses lanes; 0 chooses all.
            zero: lanes that aren't chosen become 0, instead of staying.
            immediate: the byte at the end.
        """
        form = _FORMS[name]
        first = 0 if form.unary else sources[0]
        assert isinstance(first, int) and len(sources) == (1 if form.unary else 2), name
        if form.extension >= 0:
            target, first = form.extension, target
        self._instruction(form, target, first, sources[-1], mask, zero, immediate)

    def store(self, target: Memory, source: int, mask: int = 0) -> None:
        """Write the chosen lanes of a register to memory."""
        self._instruction(_STORE, source, 0, target, mask)

    def store_lowest(self, target: Memory, source: int) -> None:
        """Vmovss [target], source: the first lane."""
        self._instruction(_STORE_LOWEST, source, 0, target)

    def store_bytes(self, target: Memory, source: int, mask: int = 0) -> None:
        """Vpmovdb [target], source: the lowest byte of each chosen lane."""
        self._instruction(_STORE_BYTES, source, 0, target, mask)

    def store_chosen(self, target: Memory, source: int, choice: int) -> None:
        """Vmaskmovps [target], choice, source: lanes where the vector `choice` is negative."""
        self._instruction(_STORE_CHOSEN, source, choice, target)

    def _instruction(
        self,
        form: _Form,
        register: int,
        first: int,
        last: int | Memory | Constant,
        mask: int = 0,
        zero: bool = False,
        immediate: int | None = None,
    ) -> None:
        broadcast = False
        if self._vector == 64:
            broadcast = not form.size and (
                isinstance(last, Constant) or (isinstance(last, Memory) and last.broadcast)
            )
            self._code += _evex(form, register, first, last, mask, zero, broadcast)
        else:
            assert not mask and not zero and not (isinstance(last, Memory) and last.broadcast)
            self._code += _vex(form, register, first, last)
        self._code.append(form.opcode)
        unit = 1 if self._vector != 64 else 4 if broadcast else form.size or 64
        self._operand(register, last, 0 if immediate is None else 1, unit)
        if immediate is not None:
            self._code.append(immediate)

    def _operand(
        self, register: int, last: int | Memory | Constant, behind: int = 0, unit: int = 1
    ) -> None:
        """The ModRM byte and what belongs to it.

        Args:
            register: what the byte's middle names.
            last: what the rest of it names.
            behind: bytes of the instruction that follow.
            unit: what an offset of one byte counts.
        """
        low = (register & 7) << 3
        if isinstance(last, int):
            self._code.append(0b11 << 6 | low | last & 7)
        elif isinstance(last, Constant):
            self._code.append(low | 0b101)  # relative to the next instruction
            self._uses.append((len(self._code), behind, last.value))
            self._code += bytes(4)
        else:
            mode, offset = _offset(last, unit)
            if last.index == RSP and last.base & 7 != RSP:
                self._code.append(mode << 6 | low | last.base & 7)
            else:
                self._code.append(mode << 6 | low | 0b100)
                self._code.append((last.index & 7) << 3 | last.base & 7)
            self._code += offset

    def load_mask(self, mask: int, source: Memory) -> None:
        """kmovw mask, [source]: 16 lanes from 16 bits."""
        assert source.base < 8 and source.index == RSP
        self._code += b"\xc5\xf8\x90"
        self._operand(mask, source)

    def any_lane(self, mask: int) -> None:
        """Kortestw mask, mask: `jump` says "zero" if no lane is chosen."""
        self._code += bytes((0xC5, 0xF8, 0x98, 0xC0 | mask << 3 | mask))

    # -- tiles ----------------------------------------------------------------------------

    def shape_tiles(self, source: Memory) -> None:
        """Ldtilecfg [source]: how many rows and bytes each tile has, from 64 bytes."""
        self._tile(_NONE, 0x49, 0, source)

    def leave_tiles(self) -> None:
        """tilerelease: who saves registers, saves no tiles."""
        self._tile(_NONE, 0x49, 0, 0)

    def clear_tile(self, tile: int) -> None:
        """Tilezero tile."""
        self._tile(_F2, 0x49, tile, 0)

    def load_tile(self, tile: int, source: Memory) -> None:
        """Tileloadd tile, [source]: rows as many bytes apart as the index register says."""
        self._tile(_F2, 0x4B, tile, source)

    def store_tile(self, target: Memory, tile: int) -> None:
        """Tilestored [target], tile; as for `load_tile`."""
        self._tile(_F3, 0x4B, tile, target)

    def multiply_tiles(self, out: int, a: int, b: int) -> None:
        """Tdpbf16ps out, a, b: out += a @ b, where a and b hold pairs of bfloat16."""
        self._tile(_F3, 0x5C, out, a, b)

    def _tile(
        self, prefix: int, opcode: int, tile: int, last: int | Memory, second: int = 0
    ) -> None:
        high_x, high_b = _high_bits(last)
        head = _inverted(0, 7) | _inverted(high_x, 6) | _inverted(high_b, 5) | _0F38
        self._code += bytes((0xC4, head, (~second & 15) << 3 | prefix, opcode))
        self._operand(tile, last)

    # -- the cache ------------------------------------------------------------------------

    def prefetch(self, source: Memory) -> None:
        """prefetcht1 [source]: have its line in the second-level cache soon."""
        assert source.base < 8 and source.index == RSP
        self._code += b"\x0f\x18"
        self._operand(2, source)

    def prefetch_to_write(self, target: Memory) -> None:
        """prefetchw [target]: have its line soon, and alone."""
        assert target.base < 8 and target.index == RSP
        self._code += b"\x0f\x0d"
        self._operand(1, target)

    def leave_vectors(self) -> None:
        """vzeroupper: older code that follows isn't slowed down."""
        self._code += b"\xc5\xf8\x77"

    # -- addresses and loops --------------------------------------------------------------

    def load(self, target: int, source: Memory) -> None:
        """mov target, [source]."""
        self._general(0x8B, target, source)

    def add(self, target: int, source: Memory) -> None:
        """add target, [source]."""
        self._general(0x03, target, source)

    def keep(self, target: Memory, source: int) -> None:
        """mov [target], source."""
        self._general(0x89, source, target)

    def call(self, target: Memory) -> None:
        """call [target]."""
        self._general(0xFF, 2, target)

    def move(self, target: int, source: int) -> None:
        """mov target, source."""
        self._code += bytes(
            (0x48 | source >> 3 << 2 | target >> 3, 0x89, 0xC0 | (source & 7) << 3 | target & 7)
        )

    def add_register(self, target: int, source: int) -> None:
        """add target, source."""
        self._code += bytes(
            (0x48 | source >> 3 << 2 | target >> 3, 0x01, 0xC0 | (source & 7) << 3 | target & 7)
        )

    def _general(self, opcode: int, register: int, memory: Memory) -> None:
        rex = 0x48 | register >> 3 << 2 | memory.index >> 3 << 1 | memory.base >> 3
        self._code += bytes((rex, opcode))
        self._operand(register, memory)

    def clear(self, target: int) -> None:
        """xor target, target."""
        assert target < 8
        self._code += bytes((0x31, 0xC0 | target << 3 | target))

    def add_number(self, target: int, number: int) -> None:
        """add target, number, which is from -128 to 127."""
        self._code += bytes((0x48 | target >> 3, 0x83, 0xC0 | target & 7)) + struct.pack(
            "<b", number
        )

    def compare(self, a: int, b: int) -> None:
        """cmp a, b."""
        self._code += bytes((0x48 | b >> 3 << 2 | a >> 3, 0x39, 0xC0 | (b & 7) << 3 | a & 7))

    def push(self, register: int) -> None:
        """push register."""
        self._code += bytes(([0x41] if register > 7 else []) + [0x50 | register & 7])

    def pop(self, register: int) -> None:
        """pop register."""
        self._code += bytes(([0x41] if register > 7 else []) + [0x58 | register & 7])

    def give_back(self) -> None:
        """ret."""
        self._code.append(0xC3)

    def here(self) -> int:
        """The place of the next instruction."""
        return len(self._code)

    def jump(self, condition: str, target: int = 0) -> int:
        """A jump: "always", or if the last comparison says "below", "zero" or one of them "not".

        Returns:
            Where `land` finds it, when the target is yet to come.
        """
        short = {"below": 0x82, "not below": 0x83, "zero": 0x84, "not zero": 0x85}
        self._code += bytes((0xE9,) if condition == "always" else (0x0F, short[condition]))
        self._code += struct.pack("<i", target - len(self._code) - 4)
        return len(self._code) - 4

    def land(self, jump: int) -> None:
        """Have an earlier jump lead here."""
        struct.pack_into("<i", self._code, jump, len(self._code) - jump - 4)

    def finish(self) -> bytes:
        """The code with its constants."""
        self._code += bytes(-len(self._code) % 64)
        places: dict[bytes, int] = {}
        for place, behind, value in self._uses:
            constant = struct.pack("<f", value)
            if constant not in places:
                places[constant] = len(self._code)
                # an EVEX instruction repeats the number itself
                self._code += constant if self._vector == 64 else constant * (self._vector // 4)
            struct.pack_into("<i", self._code, place, places[constant] - place - 4 - behind)
        return bytes(self._code)


def _evex(
    form: _Form,
    register: int,
    first: int,
    last: int | Memory | Constant,
    mask: int,
    zero: bool,
    broadcast: bool,
) -> bytes:
    """The prefix of four bytes, for vectors of 64."""
    high_x, high_b = _high_bits(last)
    if isinstance(last, int):
        high_x = last >> 4
    return bytes(
        (
            0x62,
            _inverted(register >> 3, 7)
            | _inverted(high_x, 6)
            | _inverted(high_b, 5)
            | _inverted(register >> 4, 4)
            | form.map,
            (~first & 15) << 3 | 1 << 2 | form.prefix,
            zero << 7 | 0b10 << 5 | broadcast << 4 | _inverted(first >> 4, 3) | mask,
        )
    )


def _vex(form: _Form, register: int, first: int, last: int | Memory | Constant) -> bytes:
    """The prefix of three bytes, for vectors of 32."""
    high_x, high_b = _high_bits(last)
    return bytes(
        (
            0xC4,
            _inverted(register >> 3, 7) | _inverted(high_x, 6) | _inverted(high_b, 5) | form.map,
            (~first & 15) << 3 | 1 << 2 | form.prefix,
        )
    )


def _high_bits(last: int | Memory | Constant) -> tuple[int, int]:
    """The fourth bits of index and base, or of a register."""
    if isinstance(last, Memory):
        return last.index >> 3, last.base >> 3
    return 0, last >> 3 if isinstance(last, int) else 0


def _offset(memory: Memory, unit: int) -> tuple[int, bytes]:
    """The mode, and the offset in none, one or four bytes."""
    if not memory.offset and memory.base & 7 != RBP:
        return 0b00, b""
    short, rest = divmod(memory.offset, unit)
    if not rest and -128 <= short <= 127:
        return 0b01, struct.pack("<b", short)
    return 0b10, struct.pack("<i", memory.offset)


def _inverted(bit: int, place: int) -> int:
    return (~bit & 1) << place
