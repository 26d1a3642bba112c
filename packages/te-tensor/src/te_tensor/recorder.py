"""How recordings are made: operations write down what they come to, in both directions.

While a small model trains, Python takes longer than the work. A recorder has the calls of kernels
and products written down for inputs of one shape; what they make is a `Recording`, see
`recording.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from math import prod
from typing import NamedTuple, TypeAlias

import numpy as np

from . import memory, parallel
from .blas import by_tiles
from .blas_library import OpenBlas, library, uses_tiles
from .dtypes import Array, float32
from .machine import (
    LANES,
    Column,
    Given,
    Matrix,
    Nest,
    Product,
    Steps,
    add_kernel,
    copy_kernel,
    fill_kernel,
    kernel,
    runs_programs,
    share_products,
)
from .operation import Operation
from .recording import GRAD, INPUTS, KEPT, OUT, PASSING, Call, Recording

_ITEM, _LINE = 4, 64
#: Images in lanes: how many at least, and of how many numbers at most.
_LEAST_IMAGES, _LARGEST_IMAGE = 8, 1 << 15
#: Rows that are summed one after the other, in each column.
_SUMMED = 512
#: Multiply-adds from which tiles, or a BLAS, are ahead of vectors that need no layout.
_TILED_FROM, _BLAS_FROM = 1 << 25, 1 << 26
#: Rows, columns or k below which a product is thin, and multiply-adds from which a BLAS is ahead:
#: vectors read a large matrix in short rows.
_THIN, _THIN_FROM = 64, 1 << 21


class Unrecorded(Exception):
    """An operation, or its inputs, can't be part of a recording: apply it as usual."""


class Into(NamedTuple):
    """Where a gradient goes.

    Attributes:
        out: what it is written to.
        start: what it is added to, or None; may be `out`.
    """

    out: Array
    start: Array | None


#: Writes down an operation's backward: from the gradient of its result, and where those of its
#: inputs go (None: nowhere).
Backward: TypeAlias = Callable[[Array, Sequence[Into | None]], None]


@kernel
def _add_rows(rows: Matrix, total: Matrix) -> None:
    total.add(rows.load())


@kernel
def _subtract_sum(rows: Matrix, out: Column) -> None:
    out.store(0.0 - rows.load().sum())


