"""Each instruction that kernels are made of, byte by byte as the GNU assembler encodes it."""

import itertools
import platform
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from te_tensor.machine import assembler
from te_tensor.machine.assembler import RSP, Assembler, Constant, Memory

pytestmark = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64")
    or not shutil.which("as")
    or not shutil.which("objcopy"),
    reason="needs the GNU assembler for x86-64",
)

NAMES = ["rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{n}" for n in range(8, 16))]
#: No instruction is longer, so each has a slot of its own.
SLOT = 16
#: Instructions on the first lane alone leave it open how long a vector is.
SCALARS = ["-mevexlig=512", "-mavxscalar=256"]
#: Where the pool of constants begins behind a single instruction.
POOL = 64

Case = tuple[str, bytes]


def alone(vector: int, write: Callable[..., object], *given: object, **more: object) -> bytes:
    """The bytes of one instruction."""
    code = Assembler(vector)
    write(code, *given, **more)
    length = code.here()
    assert length <= SLOT
    return code.finish()[:length]


def assembled(text: str, folder: Path) -> bytes:
    """What the GNU assembler makes of a text."""
    source, made, bare = (folder / name for name in ("code.s", "code.o", "code.bin"))
    source.write_text(f".intel_syntax noprefix\n{text}\n")
    subprocess.run(["as", "--64", *SCALARS, "-o", made, source], check=True)
    subprocess.run(["objcopy", "-O", "binary", "-j", ".text", made, bare], check=True)
    return bare.read_bytes()


def in_slots(lines: list[str], folder: Path) -> list[bytes]:
    """What it makes of lines, a slot for each."""
    text = "\n".join(f".org {SLOT * n}\n{line}" for n, line in enumerate(lines))
    size = SLOT * len(lines)
    code = assembled(f"{text}\n.org {size}", folder)
    return [code[start : start + SLOT] for start in range(0, size, SLOT)]


def check(cases: list[Case], folder: Path) -> None:
    wrong = [
        f"{text}: {ours.hex(' ')}, expected {theirs.hex(' ')}"
        for (text, ours), theirs in zip(
            cases, in_slots([text for text, _ in cases], folder), strict=True
        )
        if ours.ljust(SLOT, b"\0") != theirs
    ]
    assert not wrong, "\n".join(wrong[:20])


def shown(memory: Memory, size: str) -> str:
    index = "" if memory.index == RSP else f"+{NAMES[memory.index]}*1"
    return f"{size} ptr [{NAMES[memory.base]}{index}{memory.offset:+d}]"


def register(vector: int, number: int) -> str:
    return f"{'z' if vector == 64 else 'y'}mm{number}"


#: Low and high registers, of each half and quarter of what an encoding can name.
REGISTERS = {64: [0, 3, 7, 8, 13, 15, 16, 21, 24, 31], 32: [0, 3, 7, 8, 13, 15]}

BASES = [Memory(base) for base in range(16)]
OFFSETS = [
    Memory(base, offset=offset)
    for base in (0, 4, 5, 7, 12, 13)
    for offset in (1, 4, 8, 16, 24, 60, 64, 127, 128, 508, 512, 8128, 8192, 1 << 20, -4, -64, -8256)
]
INDICES = [
    Memory(base, index, offset)
    for base in (0, 4, 5, 12, 13, 15)
    for index in (0, 2, 5, 8, 12, 13, 15)
    for offset in (0, 64, 3)
]
PLACES = [*BASES, *OFFSETS, *INDICES]

BOTH = {
    "vaddps": 2,
    "vmulps": 2,
    "vsubps": 2,
    "vminps": 2,
    "vdivps": 2,
    "vmaxps": 2,
    "vsqrtps": 1,
    "vandps": 2,
    "vandnps": 2,
    "vorps": 2,
    "vxorps": 2,
    "vmovups": 1,
    "vcvtps2dq": 1,
    "vcvtdq2ps": 1,
    "vfmadd213ps": 2,
    "vfmadd231ps": 2,
    "vfnmadd213ps": 2,
    "vfnmadd231ps": 2,
    "vunpcklps": 2,
    "vunpckhps": 2,
    "vpaddd": 2,
}
WITH_BYTE = {
    "vpermilps": (1, 0x4E),
    "vpslld": (1, 23),
    "vpsrld": (1, 23),
    "vshufps": (2, 0xEE),
}
OWN = {
    64: {
        "vscalefps": (2, None),
        "vgetexpps": (1, None),
        "vgetmantps": (1, 0x0C),
        "vrangeps": (2, 0x0B),
        "vpternlogd": (2, 0xF8),
        "vcvtne2ps2bf16": (2, None),
        "vrndscaleps": (1, 8),
        "vshuff32x4": (2, 0xB1),
        "vpermt2ps": (2, None),
    },
    32: {"vroundps": (1, 8), "vperm2f128": (2, 1), "vcmpps": (2, 0x1E)},
}
#: VEX has these with registers alone.
NO_MEMORY = {(32, "vpslld"), (32, "vpsrld")}
#: Neither broadcasts, because what they read is no vector of numbers.
NO_BROADCAST = {"vmovups"}


