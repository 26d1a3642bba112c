"""What recurrent networks share: a chain of steps, and the large products around it.

Where a chain can run as machine code, `_chained.py` has it. The one here is made of NumPy's calls.
It works on arrays with the features first, (H, B): the product of a step is then the one that BLAS
is quickest at, every gate is one contiguous block, and the state is an operand as it is.
A record of shape (T+1, slots, H, B) holds for each step its gates and, in the last slots, the
states before it. The projections of the inputs go into the record ahead of the chain, a few
steps in one product; backward goes through the record from its end, and what remains of a step is
part of a large product again. Where the batch is too small to cut, a second thread does the
large products while the first one goes through the chain.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, NamedTuple

import numpy as np

from .. import memory, parallel
from ..blas import gemm, rows_of, stepwise
from ..dtypes import Array
from ..operation import Gradients
from ._chained import Record, _Chained, chained
from ._kernels import as_rows

#: Multiply-adds of a whole sequence from which threads are used.
_PARALLEL_FROM = 1 << 26
#: Rows of a batch below which a product of a step costs as much as with these.
_ROWS = 16
#: Columns, steps times rows of the batch, of a product around the chain.
_COLUMNS = 512

#: The product of a step, by its place in the stack.
Product = Callable[[int], None]


class _Weights(NamedTuple):
    """Weights in the order of the record's slots, the rows of sigmoids halved."""

    inputs: Array  # (gates·H, I)
    hidden: Array  # (gates·H, H)
    biases: dict[int, Array]  # slot: (H, 1)


class _Links(NamedTuple):
    """What some steps leave for the gradients of the weights: matrices of n·B columns or rows."""

    for_inputs: Array  # (gates·H, n·B)
    inputs: Array  # (n·B, I)
    for_hidden: Array  # (gates·H, n·B)
    hidden: Array  # (n·B, H)


