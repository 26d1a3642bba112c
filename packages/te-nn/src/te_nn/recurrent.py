"""Recurrent layers, and their cells for a single step."""

from __future__ import annotations

import warnings
from math import sqrt
from typing import Any, ClassVar

import numpy as np

import te_tensor as te
from te_tensor import Tensor
from te_tensor.checks import check_switch

from . import initialize
from .checks import one_of, positive, probability
from .module import Module


class _Recurrent(Module):
    """What layers and cells share: sizes, parameters, states.

    Attributes are named as in PyTorch: a parameter's name, and for layers the place in the stack.
    """

    #: Blocks of rows in the weights.
    _gates: ClassVar[int] = 1
    #: Names of the states.
    _states: ClassVar[tuple[str, ...]] = ("h",)

    hidden_size: int

    def _make_parameters(self, width: int, bias: bool, place: str = "") -> None:
        """Weights and biases, even in ±1/√hidden_size."""
        rows, hidden = self._gates * self.hidden_size, self.hidden_size
        bound = 1 / sqrt(hidden)
        shapes: dict[str, tuple[int, ...]] = {"weight_ih": (rows, width)}
        shapes["weight_hh"] = (rows, hidden)
        shapes |= {"bias_ih": (rows,), "bias_hh": (rows,)} if bias else {}
        for name, shape in shapes.items():
            setattr(self, name + place, initialize.uniform(shape, bound))

    def _parameters_at(self, place: str = "") -> list[Tensor]:
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        found = (getattr(self, name + place, None) for name in names)
        return [parameter for parameter in found if parameter is not None]

    def _run(self, x: Tensor, *parameters: Tensor, **options: Any) -> tuple[Tensor, ...]:
        """The function that this layer is; a subclass says which."""
        raise NotImplementedError

    def _given(self, state: Any, shape: tuple[int, ...]) -> list[Tensor] | None:
        """The states as a list, checked, or None for zeros."""
        if state is None:
            return None
        single = len(self._states) == 1
        several = not single and isinstance(state, (tuple, list))
        states = list(state) if several else [state]
        expected = f"a tensor {shape}" if single else f"a pair (h, c) of tensors {shape}"
        fits = len(states) == len(self._states)
        arrays = (Tensor, np.ndarray)
        if not fits or any(not isinstance(s, arrays) or s.shape != shape for s in states):
            given = ", ".join(str(getattr(s, "shape", type(s).__name__)) for s in states)
            raise ValueError(f"{type(self).__name__} got a state of {given}: expected {expected}")
        return [te.as_tensor(s) for s in states]

    def _returned(self, states: list[Tensor]) -> Any:
        return states[0] if len(states) == 1 else tuple(states)


class _Layer(_Recurrent):
    """A stack of recurrent layers, in one direction or both."""

    _shown = ("input_size", "hidden_size", "num_layers")

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
    ) -> None:
        self.input_size = positive("input_size", input_size)
        self.hidden_size = positive("hidden_size", hidden_size)
        self.num_layers = positive("num_layers", num_layers)
        self.bias = check_switch("bias", bias)
        self.batch_first = check_switch("batch_first", batch_first)
        self.dropout = probability("dropout", dropout)
        self.bidirectional = check_switch("bidirectional", bidirectional)
        if dropout and num_layers == 1:
            warnings.warn(
                f"dropout={dropout} stands between layers: it does nothing with num_layers=1",
                stacklevel=3,
            )
        for layer in range(num_layers):
            width = hidden_size * len(self._directions) if layer else input_size
            for direction in self._directions:
                self._make_parameters(width, bias, f"_l{layer}{direction}")

    @property
    def _directions(self) -> tuple[str, ...]:
        return ("", "_reverse") if self.bidirectional else ("",)

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """The last layer's hidden states, and the last states of all layers.

        Args:
            x: shape (T, B, input_size), (B, T, input_size) with batch_first, or (T, input_size).
            state: the first states, h or for LSTM (h, c), each of shape (D·num_layers, B, H), or
                (D·num_layers, H) without a batch, with D directions; zeros by default.

        Returns:
            The output, shape (T, B, D·H) or as x, both directions side by side; and the last
            states, in the form of `state`.

        Raises:
            ValueError: x or a state has a wrong shape.
        """
        if not isinstance(x, Tensor):
            x = te.as_tensor(x)
        if x.ndim not in (2, 3) or x.shape[-1] != self.input_size:
            order = "(B, T, I)" if self.batch_first else "(T, B, I)"
            raise ValueError(
                f"{type(self).__name__} got x {x.shape}: expected {order} or (T, I) with "
                f"I={self.input_size}"
            )
        batch_axis = 0 if self.batch_first else 1
        batched = x.ndim == 3
        count = self.num_layers * len(self._directions)
        batch = (x.shape[batch_axis],) if batched else ()
        first = self._given(state, (count, *batch, self.hidden_size))
        if not batched:
            x = x.unsqueeze(batch_axis)
            first = None if first is None else [s.unsqueeze(1) for s in first]
        output, last = self._stack(x, first)
        if not batched:
            output, last = output.squeeze(batch_axis), [s.squeeze(1) for s in last]
        return output, self._returned(last)

    def _stack(self, x: Tensor, first: list[Tensor] | None) -> tuple[Tensor, list[Tensor]]:
        last: list[tuple[Tensor, ...]] = []
        for layer in range(self.num_layers):
            if layer:
                x = te.dropout(x, self.dropout, self.training)
            outputs = []
            for direction in self._directions:
                options: dict[str, Any] = {}
                if first is not None:
                    names = (f"{name}0" for name in self._states)
                    options = dict(zip(names, (s[len(last)] for s in first), strict=True))
                parameters = self._parameters_at(f"_l{layer}{direction}")
                options |= {"batch_first": self.batch_first, "reverse": bool(direction)}
                output, *states = self._run(x, *parameters, **options)
                outputs.append(output)
                last.append(tuple(states))
            x = outputs[0] if len(outputs) == 1 else te.concat(outputs, axis=2)
        return x, [te.stack(states) for states in zip(*last, strict=True)]

    def extra_repr(self) -> str:
        """The sizes, and what differs from the defaults."""
        defaults = {"bias": True, "batch_first": False, "dropout": 0.0, "bidirectional": False}
        changed = [
            f"{name}={getattr(self, name)!r}"
            for name, default in defaults.items()
            if getattr(self, name) != default
        ]
        return ", ".join([super().extra_repr(), *changed])


