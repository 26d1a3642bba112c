"""The transformer block, with or without a distance bias."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, Self, TypeAlias

import numpy as np

import te_tensor as te
from te_tensor import Tensor, parallel
from te_tensor.checks import check_each, check_switch

from .attention import MultiHeadAttention
from .block_plan import run_rows, run_tokens
from .block_recording import are_recorded, run_recorded
from .cache import KVCache, check_cache
from .checks import one_of, positive
from .container import ModuleList
from .dropout import Dropout
from .linear import Linear
from .module import Module
from .nl_oob import NLOOB, DistanceBias
from .normalization import LayerNorm
from .rotary import Rotary


def _swiglu(x: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return x[..., :half].silu() * x[..., half:]


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": Tensor.gelu,
    "relu": Tensor.relu,
    "silu": Tensor.silu,
    "swiglu": _swiglu,
}
_NORMS = ("pre", "post")
#: Multiply-adds of the first feed-forward layer from which a block is cut over the threads; below,
#: the threads wait for each other's Python longer than they gain.
_SHARD_FROM = 1 << 28


#: What runs on a batch or a part of one: x, mask and distance to a result.
_Run: TypeAlias = Callable[[Tensor, Any, Any], Tensor]


def _by_batch(run: _Run, x: Tensor, mask: Any, distance: Any) -> Tensor:
    """Run on parts of the batch in the engine's threads.

    A mask or distances with an element for each of the batch are cut with it; shared ones aren't.
    """
    if isinstance(distance, te.PreparedDistance) and _goes_with(distance, 3, x):
        distance = distance.tensor  # what was made of the whole can't be cut
    given = (mask, distance)
    cut = [_goes_with(value, axes, x) for value, axes in zip(given, (4, 3), strict=True)]
    tensors = [te.as_tensor(value) for value, is_cut in zip(given, cut, strict=True) if is_cut]

    def run_part(x: Tensor, *parts: Tensor) -> Tensor:
        remaining = iter(parts)
        mask, distance = (
            next(remaining) if is_cut else value for value, is_cut in zip(given, cut, strict=True)
        )
        return run(x, mask, distance)

    result: Tensor = te.shard(run_part, x, *tensors)
    return result


def _goes_with(value: Any, axes: int, x: Tensor) -> bool:
    """Whether a mask or distances, which have a batch axis from so many axes on, have x's."""
    if value is None:
        return False
    shape = value.shape if hasattr(value, "shape") else np.shape(value)
    return len(shape) >= axes and shape[0] == len(x)


def _worth_cutting(module: Module, x: Tensor, width: int) -> bool:
    """Whether a batch is large enough to be cut over the threads, and nothing wants it whole."""
    large = x.ndim == 3 and len(x) > 1 and x.size * width >= _SHARD_FROM
    if not large or parallel.in_parallel() or parallel.get_num_threads() == 1:
        return False
    return not module.has_hooks()