def instructions(vector: int) -> dict[str, tuple[int, int | None]]:
    return {**{name: (count, None) for name, count in BOTH.items()}, **WITH_BYTE, **OWN[vector]}


def case(
    vector: int, name: str, target: int, first: list[int], last: tuple[str, object], **more: object
) -> Case:
    """An instruction as text and as bytes."""
    text, source = last
    immediate, mask = more.get("immediate"), more.get("mask")
    chosen = (f"{{k{mask}}}" if mask else "") + ("{z}" if more.get("zero") else "")
    listed = ", ".join(
        [register(vector, target) + chosen, *(register(vector, r) for r in first), text]
    )
    byte = "" if immediate is None else f", {immediate}"
    ours = alone(vector, Assembler.vector, name, target, *first, source, **more)
    prefix = "{vex3}" if vector == 32 else ""
    # the next instruction is where an offset from here begins
    return f"{prefix} {name} {listed}{byte}".replace("POOL", f"{POOL - len(ours)}"), ours


@pytest.mark.parametrize("vector", [64, 32])
def test_registers(vector: int, tmp_path: Path) -> None:
    def cases() -> Iterator[Case]:
        some = REGISTERS[vector]
        for name, (count, immediate) in instructions(vector).items():
            for target, first, last in itertools.product(some, some, some):
                if count == 2 or first == some[0]:
                    yield case(
                        vector,
                        name,
                        target,
                        [first] * (count - 1),
                        (register(vector, last), last),
                        immediate=immediate,
                    )

    check(list(cases()), tmp_path)


@pytest.mark.parametrize("vector", [64, 32])
def test_memory(vector: int, tmp_path: Path) -> None:
    def cases() -> Iterator[Case]:
        for name, (count, immediate) in instructions(vector).items():
            if (vector, name) in NO_MEMORY:
                continue
            places = PLACES if name in ("vaddps", "vmovups", "vpermilps") else PLACES[::7]
            for target, place in itertools.product(REGISTERS[vector][1::3], places):
                size = "zmmword" if vector == 64 else "ymmword"
                first = [REGISTERS[vector][-1]] * (count - 1)
                last = shown(place, size), place
                yield case(vector, name, target, first, last, immediate=immediate)

    check(list(cases()), tmp_path)


@pytest.mark.parametrize("vector", [64, 32])
def test_constants_lie_behind_the_code(vector: int, tmp_path: Path) -> None:
    def cases() -> Iterator[Case]:
        for name, (count, immediate) in instructions(vector).items():
            if (vector, name) in NO_MEMORY or name in NO_BROADCAST:
                continue
            text = "dword ptr [rip+POOL]{1to16}" if vector == 64 else "ymmword ptr [rip+POOL]"
            for target in REGISTERS[vector]:
                first = [REGISTERS[vector][-2]] * (count - 1)
                last = text, Constant(2.5)
                yield case(vector, name, target, first, last, immediate=immediate)

    check(list(cases()), tmp_path)


@pytest.mark.parametrize("vector", [64, 32])
def test_broadcasts(vector: int, tmp_path: Path) -> None:
    def cases() -> Iterator[Case]:
        for target in REGISTERS[vector]:
            for place in PLACES:
                last = shown(place, "dword"), place
                yield case(vector, "vbroadcastss", target, [], last)
            yield case(vector, "vbroadcastss", target, [], ("dword ptr [rip+POOL]", Constant(-0.0)))

    check(list(cases()), tmp_path)