class RNN(_Layer):
    """h' = tanh(weight_ih·x + bias_ih + weight_hh·h + bias_hh), or with relu, over a sequence.

    Args:
        input_size: length of the last axis of x.
        hidden_size: H, length of the hidden state.
        num_layers: layers, each on the hidden states of the one before.
        nonlinearity: "tanh" or "relu".
        bias: whether there are biases.
        batch_first: the batch is the first axis of x and of the output.
        dropout: probability of a zero between layers, in training.
        bidirectional: a second stack goes through the sequence from its end.

    Attributes:
        weight_ih_l0: shape (H, input_size); l0 is the layer, and `_reverse` follows for the second
            direction. Later layers take (H, D·H) with D directions.
        weight_hh_l0: shape (H, H).
        bias_ih_l0: shape (H,).
        bias_hh_l0: shape (H,). All are initially even in ±1/√H.

    Example:
        >>> output, h = RNN(3, 4)(te.ones(5, 2, 3))
        >>> output.shape, h.shape
        ((5, 2, 4), (1, 2, 4))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
    ) -> None:
        self.nonlinearity = one_of("nonlinearity", nonlinearity, ("tanh", "relu"))
        super().__init__(
            input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional
        )

    def _run(self, x: Tensor, *parameters: Tensor, **options: Any) -> tuple[Tensor, ...]:
        return te.rnn(x, *parameters, nonlinearity=self.nonlinearity, **options)


class LSTM(_Layer):
    """Long short-term memory: c' = f·c + i·g, h' = o·tanh(c'), over a sequence.

    Args:
        input_size: length of the last axis of x.
        hidden_size: H, length of the hidden state and of the cell state.
        num_layers: layers, each on the hidden states of the one before.
        bias: whether there are biases.
        batch_first: the batch is the first axis of x and of the output.
        dropout: probability of a zero between layers, in training.
        bidirectional: a second stack goes through the sequence from its end.

    Attributes:
        weight_ih_l0: shape (4·H, input_size), the gates i, f, g, o; l0 is the layer, and `_reverse`
            follows for the second direction. Later layers take (4·H, D·H) with D directions.
        weight_hh_l0: shape (4·H, H).
        bias_ih_l0: shape (4·H,).
        bias_hh_l0: shape (4·H,). All are initially even in ±1/√H.

    Example:
        >>> output, (h, c) = LSTM(3, 4, bidirectional=True)(te.ones(5, 2, 3))
        >>> output.shape, h.shape, c.shape
        ((5, 2, 8), (2, 2, 4), (2, 2, 4))
    """

    _gates = 4
    _states = ("h", "c")

    def _run(self, x: Tensor, *parameters: Tensor, **options: Any) -> tuple[Tensor, ...]:
        return te.lstm(x, *parameters, **options)


class GRU(_Layer):
    """Gated recurrent units: h' = n + z·(h - n), over a sequence.

    Args:
        input_size: length of the last axis of x.
        hidden_size: H, length of the hidden state.
        num_layers: layers, each on the hidden states of the one before.
        bias: whether there are biases.
        batch_first: the batch is the first axis of x and of the output.
        dropout: probability of a zero between layers, in training.
        bidirectional: a second stack goes through the sequence from its end.

    Attributes:
        weight_ih_l0: shape (3·H, input_size), the gates r, z, n; l0 is the layer, and `_reverse`
            follows for the second direction. Later layers take (3·H, D·H) with D directions.
        weight_hh_l0: shape (3·H, H).
        bias_ih_l0: shape (3·H,).
        bias_hh_l0: shape (3·H,). All are initially even in ±1/√H.

    Example:
        >>> output, h = GRU(3, 4, num_layers=2)(te.ones(5, 2, 3))
        >>> output.shape, h.shape
        ((5, 2, 4), (2, 2, 4))
    """

    _gates = 3

    def _run(self, x: Tensor, *parameters: Tensor, **options: Any) -> tuple[Tensor, ...]:
        return te.gru(x, *parameters, **options)


class _Cell(_Recurrent):
    """One step of a recurrent layer."""

    _shown = ("input_size", "hidden_size")

    def __init__(self, input_size: int, hidden_size: int, bias: bool = True) -> None:
        self.input_size = positive("input_size", input_size)
        self.hidden_size = positive("hidden_size", hidden_size)
        self.bias = check_switch("bias", bias)
        self._make_parameters(input_size, bias)

    def forward(self, x: Tensor, state: Any = None) -> Any:
        """The next state.

        Args:
            x: shape (B, input_size) or (input_size,).
            state: h or for LSTM (h, c), each of shape (B, H), or (H,); zeros by default.

        Returns:
            The next state, in the form of `state`.

        Raises:
            ValueError: x or a state has a wrong shape.
        """
        if not isinstance(x, Tensor):
            x = te.as_tensor(x)
        if x.ndim not in (1, 2) or x.shape[-1] != self.input_size:
            raise ValueError(
                f"{type(self).__name__} got x {x.shape}: expected (B, I) or (I,) with "
                f"I={self.input_size}"
            )
        states = self._given(state, (*x.shape[:-1], self.hidden_size))
        options: dict[str, Any] = {}
        if states is not None:
            rows = [s.reshape(-1, self.hidden_size) for s in states]
            options = dict(zip((f"{name}0" for name in self._states), rows, strict=True))
        _, *last = self._run(x.reshape(1, -1, self.input_size), *self._parameters_at(), **options)
        return self._returned([s.reshape(*x.shape[:-1], self.hidden_size) for s in last])


class RNNCell(_Cell):
    """h' = tanh(weight_ih·x + bias_ih + weight_hh·h + bias_hh), or with relu.

    Args:
        input_size: length of the last axis of x.
        hidden_size: H, length of the hidden state.
        bias: whether there are biases.
        nonlinearity: "tanh" or "relu".

    Attributes:
        weight_ih: shape (H, input_size).
        weight_hh: shape (H, H).
        bias_ih: shape (H,).
        bias_hh: shape (H,). All are initially even in ±1/√H.

    Example:
        >>> RNNCell(3, 4)(te.ones(2, 3)).shape
        (2, 4)
    """

    def __init__(
        self, input_size: int, hidden_size: int, bias: bool = True, nonlinearity: str = "tanh"
    ) -> None:
        self.nonlinearity = one_of("nonlinearity", nonlinearity, ("tanh", "relu"))
        super().__init__(input_size, hidden_size, bias)

    def _run(self, x: Tensor, *parameters: Tensor, **options: Any) -> tuple[Tensor, ...]:
        return te.rnn(x, *parameters, nonlinearity=self.nonlinearity, **options)


class LSTMCell(_Cell):
    """One step of long short-term memory: c' = f·c + i·g, h' = o·tanh(c').

    Args:
        input_size: length of the last axis of x.
        hidden_size: H, length of the hidden state and of the cell state.
        bias: whether there are biases.

    Attributes:
        weight_ih: shape (4·H, input_size), the gates i, f, g, o.
        weight_hh: shape (4·H, H).
        bias_ih: shape (4·H,).
        bias_hh: shape (4·H,). All are initially even in ±1/√H.

    Example:
        >>> h, c = LSTMCell(3, 4)(te.ones(2, 3))
        >>> h.shape, c.shape
        ((2, 4), (2, 4))
    """

    _gates = 4
    _states = ("h", "c")

    def _run(self, x: Tensor, *parameters: Tensor, **options: Any) -> tuple[Tensor, ...]:
        return te.lstm(x, *parameters, **options)


class GRUCell(_Cell):
    """One step of gated recurrent units: h' = n + z·(h - n).

    Args:
        input_size: length of the last axis of x.
        hidden_size: H, length of the hidden state.
        bias: whether there are biases.

    Attributes:
        weight_ih: shape (3·H, input_size), the gates r, z, n.
        weight_hh: shape (3·H, H).
        bias_ih: shape (3·H,).
        bias_hh: shape (3·H,). All are initially even in ±1/√H.

    Example:
        >>> GRUCell(3, 4)(te.ones(2, 3)).shape
        (2, 4)
    """

    _gates = 3

    def _run(self, x: Tensor, *parameters: Tensor, **options: Any) -> tuple[Tensor, ...]:
        return te.gru(x, *parameters, **options)
