"""The gates of recurrent layers, and what flows back through them, as kernels."""

from __future__ import annotations

from ..machine import (
    Matrix,
    hyperbolic_tangent,
    kernel,
    logistic,
    maximum,
    minus_times,
    times_plus,
    where_greater,
)


@kernel
def rnn_tanh(gate: Matrix, next_h: Matrix, out: Matrix) -> None:
    """The next state, twice."""
    h = hyperbolic_tangent(gate.load())
    next_h.store(h)
    out.store(h)


@kernel
def rnn_relu(gate: Matrix, next_h: Matrix, out: Matrix) -> None:
    """The next state, twice."""
    h = maximum(0.0, gate.load())
    next_h.store(h)
    out.store(h)


@kernel
def rnn_tanh_back(next_h: Matrix, of_h: Matrix, of_gate: Matrix) -> None:
    """The gradient of the gate."""
    h = next_h.load()
    of_gate.store(of_h.load() * minus_times(1.0, h, h))


@kernel
def rnn_relu_back(next_h: Matrix, of_h: Matrix, of_gate: Matrix) -> None:
    """The gradient of the gate."""
    of_gate.store(where_greater(next_h.load(), 0.0, of_h.load(), 0.0))


@kernel
def lstm(
    i: Matrix,
    f: Matrix,
    g: Matrix,
    o: Matrix,
    c: Matrix,
    next_c: Matrix,
    next_h: Matrix,
    out: Matrix,
) -> None:
    """The gates in place of their arguments, the next states, and the hidden one once more."""
    inputs, cell = logistic(i.load()), hyperbolic_tangent(g.load())
    i.store(inputs)
    g.store(cell)
    forget = logistic(f.load())
    f.store(forget)
    state = times_plus(forget, c.load(), inputs * cell)
    next_c.store(state)
    output = logistic(o.load())
    o.store(output)
    h = output * hyperbolic_tangent(state)
    next_h.store(h)
    out.store(h)


@kernel
def lstm_back_to_cell(o: Matrix, next_c: Matrix, of_h: Matrix, of_c: Matrix, of_o: Matrix) -> None:
    """The gradient of the output gate; that of the hidden state goes on to the cell."""
    gate, squashed = o.load(), hyperbolic_tangent(next_c.load())
    passed = of_h.load() * gate
    of_c.store(times_plus(passed, minus_times(1.0, squashed, squashed), of_c.load()))
    of_o.store(passed * squashed * (1.0 - gate))


@kernel
def lstm_back_from_cell(
    i: Matrix,
    f: Matrix,
    g: Matrix,
    c: Matrix,
    of_c: Matrix,
    of_i: Matrix,
    of_f: Matrix,
    of_g: Matrix,
) -> None:
    """The gradients of the other gates, and of the cell before."""
    flow = of_c.load()
    inputs, cell = i.load(), g.load()
    through = flow * inputs
    of_g.store(through * minus_times(1.0, cell, cell))
    of_i.store(through * cell * (1.0 - inputs))
    forget = f.load()
    kept = flow * forget
    of_f.store(kept * c.load() * (1.0 - forget))
    of_c.store(kept)


@kernel
def gru(
    r: Matrix,
    z: Matrix,
    n: Matrix,
    product_r: Matrix,
    product_z: Matrix,
    product_n: Matrix,
    m: Matrix,
    h: Matrix,
    next_h: Matrix,
    out: Matrix,
) -> None:
    """The gates in place of the inputs' share, what r acts on, and the next state, twice."""
    share = product_n.load()
    m.store(share)
    reset = logistic(r.load() + product_r.load())
    r.store(reset)
    new = hyperbolic_tangent(times_plus(reset, share, n.load()))
    n.store(new)
    update = logistic(z.load() + product_z.load())
    z.store(update)
    state = times_plus(update, h.load() - new, new)
    next_h.store(state)
    out.store(state)


@kernel
def gru_back(
    r: Matrix,
    z: Matrix,
    n: Matrix,
    m: Matrix,
    h: Matrix,
    of_next: Matrix,
    of_h: Matrix,
    of_r: Matrix,
    of_z: Matrix,
    of_n: Matrix,
    of_m: Matrix,
) -> None:
    """The gradients of the gates, and the direct one of the state before."""
    flow, update, new = of_next.load(), z.load(), n.load()
    kept = flow * update
    of_h.store(of_h.load() + kept)
    of_z.store(kept * (h.load() - new) * (1.0 - update))
    into_new = (flow - kept) * minus_times(1.0, new, new)
    of_n.store(into_new)
    reset = r.load()
    into_product = into_new * reset
    of_m.store(into_product)
    of_r.store(into_product * m.load() * (1.0 - reset))