def test_bytes(tmp_path: Path) -> None:
    def cases() -> Iterator[Case]:
        for register, place in itertools.product(REGISTERS[64], PLACES):
            last = shown(place, "xmmword"), place
            yield case(64, "vpmovzxbd", register, [], last, mask=3, zero=True)
            ours = alone(64, Assembler.store_bytes, place, register, 2)
            yield f"vpmovdb {shown(place, 'xmmword')}{{k2}}, zmm{register}", ours

    check(list(cases()), tmp_path)


def test_numbers_repeated_by_the_instruction(tmp_path: Path) -> None:
    places = [Memory(p.base, p.index, p.offset, broadcast=True) for p in PLACES]
    cases = [
        case(64, name, 17, [9] * (count - 1), (shown(p, "dword") + "{1to16}", p), immediate=byte)
        for name, (count, byte) in instructions(64).items()
        if name not in NO_BROADCAST and name not in ("vpslld", "vpsrld")
        for p in places[:: 1 if name == "vfmadd213ps" else 5]
    ]
    check(cases, tmp_path)


def test_masks(tmp_path: Path) -> None:
    def cases() -> Iterator[Case]:
        for mask, target in itertools.product(range(1, 8), REGISTERS[64]):
            for zero in (False, True):
                for last in ((register(64, 19), 19), ("zmmword ptr [r13+rdx]", Memory(13, 2))):
                    for name in ("vaddps", "vmovups", "vblendmps"):
                        first = [11] * (name != "vmovups")
                        yield case(64, name, target, first, last, mask=mask, zero=zero)
            place = Memory(12, 2, 128)
            ours = alone(64, Assembler.store, place, target, mask)
            yield f"vmovups {shown(place, 'zmmword')}{{k{mask}}}, zmm{target}", ours
        for mask, first, last in itertools.product(range(1, 8), REGISTERS[64], REGISTERS[64]):
            ours = alone(64, Assembler.vector, "vcmpps", mask, first, last, immediate=30)
            yield f"vcmpps k{mask}, zmm{first}, zmm{last}, 30", ours
        for mask, base in itertools.product(range(1, 8), range(8)):
            for offset in (0, 16, 200):
                place = Memory(base, offset=offset)
                ours = alone(64, Assembler.load_mask, mask, place)
                yield f"kmovw k{mask}, {shown(place, 'word')}", ours

    check(list(cases()), tmp_path)


def test_tiles(tmp_path: Path) -> None:
    def cases() -> Iterator[Case]:
        for tile, place in itertools.product((0, 3, 7), [p for p in PLACES if p.index != RSP]):
            text = shown(place, "").removeprefix(" ptr ")
            yield f"tileloadd tmm{tile}, {text}", alone(64, Assembler.load_tile, tile, place)
            yield f"tilestored {text}, tmm{tile}", alone(64, Assembler.store_tile, place, tile)
        for place in BASES:
            text = shown(place, "").removeprefix(" ptr ")
            yield f"ldtilecfg {text}", alone(64, Assembler.shape_tiles, place)
        yield "tilerelease", alone(64, Assembler.leave_tiles)
        for out, a, b in itertools.permutations(range(8), 3):
            ours = alone(64, Assembler.multiply_tiles, out, a, b)
            yield f"tdpbf16ps tmm{out}, tmm{a}, tmm{b}", ours
        for number in range(8):
            yield f"tilezero tmm{number}", alone(64, Assembler.clear_tile, number)
            yield f"kortestw k{number}, k{number}", alone(64, Assembler.any_lane, number)

    check(list(cases()), tmp_path)


def test_lanes_chosen_by_vectors(tmp_path: Path) -> None:
    def cases() -> Iterator[Case]:
        some = REGISTERS[32]
        for target, first, choice in itertools.product(some, some, some):
            immediate = choice << 4
            for last in ((register(32, 9), 9), ("ymmword ptr [r12+rdx]", Memory(12, 2))):
                text, ours = case(32, "vblendvps", target, [first], last, immediate=immediate)
                yield text.replace(f", {immediate}", f", ymm{choice}"), ours
            place = Memory(target, 2, 8)
            yield case(32, "vmaskmovps", first, [choice], (shown(place, "ymmword"), place))
            ours = alone(32, Assembler.store_chosen, place, first, choice)
            yield f"{{vex3}} vmaskmovps {shown(place, 'ymmword')}, ymm{choice}, ymm{first}", ours

    check(list(cases()), tmp_path)


