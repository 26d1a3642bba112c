"""_Recurrent layers over a whole sequence: RNN LSTM GRU."""

from __future__ import annotations

import numpy as np

from .. import memory
from ..dtypes import Array
from ..machine import Chain
from ..operation import Sample
from . import _gates
from ._chained import Flow, Record, blocks
from ._sequence import Product, _Recurrent

_ORDERS = {"batch_first": True, "reverse": True}


class RNN(_Recurrent):
    """h' = tanh(W_ih·x + b_ih + W_hh·h + b_hh), or with relu (Elman, 1990).

    Args:
        nonlinearity: "tanh" or "relu".
        batch_first: x is (B, T, I), and the first output (B, T, H).
        reverse: begin at the end of the sequence.
    """

    one_dtype = ("x", "h0", "weight_ih", "weight_hh", "bias_ih", "bias_hh")
    order = (0,)
    sigmoids = 0
    input_slots = (0,)
    gate_slots = 1
    columns = 1
    of_product = (slice(0, 1),)
    samples = (
        Sample((3, 2, 4), (2, 3), (3, 4), (3, 3), (3,), (3,)),
        Sample((2, 3, 2), (2, 4), (4, 2), (4, 4), args=("relu",), kwargs=_ORDERS, seed=2),
    )

    def __init__(
        self, nonlinearity: str = "tanh", batch_first: bool = False, reverse: bool = False
    ) -> None:
        super().__init__(batch_first, reverse)
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"nonlinearity is {nonlinearity!r}: expected one of tanh, relu")
        self.nonlinearity = nonlinearity

    def forward_steps(self, record: Array, product: Product, steps: range) -> None:
        """The gates, and the next states."""
        for step in steps:
            product(step)
            if self.nonlinearity == "tanh":
                np.tanh(record[step, 0], out=record[step + 1, 1])
            else:
                np.maximum(record[step, 0], 0, out=record[step + 1, 1])

    def factors(self, record: Array) -> tuple[Array, ...]:
        """Derivatives of a step's states by its gates' arguments and by the states before it."""
        after = record[1:, 1:]
        slope = memory.empty(after.shape, after.dtype)
        if self.nonlinearity == "tanh":
            np.multiply(after, after, out=slope)
            np.subtract(1, slope, out=slope)
        else:
            np.greater(after, 0, out=slope)
        return (slope,)

    def backward_steps(
        self, factors: tuple[Array, ...], upstream: Array, flows: list[Array], product: Product
    ) -> None:
        """Multiply the factors with what flows back."""
        (gates,) = factors
        (of_h,) = flows
        for step in reversed(range(len(gates))):
            np.add(of_h, upstream[step], out=of_h)
            np.multiply(gates[step, 0], of_h, out=gates[step, 0])
            product(step)

    def link(self, chain: Chain, record: Record, product: Array, out: Array) -> None:
        """The next state."""
        gates, (h,) = record
        gate = _gates.rnn_tanh if self.nonlinearity == "tanh" else _gates.rnn_relu
        chain.kernel(gate, gates, h[1:], out)

    def link_back(self, chain: Chain, record: Record, flow: Flow) -> None:
        """The gradient of the gate."""
        gate = _gates.rnn_tanh_back if self.nonlinearity == "tanh" else _gates.rnn_relu_back
        chain.kernel(gate, record.states[0][:-1], flow.hidden[:-1], flow.gates)


