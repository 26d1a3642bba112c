"""Products of matrices that are laid out as tiles."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import cache, partial
from itertools import product

from ..executable import Code
from .assembler import R8, R9, R10, R11, R12, R13, R14, R15, RAX, RBP, RBX, RCX, RDX, RSI, Memory
from .compiler import VECTOR
from .program import Record, Writer, program
from .tiles import PARTS, SIDE, SUMS, TILE, TILES_OF_A, TILES_OF_B, tiles_in_use


def multiply_chunk(code: Writer, load: Callable[[str, int, int], None]) -> None:
    """Six products for each of four sums; what is loaded next comes between them.

    Args:
        code: where they are written.
        load: loads a part of one of the two tiles of "a" or "b".
    """

    def add(*places: tuple[int, int]) -> None:
        for i, j in places:
            code.multiply_tiles(SUMS[i][j], TILES_OF_A[i], TILES_OF_B[j])

    load("a", 0, 0)
    load("b", 0, 2)
    add((0, 0))
    load("b", 1, 2)
    add((0, 1))
    load("a", 1, 0)
    add((1, 0))
    load("b", 0, 1)
    add((1, 1), (0, 0))
    load("b", 1, 1)
    add((1, 0), (0, 1))
    load("a", 0, 1)
    add((1, 1))
    load("a", 1, 1)
    add((0, 0), (0, 1), (1, 0))
    load("b", 0, 0)
    add((1, 1))
    load("b", 1, 0)
    add((0, 0), (1, 0), (0, 1))
    load("a", 0, 2)
    add((1, 1))
    load("a", 1, 2)
    add((0, 0), (0, 1))
    load("a", 0, 0)
    add((1, 0), (1, 1))
    load("a", 1, 0)
    add((0, 0), (0, 1), (1, 0), (1, 1))


MULTIPLY = Record(
    *("a", "a_pair", "b", "pair", "mixing", "chunks", "row_pairs", "column_pairs", "rows", "masks"),
    *("out", "out_row", "out_pair", "start", "start_row", "start_pair"),
    *("alpha", "scratch", "spare"),
    *("found_a", "found_b", "bounds", "parts", "one", "two", "shapes", "skipped"),
    variables=("columns_left", "rows_left", "out_line", "start_line", "out_step", "start_step"),
)
#: Bytes that `multiply_program` works in: the sums of a pair, and a row of them more.
SCRATCH = 4 * TILE + 2 * VECTOR


@cache
def multiply_program(rows: int) -> Code:
    """Code for out = start + alpha * a @ b of matrices laid out as tiles, two by two.

    While a pair is multiplied, the sums of the one before go to their place, with vectors that have
    nothing else to do then; and what this pair will write to is fetched.

    Args:
        rows: how many rows of sums go to their place with each chunk of k; 0 for pairs that aren't
            whole, whose sums go there at once.
    """
    record = MULTIPLY
    a, out, start, b = R8, R9, R10, RBX
    of_a, of_b, left, spare = RAX, RDX, R11, RCX
    place, line, begin, ahead = R12, RSI, R13, RBP  # of sums that wait, and of what is fetched
    one, two = R15, R14  # bytes from row to row of one tile, and two
    lines = (("out", out, line), ("start", start, begin))

    def load(code: Writer, matrix: str, i: int, part: int) -> None:
        tile, at = (TILES_OF_A[i], of_a) if matrix == "a" else (TILES_OF_B[i], of_b)
        code.load_tile(tile, Memory(at, one, i * PARTS + part * TILE))

    def chunks(code: Writer, count: str, beside: Callable[[], None] = lambda: None) -> None:
        with code.times(left, record[count]):
            beside()
            multiply_chunk(code, partial(load, code))
            code.add(of_a, record["parts"])
            code.add(of_b, record["parts"])

    def mix(code: Writer) -> None:
        """The next row of sums to its place."""
        for j in range(2):
            code.vector("vmovups", j, Memory(begin, offset=VECTOR * j), mask=1 + j, zero=True)
            code.vector("vfmadd231ps", j, 4, Memory(place, offset=VECTOR * j))
            code.store(Memory(line, offset=VECTOR * j), j, 1 + j)
        code.add_register(place, two)
        code.add(line, record["out_step"])
        code.add(begin, record["start_step"])

    def mix_the_rest(code: Writer) -> None:
        code.load(place, record["scratch"])
        with code.times(left, record["rows"]):
            mix(code)

    def fetch(code: Writer, count: int) -> None:
        for _ in range(count):
            code.prefetch_to_write(Memory(ahead))
            code.prefetch_to_write(Memory(ahead, offset=2 * VECTOR - 4))
            code.add(ahead, record["out_row"])

    def pair(code: Writer) -> None:
        """Two by two tiles of the product."""

        def mix_and_fetch() -> None:
            for _ in range(rows):
                mix(code)
            fetch(code, rows)

        code.move(of_a, a)
        code.move(of_b, b)
        code.move(ahead, out)
        for i, j in product(range(2), repeat=2):
            code.clear_tile(SUMS[i][j])
        if rows:
            code.load(place, record["scratch"])
            chunks(code, "mixing", mix_and_fetch)
        else:
            fetch(code, 2 * SIDE)
        chunks(code, "chunks")
        code.load(place, record["scratch"])
        for i, j in product(range(2), repeat=2):
            code.store_tile(Memory(place, two, 2 * TILE * i + VECTOR * j), SUMS[i][j])
        for name, pointer, before in lines:
            code.move(before, pointer)
            code.add_register(pointer, two)
            code.load(spare, record[f"{name}_row"])
            code.keep(record[f"{name}_step"], spare)
        if not rows:
            mix_the_rest(code)

    def write(code: Writer) -> None:
        with tiles_in_use(code, record, one):
            code.load(two, record["two"])
            code.vector("vbroadcastss", 4, record["alpha"])
            masks = record["masks"]
            for j in range(2):
                code.load_mask(1 + j, Memory(masks.base, offset=masks.offset + 2 * j))
            for name, _, before in lines:
                code.load(spare, record[name])
                code.keep(record[f"{name}_line"], spare)
                code.load(before, record["spare"])  # no sums wait yet: to a row that nobody reads
                code.clear(spare)
                code.keep(record[f"{name}_step"], spare)
            code.load(a, record["a"])
            with code.times_kept(record["rows_left"], record["row_pairs"], spare):
                code.load(b, record["b"])
                for name, pointer, _ in lines:
                    code.load(pointer, record[f"{name}_line"])
                with code.times_kept(record["columns_left"], record["column_pairs"], spare):
                    pair(code)
                    code.add(b, record["pair"])
                code.add(a, record["a_pair"])
                for name, _, _ in lines:
                    code.load(spare, record[f"{name}_line"])
                    code.add(spare, record[f"{name}_pair"])
                    code.keep(record[f"{name}_line"], spare)
            if rows:
                mix_the_rest(code)

    return program(write)


FEW_ROWS = Record(
    *("a", "b", "pair", "chunks", "groups", "rows", "out", "out_row", "start", "start_row"),
    *("scratch", "found_a", "found_b", "bounds", "parts", "one", "four", "shapes", "skipped"),
    variables=("groups_left",),
)
#: Tiles side by side in a group, and the columns that they have.
_SIDE_BY_SIDE = 4
WIDE = _SIDE_BY_SIDE * SIDE


@cache
def few_rows_program() -> Code:
    """Code for out = start + a @ b with one tile of rows, by four tiles of columns.

    The right side is read once, and each of its tiles comes from the first-level cache when it is
    wanted again.
    """
    record = FEW_ROWS
    b, out, start, of_a, of_b = R8, R9, R10, RAX, (RCX, RDX)
    place, line, begin, left, count, one, four = R12, RBX, RSI, R11, RBP, R15, R14
    sums, numbers = (0, 1, 2, 3), itertools.cycle((4, 5))

    def chunk(code: Writer) -> None:
        """The six products in the order of `multiply_chunk`, so that sums are the same."""
        for part, others in ((0, (2, 1)), (1, (1, 0)), (2, (0,)), (0, (0,))):
            tile = next(numbers)
            code.load_tile(tile, Memory(of_a, one, part * TILE))
            for other, total in product(others, sums):
                pair, side = divmod(total, 2)
                at = Memory(of_b[pair], one, side * PARTS + other * TILE)
                code.load_tile(6 + side, at)
                code.multiply_tiles(total, tile, 6 + side)

    def group(code: Writer) -> None:
        """The products of four tiles of columns."""
        code.load(of_a, record["a"])
        code.move(of_b[0], b)
        code.move(of_b[1], b)
        code.add(of_b[1], record["pair"])
        for total in sums:
            code.clear_tile(total)
        with code.times(left, record["chunks"]):
            chunk(code)
            for at in (of_a, *of_b):
                code.add(at, record["parts"])
        code.load(place, record["scratch"])
        for total in sums:
            code.store_tile(Memory(place, four, VECTOR * total), total)
        code.move(line, out)
        code.move(begin, start)
        code.load(count, record["rows"])
        loop = code.here()
        for total in sums:
            code.vector("vmovups", total, Memory(place, offset=VECTOR * total))
            code.vector("vaddps", total, total, Memory(begin, offset=VECTOR * total))
            code.store(Memory(line, offset=VECTOR * total), total)
        code.add(begin, record["start_row"])
        code.add(line, record["out_row"])
        code.add(place, record["four"])
        code.add_number(count, -1)
        code.jump("not zero", loop)
        for _ in range(2):
            code.add(b, record["pair"])
        for at in (out, start):
            code.add(at, record["four"])

    def write(code: Writer) -> None:
        with tiles_in_use(code, record, one):
            code.load(four, record["four"])
            for register, name in ((b, "b"), (out, "out"), (start, "start")):
                code.load(register, record[name])
            with code.times_kept(record["groups_left"], record["groups"], count):
                group(code)

    return program(write)
