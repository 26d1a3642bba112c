"""Copies with rows and columns exchanged, as steps of other machine code."""

from __future__ import annotations

from functools import cache

from ..executable import Code
from .assembler import R8, R14, R15, RAX, RCX, RDX, RSI, Memory
from .program import Record, Writer, program

#: Numbers of a row that are read before they are written.
_TOGETHER = 8
_ITEM = 4
_RECORD = Record("source", "source_row", "out", "out_row", "rows", "eights", "rest")
#: Words of a record.
WORDS = 7


@cache
def transposition() -> Code:
    """Code that goes through the rows of the source, each of which is a column of the copy."""
    source, target, place, column = RSI, R8, RAX, RDX

    def numbers(code: Writer, count: int) -> None:
        for i in range(count):
            code.vector("vbroadcastss", i, Memory(place, offset=_ITEM * i))
        for i in range(count):
            code.store_lowest(Memory(column), i)
            code.add(column, _RECORD["out_row"])
        code.add_number(place, _ITEM * count)

    def write(code: Writer) -> None:
        code.load(source, _RECORD["source"])
        code.load(target, _RECORD["out"])
        with code.times(R14, _RECORD["rows"]):
            code.move(place, source)
            code.move(column, target)
            with code.times(R15, _RECORD["eights"]):
                numbers(code, _TOGETHER)
            with code.times(RCX, _RECORD["rest"]):
                numbers(code, 1)
            code.add(source, _RECORD["source_row"])
            code.add_number(target, _ITEM)

    return program(write)


def sizes(rows: int, columns: int) -> tuple[int, ...]:
    """The last words of a record for out[j, i] = source[i, j].

    Args:
        rows: those of the source.
        columns: likewise.
    """
    return (rows, *divmod(columns, _TOGETHER))
