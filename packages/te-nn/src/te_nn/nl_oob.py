"""NL-OOB: a learnable bias of attention by distance (non-linear, out of order)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Self, TypeAlias

import numpy as np
import numpy.typing as npt

from te_tensor import Tensor
from te_tensor.checks import check_switch

from .bias_function import BiasFunction, BiasFunctionLike, RegisteredFunction
from .checks import at_least_zero, positive
from .module import Module, Parameter


class NLOOB(Module):
    """P[b,h,i,j] = -slopes[h]·phi(rates[h]·D[b,i,j]), added to the attention scores.

    Args:
        num_heads: the number of heads H.
        function: phi, or a list with one for each head.
        max_scale: the largest of the initial slopes, which fall geometrically:
            max_scale · 2^(-8·h/H).
        softplus: learn slopes (and rates) that stay above 0: they are softplus(s) = ln(1 + e^s)
            of what is learnt. State dicts hold what counts, softplus(s), all the same.
        rates: learn factors of the distance, one a head, initially 1; they must stay above 0, so
            this needs softplus.

    Attributes:
        slopes: shape (1, H, 1, 1), learnt; with softplus, what stands inside it.
        rates: likewise, or None.
        config: an int64 buffer with the function's code, of shape (), or (H,) where heads have
            functions of their own; the functions follow it.

    Raises:
        ValueError: an unknown function, as many functions as there are no heads, a max_scale
            that isn't above 0, or rates without softplus.

    Example:
        >>> NLOOB(4, "gaussian").slopes.data.ravel().tolist()
        [1.0, 0.25, 0.0625, 0.015625]
    """

    def __init__(
        self,
        num_heads: int,
        function: BiasFunctionLike | Sequence[BiasFunctionLike] = BiasFunction.LOGARITHMIC,
        max_scale: float = 1.0,
        *,
        softplus: bool = False,
        rates: bool = False,
    ) -> None:
        positive("num_heads", num_heads)
        if not 0 < at_least_zero("max_scale", max_scale) < np.finfo(np.float32).max:
            raise ValueError(f"max_scale is {max_scale}: expected a number above 0, in float32")
        self.softplus = check_switch("softplus", softplus)
        if check_switch("rates", rates) and not softplus:
            raise ValueError("rates without softplus: expected both, since rates stay above 0")
        codes = _codes(function, num_heads)
        self.slopes = self._learnt(max_scale * 2.0 ** (-8.0 * np.arange(num_heads) / num_heads))
        self.rates = self._learnt(np.ones(num_heads)) if rates else None
        self.config: Tensor
        self.register_buffer("config", Tensor(codes))

    def _learnt(self, values: npt.NDArray[Any]) -> Parameter:
        """A parameter that stands for these values, one a head."""
        inner = _inverse_softplus(values) if self.softplus else values
        return Parameter(inner.reshape(1, -1, 1, 1), dtype="float32")

    @classmethod
    def alibi(cls, num_heads: int) -> Self:
        """ALiBi (Press et al., arXiv:2108.12409): phi(d) = d with slopes that aren't learnt.

        The slopes are the paper's: 2^(-8/H), 2^(-16/H), …; for a number of heads that is no power
        of two, those of the power below it, then every other one of the power above.

        Args:
            num_heads: the number of heads H.

        Example:
            >>> NLOOB.alibi(3).slopes.data.ravel().tolist()
            [0.0625, 0.00390625, 0.25]
        """
        made = cls(num_heads, "alibi")
        made.slopes = Parameter(
            np.reshape(_alibi_slopes(num_heads), (1, -1, 1, 1)),
            dtype="float32",
            requires_grad=False,
        )
        return made

    @classmethod
    def kerple_log(cls, num_heads: int) -> Self:
        """KERPLE's logarithmic kernel (Chi et al., arXiv:2205.09921): -r₁·ln(1 + r₂·d).

        r₁ (`slopes`) and r₂ (`rates`) are learnt and stay above 0. They start at ALiBi's slopes
        and at 1; the authors' code draws them at random.

        Args:
            num_heads: the number of heads.

        Example:
            >>> bias = NLOOB.kerple_log(4)
            >>> bias.function.name, bias.factors()[1].shape
            ('LOGARITHMIC', (1, 4, 1, 1))
        """
        made = cls(num_heads, BiasFunction.LOGARITHMIC, softplus=True, rates=True)
        made.slopes = made._learnt(np.array(_alibi_slopes(num_heads)))
        return made

    @classmethod
    def of(
        cls,
        num_heads: int,
        given: NLOOB | BiasFunctionLike | Sequence[BiasFunctionLike],
        max_scale: float | None = None,
    ) -> NLOOB:
        """The bias that a layer's setting names.

        Args:
            num_heads: the number of heads.
            given: a function or one a head, a preset ("alibi", "kerple-log"), or a bias made
                before.
            max_scale: the largest initial slope, 1 by default; not for presets and a bias.

        Raises:
            ValueError: it names nothing, it is for other heads, or a max_scale that isn't used.
        """
        preset = PRESETS.get(given.lower()) if isinstance(given, str) else None
        if preset is None and not isinstance(given, NLOOB):
            return cls(num_heads, given, 1.0 if max_scale is None else max_scale)
        if max_scale is not None:
            raise ValueError(
                f"max_scale is {max_scale}, but {given!r} has slopes of its own: expected none"
            )
        if preset is not None:
            return preset(num_heads)
        assert isinstance(given, NLOOB)
        if given.slopes.shape[1] != num_heads:
            raise ValueError(
                f"distance_bias is for {given.slopes.shape[1]} heads: expected {num_heads}"
            )
        return given

    @property
    def functions(self) -> tuple[BiasFunction | RegisteredFunction, ...]:
        """The functions that `config` names: one for all heads, or one for each."""
        return tuple(BiasFunction.parse(int(code)) for code in self.config.data.reshape(-1))

    @property
    def function(self) -> BiasFunction | RegisteredFunction:
        """The function of all heads.

        Raises:
            ValueError: heads have functions of their own.
        """
        functions = self.functions
        if any(f != functions[0] for f in functions):
            raise ValueError("the heads have functions of their own: see `functions`")
        return functions[0]

    def factors(self) -> tuple[Tensor, Tensor | None]:
        """Slopes and rates as they count in the bias, each of shape (1, H, 1, 1)."""
        if not self.softplus:
            return self.slopes, self.rates
        return _softplus(self.slopes), None if self.rates is None else _softplus(self.rates)

    def options(self) -> dict[str, Any]:
        """What `te_tensor.attention` takes beside the distance."""
        slopes, rates = self.factors()
        names = [function.name.lower() for function in self.functions]
        return {"slopes": slopes, "rates": rates, "bias_function": names}

    def _stored(self, name: str, tensor: Tensor) -> Tensor:
        if self.softplus and name in ("slopes", "rates"):
            return _softplus(tensor.detach())
        return super()._stored(name, tensor)

    def _accept(self, name: str, tensor: Tensor, value: npt.NDArray[Any]) -> npt.NDArray[Any]:
        if name == "config":
            return _accept_codes(value, tensor.shape)
        value = super()._accept(name, tensor, value)
        if not self.softplus:
            return value
        wide = value.astype(np.float64)
        if not (wide > 0).all():
            raise ValueError("values that aren't above 0, as softplus gives them")
        return _inverse_softplus(wide)

    def extra_repr(self) -> str:
        """The number of heads and the functions."""
        names = [function.name for function in self.functions]
        shown = names[0] if len(set(names)) == 1 else f"[{', '.join(names)}]"
        extra = ", softplus=True" if self.softplus else ""
        return f"num_heads={self.slopes.shape[1]}, function={shown}{extra}"


#: What `NLOOB.of` and the layers take by these names, in any case.
PRESETS: dict[str, Callable[[int], NLOOB]] = {
    "alibi": NLOOB.alibi,
    "kerple-log": NLOOB.kerple_log,
}

#: What stands for a distance bias in a layer's settings.
DistanceBias: TypeAlias = NLOOB | BiasFunctionLike | Sequence[BiasFunctionLike]


def _codes(
    given: BiasFunctionLike | Sequence[BiasFunctionLike], num_heads: int
) -> npt.NDArray[Any]:
    if isinstance(given, str) or not isinstance(given, (Sequence, np.ndarray)):
        return np.array(BiasFunction.parse(given).value, np.int64)
    if len(given) != num_heads:
        raise ValueError(f"got {len(given)} bias functions: expected one for each of {num_heads}")
    return np.array([BiasFunction.parse(function).value for function in given], np.int64)


def _accept_codes(value: npt.NDArray[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """Codes of a state dict, where one may come with an axis, or as a float."""
    if value.size != 1 if shape == () else value.shape != shape:
        raise ValueError(f"shape {value.shape}, expected {shape}")
    codes = value.reshape(shape).astype(np.float64)
    for code in codes.reshape(-1).tolist():
        if not code.is_integer():
            raise ValueError(f"code {code}, expected a whole number")
        BiasFunction.parse(int(code))
    return codes.astype(np.int64)


def _alibi_slopes(num_heads: int) -> list[float]:
    """The slopes of ALiBi, from the authors' `get_slopes`."""
    below = 1 << (num_heads.bit_length() - 1)
    slopes = [2.0 ** (-8.0 * (h + 1) / below) for h in range(below)]
    if below < num_heads:
        between = [2.0 ** (-4.0 * (h + 1) / below) for h in range(0, 2 * below, 2)]
        slopes += between[: num_heads - below]
    return slopes


def _softplus(x: Tensor) -> Tensor:
    """ln(1 + e^x), without overflow."""
    return x.relu() + (-abs(x)).exp().log1p()


def _inverse_softplus(y: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.asarray(y + np.log(-np.expm1(-y)))