class LSTM(_Recurrent):
    """c' = f·c + i·g, h' = o·tanh(c') (Hochreiter and Schmidhuber, 1997; Gers et al., 2000).

    The rows of the weights hold the gates i, f, g, o; i, f and o are sigmoids, g is a tanh.

    Args:
        batch_first: x is (B, T, I), and the first output (B, T, H).
        reverse: begin at the end of the sequence.
    """

    one_dtype = ("x", "h0", "c0", "weight_ih", "weight_hh", "bias_ih", "bias_hh")
    # In the record: o i f g c h. So i·g and f·c are one call, and h and c stand where the next
    # step needs them.
    order = (3, 0, 1, 2)
    sigmoids = 3
    input_slots = (0, 1, 2, 3)
    gate_slots = 4
    columns = 4
    of_product = (slice(0, 4),)
    states = ("h", "c")
    samples = (
        Sample((3, 2, 4), (2, 3), (2, 3), (12, 4), (12, 3), (12,), (12,)),
        Sample((2, 3, 2), (2, 2), (2, 2), (8, 2), (8, 2), kwargs=_ORDERS),
    )

    def forward_steps(self, record: Array, product: Product, steps: range) -> None:
        """The gates, and the next states."""
        half = record.dtype.type(0.5)
        pair, squashed = np.empty_like(record[0, :2]), np.empty_like(record[0, 0])
        for step in steps:
            row, (*_, c, h) = record[step], record[step + 1]
            gates, sigmoids = row[:4], row[:3]
            product(step)
            np.tanh(gates, out=gates)
            np.multiply(sigmoids, half, out=sigmoids)
            np.add(sigmoids, half, out=sigmoids)
            np.multiply(row[1:3], row[3:5], out=pair)
            np.add(pair[0], pair[1], out=c)
            np.tanh(c, out=squashed)
            np.multiply(row[0], squashed, out=h)

    def factors(self, record: Array) -> tuple[Array, ...]:
        """Derivatives of a step's states by its gates' arguments and by the states before it."""
        o, _, f, g, c, _ = record[:-1].swapaxes(0, 1)
        sigmoids, i = record[:-1, :3], record[:-1, 1]
        squashed = np.tanh(record[1:, 4], out=memory.empty(o.shape, o.dtype))
        gates = memory.empty((len(o), 4, *o.shape[1:]), o.dtype)
        np.multiply(sigmoids, sigmoids, out=gates[:, :3])
        np.subtract(sigmoids, gates[:, :3], out=gates[:, :3])
        np.multiply(g, g, out=gates[:, 3])
        np.subtract(1, gates[:, 3], out=gates[:, 3])
        for slot, factor in enumerate((squashed, g, c, i)):
            np.multiply(gates[:, slot], factor, out=gates[:, slot])
        np.multiply(squashed, squashed, out=squashed)
        np.subtract(1, squashed, out=squashed)
        np.multiply(squashed, o, out=squashed)
        return gates, squashed, f

    def backward_steps(
        self, factors: tuple[Array, ...], upstream: Array, flows: list[Array], product: Product
    ) -> None:
        """Multiply the factors with what flows back."""
        gates, through, forget = factors
        of_h, of_c = flows
        passed = np.empty_like(of_h)
        for step in reversed(range(len(gates))):
            row = gates[step]
            np.add(of_h, upstream[step], out=of_h)
            np.multiply(of_h, through[step], out=passed)
            np.add(of_c, passed, out=of_c)
            np.multiply(row[0], of_h, out=row[0])
            np.multiply(row[1:], of_c, out=row[1:])
            np.multiply(of_c, forget[step], out=of_c)
            product(step)

    def link(self, chain: Chain, record: Record, product: Array, out: Array) -> None:
        """The gates, and the next states."""
        gates, (h, c) = record
        chain.kernel(_gates.lstm, *blocks(gates, 4), c[:-1], c[1:], h[1:], out)

    def link_back(self, chain: Chain, record: Record, flow: Flow) -> None:
        """The gradients of the gates and of the cell before."""
        i, f, g, o = blocks(record.gates, 4)
        of_i, of_f, of_g, of_o = blocks(flow.gates, 4)
        c, (of_c,) = record.states[1], flow.others
        chain.kernel(_gates.lstm_back_to_cell, o, c[:-1], flow.hidden[:-1], of_c, of_o)
        chain.kernel(_gates.lstm_back_from_cell, i, f, g, c[1:], of_c, of_i, of_f, of_g)