class TransformerBlock(Module):
    """Self-attention and a feed-forward network, each with a residual and a norm.

    Args:
        d_model: features.
        d_ff: features inside the feed-forward network.
        num_heads: attention heads; divides d_model.
        nl_oob_config: the function of a distance bias (NL-OOB) or a list with one for each head,
            a preset ("alibi", "kerple-log"), an NLOOB, or None for no such bias.
        nl_oob_max_scale: its largest initial slope, 1.0 by default; needs nl_oob_config.
        norm: "pre" (arXiv:2002.04745) or "post" (arXiv:1706.03762).
        activation: "gelu", "relu", "silu" or "swiglu" (arXiv:2002.05202; linear1 then has
            2·d_ff outputs: those that pass through silu, then those they are multiplied with).
        dropout: probability of a zero after each part, in the feed-forward network, and among
            attention weights.
        bias: whether the linear layers and the norms have one.
        layer_norm_eps: added to the variance in the norms.
        kv_heads: heads of keys and values, by default num_heads.
        rope: rotary positions, a Rotary for d_model/num_heads features.
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
        nl_oob_config: DistanceBias | None = None,
        nl_oob_max_scale: float | None = None,
        *,
        norm: str = "pre",
        activation: str = "gelu",
        dropout: float = 0.0,
        bias: bool = True,
        layer_norm_eps: float = 1e-5,
        kv_heads: int | None = None,
        rope: Rotary | None = None,
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
        self.causal = check_switch("causal", causal)
        distance_bias = None
        if nl_oob_config is not None:
            distance_bias = NLOOB.of(num_heads, nl_oob_config, nl_oob_max_scale)
        self.self_attn = MultiHeadAttention(
            d_model,
            num_heads,
            kv_heads=kv_heads,
            bias=bias,
            dropout=dropout,
            rope=rope,
            distance_bias=distance_bias,
        )
        self.linear1 = Linear(d_model, 2 * d_ff if activation == "swiglu" else d_ff, bias)
        self.linear2 = Linear(d_ff, d_model, bias)
        self.norm1 = LayerNorm(d_model, layer_norm_eps, bias=bias)
        self.norm2 = LayerNorm(d_model, layer_norm_eps, bias=bias)
        self.dropout = Dropout(dropout)

    @classmethod
    def new_with_nl_oob(
        cls,
        d_model: int,
        d_ff: int,
        num_heads: int,
        bias_function: DistanceBias,
        max_scale: float,
    ) -> Self:
        """A block with a distance bias.

        Args:
            d_model: features.
            d_ff: features inside the feed-forward network.
            num_heads: attention heads.
            bias_function: the function of the bias.
            max_scale: its largest initial slope.

        Raises:
            ValueError: sizes that don't divide, or an unknown function, None among them.
        """
        if bias_function is None:
            raise ValueError("bias_function is None: expected a function of the distance")
        return cls(d_model, d_ff, num_heads, bias_function, max_scale)

    def forward(
        self,
        x: Tensor,
        *,
        mask: Any = None,
        distance: Any = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Run the block.

        Args:
            x: shape (B, S, d_model).
            mask: (S, T), or four axes that broadcast to (B, H, S, T); see MultiHeadAttention. T
                is S, and what the cache holds.
            distance: (S, T), (B, S, T) or (B, H, S, T), or what `te_tensor.prepare_distance`
                made of it; needs nl_oob_config. A block with a distance bias that is given none
                attends without it.
            cache: keys and values of earlier calls.

        Returns:
            The shape of x.

        Raises:
            ValueError: shapes that don't fit, a distance without nl_oob_config, or a cache
                without room.
            TypeError: a cache that is no KVCache.
        """
        if not isinstance(x, Tensor):
            x = te.as_tensor(x)
        if cache is not None:
            check_cache(cache)
        planned = self._planned(x, mask, distance, cache)
        if planned is not None:
            return planned
        if cache is None and _worth_cutting(self, x, self.linear1.out_features):
            return _by_batch(self._run, x, mask, distance)
        with _all_or_none([] if cache is None else [cache]):
            return self._run(x, mask, distance, cache)

    def _planned(self, x: Tensor, mask: Any, distance: Any, cache: KVCache | None) -> Tensor | None:
        """The result by a plan, where there is one."""
        if type(self) is not TransformerBlock:
            return None
        if cache is None:
            planned = run_rows(self, [self], None, x, mask, distance)
            return run_recorded(self, x, mask, distance) if planned is None else planned
        return run_tokens(self, [self], None, x, [cache]) if mask is distance is None else None

    def _run(self, x: Tensor, mask: Any, distance: Any, cache: KVCache | None = None) -> Tensor:
        options = {"mask": mask, "causal": self.causal, "distance": distance, "cache": cache}
        result: Tensor
        if self.norm == "pre":
            x = self._attend(self.norm1(x), x, options)
            result = self._feed_forward(self.norm2(x), x)
        else:
            x = self.norm1(self._attend(x, x, options))
            result = self.norm2(self._feed_forward(x, x))
        return result

    def forward_with_distance(self, x: Tensor, distance: Any, *, mask: Any = None) -> Tensor:
        """`forward(x, distance=distance, mask=mask)`, under the original's name."""
        result: Tensor = self(x, mask=mask, distance=distance)
        return result

    def _attend(self, x: Tensor, residual: Tensor, options: dict[str, Any]) -> Tensor:
        """The residual plus x's attention to itself."""
        result: Tensor
        if self._drops_nothing() and self.self_attn.is_plainly(MultiHeadAttention):
            result = self.self_attn(x, residual=residual, **options)
        else:
            result = residual + self.dropout(self.self_attn(x, **options))
        return result

    def _feed_forward(self, x: Tensor, residual: Tensor) -> Tensor:
        """The residual plus the feed-forward network of x."""
        hidden = _ACTIVATIONS[self.activation](self.linear1(x))
        result: Tensor
        if self._drops_nothing() and self.linear2.is_plainly(Linear):
            result = self.linear2(hidden, residual)
        else:
            result = residual + self.dropout(self.linear2(self.dropout(hidden)))
        return result

    def _drops_nothing(self) -> bool:
        """Whether dropout leaves everything as it is, and nothing wants to see it."""
        dropout = self.dropout
        return dropout.is_plainly(Dropout) and not (dropout.p and dropout.training)


