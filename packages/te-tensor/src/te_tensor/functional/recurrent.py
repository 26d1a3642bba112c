"""_Recurrent layers: one layer, one direction, a whole sequence."""

from __future__ import annotations

import numpy as np

from ..checks import check_switch
from ..ops._sequence import _Recurrent
from ..ops.recurrent import GRU, LSTM, RNN
from ..tensor import Tensor, as_tensor
from ._common import Like, floats


def rnn(
    x: Like,
    weight_ih: Like,
    weight_hh: Like,
    bias_ih: Like | None = None,
    bias_hh: Like | None = None,
    *,
    h0: Like | None = None,
    nonlinearity: str = "tanh",
    batch_first: bool = False,
    reverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """h' = tanh(weight_ih·x + bias_ih + weight_hh·h + bias_hh) over a sequence.

    Args:
        x: shape (T, B, I), or (B, T, I) with batch_first.
        weight_ih: shape (H, I).
        weight_hh: shape (H, H).
        bias_ih: shape (H,); goes with bias_hh.
        bias_hh: likewise.
        h0: the first hidden state, shape (B, H); zeros by default.
        nonlinearity: "tanh" or "relu".
        batch_first: the batch is the first axis of x and of the result.
        reverse: begin at the end of the sequence.

    Returns:
        The hidden states, shape (T, B, H) or (B, T, H) in the order of x, and the last of them,
        shape (B, H).

    Raises:
        ValueError: shapes that don't fit, no steps, one bias alone, or an unknown nonlinearity.
        TypeError: different float widths.

    Example:
        >>> import te_tensor as te
        >>> x = te.ones(5, 2, 3)
        >>> output, last = te.rnn(x, te.ones(4, 3), te.zeros(4, 4))
        >>> output.shape, last.shape
        ((5, 2, 4), (2, 4))
    """
    operation = RNN(nonlinearity, batch_first, reverse)
    output, last = _run(operation, x, weight_ih, weight_hh, bias_ih, bias_hh, h0)
    return output, last


def lstm(
    x: Like,
    weight_ih: Like,
    weight_hh: Like,
    bias_ih: Like | None = None,
    bias_hh: Like | None = None,
    *,
    h0: Like | None = None,
    c0: Like | None = None,
    batch_first: bool = False,
    reverse: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """c' = f·c + i·g, h' = o·tanh(c') over a sequence, with PyTorch's order of gates i, f, g, o.

    Args:
        x: shape (T, B, I), or (B, T, I) with batch_first.
        weight_ih: shape (4·H, I).
        weight_hh: shape (4·H, H).
        bias_ih: shape (4·H,); goes with bias_hh.
        bias_hh: likewise.
        h0: the first hidden state, shape (B, H); zeros by default.
        c0: the first cell state, likewise.
        batch_first: the batch is the first axis of x and of the result.
        reverse: begin at the end of the sequence.

    Returns:
        The hidden states, shape (T, B, H) or (B, T, H) in the order of x, the last of them and the
        last cell state, shape (B, H).

    Raises:
        ValueError: shapes that don't fit, no steps, or one bias alone.
        TypeError: different float widths.

    Example:
        >>> import te_tensor as te
        >>> output, h, c = te.lstm(te.ones(5, 2, 3), te.ones(16, 3), te.zeros(16, 4))
        >>> output.shape, h.shape, c.shape
        ((5, 2, 4), (2, 4), (2, 4))
    """
    operation = LSTM(batch_first, reverse)
    output, h, c = _run(operation, x, weight_ih, weight_hh, bias_ih, bias_hh, h0, c0)
    return output, h, c


def gru(
    x: Like,
    weight_ih: Like,
    weight_hh: Like,
    bias_ih: Like | None = None,
    bias_hh: Like | None = None,
    *,
    h0: Like | None = None,
    batch_first: bool = False,
    reverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """h' = n + z·(h - n) over a sequence, with PyTorch's order of gates r, z, n.

    Args:
        x: shape (T, B, I), or (B, T, I) with batch_first.
        weight_ih: shape (3·H, I).
        weight_hh: shape (3·H, H).
        bias_ih: shape (3·H,); goes with bias_hh.
        bias_hh: likewise.
        h0: the first hidden state, shape (B, H); zeros by default.
        batch_first: the batch is the first axis of x and of the result.
        reverse: begin at the end of the sequence.

    Returns:
        The hidden states, shape (T, B, H) or (B, T, H) in the order of x, and the last of them,
        shape (B, H).

    Raises:
        ValueError: shapes that don't fit, no steps, or one bias alone.
        TypeError: different float widths.

    Example:
        >>> import te_tensor as te
        >>> output, last = te.gru(te.ones(5, 2, 3), te.ones(12, 3), te.zeros(12, 4))
        >>> output.shape, last.shape
        ((5, 2, 4), (2, 4))
    """
    operation = GRU(batch_first, reverse)
    output, last = _run(operation, x, weight_ih, weight_hh, bias_ih, bias_hh, h0)
    return output, last


def _run(
    operation: _Recurrent,
    x: Like,
    weight_ih: Like,
    weight_hh: Like,
    bias_ih: Like | None,
    bias_hh: Like | None,
    *states: Like | None,
) -> tuple[Tensor, ...]:
    name = type(operation).__name__.lower()
    check_switch(f"{name} batch_first", operation.batch_first)
    check_switch(f"{name} reverse", operation.reverse)
    x, weight_ih, weight_hh = floats(name, x), as_tensor(weight_ih), as_tensor(weight_hh)
    if (bias_ih is None) != (bias_hh is None):
        missing = "bias_ih" if bias_ih is None else "bias_hh"
        raise ValueError(f"{name} got no {missing}: expected both biases, or none")
    biases = [as_tensor(bias) for bias in (bias_ih, bias_hh) if bias is not None]
    batch = x.shape[0 if operation.batch_first else 1] if x.ndim == 3 else 0
    hidden = weight_hh.shape[-1] if weight_hh.ndim else 0
    first = [
        Tensor(np.zeros((batch, hidden), x.dtype)) if state is None else as_tensor(state)
        for state in states
    ]
    results: tuple[Tensor, ...] = Tensor.apply(operation, x, *first, weight_ih, weight_hh, *biases)
    return results
