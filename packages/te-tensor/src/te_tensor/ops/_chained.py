"""Recurrent layers as chains of machine code: a product and a kernel or two a step, from one call.

Arrays have the steps first, then the batch: (T, B, features). The batch is cut over the threads,
each of which goes through its chain without the GIL; the large products before and after it
are cut by themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from math import ceil, prod
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided

from .. import memory, parallel
from ..blas import add_products, by_tiles, gemm, lay_out, rows_of
from ..blas_library import uses_tiles
from ..dtypes import Array, float32
from ..machine import Chain, Laid, Product, kernel_info, link_product, multiply, packed
from ..operation import Operation
from ._kernels import as_rows, sum_rows

#: Multiply-adds of a chain from which threads are used.
_PARALLEL_FROM = 1 << 22
#: Elements that stay in cache.
_SMALL = 1 << 16
#: Rows of the batch that a thread has at least.
_ROWS = 4
#: Rows of a thread, and multiply-adds of a step, from which tiles are ahead.
_TILED_ROWS, _TILED_FROM = 12, 1 << 20
#: Rows of inputs that are multiplied at once where nothing is kept for backward.
_ROWS_AT_ONCE = 1 << 12


class Record(NamedTuple):
    """What forward leaves for backward."""

    #: (T, B, gates·H): first the inputs' share of the gates, then what a layer makes of it.
    gates: Array
    #: (T+1, B, H) each, the hidden one first: before each step, and after the last one.
    states: list[Array]


class Flow(NamedTuple):
    """Gradients on their way back."""

    #: (T, B, gates·H), of the gates' arguments.
    gates: Array
    #: (T+1, B, H), of the hidden states: that of the output, to which a step adds.
    hidden: Array
    #: (1, B, H) each, of the other states: after the step that is next.
    others: list[Array]


class _Chained(Operation, abstract=True):
    """The part of a recurrent layer that runs as chains; a subclass says what a step calls."""

    #: Blocks of columns in the gates, and in their gradients; the first are those of the inputs.
    columns: ClassVar[int]
    #: Blocks of columns whose gradients are those of the hidden product, in the order of its rows.
    of_product: ClassVar[tuple[slice, ...]]
    #: Whether the hidden product has a bias of its own.
    own_bias: ClassVar[bool] = False

    def link(self, chain: Chain, record: Record, product: Array, out: Array) -> None:
        """Have each step of a chain make the gates, the next states and the output.

        Args:
            chain: of T steps.
            record: holds the inputs' share of the gates, and the first states.
            product: what the hidden state gives to the gates, where that has a bias of its own;
                otherwise it is in the gates.
            out: shape (T, B, H), for the hidden states.
        """
        raise NotImplementedError

    def link_back(self, chain: Chain, record: Record, flow: Flow) -> None:
        """Have each step of a chain make the gradients of its gates.

        Those of the states before it, too, but for the product with the hidden weights.

        Args:
            chain: of T steps; all arrays are given from the last step to the first.
            record: what forward left.
            flow: holds the gradients of the outputs.
        """
        raise NotImplementedError

    def forward_chained(
        self, x: Array, states: Sequence[Array], weights: Sequence[Array], out: Array
    ) -> Record:
        """Fill the output.

        Args:
            x: shape (T, B, I), in the order of the steps.
            states: the first ones, (B, H) each.
            weights: weight_ih, weight_hh, and bias_ih and bias_hh where there are biases.
            out: shape (T, B, H).
        """
        weight_ih, weight_hh, *biases = weights
        length, batch, _ = out.shape
        height = len(weight_ih)
        bias, bias_hh = biases or (np.zeros(height, x.dtype),) * 2
        bias = np.ascontiguousarray(bias) if self.own_bias else bias + bias_hh
        x = x if x.strides[2] == x.itemsize else x.copy()
        inputs = _Term(_Factor(weight_ih.T, length), bias)
        hiddens = _Term(_Factor(weight_hh.T, length), np.ascontiguousarray(bias_hh))
        rows = rows_of(x)
        in_chain = _in_chain(length, batch)
        if rows is not None and by_tiles(rows, weight_ih.T):
            in_chain = False  # quicker for many steps at once
        kept = True in self.needs_grad
        # Without gradients, those of the gates needn't be kept longer than for a few steps.
        steps = length if kept or in_chain else max(1, ceil(_ROWS_AT_ONCE / batch))
        for begin in range(0, length, steps):
            part = slice(begin, begin + steps)
            record = self._go(x[part], states, inputs, hiddens, out[part], kept, in_chain)
            states = [made[-1] for made in record.states]
        return record

    def _go(
        self,
        x: Array,
        states: Sequence[Array],
        inputs: _Term,
        hiddens: _Term,
        out: Array,
        kept: bool,
        in_chain: bool,
    ) -> Record:
        """Some steps."""
        length, batch, hidden = out.shape
        height = len(inputs.bias)
        gates = _each(length, (batch, self.columns * hidden), kept or not in_chain)
        shares = gates[:, :, :height]
        product = np.empty((1, batch, height), x.dtype) if self.own_bias else gates
        records = [_each(length + 1, (batch, hidden), kept) for _ in states]

        def begin() -> None:
            for record, state in zip(records, states, strict=True):
                record[0] = state
            if not in_chain:
                inputs.factor.multiply(as_rows(x), inputs.bias, as_rows(shares))
            if length == 1:
                start = hiddens.bias if self.own_bias else gates[0]
                hiddens.factor.multiply(records[0][0], start, product[0])

        def link(chain: Chain, piece: slice, tiles: bool) -> None:
            cut = Record(gates[:, piece], [record[:, piece] for record in records])
            target = product[:, piece]
            if in_chain:
                chain.product(x[:, piece], inputs.factor.panels, inputs.bias, shares[:, piece])
            if length > 1:
                start = hiddens.bias if self.own_bias else target
                hiddens.factor.link(chain, cut.states[0][:-1], start, target, tiles=tiles)
            self.link(chain, cut, target, out[:, piece])

        _run(begin, link, length, batch, height * hidden)
        return Record(gates, records)

    def flow_back(
        self,
        record: Record,
        upstream: Array,
        of_last: Sequence[Array | None],
        weights: Sequence[Array],
        grad_x: Array | None,
    ) -> Flow:
        """The gradients of the gates, and of the states.

        Args:
            record: what forward left.
            upstream: shape (T, B, H), the gradient of the output.
            of_last: those of the last states, (B, H) each.
            weights: weight_ih and weight_hh.
            grad_x: shape (T, B, I), is filled with the gradient of x.
        """
        weight_ih, weight_hh = weights
        length, batch, hidden = upstream.shape
        gates = memory.empty(record.gates.shape, record.gates.dtype)
        of_hidden = memory.empty((length + 1, batch, hidden), gates.dtype)
        of_h, *of_others = (0 if given is None else given for given in of_last)
        others = [np.empty((1, batch, hidden), gates.dtype) for _ in of_others]
        shares, in_chain = gates[:, :, : len(weight_ih)], _in_chain(length, batch)
        of_x = None if grad_x is None else rows_of(grad_x)
        if of_x is not None and by_tiles(as_rows(shares), weight_ih, of_x):
            in_chain = False
        inputs = None if grad_x is None else _Factor(weight_ih, length)
        zeros = np.zeros(weight_ih.shape[1], gates.dtype)
        parts = [
            (columns, _Factor(rows, length))
            for columns, rows in zip(self._of_product(hidden), self._rows(weight_hh), strict=True)
        ]

        def begin() -> None:
            of_hidden[0], of_hidden[1:] = 0, upstream
            of_hidden[-1] += of_h
            for other, given in zip(others, of_others, strict=True):
                other[...] = given

        def link(chain: Chain, piece: slice, tiles: bool) -> None:
            back = slice(None, None, -1), piece
            flow = Flow(gates[back], of_hidden[back], [other[:, piece] for other in others])
            states = [state[back] for state in record.states]
            self.link_back(chain, Record(record.gates[back], states), flow)
            before = flow.hidden[1:]
            if length > 1:
                for columns, rows in parts:
                    rows.link(chain, flow.gates[:, :, columns], before, before, tiles=tiles)
            if in_chain and grad_x is not None and inputs is not None:
                chain.product(shares[back], inputs.panels, zeros, grad_x[back])

        _run(begin, link, length, batch, weight_hh.size)
        if length == 1:
            for columns, rows in parts:
                rows.multiply(gates[0, :, columns], of_hidden[0], of_hidden[0])
        if not in_chain and grad_x is not None and inputs is not None:
            inputs.multiply_into(grad_x, as_rows(shares), zeros)
        return Flow(gates, of_hidden, others)

    def of_weights(
        self, x: Array, record: Record, flow: Flow, needed: Sequence[bool]
    ) -> list[Array | None]:
        """The gradients of the weights and biases, None where they aren't needed."""
        gates, before = as_rows(flow.gates), as_rows(record.states[0][:-1])
        hidden = before.shape[1]
        of_product = [gates[:, columns] for columns in self._of_product(hidden)]
        height = sum(part.shape[1] for part in of_product)
        of_inputs = gates[:, :height]
        results: list[Array | None] = [None] * 4
        if needed[0]:
            of_weight = memory.empty((height, x.shape[2]), x.dtype)
            results[0] = gemm(of_inputs.T, as_rows(x), of_weight)
        if needed[1]:
            of_weight = memory.empty((height, hidden), x.dtype)
            for part, rows in zip(of_product, self._rows(of_weight), strict=True):
                gemm(part.T, before, rows)
            results[1] = of_weight
        if True in needed[2:]:
            results[2] = results[3] = sum_rows(of_inputs)
            if self.own_bias:
                results[3] = np.concatenate([sum_rows(part) for part in of_product])
        return [made if need else None for made, need in zip(results, needed, strict=False)]

    def _of_product(self, hidden: int) -> list[slice]:
        """Columns of the gates' gradients that are those of the hidden product."""
        return [slice(s.start * hidden, s.stop * hidden) for s in self.of_product]

    def _rows(self, matrix: Array) -> list[Array]:
        """The rows of hidden weights, or of their gradient, that belong to them."""
        ends = np.cumsum([s.stop - s.start for s in self.of_product])
        return np.split(matrix, ends[:-1] * (len(matrix) // ends[-1]))


def chained(x: Array) -> bool:
    """Whether chains run for this input: their products are made for AVX-512."""
    return x.dtype is float32 and x.size > 0 and kernel_info()["kernels"] == "avx512"


def _each(length: int, shape: tuple[int, ...], kept: bool) -> Array:
    """A matrix for each step; all in the same place if they needn't be kept."""
    kept = kept or length * prod(shape) < _SMALL
    matrices = memory.empty((length if kept else 1, *shape), float32)
    return matrices if kept else as_strided(matrices, (length, *shape), (0, *matrices.strides[1:]))


class _Factor:
    """A matrix that products are made with: laid out for that, if there is more than one step."""

    def __init__(self, matrix: Array, length: int) -> None:
        self._matrix, self._laid_out = matrix, length > 1

    @cached_property
    def panels(self) -> Array:
        """The matrix as chains and `multiply` read it."""
        return packed(self._matrix) if self._laid_out else self._matrix

    @cached_property
    def laid(self) -> Laid | None:
        """The matrix as tiles read it, where they take its numbers."""
        laid = lay_out(self._matrix)
        return laid if laid.can_be_split() else None

    def link(self, chain: Chain, a: Array, start: Array, out: Array, *, tiles: bool) -> None:
        """Have each step of a chain make out = start + a @ matrix, by tiles where these may."""
        rows = out.shape[-2]
        work = self._matrix.size * rows
        if tiles and rows >= _TILED_ROWS and work >= _TILED_FROM and uses_tiles():
            laid = self.laid
            if laid is not None:
                link_product(chain, a, self._matrix, laid, start, out)
                return
        chain.product(a, self.panels, start, out)

    def multiply(self, a: Array, start: Array, out: Array) -> None:
        """out = start + a @ matrix."""
        if by_tiles(a, self._matrix, out):
            add_products(a, [Product(self._matrix, out, start)])
        elif self._laid_out:
            multiply(a, self.panels, start, out)
        else:
            if start is not out:
                out[...] = start
            gemm(a, self._matrix, out, beta=1.0)

    def multiply_into(self, out: Array, a: Array, start: Array) -> None:
        """The same for an array of any axes and strides."""
        rows = rows_of(out)
        if rows is not None:
            self.multiply(a, start, rows)
        else:
            made = memory.empty((len(a), out.shape[-1]), out.dtype)
            self.multiply(a, start, made)
            out[...] = made.reshape(out.shape)


class _Term(NamedTuple):
    """What is added to the gates: a product with a factor, and a bias."""

    factor: _Factor
    bias: Array


def _in_chain(length: int, batch: int) -> bool:
    """Whether the inputs' products are made in the chain, a step at a time.

    That is the quickest, as a step's gates are in cache, but needs rows enough in each thread.
    """
    return length > 1 and batch >= _ROWS * (
        1 if parallel.in_parallel() else parallel.get_num_threads()
    )


def _run(
    begin: Callable[[], None],
    link: Callable[[Chain, slice, bool], None],
    length: int,
    batch: int,
    size: int,
) -> None:
    """Go through chains, one for each piece of the batch that has a thread.

    Args:
        begin: writes what the chains begin with, and change.
        link: writes the calls of a chain down, for a piece; and whether products may be by tiles.
        length: of the chains.
        batch: its size.
        size: of the hidden weights.
    """
    small = length * batch * size < _PARALLEL_FROM or parallel.in_parallel()
    threads = 1 if small else parallel.get_num_threads()
    pieces = parallel.split(batch, max(1, min(threads, batch // _ROWS)))

    def run(tiles: bool) -> bool:
        """Whether all products could be made."""
        begin()
        chains = [Chain(length) for _ in pieces]
        for chain, piece in zip(chains, pieces, strict=True):
            link(chain, piece, tiles)

        def go(index: int) -> None:
            chains[index].run()

        parallel.run_each(go, len(pieces))
        return not any(chain.failed for chain in chains)

    if not run(tiles=True):
        run(tiles=False)


def blocks(array: Array, count: int) -> list[Array]:
    """Equal blocks of an array's columns."""
    width = array.shape[-1] // count
    return [array[..., begin : begin + width] for begin in range(0, count * width, width)]
