"""Multi-head attention: projections around te_tensor's one attention core."""

from __future__ import annotations

from typing import Any

import te_tensor as te
from te_tensor import Tensor

from .cache import KVCache, check_cache
from .checks import positive, probability
from .linear import Linear
from .module import Module
from .nl_oob import NLOOB, DistanceBias
from .rotary import Rotary


class MultiHeadAttention(Module):
    """Attention of several heads, each on d_model/num_heads features (arXiv:1706.03762).

    Args:
        d_model: features of query and result.
        num_heads: the number of heads H; divides d_model.
        kv_heads: heads of keys and values, each serving H/kv_heads query heads
            (arXiv:2305.13245); divides H, by default H.
        bias: whether the projections have one.
        dropout: probability with which an attention weight is zero in training.
        rope: rotary positions for queries and keys, a Rotary for d_model/num_heads features.
        distance_bias: an NLOOB for H heads, its function or a list with one for each head, or
            the name of a preset: "alibi" or "kerple-log".

    Attributes:
        q_proj: Linear to the queries.
        k_proj: Linear to the keys.
        v_proj: Linear to the values.
        o_proj: Linear from all heads to the result.
        nl_oob: the distance bias, or None.
        rope: the rotary positions, or None.

    Raises:
        ValueError: sizes that don't divide, or an unknown bias function.

    Example:
        >>> from te_nn import distances
        >>> attend = MultiHeadAttention(8, 2, distance_bias="gaussian")
        >>> attend(te.randn(1, 5, 8), distance=distances.sequence(5)).shape
        (1, 5, 8)
    """

    _shown = ("d_model", "num_heads", "kv_heads")

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        *,
        kv_heads: int | None = None,
        bias: bool = True,
        dropout: float = 0.0,
        rope: Rotary | None = None,
        distance_bias: DistanceBias | None = None,
    ) -> None:
        self.d_model = positive("d_model", d_model)
        self.num_heads = positive("num_heads", num_heads)
        self.kv_heads = positive("kv_heads", num_heads if kv_heads is None else kv_heads)
        if d_model % num_heads:
            raise ValueError(f"num_heads is {num_heads}: expected a divisor of d_model {d_model}")
        if num_heads % self.kv_heads:
            raise ValueError(f"kv_heads is {kv_heads}: expected a divisor of num_heads {num_heads}")
        self.head_dim = d_model // num_heads
        self.dropout = probability("dropout", dropout)
        self.q_proj = Linear(d_model, d_model, bias)
        self.k_proj = Linear(d_model, self.kv_heads * self.head_dim, bias)
        self.v_proj = Linear(d_model, self.kv_heads * self.head_dim, bias)
        self.o_proj = Linear(d_model, d_model, bias)
        if rope is not None and not isinstance(rope, Rotary):
            raise TypeError(f"rope is a {type(rope).__name__}: expected a Rotary, or None")
        if rope is not None and rope.head_dim != self.head_dim:
            raise ValueError(f"rope is for {rope.head_dim} features: expected {self.head_dim}")
        self.rope = rope
        self.nl_oob = None if distance_bias is None else NLOOB.of(num_heads, distance_bias)

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        *,
        mask: Any = None,
        causal: bool = False,
        distance: Any = None,
        cache: KVCache | None = None,
        residual: Tensor | None = None,
    ) -> Tensor:
        """Attend from `query` to `key`, and mix `value`.

        Args:
            query: shape (B, S, d_model).
            key: shape (B, T, d_model); by default the query.
            value: shape (B, T, d_model); by default the key.
            mask: (S, T), or four axes that broadcast to (B, H, S, T): boolean (True: may
                attend), or added to the scores. Key padding is (B, 1, 1, T).
            causal: row i attends to columns up to i only.
            distance: (S, T), (B, S, T) or (B, H, S, T), at least 0, or what
                `te_tensor.prepare_distance` made of it; needs a distance bias. A distance bias
                that is given none is off.
            cache: holds the keys and values of earlier calls. T then counts them and the new
                ones, whose positions go on where those end.
            residual: added to the result, shape (B, S, d_model).

        Returns:
            Shape (B, S, d_model).

        Raises:
            ValueError: shapes that don't fit, a distance without a distance bias, or a cache
                without room.
            TypeError: other dtypes than those of the weights, an integer mask, or a cache that is
                no KVCache.
        """
        if not isinstance(query, Tensor):
            query = te.as_tensor(query)
        key = query if key is None else te.as_tensor(key)
        value = key if value is None else te.as_tensor(value)
        self._check(query, key, value, distance)
        if cache is not None:
            check_cache(cache)
        start = 0 if cache is None else cache.length
        q, k, v = self._projected(query, key, value)
        if self.rope is not None:
            q = self.rope(self._heads(q, self.num_heads), start)
            k = self.rope(self._heads(k, self.kv_heads), start)
        if cache is not None:
            k, v = cache.joined(k, v)
        biased = distance is not None and self.nl_oob is not None
        mixed = te.attention(
            *(q, k, v),
            mask=mask,
            causal=causal,
            offset=start,
            heads=self.num_heads,
            kv_heads=self.kv_heads,
            dropout=self.dropout if self.training else 0.0,
            distance=distance,
            **(self.nl_oob.options() if self.nl_oob is not None and biased else {}),
        )
        if mixed.ndim == 4:  # (B, H, S, d) lies in memory as (B, S, H, d), so this is a view
            mixed = mixed.transpose(1, 2).reshape(*query.shape[:2], self.d_model)
        result: Tensor
        if residual is None:
            result = self.o_proj(mixed)
        elif self.o_proj.is_plainly(Linear):
            result = self.o_proj(mixed, residual)
        else:
            result = residual + self.o_proj(mixed)
        if cache is not None:
            cache.length = start + key.shape[1]
        return result

    def _check(self, query: Tensor, key: Tensor, value: Tensor, distance: Any) -> None:
        for name, x in (("query", query), ("key", key), ("value", value)):
            shape = x.shape
            if len(shape) != 3 or shape[2] != self.d_model:
                raise ValueError(f"{name} has shape {x.shape}: expected (B, S, {self.d_model})")
        if distance is not None and self.nl_oob is None:
            raise ValueError(
                "got a distance, but this attention has no distance bias: make it with "
                "distance_bias=… (nl_oob_config=… in a TransformerBlock)"
            )

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values, in one operation where all are made of one input."""
        layers = (self.q_proj, self.k_proj, self.v_proj)
        if query is key is value and all([layer.is_plainly(Linear) for layer in layers]):
            biases = [layer.bias for layer in layers if layer.bias is not None]
            if len(biases) in (0, len(layers)):
                return te.linears(query, [layer.weight for layer in layers], biases or None)
        return tuple(f(x) for f, x in zip(layers, (query, key, value), strict=True))

    def _heads(self, x: Tensor, heads: int) -> Tensor:
        """(B, S, heads·d) as (B, heads, S, d), a view."""
        return x.reshape(*x.shape[:2], heads, self.head_dim).transpose(1, 2)