class _Recurrent(_Chained, abstract=True):
    """A recurrent layer over a whole sequence, in one direction.

    Inputs: x (T, B, I), h0 (B, H) (and c0, of LSTM), weight_ih (gates·H, I), weight_hh
    (gates·H, H), and optionally bias_ih and bias_hh (gates·H,). Outputs: the hidden states
    (T, B, H), and the last state or states (B, H).

    A subclass says what stands where in the record, and computes its steps.

    Args:
        batch_first: x is (B, T, I), and the first output (B, T, H).
        reverse: begin at the end of the sequence.
    """

    #: Blocks of the weights' rows in the order of the record; sigmoids come first.
    order: ClassVar[tuple[int, ...]]
    #: How many blocks are sigmoids, which are computed as (1 + tanh(x/2)) / 2.
    sigmoids: ClassVar[int]
    #: The slots that the blocks' input projections go to; the hidden ones go to the first slots.
    input_slots: ClassVar[tuple[int, ...]]
    #: Slots of gates in a record; those of the states follow.
    gate_slots: ClassVar[int]
    #: Names of the states in the order of the slots, the hidden state last.
    states: ClassVar[tuple[str, ...]] = ("h",)
    #: Share of the hidden state's gradient that is there before the product of a step.
    carried: ClassVar[float] = 0.0

    def __init__(self, batch_first: bool = False, reverse: bool = False) -> None:
        self.batch_first = batch_first
        self.reverse = reverse

    def multiply_adds(self) -> int:
        """Those of the products with both weights."""
        x, *others = self.inputs
        weight_ih, weight_hh = others[len(self.states) : len(self.states) + 2]
        tokens = x.shape[0] * x.shape[1]
        return int(tokens * (weight_ih.size + weight_hh.size))

    def forward_steps(self, record: Array, product: Product, steps: range) -> None:
        """From the projections in the record's rows, their gates and the states of the next rows.

        Args:
            record: shape (T+1, slots, H, B).
            product: adds what the hidden state contributes to the first slots of a row.
            steps: the rows.
        """
        raise NotImplementedError

    def factors(self, record: Array) -> tuple[Array, ...]:
        """What backward multiplies with, for some steps.

        Args:
            record: shape (n+1, slots, H, B), the states after the last step included.

        Returns:
            First an array (n, slots of gates, H, B) that `backward_steps` turns into the
            gradients of the gates.
        """
        raise NotImplementedError

    def backward_steps(
        self, factors: tuple[Array, ...], upstream: Array, flows: list[Array], product: Product
    ) -> None:
        """Go through some steps from the last to the first.

        Args:
            factors: what `factors` returned.
            upstream: shape (n, H, B), the gradient of the output.
            flows: shapes (H, B), the gradients of the states after the last step, in the order of
                the outputs; left as those before the first.
            product: of a step, from the gates' gradients to the hidden state's.
        """
        raise NotImplementedError

    # -- forward --------------------------------------------------------------------------

    def forward(self, x: Array, *given: Array) -> tuple[Array, ...]:
        """The hidden states, and the last states."""
        self._check(x, *given)
        count = len(self.states)
        states, (weight_ih, weight_hh, *biases) = given[:count], given[count:]
        hidden = weight_hh.shape[1]
        out = memory.empty((*x.shape[:2], hidden), x.dtype)
        if chained(x):
            record = self.forward_chained(self._steps(x), states, given[count:], self._steps(out))
            self.save(x, weight_ih, weight_hh, record)
            return out, *(state[-1].copy() for state in record.states)
        weights = self._arranged(weight_ih, weight_hh, biases)
        last = [np.empty_like(state, order="C") for state in states]
        steps, results = self._steps(x), self._steps(out)
        pieces, helped = _plan(steps.shape, weight_hh.shape)
        records: list[Array] = [np.empty(0)] * len(pieces)

        def run(index: int) -> None:
            piece = pieces[index]
            record = self._begin(steps.shape[0], [state[piece] for state in states])
            self._forward(record, steps[:, piece], results[:, piece], weights, helped)
            for place, state in enumerate(last):
                state[piece] = record[-1, ~place].T
            records[index] = record

        parallel.run_each(run, len(pieces))
        self.save(x, weight_ih, weight_hh, list(zip(pieces, records, strict=True)))
        return out, *last

    def _begin(self, length: int, states: Sequence[Array]) -> Array:
        """A record that holds the first states."""
        batch, hidden = states[0].shape
        slots = self.gate_slots + len(states)
        record = memory.empty((length + 1, slots, hidden, batch), states[0].dtype)
        for place, state in enumerate(states):
            record[0, ~place] = state.T
        return record

    def _forward(
        self, record: Array, steps: Array, results: Array, weights: _Weights, helped: bool
    ) -> None:
        """Fill a record, and the output."""
        length, batch, _ = steps.shape
        hidden = record.shape[2]
        chunks = _chunks(length, batch)
        gates = len(self.order)
        flat = record[:-1].reshape(length, record.shape[1] * hidden, batch)
        product = stepwise(weights.hidden, flat[:, -hidden:], flat[:, : gates * hidden], beta=1.0)
        only_hidden = sorted(set(range(gates)) - set(self.input_slots))

        def ahead(item: int) -> None:
            chunk = chunks[item]
            rows = as_rows(steps[chunk])
            projected = memory.empty((gates * hidden, len(rows)), record.dtype)
            gemm(weights.inputs, rows.T, projected)
            columns = projected.reshape(gates, hidden, chunk.stop - chunk.start, batch).swapaxes(
                1, 2
            )
            for place, slot in enumerate(self.input_slots):
                np.add(columns[place], weights.biases[slot], out=record[:-1][chunk, slot])
            for slot in only_hidden:
                record[:-1][chunk, slot] = weights.biases[slot]

        def step(item: int) -> None:
            chunk = chunks[item]
            self.forward_steps(record, product, range(chunk.start, chunk.stop))

        def after(item: int) -> None:
            chunk = chunks[item]
            results[chunk] = record[1:][chunk, -1].swapaxes(1, 2)

        parallel.relay(ahead, step, after, len(chunks), helped=helped)

    def _arranged(self, weight_ih: Array, weight_hh: Array, biases: Sequence[Array]) -> _Weights:
        hidden = weight_hh.shape[1]
        gates = len(self.order)
        factor = np.ones((gates, 1, 1), weight_hh.dtype)
        factor[: self.sigmoids] = 0.5

        def arranged(array: Array) -> Array:
            blocks = self._in_order(array.reshape(gates, hidden, -1))
            return np.multiply(blocks, factor, out=memory.empty(blocks.shape, array.dtype))

        of_slot = {slot: np.zeros((hidden, 1), weight_hh.dtype) for slot in range(self.gate_slots)}
        for bias, slots in zip(biases, (self.input_slots, range(gates)), strict=False):
            for block, slot in zip(arranged(bias), slots, strict=True):
                of_slot[slot] += block
        inputs, hidden_weights = (arranged(w).reshape(w.shape) for w in (weight_ih, weight_hh))
        return _Weights(inputs, hidden_weights, of_slot)

    def _in_order(self, blocks: Array) -> Array:
        """Blocks of weights in the order of the record."""
        return blocks if self.order == tuple(range(len(blocks))) else blocks[list(self.order)]

    def _steps(self, sequence: Array) -> Array:
        """A view (T, B, …) whose first step is the one to begin with."""
        steps = sequence.swapaxes(0, 1) if self.batch_first else sequence
        return steps[::-1] if self.reverse else steps

    # -- backward -------------------------------------------------------------------------

    def backward(self, grad: Array | None, *of_last: Array | None) -> Gradients:
        """Gradients of x, of the first states, and of the weights."""
        x, weight_ih, weight_hh, kept = self.saved
        hidden = weight_hh.shape[1]
        if grad is None:
            grad = np.broadcast_to(np.zeros((), x.dtype), (*x.shape[:2], hidden))
        grad_x = memory.empty(x.shape, x.dtype) if self.needs_grad[0] else None
        steps, upstream = self._steps(x), self._steps(grad)
        of_steps = None if grad_x is None else self._steps(grad_x)
        if isinstance(kept, Record):
            flow = self.flow_back(kept, upstream, of_last, (weight_ih, weight_hh), of_steps)
            needed = self.needs_grad[1 + len(self.states) :]
            of_weights = self.of_weights(steps, kept, flow, needed)
            return [grad_x, flow.hidden[0], *(other[0] for other in flow.others), *of_weights]
        of_first = [np.empty((steps.shape[1], hidden), x.dtype) for _ in self.states]
        blocks = weight_hh.reshape(len(self.order), hidden, hidden)
        # A copy: each of the many products is the quicker for it.
        back = _packed(self._in_order(blocks).reshape(weight_hh.shape).T)
        helped = len(kept) == 1 and _plan(steps.shape, weight_hh.shape)[1]
        links: list[list[_Links]] = [[] for _ in kept]

        def run(index: int) -> None:
            piece, record = kept[index]
            flows = [_turned(g, piece, record) for g in of_last]
            of_piece = None if of_steps is None else of_steps[:, piece]
            around = self._around(record, steps[:, piece], weight_ih, of_piece)
            links[index] = self._backward(record, upstream[:, piece], back, flows, around, helped)
            for flow, first in zip(flows, of_first, strict=True):
                first[piece] = flow.T

        parallel.run_each(run, len(kept))
        of_weights = self._of_weights([link for piece in links for link in piece])
        return [grad_x, *of_first, *of_weights]

    def _backward(
        self,
        record: Array,
        upstream: Array,
        back: Array,
        flows: list[Array],
        around: Callable[[slice, Array], _Links],
        helped: bool,
    ) -> list[_Links]:
        """Go back through a record: what its steps leave to do; the flows become the gradients."""
        length, batch, hidden = upstream.shape
        chunks = _chunks(length, batch)[::-1]
        given: dict[int, tuple[tuple[Array, ...], Array]] = {}
        links: list[_Links] = []

        def ahead(item: int) -> None:
            chunk = chunks[item]
            turned = _packed(upstream[chunk].swapaxes(1, 2))
            given[item] = self.factors(record[chunk.start : chunk.stop + 1]), turned

        def step(item: int) -> None:
            factors, turned = given[item]
            rows = self.gate_slots * hidden
            gates = factors[0].reshape(len(turned), rows, batch)[:, : back.shape[1]]
            product = stepwise(back, gates, flows[0], beta=self.carried)
            self.backward_steps(factors, turned, flows, product)

        def after(item: int) -> None:
            factors, _ = given.pop(item)
            links.append(around(chunks[item], factors[0]))

        parallel.relay(ahead, step, after, len(chunks), helped=helped)
        return links

    def _around(
        self, record: Array, steps: Array, weight_ih: Array, grad_x: Array | None
    ) -> Callable[[slice, Array], _Links]:
        """What is done with gates' gradients: that of x, and matrices for the weights'."""
        gates = len(self.order)

        def joined(gradients: Array, slots: Sequence[int]) -> Array:
            """(n, slots, H, B) as a matrix (gates·H, n·B), the gates as in the weights."""
            count, _, hidden, batch = gradients.shape
            matrix = memory.empty((gates, hidden, count, batch), gradients.dtype)
            for block, slot in zip(self.order, slots, strict=True):
                matrix[block] = gradients[:, slot].swapaxes(0, 1)
            return matrix.reshape(gates * hidden, count * batch)

        def around(chunk: slice, gradients: Array) -> _Links:
            for_inputs = for_hidden = joined(gradients, self.input_slots)
            if self.input_slots != tuple(range(gates)):
                for_hidden = joined(gradients, range(gates))
            rows = as_rows(steps[chunk])
            if grad_x is not None:
                _multiply_into(grad_x[chunk], for_inputs.T, weight_ih)
            before = _packed(record[chunk, -1].swapaxes(0, 1))
            return _Links(for_inputs, rows, for_hidden, before.reshape(len(before), len(rows)).T)

        return around

    def _of_weights(self, links: list[_Links]) -> list[Array | None]:
        """The weights' gradients, each thread some rows of them, the steps in a fixed order."""
        needed = self.needs_grad[1 + len(self.states) :]
        height, columns = links[0].for_inputs.shape
        dtype = links[0].inputs.dtype
        widths = (links[0].inputs.shape[1], links[0].hidden.shape[1], 1, 1)
        totals = [
            memory.empty((height, width), dtype) if need else None
            for width, need in zip(widths, needed, strict=False)
        ]
        work = sum(width for width, need in zip(widths, needed, strict=False) if need)
        small = work * height * columns * len(links) < _PARALLEL_FROM
        pieces = parallel.split(height, 1 if small else parallel.get_num_threads())

        def run(index: int) -> None:
            piece = pieces[index]
            for place, link in enumerate(links):
                left = (link.for_inputs[piece], link.for_hidden[piece]) * 2
                ones = np.ones((left[0].shape[1], 1), dtype)
                right = (link.inputs, link.hidden, ones, ones)
                for total, a, b in zip(totals, left, right, strict=False):
                    if total is not None:
                        gemm(a, b, total[piece], beta=float(place > 0))

        parallel.parallel_for(run, len(pieces))
        return [
            total if total is None or place < 2 else total.reshape(-1)
            for place, total in enumerate(totals)
        ]

    # -- bad input ------------------------------------------------------------------------

    def _check(self, x: Array, *given: Array) -> None:
        count = len(self.states)
        names = [*(f"{name}0" for name in self.states), "weight_ih", "weight_hh"]
        names += ["bias_ih", "bias_hh"][: len(given) - len(names)]
        weight_hh = given[count + 1]
        hidden = weight_hh.shape[-1] if weight_hh.ndim else 0
        height = len(self.order) * hidden
        fits = x.ndim == 3 and x.size + hidden > 0
        if fits:
            length, batch, width = self._steps(x).shape
            wanted = [*[(batch, hidden)] * count, (height, width), (height, hidden), (height,)]
            wanted += [(height,)] * (len(given) - len(wanted))
            fits = length > 0 and hidden > 0 and width > 0
            fits = fits and [a.shape for a in given] == wanted[: len(given)]
        if not fits:
            listed = ", ".join(
                f"{name} {a.shape}" for name, a in zip(["x", *names], [x, *given], strict=True)
            )
            order = "(B, T, I)" if self.batch_first else "(T, B, I)"
            rows = f"{len(self.order)}·H" if len(self.order) > 1 else "H"
            raise ValueError(
                f"{type(self).__name__.lower()} got {listed}: expected x {order} with at least one "
                f"step, states (B, H), weight_ih ({rows}, I), weight_hh ({rows}, H) and biases "
                f"({rows},)"
            )


