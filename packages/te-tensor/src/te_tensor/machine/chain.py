"""Chains: calls of kernels and products one after the other, as a single call.

A recurrence is thousands of short calls, and from Python each would cost more than it does. A chain
is a list of calls and their records, made for all steps at once, and is gone through without
the GIL. `Steps` are a single step of one, on memory that stays, taken time and again.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from .. import memory, parallel
from ..dtypes import Array
from . import product, transposition
from .calls import PREFIX, WORD, go_through
from .compiler import LANES
from .elementary import add_kernel, copy_kernel
from .kernel import Kernel, as_words
from .nest import Nest
from .nest_parts import INSIDE, OPERANDS, Part, nest_code
from .program import Call

_ITEM = 4
#: Multiply-adds, and a kernel's elements, from which threads share them in steps.
_SHARED_PRODUCT_FROM, _SHARED_KERNEL_FROM = 1 << 16, 1 << 14
#: Numbers in all matrices of a nest from which threads share them.
_SHARED_NEST_FROM = 1 << 14
#: The most k of a product with a matrix as it stands: so much of a panel stays in the first-level
#: cache.
_DEPTH = 256
#: Rows that products make together: work is cut in as many.
_UNIT = 8
#: Multiply-adds from which it is worth to wait until threads are awake.
_AWAITED_FROM = 1 << 24


class Chain:
    """Steps that each make the same calls.

    Operands are stacks of matrices, (steps, rows, columns) of float32 with contiguous columns; a
    stack of one serves all steps, and a vector all their rows. Callers see to it that kernels
    run in AVX-512, and that no operand is of size 0.

    Args:
        steps: how many.
    """

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._calls = 0
        # The words of the first step, how much each grows by a step, and which are places in here.
        self._words: list[int] = []
        self._growth: list[int] = []
        self._inside: list[int] = []
        #: What the words that are addresses belong to, by their places.
        self._operands: dict[int, Array] = {}
        #: The places of words that a call changes if it can't do its work.
        self._failures: list[int] = []
        self._kept: list[object] = []
        #: Whether a call couldn't, when the steps were gone through.
        self.failed = False

    def kernel(self, kernel: Kernel, *given: Any) -> int:
        """Have each step call a kernel over rows; the first operand says how many there are.

        Args:
            kernel: the kernel.
            given: its operands; scalars come last.

        Returns:
            The place of the words that say how many rows and columns there are.
        """
        operands, scalars = given[: kernel.arrays], given[kernel.arrays :]
        count = len(operands)
        program = kernel.program()
        head = program.head(*operands[0].shape[-2:])
        numbers = as_words(scalars)
        self._call(program.address, len(head) + 3 * count + len(numbers))
        sizes = len(self._words)
        self._add(*head)
        # A kernel looks for addresses in array objects, behind their heads; here they are behind
        # the record.
        behind = (len(self._words) + 2 * count + len(numbers)) * WORD - object.__basicsize__
        for place, operand in enumerate(operands):
            self._inside.append(len(self._words))
            self._add(behind + place * WORD, operand.strides[-2] if operand.ndim > 1 else 0)
        self._add(*numbers)
        for operand in operands:
            self._add_address(operand)
        return sizes

    def product(self, a: Array, panels: Array, start: Array, out: Array) -> int:
        """Have each step make out = start + a @ matrix.

        Args:
            a: matrices (rows, k); of any strides, if the matrix isn't packed.
            panels: the `packed` matrix (k, columns); or the matrix, its columns contiguous.
            start: matrices (rows, columns); may be `out`.
            out: matrices (rows, columns).

        Returns:
            The place of the words that say how large the matrices are.
        """
        rows, columns = out.shape[-2:]
        depth, by_row = (panels.shape[1], 0) if panels.ndim == 3 else (0, panels.strides[0])
        self._call(product.address(rows, columns, depth), _PRODUCT_WORDS)
        for operand in (a, start, out):
            self._add_address(operand)
            self._add(operand.strides[-2] if operand.ndim > 1 else 0)
        self._add_address(panels[None])
        place = len(self._words)
        by_k = a.strides[-1] if a.shape[-1] > 1 else _ITEM
        self._add(*product.head(rows, a.shape[-1], columns, by_k, by_row))
        self._add(*[0] * product.COUNTERS)
        return place

    def add(
        self,
        words: Array,
        growth: Array,
        count: int,
        *,
        failures: Sequence[int],
        kept: Sequence[object],
        operands: dict[int, Array] | None = None,
    ) -> None:
        """Have each step make calls that are written down already.

        Args:
            words: codes, lengths and records.
            growth: how much each word grows by a step.
            count: how many calls they are.
            failures: the places of words that a call changes if it can't do its work.
            kept: what has to live as long as the chain.
            operands: what addresses belong to, by the places of the words.
        """
        self._calls += count
        for place, operand in (operands or {}).items():
            self._operands[len(self._words) + place] = operand
        self._failures += [len(self._words) + place for place in failures]
        self._words += words.tolist()
        self._growth += growth.tolist()
        self._kept += kept

    def program(self, made: Call) -> None:
        """Have each step make the same call."""
        self._call(made.code.address, len(made.words))
        for word in made.words:
            if isinstance(word, int):
                self._add(word)
            else:
                array, distance = word
                self._operands[len(self._words)] = array
                self._add(memory.address(array) + distance)

    def _call(self, code: int, words: int) -> None:
        """Begin the record of a call."""
        self._calls += 1
        self._add(code, PREFIX + words * WORD)

    def _add(self, *words: int) -> None:
        """Words that are the same in every step."""
        self._words += words
        self._growth += [0] * len(words)

    def _add_address(self, stack: Array) -> None:
        """A word that says where a step's matrix is."""
        self._operands[len(self._words)] = stack
        self._words.append(memory.address(stack))
        self._growth.append(stack.strides[0] if stack.ndim > 1 and len(stack) > 1 else 0)

    def _records(self) -> Array:
        """The words of all steps, a row each."""
        steps = np.arange(self._steps)[:, None]
        records: Array = steps * np.array(self._growth)
        records += np.array(self._words)
        records[:, self._inside] += memory.address(records) + steps * records.strides[0]
        return records

    def run(self) -> bool:
        """Go through the steps; whether all calls could do their work."""
        records = self._records()
        head = np.array((self._calls * self._steps, memory.address(records)))
        go_through()[0](memory.address(head))
        self.failed = bool(records[:, self._failures].any())
        return not self.failed


