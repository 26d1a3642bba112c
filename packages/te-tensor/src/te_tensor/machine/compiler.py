"""From a formula to machine code: loops over rows and elements, and which register holds what.

A kernel gets the address of a record: rows, whole vectors of a row in bytes, a mask for the lanes
of the last one, then for each operand the address of its array object and the bytes from row to
row, then the scalars. A row is gone through once for each stage: a sum over the row divides one
stage from the next, and elements that a later stage needs are made again, from what is in cache.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from math import inf

from .assembler import (
    CALLEE_SAVED,
    R8,
    R9,
    R10,
    R11,
    R12,
    R13,
    R14,
    R15,
    RAX,
    RBP,
    RBX,
    RCX,
    RDI,
    RDX,
    RSI,
    Assembler,
    Constant,
    Memory,
)
from .formula import ELEMENT, FIXED, ROW, Formula, Scalar, Value

#: Where a record's parts begin.
ROWS, WIDTH, TAIL, OPERANDS = 0, 8, 16, 24
#: Bytes of a record for each array operand, and for each scalar.
OPERAND_SIZE, SCALAR_SIZE = 16, 4
#: Bytes of a vector, and elements.
VECTOR, LANES = 64, 16

_RECORD, _WIDTH, _COLUMN, _ROW = RDI, RCX, RDX, R13
#: Registers for the addresses of operands.
_ADDRESSES = (RAX, RSI, R8, R9, R10, R11, R12, R14, R15, RBX, RBP)
#: The mask of the last vector of a row, and the one for comparisons.
_TAIL_MASK, _CHOICE = 1, 2
_REGISTERS = 32

_BINARY = {
    "add": "vaddps",
    "subtract": "vsubps",
    "multiply": "vmulps",
    "divide": "vdivps",
    "maximum": "vmaxps",
    "minimum": "vminps",
    "and": "vandps",
    "and_not": "vandnps",
    "or": "vorps",
    "xor": "vxorps",
    "scale": "vscalefps",
}
_COMMUTING = {"add", "multiply", "and", "or", "xor"}
_REDUCING = {"sum": "vaddps", "max": "vmaxps"}
_EFFECTS = {"store", "store_row", *_REDUCING}
#: Bytes of instructions: a > b and neither NaN; to the nearest whole number, ties to even.
_GREATER, _NEAREST = 0x1E, 0x08
#: Exchanges of lanes, 8, 4, 2 and 1 apart.
TURNS = (("vshuff32x4", 0x4E), ("vshuff32x4", 0xB1), ("vpermilps", 0x4E), ("vpermilps", 0xB1))


@dataclass(frozen=True, slots=True)
class _Step:
    """A value to be made, from the values that stand for its arguments in this stage."""

    value: Value
    arguments: tuple[Value, ...]


@dataclass(slots=True)
class _Stage:
    """One sweep over a row, after what is known of the row before it."""

    row: list[_Step] = field(default_factory=list)
    elements: list[_Step] = field(default_factory=list)


class TooManyRegisters(Exception):
    """A formula has more operands, or values alive at once, than there are registers."""


def compile_formula(formula: Formula) -> bytes:
    """The machine code of a formula.

    Raises:
        TooManyRegisters: it has too many operands, or values alive at once.
    """
    return _Compiler(formula).compile()


def _stages(formula: Formula) -> list[_Stage]:
    """What each sweep makes: all that something written or summed in it depends on."""
    count = 1 + max(step.stage for step in formula.steps)
    stages = [_Stage() for _ in range(count)]
    of_rows: set[Value] = set()
    effects = [step for step in formula.steps if step.name in _EFFECTS]
    for number, stage in enumerate(stages):
        needed: set[Value] = set()
        for effect in effects:
            if effect.arguments[0].stage == number:
                _gather(effect, number, needed, of_rows)
        stage.elements = [_step(v, number) for v in sorted(needed, key=lambda v: v.place)]
    for value in sorted(of_rows, key=lambda v: v.place):
        stages[value.stage].row.append(_step(value, value.stage))
    return stages


def _gather(value: Value, stage: int, needed: set[Value], of_rows: set[Value]) -> None:
    """What a value of a stage depends on: elements made in this stage, and numbers of rows."""
    in_sweep = value.level == ELEMENT or (
        value.name in _REDUCING and value.arguments[0].stage == stage
    )
    if value.level == FIXED or value in needed or value in of_rows:
        return
    if in_sweep:
        needed.add(value)
        arguments = _step(value, stage).arguments
    elif value.name in _REDUCING:
        return  # its own sweep makes it
    else:
        of_rows.add(value)
        arguments = value.arguments
    for argument in arguments:
        _gather(argument, stage, needed, of_rows)


def _step(value: Value, stage: int) -> _Step:
    """A step as a stage makes it: what an earlier one kept is read again."""
    if value.name == "keep" and value.stage < stage:
        return _Step(value, ())
    return _Step(
        value,
        tuple(
            a.arguments[0] if a.name == "keep" and a.stage == stage else a for a in value.arguments
        ),
    )


class _Compiler:
    """The code of one formula, and what its registers hold."""

    def __init__(self, formula: Formula) -> None:
        self.formula = formula
        self.code = Assembler()
        self.stages = _stages(formula)
        arrays = [n for n, kind in enumerate(formula.kinds) if kind is not Scalar]
        scalars = [n for n, kind in enumerate(formula.kinds) if kind is Scalar]
        if len(arrays) > len(_ADDRESSES):
            raise TooManyRegisters(f"{formula.name} has {len(arrays)} arrays")
        self.address = dict(zip(arrays, _ADDRESSES, strict=False))
        self.part = {n: OPERANDS + OPERAND_SIZE * i for i, n in enumerate(arrays)}
        behind = OPERANDS + OPERAND_SIZE * len(arrays)
        self.scalar = {n: behind + SCALAR_SIZE * i for i, n in enumerate(scalars)}
        self.free = list(range(_REGISTERS))[::-1]
        self.register: dict[Value, int] = {}
        #: How many uses of a value are still to come: steps for rows, and sweeps.
        self.uses = Counter(
            value
            for stage in self.stages
            for value in [
                *(a for step in stage.row for a in step.arguments if a.level == ROW),
                *{a for step in stage.elements for a in step.arguments if a.level == ROW},
            ]
        )

    def compile(self) -> bytes:
        """Addresses and counts, a loop over rows, and back."""
        code = self.code
        saved = [r for r in CALLEE_SAVED if r == _ROW or r in self.address.values()]
        for register in saved:
            code.push(register)
        for operand, register in self.address.items():
            # The record has the address of an array object; behind its head is that of its data.
            code.load(register, Memory(_RECORD, offset=self.part[operand]))
            code.load(register, Memory(register, offset=object.__basicsize__))
        code.load(_ROW, Memory(_RECORD, offset=ROWS))
        code.load(_WIDTH, Memory(_RECORD, offset=WIDTH))
        code.load_mask(_TAIL_MASK, Memory(_RECORD, offset=TAIL))
        loop = code.here()
        for stage in self.stages:
            self._stage(stage)
        for operand, register in self.address.items():
            code.add(register, Memory(_RECORD, offset=self.part[operand] + 8))
        code.add_number(_ROW, -1)
        code.jump("not zero", loop)
        for register in reversed(saved):
            code.pop(register)
        code.leave_vectors()
        code.give_back()
        return code.finish()

    def _stage(self, stage: _Stage) -> None:
        for step in stage.row:
            self._make(step, self.uses, ROW)
        if not stage.elements:
            return
        reductions = [step.value for step in stage.elements if step.value.name in _REDUCING]
        for value in reductions:
            self._begin(value)
        self._sweep(stage)
        for value in reductions:
            self._finish(value)
        for value in {a for step in stage.elements for a in step.arguments if a.level == ROW}:
            self._used(value, 1, self.uses)

    def _sweep(self, stage: _Stage) -> None:
        """The whole vectors of a row in a loop, then the rest."""
        code = self.code
        code.clear(_COLUMN)
        code.compare(_COLUMN, _WIDTH)
        none = code.jump("not below")
        loop = code.here()
        self._elements(stage, 0)
        code.add_number(_COLUMN, VECTOR)
        code.compare(_COLUMN, _WIDTH)
        code.jump("below", loop)
        code.land(none)
        code.load(_COLUMN, Memory(_RECORD, offset=TAIL))
        code.add_number(_COLUMN, 0)
        whole = code.jump("zero")
        code.load(_COLUMN, Memory(_RECORD, offset=WIDTH))
        self._elements(stage, _TAIL_MASK)
        code.land(whole)

    def _elements(self, stage: _Stage, mask: int) -> None:
        uses = Counter(a for step in stage.elements for a in step.arguments if a.level == ELEMENT)
        for step in stage.elements:
            self._make(step, uses, ELEMENT, mask)

    # -- registers ------------------------------------------------------------------------

    def _take(self) -> int:
        if not self.free:
            raise TooManyRegisters(f"{self.formula.name} has too many values at once")
        return self.free.pop()

    def _used(self, value: Value, count: int, uses: Counter[Value]) -> None:
        """Count uses; after the last one the register is free."""
        uses[value] -= count
        if not uses[value]:
            self.free.append(self.register.pop(value))

    def _fixed(self, value: Value) -> Memory | Constant:
        if value.name == "constant":
            return Constant(value.number)
        return Memory(_RECORD, offset=self.scalar[value.operand], broadcast=True)

    def _source(self, value: Value) -> int | Memory | Constant:
        """A value as the last source of an instruction."""
        return self._fixed(value) if value.level == FIXED else self.register[value]

    def _in_register(self, value: Value, spare: list[int]) -> int:
        """A value in a register; one that is taken for it is noted."""
        if value.level != FIXED:
            return self.register[value]
        spare.append(self._take())
        self.code.vector("vbroadcastss", spare[-1], self._fixed(value))
        return spare[-1]

    # -- steps ----------------------------------------------------------------------------

    def _make(self, step: _Step, uses: Counter[Value], level: int, mask: int = 0) -> None:
        """The instructions of a step; what it used for the last time leaves its register."""
        value, arguments = step.value, step.arguments
        last = {a for a in arguments if a.level == level and uses[a] == arguments.count(a)}
        spare: list[int] = []
        if value.name in _EFFECTS:
            self._effect(value, arguments[0], spare, mask)
        elif value.name in ("load", "load_row", "keep"):
            if uses[value]:
                self._load(value, mask)
        elif value.name in ("times_plus", "minus_times"):
            self._fused(value, arguments, last, spare)
        else:
            self._arithmetic(value, arguments, spare)
        for argument in set(arguments):
            if argument.level == level and argument in self.register:
                self._used(argument, arguments.count(argument), uses)
        self.free += spare

    def _place(self, operand: int, level: int) -> Memory:
        base = self.address[operand]
        return Memory(base, _COLUMN) if level == ELEMENT else Memory(base)

    def _load(self, value: Value, mask: int) -> None:
        self.register[value] = register = self._take()
        if value.name == "load_row":
            self.code.vector("vbroadcastss", register, self._place(value.operand, ROW))
        else:
            place = self._place(value.operand, ELEMENT)
            self.code.vector("vmovups", register, place, mask=mask, zero=bool(mask))

    def _effect(self, value: Value, given: Value, spare: list[int], mask: int) -> None:
        if value.name == "store":
            place = self._place(value.operand, ELEMENT)
            self.code.store(place, self._in_register(given, spare), mask)
        elif value.name == "store_row":
            place = self._place(value.operand, ROW)
            self.code.store_lowest(place, self._in_register(given, spare))
        else:
            total = self.register[value]
            self.code.vector(_REDUCING[value.name], total, total, self._source(given), mask=mask)

    def _arithmetic(self, value: Value, arguments: tuple[Value, ...], spare: list[int]) -> None:
        code = self.code
        if value.name in _COMMUTING and arguments[0].level == FIXED:
            arguments = arguments[::-1]
        if value.name in ("round", "square_root"):
            source = self._in_register(arguments[0], spare)
            self.register[value] = target = self._take()
            if value.name == "round":
                code.vector("vrndscaleps", target, source, immediate=_NEAREST)
            else:
                code.vector("vsqrtps", target, source)
            return
        first = self._in_register(arguments[0], spare)
        if value.name == "where_greater":
            code.vector("vcmpps", _CHOICE, first, self._source(arguments[1]), immediate=_GREATER)
            other = self._in_register(arguments[3], spare)
            self.register[value] = target = self._take()
            code.vector("vblendmps", target, other, self._source(arguments[2]), mask=_CHOICE)
            return
        self.register[value] = target = self._take()
        code.vector(_BINARY[value.name], target, first, self._source(arguments[1]))

    def _fused(
        self, value: Value, arguments: tuple[Value, ...], last: set[Value], spare: list[int]
    ) -> None:
        """a·b + c or c - a·b: the target of the instruction is one of its sources."""
        a, b, c = arguments
        if a.level == FIXED:
            a, b = b, a
        sign = "" if value.name == "times_plus" else "n"
        if c.level == FIXED:
            factor = self._in_register(b, spare)
            target = self._into(value, a, last)
            self.code.vector(f"vf{sign}madd213ps", target, factor, self._source(c))
        else:
            factor = self._in_register(a, spare)
            target = self._into(value, c, last - {a, b})
            self.code.vector(f"vf{sign}madd231ps", target, factor, self._source(b))

    def _into(self, value: Value, start: Value, last: set[Value]) -> int:
        """A register for a value, which holds another one's number to begin with."""
        if start in last:
            self.register[value] = self.register.pop(start)
        else:
            self.register[value] = self._take()
            name = "vbroadcastss" if start.level == FIXED else "vmovups"
            self.code.vector(name, self.register[value], self._source(start))
        return self.register[value]

    # -- sums over a row ------------------------------------------------------------------

    def _begin(self, value: Value) -> None:
        self.register[value] = register = self._take()
        neutral = 0.0 if value.name == "sum" else -inf
        self.code.vector("vbroadcastss", register, Constant(neutral))

    def _finish(self, value: Value) -> None:
        """The lanes' sum in all lanes: halves, quarters, pairs and neighbours."""
        total, turned = self.register[value], self._take()
        for name, order in TURNS:
            sources = (total, total) if name == "vshuff32x4" else (total,)
            self.code.vector(name, turned, *sources, immediate=order)
            self.code.vector(_REDUCING[value.name], total, total, turned)
        self.free.append(turned)