class GRU(_Recurrent):
    """h' = n + z·(h - n), n = tanh(W_in·x + b_in + r·(W_hn·h + b_hn)) (Cho et al., 2014).

    The rows of the weights hold the gates r, z, n; r and z are sigmoids. As in PyTorch and cuDNN,
    r acts on the product with the hidden state, not on the state.

    Args:
        batch_first: x is (B, T, I), and the first output (B, T, H).
        reverse: begin at the end of the sequence.
    """

    one_dtype = ("x", "h0", "weight_ih", "weight_hh", "bias_ih", "bias_hh")
    # In the record: r z m n h, with m = W_hn·h + b_hn.
    order = (0, 1, 2)
    sigmoids = 2
    input_slots = (0, 1, 3)
    gate_slots = 4
    carried = 1.0
    # In a chain: r z n m.
    columns = 4
    of_product = (slice(0, 2), slice(3, 4))
    own_bias = True
    samples = (
        Sample((3, 2, 4), (2, 3), (9, 4), (9, 3), (9,), (9,)),
        Sample((2, 3, 2), (2, 2), (6, 2), (6, 2), kwargs=_ORDERS),
    )

    def forward_steps(self, record: Array, product: Product, steps: range) -> None:
        """The gates, and the next states."""
        half = record.dtype.type(0.5)
        part = np.empty_like(record[0, 0])
        for step in steps:
            row, following = record[step], record[step + 1, 4]
            r, z, m, n, h = row
            sigmoids = row[:2]
            product(step)
            np.tanh(sigmoids, out=sigmoids)
            np.multiply(sigmoids, half, out=sigmoids)
            np.add(sigmoids, half, out=sigmoids)
            np.multiply(r, m, out=part)
            np.add(n, part, out=n)
            np.tanh(n, out=n)
            np.subtract(h, n, out=part)
            np.multiply(part, z, out=part)
            np.add(n, part, out=following)

    def factors(self, record: Array) -> tuple[Array, ...]:
        """Derivatives of a step's states by its gates' arguments and by the states before it."""
        r, z, m, n, h = record[:-1].swapaxes(0, 1)
        gates = memory.empty((len(r), 4, *r.shape[1:]), r.dtype)
        of_r, of_z, of_m, of_n = gates.swapaxes(0, 1)
        rest = np.subtract(1, z, out=memory.empty(z.shape, z.dtype))
        np.multiply(n, n, out=of_n)
        np.subtract(1, of_n, out=of_n)
        np.multiply(of_n, rest, out=of_n)
        np.multiply(of_n, r, out=of_m)
        np.subtract(1, r, out=of_r)
        np.multiply(of_r, m, out=of_r)
        np.multiply(of_r, of_m, out=of_r)
        np.subtract(h, n, out=of_z)
        np.multiply(of_z, z, out=of_z)
        np.multiply(of_z, rest, out=of_z)
        return gates, z

    def backward_steps(
        self, factors: tuple[Array, ...], upstream: Array, flows: list[Array], product: Product
    ) -> None:
        """Multiply the factors with what flows back."""
        gates, z = factors
        (of_h,) = flows
        for step in reversed(range(len(gates))):
            np.add(of_h, upstream[step], out=of_h)
            np.multiply(gates[step], of_h, out=gates[step])
            np.multiply(of_h, z[step], out=of_h)
            product(step)

    def link(self, chain: Chain, record: Record, product: Array, out: Array) -> None:
        """The gates, and the next state."""
        r, z, n, m = blocks(record.gates, 4)
        (h,) = record.states
        shares = blocks(product, 3)
        chain.kernel(_gates.gru, r, z, n, *shares, m, h[:-1], h[1:], out)

    def link_back(self, chain: Chain, record: Record, flow: Flow) -> None:
        """The gradients of the gates, and the direct one of the state before."""
        gates, of_gates = (blocks(a, 4) for a in (record.gates, flow.gates))
        h, of_h = record.states[0], flow.hidden
        chain.kernel(_gates.gru_back, *gates, h[1:], of_h[:-1], of_h[1:], *of_gates)
