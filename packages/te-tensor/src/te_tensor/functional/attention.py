"""Attention, with its masks and its distance bias."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple, TypeAlias

import numpy.typing as npt

from ..checks import check_number, check_switch, check_whole
from ..dtypes import FLOATS, SMALL_FLOATS, as_dtype, bool_, float32
from ..ops import attention as _attention
from ..ops._distance import DistanceFunction, Prepared, distance_function
from ..random import Generator, generator_or_default
from ..tensor import Tensor, as_tensor
from ._common import Like, apply, cast, check_probability, floats

#: A function of the distance, its name in any case, or a member of an enum of that name.
BiasFunctionLike: TypeAlias = str | DistanceFunction | Enum


class PreparedDistance(NamedTuple):
    """Distances that several attentions share: phi of them is made once. See `prepare_distance`."""

    #: The distances, to which gradients go.
    tensor: Tensor
    #: Phi of them by function, as attention asks for it.
    prepared: Prepared

    @property
    def shape(self) -> tuple[int, ...]:
        """The distances' shape."""
        return self.tensor.shape


def prepare_distance(
    distance: Like | PreparedDistance,
    *bias_functions: BiasFunctionLike,
    dtype: npt.DTypeLike = "float32",
) -> PreparedDistance:
    """Check distances, and make phi of them, once for all attentions of a forward pass.

    Args:
        distance: (S, T), (B, S, T) or (B, H, S, T); at least 0, +inf for "may not attend".
        *bias_functions: those whose phi is made at once, in the engine's threads; another's is
            made when an attention first asks for it. With four axes phi is never held.
        dtype: that of the queries to come.

    Returns:
        What `attention` takes as `distance`. It holds phi of what the distances are now.

    Raises:
        ValueError: negative or NaN distances, or an unknown function.

    Example:
        >>> import numpy as np
        >>> import te_tensor as te
        >>> q = te.randn(1, 2, 5, 4)
        >>> shared = te.prepare_distance(np.ones((5, 5)), "gaussian")
        >>> for _ in range(3):  # phi is made once
        ...     q = te.attention(q, q, q, distance=shared, slopes=[1, 2], bias_function="gaussian")
    """
    wanted = as_dtype(dtype)
    if wanted not in FLOATS:
        raise TypeError(f"distance in {wanted}: expected the queries' float dtype")
    if not isinstance(distance, PreparedDistance) or distance.tensor.dtype != wanted:
        given = distance.tensor if isinstance(distance, PreparedDistance) else distance
        tensor = as_tensor(given)
        if tensor.ndim not in (2, 3, 4):
            raise ValueError(
                f"distance has shape {tensor.shape}: expected (S, T), (B, S, T) or (B, H, S, T)"
            )
        tensor = tensor if tensor.dtype == wanted else tensor.astype(wanted)
        array = tensor.data
        wide = array.astype(float32) if wanted in SMALL_FLOATS else array
        distance = PreparedDistance(tensor, Prepared(wide))
    if distance.prepared.holds:
        for function in bias_functions:
            distance.prepared.phi(distance_function(function))
    return distance


def _functions(
    given: BiasFunctionLike | Sequence[BiasFunctionLike],
) -> tuple[DistanceFunction, ...]:
    if isinstance(given, (str, DistanceFunction)) or not isinstance(given, Sequence):
        return (distance_function(given),)
    return tuple(distance_function(function) for function in given)


def attention(
    q: Like,
    k: Like,
    v: Like,
    *,
    mask: Like | None = None,
    causal: bool = False,
    distance: Like | PreparedDistance | None = None,
    slopes: Like | None = None,
    bias_function: BiasFunctionLike | Sequence[BiasFunctionLike] = "logarithmic",
    rates: Like | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
    offset: int = 0,
    heads: int | None = None,
    kv_heads: int | None = None,
    generator: Generator | None = None,
) -> Tensor:
    """softmax(scale·q·kᵀ + mask - slopes·phi(rates·distance))·v, without holding the scores.

    Memory beyond inputs and outputs is one number per row and head, and a block per thread; a
    problem as small as a block keeps that one for backward. A row that may attend to nothing gives
    zeros. Gradients reach q, k, v, slopes, rates, distance and an additive mask.

    Args:
        q: shape (B, H, S, d).
        k: shape (B, K, T, d); K divides H, and each key head serves H/K query heads.
        v: shape (B, K, T, e).
        mask: (S, T), or four axes that broadcast to (B, H, S, T): boolean (True: may attend), or
            a number added to the scores.
        causal: row i attends to columns up to offset + i only.
        distance: (S, T), (B, S, T) or (B, H, S, T); at least 0, +inf for "may not attend". Made
            ready with `prepare_distance` where several attentions share it.
        slopes: (1, H, 1, 1) or (H,); goes with distance.
        bias_function: phi: "logarithmic" (ln(1+d)), "gaussian" (d²), one that was registered
            (`register_distance_function`), by its name in any case or a member of an enum of that
            name, or a list with one for each head.
        rates: (1, H, 1, 1) or (H,), above 0: factors of the distances inside phi, 1 by default.
        scale: factor of the products; 1/√d by default.
        dropout: probability with which an attention weight is set to zero.
        offset: the column that row 0 stands at, for `causal`: the number of columns that were
            there before, where k and v come from a cache.
        heads: H, where q comes as (B, S, H·d): with its heads side by side, as a projection
            leaves them.
        kv_heads: K, where k or v come likewise; H by default.
        generator: what dropout draws from.

    Returns:
        Shape (B, H, S, e), laid out in memory as q is; (B, S, H·e) for a q of three axes.

    Raises:
        ValueError: shapes or options that don't fit, or negative or NaN distances.
        TypeError: q, k and v of different dtypes, or an integer mask.

    Example:
        >>> import te_tensor as te
        >>> q = te.randn(1, 2, 5, 4)
        >>> te.attention(q, q, q, causal=True).shape
        (1, 2, 5, 4)
    """
    check_probability(dropout)
    source = generator_or_default(generator)
    if (distance is None) != (slopes is None):
        missing = "slopes" if slopes is None else "distance"
        raise ValueError(f"attention got no {missing}: distance and slopes go together")
    if rates is not None and distance is None:
        raise ValueError("attention got rates, but no distance that they are factors of")
    check_whole("offset", offset, 0)
    if causal is not False and causal is not True:
        causal = check_switch("attention causal", causal)
    if scale is not None:
        check_number("scale", scale)
    functions = _functions(bias_function)
    q = floats("attention", q)
    extra: dict[str, Tensor] = {}
    if mask is not None:
        extra["mask"] = _mask(as_tensor(mask), q)
    prepared = None
    if distance is not None and slopes is not None:
        extra["distance"], prepared = prepare_distance(distance, dtype=q.dtype)
        extra["slopes"] = cast(as_tensor(slopes), q)
    if rates is not None:
        extra["rates"] = cast(as_tensor(rates), q)
    operation = _attention.Attention(
        tuple(extra),
        causal,
        functions,
        scale,
        dropout,
        source.next_key() if dropout else (),
        int(offset),
        heads or 0,
        kv_heads or heads or 0,
    )
    operation.prepared = prepared
    return apply(operation, q, as_tensor(k), as_tensor(v), *extra.values())


def _mask(mask: Tensor, q: Tensor) -> Tensor:
    if mask.dtype == bool_:
        return mask
    if mask.dtype not in FLOATS:
        raise TypeError(f"attention mask is {mask.dtype}: expected bool, or a float that is added")
    return cast(mask, q)