class _Arena:
    """Memory of a run, as arrays that stand for it while calls are written down."""

    def __init__(self) -> None:
        #: The arrays, and how far from the beginning they are.
        self.arrays: list[tuple[Array, int]] = []
        #: Bytes in all.
        self.size = 0
        self._free: dict[int, list[Array]] = {}

    def take(self, shape: tuple[int, ...]) -> Array:
        """An array of float32, where nobody is any more."""
        # Only for as many numbers is memory used again: the result's is no larger than it is.
        count = prod(shape)
        free = self._free.get(count)
        if free:
            return free.pop().reshape(shape)
        made = memory.reserve((count + _LINE // _ITEM,), float32)
        made = made[-memory.address(made) % _LINE // _ITEM :][:count]
        self.arrays.append((made, self.size))
        self.size += made.nbytes + -made.nbytes % _LINE
        return made.reshape(shape)

    def give_back(self, array: Array) -> None:
        """Let the memory be used again by what is written down from now on."""
        start = memory.address(array)
        for made, _ in self.arrays:
            if memory.address(made) == start:
                self._free.setdefault(made.size, []).append(made)


class _Entry(NamedTuple):
    """An operation that was written down."""

    inputs: Sequence[Array]
    out: Array
    back: Backward
    #: Which input has the gradient of the result for its own, as a residual has.
    same: int | None
    #: Whether the gradient of the first input may be written where that of the result is.
    in_place: bool


class Recorder:
    """Writes operations down.

    Their arrays stand for memory that runs bring: only where they are and how they lie counts.

    Args:
        tiles: make large products by tiles, where the processor has some. What these can't split
            (infinities, NaN, numbers above 2⁵⁰) the recording's `fallback` is for.
        backward: whether there is one; else inputs need no gradients.

    Example:
        >>> import te_tensor as te
        >>> from te_tensor.ops.linalg import Linear
        >>> from te_tensor.recorder import Recorder, Unrecorded
        >>> from te_tensor.recording import Replay
        >>> x, weight = te.randn(5, 3, requires_grad=True), te.randn(2, 3, requires_grad=True)
        >>> recorder = Recorder()
        >>> given = [recorder.input(t.shape, needs_grad=True) for t in (x, weight)]
        >>> try:
        ...     recording = recorder.finish(recorder.apply(Linear(), *given))
        ...     y = te.Tensor.apply(Replay(recording), x, weight)
        ... except Unrecorded:  # a processor without AVX-512
        ...     y = te.linear(x, weight)
        >>> y.sum().backward()
        >>> x.grad.shape
        (5, 3)
    """

    def __init__(self, *, tiles: bool = False, backward: bool = True) -> None:
        self.forward, self.backward = Steps(), Steps()
        #: Whether large products go by tiles.
        self.tiles = tiles and uses_tiles()
        self._brief, self._passing = _Arena(), _Arena()
        self._kept = _Arena() if backward else self._brief
        self._inputs: list[Array] = []
        self._laid: dict[int, Given] = {}
        self._needing: set[int] = set()
        self._tape: list[_Entry] = []
        self._passed: set[int] = set()
        #: What stands for images in lanes, and their memory, by the ids of the former.
        self._lanes: dict[int, tuple[Array, Array]] = {}

    def input(self, shape: tuple[int, ...], *, needs_grad: bool) -> Array:
        """What stands for an input of runs, in their order."""
        made = memory.reserve(shape, float32)
        self._inputs.append(made)
        if needs_grad:
            self._needing.add(id(made))
        return made

    def kept(self, *shape: int) -> Array:
        """Memory that forward writes and backward finds."""
        return self._kept.take(shape)

    def kept_like(self, x: Array) -> Array:
        """The same for an array as x, in lanes if that is."""
        return self._like(x, self.kept)

    def _like(self, x: Array, take: Callable[..., Array]) -> Array:
        if id(x) not in self._lanes:
            return take(*x.shape)
        return self.images(take(*self.memory_of(x).shape), len(x))

    def images(self, lanes: Array, count: int) -> Array:
        """What stands for so many images, shape (N, C, …).

        Args:
            lanes: their memory, shape (C, …, L): the batch lies innermost, in whole vectors.
            count: N, at most L.
        """
        made: Array = np.moveaxis(lanes[..., :count], -1, 0)
        self._lanes[id(made)] = made, lanes
        return made

    def memory_of(self, x: Array) -> Array:
        """An array's memory: of images in lanes, these."""
        return self._lanes.get(id(x), (x, x))[1]

    def in_lanes(self, x: Array) -> Array:
        """Images (N, C, …) with the batch innermost in memory, copied so if they aren't.

        Raises:
            Unrecorded: no batch, large images, or so few that most lanes would be empty.
        """
        if id(x) in self._lanes:
            return x
        if x.ndim < 3 or len(x) < _LEAST_IMAGES or x[0].size > _LARGEST_IMAGE:
            raise Unrecorded("no batch of small images")
        count, *inner = x.shape
        lanes = self.kept(*inner, count + -count % LANES)
        made = self.images(lanes, count)
        self.forward.turn(_matrix(x), lanes.reshape(-1, lanes.shape[-1]))

        def back(grad: Array, outs: Sequence[Into | None]) -> None:
            (into,) = outs
            assert into is not None
            self._to_rows(self.backward, self.memory_of(grad), into, self.passing)

        self.note((x,), made, back)
        return made

    def in_rows(self, x: Array) -> Array:
        """An array in C order in memory, copied so if it is images in lanes."""
        if id(x) not in self._lanes:
            return x
        made, lanes = self.kept(*x.shape), self.memory_of(x)
        self._to_rows(self.forward, lanes, Into(made, None), self.brief)

        def back(grad: Array, outs: Sequence[Into | None]) -> None:
            (into,) = outs
            assert into is not None
            with self.adding(into) as out:
                self.backward.turn(_matrix(grad), out.reshape(-1, out.shape[-1]))

        self.note((x,), made, back)
        return made

    def _to_rows(self, steps: Steps, lanes: Array, into: Into, take: Callable[..., Array]) -> None:
        """Have images in lanes copied to C order."""
        out = _matrix(into.out)
        count, features = out.shape
        source = lanes.reshape(features, -1)[:, :count]
        if into.start is None and features % LANES == 0:
            steps.turn(source, out)
            return
        turned = take(count, features + -features % LANES)  # rows end with whole vectors
        steps.turn(source, turned)
        terms = [turned[:, :features], *([] if into.start is None else [_matrix(into.start)])]
        steps.add_up(out, terms)
        self.release(turned)

    def brief(self, *shape: int) -> Array:
        """Memory within forward; `release` lets what follows have it."""
        return self._brief.take(shape)

    def passing(self, *shape: int) -> Array:
        """Memory within backward; `release` lets what follows have it."""
        return self._passing.take(shape)

    def passing_like(self, x: Array) -> Array:
        """The same for an array as x, in lanes if that is."""
        return self._like(x, self.passing)

    def pass_on(self, array: Array) -> Array:
        """Let the next operation write over a result of `kept`, which nothing else reads."""
        self._passed.add(id(array))
        return array

    def may_overwrite(self, array: Array) -> bool:
        """Whether an input was `pass_on`'s."""
        return id(array) in self._passed

    def done(self, *arrays: Array) -> None:
        """As `release`, for what `kept` gave, unless backward reads it."""
        if self._kept is self._brief:
            self.release(*arrays)

    def release(self, *arrays: Array) -> None:
        """Let what follows write to memory that nothing reads any more."""
        for array in arrays:
            self._brief.give_back(array)
            self._passing.give_back(array)

    def needs_grad(self, array: Array) -> bool:
        """Whether backward comes to this input, or result."""
        return id(array) in self._needing

    def apply(self, operation: Operation, *arrays: Array) -> Array:
        """Have an operation written down.

        Args:
            operation: a new instance of one that has `record`.
            *arrays: its inputs.

        Returns:
            What stands for the result.

        Raises:
            Unrecorded: there is no such recording, no machine code here, or inputs that don't fit.
        """
        usual = all([array.ndim and array.size for array in arrays])
        if operation.record is None or not usual or not runs_programs():
            raise Unrecorded(type(operation).__name__)
        if operation.records_lanes == "wanted":
            arrays = self.in_lanes(arrays[0]), *arrays[1:]
        elif operation.records_lanes is None:
            arrays = tuple(map(self.in_rows, arrays))
        try:
            out, back, same = operation.record(self, *arrays)
        except (TypeError, ValueError) as error:  # what forward would raise
            raise Unrecorded(str(error)) from error
        self.note(arrays, out, back, same, in_place=operation.gradient_in_place)
        return out

    def note(
        self,
        inputs: Sequence[Array],
        out: Array,
        back: Backward,
        same: int | None = None,
        *,
        in_place: bool = False,
    ) -> None:
        """Have backward written down later for what was written down of forward.

        Args:
            inputs: what it was made of.
            out: the result.
            back: writes backward down; not called where no input needs a gradient.
            same: which input's gradient is that of the result; `back` leaves it out.
            in_place: whether `back` can write the gradient of the first input where that of the
                result is.
        """
        if any(map(self.needs_grad, inputs)):
            self._needing.add(id(out))
        self._tape.append(_Entry(inputs, out, back, same, in_place))

    def finish(self, out: Array) -> Recording:
        """What was recorded, up to this result.

        Raises:
            Unrecorded: an input that needs a gradient has nothing to do with the result.
        """
        out = self.in_rows(out)
        grad = memory.reserve(out.shape, float32)
        grads = _Gradients(self, out, grad)
        for entry in reversed(self._tape):
            grads.through(entry)
        results = grads.results
        if any(self.needs_grad(x) and id(x) not in results for x in self._inputs):
            raise Unrecorded("an input that the result doesn't depend on")
        ends = [results.get(id(x)) for x in self._inputs]
        brief = _Arena() if self._brief is self._kept else self._brief
        regions = [
            (array, base, at)
            for arena, base in ((self._kept, KEPT), (brief, PASSING), (self._passing, PASSING))
            for array, at in arena.arrays
        ]
        at_out = memory.address(out)
        made = next((array for array, *_ in regions if memory.address(array) == at_out), None)
        if made is None:
            raise Unrecorded("a result in the memory of an input")
        regions = [region for region in regions if region[0] is not made]
        regions += [(made, OUT, 0), (grad, GRAD, 0)]
        regions += [(x, base, 0) for base, x in enumerate(self._inputs, INPUTS)]
        first = INPUTS + len(self._inputs)
        regions += [(x, base, 0) for base, x in enumerate(ends, first) if x is not None]
        return Recording(
            Call.of(self.forward, regions),
            Call.of(self.backward, regions),
            (self._kept.size, brief.size, self._passing.size),
            out.shape,
            [None if x is None else x.shape for x in ends],
        )

    def is_large(self, a: Array, b: Array, out: Array) -> bool:
        """Whether a product is for `multiply`: tiles or a BLAS are ahead of vectors."""
        return self._suits_tiles(a, b, out) or self._suits_blas(a, b, out)

    def _suits_tiles(self, a: Array, b: Array, out: Array) -> bool:
        return self.tiles and a.size * b.shape[1] >= _TILED_FROM and by_tiles(a, b, out)

    def _suits_blas(self, a: Array, b: Array, out: Array) -> bool:
        thin = min(*a.shape, b.shape[1]) < _THIN
        blas, large = library(), a.size * b.shape[1] >= (_THIN_FROM if thin else _BLAS_FROM)
        if not large or not self.forward.calls_others or not isinstance(blas, OpenBlas):
            return False
        return blas.as_call(a, b, out, 0.0) is not None

    def lay(self, weight: Array, tiles: Array, facts: Array) -> None:
        """Say what stands for a weight (out, in) that is laid out for products with its transpose.

        Args:
            weight: an input.
            tiles: another one, for `Laid.tiles`.
            facts: for `Laid.facts`.
        """
        self._laid[id(weight)] = Given(tiles, facts)

    def laid(self, weight: Array) -> Given | None:
        """What `lay` said of a weight."""
        return self._laid.get(id(weight))

    def multiply_each(self, steps: Steps, a: Array, products: Sequence[Product]) -> bool:
        """Have products with one left side made, if all of them suit tiles; whether they do."""
        if not all(self._suits_tiles(a, product.b, product.out) for product in products):
            return False
        make = self.brief if steps is self.forward else self.passing
        self.release(*share_products(steps, a, products, make))
        return True

    def nests(self, steps: Steps, nests: Sequence[Nest]) -> None:
        """Have nests' calls made, one nest after the other, in memory that they share."""
        make = self.brief if steps is self.forward else self.passing
        rooms = make(steps.threads, max(nest.own_size for nest in nests))
        for nest in nests:
            steps.nest(nest, lambda count, size: rooms[:count])
        self.release(rooms)

    def multiply(
        self,
        steps: Steps,
        a: Array,
        b: Array,
        start: Array | None,
        out: Array,
        laid: Given | None = None,
    ) -> None:
        """Have out = start + a @ b made by tiles or a BLAS.

        Args:
            steps: either direction's.
            a: shape (rows, k).
            b: shape (k, columns).
            start: shape (columns,) or (rows, columns), or None.
            out: shape (rows, columns).
            laid: b laid out, if it is.
        """
        if self.multiply_each(steps, a, [Product(b, out, start, laid)]):
            return
        blas = library()
        assert isinstance(blas, OpenBlas)
        by_rows = len(a) >= b.shape[1]

        def write(piece: slice, _: int) -> None:
            here = (piece, slice(None)) if by_rows else (slice(None), piece)
            own = out[here]
            if start is not None and start is not out:
                steps.kernel(copy_kernel, own, start[here[2 - start.ndim :]])
            left, right = (a[piece], b) if by_rows else (a, b[:, piece])
            call = blas.as_call(left, right, own, float(start is not None))
            assert call
            steps.other(*call)

        work = a.size * b.shape[1]
        steps.note_work(work)
        steps.share(write, max(out.shape), work)

    def join(self, arrays: Sequence[Array]) -> Array:
        """Arrays one behind the other, as one: along the first axis."""
        lengths = [len(array) for array in arrays]
        out = self.kept(sum(lengths), *arrays[0].shape[1:])
        pieces = [slice(end - n, end) for end, n in zip(accumulate(lengths), lengths, strict=True)]
        for array, piece in zip(arrays, pieces, strict=True):
            self.forward.rows(copy_kernel, _matrix(out[piece]), _matrix(array))

        def back(grad: Array, outs: Sequence[Into | None]) -> None:
            for into, piece in zip(outs, pieces, strict=True):
                if into is None:
                    continue
                given = [a for a in (grad[piece], into.start) if a is not None]
                self.backward.add_up(_matrix(into.out), list(map(_matrix, given)))

        self.note(arrays, out, back)
        return out

    # -- what several operations write down ------------------------------------------------------

    def sum_rows(self, rows: Array, out: Array) -> None:
        """Have the rows of a matrix (n, columns) summed into a vector, in backward."""
        count = -(-len(rows) // _SUMMED)
        if count > 1:  # sums of sums are more exact
            sums = self.passing(count, rows.shape[1])
            for piece, own in zip(parallel.split(len(rows), count), sums, strict=True):
                self.sum_rows(rows[piece], own)
            rows = sums
        self.zeros(out)
        self.backward.kernel(_add_rows, rows, out.reshape(-1))

    def add_up(self, parts: Array, into: Into) -> None:
        """Have what threads found, shape (threads, …), added up, in backward."""
        out = _matrix(into.out)
        terms = [] if into.start is None else [into.start]  # first: it may be `out`
        terms = [term.reshape(out.shape) for term in (*terms, *parts)]
        self.backward.add_up(out, terms)

    @contextmanager
    def adding(self, into: Into) -> Iterator[Array]:
        """Memory for a gradient, in backward: what it is added to is added at the end."""
        out = self.memory_of(into.out)
        if into.start is None:
            yield out
            return
        made = self.passing(*out.shape)
        yield made
        start = self.memory_of(into.start)
        self.backward.rows(add_kernel, *map(_matrix, (out, made, start)))
        self.release(made)

    def negative_sums(self, rows: Array, out: Into) -> None:
        """Have minus the sum of each row written into, or added to, a vector; in backward."""
        with self.adding(out) as made:
            self.backward.kernel(_subtract_sum, rows, made.reshape(-1, 1))

    def copy(self, source: Array, out: Array) -> None:
        """Have memory copied, in backward."""
        self.backward.kernel(copy_kernel, out.reshape(1, -1), source.reshape(1, -1))

    def zeros(self, array: Array) -> None:
        """Have memory set to 0, in backward."""
        self.backward.kernel(fill_kernel, array.reshape(1, -1), 0.0)


def _matrix(array: Array) -> Array:
    return array.reshape(1, -1) if array.ndim == 1 else array.reshape(len(array), -1)


class _Gradients:
    """The walk backward: what has arrived at each array, and where it is."""

    def __init__(self, recorder: Recorder, out: Array, grad: Array) -> None:
        self._recorder = recorder
        #: Gradients by the ids of what they are of, and whether they are in memory of backward's.
        self._found: dict[int, tuple[Array, bool]] = {id(out): (grad, False)}
        self._leaves = {id(x) for x in recorder._inputs}
        self._uses = Counter(id(x) for entry in recorder._tape for x in entry.inputs)
        #: The gradients of inputs, by these.
        self.results: dict[int, Array] = {}

    def through(self, entry: _Entry) -> None:
        """Have an operation's backward written down, if anything has arrived at its result."""
        recorder = self._recorder
        arrived = self._found.pop(id(entry.out), None)
        if arrived is None or not recorder.needs_grad(entry.out):
            self._uses.subtract(map(id, entry.inputs))
            return
        grad, owned = arrived
        released: list[Array] = []
        own = grad if owned and entry.in_place and entry.same is None else None
        outs = [
            None if place == entry.same else self._into(x, released, None if place else own)
            for place, x in enumerate(entry.inputs)
        ]
        entry.back(grad, outs)
        owned = owned and not any(into is not None and into.out is grad for into in outs)
        if entry.same is not None and recorder.needs_grad(entry.inputs[entry.same]):
            self._pass_on(entry.inputs[entry.same], grad, owned)
        elif owned:
            released.append(grad)
        for array in released:
            recorder._passing.give_back(array)

    def _into(self, x: Array, released: list[Array], own: Array | None) -> Into | None:
        if not self._recorder.needs_grad(x):
            return None
        self._uses[id(x)] -= 1
        before, owned = self._found.get(id(x), (None, False))
        is_last = id(x) in self._leaves and not self._uses[id(x)]
        if is_last:
            target = self.results[id(x)] = np.empty(x.shape, float32)
            if before is not None and owned:
                released.append(before)
        elif before is not None and owned:
            target = before
        elif own is not None:
            target = own
        else:
            target = self._recorder.passing_like(x)
        self._found[id(x)] = target, not is_last
        return Into(target, before)

    def _pass_on(self, x: Array, grad: Array, owned: bool) -> None:
        """A gradient that arrives as it is."""
        steps = self._recorder.backward
        self._uses[id(x)] -= 1
        before = self._found.get(id(x))
        if id(x) in self._leaves and not self._uses[id(x)]:
            target = self.results[id(x)] = np.empty(x.shape, float32)
        elif before is None:
            self._found[id(x)] = grad, owned
            return
        else:
            target = self._recorder.passing_like(x)
            self._found[id(x)] = target, True
        terms = [grad] if before is None else [grad, before[0]]
        steps.add_up(_matrix(target), list(map(_matrix, terms)))