@pytest.mark.parametrize("vector", [64, 32])
def test_stores(vector: int, tmp_path: Path) -> None:
    def cases() -> Iterator[Case]:
        size, prefix = ("zmmword", "") if vector == 64 else ("ymmword", "{vex3}")
        for source, place in itertools.product(REGISTERS[vector], PLACES):
            ours = alone(vector, Assembler.store, place, source)
            yield f"{prefix} vmovups {shown(place, size)}, {register(vector, source)}", ours
            ours = alone(vector, Assembler.store_lowest, place, source)
            first = prefix or "{evex}"
            yield f"{first} vmovss {shown(place, 'dword')}, xmm{source}", ours

    check(list(cases()), tmp_path)


def test_addresses_and_loops(tmp_path: Path) -> None:
    def cases() -> Iterator[Case]:
        for target, place in itertools.product(range(16), PLACES):
            ours = alone(64, Assembler.load, target, place)
            yield f"mov {NAMES[target]}, {shown(place, 'qword')}", ours
            ours = alone(64, Assembler.add, target, place)
            yield f"add {NAMES[target]}, {shown(place, 'qword')}", ours
            ours = alone(64, Assembler.keep, place, target)
            yield f"mov {shown(place, 'qword')}, {NAMES[target]}", ours
        for place in PLACES:
            yield f"rex.w call {shown(place, 'qword')}", alone(64, Assembler.call, place)
            if place.base < 8 and place.index == RSP:
                ours = alone(64, Assembler.prefetch, place)
                yield f"prefetcht1 {shown(place, 'byte')}", ours
                ours = alone(64, Assembler.prefetch_to_write, place)
                yield f"prefetchw {shown(place, 'byte')}", ours
        for a in range(16):
            yield f"push {NAMES[a]}", alone(64, Assembler.push, a)
            yield f"pop {NAMES[a]}", alone(64, Assembler.pop, a)
            for number in (-128, -1, 0, 32, 64, 127):
                ours = alone(64, Assembler.add_number, a, number)
                yield f"add {NAMES[a]}, {number}", ours
            for b in range(16):
                ours = alone(64, Assembler.compare, a, b)
                yield f"cmp {NAMES[a]}, {NAMES[b]}", ours
                yield f"mov {NAMES[a]}, {NAMES[b]}", alone(64, Assembler.move, a, b)
                yield f"add {NAMES[a]}, {NAMES[b]}", alone(64, Assembler.add_register, a, b)
        for low in range(8):
            ours = alone(64, Assembler.clear, low)
            yield f"xor {NAMES[low].replace('r', 'e', 1)}, {NAMES[low].replace('r', 'e', 1)}", ours
        yield "vzeroupper", alone(64, Assembler.leave_vectors)
        yield "ret", alone(64, Assembler.give_back)

    check(list(cases()), tmp_path)


def test_jumps(tmp_path: Path) -> None:
    conditions = {"below": "jb", "not below": "jae", "zero": "jz", "not zero": "jnz"}
    code, lines = Assembler(64), []
    for number, (condition, name) in enumerate(conditions.items()):
        back = code.here()
        ahead = code.jump(condition)
        code.give_back()
        code.jump(condition, back)
        code.land(ahead)
        lines += [f"back{number}: {{disp32}} {name} ahead{number}", "ret"]
        lines += [f"{{disp32}} {name} back{number}", f"ahead{number}:"]
    length = code.here()
    assert code.finish()[:length] == assembled("\n".join(lines), tmp_path)


@pytest.mark.parametrize(("vector", "repeated"), [(64, 1), (32, 8)])
def test_each_constant_is_stored_once(vector: int, repeated: int) -> None:
    code = Assembler(vector)
    for value in (1.5, -0.0, 0.0, 1.5, -0.0):
        code.vector("vaddps", 1, 2, Constant(value))
    pool = code.finish()[64:]
    assert pool == b"".join(struct.pack("<f", value) * repeated for value in (1.5, -0.0, 0.0))


def test_every_form_is_compared() -> None:
    compared = {*instructions(64), *instructions(32), "vbroadcastss", "vblendmps", "vpmovzxbd"}
    assert compared | {"vblendvps", "vmaskmovps"} == set(assembler._FORMS)