class TransformerEncoder(Module):
    """Blocks one after the other, which share masks and distances.

    Phi of the distances is made once for all blocks, and a large batch is cut over the engine's
    threads once, around the whole stack.

    Args:
        num_layers: the number of blocks.
        d_model: features.
        d_ff: features inside the feed-forward networks.
        num_heads: attention heads.
        nl_oob_config: as in TransformerBlock; each block learns slopes of its own.
        nl_oob_max_scale: as in TransformerBlock.
        final_norm: whether a LayerNorm stands behind the last block, as is usual with norm="pre".
        layer_norm_eps: added to the variance in all norms.
        **options: what else TransformerBlock takes.

    Attributes:
        layers: the blocks.
        norm: the LayerNorm behind them, or None.

    Example:
        >>> from te_nn import distances
        >>> encoder = TransformerEncoder(3, 16, 32, 2, "gaussian")
        >>> encoder(te.randn(4, 8, 16), distance=distances.sequence(8)).shape
        (4, 8, 16)
    """

    def __init__(
        self,
        num_layers: int,
        d_model: int,
        d_ff: int,
        num_heads: int,
        nl_oob_config: DistanceBias | None = None,
        nl_oob_max_scale: float | None = None,
        *,
        final_norm: bool = False,
        layer_norm_eps: float = 1e-5,
        **options: Any,
    ) -> None:
        positive("num_layers", num_layers)
        check_switch("final_norm", final_norm)
        self.layers = ModuleList(
            TransformerBlock(
                *(d_model, d_ff, num_heads, deepcopy(nl_oob_config), nl_oob_max_scale),
                layer_norm_eps=layer_norm_eps,
                **options,
            )
            for _ in range(num_layers)
        )
        bias = options.get("bias", True)
        self.norm = LayerNorm(d_model, layer_norm_eps, bias=bias) if final_norm else None

    def forward(
        self,
        x: Tensor,
        *,
        mask: Any = None,
        distance: Any = None,
        cache: Sequence[KVCache] | None = None,
    ) -> Tensor:
        """Run all blocks.

        Args:
            x: shape (B, S, d_model).
            mask: as in TransformerBlock, for all blocks.
            distance: as in TransformerBlock, for all blocks.
            cache: a cache for each block, as `make_cache` makes them.

        Returns:
            The shape of x.

        Raises:
            ValueError: as TransformerBlock, or another number of caches. The caches then hold
                what they held.
            TypeError: caches that are no list of KVCaches.
        """
        if not isinstance(x, Tensor):
            x = te.as_tensor(x)
        if cache is not None:
            if not isinstance(cache, Sequence):
                raise TypeError(f"cache is a {type(cache).__name__}: expected a list of KVCaches")
            check_each("cache", cache, KVCache)
            if len(cache) != len(self.layers):
                raise ValueError(f"got {len(cache)} caches: expected {len(self.layers)}")
            planned = self._planned(x, mask, distance, cache)
            if planned is not None:
                return planned
            with _all_or_none(cache):
                return self._run(x, mask, distance, cache)
        if self._worth_cutting(x, mask, distance):
            if distance is not None and not _goes_with(distance, 3, x):
                distance = self._prepared(x, distance)
            return _by_batch(self._run, x, mask, distance)
        planned = self._planned(x, mask, distance, None)
        return self._run(x, mask, distance) if planned is None else planned

    def _worth_cutting(self, x: Tensor, mask: Any, distance: Any) -> bool:
        """Whether the batch is cut around all blocks: not where each of them shares its work."""
        blocks = self._blocks()
        if not _worth_cutting(self, x, blocks[0].linear1.out_features):
            return False
        plain = [block for block in blocks if type(block) is TransformerBlock]
        return len(plain) < len(self.layers) or not are_recorded(plain, x, mask, distance)

    def _planned(
        self, x: Tensor, mask: Any, distance: Any, cache: Sequence[KVCache] | None
    ) -> Tensor | None:
        """The result by a plan, where all blocks and the norm are what they were made as."""
        blocks, norm = self._blocks(), self.norm
        plain = [block for block in blocks if block.is_plainly(TransformerBlock)]
        if not plain or len(plain) < len(self.layers):
            return None
        if cache is None:
            return run_rows(self, blocks, norm, x, mask, distance)
        return run_tokens(self, blocks, norm, x, cache) if mask is distance is None else None

    def _blocks(self) -> list[TransformerBlock]:
        return [block for block in self.layers if isinstance(block, TransformerBlock)]

    def _run(
        self, x: Tensor, mask: Any, distance: Any, cache: Sequence[KVCache] | None = None
    ) -> Tensor:
        if distance is not None:
            distance = self._prepared(x, distance)
        for index, block in enumerate(self.layers):
            x = block(
                x, mask=mask, distance=distance, cache=None if cache is None else cache[index]
            )
        return x if self.norm is None else self.norm(x)

    def _prepared(self, x: Tensor, distance: Any) -> te.PreparedDistance:
        """The distances with phi of them for all blocks."""
        biases = [block.self_attn.nl_oob for block in self._blocks()]
        names = {f.name.lower() for bias in biases if bias is not None for f in bias.functions}
        return te.prepare_distance(distance, *sorted(names), dtype=x.dtype)

    def forward_with_distance(self, x: Tensor, distance: Any, *, mask: Any = None) -> Tensor:
        """`forward(x, distance=distance, mask=mask)`."""
        result: Tensor = self(x, mask=mask, distance=distance)
        return result

    def make_cache(self, batch: int, max_len: int) -> list[KVCache]:
        """An empty cache for each block, in the dtype of its weights.

        Args:
            batch: B.
            max_len: the most positions that they can hold.
        """
        attentions = [block.self_attn for block in self._blocks()]
        return [
            KVCache(batch, max_len, a.kv_heads, a.head_dim, dtype=a.k_proj.weight.dtype)
            for a in attentions
        ]


@contextmanager
def _all_or_none(caches: Sequence[KVCache]) -> Iterator[None]:
    """An error leaves all caches as long as they were."""
    lengths = [cache.length for cache in caches]
    try:
        yield
    except BaseException:
        for cache, length in zip(caches, lengths, strict=True):
            cache.length = length
        raise
