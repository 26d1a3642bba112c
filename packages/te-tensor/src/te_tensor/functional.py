"""The functions of the module: what takes several tensors, and a function for every method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from .dtypes import FLOATS, Array, bool_
from .operation import Operation
from .ops import attention as _attention
from .ops.dropout import Dropout
from .ops.indexing import Embedding
from .ops.linalg import Linear
from .ops.loss import CrossEntropy, MSELoss
from .ops.normalization import LayerNorm
from .ops.shape import Concat, Stack
from .random import Generator, default_generator
from .tensor import Operand, Tensor, _pair, as_tensor

_Like: TypeAlias = Tensor | Array
_Axis: TypeAlias = int | tuple[int, ...] | None


def _apply(operation: Operation, *inputs: Tensor | None) -> Tensor:
    """Apply to the inputs that are there."""
    result: Tensor = Tensor.apply(operation, *(t for t in inputs if t is not None))
    return result


# -- methods, as functions ----------------------------------------------------------------


def add(x: Tensor, y: Operand) -> Tensor:
    """`x + y`, broadcast."""
    return as_tensor(x) + y


def sub(x: Tensor, y: Operand) -> Tensor:
    """`x - y`, broadcast."""
    return as_tensor(x) - y


def mul(x: Tensor, y: Operand) -> Tensor:
    """`x * y`, broadcast."""
    return as_tensor(x) * y


def div(x: Tensor, y: Operand) -> Tensor:
    """`x / y`, broadcast; integers are divided in float32."""
    return as_tensor(x) / y


def pow(x: Tensor, y: Operand) -> Tensor:
    """`x ** y`, broadcast."""
    return as_tensor(x) ** y


def neg(x: _Like) -> Tensor:
    """`-x`."""
    return -as_tensor(x)


def abs(x: _Like) -> Tensor:
    """The absolute value, elementwise; gradient 0 at 0."""
    return as_tensor(x).abs()


def exp(x: _Like) -> Tensor:
    """e to the power of each element."""
    return as_tensor(x).exp()


def log(x: _Like) -> Tensor:
    """The natural logarithm of each element; -inf at 0, NaN below."""
    return as_tensor(x).log()


def sqrt(x: _Like) -> Tensor:
    """The square root of each element; NaN below 0."""
    return as_tensor(x).sqrt()


def sum(x: _Like, axis: _Axis = None, keepdims: bool = False) -> Tensor:
    """The sum over an axis, several, or all."""
    return as_tensor(x).sum(axis, keepdims)


def mean(x: _Like, axis: _Axis = None, keepdims: bool = False) -> Tensor:
    """The mean over an axis, several, or all."""
    return as_tensor(x).mean(axis, keepdims)


def max(x: _Like, axis: _Axis = None, keepdims: bool = False) -> Tensor:
    """The maximum over an axis, several, or all; equal ones share the gradient."""
    return as_tensor(x).max(axis, keepdims)


def relu(x: _Like) -> Tensor:
    """max(x, 0), elementwise."""
    return as_tensor(x).relu()


def sigmoid(x: _Like) -> Tensor:
    """1 / (1 + e^-x), elementwise."""
    return as_tensor(x).sigmoid()


def tanh(x: _Like) -> Tensor:
    """The hyperbolic tangent, elementwise."""
    return as_tensor(x).tanh()


def gelu(x: _Like, approximate: str = "none") -> Tensor:
    """x·Φ(x), elementwise; approximate="tanh" for the form with tanh instead of erf."""
    return as_tensor(x).gelu(approximate)


def softmax(x: _Like, axis: int = -1) -> Tensor:
    """e^x / Σ e^x along an axis."""
    return as_tensor(x).softmax(axis)


def log_softmax(x: _Like, axis: int = -1) -> Tensor:
    """x - ln Σ e^x along an axis."""
    return as_tensor(x).log_softmax(axis)


def reshape(x: _Like, shape: Sequence[int]) -> Tensor:
    """The same elements under another shape; one length may be -1."""
    return as_tensor(x).reshape(shape)


def transpose(x: _Like, *axes: int) -> Tensor:
    """All axes reversed, or two axes exchanged."""
    return as_tensor(x).transpose(*axes)


def permute(x: _Like, axes: Sequence[int]) -> Tensor:
    """The axes in another order."""
    return as_tensor(x).permute(axes)


def flatten(x: _Like, start: int = 0, end: int = -1) -> Tensor:
    """The axes from `start` to `end` (included) as one."""
    return as_tensor(x).flatten(start, end)


def squeeze(x: _Like, axis: int | None = None) -> Tensor:
    """Without axes of length 1: all of them, or the one named."""
    return as_tensor(x).squeeze(axis)


def unsqueeze(x: _Like, axis: int) -> Tensor:
    """With an axis of length 1 at `axis` of the result."""
    return as_tensor(x).unsqueeze(axis)


def expand(x: _Like, shape: Sequence[int]) -> Tensor:
    """Axes of length 1 repeated without copying; -1 keeps an axis."""
    return as_tensor(x).expand(shape)


# -- several tensors ----------------------------------------------------------------------


def _of_one_dtype(name: str, tensors: Sequence[_Like]) -> list[Tensor]:
    if isinstance(tensors, Tensor):
        raise ValueError(f"{name} got a Tensor: expected a list of one or more")
    tensors = list(tensors)
    if not tensors:
        raise ValueError(f"{name} got no tensors: expected one or more")
    first, *rest = (as_tensor(t) for t in tensors)
    for other in rest:
        first, _ = _pair(first, other)
    return [_pair(as_tensor(t), first)[0] for t in tensors]


def concat(tensors: Sequence[_Like], axis: int = 0) -> Tensor:
    """Tensors joined along an axis they have.

    Args:
        tensors: one or more, whose shapes differ at most along `axis`.
        axis: the axis that grows.

    Returns:
        The joined tensor.

    Raises:
        ValueError: no tensors, or shapes that don't fit.
        IndexError: there is no such axis.
    """
    return _apply(Concat(axis), *_of_one_dtype("concat", tensors))


cat = concat


def stack(tensors: Sequence[_Like], axis: int = 0) -> Tensor:
    """Tensors of one shape joined along a new axis.

    Args:
        tensors: one or more, of equal shapes.
        axis: where the new axis stands in the result.

    Returns:
        The joined tensor.

    Raises:
        ValueError: no tensors, or different shapes.
        IndexError: axis is out of range.
    """
    return _apply(Stack(axis), *_of_one_dtype("stack", tensors))


def matmul(a: _Like, b: _Like) -> Tensor:
    """The matrix product: 1-D operands are vectors, leading axes broadcast."""
    return as_tensor(a) @ as_tensor(b)


def linear(x: _Like, weight: _Like, bias: _Like | None = None) -> Tensor:
    """`x @ weight.T + bias`.

    Args:
        x: shape (…, in).
        weight: shape (out, in).
        bias: shape (out,).

    Returns:
        Shape (…, out).

    Raises:
        ValueError: shapes that don't fit.
        TypeError: different float widths.
    """
    extra = None if bias is None else as_tensor(bias)
    return _apply(Linear(), as_tensor(x), as_tensor(weight), extra)


def layer_norm(
    x: _Like,
    normalized_shape: int | Sequence[int],
    weight: _Like | None = None,
    bias: _Like | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """(x - mean) / √(var + eps) · weight + bias, over the last axes (arXiv:1607.06450).

    Args:
        x: shape (…, *normalized_shape).
        normalized_shape: lengths of the axes that are normalized together.
        weight: shape normalized_shape.
        bias: likewise; needs a weight.
        eps: added to the variance.

    Returns:
        The shape of x.

    Raises:
        ValueError: shapes that don't fit, or a bias without a weight.
    """
    x = _floats("layer_norm", x)
    single = isinstance(normalized_shape, (int, np.integer))
    shape = (normalized_shape,) if single else tuple(normalized_shape)  # type: ignore[arg-type]
    if not shape or x.shape[-len(shape) :] != shape:
        raise ValueError(f"layer_norm of shape {x.shape}: expected it to end with {shape}")
    if bias is not None and weight is None:
        raise ValueError("layer_norm got a bias without a weight: expected both, or weight alone")
    affine = [None if a is None else as_tensor(a) for a in (weight, bias)]
    return _apply(LayerNorm(len(shape), eps), x, *affine)


def embedding(indices: _Like, weight: _Like, padding_idx: int | None = None) -> Tensor:
    """Rows of a table.

    Args:
        indices: whole numbers of any shape.
        weight: shape (rows, features).
        padding_idx: a row whose gradient is zero.

    Returns:
        Shape (*indices.shape, features).

    Raises:
        IndexError: an index is out of range.
        TypeError: indices are no integers.
    """
    weight = as_tensor(weight)
    if weight.ndim != 2:
        raise ValueError(f"embedding weight has shape {weight.shape}: expected (rows, features)")
    if padding_idx is not None:
        if not -len(weight) <= padding_idx < len(weight):
            raise IndexError(f"padding_idx is {padding_idx}: expected a row of {len(weight)}")
        padding_idx %= len(weight)
    return _apply(Embedding(padding_idx), weight, as_tensor(indices))


def dropout(
    x: _Like, p: float = 0.5, training: bool = True, *, generator: Generator | None = None
) -> Tensor:
    """Elements set to zero with probability p, the others times 1/(1-p).

    Args:
        x: any float tensor.
        p: probability of a zero, 0 … 1.
        training: False returns x as it is.
        generator: what to draw from; by default the one in force.

    Returns:
        The shape of x.

    Raises:
        ValueError: p is out of range.
    """
    x = _floats("dropout", x)
    _check_probability(p)
    if not training or p == 0:
        return x
    return _apply(Dropout(p, (generator or default_generator()).next_key()), x)


def _floats(name: str, x: _Like) -> Tensor:
    x = as_tensor(x)
    if x.dtype not in FLOATS:
        raise TypeError(f"{name} of {x.dtype}: expected a float dtype")
    return x


def _check_probability(p: float) -> None:
    number = isinstance(p, (int, float, np.number)) and not isinstance(p, bool)
    if not number or not 0 <= p <= 1:
        raise ValueError(f"dropout probability is {p!r}: expected 0 … 1")


def mse_loss(prediction: _Like, target: _Like, reduction: str = "mean") -> Tensor:
    """The squared difference.

    Args:
        prediction: any shape.
        target: the same shape.
        reduction: "mean", "sum" or "none".

    Returns:
        A scalar, or the inputs' shape for "none".

    Raises:
        ValueError: different shapes, or an unknown reduction.
    """
    return _apply(MSELoss(reduction), *_pair(as_tensor(prediction), target, floats=True))


def cross_entropy(
    logits: _Like,
    target: _Like,
    weight: _Like | None = None,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """-Σ t·log softmax(logits), with the classes on axis 1 (axis 0 for one sample).

    Args:
        logits: shape (N, C, …) or (C,).
        target: class labels, shape (N, …) or (); or probabilities in the shape of the logits.
        weight: one factor per class, shape (C,).
        ignore_index: a label that counts for nothing.
        label_smoothing: share of the target spread evenly over the classes, 0 … 1.
        reduction: "mean" (weighted by the labels' weights), "sum" or "none".

    Returns:
        A scalar, or the labels' shape for "none".

    Raises:
        IndexError: a label is out of range.
        ValueError: shapes that don't fit, or an option that is out of range.
    """
    operation = CrossEntropy(reduction, ignore_index, label_smoothing)
    logits, target = _floats("cross_entropy", logits), as_tensor(target)
    if target.dtype in FLOATS and target.dtype != logits.dtype:
        target = target.astype(logits.dtype)
    factors = None if weight is None else as_tensor(weight).astype(logits.dtype)
    if factors is not None and factors.requires_grad:
        raise ValueError("cross_entropy weight requires a gradient: it has none; detach() it")
    return _apply(operation, logits, target, factors)


def attention(
    q: _Like,
    k: _Like,
    v: _Like,
    *,
    mask: _Like | None = None,
    causal: bool = False,
    distance: _Like | None = None,
    slopes: _Like | None = None,
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
    _check_probability(dropout)
    if (distance is None) != (slopes is None):
        missing = "slopes" if slopes is None else "distance"
        raise ValueError(f"attention got no {missing}: distance and slopes go together")
    if bias_function not in _attention.DISTANCE_FUNCTIONS:
        known = ", ".join(_attention.DISTANCE_FUNCTIONS)
        raise ValueError(f"bias_function is {bias_function!r}: expected one of {known}")
    q = _floats("attention", q)
    extra: dict[str, Tensor] = {}
    if mask is not None:
        extra["mask"] = _mask(as_tensor(mask), q)
    if distance is not None and slopes is not None:
        extra["distance"] = _cast(as_tensor(distance), q)
        extra["slopes"] = _cast(as_tensor(slopes), q)
    operation = _attention.Attention(
        tuple(extra),
        causal,
        bias_function,
        scale,
        dropout,
        (generator or default_generator()).next_key() if dropout else (),
    )
    return _apply(operation, q, as_tensor(k), as_tensor(v), *extra.values())


def _cast(x: Tensor, like: Tensor) -> Tensor:
    return x if x.dtype == like.dtype else x.astype(like.dtype)


def _mask(mask: Tensor, q: Tensor) -> Tensor:
    if mask.dtype == bool_:
        return mask
    if mask.dtype not in FLOATS:
        raise TypeError(f"attention mask is {mask.dtype}: expected bool, or a float that is added")
    return _cast(mask, q)


def allclose(a: Any, b: Any, rtol: float = 1e-5, atol: float = 1e-8) -> bool:
    """Whether all elements are equal to within atol + rtol·|b|; NaN equals nothing."""
    return bool(np.allclose(np.asarray(a), np.asarray(b), rtol=rtol, atol=atol))
