"""What the calls of a nest come to, for one of its matrices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

from . import product, transposition
from .calls import PREFIX, WORD, Calls
from .compiler import LANES
from .kernel import Kernel, as_words
from .tile_layout import layout_calls
from .tile_templates import Form, Side, Template, lying, template_of
from .tiles import SMALL_TOO, Operand

#: Bytes of a number.
ITEM = 4


class Lying(NamedTuple):
    """How a stack of matrices lies."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def by_row(self) -> int:
        """Bytes from row to row; a matrix of one row serves for all."""
        return self.strides[-2] if self.shape[-2] > 1 else 0


class Here(NamedTuple):
    """A word of a record: where another one of it is."""

    word: int


class At(NamedTuple):
    """An address so far into a matrix, or into memory that is the same for all of them."""

    matrix: Lying | None
    distance: int


class Entry(NamedTuple):
    """The call of a program."""

    code: int
    words: Sequence[int | Here | Lying | At]
    #: Words of the record that the program changes if it can't do its work.
    failures: Sequence[int] = ()
    #: Whether it comes before those for the last axis.
    first: bool = False


class KernelCall(NamedTuple):
    """A kernel over rows of matrices."""

    kernel: Kernel
    matrices: tuple[Lying, ...]
    scalars: tuple[float, ...]
    first: bool

    def entries(self) -> list[Entry]:
        """Its calls."""
        program = self.kernel.program()
        head = program.head(*self.matrices[0].shape[-2:])
        numbers = as_words(self.scalars)
        words: list[int | Here | Lying] = [*head]
        # A kernel looks for addresses in array objects, behind their heads; here they are at the
        # record's end.
        behind = len(head) + 2 * len(self.matrices) + len(numbers)
        for number, matrix in enumerate(self.matrices):
            words += (Here(behind + number), matrix.by_row)
        return [Entry(program.address, [*words, *numbers, *self.matrices], first=self.first)]


class ProductCall(NamedTuple):
    """out = start + a @ b."""

    a: Lying
    b: Lying
    start: Lying
    out: Lying

    def entries(self) -> list[Entry]:
        """Its calls."""
        (rows, depth), columns = self.a.shape[-2:], self.out.shape[-1]
        by_k, by_row = self.a.strides[-1], self.b.strides[-2]
        if depth == 1:
            by_k, by_row = ITEM, ITEM * columns
        words: list[int | Lying] = []
        for matrix in (self.a, self.start, self.out):
            words += (matrix, matrix.by_row)
        words += (self.b, *product.head(rows, depth, columns, by_k, by_row))
        words += [0] * product.COUNTERS
        return [Entry(product.address(rows, columns), words)]


class TiledCall(NamedTuple):
    """The same by tiles, from memory where both sides are laid out."""

    a: Lying
    #: None where it is laid out.
    b: Lying | None
    out: Lying
    add: bool

    def template(self) -> Template:
        """What it comes to."""
        (rows, depth), columns, by_row = self.a.shape[-2:], self.out.shape[-1], self.out.strides[-2]
        of_a, of_b = lying(self.a.strides, 1), self.b and lying(self.b.strides, 0)
        assert of_a
        side = Side(columns, of_b, by_row, by_row if self.add else 0, plain=not self.add)
        form = Form(rows, depth, of_a, (side,), bounds=SMALL_TOO, sums_apart=False)
        return template_of(form)

    def entries(self) -> list[Entry]:
        """Its calls."""
        made = self.template()
        # In the order of `SHARED` and `OWN`; then memory to work in.
        matrices = (None, None, None, None, self.a, self.b, None, self.out, self.out, None)
        return _entries(made.calls, matrices, set(made.skipped.tolist()))


class LayoutCall(NamedTuple):
    """A right side laid out as tiles, before what comes for each matrix along the last axis."""

    b: Lying
    operand: Operand

    def calls(self) -> Calls:
        """What it comes to."""
        depth, columns = self.b.shape[-2:]
        return layout_calls(columns, depth, self.operand)

    def entries(self) -> list[Entry]:
        """Its calls."""
        made = _entries(self.calls(), (None, self.b, None, None, None), set())
        return [entry._replace(first=True) for entry in made]


def _entries(calls: Calls, matrices: Sequence[Lying | None], failures: set[int]) -> list[Entry]:
    """Calls that were written down, for matrices that each of their bases is, or none."""
    entries, at = [], 0
    words, bases = calls.words.tolist(), calls.bases.tolist()
    for _ in range(calls.count):
        places = range(at + 2, at + 2 + (words[at + 1] - PREFIX) // WORD)
        record = [At(matrices[bases[i]], words[i]) if bases[i] else words[i] for i in places]
        failing = [number for number, place in enumerate(places) if place in failures]
        entries.append(Entry(words[at], record, failing))
        at = places.stop
    return entries


class TransposedCall(NamedTuple):
    """A copy of a matrix with rows and columns exchanged."""

    source: Lying
    out: Lying

    def entries(self) -> list[Entry]:
        """Its calls."""
        rows, columns = self.source.shape[-2:]
        code = transposition.in_blocks(rows % LANES, columns % LANES)
        sizes = transposition.block_sizes(rows, columns, self.out.strides[-2])
        return [Entry(code.address, [self.source, self.source.by_row, self.out, *sizes])]


NestCall: TypeAlias = KernelCall | ProductCall | TiledCall | LayoutCall | TransposedCall
