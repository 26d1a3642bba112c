"""Clipping of gradients."""

from __future__ import annotations

from collections.abc import Iterable
from math import inf, isfinite, sqrt

import numpy as np

from te_tensor import Tensor


def clip_gradients(
    parameters: Iterable[Tensor],
    max_norm: float,
    *,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
) -> float:
    """Scale all gradients so that their norm, as one vector, is at most `max_norm`.

    Args:
        parameters: tensors; those without a gradient are passed over.
        max_norm: the greatest norm, at least 0.
        norm_type: the p of the p-norm; inf for the greatest absolute value.
        error_if_nonfinite: raise when the norm is inf or NaN, instead of scaling by it.

    Returns:
        The norm before clipping.

    Raises:
        ValueError: max_norm or norm_type is out of range.
        FloatingPointError: the norm isn't finite, and that was to raise; nothing was changed.

    Example:
        >>> import te_tensor as te
        >>> w = te.Tensor([3.0, 4.0], requires_grad=True)
        >>> w.grad = [3.0, 4.0]
        >>> clip_gradients([w], 1.0)
        5.0
    """
    if not max_norm >= 0:
        raise ValueError(f"max_norm is {max_norm}: expected a number of at least 0")
    if not norm_type > 0:
        raise ValueError(f"norm_type is {norm_type}: expected a number above 0, or inf")
    tensors = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    grads = [t.grad for t in tensors if t.grad is not None]
    norm = _norm(grads, norm_type)
    if error_if_nonfinite and not isfinite(norm):
        raise FloatingPointError(f"the norm of the gradients is {norm}: expected a finite one")
    factor = max_norm / (norm + 1e-6)
    if not factor >= 1:  # a NaN norm makes the gradients NaN, as PyTorch has it
        for grad in grads:
            with grad.lock() as array, np.errstate(invalid="ignore"):
                np.multiply(array, array.dtype.type(factor), out=array)
    return norm


def _norm(grads: Iterable[Tensor], norm_type: float) -> float:
    """The p-norm over all elements, the tensors' parts added in float64."""
    if norm_type == inf:
        return float(np.max([np.abs(g.data).max(initial=0) for g in grads], initial=0))
    if norm_type == 2:
        flat = (g.data.reshape(-1) for g in grads)
        return sqrt(sum(float(np.einsum("i,i->", f, f, dtype=np.float64)) for f in flat))
    total = sum(float((np.abs(g.data, dtype=np.float64) ** norm_type).sum()) for g in grads)
    return float(total ** (1 / norm_type))
