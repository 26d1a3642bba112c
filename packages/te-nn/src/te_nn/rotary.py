"""Rotary positions for queries and keys."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

import te_tensor as te
from te_tensor import Tensor

from .checks import at_least_zero, positive
from .module import Module


class Rotary(Module):
    """Pairs of features turned by position · scale · base^(-2i/d) (Su et al., arXiv:2104.09864).

    Feature i is paired with feature i + d/2, as in GPT-NeoX and Llama (GPT-J pairs neighbours
    instead). It has no parameters; tables of sines grow with the longest sequence seen.

    Args:
        head_dim: features of a head, d; even.
        base: sets the slowest of the turns.
        scale: factor of the positions; 1/n stretches a model to n times the length it was trained
            on (arXiv:2306.15595).

    Raises:
        ValueError: head_dim is odd, or base or scale isn't above 0.

    Example:
        >>> Rotary(8)(te.ones(1, 2, 5, 8)).shape
        (1, 2, 5, 8)
    """

    _shown = ("head_dim", "base", "scale")

    def __init__(self, head_dim: int, base: float = 10000.0, scale: float = 1.0) -> None:
        self.head_dim = positive("head_dim", head_dim)
        if head_dim % 2:
            raise ValueError(f"head_dim is {head_dim}: expected an even number")
        for name, value in (("base", base), ("scale", scale)):
            if at_least_zero(name, value) == 0:
                raise ValueError(f"{name} is {value}: expected a number above 0")
        self.base = base
        self.scale = scale
        self._tables = self._made(0)

    def forward(self, x: Tensor, offset: int = 0) -> Tensor:
        """Turn queries or keys.

        Args:
            x: shape (…, S, head_dim).
            offset: the position of the first row.

        Returns:
            The shape of x.

        Raises:
            ValueError: x has another shape.
        """
        if not isinstance(x, Tensor):
            x = te.as_tensor(x)
        if x.ndim < 2 or x.shape[-1] != self.head_dim:
            raise ValueError(f"x has shape {x.shape}: expected (…, S, {self.head_dim})")
        stop = offset + x.shape[-2]
        if stop > len(self._tables[0]):
            self._tables = self._made(max(stop, 2 * len(self._tables[0])))
        cos, sin = (table[offset:stop] for table in self._tables)
        return te.rotary(x, cos, sin)

    def _made(self, length: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Cosines and sines for positions 0 … length-1, shape (length, head_dim/2)."""
        speeds = self.base ** (-np.arange(0, self.head_dim, 2) / self.head_dim)
        angles = np.arange(length)[:, None] * (self.scale * speeds)
        return np.cos(angles), np.sin(angles)