def _plan(shape: tuple[int, ...], weight_shape: tuple[int, ...]) -> tuple[list[slice], bool]:
    """The pieces of the batch that have a thread each, and whether a chain has a helper instead.

    Few threads do best as one chain and a helper: products of a step are quicker the larger they
    are, and threads that each run a chain wait for the GIL. But a helper needs something to do:
    projections of inputs that aren't much narrower than the hidden state.
    """
    length, batch, width = shape
    height, hidden = weight_shape
    threads = parallel.get_num_threads()
    small = length * batch * height * (width + hidden) < _PARALLEL_FROM
    if small or threads == 1 or parallel.in_parallel():
        return [slice(0, batch)], False
    count = min(threads, batch // _ROWS)
    if count < 2 or (threads < 4 and 2 * width >= hidden):
        return [slice(0, batch)], True
    return parallel.split(batch, count), False


def _chunks(length: int, batch: int) -> list[slice]:
    """Runs of steps that are one product around the chain.

    The first ones are shorter: forward the chain waits for the first, and backward for nothing but
    what the first one leaves to do.
    """
    most = max(1, _COLUMNS // max(batch, 1))
    chunks, begin, count = [], 0, max(1, most // 8)
    while begin < length:
        chunks.append(slice(begin, min(begin + count, length)))
        begin += count
        count = min(2 * count, most)
    return chunks


def _packed(array: Array) -> Array:
    """A copy in C order."""
    copy = memory.empty(array.shape, array.dtype)
    copy[...] = array
    return copy


def _turned(grad: Array | None, piece: slice, record: Array) -> Array:
    """The gradient of a last state as (H, B), to be written to."""
    if grad is None:
        return np.zeros(record.shape[2:], record.dtype)
    return np.array(grad[piece].T, order="C")


def _multiply_into(out: Array, a: Array, b: Array) -> None:
    """Set `out`, of any strides, to the rows of a product."""
    rows = rows_of(out)
    if rows is not None:
        gemm(a, b, rows)
    else:
        out[...] = gemm(a, b, memory.empty((a.shape[0], b.shape[1]), a.dtype)).reshape(out.shape)
