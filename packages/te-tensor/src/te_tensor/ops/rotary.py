"""Rotary positions: pairs of features turned by an angle that grows with the position."""

from __future__ import annotations

import numpy as np

from .. import memory, parallel
from ..dtypes import Array
from ..operation import Gradients, Operation, Sample

_ANGLES = np.array([[0.0, 0.1], [1.0, 0.2], [2.0, 0.3]])


class Rotary(Operation):
    """Each pair (x[i], x[i + d/2]) of the last axis turned by the angle of its row.

    The pairs are those of GPT-NeoX: the first half of the features with the second.

    Input: x (…, S, d).

    Args:
        cos: cosines of the angles, shape (S, d/2).
        sin: their sines.
    """

    samples = (Sample((2, 3, 4), args=(np.cos(_ANGLES), np.sin(_ANGLES))),)

    def __init__(self, cos: Array, sin: Array) -> None:
        self.cos = cos
        self.sin = sin

    def forward(self, x: Array) -> Array:
        """X turned, laid out in memory as x is."""
        expected = (x.shape[-2], x.shape[-1] / 2) if x.ndim > 1 else None
        if not self.cos.shape == self.sin.shape == expected:
            raise ValueError(
                f"rotary got x {x.shape}, cos {self.cos.shape}, sin {self.sin.shape}: expected x "
                "(…, S, d), cos and sin (S, d/2)"
            )
        return _turn(x, self.cos, self.sin)

    def backward(self, grad: Array) -> Gradients:
        """The gradient turned back."""
        return (_turn(grad, self.cos, -self.sin),)


def _turn(x: Array, cos: Array, sin: Array) -> Array:
    half = x.shape[-1] // 2
    cos, sin = cos.astype(x.dtype, copy=False), sin.astype(x.dtype, copy=False)
    out = memory.empty_like(x)

    def run(out: Array, x: Array) -> None:
        first, second = x[..., :half], x[..., half:]
        crossed = second * sin
        np.multiply(first, cos, out=out[..., :half])
        out[..., :half] -= crossed
        np.multiply(first, sin, out=crossed)
        np.multiply(second, cos, out=out[..., half:])
        out[..., half:] += crossed

    # rowwise cuts the first axis, and with two axes that is the one of the angles
    if x.ndim == 2:
        run(out, x)
    else:
        parallel.rowwise(run, out, x)
    return out
