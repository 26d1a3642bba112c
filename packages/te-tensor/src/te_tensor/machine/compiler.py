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
from .target import AVX512, Target

#: Where a record's parts begin; behind the mask, which is as long as the target has it, come
#: operands and scalars.
ROWS, WIDTH, TAIL = 0, 8, 16
#: Of AVX-512: what isn't made from a formula is made for it alone.
VECTOR, LANES = AVX512.vector, AVX512.lanes
#: Bytes of a record for each array operand, and for each scalar.
OPERAND_SIZE, SCALAR_SIZE = 16, 4

_RECORD, _WIDTH, _COLUMN, _ROW = RDI, RCX, RDX, R13
#: Registers for the addresses of operands.
_ADDRESSES = (RAX, RSI, R8, R9, R10, R11, R12, R14, R15, RBX, RBP)
_TAIL = Memory(_RECORD, offset=TAIL)

_COMMUTING = {"add", "multiply", "and", "or", "xor"}
_REDUCING = {"sum": "vaddps", "max": "vmaxps"}
_STORES = {"store", "store_row"}
_LOADS = {"load", "load_row", "keep"}


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

    def reductions(self) -> list[Value]:
        """Sums and maxima that the sweep makes."""
        return [step.value for step in self.elements if step.value.name in _REDUCING]

    def of_rows(self) -> list[Value]:
        """Numbers of the row that the sweep uses."""
        used = (a for step in self.elements for a in step.arguments if a.level == ROW)
        return list(dict.fromkeys(used))


class TooManyRegisters(Exception):
    """A formula has more operands, or values alive at once, than there are registers."""


def compile_formula(formula: Formula, target: Target) -> bytes:
    """The machine code of a formula.

    Raises:
        TooManyRegisters: it has too many operands, or values alive at once.
        ValueError: it reads an operand again in a sweep after one that wrote it.
    """
    return _Compiler(formula, target).compile()


# -- what is made when --------------------------------------------------------------------


def _stages(formula: Formula) -> list[_Stage]:
    """What each sweep makes: all that something written in it, or after it, depends on."""
    count = 1 + max((step.stage for step in formula.steps), default=0)
    needed: list[set[Value]] = [set() for _ in range(count)]
    of_rows: set[Value] = set()
    for step in formula.steps:
        if step.name in _STORES:
            _gather(step, step.stage, needed, of_rows)
    stages = [
        _Stage(elements=[_step(v, number) for v in sorted(values, key=lambda v: v.place)])
        for number, values in enumerate(needed)
    ]
    for value in sorted(of_rows, key=lambda v: v.place):
        stages[value.stage].row.append(_step(value, value.stage))
    for number, values in enumerate(needed):
        _check_reads(formula, number, values)
    return stages


def _gather(value: Value, stage: int, needed: list[set[Value]], of_rows: set[Value]) -> None:
    """What a value of a stage depends on: elements made in this stage, and numbers of rows."""
    if value.name in _REDUCING:
        stage = value.stage - 1  # the sweep before makes it
    elif value.level == ROW:
        stage = value.stage
    found = of_rows if value.level == ROW and value.name not in _REDUCING else needed[stage]
    if value.level == FIXED or value in found:
        return
    found.add(value)
    for argument in _step(value, stage).arguments:
        _gather(argument, stage, needed, of_rows)


def _step(value: Value, stage: int) -> _Step:
    """A step as a stage makes it: what is kept is in a register, and read again later."""
    if value.name == "keep":
        return _Step(value, ())
    return _Step(value, tuple(_before_keep(a, stage) for a in value.arguments))


def _before_keep(value: Value, stage: int) -> Value:
    """What is kept, as long as it is in a register."""
    while value.name == "keep" and value.stage == stage:
        (value,) = value.arguments
    return value


def _check_reads(formula: Formula, stage: int, needed: set[Value]) -> None:
    """That no earlier sweep has overwritten what this one reads."""
    for value in needed & {step for step in formula.steps if step.name in _LOADS}:
        for later in formula.steps[value.place :]:
            if later.name in _STORES and later.operand == value.operand and later.stage < stage:
                raise ValueError(
                    f"{formula.name} reads operand {value.operand} in sweep {stage}, which sweep "
                    f"{later.stage} has written: read it after that, or keep what is needed"
                )


# -- instructions -------------------------------------------------------------------------


