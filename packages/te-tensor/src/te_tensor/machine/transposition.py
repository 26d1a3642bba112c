"""Copies with rows and columns exchanged, as steps of other machine code."""

from __future__ import annotations

from functools import cache
from itertools import product

from ..executable import Code
from .assembler import R8, R14, R15, RAX, RCX, RDX, RSI, Memory
from .compiler import LANES, VECTOR
from .program import Record, Writer, program

_BLOCKS = Record(
    *("source", "source_row", "out", "out_row", "out_block"),
    *("row_blocks", "column_blocks", "mask"),
)


@cache
def in_blocks(rows: int, columns: int) -> Code:
    """Code that copies 16 x 16 numbers at a time; rows of the copy are whole vectors, with zeros.

    Args:
        rows: those of the source that are left behind whole blocks.
        columns: likewise.
    """
    record = _BLOCKS
    source, out, row, column, target = RSI, R8, RAX, RCX, RDX

    def block(code: Writer, high: int, wide: int) -> None:
        for i in range(LANES):
            if i < high:
                code.vector("vmovups", i, Memory(row), mask=int(wide < LANES), zero=wide < LANES)
                code.add(row, record["source_row"])
            else:
                code.vector("vxorps", i, i, i)
        code.move(column, target)
        for register in transpose(code)[:wide]:
            code.store(Memory(column), register)
            code.add(column, record["out_row"])
        code.add_number(target, VECTOR)

    def through_rows(code: Writer, wide: int) -> None:
        code.move(row, source)
        code.move(target, out)
        with code.times(R15, record["row_blocks"]):
            block(code, LANES, wide)
        if rows:
            block(code, rows, wide)

    def write(code: Writer) -> None:
        code.load_mask(1, record["mask"])
        code.load(source, record["source"])
        code.load(out, record["out"])
        with code.times(R14, record["column_blocks"]):
            through_rows(code, LANES)
            code.add_number(source, VECTOR)
            code.add(out, record["out_block"])
        if columns:
            through_rows(code, columns)

    return program(write)


def block_sizes(rows: int, columns: int, out_row: int) -> tuple[int, ...]:
    """The last words of a record for `in_blocks`, from `out_row` on.

    Args:
        rows: those of the source.
        columns: likewise.
        out_row: bytes from row to row of the copy.
    """
    rest = columns % LANES
    return out_row, LANES * out_row, rows // LANES, columns // LANES, (1 << rest) - 1


def transpose(code: Writer) -> list[int]:
    """Exchange rows and lanes of registers 0 … 15.

    Returns:
        The registers that hold what were the lanes; one more may be among them.
    """
    held, spare = list(range(LANES)), LANES

    def exchange(i: int, j: int, low: tuple[str, int | None], high: tuple[str, int | None]) -> None:
        nonlocal spare
        a, b = held[i], held[j]
        code.vector(low[0], spare, a, b, immediate=low[1])
        code.vector(high[0], a, a, b, immediate=high[1])
        held[i], held[j], spare = spare, a, b

    for i in range(0, LANES, 2):
        exchange(i, i + 1, ("vunpcklps", None), ("vunpckhps", None))
    for i, j in product(range(0, LANES, 4), (0, 1)):
        exchange(i + j, i + j + 2, ("vshufps", 0x44), ("vshufps", 0xEE))
    for i, j in product(range(4), (0, 8)):
        exchange(i + j, i + j + 4, ("vshuff32x4", 0x44), ("vshuff32x4", 0xEE))
    for i in range(8):
        exchange(i, i + 8, ("vshuff32x4", 0x88), ("vshuff32x4", 0xDD))
    # lane 4 i + j is where quarter i, and in each quarter element j, have come to
    quarters, elements = (0, 8, 4, 12), (0, 2, 1, 3)
    return [held[quarter + element] for quarter, element in product(quarters, elements)]
