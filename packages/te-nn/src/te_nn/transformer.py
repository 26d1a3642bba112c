"""The transformer block, with or without a distance bias."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import numpy as np

import te_tensor as te
from te_tensor import Tensor

from .attention import MultiHeadAttention
from .checks import one_of, positive
from .dropout import Dropout
from .linear import Linear
from .module import Module
from .nl_oob import NLOOB, BiasFunction
from .normalization import LayerNorm


def _silu(x: Tensor) -> Tensor:
    return x * x.sigmoid()


def _swiglu(x: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return _silu(x[..., :half]) * x[..., half:]


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": Tensor.gelu,
    "relu": Tensor.relu,
    "silu": _silu,
    "swiglu": _swiglu,
}
_NORMS = ("pre", "post")
#: Multiply-adds of the first feed-forward layer from which a block is cut over the threads; below,
#: the threads wait for each other's Python longer than they gain.
_SHARD_FROM = 1 << 28


def _batch_axis(value: Any, axes: int) -> int | None:
    """The length of the batch axis of a mask or distances, None where they have none."""
    shape: tuple[int, ...] = () if value is None else np.shape(value)
    return shape[0] if len(shape) >= axes else None


class TransformerBlock(Module):
    """Self-attention and a feed-forward network, each with a residual and a norm.

    Args:
        d_model: features.
        d_ff: features inside the feed-forward network.
        num_heads: attention heads; divides d_model.
        nl_oob_config: the function of a distance bias (NL-OOB), or None for no such bias.
        nl_oob_max_scale: its largest initial slope, 1.0 by default; needs nl_oob_config.
        norm: "pre" (arXiv:2002.04745) or "post" (arXiv:1706.03762).
        activation: "gelu", "relu", "silu" or "swiglu" (arXiv:2002.05202; linear1 then has
            2·d_ff outputs: those that pass through silu, then those they are multiplied with).
        dropout: probability of a zero after each part, in the feed-forward network, and among
            attention weights.
        bias: whether the linear layers have one.
        layer_norm_eps: added to the variance in the norms.
        kv_heads: heads of keys and values, by default num_heads.
        causal: position i attends to positions up to i only.

    Attributes:
        self_attn: the MultiHeadAttention, with the distance bias under `nl_oob`.
        linear1: the first layer of the feed-forward network.
        linear2: the second.
        norm1: the LayerNorm of the attention.
        norm2: the LayerNorm of the feed-forward network.

    Raises:
        ValueError: sizes that don't divide, unknown names, or a max scale without a config.

    Example:
        >>> import te_tensor as te
        >>> from te_nn import distances
        >>> block = TransformerBlock(16, 32, 2, nl_oob_config="gaussian")
        >>> block.forward_with_distance(te.randn(4, 8, 16), distances.sequence(8)).shape
        (4, 8, 16)
    """

    _shown = ("norm", "activation", "causal")

    def __init__(
        self,
        d_model: int,
        d_ff: int,
        num_heads: int,
        nl_oob_config: BiasFunction | int | str | None = None,
        nl_oob_max_scale: float | None = None,
        *,
        norm: str = "pre",
        activation: str = "gelu",
        dropout: float = 0.0,
        bias: bool = True,
        layer_norm_eps: float = 1e-5,
        kv_heads: int | None = None,
        causal: bool = False,
    ) -> None:
        if nl_oob_config is None and nl_oob_max_scale is not None:
            raise ValueError(
                f"nl_oob_max_scale is {nl_oob_max_scale} without nl_oob_config: expected both, or "
                "nl_oob_config alone"
            )
        positive("d_ff", d_ff)
        self.norm = one_of("norm", norm, _NORMS)
        self.activation = one_of("activation", activation, _ACTIVATIONS)
        self.causal = causal
        scale = 1.0 if nl_oob_max_scale is None else nl_oob_max_scale
        self.self_attn = MultiHeadAttention(
            d_model,
            num_heads,
            kv_heads=kv_heads,
            bias=bias,
            dropout=dropout,
            distance_bias=(
                None if nl_oob_config is None else NLOOB(num_heads, nl_oob_config, scale)
            ),
        )
        self.linear1 = Linear(d_model, 2 * d_ff if activation == "swiglu" else d_ff, bias)
        self.linear2 = Linear(d_ff, d_model, bias)
        self.norm1 = LayerNorm(d_model, layer_norm_eps)
        self.norm2 = LayerNorm(d_model, layer_norm_eps)
        self.dropout = Dropout(dropout)

    @classmethod
    def new_with_nl_oob(
        cls,
        d_model: int,
        d_ff: int,
        num_heads: int,
        bias_function: BiasFunction | int | str,
        max_scale: float,
    ) -> Self:
        """A block with a distance bias.

        Args:
            d_model: features.
            d_ff: features inside the feed-forward network.
            num_heads: attention heads.
            bias_function: the function of the bias.
            max_scale: its largest initial slope.
        """
        return cls(d_model, d_ff, num_heads, bias_function, max_scale)

    def forward(self, x: Tensor, *, mask: Any = None, distance: Any = None) -> Tensor:
        """Run the block.

        Args:
            x: shape (B, S, d_model).
            mask: (S, S), or four axes that broadcast to (B, H, S, S); see MultiHeadAttention.
            distance: (S, S), (B, S, S) or (B, H, S, S); needs nl_oob_config. A block with a
                distance bias that is given none attends without it.

        Returns:
            The shape of x.

        Raises:
            ValueError: shapes that don't fit, or a distance without nl_oob_config.
        """
        if not self._worth_sharding(x):
            return self._run(x, mask, distance)
        # What has an element for each of the batch is cut with it; what is shared is not.
        given = (mask, distance)
        cut = [
            _batch_axis(value, axes) == len(x) for value, axes in zip(given, (4, 3), strict=True)
        ]
        tensors = [te.as_tensor(value) for value, is_cut in zip(given, cut, strict=True) if is_cut]

        def run(x: Tensor, *parts: Tensor) -> Tensor:
            remaining = iter(parts)
            mask, distance = (
                next(remaining) if is_cut else value
                for value, is_cut in zip(given, cut, strict=True)
            )
            return self._run(x, mask, distance)

        result: Tensor = te.shard(run, x, *tensors)
        return result

    def _worth_sharding(self, x: Tensor) -> bool:
        """Whether a batch is large enough to be cut over the threads."""
        work = x.size * self.linear1.out_features
        return x.ndim == 3 and len(x) > 1 and work >= _SHARD_FROM

    def _run(self, x: Tensor, mask: Any, distance: Any) -> Tensor:
        if self.norm == "pre":
            x = x + self.dropout(self._attend(self.norm1(x), mask, distance))
            x = x + self.dropout(self._feed_forward(self.norm2(x)))
        else:
            x = self.norm1(x + self.dropout(self._attend(x, mask, distance)))
            x = self.norm2(x + self.dropout(self._feed_forward(x)))
        return x

    def forward_with_distance(self, x: Tensor, distance: Any, *, mask: Any = None) -> Tensor:
        """`forward(x, distance=distance, mask=mask)`, under the original's name."""
        return self.forward(x, mask=mask, distance=distance)

    def _attend(self, x: Tensor, mask: Any, distance: Any) -> Tensor:
        result: Tensor = self.self_attn(x, mask=mask, causal=self.causal, distance=distance)
        return result

    def _feed_forward(self, x: Tensor) -> Tensor:
        hidden = _ACTIVATIONS[self.activation](self.linear1(x))
        result: Tensor = self.linear2(self.dropout(hidden))
        return result
