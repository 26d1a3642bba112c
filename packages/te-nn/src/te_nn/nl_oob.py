"""NL-OOB: a learnable bias of attention by distance (non-linear, out of order)."""

from __future__ import annotations

from enum import IntEnum
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from te_tensor import Tensor

from .checks import at_least_zero, positive
from .module import Module, Parameter


class BiasFunction(IntEnum):
    """The function phi of the distance: how fast attention falls off."""

    #: phi(d) = ln(1 + d)
    LOGARITHMIC = 0
    #: phi(d) = d²
    GAUSSIAN = 1

    @classmethod
    def parse(cls, value: BiasFunction | int | str) -> Self:
        """The member for its value, or its name in any case.

        Raises:
            ValueError: there is none.

        Example:
            >>> BiasFunction.parse("Gaussian")
            <BiasFunction.GAUSSIAN: 1>
        """
        if isinstance(value, str) and value.upper() in cls.__members__:
            return cls[value.upper()]
        if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
            for member in cls:
                if member == value:
                    return member
        known = ", ".join(f"{member.name.lower()} ({member.value})" for member in cls)
        raise ValueError(f"bias function is {value!r}: expected one of {known}")


class NLOOB(Module):
    """P[b,h,i,j] = -slopes[h]·phi(D[b,i,j]), added to the attention scores.

    Args:
        num_heads: the number of heads H.
        function: phi.
        max_scale: the largest of the initial slopes, which fall geometrically:
            max_scale · 2^(-8·h/H).

    Attributes:
        slopes: shape (1, H, 1, 1), learnt.
        config: an int64 buffer of shape (), the function's value; the function follows it.

    Example:
        >>> NLOOB(4, "gaussian").slopes.data.ravel().tolist()
        [1.0, 0.25, 0.0625, 0.015625]
    """

    def __init__(
        self,
        num_heads: int,
        function: BiasFunction | int | str = BiasFunction.LOGARITHMIC,
        max_scale: float = 1.0,
    ) -> None:
        positive("num_heads", num_heads)
        chosen = BiasFunction.parse(function)
        if not 0 < at_least_zero("max_scale", max_scale) < np.finfo(np.float32).max:
            raise ValueError(f"max_scale is {max_scale}: expected a number above 0, in float32")
        slopes = max_scale * 2.0 ** (-8.0 * np.arange(num_heads) / num_heads)
        self.slopes = Parameter(slopes.reshape(1, num_heads, 1, 1), dtype="float32")
        self.config: Tensor
        self.register_buffer("config", Tensor(int(chosen)))

    @property
    def function(self) -> BiasFunction:
        """The function that `config` names."""
        return BiasFunction.parse(self.config.item())

    def _accept(self, name: str, tensor: Tensor, value: npt.NDArray[Any]) -> npt.NDArray[Any]:
        if name != "config":
            return super()._accept(name, tensor, value)
        if value.size != 1:
            raise ValueError(f"shape {value.shape}, expected {tensor.shape}")
        code = value.reshape(()).astype(np.float64).item()
        if not code.is_integer():
            raise ValueError(f"code {code}, expected a whole number")
        return np.array(BiasFunction.parse(int(code)), np.int64)

    def extra_repr(self) -> str:
        """The number of heads and the function."""
        return f"num_heads={self.slopes.shape[1]}, function={self.function.name}"