#: Words of a product's record.
_PRODUCT_WORDS = 7 + len(product.head(1, 1, 1)) + product.COUNTERS


class Relocatable(NamedTuple):
    """Calls with addresses that count from bases.

    Attributes:
        words: the words; addresses in them are distances.
        bases: the number of what each word counts from.
        number: how many calls they are.
        failures: the places of words that a call changes if it can't do its work.
    """

    words: Array
    bases: Array
    number: int
    failures: list[int]


class Steps(Chain):
    """Calls on memory that stays, written down once and made time and again.

    One thread at a time may run them; workers that wait awake take their shares of what is large.
    """

    def __init__(self) -> None:
        super().__init__(1)
        self._written: tuple[Array, Array] | None = None
        self._crew = parallel.crew()
        self.threads = 1 if self._crew is None else parallel.parts()
        self._work = 0

    def rows(self, kernel: Kernel, *given: Any) -> None:
        """Have a kernel, which adds nothing up over rows, called on rows that threads share.

        Args:
            kernel: the kernel.
            given: as for `kernel`; operands of as many rows as the first one are cut.
        """
        first = given[0]
        threads = self.threads if first.size >= _SHARED_KERNEL_FROM else 1
        pieces = []
        for piece in parallel.split(len(first), threads):
            own = [
                x[piece]
                if isinstance(x, np.ndarray) and x.ndim == 2 and len(x) == len(first)
                else x
                for x in given
            ]
            pieces.append(partial(self.kernel, kernel, *own))
        self.side_by_side(pieces)

    def multiply(self, a: Array, panels: Array, start: Array, out: Array) -> None:
        """As `product` with a `packed` matrix, which threads share."""
        work = panels.size * len(a)
        self._work += work
        threads = self.threads if work >= _SHARED_PRODUCT_FROM else 1
        height = product.rows_of_block(a.shape[1])
        for first in range(0, len(a), height):
            rows = slice(first, first + height)
            begin = start[rows] if start.ndim == 2 else start
            pieces = []
            for piece in parallel.split(len(panels), threads):
                columns = slice(piece.start * product.PANEL, piece.stop * product.PANEL)
                own = panels[piece], begin[..., columns], out[rows, columns]
                pieces.append(partial(self.product, a[rows], *own))
            self.side_by_side(pieces)

    def nest(self, nest: Nest, room: Callable[[int, int], Array]) -> None:
        """Have a nest's calls made, its first axis cut over the threads.

        Args:
            nest: the nest; its operands are memory that stays.
            room: makes memory that stays for the threads' own matrices: so many rows, a thread
                each, of so many numbers.
        """
        threads = self.threads if nest.work >= _SHARED_NEST_FROM else 1
        parts = nest.parts(min(threads, nest.length))
        rooms = room(len(parts), nest.own_size)
        self.side_by_side(
            [
                partial(self._nest_part, part, nest.operands(room))
                for part, room in zip(parts, rooms, strict=True)
            ]
        )

    def _nest_part(self, part: Part, operands: list[Array]) -> None:
        self._call(nest_code().address, 1 + len(part.words))
        first = len(self._words) + 1
        self._add_inside(first)
        self._add(*part.words.tolist())
        self._failures += [first + place for place in part.failures]
        for at, base in enumerate(part.bases.tolist(), first):
            if base == INSIDE:
                self._inside.append(at)
                self._words[at] += first * WORD
            elif base >= OPERANDS:
                operand = operands[base - OPERANDS]
                self._operands[at] = operand
                self._words[at] += memory.address(operand)

    def turn(self, source: Array, out: Array) -> None:
        """Have out[j, i] = source[i, j] copied, 16 x 16 numbers at a time.

        Args:
            source: shape (m, n), columns contiguous.
            out: shape (n, m), in rows that end with a whole vector, where zeros go.
        """
        rows, columns = source.shape
        code = transposition.in_blocks(rows % LANES, columns % LANES)
        sizes = transposition.block_sizes(rows, columns, out.strides[0])
        self._call(code.address, 3 + len(sizes))
        self._add_address(source)
        self._add(source.strides[0])
        self._add_address(out)
        self._add(*sizes)

    def add_up(self, out: Array, terms: Sequence[Array]) -> None:
        """Have matrices added up, in order; the first one may be `out`."""
        if len(terms) == 1:
            self.rows(copy_kernel, out, *terms)
        for number, term in enumerate(terms[1:]):
            self.rows(add_kernel, out, out if number else terms[0], term)

    def matmul(self, a: Array, b: Array, start: Array, out: Array) -> None:
        """Have out = start + a @ b made, by the thread whose piece is written down.

        Args:
            a: shape (rows, k), of any strides.
            b: shape (k, columns), columns contiguous.
            start: shape (columns,), or (rows, columns) with contiguous columns, which may be `out`.
            out: shape (rows, columns), columns contiguous.
        """
        self._work += a.size * out.shape[1]
        for first in range(0, a.shape[1], _DEPTH):
            k = slice(first, first + _DEPTH)
            self.product(a[:, k], b[k], out if first else start, out)

    @property
    def calls_others(self) -> bool:
        """Whether there is a way to call functions of libraries."""
        return self._crew is not None

    def other(self, words: Sequence[int], operands: dict[int, Array]) -> None:
        """Have a library's function called.

        Args:
            words: as `Crew.caller` is given them.
            operands: arrays, by the places of their addresses.
        """
        assert self._crew is not None
        self._call(self._crew.caller, len(words))
        for place, word in enumerate(words):
            if place in operands:
                self._add_address(operands[place])
            else:
                self._add(word)

    def note_work(self, multiply_adds: int) -> None:
        """Count work that others write down, for which it may be worth to wait for threads."""
        self._work += multiply_adds

    def share(self, write: Callable[[slice, int], object], length: int, work: int) -> int:
        """Have work cut over the threads.

        Args:
            write: is given a slice and the thread's number, and writes down what it does with it.
            length: what is cut.
            work: how many multiply-adds or numbers it is: little is one piece.

        Returns:
            How many pieces there are.
        """
        threads = self.threads if work >= _SHARED_PRODUCT_FROM else 1
        pieces = [
            slice(_UNIT * unit.start, min(_UNIT * unit.stop, length))
            for unit in parallel.split(-(-length // _UNIT), threads)
        ]
        self.side_by_side([partial(write, piece, n) for n, piece in enumerate(pieces)])
        return len(pieces)

    def share_whole(self, write: Callable[[slice], object], array: Array) -> None:
        """Have work on what an array's first axis has cut over the threads.

        Args:
            write: is given a slice of the axis, and writes down what it does with it.
            array: the array; a small one is one piece.
        """
        threads = self.threads if array.size >= _SHARED_KERNEL_FROM else 1
        self.side_by_side([partial(write, own) for own in parallel.split(len(array), threads)])

    def side_by_side(self, pieces: Sequence[Callable[[], object]]) -> None:
        """Have pieces of work done by different threads, where there are as many.

        Args:
            pieces: each writes down the calls of one thread; what one of them writes no other uses.
        """
        if self._crew is None or not 1 < len(pieces) <= self.threads:
            for write in pieces:
                write()
            return
        self._call(self._crew.sharer, 0)
        length = len(self._words) - 1
        self._add_inside(len(self._words) + 2)
        self._add(len(pieces))
        tasks = len(self._words)
        for mailbox, _ in zip(self._crew.mailboxes, pieces, strict=False):
            self._add(mailbox, go_through()[1].address, 0)
        for number, write in enumerate(pieces):
            head, before = len(self._words), self._calls
            self._set_inside(tasks + 3 * number + 2, head)
            self._add(0)
            self._add_inside(head + 2)
            write()
            self._words[head], self._calls = self._calls - before, before
        self._words[length] = (len(self._words) - length + 1) * WORD

    def _add_inside(self, place: int) -> None:
        """A word that says where another one is."""
        self._add(0)
        self._set_inside(len(self._words) - 1, place)

    def _set_inside(self, at: int, place: int) -> None:
        self._inside.append(at)
        self._words[at] = place * WORD

    def relocatable(self, regions: Sequence[tuple[Array, int, int]]) -> Relocatable:
        """The calls with addresses that count from bases, for `run_relocated`; then none are left.

        Args:
            regions: arrays that operands are in; the number of a base for each, from 2 on, and how
                far from it the array is. What is elsewhere stays where it is.

        Returns:
            The calls; base 0 is nothing, and base 1 is where the words are.
        """
        words, bases = np.array(self._words, np.int64), np.zeros(len(self._words), np.int64)
        bases[self._inside] = 1
        ordered = sorted((memory.address(a), a.nbytes, *where) for a, *where in regions)
        starts = [start for start, *_ in ordered]
        for place in self._operands:
            at = int(words[place])
            start, size, base, distance = ordered[bisect(starts, at) - 1]
            if start <= at < start + size:
                words[place] += distance - start
                bases[place] = base
            else:
                self._kept.append(self._operands[place])
        self._words, self._growth, self._operands = [], [], {}
        return Relocatable(words, bases, self._calls, self._failures)

    def run_relocated(self, calls: Relocatable, addresses: Sequence[int]) -> bool:
        """Make calls that `relocatable` told; any number of threads may at once.

        Args:
            calls: the calls.
            addresses: what addresses count from, from number 2 on.

        Returns:
            Whether all of them could do their work.
        """
        words = np.empty(len(calls.words), np.int64)
        given = np.array((0, memory.address(words), *addresses), np.int64)
        np.add(calls.words, given[calls.bases], out=words)
        head = np.array((calls.number, memory.address(words)))
        if self.threads > 1 and self._crew is not None:
            parallel.wake(self.threads - 1, wait=self._work >= _AWAITED_FROM)
            with self._crew.held(self.threads - 1):
                go_through()[0](memory.address(head))
        else:
            go_through()[0](memory.address(head))
        return not (calls.failures and words[calls.failures].any())

    def is_current(self) -> bool:
        """Whether the threads are those that the calls were written down for."""
        crew = parallel.crew()
        return crew is self._crew and (crew is None or parallel.parts() == self.threads)

    def _write(self) -> tuple[Array, Array]:
        """The words of all calls; how many calls, and where they are."""
        if self._written is None:
            words = self._records()[0]
            self._written = words, np.array((self._calls, memory.address(words)))
        return self._written

    def operands_in(self, array: Array) -> list[int]:
        """The places of words that are addresses in the memory of an array."""
        start = memory.address(array)
        stop = start + array.nbytes
        return [place for place in self._operands if start <= self._words[place] < stop]

    def move(self, places: Any, distance: int) -> None:
        """Have addresses, which `operands_in` told, lead to memory that lies so far away."""
        self._write()[0][places] += distance

    def change(self, places: Any, words: Any) -> None:
        """Write other words, such as sizes, at places that `kernel` and `product` told."""
        self._write()[0][places] = words

    def run(self) -> bool:
        """Make the calls; whether all of them could do their work."""
        words, head = self._write()
        if self.threads > 1:
            parallel.wake(self.threads - 1, wait=self._work >= _AWAITED_FROM)
        go_through()[0](memory.address(head))
        self.failed = bool(self._failures) and bool(words[self._failures].any())
        if self.failed:
            words[self._failures] = 0
        return not self.failed