class _Compiler:
    """The code of one formula, and what its registers hold."""

    def __init__(self, formula: Formula, target: Target) -> None:
        self.formula, self.target = formula, target
        self.code = Assembler(target.vector)
        self.stages = _stages(formula)
        arrays = [n for n, kind in enumerate(formula.kinds) if kind is not Scalar]
        scalars = [n for n, kind in enumerate(formula.kinds) if kind is Scalar]
        if len(arrays) > len(_ADDRESSES):
            raise TooManyRegisters(
                f"{formula.name} has {len(arrays)} arrays: at most {len(_ADDRESSES)}"
            )
        self.address = dict(zip(arrays, _ADDRESSES, strict=False))
        operands = TAIL + len(target.masks[0])
        self.part = {n: operands + OPERAND_SIZE * i for i, n in enumerate(arrays)}
        behind = operands + OPERAND_SIZE * len(arrays)
        self.scalar = {n: behind + SCALAR_SIZE * i for i, n in enumerate(scalars)}
        self.free = list(range(target.registers))[::-1]
        self.register: dict[Value, int] = {}
        #: Registers that the step at hand took for itself, and values that it uses last.
        self.spare: list[int] = []
        self.last: list[Value] = []
        #: How many uses of a row's number are still to come: steps for rows, and sweeps.
        self.uses = Counter(
            value
            for stage in self.stages
            for value in [
                *(a for step in stage.row for a in step.arguments if a.level == ROW),
                *stage.of_rows(),
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
        self.target.begin(code, _TAIL)
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
        for value in stage.reductions():
            self._begin(value)
        self._sweep(stage)
        for value in stage.reductions():
            self._finish(value)
        for value in stage.of_rows():
            self.uses[value] -= 1
            if not self.uses[value]:
                self.free.append(self.register.pop(value))

    def _sweep(self, stage: _Stage) -> None:
        """The whole vectors of a row in a loop, then the rest."""
        code = self.code
        code.clear(_COLUMN)
        code.compare(_COLUMN, _WIDTH)
        none = code.jump("not below")
        loop = code.here()
        self._elements(stage)
        code.add_number(_COLUMN, self.target.vector)
        code.compare(_COLUMN, _WIDTH)
        code.jump("below", loop)
        code.land(none)
        # the lowest lane is chosen by any mask but that of no elements
        code.load(_COLUMN, _TAIL)
        code.add_number(_COLUMN, 0)
        whole = code.jump("zero")
        code.load(_COLUMN, Memory(_RECORD, offset=WIDTH))
        self._elements(stage, tail=True)
        code.land(whole)

    def _elements(self, stage: _Stage, tail: bool = False) -> None:
        uses = Counter(a for step in stage.elements for a in step.arguments if a.level == ELEMENT)
        for step in stage.elements:
            self._make(step, uses, ELEMENT, tail)

    # -- registers ------------------------------------------------------------------------

    def _take(self) -> int:
        if not self.free:
            raise TooManyRegisters(
                f"{self.formula.name} has more values at once than {self.target.name} registers"
            )
        return self.free.pop()

    def _take_spare(self) -> int:
        self.spare.append(self._take())
        return self.spare[-1]

    def _release(self) -> None:
        """Free what the step took for itself, and what it uses last."""
        self.free += self.spare
        self.free += [self.register.pop(value) for value in self.last]
        self.spare, self.last = [], []

    def _result(self, value: Value) -> int:
        """A register for the value of an instruction that reads its sources before it writes."""
        self._release()
        self.register[value] = self._take()
        return self.register[value]

    def _fixed(self, value: Value) -> Memory | Constant:
        if value.name == "constant":
            return Constant(value.number)
        return Memory(_RECORD, offset=self.scalar[value.operand])

    def _source(self, value: Value) -> int | Memory | Constant:
        """A value as the last source of an instruction."""
        if value.level != FIXED:
            return self.register[value]
        fixed = self._fixed(value)
        if isinstance(fixed, Constant):
            return fixed
        if self.target.repeats:
            return Memory(fixed.base, offset=fixed.offset, broadcast=True)
        return self._in_register(value)

    def _in_register(self, value: Value) -> int:
        """A value in a register."""
        if value.level != FIXED:
            return self.register[value]
        register = self._take_spare()
        self.code.vector("vbroadcastss", register, self._fixed(value))
        return register

    # -- steps ----------------------------------------------------------------------------

    def _make(self, step: _Step, uses: Counter[Value], level: int, tail: bool = False) -> None:
        """The instructions of a step; what it used for the last time leaves its register."""
        value, arguments = step.value, step.arguments
        uses.subtract(a for a in arguments if a.level == level)
        counted = dict.fromkeys(a for a in arguments if a.level == level)
        self.last = [a for a in counted if not uses[a]]
        if value.name in _STORES or value.name in _REDUCING:
            self._effect(value, arguments[0], tail)
        elif value.name in _LOADS:
            self._load(value, tail)
        elif value.name in ("times_plus", "minus_times"):
            self._fused(value, *arguments)
        elif value.name == "where_greater":
            self._choice(value, *arguments)
        else:
            self._arithmetic(value, arguments)
        self._release()

    def _place(self, operand: int, level: int) -> Memory:
        base = self.address[operand]
        return Memory(base, _COLUMN) if level == ELEMENT else Memory(base)

    def _load(self, value: Value, tail: bool) -> None:
        place = self._place(value.operand, value.level)
        register = self._result(value)
        if value.level == ROW:
            self.code.vector("vbroadcastss", register, place)
        elif tail:
            self.target.load_tail(self.code, register, place, _TAIL)
        else:
            self.code.vector("vmovups", register, place)

    def _effect(self, value: Value, given: Value, tail: bool) -> None:
        code, target = self.code, self.target
        if value.name in _REDUCING:
            name, total, source = _REDUCING[value.name], self.register[value], self._source(given)
            if tail:
                target.reduce_tail(code, name, total, source, _TAIL, self._take_spare())
            else:
                code.vector(name, total, total, source)
            return
        place, register = self._place(value.operand, value.level), self._in_register(given)
        if value.level == ROW:
            code.store_lowest(place, register)
        elif tail:
            target.store_tail(code, place, register, _TAIL, self._take_spare())
        else:
            code.store(place, register)

    def _arithmetic(self, value: Value, arguments: tuple[Value, ...]) -> None:
        """A step that is one instruction."""
        if value.name in _COMMUTING and arguments[0].level == FIXED:
            arguments = arguments[::-1]
        name, immediate = self.target.steps[value.name]
        sources: list[int | Memory | Constant] = [self._in_register(arguments[0])]
        sources += map(self._source, arguments[1:])
        self.code.vector(name, self._result(value), *sources, immediate=immediate)

    def _choice(self, value: Value, a: Value, b: Value, this: Value, other: Value) -> None:
        compared = self._in_register(a), self._source(b)
        chosen = self._source(this), self._in_register(other)
        self.register[value] = register = self._take()
        self.target.choose(self.code, register, compared, *chosen)

    def _fused(self, value: Value, a: Value, b: Value, c: Value) -> None:
        """a·b + c or c - a·b: the target of the instruction is one of its sources."""
        name = "vfmadd" if value.name == "times_plus" else "vfnmadd"
        if a.level == FIXED or (a not in self.last and b in self.last):
            a, b = b, a
        last: int | Memory | Constant
        if c.level == FIXED or (a in self.last and c not in self.last and b.level != FIXED):
            factor, last = self._in_register(b), self._source(c)
            self.code.vector(f"{name}213ps", self._into(value, a), factor, last)
        else:
            factor, last = self._in_register(a), self._source(b)
            self.code.vector(f"{name}231ps", self._into(value, c), factor, last)

    def _into(self, value: Value, start: Value) -> int:
        """A register for a value, which holds another one's number to begin with."""
        if start in self.last:
            self.last.remove(start)
            self.register[value] = self.register.pop(start)
        else:
            self.register[value] = register = self._take()
            if start.level == FIXED:
                self.code.vector("vbroadcastss", register, self._fixed(start))
            else:
                self.code.vector("vmovups", register, self.register[start])
        return self.register[value]

    # -- sums over a row ------------------------------------------------------------------

    def _begin(self, value: Value) -> None:
        self.register[value] = register = self._take()
        neutral = 0.0 if value.name == "sum" else -inf
        self.code.vector("vbroadcastss", register, Constant(neutral))

    def _finish(self, value: Value) -> None:
        """The lanes' sum in all lanes: halves, quarters, pairs and neighbours."""
        total, turned = self.register[value], self._take()
        for name, order in self.target.turns:
            sources = [total] if name == "vpermilps" else [total, total]
            self.code.vector(name, turned, *sources, immediate=order)
            self.code.vector(_REDUCING[value.name], total, total, turned)
        self.free.append(turned)
