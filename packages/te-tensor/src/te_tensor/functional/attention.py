"""Attention, with its masks and its distance bias."""

from __future__ import annotations

from ..dtypes import FLOATS, bool_
from ..ops import attention as _attention
from ..random import Generator, default_generator
from ..tensor import Tensor, as_tensor
from ._common import Like, apply, cast, check_probability, floats


def attention(
    q: Like,
    k: Like,
    v: Like,
    *,
    mask: Like | None = None,
    causal: bool = False,
    distance: Like | None = None,
    slopes: Like | None = None,
    bias_function: str = "logarithmic",
    scale: float | None = None,
    dropout: float = 0.0,
    generator: Generator | None = None,
) -> Tensor:
    """softmax(scale·q·kᵀ + mask - slopes·phi(distance))·v, without holding the scores.

    Memory beyond inputs and outputs is one number per row and head, and a block per thread. A
    row that may attend to nothing gives zeros. Gradients reach q, k, v, slopes, distance and an
    additive mask.

    Args:
        q: shape (B, H, S, d).
        k: shape (B, K, T, d); K divides H, and each key head serves H/K query heads.
        v: shape (B, K, T, e).
        mask: (S, T), or four axes that broadcast to (B, H, S, T): boolean (True: may attend), or
            a number added to the scores.
        causal: row i attends to columns up to i only.
        distance: (S, T), (B, S, T) or (B, H, S, T); at least 0, +inf for "may not attend".
        slopes: (1, H, 1, 1) or (H,); goes with distance.
        bias_function: phi: "logarithmic" (ln(1+d)) or "gaussian" (d²).
        scale: factor of the products; 1/√d by default.
        dropout: probability with which an attention weight is set to zero.
        generator: what dropout draws from.

    Returns:
        Shape (B, H, S, e), laid out in memory as q is.

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
    if (distance is None) != (slopes is None):
        missing = "slopes" if slopes is None else "distance"
        raise ValueError(f"attention got no {missing}: distance and slopes go together")
    if bias_function not in _attention.DISTANCE_FUNCTIONS:
        known = ", ".join(_attention.DISTANCE_FUNCTIONS)
        raise ValueError(f"bias_function is {bias_function!r}: expected one of {known}")
    q = floats("attention", q)
    extra: dict[str, Tensor] = {}
    if mask is not None:
        extra["mask"] = _mask(as_tensor(mask), q)
    if distance is not None and slopes is not None:
        extra["distance"] = cast(as_tensor(distance), q)
        extra["slopes"] = cast(as_tensor(slopes), q)
    operation = _attention.Attention(
        tuple(extra),
        causal,
        bias_function,
        scale,
        dropout,
        (generator or default_generator()).next_key() if dropout else (),
    )
    return apply(operation, q, as_tensor(k), as_tensor(v), *extra.values())


def _mask(mask: Tensor, q: Tensor) -> Tensor:
    if mask.dtype == bool_:
        return mask
    if mask.dtype not in FLOATS:
        raise TypeError(f"attention mask is {mask.dtype}: expected bool, or a float that is added")
    return cast(mask, q)
